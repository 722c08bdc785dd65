/* SPDX-License-Identifier: MIT */
/* struct x86_state to and from KVM's structures (Linux Documentation/virt/kvm/api.rst). Outside it stays what the
 * kernel keeps of its own: the local APIC's registers, and the TSC, whose frequency is the host's. */
#include "kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../base/bits.h"
#include "../cpu/exec/cpuid.h"

#define XSTATE_BV 512 /* of an XSAVE image: which components are in use */

/* MSRs whose value is one field of the state. */
static const struct {
    uint32_t index;
    uint32_t offset;
} msrs[] = {
#define MSR(index, field) {index, offsetof(struct x86_state, field)}
    MSR(0x174, sysenter_cs), MSR(0x175, sysenter_esp), MSR(0x176, sysenter_eip),
    MSR(0xc0000081, star), MSR(0xc0000082, lstar), MSR(0xc0000083, cstar), MSR(0xc0000084, sfmask),
    MSR(0xc0000102, kernel_gs_base), MSR(0xc0000103, tsc_aux),
    MSR(0x277, pat), MSR(0x1a0, misc_enable), MSR(0x2ff, mtrr_def_type),
    MSR(0x250, mtrr_fixed[0]), MSR(0x258, mtrr_fixed[1]), MSR(0x259, mtrr_fixed[2]), MSR(0x268, mtrr_fixed[3]),
    MSR(0x269, mtrr_fixed[4]), MSR(0x26a, mtrr_fixed[5]), MSR(0x26b, mtrr_fixed[6]), MSR(0x26c, mtrr_fixed[7]),
    MSR(0x26d, mtrr_fixed[8]), MSR(0x26e, mtrr_fixed[9]), MSR(0x26f, mtrr_fixed[10]),
    MSR(0x200, mtrr_base[0]), MSR(0x201, mtrr_mask[0]), MSR(0x202, mtrr_base[1]), MSR(0x203, mtrr_mask[1]),
    MSR(0x204, mtrr_base[2]), MSR(0x205, mtrr_mask[2]), MSR(0x206, mtrr_base[3]), MSR(0x207, mtrr_mask[3]),
    MSR(0x208, mtrr_base[4]), MSR(0x209, mtrr_mask[4]), MSR(0x20a, mtrr_base[5]), MSR(0x20b, mtrr_mask[5]),
    MSR(0x20c, mtrr_base[6]), MSR(0x20d, mtrr_mask[6]), MSR(0x20e, mtrr_base[7]), MSR(0x20f, mtrr_mask[7]),
    MSR(0x6e0, tsc_deadline),
#undef MSR
};

static uint64_t *msr_field(struct x86_state *state, unsigned row)
{
    return (uint64_t *)((char *)state + msrs[row].offset);
}

static struct kvm_segment segment_to_kvm(const struct x86_segment *s)
{
    return (struct kvm_segment){
        .base = s->base, .limit = s->limit, .selector = s->selector, .type = s->attributes & SEG_TYPE,
        .s = !!(s->attributes & SEG_S), .dpl = (s->attributes & SEG_DPL) >> SEG_DPL_SHIFT,
        .present = !!(s->attributes & SEG_P), .avl = !!(s->attributes & SEG_AVL), .l = !!(s->attributes & SEG_L),
        .db = !!(s->attributes & SEG_DB), .g = !!(s->attributes & SEG_G),
        .unusable = (s->attributes & SEG_UNUSABLE) || !(s->attributes & SEG_P),
    };
}

static struct x86_segment segment_from_kvm(const struct kvm_segment *k)
{
    return (struct x86_segment){
        .base = k->base, .limit = k->limit, .selector = k->selector,
        .attributes = k->type | (k->s ? SEG_S : 0) | (uint32_t)k->dpl << SEG_DPL_SHIFT | (k->present ? SEG_P : 0) |
                      (k->avl ? SEG_AVL : 0) | (k->l ? SEG_L : 0) | (k->db ? SEG_DB : 0) | (k->g ? SEG_G : 0) |
                      (k->unusable ? SEG_UNUSABLE : 0),
    };
}

/* KVM's names in x86 encoding order. */
#define EACH_GPR(X) X(RAX, rax) X(RCX, rcx) X(RDX, rdx) X(RBX, rbx) X(RSP, rsp) X(RBP, rbp) X(RSI, rsi) X(RDI, rdi) \
    X(R8, r8) X(R9, r9) X(R10, r10) X(R11, r11) X(R12, r12) X(R13, r13) X(R14, r14) X(R15, r15)
#define EACH_SEGMENT(X) X(segment[ES], es) X(segment[CS], cs) X(segment[SS], ss) X(segment[DS], ds) \
    X(segment[FS], fs) X(segment[GS], gs) X(ldtr, ldt) X(tr, tr)

static int failed(unsigned cpu, const char *what, imgvm_error *err)
{
    return error_set(err, errno, "KVM: cannot %s of processor %u: %s", what, cpu, strerror(errno));
}

/* All rows in one call; a host that lacks one stops there, so the rest follows in the next call. */
static int transfer_msrs(int fd, unsigned long request, struct x86_state *state)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[ARRAY_LEN(msrs)];
    } batch;
    unsigned row = 0;
    while (row < ARRAY_LEN(msrs)) {
        memset(&batch, 0, sizeof batch);
        for (unsigned i = row; i < ARRAY_LEN(msrs); i++) {
            batch.entry[i - row].index = msrs[i].index;
            batch.entry[i - row].data = *msr_field(state, i);
        }
        batch.head.nmsrs = ARRAY_LEN(msrs) - row;
        int done = ioctl(fd, request, &batch);
        if (done < 0)
            return done;
        for (int i = 0; request == KVM_GET_MSRS && i < done; i++)
            *msr_field(state, row + (unsigned)i) = batch.entry[i].data;
        row += (unsigned)done + 1;
    }
    return 0;
}

int kvm_state_get(struct kvm_engine *kvm, unsigned id, struct x86_state *state, imgvm_error *err)
{
    int fd = kvm->cpu[id].fd;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debug;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp;
    memset(state, 0, sizeof *state);
    if (ioctl(fd, KVM_GET_REGS, &regs) < 0 || ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
        return failed(id, "read the registers", err);
    if (ioctl(fd, KVM_GET_DEBUGREGS, &debug) < 0 || ioctl(fd, KVM_GET_VCPU_EVENTS, &events) < 0 ||
        ioctl(fd, KVM_GET_MP_STATE, &mp) < 0)
        return failed(id, "read the pending events", err);
    if (transfer_msrs(fd, KVM_GET_MSRS, state) < 0)
        return failed(id, "read the model-specific registers", err);

#define GET(name, field) state->gpr[name] = regs.field;
    EACH_GPR(GET)
#undef GET
    state->rip = regs.rip;
    state->rflags = regs.rflags;
#define GET(ours, theirs) state->ours = segment_from_kvm(&sregs.theirs);
    EACH_SEGMENT(GET)
#undef GET
    state->gdtr = (struct x86_table){sregs.gdt.base, sregs.gdt.limit};
    state->idtr = (struct x86_table){sregs.idt.base, sregs.idt.limit};
    state->cr0 = sregs.cr0;
    state->cr2 = sregs.cr2;
    state->cr3 = sregs.cr3;
    state->cr4 = sregs.cr4;
    state->cr8 = sregs.cr8;
    state->efer = sregs.efer;
    state->apic_base = sregs.apic_base;
    memcpy(state->dr, debug.db, sizeof debug.db);
    state->dr[6] = debug.dr6;
    state->dr[7] = debug.dr7;
    state->nmi_blocked = events.nmi.masked;
    state->interrupt_shadow = events.interrupt.shadow;
    state->sipi_vector = (uint8_t)events.sipi_vector;
    state->activity = mp.mp_state == KVM_MP_STATE_HALTED ? X86_HALTED
                      : mp.mp_state == KVM_MP_STATE_RUNNABLE ? X86_RUNNING : X86_WAIT_FOR_SIPI;

    state->xcr0 = XCR0_X87;
    if (kvm->has_xsave) {
        struct kvm_xsave xsave;
        if (ioctl(fd, KVM_GET_XSAVE, &xsave) < 0)
            return failed(id, "read the vector registers", err);
        _Static_assert(sizeof xsave >= X86_XSAVE_BYTES, "the state's area fits");
        memcpy(state->xsave, &xsave, X86_XSAVE_BYTES);
        if (load_le64(state->xsave + XSTATE_BV) & XCR0_PKRU)
            state->pkru = load_le32(state->xsave + cpuid_pkru_offset());
    }
    if (kvm->has_xcrs) {
        struct kvm_xcrs xcrs;
        if (ioctl(fd, KVM_GET_XCRS, &xcrs) < 0)
            return failed(id, "read XCR0", err);
        for (unsigned i = 0; i < xcrs.nr_xcrs; i++)
            if (xcrs.xcrs[i].xcr == 0)
                state->xcr0 = xcrs.xcrs[i].value;
    }
    return 0;
}

int kvm_state_set(struct kvm_engine *kvm, unsigned id, const struct x86_state *state, imgvm_error *err)
{
    int fd = kvm->cpu[id].fd;
    struct kvm_regs regs = {.rip = state->rip, .rflags = state->rflags | EFLAGS_FIXED};
    struct kvm_sregs sregs;
    struct kvm_debugregs debug = {.dr6 = state->dr[6], .dr7 = state->dr[7]};
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp = {.mp_state = state->activity == X86_HALTED          ? KVM_MP_STATE_HALTED
                                          : state->activity == X86_WAIT_FOR_SIPI ? KVM_MP_STATE_UNINITIALIZED
                                                                                 : KVM_MP_STATE_RUNNABLE};
    if (ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
        return failed(id, "read the registers", err);
#define SET(ours, theirs) sregs.theirs = segment_to_kvm(&state->ours);
    EACH_SEGMENT(SET)
#undef SET
    sregs.gdt = (struct kvm_dtable){.base = state->gdtr.base, .limit = state->gdtr.limit};
    sregs.idt = (struct kvm_dtable){.base = state->idtr.base, .limit = state->idtr.limit};
    sregs.cr0 = state->cr0;
    sregs.cr2 = state->cr2;
    sregs.cr3 = state->cr3;
    sregs.cr4 = state->cr4;
    sregs.cr8 = state->cr8;
    sregs.efer = state->efer;
    sregs.apic_base = state->apic_base;
    memset(sregs.interrupt_bitmap, 0, sizeof sregs.interrupt_bitmap);
#define SET(name, field) regs.field = state->gpr[name];
    EACH_GPR(SET)
#undef SET
    if (ioctl(fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(fd, KVM_SET_REGS, &regs) < 0)
        return failed(id, "set the registers", err);

    if (kvm->has_xcrs) {
        struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = state->xcr0 | XCR0_X87}};
        if (ioctl(fd, KVM_SET_XCRS, &xcrs) < 0)
            return failed(id, "set XCR0", err);
    }
    if (kvm->has_xsave) {
        struct kvm_xsave xsave = {0};
        memcpy(&xsave, state->xsave, X86_XSAVE_BYTES);
        uint8_t *area = (uint8_t *)&xsave;
        store_le64(area + XSTATE_BV, (load_le64(area + XSTATE_BV) & ~(uint64_t)XCR0_PKRU) | (state->pkru ? XCR0_PKRU : 0));
        if (state->pkru)
            store_le32(area + cpuid_pkru_offset(), state->pkru);
        if (ioctl(fd, KVM_SET_XSAVE, &xsave) < 0)
            return failed(id, "set the vector registers", err);
    }
    struct x86_state copy = *state;
    if (transfer_msrs(fd, KVM_SET_MSRS, &copy) < 0)
        return failed(id, "set the model-specific registers", err);

    memcpy(debug.db, state->dr, sizeof debug.db);
    memset(&events, 0, sizeof events);
    events.nmi.masked = state->nmi_blocked;
    events.interrupt.shadow = state->interrupt_shadow;
    events.sipi_vector = state->sipi_vector;
    events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_NMI_PENDING;
    if (ioctl(fd, KVM_SET_DEBUGREGS, &debug) < 0 || ioctl(fd, KVM_SET_VCPU_EVENTS, &events) < 0 ||
        ioctl(fd, KVM_SET_MP_STATE, &mp) < 0)
        return failed(id, "set the pending events", err);
    return 0;
}

int kvm_state_reset_irqchip(struct kvm_engine *kvm, imgvm_error *err)
{
    for (uint32_t which = KVM_IRQCHIP_PIC_MASTER; which <= KVM_IRQCHIP_IOAPIC; which++) {
        struct kvm_irqchip chip = {.chip_id = which};
        if (ioctl(kvm->vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
            return error_set(err, errno, "KVM: cannot read an interrupt controller: %s", strerror(errno));
        if (which == KVM_IRQCHIP_IOAPIC) {
            chip.chip.ioapic.ioregsel = chip.chip.ioapic.irr = chip.chip.ioapic.id = 0;
            for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++)
                chip.chip.ioapic.redirtbl[pin].bits = BIT(16); /* masked */
        } else {
            uint8_t elcr_mask = chip.chip.pic.elcr_mask;
            memset(&chip.chip.pic, 0, sizeof chip.chip.pic);
            chip.chip.pic.elcr_mask = elcr_mask;
        }
        if (ioctl(kvm->vm_fd, KVM_SET_IRQCHIP, &chip) < 0)
            return error_set(err, errno, "KVM: cannot reset an interrupt controller: %s", strerror(errno));
    }
    for (unsigned i = 0; i < kvm->cpus; i++) {
        /* SDM vol. 3, "Local APIC State After Power-Up or Reset": all zero but the version, DFR, SVR and masked LVTs. */
        struct kvm_lapic_state lapic;
        if (ioctl(kvm->cpu[i].fd, KVM_GET_LAPIC, &lapic) < 0)
            return failed(i, "read the local APIC", err);
        uint32_t version = load_le32(lapic.regs + 0x30);
        memset(&lapic, 0, sizeof lapic);
        store_le32(lapic.regs + 0x20, i << 24);
        store_le32(lapic.regs + 0x30, version);
        store_le32(lapic.regs + 0xe0, 0xffffffff);
        store_le32(lapic.regs + 0xf0, 0xff);
        for (unsigned lvt = 0x320; lvt <= 0x370; lvt += 0x10)
            store_le32(lapic.regs + lvt, 0x10000);
        if (i == 0)
            store_le32(lapic.regs + 0x350, 0x700); /* LINT0: ExtINT, as firmware leaves it (virtual wire) */
        if (ioctl(kvm->cpu[i].fd, KVM_SET_LAPIC, &lapic) < 0)
            return failed(i, "reset the local APIC", err);
    }
    struct kvm_pit_state2 pit = {0};
    for (unsigned i = 0; i < 3; i++)
        pit.channels[i] = (struct kvm_pit_channel_state){.count = 0x10000, .mode = 0xff, .gate = i != 2};
    if (ioctl(kvm->vm_fd, KVM_SET_PIT2, &pit) < 0)
        return error_set(err, errno, "KVM: cannot reset the interval timer: %s", strerror(errno));
    return 0;
}
