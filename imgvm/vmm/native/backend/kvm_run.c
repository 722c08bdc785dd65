/* SPDX-License-Identifier: MIT */
/* A processor's loop under KVM: what it asks of the board is served, and where KVM cannot go on, the software processor does.
 *
 * A kick is a signal that every thread of ours keeps blocked and that KVM_RUN alone lets through
 * (KVM_SET_SIGNAL_MASK): so no handler is installed in the process that hosts us, and a signal that arrives
 * before KVM_RUN still ends it. The flag `kicked` tells a kick from a stray wake-up. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "../base/bits.h"
#include "kvm.h"

static int kick_signal(void)
{
    return SIGRTMIN + 4;
}

int kvm_let_kicks_through(struct kvm_cpu *cpu, imgvm_error *err)
{
    struct __attribute__((packed)) { /* the set follows the 32-bit length without a gap */
        struct kvm_signal_mask head;
        uint64_t blocked;
    } mask = {.head.len = 8, .blocked = ~(UINT64_C(1) << (kick_signal() - 1))};
    if (ioctl(cpu->fd, KVM_SET_SIGNAL_MASK, &mask) < 0)
        return error_set(err, errno, "KVM: cannot set the signal mask: %s", strerror(errno));
    return 0;
}

static void serve_port(struct kvm_engine *kvm, unsigned cpu, struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        uint32_t value = 0;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, data, run->io.size);
            kvm->host.port_write(kvm->host.opaque, cpu, run->io.port, run->io.size, value);
        } else {
            value = kvm->host.port_read(kvm->host.opaque, cpu, run->io.port, run->io.size);
            memcpy(data, &value, run->io.size);
        }
    }
}

static void serve_mmio(struct kvm_engine *kvm, unsigned cpu, struct kvm_run *run)
{
    uint64_t value = 0;
    unsigned size = MIN(run->mmio.len, 8u);
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, size);
        kvm->host.mmio_write(kvm->host.opaque, cpu, run->mmio.phys_addr, size, value);
    } else {
        value = kvm->host.mmio_read(kvm->host.opaque, cpu, run->mmio.phys_addr, size);
        memcpy(run->mmio.data, &value, size);
    }
}

/* Where it stopped and what stands there, for a failure the user has to understand. */
static void describe_failure(struct kvm_cpu *cpu, unsigned id, const char *what)
{
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs = {0};
    ioctl(cpu->fd, KVM_GET_REGS, &regs);
    ioctl(cpu->fd, KVM_GET_SREGS, &sregs);
    int n = snprintf(cpu->message, sizeof cpu->message,
                     "KVM: %s (processor %u, cs:rip %04x:%#llx, cr0 %#llx, cr3 %#llx, cr4 %#llx)", what, id,
                     sregs.cs.selector, regs.rip, sregs.cr0, sregs.cr3, sregs.cr4);
    struct kvm_run *run = cpu->run;
    if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR && run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
        run->internal.ndata > 1 && (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
        n += snprintf(cpu->message + n, sizeof cpu->message - n, ", instruction");
        for (unsigned i = 0; i < MIN(run->emulation_failure.insn_size, 15); i++)
            n += snprintf(cpu->message + n, sizeof cpu->message - n, " %02x", run->emulation_failure.insn_bytes[i]);
    }
}

static enum engine_exit fail(struct kvm_engine *kvm, unsigned id)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    struct kvm_run *run = cpu->run;
    char what[128];
    switch (run->exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR:
        if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
            snprintf(what, sizeof what, "the host cannot emulate an instruction of the guest");
        else
            snprintf(what, sizeof what, "internal error %u of the host", run->internal.suberror);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(what, sizeof what, "the host's processor refuses to enter the guest, reason %#llx",
                 run->fail_entry.hardware_entry_failure_reason);
        break;
    default:
        snprintf(what, sizeof what, "exit for an unknown reason %u", run->exit_reason);
    }
    describe_failure(cpu, id, what);
    return ENGINE_EXIT_INTERNAL;
}

/* ---- when KVM cannot go on ---- */

static void cpuid_of_guest(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct kvm_cpuid2 *cpuid = ((struct kvm_cpu *)opaque)->cpuid;
    for (unsigned i = 0; i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        bool indexed = entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        if (entry->function != leaf || (indexed && entry->index != subleaf))
            continue;
        out[0] = entry->eax;
        out[1] = entry->ebx;
        out[2] = entry->ecx;
        out[3] = entry->edx;
        return;
    }
    out[0] = out[1] = out[2] = out[3] = 0;
}

static uint64_t tsc_of_guest(void *opaque)
{
    struct kvm_cpu *cpu = opaque;
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[1];
    } msr = {.head.nmsrs = 1, .entry[0].index = 0x10};
    return ioctl(cpu->fd, KVM_GET_MSRS, &msr) == 1 ? msr.entry[0].data : 0;
}

/* The software processor goes on from here until KVM can. */
static enum engine_exit hand_over(struct kvm_engine *kvm, unsigned id, bool *go_on)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    imgvm_error err = {0};
    struct x86_state state;
    *go_on = false;
    if (!cpu->handover) {
        const struct handover_host host = {&kvm->host, cpu, cpuid_of_guest, tsc_of_guest,
                                            kvm->limited ? &kvm->features : NULL, kvm_cpuid_vendor(cpu->cpuid)};
        if (handover_create(&host, id, &cpu->handover, &err) < 0)
            goto failed;
    }
    if (kvm_state_get(kvm, id, &state, &err) < 0)
        goto failed;
    switch (handover_run(cpu->handover, &state)) {
    case HANDOVER_SHUTDOWN:
        if (kvm_state_set(kvm, id, &state, &err) < 0)
            goto failed;
        return ENGINE_EXIT_SHUTDOWN;
    case HANDOVER_FAILED:
        snprintf(cpu->message, sizeof cpu->message, "%s", handover_message(cpu->handover));
        return ENGINE_EXIT_INTERNAL;
    case HANDOVER_DONE:
        break;
    }
    if (kvm_state_set(kvm, id, &state, &err) < 0)
        goto failed;
    cpu->handovers++;
    *go_on = true;
    return ENGINE_EXIT_KICKED;
failed:
    snprintf(cpu->message, sizeof cpu->message, "%s", err.message);
    return ENGINE_EXIT_INTERNAL;
}

static bool software_can(const struct kvm_run *run)
{
    return (run->exit_reason == KVM_EXIT_INTERNAL_ERROR && run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) ||
           run->exit_reason == KVM_EXIT_FAIL_ENTRY;
}

static void consume_kick_signal(void)
{
    sigset_t set;
    struct timespec none = {0};
    sigemptyset(&set);
    sigaddset(&set, kick_signal());
    while (sigtimedwait(&set, NULL, &none) > 0)
        ;
}

enum engine_exit kvm_run_cpu(struct engine *engine, unsigned id)
{
    struct kvm_engine *kvm = kvm_of(engine);
    struct kvm_cpu *cpu = &kvm->cpu[id];
    if (!atomic_load(&cpu->running_once)) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, kick_signal());
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        cpu->thread = pthread_self();
        atomic_store(&cpu->running_once, true);
    }
    for (;;) {
        if (atomic_exchange(&cpu->kicked, false)) {
            /* A port or MMIO access that we answered is completed by the next KVM_RUN: let it, without going on. */
            cpu->run->immediate_exit = 1;
            ioctl(cpu->fd, KVM_RUN, 0);
            cpu->run->immediate_exit = 0;
            consume_kick_signal();
            return ENGINE_EXIT_KICKED;
        }
        if (unlikely(cpu->debug_changed) && kvm_debug_prepare(kvm, id) < 0) {
            snprintf(cpu->message, sizeof cpu->message, "KVM: this host cannot debug: %s", strerror(errno));
            return ENGINE_EXIT_INTERNAL;
        }
        if (ioctl(cpu->fd, KVM_RUN, 0) < 0) {
            if (errno == EINTR || errno == EAGAIN) {
                consume_kick_signal();
                continue;
            }
            if (errno == EFAULT) {
                describe_failure(cpu, id, "the host cannot map a page of guest memory");
                return ENGINE_EXIT_INTERNAL;
            }
            snprintf(cpu->message, sizeof cpu->message, "KVM: processor %u cannot run: %s", id, strerror(errno));
            return ENGINE_EXIT_INTERNAL;
        }
        switch (cpu->run->exit_reason) {
        case KVM_EXIT_IO:
            serve_port(kvm, id, cpu->run);
            break;
        case KVM_EXIT_MMIO:
            serve_mmio(kvm, id, cpu->run);
            break;
        case KVM_EXIT_IRQ_WINDOW_OPEN:
        case KVM_EXIT_INTR:
            break;
        case KVM_EXIT_DEBUG:
            if (kvm_debug_exit(kvm, id))
                return ENGINE_EXIT_DEBUG;
            break;
        case KVM_EXIT_SHUTDOWN:
            return ENGINE_EXIT_SHUTDOWN;
        default:
            if (software_can(cpu->run)) {
                bool go_on;
                enum engine_exit exit = hand_over(kvm, id, &go_on);
                if (!go_on)
                    return exit;
                break;
            }
            return fail(kvm, id);
        }
    }
}

void kvm_kick(struct engine *engine, unsigned id)
{
    struct kvm_cpu *cpu = &kvm_of(engine)->cpu[id];
    atomic_store(&cpu->kicked, true);
    if (atomic_load(&cpu->running_once))
        pthread_kill(cpu->thread, kick_signal());
}
