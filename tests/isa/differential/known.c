/* SPDX-License-Identifier: MIT */
/* What is not run, and where processors differ by right. Each with its reason. */
#include <string.h>

#include "differential.h"

bool host_is_amd(void)
{
    uint32_t a = 0, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b == 0x68747541; /* Auth enticAMD */
}

bool opcode_excluded(const struct diff_case *c)
{
    /* 0F 01 has RDPKRU, WRPKRU, MWAITX and more that reach beyond one instruction */
    return c->row == ANY_OPCODE && c->decoded <= 0 && c->map == MAP_0F && c->opcode == 0x01;
}

const char *row_excluded(unsigned number, enum insn_mode mode, const struct guest *guest)
{
    const struct isa_row *row = &isa_rows[number];
    if ((row->attributes & A_MODE) == (mode == INSN_MODE_64 ? MODE_I64 : MODE_O64))
        return "not in this mode";
    if (!guest_has(guest, op_infos[row->op].feature))
        return "a feature this processor does not announce: undefined here, whatever the host has";
    switch (row->op) {
    case OP_RDTSC: case OP_RDTSCP: case OP_RDPMC:
        return "counters: the value is the machine's";
    case OP_RDRAND: case OP_RDSEED:
        return "random";
    case OP_RDPID:
        return "the operating system's IA32_TSC_AUX";
    case OP_CPUID: case OP_XGETBV:
        return "another processor and another XCR0 than the host's, by design";
    case OP_RDPKRU: case OP_WRPKRU:
        return "the process's own rights to its memory, where there is CR4.PKE";
    case OP_SYSCALL: case OP_SYSENTER:
        return "enters the host's kernel";
    case OP_VMCALL: case OP_VMMCALL:
        return "asks the hypervisor the tests may run under";
    case OP_SGDT: case OP_SIDT: case OP_SLDT: case OP_STR: case OP_SMSW:
        return "under UMIP Linux emulates them with values of its own (arch/x86/kernel/umip.c)";
    }
    return NULL;
}

static bool near_branch(unsigned op)
{
    switch (op) {
    case OP_JCC: case OP_JMP: case OP_CALL: case OP_RET: case OP_LOOP: case OP_LOOPE: case OP_LOOPNE: case OP_JCXZ:
        return true;
    }
    return false;
}

static bool far_transfer(unsigned op)
{
    return op == OP_JMP_FAR || op == OP_CALL_FAR || op == OP_RETF || op == OP_IRET;
}

static bool has_far_pointer(unsigned op)
{
    return op == OP_JMP_FAR || op == OP_CALL_FAR || op == OP_LFS || op == OP_LGS || op == OP_LSS;
}

static bool is_sha(unsigned op)
{
    switch (op) {
    case OP_SHA1NEXTE: case OP_SHA1MSG1: case OP_SHA1MSG2: case OP_SHA1RNDS4: case OP_SHA256RNDS2: case OP_SHA256MSG1:
    case OP_SHA256MSG2:
        return true;
    }
    return false;
}

static bool wide_operand(const struct diff_case *c)
{
    switch (c->insn.op) {
    case OP_MASKMOVQ: case OP_MASKMOVDQU: case OP_VMASKMOVDQU: case OP_FXSAVE: case OP_FXRSTOR:
        return true;
    }
    return c->insn.rm_size >= 16;
}

static bool is_fault(const struct diff_result *r)
{
    return r->vector != EXC_BP && r->vector != EXC_DB;
}

/* Nothing but flags differs. */
static bool same_but_flags(const struct diff_result *host, const struct diff_result *guest)
{
    return host->vector == guest->vector && host->rip == guest->rip && host->gpr[RCX] == guest->gpr[RCX] &&
           host->gpr[RDI] == guest->gpr[RDI] && host->gpr[RSI] == guest->gpr[RSI];
}

/* Only the upper half of RSP differs. */
static bool same_but_high_rsp(const struct diff_result *host, const struct diff_result *guest)
{
    for (unsigned i = 0; i < 16; i++)
        if (i != RSP && host->gpr[i] != guest->gpr[i])
            return false;
    return host->rip == guest->rip && host->vector == guest->vector && (uint32_t)host->gpr[RSP] == (uint32_t)guest->gpr[RSP];
}

/* Instructions of several memory accesses, whose order is the processor's. */
static bool many_accesses(unsigned op)
{
    switch (op) {
    case OP_FNSTENV: case OP_FLDENV: case OP_FNSAVE: case OP_FRSTOR: case OP_FXSAVE: case OP_FXRSTOR: case OP_XSAVE:
    case OP_XSAVEOPT: case OP_XSAVEC: case OP_XRSTOR: case OP_ENTER: case OP_CMPS: case OP_MOVS:
    case OP_RETF: case OP_IRET: case OP_CALL_FAR: case OP_PUSHA: case OP_POPA: case OP_BOUND: case OP_LES: case OP_LDS:
    case OP_LFS: case OP_LGS: case OP_LSS:
        return true;
    }
    return false;
}

static bool is_string(unsigned op)
{
    return op == OP_MOVS || op == OP_CMPS || op == OP_STOS || op == OP_LODS || op == OP_SCAS;
}

static bool is_address_fault(const struct diff_result *r)
{
    return r->vector == EXC_PF || ((r->vector == EXC_GP || r->vector == EXC_SS) && r->error == 0);
}

static bool is_operand_fault(const struct diff_result *r)
{
    return is_address_fault(r) || r->vector == EXC_AC;
}

static bool fetch_fault(const struct diff_result *r)
{
    return r->vector == EXC_PF && r->error & PF_I;
}

static bool is_gather(unsigned op)
{
    return op == OP_VPGATHERDD || op == OP_VPGATHERDQ || op == OP_VPGATHERQD || op == OP_VPGATHERQQ || op == OP_VGATHERDPS ||
           op == OP_VGATHERDPD || op == OP_VGATHERQPS || op == OP_VGATHERQPD;
}

static bool is_masked_store(unsigned op)
{
    return op == OP_MASKMOVQ || op == OP_MASKMOVDQU || op == OP_VMASKMOVDQU;
}

static bool has_prefix(const struct diff_case *c, uint8_t wanted)
{
    for (unsigned i = 0; i < c->length; i++) {
        switch (c->code[i]) {
        case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3: case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65:
            if (c->code[i] == wanted)
                return true;
            continue;
        default:
            return false;
        }
    }
    return false;
}

static bool has_repeat(const struct diff_case *c)
{
    return has_prefix(c, 0xf2) || has_prefix(c, 0xf3);
}

static bool selector_of_linux(const struct diff_case *c)
{
    uint16_t selector = 0;
    if (!(c->insn.flags & INSN_MEM))
        selector = (uint16_t)c->gpr[c->insn.rm];
    else if (c->patches)
        selector = load_le16(c->patch_bytes);
    return selector >> 3 == 15 && !(selector & 4);
}

/* VEX opcodes of AVX-512's mask registers (SDM vol. 2, KADD to KXOR). */
static bool is_mask_opcode(unsigned map, unsigned opcode)
{
    if (map == MAP_V3A)
        return opcode >= 0x30 && opcode <= 0x33;
    return map == MAP_V0F && ((opcode >= 0x41 && opcode <= 0x4b) || (opcode >= 0x90 && opcode <= 0x93) || opcode == 0x98 ||
                              opcode == 0x99);
}

static const char *of_undefined(const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest)
{
    if (host_is_amd() && has_repeat(c) && c->opcode == 0x2b && c->map == MAP_0F)
        return "MOVNTSS, MOVNTSD: SSE4A, which AMD's processors have and the table has not (APM vol. 4)";
    if (host_is_amd() && c->map == MAP_0F && (c->opcode == 0x78 || c->opcode == 0x79) && (has_prefix(c, 0x66) || has_prefix(c, 0xf2)))
        return "EXTRQ, INSERTQ: SSE4A, likewise";
    if (host_is_amd() && c->map == MAP_V3A && (c->opcode == 0x00 || c->opcode == 0x01))
        return "AMD's processors ignore W in VPERMQ and VPERMPD (SDM vol. 2: W1)";
    if (is_mask_opcode(c->map, c->opcode))
        return "mask registers: AVX-512, which the table has not";
    if (host_is_amd() && has_prefix(c, 0xf0) && c->map == MAP_0F && (c->opcode == 0x20 || c->opcode == 0x22))
        return "LOCK MOV CR0 is MOV CR8 on AMD's processors (APM vol. 3, MOV CRn)";
    bool at_limit = c->mode != INSN_MODE_64; /* of the code segment: #GP */
    if (host->vector == EXC_UD && (fetch_fault(guest) || (at_limit && guest->vector == EXC_GP)))
        return "whether the operand bytes of what is undefined are fetched";
    if (guest->vector == EXC_UD && (fetch_fault(host) || (at_limit && host->vector == EXC_GP && c->rip == host->rip)))
        return "whether the operand bytes of what is undefined are fetched";
    if (host_is_amd() && has_prefix(c, 0xf0) && c->map == MAP_0F && c->opcode == 0x00)
        return "AMD's processors ignore LOCK before VERR and VERW (by SDM vol. 2, LOCK, it is #UD)";
    return NULL;
}

const char *known_difference(const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest)
{
    if (c->decoded <= 0)
        return of_undefined(c, host, guest);
    unsigned op = c->insn.op;
    if (host_is_amd() && near_branch(op) && has_prefix(c, 0x66))
        return "AMD's near branches heed 66 in 64-bit mode (APM vol. 3, 1.2.2; SDM vol. 2, Jcc)";
    if ((op == OP_UD0 || op == OP_UD1) && host->vector == EXC_UD && is_address_fault(guest))
        return "whether the operand bytes of UD0 and UD1 are fetched (SDM vol. 2, UD)";
    if (op == OP_LSL && host->vector == guest->vector && selector_of_linux(c))
        return "the limit of Linux's descriptor 15 tells the processor's number";
    if (host->vector == EXC_AC && is_address_fault(guest) && host->rip == guest->rip)
        return "whether #AC comes before the page's own fault: no order is given (SDM vol. 3, table 6-2)";
    if (host->vector == EXC_AC && !(c->rflags & EFLAGS_AC) && (c->insn.flags & INSN_LOCK || op == OP_XCHG))
        return "split_lock_detect=fatal: Linux has locked accesses across cache lines fault (SDM vol. 3, 9.1.2.3)";
    if (host->vector == EXC_AC && guest->vector != EXC_AC && wide_operand(c))
        return "whether operands of 16 and 32 bytes are checked for alignment (SDM vol. 2, MOVUPS: may or may not be)";
    if (is_sha(op) && guest->vector == EXC_GP && host_is_amd())
        return "AMD's processors do not demand alignment of SHA's operand; Intel's do (SDM vol. 2, 2.5, type 4)";
    if (far_transfer(op) && host->cs != USER_CS && guest->cs == host->cs && same_but_high_rsp(host, guest))
        return "bits 63:32 of a register are not preserved in 32-bit mode (SDM vol. 1, 3.4.1.1)";
    if (far_transfer(op) && guest->cs == host->cs && guest->vector == EXC_GP && guest->rip != c->rip && host->vector == EXC_BP)
        return "a jump into the instruction's own bytes that finds STR or its kin there: under UMIP Linux emulates them";
    if (far_transfer(op) && is_fault(host) && is_fault(guest) && host->rip == guest->rip)
        return "which of an instruction's many checks comes first";
    if (host_is_amd() && has_far_pointer(op) && c->insn.osize == 8)
        return "AMD's far pointers have no 64-bit offsets: REX.W is ignored (APM vol. 3, JMP far, LFS)";
    if (host_is_amd() && op == OP_NOP && !(c->insn.flags & INSN_MEM) && isa_rows[c->insn.row].opcode == 0x0d)
        return "0F 0D with a register: undefined on AMD's processors, a NOP on Intel's (SDM vol. 2, table A-3)";
    if (host_is_amd() && (op == OP_SCAS || op == OP_CMPS) && has_repeat(c) && is_fault(host) && host->rip == guest->rip)
        return "AMD's processors keep the last iteration's flags; a fault restores those of before (SDM vol. 2, REP)";
    if ((op == OP_LOOPE || op == OP_LOOPNE) && has_repeat(c))
        return "F2 and F3 before LOOPcc are reserved (SDM vol. 2, 2.1.1); AMD's processors take them for the condition";
    if (op == OP_INT1 && host->vector == EXC_DB && host->rip == c->rip)
        return "a hypervisor that intercepts #DB delivers INT1 as a fault; by the manual it is a trap (SDM vol. 2, INT1)";
    if (op == OP_XRSTOR && is_address_fault(host) && guest->rip != c->rip)
        return "whether the memory of a component that becomes initial is accessed (SDM vol. 1, 13.13)";
    if ((many_accesses(op) || c->insn.rm_size == 10) && is_operand_fault(host) && is_operand_fault(guest) && host->rip == guest->rip)
        return "which of several accesses of one instruction is first to fault (SDM vol. 3, 6.15, #PF)";
    if (op == OP_CALL && is_address_fault(host) && is_address_fault(guest) && host->rip == guest->rip)
        return "whether the push or the target of CALL faults first";
    if (is_string(op) && host->vector == EXC_DB && guest->vector == EXC_DB && (host->rflags ^ guest->rflags) == EFLAGS_RF && host_is_amd())
        return "between the iterations of a string instruction Intel's processors save RF set (SDM vol. 3, 17.3.1.1)";
    if (is_gather(op) && c->rflags & EFLAGS_TF && host->vector == EXC_DB && is_address_fault(guest))
        return "after a part of a gather a pending trap may come in lieu of the fault (SDM vol. 2, VPGATHERDD)";
    if (host_is_amd() && op == OP_MOVSXD && has_prefix(c, 0x66) && c->insn.flags & INSN_MEM &&
        (host->vector == EXC_PF || host->vector == EXC_AC))
        return "MOVSXD with 66 reads four bytes on AMD's processors, two on Intel's (SDM vol. 2, MOVSXD)";
    if (host_is_amd() && (op == OP_SCAS || op == OP_CMPS) && has_repeat(c) && is_fault(host) && same_but_flags(host, guest))
        return "a fault within REPE SCAS finds the flags as the last iteration left them on AMD's processors; by the manual "
               "they are as before the instruction (SDM vol. 2, REP)";
    if (host->vector == EXC_GP && guest->vector == EXC_SS && wide_operand(c) && host->rip == guest->rip)
        return "whether a wide operand's alignment or the limit of its stack segment is looked at first";
    if (host_is_amd() && (op == OP_VPINSRD || op == OP_VPEXTRD) && c->mode != INSN_MODE_64 && host->vector == EXC_UD)
        return "VPINSRD and VPEXTRD with W outside 64-bit mode: undefined on AMD's processors, W is ignored on Intel's (SDM vol. 2)";
    if (op == OP_POPA && is_fault(host) && host->vector == guest->vector && host->rip == guest->rip)
        return "which registers a POPA that faults has loaded";
    if (is_masked_store(op) && is_address_fault(host))
        return "whether bytes that are masked off fault (SDM vol. 2, MASKMOVDQU: implementation dependent)";
    return NULL;
}
