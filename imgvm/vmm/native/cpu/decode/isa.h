/* SPDX-License-Identifier: MIT */
/* The vocabulary of isa.def's rows: maps, prefix classes, modrm constraints, operands, attributes.
 * isa.def's legend explains how to write a row. */
#ifndef IMGVM_CPU_DECODE_ISA_H
#define IMGVM_CPU_DECODE_ISA_H

#include "insn.h"

enum isa_map { MAP_1B, MAP_0F, MAP_38, MAP_3A, MAP_V0F, MAP_V38, MAP_V3A, MAP_COUNT };

/* Which of 66, F2, F3 a row asks for; of F2 and F3 the last one counts, and both hide 66. */
enum isa_pp {
    PP___, /* they are not part of the opcode: 66 is the operand size, F2/F3 are REP */
    PP_NF, /* no F2/F3; 66 is the operand size */
    PP_NP, /* none of them */
    PP_66, /* 66 belongs to the opcode; no F2/F3 */
    PP_F3, /* F3; 66 next to it is the operand size */
    PP_F2, /* F2; likewise */
};

/* Constraint on the modrm byte: 8 bits, isa_row.modrm. 11xxxxxx: exactly this byte. */
#define MR__ 0x00   /* there is no modrm byte */
#define MR_MR 0x40  /* any */
#define MR_MEM 0x50 /* mod != 3 */
#define MR_REG 0x60 /* mod == 3 */
#define MR_HAS_DIGIT 0x08
/* Rn, Mn, Gn: any, memory, register with modrm.reg == n ("/n" in the manual) */
enum {
    MR_R0 = 0x48, MR_R1, MR_R2, MR_R3, MR_R4, MR_R5, MR_R6, MR_R7,
    MR_M0 = 0x58, MR_M1, MR_M2, MR_M3, MR_M4, MR_M5, MR_M6, MR_M7,
    MR_G0 = 0x68, MR_G1, MR_G2, MR_G3, MR_G4, MR_G5, MR_G6, MR_G7,
};
#define MR_X(byte) (byte)

/* Modes a row exists in. */
enum isa_mode { MODE_ANY, MODE_I64, MODE_O64 };

/* isa_row.attributes; the lowest two bits are enum isa_mode. */
#define A_MODE 0x00000003u
#define A_W0 0x00000010u    /* REX.W or VEX.W must be 0 */
#define A_W1 0x00000020u    /* must be 1 */
#define A_L0 0x00000040u    /* VEX.L must be 0 */
#define A_L1 0x00000080u    /* must be 1 */
#define A_B0 0x00000100u    /* REX.B must be 0 */
#define A_R8 0x00000200u    /* the row is for opcode..opcode+7 (operand Z) */
#define A_CC 0x00000400u    /* the row is for opcode..opcode+15 (condition) */
#define A_D64 0x00000800u   /* operand size is 8 by default in 64-bit mode; 66 makes it 2 */
#define A_F64 0x00001000u   /* operand size is 8 in 64-bit mode whatever the prefixes */
#define A_AVX2 0x00002000u  /* VEX.L = 1 needs AVX2 where L = 0 needs only the operation's feature */

enum operand_class {
    CLASS_NONE, CLASS_E, CLASS_G, CLASS_M, CLASS_R, CLASS_Z, CLASS_B, CLASS_ACC, CLASS_IMPLIED, CLASS_I, CLASS_J, CLASS_A,
    CLASS_O, CLASS_S, CLASS_SEG, CLASS_C, CLASS_D, CLASS_X, CLASS_Y, CLASS_V, CLASS_W, CLASS_U, CLASS_H, CLASS_L,
    CLASS_VSIB_X, CLASS_VSIB_DQ, CLASS_XMM0, CLASS_P, CLASS_Q, CLASS_N, CLASS_ST, CLASS_STI,
};

enum operand_type {
    TYPE_NONE, TYPE_B, TYPE_BS, TYPE_W, TYPE_WB, TYPE_D, TYPE_Q, TYPE_DQ, TYPE_QQ, TYPE_T, TYPE_V, TYPE_Y, TYPE_Z, TYPE_X,
    TYPE_XH, TYPE_XQ, TYPE_XE, TYPE_V_MW, TYPE_D_MB, TYPE_D_MW, TYPE_NATURAL, TYPE_P, TYPE_A, TYPE_S,
};

enum isa_operand {
#define OPD(name, class, type) OPD_##name,
#include "operand.def"
#undef OPD
    OPD_COUNT
};

struct operand_info {
    uint8_t class; /* enum operand_class */
    uint8_t type;  /* enum operand_type */
};
extern const struct operand_info operand_infos[OPD_COUNT];

/* Size in bytes of a row's operand as decoded; 0 when it has none of its own. */
unsigned insn_operand_size(const struct insn *insn, unsigned operand);

#endif
