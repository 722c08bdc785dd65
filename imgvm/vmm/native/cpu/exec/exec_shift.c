/* SPDX-License-Identifier: MIT */
/* ROL ROR RCL RCR SHL SHR SAR by 1, by an immediate, by CL; SHLD, SHRD. A count of zero after masking
 * changes no flag (SDM vol. 2, SAL/SAR/SHL/SHR and RCL/RCR/ROL/ROR). */
#include "alu.h"
#include "exec.h"

#define GET(bits, r) ((uint##bits##_t)reg_read(cpu, r, bits / 8))

static inline uint8_t shift_count(const struct cpu *cpu, const struct uop *u)
{
    uint8_t count = u->in.form == FORM_RM_CL || u->in.form == FORM_RM_REG_CL ? (uint8_t)cpu->gpr[RCX] : (uint8_t)u->in.imm;
    return count & (u->in.osize == 8 ? 63 : 31);
}

/* A 32-bit register is written (upper half cleared) even when the count is zero. SHLD and SHRD have a further source. */
#define SIZE(name, bits, ...)                                                                         \
    static void name##_r##bits(struct cpu *cpu, const struct uop *u)                                  \
    {                                                                                                 \
        uint8_t count = shift_count(cpu, u);                                                          \
        uint##bits##_t a = GET(bits, u->in.rm);                                                       \
        if (likely(count))                                                                            \
            a = alu_##name##_##bits(a, ##__VA_ARGS__, count, &cpu->cc);                               \
        reg_write(cpu, u->in.rm, bits / 8, a);                                                        \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_m##bits(struct cpu *cpu, const struct uop *u)                                  \
    {                                                                                                 \
        uint8_t count = shift_count(cpu, u);                                                          \
        uint##bits##_t *p = mem_modify_ptr(cpu, u, operand_linear(cpu, u, bits / 8, true), bits / 8, true); \
        if (likely(count))                                                                            \
            *p = alu_##name##_##bits(*p, ##__VA_ARGS__, count, &cpu->cc);                             \
        mem_done(cpu, u, p, bits / 8);                                                                \
        NEXT;                                                                                         \
    }
#define SHIFT(name)                                                                                   \
    SIZE(name, 8) SIZE(name, 16) SIZE(name, 32) SIZE(name, 64)                                        \
    static const exec_set name##_set = {{name##_r8, name##_r16, name##_r32, name##_r64},              \
                                        {name##_m8, name##_m16, name##_m32, name##_m64}};

SHIFT(rol)
SHIFT(ror)
SHIFT(rcl)
SHIFT(rcr)
SHIFT(shl)
SHIFT(shr)
SHIFT(sar)

#define DOUBLE(name)                                                                                  \
    SIZE(name, 16, GET(16, u->in.reg)) SIZE(name, 32, GET(32, u->in.reg)) SIZE(name, 64, GET(64, u->in.reg)) \
    static const exec_set name##_set = {{NULL, name##_r16, name##_r32, name##_r64},                   \
                                        {NULL, name##_m16, name##_m32, name##_m64}};

DOUBLE(shld)
DOUBLE(shrd)

#define SHIFT_DEFS(OP, name)                                                                          \
    {OP, FORM_RM_1, &name##_set, NULL}, {OP, FORM_RM_CL, &name##_set, NULL}, {OP, FORM_RM_IMM, &name##_set, NULL}

const struct exec_def exec_shift[] = {
    SHIFT_DEFS(OP_ROL, rol),
    SHIFT_DEFS(OP_ROR, ror),
    SHIFT_DEFS(OP_RCL, rcl),
    SHIFT_DEFS(OP_RCR, rcr),
    SHIFT_DEFS(OP_SHL, shl),
    SHIFT_DEFS(OP_SHR, shr),
    SHIFT_DEFS(OP_SAR, sar),
    {OP_SHLD, FORM_RM_REG_IMM, &shld_set, NULL},
    {OP_SHLD, FORM_RM_REG_CL, &shld_set, NULL},
    {OP_SHRD, FORM_RM_REG_IMM, &shrd_set, NULL},
    {OP_SHRD, FORM_RM_REG_CL, &shrd_set, NULL},
    {0, 0, NULL, NULL},
};
