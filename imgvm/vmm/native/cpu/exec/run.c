/* SPDX-License-Identifier: MIT */
/* The run loop: blocks one after another, with requests, exceptions and halts between them. */
#include <stdio.h>
#include <string.h>

#include "debug.h"
#include "exec.h"
#include "requests.h"
#include "trace.h"

#define BUDGET_BLOCKS 256 /* blocks between looks at the clock: some 10 us */

/* ---- leaving a block early ---- */

static _Noreturn void land(struct cpu *cpu)
{
    __builtin_longjmp(cpu->landing, 1);
}

static _Noreturn void raise(struct cpu *cpu, const struct uop *u, uint8_t vector, bool has_error_code, uint32_t error_code)
{
    if (u) {
        cpu->rip = cpu_this_rip(cpu, u) & cpu_rip_mask(cpu);
        cpu_uncount(cpu, u, false);
    } else if (cpu->in_soft_interrupt) {
        cpu->rip = cpu->soft_interrupt_rip;
        cpu->instructions -= !cpu->uncounted; /* it did not happen; it was the last of its block */
    }
    cpu->in_soft_interrupt = false;
    cpu->trap = cpu->resumed = 0;
    cpu->ss_shadow = false;
    cpu->event = EVENT_EXCEPTION;
    cpu->vector = vector;
    cpu->has_error_code = has_error_code;
    cpu->error_code = error_code;
    land(cpu);
}

void raise_exception(struct cpu *cpu, const struct uop *u, uint8_t vector)
{
    raise(cpu, u, vector, false, 0);
}

void raise_error(struct cpu *cpu, const struct uop *u, uint8_t vector, uint32_t error_code)
{
    raise(cpu, u, vector, true, error_code);
}

void leave_block(struct cpu *cpu, const struct uop *u, bool done)
{
    cpu_uncount(cpu, u, done);
    if (cpu->event == EVENT_NONE) {
        cpu->event = EVENT_LEAVE;
        cpu->resumed = 0;
        if (!done)
            cpu->eflags |= EFLAGS_RF; /* between two iterations (SDM vol. 3, 17.3.1.1) */
    }
    land(cpu);
}

void cpu_check_access(struct cpu *cpu, const struct uop *u, bool port, uint64_t address)
{
    if (likely(!cpu->callbacks.may_access) || cpu->callbacks.may_access(cpu->opaque, port, address))
        return;
    cpu->event = EVENT_REFUSED;
    if (u) {
        cpu->rip = cpu_this_rip(cpu, u) & cpu_rip_mask(cpu);
        leave_block(cpu, u, false);
    }
    land(cpu);
}

void internal_error(struct cpu *cpu, const struct uop *u, const char *what)
{
    cpu_fpu_leave(cpu);
    if (u)
        cpu->rip = cpu_this_rip(cpu, u);
    snprintf(cpu->message, sizeof cpu->message, "%s at %#x:%#llx", what, cpu->s.segment[CS].selector,
             (unsigned long long)cpu->rip);
    cpu->event = EVENT_INTERNAL;
    land(cpu);
}

/* A native instruction trapped on the host (trap.c brings us here, on this thread, in thunk context). */
_Noreturn void native_trap(void *opaque, unsigned vector)
{
    struct cpu *cpu = opaque;
    if (vector == EXC_XM && !(cpu->s.cr4 & CR4_OSXMMEXCPT))
        vector = EXC_UD; /* the system does not handle #XM (SDM vol. 3, 2.5) */
    if (vector == EXC_GP || vector == EXC_AC)
        raise_error(cpu, cpu->cur, (uint8_t)vector, 0);
    raise_exception(cpu, cpu->cur, (uint8_t)vector);
}

/* ---- exceptions on exceptions (SDM vol. 3, 6.15, table 6-5) ---- */

static bool contributory(uint8_t vector)
{
    return vector == EXC_DE || (vector >= EXC_TS && vector <= EXC_GP);
}

/* In real mode none is pushed. */
static bool has_error_code(const struct cpu *cpu)
{
    return cpu->has_error_code && (cpu->s.cr0 & CR0_PE);
}

static void deliver_exception(struct cpu *cpu)
{
    uint8_t vector = cpu->vector;
    if (cpu->delivering != NO_VECTOR) {
        uint8_t first = cpu->delivering;
        bool serious = contributory(vector) || vector == EXC_PF;
        if (first == EXC_DF && serious) {
            cpu_fpu_leave(cpu); /* the message is not made in general registers alone */
            snprintf(cpu->message, sizeof cpu->message,
                     "triple fault at %#x:%#llx (exception %u while delivering a double fault; cr0 %#llx cr2 %#llx cr3 %#llx rsp %#llx)",
                     cpu->s.segment[CS].selector, (unsigned long long)cpu->rip, vector, (unsigned long long)cpu->s.cr0,
                     (unsigned long long)cpu->s.cr2, (unsigned long long)cpu->s.cr3, (unsigned long long)cpu->gpr[RSP]);
            cpu_trace_triple_fault(cpu);
            cpu->s.activity = X86_SHUTDOWN;
            cpu->delivering = NO_VECTOR;
            return;
        }
        if ((contributory(first) && contributory(vector)) || (first == EXC_PF && serious)) {
            vector = EXC_DF;
            cpu->has_error_code = true;
            cpu->error_code = 0;
        }
    }
    bool has_error = has_error_code(cpu);
    uint32_t error = cpu->error_code;
    cpu->counts.exceptions[vector % ARRAY_LEN(cpu->counts.exceptions)]++;
    if (vector == EXC_DB)
        cpu->s.dr[7] &= ~(uint64_t)DR7_GD;
    cpu->delivering = vector;
    cpu->s.activity = X86_RUNNING; /* a trap of HLT itself */
    interrupt_deliver(cpu, vector, INTERRUPT_EXCEPTION, has_error, error);
    cpu->delivering = NO_VECTOR;
}

static inline void interpret(struct cpu *cpu, struct block *block)
{
    cpu->block = block;
    cpu->gpr[GPR_BLOCK_RIP] = cpu->rip;
    cpu->instructions += block->count;
    block->uops[0].fn(cpu, block->uops);
}

static void run_block(struct cpu *cpu, struct block *block)
{
    if (!cpu->translator || !cpu->translator_ops->run(cpu, cpu->translator, block))
        interpret(cpu, block);
}

/* What stands behind an instruction that runs alone. */
static void stop_behind(struct cpu *cpu, const struct uop *u)
{
    cpu->instructions -= cpu->block->count - u->index;
    cpu->rip = (cpu->gpr[GPR_BLOCK_RIP] + u->offset) & cpu_rip_mask(cpu);
}

/* The first instruction of a block that is decoded already. */
static void run_first(struct cpu *cpu, struct block *block)
{
    cpu->block = block;
    cpu->gpr[GPR_BLOCK_RIP] = cpu->rip;
    cpu->instructions += block->count;
    cpu->called[0] = block->uops[0];
    cpu->called[1] = (struct uop){.fn = stop_behind, .offset = block->uops[0].next, .index = 1};
    cpu->called[0].fn(cpu, cpu->called);
}

/* One instruction with everything that hangs on instruction boundaries: shadow, trap flag. */
static void run_one(struct cpu *cpu)
{
    cpu->budget--;
    if (unlikely(cpu->debug_single))
        debug_check_code(cpu);
    /* a breakpoint is met where it is decoded; a store into what follows is started over as a block of its own */
    bool alone = cpu->debug_single || cpu->points.code || cpu->event_single;
    struct block *block = alone ? block_single(cpu) : block_find(cpu);
    cpu->event_single = false;
    if (cpu->eflags & EFLAGS_TF)
        cpu->trap |= DR6_BS;
    cpu->resumed = cpu->eflags & EFLAGS_RF;
    cpu->eflags &= ~(uint64_t)EFLAGS_RF;
    cpu->s.interrupt_shadow = cpu->ss_shadow = false;
    if (block->mode & MODE_SINGLE)
        run_block(cpu, block);
    else
        run_first(cpu, block);
    cpu->resumed = 0;
    if (unlikely(cpu->trap))
        debug_take_trap(cpu);
}

/* One instruction while no other processor executes anything; end_exclusive is called when it is over, and when a fault
 * ends it, too. */
static void run_exclusively(struct cpu *cpu)
{
    cpu_fpu_leave(cpu);
    cpu->callbacks.exclusive(cpu->opaque, true);
    cpu->exclusive = true;
    run_one(cpu);
}

static void end_exclusive(struct cpu *cpu)
{
    if (likely(!cpu->exclusive))
        return;
    cpu_fpu_leave(cpu);
    cpu->exclusive = false;
    cpu->callbacks.exclusive(cpu->opaque, false);
}

/* The instruction did not happen after all: it will be started anew, by us or another engine. */
static void put_back(struct cpu *cpu)
{
    cpu->trap = 0;
    cpu->eflags |= cpu->resumed;
    cpu->resumed = 0;
}

/* Others set it after what they ask for: what is asked after the store of 0 will be seen by the look, or sets it again. */
void cpu_update_pending(struct cpu *cpu)
{
    atomic_store(&cpu->pending, 0);
    if (cpu_wants_attention(cpu))
        atomic_store(&cpu->pending, 1);
}

void cpu_update_boundary(struct cpu *cpu)
{
    cpu->boundary = cpu->s.interrupt_shadow || (cpu->eflags & (EFLAGS_TF | EFLAGS_RF)) || cpu->s.activity != X86_RUNNING ||
                    cpu->count_limit != UINT64_MAX || cpu->debug_single || cpu->trap;
}

/* What attention asked for, one thing at a time. true: the caller returns *exit. */
static bool between_blocks(struct cpu *cpu, enum cpu_exit *exit)
{
    if (atomic_load(&cpu->requests) & CPU_REQUEST_CLOCK && requests_take(cpu, CPU_REQUEST_CLOCK)) { /* or almost: whoever set the alarm sets the next one */
        *exit = CPU_EXIT_REQUEST;
        return true;
    }
    if (cpu->budget < 0) {
        cpu->budget = BUDGET_BLOCKS;
        if (cpu->deadline_ns != UINT64_MAX && cpu->callbacks.time_ns(cpu->opaque) >= cpu->deadline_ns) {
            *exit = CPU_EXIT_REQUEST;
            return true;
        }
    }
    cpu_update_boundary(cpu);
    cpu_update_requests(cpu);
    bool requested = atomic_load(&cpu->requests) & cpu->request_mask;
    if (cpu->s.activity != X86_RUNNING && (cpu->s.activity == X86_SHUTDOWN || !requested)) {
        *exit = cpu->s.activity == X86_SHUTDOWN ? CPU_EXIT_SHUTDOWN : CPU_EXIT_HALT;
        cpu->counts.halts += *exit == CPU_EXIT_HALT;
        return true;
    }
    if (cpu->instructions >= cpu->count_limit) {
        *exit = CPU_EXIT_REQUEST;
        return true;
    }
    if (cpu->trap && !cpu->ss_shadow)
        debug_take_trap(cpu);
    if (requested && !cpu->s.interrupt_shadow)
        return requests_handle(cpu, exit);
    bool only_count = !cpu->s.interrupt_shadow && !(cpu->eflags & (EFLAGS_TF | EFLAGS_RF)) && !cpu->debug_single && !cpu->trap;
    if (only_count && cpu->instructions + BLOCK_MAX_INSNS <= cpu->count_limit)
        run_block(cpu, block_find(cpu));
    else
        run_one(cpu);
    return false;
}

static enum cpu_exit run_loop(struct cpu *cpu)
{
    enum cpu_exit exit;
    if (__builtin_setjmp(cpu->landing)) {
        /* an event inside a block brought us back */
    }
    for (;;) {
        enum cpu_event event = cpu->event;
        cpu->event = EVENT_NONE;
        cpu->uncounted = false;
        end_exclusive(cpu);
        switch (event) {
        case EVENT_EXCEPTION:
            if (unlikely(cpu->reports_exceptions)) {
                cpu->exception_met = true;
                return CPU_EXIT_REQUEST;
            }
            if (cpu->count_limit != UINT64_MAX && cpu->delivering == NO_VECTOR && cpu->vector != EXC_DB)
                cpu->instructions++; /* a step ends at the handler; a trap's instruction was counted */
            deliver_exception(cpu);
            break;
        case EVENT_SINGLE:
            cpu->event_single = true;
            run_one(cpu);
            break;
        case EVENT_EXCLUSIVE:
            run_exclusively(cpu);
            end_exclusive(cpu);
            break;
        case EVENT_REFUSED:
            put_back(cpu);
            return CPU_EXIT_REFUSED;
        case EVENT_STOP:
            put_back(cpu);
            return CPU_EXIT_REQUEST;
        case EVENT_INTERNAL:
            return CPU_EXIT_INTERNAL;
        default:
            break;
        }
        cpu_update_requests(cpu);
        for (;;) {
            if (cpu->translator)
                while (likely(!cpu_wants_attention(cpu) && --cpu->budget >= 0))
                    run_block(cpu, block_find(cpu));
            else
                while (likely(!cpu_wants_attention(cpu) && --cpu->budget >= 0))
                    interpret(cpu, block_find(cpu));
            if (between_blocks(cpu, &exit))
                return exit;
        }
    }
}

enum cpu_exit cpu_run(struct cpu *cpu)
{
    return cpu_run_count(cpu, UINT64_MAX);
}

enum cpu_exit cpu_run_count(struct cpu *cpu, uint64_t count)
{
    cpu->count_limit = count > UINT64_MAX - cpu->instructions ? UINT64_MAX : cpu->instructions + count;
    cpu->event = EVENT_NONE;
    cpu->budget = BUDGET_BLOCKS;
    cpu->tsc_piece.ticks = 0;
    cpu_update_boundary(cpu);
    native_cache_activate(cpu->native);
    atomic_store(&cpu->running, true);
    cpu_flush_now(cpu);
    if (cpu->translator)
        cpu->translator_ops->attach_thread(cpu);
    enum cpu_exit exit = run_loop(cpu);
    cpu_fpu_leave(cpu);
    atomic_store(&cpu->running, false);
    native_cache_activate(NULL);
    return exit;
}

/* ---- the outside's calls ---- */

void cpu_report_exceptions(struct cpu *cpu, bool report)
{
    cpu->reports_exceptions = report;
}

bool cpu_take_exception(struct cpu *cpu, struct cpu_exception *out)
{
    bool met = cpu->exception_met;
    cpu->exception_met = false;
    if (met)
        *out = (struct cpu_exception){cpu->vector, has_error_code(cpu), cpu->error_code};
    return met;
}

void cpu_set_deadline_ns(struct cpu *cpu, uint64_t deadline_ns)
{
    cpu->deadline_ns = deadline_ns;
}

uint64_t cpu_instructions(const struct cpu *cpu)
{
    return cpu->instructions;
}

const char *cpu_message(const struct cpu *cpu)
{
    return cpu->message;
}
