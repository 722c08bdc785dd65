/* SPDX-License-Identifier: MIT */
/* What is not run, and where KVM is known to do other than the manual says. Each with its reason. */
#include "versus.h"

const char *row_excluded(unsigned number, const struct ours *ours)
{
    const struct isa_row *row = &isa_rows[number];
    if (row->map >= MAP_V0F)
        return "the same in every mode that has it; held against the host in 64-bit mode";
    if (!ours_has(ours, op_infos[row->op].feature))
        return "not offered by one of the two";
    switch (row->op) {
    case OP_HLT:
        return "every case's end";
    case OP_RDTSC: case OP_RDTSCP: case OP_RDPMC: case OP_RDRAND: case OP_RDSEED: case OP_RDPID: case OP_CPUID:
        return "another machine's answer";
    case OP_MONITOR: case OP_MWAIT: case OP_VMCALL: case OP_VMMCALL:
        return "KVM's own affair";
    case OP_XSAVE: case OP_XRSTOR: case OP_XSAVEOPT: case OP_XSAVEC: case OP_XSAVES: case OP_XRSTORS: case OP_FXSAVE:
    case OP_FXRSTOR:
        return "compared on the host; what of the area is written is the processor's choice";
    }
    return NULL;
}

/* Ring 3's instructions that KVM's emulator does not know give the guest #UD instead of KVM_INTERNAL_ERROR_EMULATION. */
bool kvm_cannot(const struct kcase *c, const struct result *ours, const struct result *theirs)
{
    return mode_infos[c->mode].user && stopped_in(theirs) == EXC_UD && stopped_in(ours) != EXC_UD && ours->outcome == HALTED;
}

void as_kvm_delivers(const struct kcase *c, struct result *ours, const struct result *theirs, uint8_t *our_memory,
                     const uint8_t *their_memory)
{
    struct x86_state *s = &ours->state;
    if (stopped_in(ours) < 0 || stopped_in(theirs) < 0)
        return;
    /* SDM vol. 3, 22.3.1: from virtual-8086 mode GS, FS, DS and ES go on the stack before SS, and are null afterwards. This
     * KVM pushes five words as from any ring 3, and leaves them. What ours pushed is put back into the registers. */
    if (c->mode == V86 && !(s->rflags & EFLAGS_VM) && !s->segment[DS].selector && !s->segment[ES].selector &&
        theirs->state.gpr[RSP] == s->gpr[RSP] + 16 && s->gpr[RSP] < STACK0 && s->gpr[RSP] > STACK0 - 64) {
        uint32_t at = (uint32_t)s->gpr[RSP], end = STACK0 - 16;
        static const uint8_t order[] = {ES, DS, FS, GS};
        for (unsigned i = 0; i < 4; i++) {
            uint16_t selector = load_le16(our_memory + end + 4 * i);
            s->segment[order[i]] = selector == c->state.segment[order[i]].selector ? c->state.segment[order[i]]
                                   : (struct x86_segment){selector, 0xf3, 0xffff, (uint64_t)selector << 4};
        }
        memmove(our_memory + at + 16, our_memory + at, end - at);
        for (unsigned i = at; i < at + 16; i += 4) /* below lies what lay there */
            memcpy(our_memory + i, their_memory + i, 4);
        uint32_t flags = at + 16 + (end - at == 20 ? 8 : 12);
        store_le32(our_memory + flags, load_le32(our_memory + flags) & ~EFLAGS_VM);
        s->gpr[RSP] += 16;
    }
    /* SDM vol. 3, 6.12.1: of EFLAGS.AC nothing is said, so it stays. This KVM clears it on the way into ring 0. */
    if (mode_infos[c->mode].long_mode)
        s->rflags = (s->rflags & ~(uint64_t)EFLAGS_AC) | (theirs->state.rflags & EFLAGS_AC);
}

struct known {
    const char *reason;
    bool (*applies)(const struct kcase *c, const struct result *ours, const struct result *theirs, const char *what);
};
#define KNOWN(name) static bool name(const struct kcase *c, const struct result *ours, const struct result *theirs, const char *what)
#define UNUSED (void)c, (void)ours, (void)theirs, (void)what

static bool pushes_segment(unsigned op)
{
    return op == OP_PUSH_SREG;
}

KNOWN(short_push)
{
    UNUSED;
    return c->decoded > 0 && pushes_segment(c->insn.op) && c->insn.osize > 2 && !strcmp(what, "memory");
}

KNOWN(native_user)
{
    UNUSED;
    return c->mode == LONG3 && c->decoded > 0 &&
           (c->insn.op == OP_PUSH_SREG || c->insn.op == OP_MOV_FROM_SREG || c->insn.op == OP_PUSHF || c->insn.op == OP_POPF ||
            c->insn.op == OP_SYSCALL || c->insn.op == OP_INT1 || c->insn.op == OP_IRET);
}

KNOWN(amd_branch)
{
    UNUSED;
    return c->mode == LONG3 && c->decoded > 0 && op_infos[c->insn.op].kind == OPK_CTRL && memchr(c->code, 0x66, c->length);
}

KNOWN(privilege_first)
{
    UNUSED;
    return stopped_in(ours) == EXC_UD && stopped_in(theirs) == EXC_GP && mode_infos[c->mode].user;
}

KNOWN(return_to_32)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_SYSRET;
}

KNOWN(iret_error_code)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_IRET && mode_infos[c->mode].long_mode && !strcmp(what, "memory") &&
           stopped_in(ours) == EXC_GP;
}

KNOWN(port_first)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_INS && stopped_in(ours) >= 0;
}

static const struct known known[] = {
    {"PUSH of a segment register wider than it: the upper part may be zeros or stay (SDM vol. 2, PUSH)", short_push},
    {"a paravirtual KVM runs 64-bit ring 3 with the host's own flags and selectors", native_user},
    {"AMD's near branches obey 66 in 64-bit mode", amd_branch},
    {"two faults of one instruction: the manual does not rank #GP of privilege and #UD of a register that does not exist; "
     "KVM asks for privilege first also in virtual-8086 mode", privilege_first},
    {"KVM's SYSRET knows only the 64-bit form, and delays TF as IRET does", return_to_32},
    {"KVM's IRET in long mode reports error code 0 where SDM vol. 2, IRET has the selector", iret_error_code},
    {"KVM's INS reads the port before it looks at the destination (SDM vol. 1, 19.3: faults come first)", port_first},
};

const char *known_difference(const struct kcase *c, const struct result *ours, const struct result *theirs, const char *what)
{
    for (unsigned i = 0; i < ARRAY_LEN(known); i++)
        if (known[i].applies(c, ours, theirs, what))
            return known[i].reason;
    return NULL;
}
