/* SPDX-License-Identifier: MIT */
/* What the decoder needs of a row, digested once from isa.def. Constant after the library is loaded. */
#ifndef IMGVM_CPU_DECODE_PLAN_H
#define IMGVM_CPU_DECODE_PLAN_H

#include "isa.h"

/* What a row may ask of an encoding, as one number: (facts & mask) == value. */
#define FACT_MODRM 0xffu /* the modrm byte; its mod field only as 3 or not 3: FACT_REGISTER */
#define FACT_REGISTER 0x100u
#define FACT_66 0x200u /* with neither F2 nor F3 */
#define FACT_F3 0x400u
#define FACT_F2 0x800u
#define FACT_W 0x1000u
#define FACT_L 0x2000u
#define FACT_B 0x4000u
#define FACT_64 0x8000u

/* How an operand field of struct insn is filled from its bits. */
enum field { FIELD_NONE, FIELD_GPR, FIELD_BYTE, FIELD_VECTOR, FIELD_3BITS, FIELD_CR, FIELD_DR };

enum immediate { IMM_NONE, IMM_B, IMM_IS4, IMM_BS, IMM_W, IMM_Z, IMM_V, IMM_WB, IMM_JZ, IMM_FAR, IMM_MOFFS };

#define PLAN_VVVV 0x01      /* uses VEX.vvvv */
#define PLAN_REGISTER 0x02  /* modrm.rm is a register whatever mod says */
#define PLAN_OPCODE_REG 0x04 /* register in the opcode */
#define PLAN_ACC_RM 0x08    /* the accumulator goes to rm */
#define PLAN_ACC_REG 0x10   /* to reg */
#define PLAN_VSIB 0x20

struct plan {
    uint32_t mask, value;
    uint8_t reg, rm, vvvv;     /* enum field */
    uint8_t immediate;         /* enum immediate */
    uint8_t osize, rm_size;    /* enum operand_type; TYPE_V: the effective operand size */
    uint8_t flags;             /* PLAN_* */
    uint8_t fixed_reg;         /* FIELD_NONE: the SEG operand's number */
};

struct plan_opcode {
    uint16_t first, count; /* into plan_rows */
    bool has_modrm;
};

/* isa.def has fewer rows than this; test_decode checks. */
#define PLAN_MAX_ROWS 4096

extern struct plan plans[PLAN_MAX_ROWS];        /* by row */
extern uint16_t plan_rows[PLAN_MAX_ROWS];       /* rows grouped by opcode, in isa.def's order */
extern struct plan_opcode plan_opcodes[MAP_COUNT][256];

#endif
