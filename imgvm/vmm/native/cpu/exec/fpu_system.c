/* SPDX-License-Identifier: MIT */
/* The instructions whose operand is an image of the vector state: FNSTENV FLDENV FNSAVE FRSTOR FXSAVE FXRSTOR and
 * the XSAVE family. fpu.c knows the formats; here are the checks and the guest's memory. */
#include "exec.h"

static void need_x87(struct cpu *cpu, const struct uop *u)
{
    if (cpu->s.cr0 & (CR0_EM | CR0_TS))
        raise_exception(cpu, u, EXC_NM);
}

/* FLDENV and FRSTOR wait, as most x87 instructions do. */
static void need_nothing_pending(struct cpu *cpu, const struct uop *u)
{
    if (fpu_pending(cpu->s.xsave))
        raise_exception(cpu, u, EXC_MF);
}

static void need_xsave(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        raise_ud(cpu, u);
    if (cpu->s.cr0 & CR0_TS)
        raise_exception(cpu, u, EXC_NM);
}

static void read_image(struct cpu *cpu, const struct uop *u, uint64_t linear, uint8_t *image, unsigned bytes)
{
    unsigned i = 0;
    for (; i + 8 <= bytes; i += 8)
        store_le64(image + i, mem_read_64(cpu, u, linear + i));
    for (; i < bytes; i++)
        image[i] = mem_read_8(cpu, u, linear + i);
}

/* The pages were probed before: no fault can come half-way. */
static void write_image(struct cpu *cpu, const struct uop *u, uint64_t linear, const uint8_t *image, unsigned bytes)
{
    access_probe_write(cpu, u, linear, bytes);
    unsigned i = 0;
    for (; i + 8 <= bytes; i += 8)
        mem_write_64(cpu, u, linear + i, load_le64(image + i));
    for (; i < bytes; i++)
        mem_write_8(cpu, u, linear + i, image[i]);
}

static void fnstenv(struct cpu *cpu, const struct uop *u)
{
    need_x87(cpu, u);
    bool size32 = u->in.osize != 2 && u->in.osize != 14;
    unsigned bytes = size32 ? 28 : 14;
    uint64_t linear = operand_linear(cpu, u, bytes, true);
    access_probe_write(cpu, u, linear, bytes);
    cpu_fpu_leave(cpu);
    uint8_t image[28];
    write_image(cpu, u, linear, image, fpu_fnstenv(cpu->s.xsave, image, size32));
    NEXT;
}

static void fldenv(struct cpu *cpu, const struct uop *u)
{
    need_x87(cpu, u);
    bool size32 = u->in.osize != 2 && u->in.osize != 14;
    uint8_t image[28];
    cpu_fpu_leave(cpu);
    need_nothing_pending(cpu, u);
    read_image(cpu, u, operand_linear(cpu, u, size32 ? 28 : 14, false), image, size32 ? 28 : 14);
    fpu_fldenv(cpu->s.xsave, image, size32);
    NEXT;
}

static void fnsave(struct cpu *cpu, const struct uop *u)
{
    need_x87(cpu, u);
    bool size32 = u->in.osize != 2 && u->in.osize != 94;
    unsigned bytes = size32 ? 108 : 94;
    uint64_t linear = operand_linear(cpu, u, bytes, true);
    access_probe_write(cpu, u, linear, bytes);
    cpu_fpu_leave(cpu);
    uint8_t image[108];
    write_image(cpu, u, linear, image, fpu_fnsave(cpu->s.xsave, image, size32));
    NEXT;
}

static void frstor(struct cpu *cpu, const struct uop *u)
{
    need_x87(cpu, u);
    bool size32 = u->in.osize != 2 && u->in.osize != 94;
    uint8_t image[108];
    cpu_fpu_leave(cpu);
    need_nothing_pending(cpu, u);
    read_image(cpu, u, operand_linear(cpu, u, size32 ? 108 : 94, false), image, size32 ? 108 : 94);
    fpu_frstor(cpu->s.xsave, image, size32);
    NEXT;
}

static uint64_t fxsave_operand(struct cpu *cpu, const struct uop *u, bool write)
{
    need_x87(cpu, u);
    uint64_t linear = operand_linear(cpu, u, FPU_FXSAVE_BYTES, write);
    if (linear & 15)
        raise_gp(cpu, u, 0);
    return linear;
}

static void fxsave(struct cpu *cpu, const struct uop *u)
{
    uint64_t linear = fxsave_operand(cpu, u, true);
    cpu_fpu_leave(cpu);
    uint8_t image[FPU_FXSAVE_BYTES];
    unsigned bytes = fpu_fxsave(cpu->s.xsave, image, cpu->code64);
    access_probe_write(cpu, u, linear, FPU_FXSAVE_BYTES); /* all of the operand, though not all is written */
    write_image(cpu, u, linear, image, bytes);
    NEXT;
}

static void fxrstor(struct cpu *cpu, const struct uop *u)
{
    uint64_t linear = fxsave_operand(cpu, u, false);
    uint8_t image[FPU_FXSAVE_BYTES];
    read_image(cpu, u, linear, image, sizeof image);
    cpu_fpu_leave(cpu);
    if (!fpu_fxrstor(cpu->s.xsave, image, cpu->code64))
        raise_gp(cpu, u, 0);
    NEXT;
}

static uint64_t requested(const struct cpu *cpu)
{
    return (cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX]) & cpu->s.xcr0;
}

static void xsave(struct cpu *cpu, const struct uop *u)
{
    need_xsave(cpu, u);
    enum fpu_xsave kind = u->in.op == OP_XSAVE ? FPU_XSAVE : u->in.op == OP_XSAVEOPT ? FPU_XSAVEOPT : FPU_XSAVEC;
    uint64_t rfbm = requested(cpu);
    unsigned bytes = fpu_xsave_bytes(rfbm, kind == FPU_XSAVEC);
    uint64_t linear = operand_linear(cpu, u, bytes, true);
    if (linear & 63)
        raise_gp(cpu, u, 0);
    access_probe_write(cpu, u, linear, bytes);
    cpu_fpu_leave(cpu);
    uint8_t image[FPU_XSAVE_BYTES];
    read_image(cpu, u, linear, image, bytes);
    fpu_xsave(cpu->s.xsave, image, rfbm, kind, cpu->code64);
    write_image(cpu, u, linear, image, bytes);
    NEXT;
}

#define XSAVE_HEADER_END 576

static void xrstor(struct cpu *cpu, const struct uop *u)
{
    need_xsave(cpu, u);
    uint64_t rfbm = requested(cpu);
    uint64_t linear = operand_linear(cpu, u, XSAVE_HEADER_END, false);
    if (linear & 63)
        raise_gp(cpu, u, 0);
    uint8_t image[FPU_XSAVE_BYTES];
    read_image(cpu, u, linear, image, XSAVE_HEADER_END);
    unsigned bytes = fpu_xrstor_bytes(image, rfbm, cpu->s.xcr0);
    if (!bytes || bytes > sizeof image)
        raise_gp(cpu, u, 0);
    if (bytes > XSAVE_HEADER_END)
        read_image(cpu, u, linear + XSAVE_HEADER_END, image + XSAVE_HEADER_END, bytes - XSAVE_HEADER_END);
    cpu_fpu_leave(cpu);
    if (!fpu_xrstor(cpu->s.xsave, image, rfbm, cpu->code64))
        raise_gp(cpu, u, 0);
    NEXT;
}

const struct exec_def exec_fpu_system[] = {
    {OP_FNSTENV, EXEC_ANY_FORM, NULL, fnstenv},
    {OP_FLDENV, EXEC_ANY_FORM, NULL, fldenv},
    {OP_FNSAVE, EXEC_ANY_FORM, NULL, fnsave},
    {OP_FRSTOR, EXEC_ANY_FORM, NULL, frstor},
    {OP_FXSAVE, EXEC_ANY_FORM, NULL, fxsave},
    {OP_FXRSTOR, EXEC_ANY_FORM, NULL, fxrstor},
    {OP_XSAVE, EXEC_ANY_FORM, NULL, xsave},
    {OP_XSAVEOPT, EXEC_ANY_FORM, NULL, xsave},
    {OP_XSAVEC, EXEC_ANY_FORM, NULL, xsave},
    {OP_XRSTOR, EXEC_ANY_FORM, NULL, xrstor},
    {0, 0, NULL, NULL},
};
