/* SPDX-License-Identifier: MIT */
#include "requests.h"

#include <stdlib.h>

#include "exec.h"

void cpu_update_requests(struct cpu *cpu)
{
    cpu_update_boundary(cpu);
    cpu->request_mask = ~0u;
    if (!(cpu->eflags & EFLAGS_IF))
        cpu->request_mask &= ~CPU_REQUEST_INTR;
    if (cpu->hold_interrupts)
        cpu->request_mask &= ~(CPU_REQUEST_INTR | CPU_REQUEST_NMI);
    if (cpu->s.nmi_blocked)
        cpu->request_mask &= ~CPU_REQUEST_NMI;
    if (cpu->s.activity != X86_WAIT_FOR_SIPI)
        cpu->request_mask &= ~CPU_REQUEST_SIPI;
    if (cpu->s.activity == X86_WAIT_FOR_SIPI || cpu->s.activity == X86_SHUTDOWN)
        cpu->request_mask &= CPU_REQUEST_SIPI | CPU_REQUEST_EXIT | CPU_REQUEST_FLUSH | CPU_REQUEST_PARK | CPU_REQUEST_INIT |
                             CPU_REQUEST_CLOCK;
}

bool requests_take(struct cpu *cpu, uint32_t bit)
{
    return atomic_fetch_and(&cpu->requests, ~bit) & bit;
}

static void init_processor(struct cpu *cpu)
{
    static const unsigned kept_cr0 = CR0_CD | CR0_NW;
    struct x86_state *s = &cpu->s;
    cpu_get_state(cpu, s);
    /* INIT leaves the FPU, MSRs, TSC and CR0.CD/NW alone (SDM vol. 3, table 9-1) */
    struct x86_state *fresh = malloc(sizeof *fresh);
    if (!fresh)
        internal_error(cpu, NULL, "out of memory");
    x86_state_reset(fresh, false);
    s->rip = fresh->rip;
    s->rflags = fresh->rflags;
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = fresh->gpr[i];
    for (unsigned i = 0; i < 6; i++)
        s->segment[i] = fresh->segment[i];
    s->ldtr = fresh->ldtr;
    s->tr = fresh->tr;
    s->gdtr = fresh->gdtr;
    s->idtr = fresh->idtr;
    s->cr0 = (fresh->cr0 & ~kept_cr0) | (s->cr0 & kept_cr0);
    s->cr2 = s->cr3 = s->cr4 = s->efer = 0;
    for (unsigned i = 0; i < 8; i++)
        s->dr[i] = fresh->dr[i];
    s->nmi_blocked = s->interrupt_shadow = false;
    s->activity = s->apic_base & 0x100 ? X86_RUNNING : X86_WAIT_FOR_SIPI;
    free(fresh);
    cpu_set_state(cpu, s);
}

static void start_processor(struct cpu *cpu)
{
    struct x86_segment cs = cpu->s.segment[CS];
    cs.selector = (uint16_t)(cpu->sipi_vector << 8);
    cs.base = (uint64_t)cpu->sipi_vector << 12;
    cpu_set_segment(cpu, CS, &cs);
    cpu->rip = 0;
    cpu->s.activity = X86_RUNNING;
    cpu_update_mode(cpu);
}

static void deliver_outside(struct cpu *cpu, uint8_t vector, enum interrupt_source source)
{
    cpu->s.activity = X86_RUNNING;
    interrupt_deliver(cpu, vector, source, false, 0);
}

bool requests_handle(struct cpu *cpu, enum cpu_exit *exit)
{
    uint32_t now = atomic_load(&cpu->requests) & cpu->request_mask;
    if (now & CPU_REQUEST_FLUSH) {
        cpu->counts.flush_requests++;
        cpu_flush_now(cpu);
    }
    if (now & CPU_REQUEST_PARK && requests_take(cpu, CPU_REQUEST_PARK)) {
        cpu_fpu_leave(cpu);
        cpu->callbacks.park(cpu->opaque);
    }
    if (now & CPU_REQUEST_EXIT && requests_take(cpu, CPU_REQUEST_EXIT)) {
        *exit = CPU_EXIT_REQUEST;
        return true;
    }
    if (now & CPU_REQUEST_INIT && requests_take(cpu, CPU_REQUEST_INIT)) {
        cpu->counts.inits++;
        cpu_fpu_leave(cpu);
        init_processor(cpu);
    } else if (now & CPU_REQUEST_SIPI && requests_take(cpu, CPU_REQUEST_SIPI)) {
        cpu->counts.sipis++;
        start_processor(cpu);
    } else if (now & CPU_REQUEST_NMI && requests_take(cpu, CPU_REQUEST_NMI)) {
        cpu->counts.nmis++;
        cpu->s.nmi_blocked = true;
        deliver_outside(cpu, EXC_NMI, INTERRUPT_NMI);
    } else if (now & CPU_REQUEST_INTR) {
        cpu_fpu_leave(cpu);
        atomic_fetch_and(&cpu->requests, ~CPU_REQUEST_INTR);
        int vector = cpu->callbacks.interrupt_acknowledge(cpu->opaque);
        if (vector >= 0) {
            cpu->counts.interrupts++;
            /* perhaps there is more: asked again when IF allows */
            atomic_fetch_or(&cpu->requests, CPU_REQUEST_INTR);
            deliver_outside(cpu, (uint8_t)vector, INTERRUPT_EXTERNAL);
        }
    }
    cpu_update_requests(cpu);
    return false;
}

/* ---- the outside's calls ---- */

void cpu_request(struct cpu *cpu, uint32_t requests)
{
    atomic_fetch_or(&cpu->requests, requests);
    atomic_store(&cpu->pending, 1);
}

void cpu_clock_due(struct cpu *cpu)
{
    cpu_request(cpu, CPU_REQUEST_CLOCK);
}

void cpu_look_up(struct cpu *cpu)
{
    atomic_store(&cpu->pending, 1);
}

void cpu_withdraw(struct cpu *cpu, uint32_t requests)
{
    atomic_fetch_and(&cpu->requests, ~requests);
}

bool cpu_executes(struct cpu *cpu)
{
    return atomic_load(&cpu->running);
}

bool cpu_flush_pending(struct cpu *cpu)
{
    return atomic_load(&cpu->running) && (atomic_load(&cpu->requests) & CPU_REQUEST_FLUSH);
}

bool cpu_may_store_to(struct cpu *cpu, uint64_t gpa)
{
    uint64_t page = align_down(gpa, GUEST_PAGE_SIZE);
    return atomic_load(&cpu->store_pages[0]) == page || atomic_load(&cpu->store_pages[1]) == page;
}

/* The bit is cleared after the flush: until then the asker waits. */
void cpu_flush_now(struct cpu *cpu)
{
    if (!(atomic_load(&cpu->requests) & CPU_REQUEST_FLUSH))
        return;
    mmu_drop_all_writes(&cpu->mmu);
    for (unsigned i = 0; i < ARRAY_LEN(cpu->store_pages); i++)
        atomic_store_explicit(&cpu->store_pages[i], NO_PAGE, memory_order_release);
    cpu->leave_translated = true; /* if it waits there: operands that were checked may be of a code page now */
    atomic_fetch_and(&cpu->requests, ~CPU_REQUEST_FLUSH);
}

void cpu_set_sipi_vector(struct cpu *cpu, uint8_t vector)
{
    cpu->sipi_vector = vector;
}

bool cpu_has_work(struct cpu *cpu)
{
    return cpu->s.activity == X86_RUNNING || (atomic_load(&cpu->requests) & cpu->request_mask);
}
