/* SPDX-License-Identifier: MIT */
/* The instructions whose operand is an image of the vector state: FNSTENV FLDENV FNSAVE FRSTOR FXSAVE FXRSTOR and
 * the XSAVE family. fpu.c knows the formats; here are the checks and the guest's memory. */
#include "exec.h"

static void need_x87(struct cpu *cpu, const struct uop *u)
{
    if (cpu->s.cr0 & (CR0_EM | CR0_TS))
        raise_exception(cpu, u, EXC_NM);
}

static void need_xsave(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        raise_ud(cpu, u);
    if (cpu->cpl && (u->in.op == OP_XSAVES || u->in.op == OP_XRSTORS))
        raise_gp(cpu, u, 0);
    if (cpu->s.cr0 & CR0_TS)
        raise_exception(cpu, u, EXC_NM);
}

/* The image in the host's memory, where that is to be had in one piece; else NULL. */
static uint8_t *whole_image(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned bytes, bool write)
{
    bool one_page = linear % GUEST_PAGE_SIZE <= GUEST_PAGE_SIZE - bytes;
    return one_page ? access_page_ptr(cpu, u, linear, bytes, write) : NULL;
}

/* In pieces of `step` bytes: by how much an image must be aligned when alignment is checked (SDM vol. 3, table 6-7). */
static void read_image(struct cpu *cpu, const struct uop *u, uint64_t linear, uint8_t *image, unsigned bytes, unsigned step)
{
    access_check_canonical(cpu, u, linear, bytes, false);
    const uint8_t *whole = whole_image(cpu, u, linear, bytes, false);
    if (likely(whole != NULL)) {
        fpu_copy(image, whole, bytes);
        return;
    }
    for (unsigned i = 0; i < bytes; i += step) {
        uint64_t value = mem_read(cpu, u, linear + i, step);
        fpu_copy(image + i, &value, step);
    }
}

/* The pages were probed before: no fault can come half-way, but for #AC, which comes with the first piece. */
static void write_image(struct cpu *cpu, const struct uop *u, uint64_t linear, const uint8_t *image, unsigned bytes,
                        unsigned step)
{
    access_probe_write(cpu, u, linear, bytes);
    uint8_t *whole = whole_image(cpu, u, linear, bytes, true);
    if (likely(whole != NULL)) {
        fpu_copy(whole, image, bytes);
        return;
    }
    for (unsigned i = 0; i < bytes; i += step) {
        uint64_t value = 0;
        fpu_copy(&value, image + i, step);
        mem_write(cpu, u, linear + i, step, value);
    }
}

/* FNSTENV and FNSAVE. They change the state too, but not before all is written. */
static void store_x87(struct cpu *cpu, const struct uop *u, unsigned bytes,
                      unsigned (*store)(uint8_t *area, uint8_t *out, bool size32))
{
    _Alignas(64) uint8_t after[FPU_XSAVE_BYTES];
    uint8_t image[108];
    bool size32 = u->in.osize != 2;
    need_x87(cpu, u);
    uint64_t linear = operand_linear(cpu, u, bytes, true);
    cpu_fpu_leave(cpu);
    fpu_copy(after, cpu->s.xsave, sizeof after);
    store(after, image, size32);
    write_image(cpu, u, linear, image, bytes, size32 ? 4 : 2);
    fpu_copy(cpu->s.xsave, after, sizeof after);
}

/* FLDENV and FRSTOR wait, as most x87 instructions do. */
static void load_x87(struct cpu *cpu, const struct uop *u, unsigned bytes,
                     void (*load)(uint8_t *area, const uint8_t *in, bool size32))
{
    uint8_t image[108];
    bool size32 = u->in.osize != 2;
    need_x87(cpu, u);
    cpu_fpu_leave(cpu);
    if (fpu_pending(cpu->s.xsave))
        raise_exception(cpu, u, EXC_MF);
    read_image(cpu, u, operand_linear(cpu, u, bytes, false), image, bytes, size32 ? 4 : 2);
    load(cpu->s.xsave, image, size32);
}

static void fnstenv(struct cpu *cpu, const struct uop *u)
{
    store_x87(cpu, u, u->in.osize == 2 ? 14 : 28, fpu_fnstenv);
    NEXT;
}

static void fldenv(struct cpu *cpu, const struct uop *u)
{
    load_x87(cpu, u, u->in.osize == 2 ? 14 : 28, fpu_fldenv);
    NEXT;
}

static void fnsave(struct cpu *cpu, const struct uop *u)
{
    store_x87(cpu, u, u->in.osize == 2 ? 94 : 108, fpu_fnsave);
    NEXT;
}

static void frstor(struct cpu *cpu, const struct uop *u)
{
    load_x87(cpu, u, u->in.osize == 2 ? 94 : 108, fpu_frstor);
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
    _Alignas(16) uint8_t image[FPU_FXSAVE_BYTES];
    unsigned bytes;
    if (likely(!cpu->fpu_away && cpu->code64)) {
        bytes = fpu_fxsave_live(image);
    } else {
        cpu_fpu_leave(cpu);
        bytes = fpu_fxsave(cpu->s.xsave, image, cpu->code64);
    }
    access_probe_write(cpu, u, linear, FPU_FXSAVE_BYTES); /* all of the operand, though not all is written */
    write_image(cpu, u, linear, image, bytes, 8);
    NEXT;
}

static void fxrstor(struct cpu *cpu, const struct uop *u)
{
    uint64_t linear = fxsave_operand(cpu, u, false);
    _Alignas(16) uint8_t image[FPU_FXSAVE_BYTES];
    read_image(cpu, u, linear, image, sizeof image, 8);
    if (likely(!cpu->fpu_away && cpu->code64 && fpu_fxrstor_live(image)))
        NEXT;
    cpu_fpu_leave(cpu);
    if (!fpu_fxrstor(cpu->s.xsave, image, cpu->code64))
        raise_gp(cpu, u, 0);
    NEXT;
}

/* IA32_XSS is always 0: there is no supervisor state, and XSAVES saves what XSAVEC does. */
static uint64_t requested(const struct cpu *cpu)
{
    return (cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX]) & cpu->s.xcr0;
}

/* ---- PKRU, component 9, which is not of the vector state (SDM vol. 1, 13.5.7) ---- */

#define XSTATE_BV 512
#define XCOMP_BV 520
#define COMPACTED BIT(63)

static unsigned pkru_offset(uint64_t format)
{
    return format & COMPACTED ? fpu_xsave_bytes(format, true) : cpuid_pkru_offset();
}

/* To the header of the image and, where the instruction writes it, to memory. */
static void save_pkru(struct cpu *cpu, const struct uop *u, uint64_t linear, uint8_t *image, enum fpu_xsave kind)
{
    uint64_t in_use = cpu->s.pkru ? XCR0_PKRU : 0;
    store_le64(image + XSTATE_BV, (load_le64(image + XSTATE_BV) & ~(uint64_t)XCR0_PKRU) | in_use);
    if (kind == FPU_XSAVEC)
        store_le64(image + XCOMP_BV, load_le64(image + XCOMP_BV) | XCR0_PKRU);
    if (kind == FPU_XSAVE || in_use)
        mem_write_64(cpu, u, linear + pkru_offset(load_le64(image + XCOMP_BV)), cpu->s.pkru);
}

/* What XRSTOR loads. */
static uint32_t restored_pkru(struct cpu *cpu, const struct uop *u, uint64_t linear, const uint8_t *image)
{
    if (!(load_le64(image + XSTATE_BV) & XCR0_PKRU))
        return 0;
    return mem_read_32(cpu, u, linear + pkru_offset(load_le64(image + XCOMP_BV)));
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
    if (rfbm & XCR0_PKRU)
        access_probe_write(cpu, u, linear + pkru_offset(kind == FPU_XSAVEC ? rfbm | COMPACTED : 0), 8);
    cpu_fpu_leave(cpu);
    uint8_t image[FPU_XSAVE_BYTES];
    read_image(cpu, u, linear, image, bytes, 8);
    fpu_xsave(cpu->s.xsave, image, rfbm & ~(uint64_t)XCR0_PKRU, kind, cpu->code64);
    if (rfbm & XCR0_PKRU)
        save_pkru(cpu, u, linear, image, kind);
    write_image(cpu, u, linear, image, bytes, 8);
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
    read_image(cpu, u, linear, image, XSAVE_HEADER_END, 8);
    if (u->in.op == OP_XRSTORS && !(load_le64(image + XCOMP_BV) & COMPACTED))
        raise_gp(cpu, u, 0);
    unsigned bytes = fpu_xrstor_bytes(image, rfbm, cpu->s.xcr0);
    if (!bytes || bytes > sizeof image)
        raise_gp(cpu, u, 0);
    if (bytes > XSAVE_HEADER_END)
        read_image(cpu, u, linear + XSAVE_HEADER_END, image + XSAVE_HEADER_END, bytes - XSAVE_HEADER_END, 8);
    uint32_t pkru = rfbm & XCR0_PKRU ? restored_pkru(cpu, u, linear, image) : cpu->s.pkru;
    cpu_fpu_leave(cpu);
    if (!fpu_xrstor(cpu->s.xsave, image, rfbm & ~(uint64_t)XCR0_PKRU, cpu->code64))
        raise_gp(cpu, u, 0);
    if (unlikely(pkru != cpu->s.pkru)) {
        /* translated code checks some accesses together, and must not have done so under the old value */
        cpu_set_pkru(cpu, pkru);
        cpu->rip = cpu_next_rip(cpu, u);
        leave_block(cpu, u, true);
    }
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
    {OP_XSAVES, EXEC_ANY_FORM, NULL, xsave},
    {OP_XRSTOR, EXEC_ANY_FORM, NULL, xrstor},
    {OP_XRSTORS, EXEC_ANY_FORM, NULL, xrstor},
    {0, 0, NULL, NULL},
};
