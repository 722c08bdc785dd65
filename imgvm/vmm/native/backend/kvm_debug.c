/* SPDX-License-Identifier: MIT */
/* Debuggers under KVM: single steps, and points in the processor's debug registers (KVM_SET_GUEST_DEBUG).
 *
 * There are four registers, of 1, 2, 4 or 8 aligned bytes. Watchpoints must fit into them; breakpoints beyond them make
 * the processor run an instruction at a time, each of which is compared. Software breakpoints (INT3) are not used: hosts
 * that emulate KVM without hardware do not intercept them, and the guest could see them. A watchpoint for reads alone
 * does not exist in hardware; it stops at writes too. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../base/bits.h"
#include "../cpu/mmu/mmu.h"
#include "kvm.h"

#define REGISTERS KVM_DEBUG_REGISTERS
#define DR7_BASE 0x600u /* bit 10, and GE */
#define EXIT_STEP DR6_BS
#define OPCODE_HLT 0xf4

struct slot {
    uint64_t address;
    unsigned size; /* 1, 2, 4, 8 */
};

/* The next aligned piece of [address, address + left) that a register can hold. */
static struct slot first_slot(uint64_t address, uint64_t left)
{
    unsigned size = 8;
    while (address % size || size > left)
        size /= 2;
    return (struct slot){address, size};
}

static unsigned slots_of(const struct engine_point *point)
{
    unsigned count = 0;
    for (uint64_t at = 0; at < point->size && count <= REGISTERS; count++)
        at += first_slot(point->linear + at, point->size - at).size;
    return count;
}

static void set_register(struct kvm_engine *kvm, struct slot slot, unsigned kind, unsigned point)
{
    static const uint8_t length[] = {[1] = 0, [2] = 1, [4] = 3, [8] = 2};
    unsigned i = kvm->debug_used++;
    kvm->debug_address[i] = slot.address;
    kvm->debug_point[i] = (uint8_t)point;
    kvm->debug_dr7 |= UINT64_C(2) << (2 * i) | (uint64_t)(kind | length[slot.size] << 2) << (16 + 4 * i);
}

int kvm_debug_set_points(struct kvm_engine *kvm, const struct engine_point *points, unsigned count, imgvm_error *err)
{
    unsigned needed = 0;
    for (unsigned i = 0; i < count; i++)
        if (points[i].kinds & ~ENGINE_POINT_EXECUTE)
            needed += slots_of(&points[i]);
    if (needed > REGISTERS) {
        error_set(err, ENOSPC, "KVM: the processor can watch %u times 1, 2, 4 or 8 aligned bytes, not more", REGISTERS);
        return error_hint(err, "watch less, or use the software processor, which has no such limit");
    }
    struct engine_point *copy = malloc((count ? count : 1) * sizeof *copy);
    if (!copy)
        return error_set(err, ENOMEM, "KVM: out of memory");
    if (count)
        memcpy(copy, points, count * sizeof *copy);
    free(kvm->points);
    kvm->points = copy;
    kvm->point_count = count;
    kvm->debug_used = 0;
    kvm->debug_dr7 = DR7_BASE;
    kvm->debug_scan = false;
    for (unsigned i = 0; i < count; i++) {
        if (!(points[i].kinds & ~ENGINE_POINT_EXECUTE))
            continue;
        for (uint64_t at = 0; at < points[i].size;) {
            struct slot slot = first_slot(points[i].linear + at, points[i].size - at);
            set_register(kvm, slot, points[i].kinds & ENGINE_POINT_READ ? 3 : 1, i);
            at += slot.size;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (!(points[i].kinds & ENGINE_POINT_EXECUTE))
            continue;
        if (kvm->debug_used < REGISTERS)
            set_register(kvm, (struct slot){points[i].linear, 1}, 0, i);
        else
            kvm->debug_scan = true;
    }
    for (unsigned i = 0; i < kvm->cpus; i++)
        kvm->cpu[i].debug_changed = true;
    return 0;
}

void kvm_debug_set_steps(struct kvm_engine *kvm, unsigned id, uint64_t steps, uint32_t go)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    cpu->steps = steps == ENGINE_STEPS_TO_HALT ? 0 : steps;
    cpu->quiet = go & ENGINE_GO_QUIET;
    cpu->passing = (go & ENGINE_GO_PASS) && kvm->point_count;
    cpu->debug_changed = true;
}

/* Before KVM_RUN, when something has changed. */
int kvm_debug_prepare(struct kvm_engine *kvm, unsigned id)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    struct kvm_guest_debug debug = {0};
    cpu->debug_changed = false;
    bool step = cpu->steps || cpu->passing || kvm->debug_scan;
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs = {0};
    if (step) {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        if (ioctl(cpu->fd, KVM_GET_REGS, &regs) < 0 || ioctl(cpu->fd, KVM_GET_SREGS, &sregs) < 0)
            return -1;
        cpu->step_pc = sregs.cs.base + regs.rip;
    }
    if (step && cpu->quiet)
        debug.control |= KVM_GUESTDBG_BLOCKIRQ;
    if (kvm->debug_used && !cpu->passing) {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        for (unsigned i = 0; i < kvm->debug_used; i++)
            debug.arch.debugreg[i] = kvm->debug_address[i];
        debug.arch.debugreg[7] = kvm->debug_dr7;
    }
    if (!ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &debug))
        return 0;
    if (errno == EINVAL && (debug.control & KVM_GUESTDBG_BLOCKIRQ)) { /* older hosts */
        debug.control &= ~(uint32_t)KVM_GUESTDBG_BLOCKIRQ;
        return ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &debug);
    }
    return -1;
}

static bool stop_at(struct kvm_engine *kvm, unsigned id, unsigned point, uint64_t linear)
{
    const struct engine_point *p = &kvm->points[point];
    uint32_t kinds = p->kinds & ~ENGINE_POINT_EXECUTE ? p->kinds & ~ENGINE_POINT_EXECUTE : ENGINE_POINT_EXECUTE;
    kvm->cpu[id].stop = (struct engine_stop){.reason = ENGINE_STOP_POINT, .point = *p, .linear = linear, .kinds = kinds};
    return true;
}

/* Was the instruction that was stepped a HLT? Some hosts go on behind it. */
static bool step_halted(struct kvm_engine *kvm, unsigned id, uint64_t pc)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    struct kvm_mp_state mp = {.mp_state = KVM_MP_STATE_HALTED};
    uint64_t before = cpu->step_pc, gpa;
    uint8_t byte;
    cpu->step_pc = pc;
    if (before + 1 != pc || !kvm_debug_translate(kvm, id, before, &gpa) || !guest_mem_read(kvm->host.mem, gpa, &byte, 1) ||
        byte != OPCODE_HLT)
        return false;
    return !ioctl(cpu->fd, KVM_SET_MP_STATE, &mp);
}

/* KVM_EXIT_DEBUG. true: the debugger's turn has come; false: on. */
bool kvm_debug_exit(struct kvm_engine *kvm, unsigned id)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    const struct kvm_debug_exit_arch *arch = &cpu->run->debug.arch;
    bool stepped = arch->dr6 & EXIT_STEP;
    for (unsigned i = 0; i < kvm->debug_used; i++)
        if (arch->dr6 & BIT(i) && !cpu->passing)
            return stop_at(kvm, id, kvm->debug_point[i], kvm->debug_address[i]);
    if (!stepped)
        return false;
    if (cpu->passing) {
        cpu->passing = false;
        cpu->debug_changed = true;
    }
    bool halted = step_halted(kvm, id, arch->pc);
    if (cpu->steps && halted && cpu->steps > 1) {
        cpu->stop = (struct engine_stop){.reason = ENGINE_STOP_HALT};
        return true;
    }
    if (cpu->steps && !--cpu->steps) {
        cpu->debug_changed = true;
        cpu->stop = (struct engine_stop){.reason = ENGINE_STOP_STEPS};
        return true;
    }
    for (unsigned i = 0; kvm->debug_scan && i < kvm->point_count; i++)
        if ((kvm->points[i].kinds & ENGINE_POINT_EXECUTE) && kvm->points[i].linear == arch->pc)
            return stop_at(kvm, id, i, arch->pc);
    return false;
}

bool kvm_debug_translate(struct kvm_engine *kvm, unsigned id, uint64_t linear, uint64_t *gpa)
{
    struct kvm_sregs sregs;
    struct mmu *mmu = aligned_alloc(_Alignof(struct mmu), sizeof *mmu);
    bool found = false;
    if (mmu && !ioctl(kvm->cpu[id].fd, KVM_GET_SREGS, &sregs)) {
        memset(mmu, 0, sizeof *mmu);
        mmu_init(mmu, kvm->host.mem);
        mmu->cr0 = sregs.cr0;
        mmu->cr3 = sregs.cr3;
        mmu->cr4 = sregs.cr4;
        mmu->efer = sregs.efer;
        if ((sregs.cr0 & CR0_PG) && (sregs.cr4 & CR4_PAE) && !(sregs.efer & EFER_LMA))
            mmu_load_pdptes(mmu, sregs.cr3);
        found = mmu_probe(mmu, linear, gpa);
    }
    free(mmu);
    return found;
}
