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

/* For what its emulator does not know KVM gives ring 3 #UD instead of KVM_INTERNAL_ERROR_EMULATION. */
bool kvm_cannot(const struct kcase *c, const struct result *ours, const struct result *theirs)
{
    return mode_infos[c->mode].user && stopped_in(theirs) == EXC_UD && stopped_in(ours) != EXC_UD &&
           (ours->outcome == HALTED || ours->outcome == SHUTDOWN);
}

void as_kvm_delivers(const struct kcase *c, struct result *ours, const struct result *theirs, uint8_t *our_memory,
                     const uint8_t *their_memory)
{
    struct x86_state *s = &ours->state;
    /* Long-mode code that returned keeps no IOPL: this KVM has it always 0. */
    if (mode_infos[c->mode].long_mode && !(theirs->state.rflags & EFLAGS_IOPL))
        s->rflags &= ~(uint64_t)EFLAGS_IOPL;
    if (stopped_in(ours) < 0 || stopped_in(theirs) < 0)
        return;
    /* SDM vol. 3, 22.3.1: from virtual-8086 mode GS, FS, DS and ES go on the stack before SS, and are then null. This
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
    s->rflags = (s->rflags & ~(uint64_t)EFLAGS_AC) | (theirs->state.rflags & EFLAGS_AC);
}

struct known {
    const char *reason;
    bool (*applies)(const struct kcase *c, const struct result *ours, const struct result *theirs, const char *what);
};
#define KNOWN(name)                                                                                                    \
    static bool name(const struct kcase *c, const struct result *ours, const struct result *theirs, const char *what)
#define UNUSED (void)c, (void)ours, (void)theirs, (void)what

static bool pushes_segment(unsigned op)
{
    return op == OP_PUSH_SREG;
}

KNOWN(short_push)
{
    UNUSED;
    return c->decoded > 0 && pushes_segment(c->insn.op) && c->insn.osize > 2 &&
           (!strcmp(what, "memory") || stopped_in(ours) == EXC_SS || ours->outcome == SHUTDOWN);
}

KNOWN(native_user)
{
    UNUSED;
    if (c->mode != LONG3 || c->decoded <= 0)
        return false;
    switch (c->insn.op) {
    case OP_PUSH_SREG:
    case OP_POP_SREG:
    case OP_MOV_FROM_SREG:
    case OP_MOV_TO_SREG:
    case OP_LFS:
    case OP_LGS:
    case OP_LSS:
    case OP_PUSHF:
    case OP_POPF:
    case OP_SYSCALL:
    case OP_INT1:
    case OP_IRET:
    case OP_LAR:
    case OP_LSL:
    case OP_VERR:
    case OP_VERW:
    case OP_SLDT:
    case OP_STR:
    case OP_SGDT:
    case OP_SIDT:
    case OP_SMSW:
    case OP_JMP_FAR:
    case OP_CALL_FAR:
    case OP_RETF: return true;
    }
    return false;
}

KNOWN(v86_as_protected)
{
    UNUSED;
    if (c->mode != V86 || c->decoded <= 0)
        return false;
    switch (c->insn.op) {
    case OP_MOV_TO_SREG: case OP_POP_SREG: case OP_LDS: case OP_LES: case OP_LFS: case OP_LGS: case OP_LSS:
    case OP_JMP_FAR: case OP_CALL_FAR: case OP_RETF: case OP_IRET:
    case OP_PUSHF: case OP_POPF: case OP_CLI: case OP_STI: case OP_INT: case OP_INT3: case OP_INTO: case OP_INT1:
    case OP_IN: case OP_OUT: case OP_INS: case OP_OUTS:
        return true;
    }
    return false;
}

KNOWN(wide_real_interrupt)
{
    UNUSED;
    return c->mode == REAL16 && c->decoded > 0 && memchr(c->code, 0x66, c->length) &&
           (c->insn.op == OP_INT || c->insn.op == OP_INT3 || c->insn.op == OP_INTO || c->insn.op == OP_INT1);
}

KNOWN(segment_register_rex)
{
    UNUSED;
    return mode_infos[c->mode].bits == 64 && c->decoded > 0 &&
           (stopped_in(theirs) == EXC_UD || theirs->outcome == SHUTDOWN) &&
           (c->insn.op == OP_MOV_FROM_SREG || c->insn.op == OP_MOV_TO_SREG);
}

KNOWN(cr4_not_offered)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_MOV_TO_CR && c->insn.reg == 4 &&
           (stopped_in(ours) == EXC_GP || ours->outcome == SHUTDOWN) &&
           ((c->state.gpr[c->insn.rm] ^ c->state.cr4) & (CR4_PGE | CR4_VME | CR4_PVI | CR4_SMAP | CR4_SMEP | CR4_PCE |
                                                         CR4_UMIP | CR4_PKE | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE));
}

KNOWN(rep_ports)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_IN || c->insn.op == OP_OUT || c->insn.op == OP_INS) &&
           (c->insn.flags & (INSN_REP | INSN_REPNE)) && !strcmp(what, "accesses");
}

KNOWN(table_error_code)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_LTR || c->insn.op == OP_LLDT) &&
           stopped_in(ours) == stopped_in(theirs) && (stopped_in(ours) == EXC_GP || ours->outcome == SHUTDOWN);
}

KNOWN(amd_branch)
{
    UNUSED;
    bool counts = c->decoded > 0 && (c->insn.op == OP_LOOPE || c->insn.op == OP_LOOPNE);
    return c->mode == LONG3 && c->decoded > 0 && op_infos[c->insn.op].kind == OPK_CTRL &&
           (memchr(c->code, 0x66, c->length) || (counts && c->insn.flags & (INSN_REP | INSN_REPNE)));
}

KNOWN(privilege_first)
{
    UNUSED;
    return stopped_in(ours) == EXC_UD && stopped_in(theirs) == EXC_GP && mode_infos[c->mode].user;
}

KNOWN(return_to_32)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_SYSRET &&
           (c->insn.osize != 8 || (c->state.gpr[R11] | c->state.rflags) & EFLAGS_TF || c->state.gpr[R11] & EFLAGS_NT ||
            (uint64_t)((int64_t)(c->state.gpr[RCX] << 16) >> 16) != c->state.gpr[RCX]);
}

KNOWN(iret_error_code)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_IRET && mode_infos[c->mode].long_mode && stopped_in(theirs) >= EXC_NP;
}

KNOWN(port_first)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_INS && stopped_in(ours) >= 0;
}

/* Of memory operands: how this one meets its segment. */
static const struct x86_segment *segment_in(const struct kcase *c, uint64_t *ea)
{
    if (c->decoded <= 0 || !(c->insn.flags & INSN_MEM) || c->insn.segment > GS)
        return NULL;
    *ea = (uint64_t)(int64_t)c->insn.disp + (c->insn.base < 16 ? c->state.gpr[c->insn.base] : 0) +
          (c->insn.index < 16 ? c->state.gpr[c->insn.index] << c->insn.scale : 0);
    if ((isa_rows[c->insn.row].opcode & 0xfc) == 0xa0 && isa_rows[c->insn.row].map == MAP_1B)
        *ea = c->insn.imm; /* moffs */
    *ea &= c->insn.asize == 2 ? 0xffff : 0xffffffff;
    return &c->state.segment[c->insn.segment];
}

KNOWN(whole_segment)
{
    UNUSED;
    uint64_t ea, sp = c->state.gpr[RSP];
    const struct x86_segment *s = segment_in(c, &ea), *ss = &c->state.segment[SS];
    if (mode_infos[c->mode].bits == 64)
        return false;
    bool port = c->decoded > 0 && (c->insn.op == OP_INS || c->insn.op == OP_OUTS);
    bool string = port || (c->decoded > 0 && op_infos[c->insn.op].kind == OPK_MEM && !(c->insn.flags & INSN_MEM));
    if (string && (c->state.gpr[RSI] + 0x30 > 0xffffffff || c->state.gpr[RDI] + 0x30 > 0xffffffff))
        return true;
    bool down = s && (s->attributes & (SEG_CODE | SEG_EXPAND_CONFORM | SEG_DB)) == (SEG_EXPAND_CONFORM | SEG_DB);
    return (s && (s->limit == 0xffffffff || down) && ea > 0xffffffe0) ||
           (ss->limit == 0xffffffff && (sp < 32 || sp > 0xffffffe0));
}

KNOWN(read_before_write)
{
    UNUSED;
    uint64_t ea;
    const struct x86_segment *s = segment_in(c, &ea);
    uint32_t type = s ? s->attributes & (SEG_CODE | SEG_WRITE_READ) : 0;
    return s && c->mode != REAL16 && c->mode != V86 && type != SEG_WRITE_READ && stopped_in(ours) == EXC_GP;
}

KNOWN(table_limit)
{
    UNUSED;
    uint64_t ea;
    const struct x86_segment *s = segment_in(c, &ea);
    return s && (c->insn.op == OP_LGDT || c->insn.op == OP_LIDT || c->insn.op == OP_SGDT || c->insn.op == OP_SIDT) &&
           ea + 5 > s->limit && stopped_in(ours) >= EXC_SS && stopped_in(theirs) == -1;
}

KNOWN(wide_store)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.flags & INSN_MEM) &&
           (!strcmp(what, "memory") || !strcmp(what, "accesses") || stopped_in(theirs) >= 0) &&
           (c->insn.osize > 2 || !strcmp(what, "accesses") || stopped_in(ours) == EXC_PF) &&
           (c->insn.op == OP_SLDT || c->insn.op == OP_STR || c->insn.op == OP_SMSW || c->insn.op == OP_MOV_FROM_SREG);
}

KNOWN(trap_after_halt)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_POPF || c->insn.op == OP_IRET) && stopped_in(ours) == EXC_DB &&
           stopped_in(theirs) == -1;
}

KNOWN(adjust_flags)
{
    UNUSED;
    const uint64_t of_result = EFLAGS_SF | EFLAGS_ZF | EFLAGS_PF;
    return c->decoded > 0 && (c->insn.op == OP_AAM || c->insn.op == OP_AAD) &&
           !((ours->state.rflags ^ theirs->state.rflags) & ~of_result & ~(uint64_t)op_infos[c->insn.op].flags_undefined) &&
           (!strcmp(what, "rflags") || (!strcmp(what, "memory") && stopped_in(ours) >= 0));
}

KNOWN(stack_size)
{
    UNUSED;
    if (theirs->outcome == SHUTDOWN && !(c->state.segment[SS].attributes & SEG_DB) &&
        (c->state.gpr[RSP] & 0xffff) < 0x40)
        return true;
    return stopped_in(ours) >= 0 && !mode_infos[c->mode].user && c->mode != REAL16 && !mode_infos[c->mode].long_mode &&
           !(c->state.segment[SS].attributes & SEG_DB) && !strcmp(what, "memory") && (ours->state.gpr[RSP] > 0xffff);
}

KNOWN(enter_size)
{
    UNUSED;
    unsigned stack = mode_infos[c->mode].bits == 64 ? 8 : c->state.segment[SS].attributes & SEG_DB ? 4 : 2;
    return c->decoded > 0 && c->insn.op == OP_ENTER && c->insn.osize != stack;
}

KNOWN(end_of_stack)
{
    UNUSED;
    return c->mode == REAL16 && ours->outcome == SHUTDOWN && (c->state.gpr[RSP] & 0xffff) < 6;
}

KNOWN(short_pop)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_POP_SREG || c->insn.op == OP_RETF) && c->insn.osize == 4 &&
           stopped_in(ours) == EXC_SS;
}

KNOWN(frame_outside)
{
    UNUSED;
    return theirs->outcome == SHUTDOWN && ours->accesses && ours->access[MIN(ours->accesses, LOG) - 1].kind == 'w';
}

KNOWN(string_batch)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_INS || c->insn.op == OP_OUTS) &&
           (c->insn.flags & (INSN_REP | INSN_REPNE));
}

KNOWN(prefixed)
{
    UNUSED;
    return c->decoded <= 0 && stopped_in(ours) == EXC_UD && memchr(c->code, 0x0f, c->length);
}

KNOWN(fetch_without_base)
{
    UNUSED;
    return c->mode == COMPAT16 && stopped_in(theirs) == EXC_PF && theirs->state.cr2 == c->state.rip;
}

KNOWN(source_first)
{
    UNUSED;
    return c->decoded > 0 && stopped_in(ours) >= 0 &&
           (strcmp(what, "vector") || c->insn.op == OP_MOVS || c->insn.op == OP_CMPS) &&
           (!strcmp(what, "accesses") || stopped_in(ours) == EXC_PF || stopped_in(theirs) == EXC_PF) &&
           (c->insn.op == OP_MOVS || c->insn.op == OP_CMPS || (op_infos[c->insn.op].attributes & OPA_MEM_RMW));
}

KNOWN(mmx_tags)
{
    UNUSED;
    return c->decoded > 0 && (op_infos[c->insn.op].attributes & OPA_MMX) && stopped_in(ours) >= 0 &&
           !strcmp(what, "x87");
}

KNOWN(stack_override)
{
    UNUSED;
    int a = stopped_in(ours), b = stopped_in(theirs);
    bool other = memchr(c->code, 0x26, c->length) || memchr(c->code, 0x2e, c->length) || memchr(c->code, 0x3e, c->length);
    return mode_infos[c->mode].bits == 64 && ((a == EXC_GP && b == EXC_SS && memchr(c->code, 0x36, c->length)) ||
                                              (a == EXC_SS && b == EXC_GP && other));
}

KNOWN(null_stack)
{
    UNUSED;
    return c->mode == LONG0 && !strcmp(what, "ss") && ours->state.segment[SS].selector < 4;
}

KNOWN(counting_feature)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_LZCNT || c->insn.op == OP_TZCNT);
}

KNOWN(frame_past_limit)
{
    UNUSED;
    return ours->outcome == SHUTDOWN && theirs->outcome == HALTED && ours->state.gpr[RSP] > c->state.segment[SS].limit;
}

KNOWN(no_paging)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_MOV_TO_CR || c->insn.op == OP_LMSW) &&
           ((ours->state.cr0 ^ c->state.cr0) & (CR0_PG | CR0_PE));
}

KNOWN(reserved_values)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_WRMSR &&
           ((uint32_t)c->state.gpr[RCX] == 0x277 || (uint32_t)c->state.gpr[RCX] == 0xc0000084 ||
            (uint32_t)c->state.gpr[RCX] == 0x174 || (uint32_t)c->state.gpr[RCX] == 0x175 ||
            (uint32_t)c->state.gpr[RCX] == 0x176) &&
           (stopped_in(ours) == EXC_GP || ours->outcome == SHUTDOWN);
}

/* Bits 12:8 of the descriptor: a TSS of 16 bits, which long mode has not. */
KNOWN(short_tss)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_LTR && mode_infos[c->mode].long_mode && stopped_in(ours) == EXC_GP &&
           theirs->state.tr.attributes % 16 == 3;
}

KNOWN(mode_first)
{
    UNUSED;
    return c->decoded > 0 && (c->mode == V86 || c->mode == REAL16) && stopped_in(ours) == EXC_UD && stopped_in(theirs) >= EXC_SS &&
           (c->insn.op == OP_SLDT || c->insn.op == OP_STR || c->insn.op == OP_LLDT || c->insn.op == OP_LTR ||
            c->insn.op == OP_VERR || c->insn.op == OP_VERW || c->insn.op == OP_LAR || c->insn.op == OP_LSL || c->insn.op == OP_ARPL);
}

KNOWN(narrow_stack_pointer)
{
    UNUSED;
    return c->mode == REAL16 && !strcmp(what, "rsp") && stopped_in(ours) >= 0 &&
           (uint16_t)ours->state.gpr[RSP] == theirs->state.gpr[RSP];
}

KNOWN(push_across_limit)
{
    UNUSED;
    uint64_t sp = c->state.gpr[RSP] & (c->state.segment[SS].attributes & SEG_DB ? 0xffffffff : 0xffff);
    return c->decoded > 0 && c->insn.op == OP_CALL_FAR && stopped_in(ours) == EXC_SS && sp < 8;
}

KNOWN(tsc_aux)
{
    UNUSED;
    return c->decoded > 0 && (c->insn.op == OP_WRMSR || c->insn.op == OP_RDMSR) &&
           (uint32_t)c->state.gpr[RCX] == 0xc0000103;
}

KNOWN(reserved_control)
{
    UNUSED;
    bool debug = c->decoded > 0 && c->insn.op == OP_MOV_TO_DR && c->insn.reg >= 4;
    return c->decoded > 0 && (c->insn.op == OP_MOV_TO_CR || debug) && mode_infos[c->mode].bits == 64 &&
           c->state.gpr[c->insn.rm] >> 32 && (stopped_in(ours) == EXC_GP || ours->outcome == SHUTDOWN);
}

KNOWN(past_canonical)
{
    UNUSED;
    int vector = stopped_in(ours);
    return mode_infos[c->mode].bits == 64 && (vector == EXC_GP || vector == EXC_SS) && stopped_in(theirs) == EXC_PF &&
           theirs->state.cr2 >> 12 == UINT64_C(0x7ffffffff);
}

KNOWN(enter_top)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_ENTER && (stopped_in(ours) == EXC_PF || stopped_in(ours) == EXC_SS) &&
           stopped_in(theirs) != stopped_in(ours);
}

KNOWN(nop_address_size)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_NOP && mode_infos[c->mode].bits == 32 && c->insn.asize == 2;
}

KNOWN(return_to_anything)
{
    UNUSED;
    return c->decoded > 0 && c->insn.op == OP_IRET && c->mode == LONG0 && stopped_in(ours) == EXC_GP &&
           (!(theirs->state.segment[CS].attributes & SEG_S) || stopped_in(theirs) == EXC_UD);
}

KNOWN(odd_vectors)
{
    UNUSED;
    uint8_t vector = (uint8_t)c->insn.imm;
    return c->decoded > 0 && c->insn.op == OP_INT && stopped_in(theirs) == EXC_GP &&
           (vector == 0x17 || (vector >= 0x19 && vector <= 0x1b));
}

static const struct known known[] = {
    {"KVM reads an operand that goes on where no address is canonical in pieces, and so faults on the first page "
     "(SDM vol. 1, 3.3.7.1)",
     past_canonical},
    {"PUSH of a segment register wider than it: the upper part may be zeros or stay (SDM vol. 2, PUSH)", short_push},
    {"a paravirtual KVM runs 64-bit ring 3 with the host's own flags and selectors", native_user},
    {"this KVM's emulator takes virtual-8086 mode for ring 3 of protected mode: segments from descriptors, no IOPL "
     "check",
     v86_as_protected},
    {"KVM pushes doublewords for a real-mode interrupt with 66 (SDM vol. 2, INT: three words)", wide_real_interrupt},
    {"KVM gives #UD for REX.R with a segment register, which processors ignore", segment_register_rex},
    {"KVM does not check CR4.VME and PVI against the features it announces", cr4_not_offered},
    {"KVM repeats IN and OUT under REP, which SDM vol. 2, REP defines for string instructions alone", rep_ports},
    {"KVM's LTR and LLDT report error code 0 for a selector that names the LDT or is past the limit", table_error_code},
    {"an access past the end of a 4 GiB segment may fault or wrap (SDM vol. 3, 5.3.1)", whole_segment},
    {"KVM reads an operand before it finds that the segment cannot be written, and so faults or touches the page first",
     read_before_write},
    {"KVM lets the tables' 6 bytes run past the limit (SDM vol. 3, 5.3)", table_limit},
    {"KVM stores these at operand size and reads first; SDM vol. 2 has 16 bits in memory for all of them", wide_store},
    {"KVM halts under TF; HLT is an instruction like another, and its trap ends it (SDM vol. 3, 17.3.1.4)",
     trap_after_halt},
    {"KVM's AAM and AAD leave SF, ZF and PF of something else than AL (SDM vol. 2, AAM)", adjust_flags},
    {"this KVM delivers events on ESP though SS.B is clear (SDM vol. 1, 6.2.3)", stack_size},
    {"KVM's ENTER pushes BP at stack size instead of operand size (SDM vol. 2, ENTER)", enter_size},
    {"real mode with SP = 1: shutdown (SDM vol. 2, PUSH); KVM wraps", end_of_stack},
    {"KVM pops 2 of the 4 bytes and so keeps within a limit that the whole is past (SDM vol. 2, RET)", short_pop},
    {"KVM cannot write an event's frame where there is no memory", frame_outside},
    {"KVM does REP INS and OUTS in batches", string_batch},
    {"KVM ignores prefixes that make the encoding undefined (SDM vol. 2, 3.1.1.1: NP)", prefixed},
    {"this KVM fetches compatibility mode's code without CS.base", fetch_without_base},
    {"KVM reads the source from a device before it finds that the destination faults", source_first},
    {"KVM leaves the x87 tags of an MMX instruction that faulted", mmx_tags},
    {"KVM heeds ES, CS, SS and DS prefixes in 64-bit mode, which are ignored (SDM vol. 1, 3.3.4)", stack_override},
    {"a paravirtual KVM has no 32-bit paging", no_paging},
    {"KVM takes PAT entries that SDM vol. 3, 12.12.2 reserves, bits 63:32 of IA32_FMASK, and SYSENTER addresses that "
     "are not canonical or too wide a selector",
     reserved_values},
    {"IA32_TSC_AUX comes with RDTSCP, which the two offer differently", tsc_aux},
    {"this KVM drops bits 63:32 of a control register, of DR6 and DR7 instead of #GP (SDM vol. 2, MOV CR)", reserved_control},
    {"KVM's LTR takes a 16-bit TSS in long mode (SDM vol. 2, LTR: #GP)", short_tss},
    {"KVM looks at the operand before it finds that the mode has no such instruction", mode_first},
    {"KVM's interrupts in real mode clear the upper half of ESP", narrow_stack_pointer},
    {"KVM's far calls push CS before they find that the rest is beyond the end of the stack (SDM vol. 2, CALL)", push_across_limit},
    {"KVM keeps the attributes under a null SS in ring 0 of long mode; nothing looks at them", null_stack},
    {"LZCNT and TZCNT where they are not announced: KVM's emulator runs the host's", counting_feature},
    {"KVM delivers a frame past the limit of SS", frame_past_limit},
    {"AMD's near branches obey 66 in 64-bit mode, and LOOPcc F2 and F3", amd_branch},
    {"two faults of one instruction: the manual does not rank #GP of privilege and #UD of a register that does not "
     "exist; "
     "KVM asks for privilege first also in virtual-8086 mode",
     privilege_first},
    {"KVM's SYSRET knows only the 64-bit form, delays TF as IRET does, finds an address that is not canonical in ring 3 "
     "(SDM vol. 2, SYSRET: in ring 0), and a paravirtual one's ring 3 never has NT", return_to_32},
    {"KVM's IRET in long mode reports error code 0 where SDM vol. 2, IRET has the selector", iret_error_code},
    {"KVM's INS reads the port before it looks at the destination (SDM vol. 1, 19.3: faults come first)", port_first},
    {"this KVM answers INT 17h and 19h to 1Bh with #GP(0), whatever the gate; where ring 3 may not use it, the vector and "
     "the IDT bit are in the error code (SDM vol. 3, 6.13; vol. 2, INT), as the host's processor has it",
     odd_vectors},
    {"KVM's ENTER does not try the new top of the stack (SDM vol. 2, ENTER: #SS, #PF)", enter_top},
    {"KVM's emulator reads 32-bit addresses of the reserved NOPs (0F 19, 1C, 1D) under 67; the host's processor does not",
     nop_address_size},
    {"this KVM's IRET in long mode takes a system descriptor for a code segment, and goes on (SDM vol. 2, IRET: #GP)",
     return_to_anything},
};

const char *known_difference(const struct kcase *c, const struct result *ours, const struct result *theirs,
                             const char *what)
{
    for (unsigned i = 0; i < ARRAY_LEN(known); i++)
        if (known[i].applies(c, ours, theirs, what))
            return known[i].reason;
    return NULL;
}
