/* SPDX-License-Identifier: MIT */
/* A decoded instruction: the result of a pure function of bytes and mode. It is what the
 * interpreter runs, the translator translates, the disassembler prints and MMIO emulation
 * under KVM executes. */
#ifndef IMGVM_CPU_DECODE_INSN_H
#define IMGVM_CPU_DECODE_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../arch/cpu_feature.h"

#define INSN_MAX_BYTES 15

enum insn_mode { INSN_MODE_16, INSN_MODE_32, INSN_MODE_64 };

/* Operations: one per mnemonic, from op.def. */
enum insn_op {
#define OP(name, ...) OP_##name,
#include "op.def"
#undef OP
    OP_COUNT
};

/* Pattern of the explicit operands, so that an executor is found by (op, form, memory?, size). Accumulator
 * and opcode-embedded registers are normalised: `add al, imm8` is FORM_RM_IMM with rm = RAX, `push r8` is FORM_RM. */
enum insn_form {
    FORM_NONE,    /* no explicit operand, or all implied */
    FORM_RM,      /* inc Ev */
    FORM_RM_REG,  /* add Ev, Gv: destination rm, source reg */
    FORM_REG_RM,  /* add Gv, Ev: destination reg, source rm */
    FORM_RM_IMM,  /* add Ev, Iz */
    FORM_REG_RM_IMM, /* imul Gv, Ev, Iz */
    FORM_RM_REG_IMM, /* shld Ev, Gv, Ib */
    FORM_RM_1,    /* shl Ev, 1 (imm = 1 as well) */
    FORM_RM_CL,   /* shl Ev, cl */
    FORM_RM_REG_CL, /* shld Ev, Gv, cl */
    FORM_IMM,     /* push Iz, int Ib, ret Iw */
    FORM_REL,     /* jcc Jb: imm is the displacement */
    FORM_REG,     /* opcode-embedded or modrm.reg operand alone */
    FORM_OTHER,   /* see the row's operands */
};

#define INSN_REG_NONE 16 /* base or index absent; reads as zero */
#define INSN_REG_RIP 17  /* base: address of the next instruction */
#define INSN_SEG_FLAT 6  /* no base, no limit: what DS, ES, SS and CS are in 64-bit mode */

#define INSN_MEM 0x01      /* modrm addresses memory (mod != 3), or moffs */
#define INSN_LOCK 0x02
#define INSN_REP 0x04      /* F3, where it is not part of the opcode */
#define INSN_REPNE 0x08    /* F2, likewise */
#define INSN_W 0x10        /* REX.W or VEX.W */
#define INSN_VEX 0x20      /* VEX-encoded */
#define INSN_REX 0x40      /* any REX: byte registers 4-7 are SPL..DIL */
#define INSN_SEG_OVERRIDE 0x80

struct insn {
    uint64_t imm;  /* immediate, sign-extended to 64 bits where the manual sign-extends, else zero-extended;
                      relative displacement (sign-extended); moffs address;
                      far pointer: offset | selector << 32; ENTER: size | level << 16 */
    int32_t disp;  /* of the memory operand */
    uint16_t row;  /* isa_rows[row]: the row of isa.def that matched */
    uint16_t op;   /* enum insn_op */
    uint8_t length;
    uint8_t osize; /* operand size in bytes: 1, 2, 4, 8; vector rows 4..64 */
    uint8_t asize; /* address size in bytes: 2, 4, 8 */
    uint8_t form;  /* enum insn_form */
    uint8_t reg;   /* modrm.reg with REX.R; byte registers AH CH DH BH are 16..19; condition code for Jcc/SETcc/CMOVcc rows goes to `cond` */
    uint8_t rm;    /* register when !INSN_MEM (same numbering) */
    uint8_t vvvv;  /* VEX.vvvv, as a register number */
    uint8_t base, index, scale; /* memory: base + (index << scale) + disp */
    uint8_t segment; /* enum x86_sreg or INSN_SEG_FLAT */
    uint8_t flags;   /* INSN_* */
    uint8_t cond;    /* low four bits of the opcode of Jcc, SETcc, CMOVcc */
    uint8_t modrm;   /* raw byte, 0 where there is none */
    uint8_t vl;      /* vector length in bytes (VEX.L): 16 or 32; 0 without VEX */
    uint8_t rm_size; /* bytes of the rm or memory operand (movzx eax, byte [..]: 1); 0 without one or when over 255 */
};

_Static_assert(sizeof(struct insn) == 32, "the translator and the block cache count on 32 bytes");

/* Operand specifications of a row, with the SDM's letters (vol. 2, appendix A.2): see isa.def's legend. */
struct isa_row {
    uint8_t map, opcode, pp, modrm;
    uint16_t op;
    uint8_t operand[4];
    uint32_t attributes;
    uint8_t form;
};

extern const struct isa_row isa_rows[];
extern const unsigned isa_row_count;

struct op_info {
    const char *mnemonic;
    uint8_t kind;             /* enum op_kind */
    uint16_t flags_written;   /* EFLAGS_* of arch/x86.h, of the six status flags, including undefined ones */
    uint16_t flags_undefined; /* subset of flags_written */
    uint16_t flags_read;
    uint32_t attributes;      /* OPA_* */
    uint16_t feature;         /* enum cpu_feature: announced in CPUID if and only if such rows exist */
};
extern const struct op_info op_infos[OP_COUNT];

/* Who executes an operation. */
enum op_kind {
    OPK_INT,    /* integer row with C semantics (exec/int_*.c) */
    OPK_NATIVE, /* purely computational: runs as itself in a one-instruction native thunk */
    OPK_CTRL,   /* branches, calls, returns */
    OPK_MEM,    /* pushes, strings, xchg, enter...: more than one memory access or an implied one */
    OPK_SYS,    /* privileged, segment, I/O, MSR, XSAVE family, CPUID...: C helpers */
};

#define OPA_ENDS_BLOCK 0x01  /* the next instruction may be elsewhere or in another mode */
#define OPA_LOCKABLE 0x02    /* LOCK is legal with a memory destination */
#define OPA_CPL0 0x04        /* #GP above ring 0 */
#define OPA_X87 0x08         /* CR0.EM/TS -> #NM; pending exceptions -> #MF (unless a no-wait form) */
#define OPA_MMX 0x10         /* CR0.EM -> #UD, TS -> #NM, pending x87 -> #MF */
#define OPA_SSE 0x20         /* CR0.EM or !CR4.OSFXSR -> #UD, TS -> #NM */
#define OPA_AVX 0x40         /* !CR4.OSXSAVE or XCR0 -> #UD, TS -> #NM */
#define OPA_NOWAIT 0x80      /* x87 control forms that do not check pending exceptions */
#define OPA_ALIGN16 0x100    /* a memory operand of 16 or 32 bytes must be aligned to its size (#GP) */
#define OPA_NO_MEM_READ 0x200 /* memory destination is only written */
#define OPA_NO_MEM 0x400      /* LEA, NOP Ev, prefetches: the memory operand is not accessed */
#define OPA_MEM_RMW 0x800     /* memory destination is read and written */
#define OPA_MAY_KEEP_FLAGS 0x1000 /* a zero count leaves all flags as they were */

/* Decode. Returns the length (1..15); or one of the codes below, when *out says nothing. */
#define INSN_ERR_TRUNCATED (-1) /* more bytes are needed than `available` */
#define INSN_ERR_UNDEFINED (-2) /* #UD */
#define INSN_ERR_TOO_LONG (-3)  /* more than 15 bytes: #GP */
int insn_decode(struct insn *out, const uint8_t *bytes, size_t available, enum insn_mode mode);

/* Intel syntax, lower case, address (of the instruction) used for relative targets. Returns the length of the text. */
int insn_format(const struct insn *insn, uint64_t address, char *text, size_t size);

#endif
