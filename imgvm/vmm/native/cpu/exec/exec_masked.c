/* SPDX-License-Identifier: MIT */
/* Vector instructions that access their memory by elements and must not fault on those that are masked off:
 * MASKMOVQ, MASKMOVDQU, VMASKMOV, VPMASKMOV and the gathers (SDM vol. 2). They work on the stored vector state. */
#include "../decode/isa.h"
#include "exec.h"

#define SIGN_BIT(size) (UINT64_C(1) << (8 * (size)-1))

/* #UD, #NM and #MF as for the instructions that run as themselves (exec_native.c; SDM vol. 3, 13.3 and 14.3). */
static void open_unit(struct cpu *cpu, const struct uop *u)
{
    uint32_t attributes = op_infos[u->in.op].attributes;
    uint64_t cr0 = cpu->s.cr0, cr4 = cpu->s.cr4;
    bool available;
    if (attributes & OPA_AVX)
        available = (cr4 & CR4_OSXSAVE) && (~cpu->s.xcr0 & (XCR0_SSE | XCR0_AVX)) == 0 && (cr0 & CR0_PE) &&
                    !(cpu->eflags & EFLAGS_VM);
    else
        available = !(cr0 & CR0_EM) && (attributes & OPA_MMX || cr4 & CR4_OSFXSR);
    if (!available)
        raise_ud(cpu, u);
    if (cr0 & CR0_TS)
        raise_exception(cpu, u, EXC_NM);
    cpu_fpu_leave(cpu);
    fpu_open(cpu->s.xsave);
    if (attributes & OPA_MMX && fpu_pending(cpu->s.xsave))
        raise_exception(cpu, u, EXC_MF);
}

static uint64_t load_element(const uint8_t *p, unsigned size)
{
    switch (size) {
    case 1: return *p;
    case 4: return load_le32(p);
    default: return load_le64(p);
    }
}

static void store_element(uint8_t *p, unsigned size, uint64_t value)
{
    if (size == 4)
        store_le32(p, (uint32_t)value);
    else
        store_le64(p, value);
}

/* A vector register in one piece, and back with everything above `bytes` cleared, as VEX instructions do. */
static void get_vector(struct cpu *cpu, unsigned n, uint8_t value[32])
{
    fpu_copy(value, fpu_xmm(cpu->s.xsave, n), 16);
    fpu_copy(value + 16, fpu_ymm_high(cpu->s.xsave, n), 16);
}

static void put_vector(struct cpu *cpu, unsigned n, const uint8_t *value, unsigned bytes)
{
    uint8_t whole[32];
    fpu_zero(whole, sizeof whole);
    fpu_copy(whole, value, bytes);
    fpu_copy(fpu_xmm(cpu->s.xsave, n), whole, 16);
    fpu_copy(fpu_ymm_high(cpu->s.xsave, n), whole + 16, 16);
}

/* Linear address of an element at `offset` in the operand's segment. */
static uint64_t element_linear(struct cpu *cpu, const struct uop *u, uint64_t offset, unsigned size, bool write)
{
    if (u->in.asize == 4)
        offset = (uint32_t)offset;
    else if (u->in.asize == 2)
        offset = (uint16_t)offset;
    if (cpu->code64)
        return offset + cpu->seg_base[u->in.segment];
    return access_segment(cpu, u, u->in.segment, offset, size, write);
}

/* Masked moves and gathers never raise #AC (SDM vol. 2, VMASKMOV and VPGATHERDD): byte by byte while others would. */
static uint64_t read_element(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size)
{
    uint64_t value = 0;
    if (likely(!cpu->alignment_checked))
        return mem_read(cpu, u, linear, size);
    access_check_canonical(cpu, u, linear, size, false);
    for (unsigned i = 0; i < size; i++)
        value |= mem_read(cpu, u, linear + i, 1) << (8 * i);
    return value;
}

static void write_element(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint64_t value)
{
    if (likely(!cpu->alignment_checked)) {
        mem_write(cpu, u, linear, size, value);
        return;
    }
    for (unsigned i = 0; i < size; i++)
        mem_write(cpu, u, linear + i, 1, value >> (8 * i));
}

static uint64_t operand_base(struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    uint64_t base = in->base == INSN_REG_RIP && u->ea_slow ? cpu_next_rip(cpu, u) : cpu->gpr[in->base];
    return base + (uint64_t)(int64_t)in->disp;
}

static uint64_t operand_offset(struct cpu *cpu, const struct uop *u)
{
    return operand_base(cpu, u) + (cpu->gpr[u->in.index] << u->in.scale);
}

/* Elements of `value` whose mask has its sign bit, to memory: all are checked before one is written. */
static void store_masked(struct cpu *cpu, const struct uop *u, uint64_t offset, const uint8_t *value,
                         const uint8_t *mask, unsigned bytes, unsigned size)
{
    for (unsigned at = 0; at < bytes; at += size)
        if (load_element(mask + at, size) & SIGN_BIT(size))
            access_probe_write(cpu, u, element_linear(cpu, u, offset + at, size, true), size);
    for (unsigned at = 0; at < bytes; at += size)
        if (load_element(mask + at, size) & SIGN_BIT(size))
            write_element(cpu, u, element_linear(cpu, u, offset + at, size, true), size, load_element(value + at, size));
}

/* MASKMOVQ, MASKMOVDQU: bytes to DS:rDI. */
static void maskmov_bytes(struct cpu *cpu, const struct uop *u)
{
    open_unit(cpu, u);
    uint8_t value[16], mask[16];
    bool mmx = u->in.op == OP_MASKMOVQ;
    if (mmx) {
        uint8_t *mm = fpu_mmx(cpu->s.xsave);
        fpu_copy(value, mm + 16 * u->in.reg, 8);
        fpu_copy(mask, mm + 16 * u->in.rm, 8);
    } else {
        fpu_copy(value, fpu_xmm(cpu->s.xsave, u->in.reg), 16);
        fpu_copy(mask, fpu_xmm(cpu->s.xsave, u->in.rm), 16);
    }
    store_masked(cpu, u, cpu->gpr[RDI], value, mask, mmx ? 8 : 16, 1);
    NEXT;
}

/* VMASKMOVPS/PD, VPMASKMOVD/Q: mask in vvvv; a load clears what is masked off. */
static void maskmov_elements(struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    unsigned size = in->op == OP_VMASKMOVPS || in->op == OP_VPMASKMOVD ? 4 : 8;
    uint8_t value[32], mask[32];
    open_unit(cpu, u);
    uint64_t offset = operand_offset(cpu, u);
    get_vector(cpu, in->vvvv, mask);
    if (operand_infos[isa_rows[in->row].operand[0]].class == CLASS_M) {
        get_vector(cpu, in->reg, value);
        store_masked(cpu, u, offset, value, mask, in->vl, size);
        NEXT;
    }
    fpu_zero(value, sizeof value);
    for (unsigned at = 0; at < in->vl; at += size)
        if (load_element(mask + at, size) & SIGN_BIT(size))
            store_element(value + at, size, read_element(cpu, u, element_linear(cpu, u, offset + at, size, false), size));
    put_vector(cpu, in->reg, value, in->vl);
    NEXT;
}

/* An element of a vector register where it lies in the state. */
static uint8_t *register_element(struct cpu *cpu, unsigned n, unsigned offset)
{
    return offset < 16 ? fpu_xmm(cpu->s.xsave, n) + offset : fpu_ymm_high(cpu->s.xsave, n) + offset - 16;
}

/* Gathers. An element that is done clears its mask, so that after a fault the instruction goes on with the others
 * (SDM vol. 2, VPGATHERDD: elements below the faulting one are complete). */
static void gather(struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    unsigned op = in->op;
    bool wide_index = op == OP_VPGATHERQD || op == OP_VPGATHERQQ || op == OP_VGATHERQPS || op == OP_VGATHERQPD;
    bool narrow = op == OP_VPGATHERDD || op == OP_VPGATHERQD || op == OP_VGATHERDPS || op == OP_VGATHERQPS;
    unsigned size = narrow ? 4 : 8, index_size = wide_index ? 8 : 4;
    unsigned count = in->vl / (size > index_size ? size : index_size);
    uint8_t index[32];

    open_unit(cpu, u);
    get_vector(cpu, in->index, index);
    uint64_t base = operand_base(cpu, u);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *mask = register_element(cpu, in->vvvv, i * size);
        if (load_element(mask, size) & SIGN_BIT(size)) {
            uint64_t number = load_element(index + i * index_size, index_size);
            if (!wide_index)
                number = (uint64_t)(int64_t)(int32_t)number;
            uint64_t linear = element_linear(cpu, u, base + (number << in->scale), size, false);
            store_element(register_element(cpu, in->reg, i * size), size, read_element(cpu, u, linear, size));
        }
        store_element(mask, size, 0);
    }
    uint8_t value[32];
    get_vector(cpu, in->reg, value);
    put_vector(cpu, in->reg, value, count * size);
    fpu_zero(value, sizeof value);
    put_vector(cpu, in->vvvv, value, sizeof value);
    NEXT;
}

const struct exec_def exec_masked[] = {
    {OP_MASKMOVQ, EXEC_ANY_FORM, NULL, maskmov_bytes},
    {OP_MASKMOVDQU, EXEC_ANY_FORM, NULL, maskmov_bytes},
    {OP_VMASKMOVDQU, EXEC_ANY_FORM, NULL, maskmov_bytes},
    {OP_VMASKMOVPS, EXEC_ANY_FORM, NULL, maskmov_elements},
    {OP_VMASKMOVPD, EXEC_ANY_FORM, NULL, maskmov_elements},
    {OP_VPMASKMOVD, EXEC_ANY_FORM, NULL, maskmov_elements},
    {OP_VPMASKMOVQ, EXEC_ANY_FORM, NULL, maskmov_elements},
    {OP_VPGATHERDD, EXEC_ANY_FORM, NULL, gather},
    {OP_VPGATHERDQ, EXEC_ANY_FORM, NULL, gather},
    {OP_VPGATHERQD, EXEC_ANY_FORM, NULL, gather},
    {OP_VPGATHERQQ, EXEC_ANY_FORM, NULL, gather},
    {OP_VGATHERDPS, EXEC_ANY_FORM, NULL, gather},
    {OP_VGATHERDPD, EXEC_ANY_FORM, NULL, gather},
    {OP_VGATHERQPS, EXEC_ANY_FORM, NULL, gather},
    {OP_VGATHERQPD, EXEC_ANY_FORM, NULL, gather},
    {0, 0, NULL, NULL},
};
