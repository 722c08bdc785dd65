/* SPDX-License-Identifier: MIT */
/* IN OUT INS OUTS: the one port-I/O path of the software processor, all sizes, modes and REP forms, behind the
 * permission check of SDM vol. 1, 18.5. */
#include "debug.h"
#include "exec.h"

static void check_permission(struct cpu *cpu, const struct uop *u, uint16_t port, unsigned size)
{
    unsigned iopl = (unsigned)(cpu->eflags & EFLAGS_IOPL) >> 12;
    bool v86 = cpu->eflags & EFLAGS_VM;
    if (!(cpu->s.cr0 & CR0_PE) || (!v86 && cpu->cpl <= iopl))
        return;
    const struct x86_segment *tr = &cpu->s.tr;
    unsigned type = tr->attributes & SEG_TYPE;
    if (!(tr->attributes & SEG_P) || (type != 9 && type != 11) || tr->limit < 103)
        raise_gp(cpu, u, 0);
    uint64_t map = access_system_read(cpu, u, tr->base + 102, 2);
    if (map + port / 8 + 1 > tr->limit)
        raise_gp(cpu, u, 0);
    uint64_t bits = access_system_read(cpu, u, tr->base + map + port / 8, 2);
    if (bits >> (port % 8) & (BIT(size) - 1))
        raise_gp(cpu, u, 0);
}

static uint32_t port_read(struct cpu *cpu, uint16_t port, unsigned size)
{
    cpu_fpu_leave(cpu);
    return cpu->callbacks.port_read(cpu->opaque, port, size);
}

static void port_write(struct cpu *cpu, uint16_t port, unsigned size, uint32_t value)
{
    cpu_fpu_leave(cpu);
    cpu->callbacks.port_write(cpu->opaque, port, size, value & (uint32_t)bits_mask_bytes(size));
}

/* in->imm is the port of the immediate forms (FORM_... with an Ib operand), DX of the others. */
static uint16_t port_of(const struct cpu *cpu, const struct uop *u, bool immediate)
{
    return immediate ? (uint8_t)u->in.imm : (uint16_t)cpu->gpr[RDX];
}

static bool port_is_immediate(const struct uop *u)
{
    uint8_t opcode = isa_rows[u->in.row].opcode;
    return opcode >= 0xe4 && opcode <= 0xe7;
}

static void in(struct cpu *cpu, const struct uop *u)
{
    unsigned size = MIN(u->in.osize, 4);
    uint16_t port = port_of(cpu, u, port_is_immediate(u));
    check_permission(cpu, u, port, size);
    cpu_check_access(cpu, u, true, port);
    reg_write(cpu, RAX, size, port_read(cpu, port, size));
    debug_check_port(cpu, port, size);
    END_BLOCK;
}

static void out(struct cpu *cpu, const struct uop *u)
{
    unsigned size = MIN(u->in.osize, 4);
    uint16_t port = port_of(cpu, u, port_is_immediate(u));
    check_permission(cpu, u, port, size);
    cpu_check_access(cpu, u, true, port);
    port_write(cpu, port, size, (uint32_t)cpu->gpr[RAX]);
    debug_check_port(cpu, port, size);
    END_BLOCK;
}

static uint64_t string_linear(struct cpu *cpu, const struct uop *u, unsigned index, unsigned segment, unsigned size, bool write)
{
    uint64_t offset = cpu->gpr[index] & bits_mask_bytes(u->in.asize);
    if (cpu->code64)
        return offset + cpu->seg_base[segment == ES ? INSN_SEG_FLAT : segment];
    return access_segment(cpu, u, segment, offset, size, write);
}

static void string_io(struct cpu *cpu, const struct uop *u, bool input)
{
    unsigned size = MIN(u->in.osize, 4);
    unsigned index = input ? RDI : RSI;
    uint16_t port = (uint16_t)cpu->gpr[RDX];
    bool repeated = u->in.flags & (INSN_REP | INSN_REPNE);
    int64_t step = cpu->eflags & EFLAGS_DF ? -(int64_t)size : (int64_t)size;
    check_permission(cpu, u, port, size);
    cpu_check_access(cpu, u, true, port);
    for (;;) {
        uint64_t count = cpu->gpr[RCX] & bits_mask_bytes(u->in.asize);
        if (repeated && !count)
            break;
        uint64_t linear = string_linear(cpu, u, index, input ? ES : u->in.segment, size, input);
        if (input) {
            /* the port is read only once the store cannot fault any more */
            access_probe_write(cpu, u, linear, size);
            mem_write(cpu, u, linear, size, port_read(cpu, port, size));
        } else {
            port_write(cpu, port, size, (uint32_t)mem_read(cpu, u, linear, size));
        }
        debug_check_port(cpu, port, size);
        reg_write(cpu, index, u->in.asize, cpu->gpr[index] + (uint64_t)step);
        if (!repeated)
            break;
        reg_write(cpu, RCX, u->in.asize, count - 1);
        if (count > 1 && ((atomic_load_explicit(&cpu->requests, memory_order_relaxed) & cpu->request_mask) | cpu->trap)) {
            cpu->rip = cpu_this_rip(cpu, u) & cpu_rip_mask(cpu);
            leave_block(cpu, u, false);
        }
    }
    END_BLOCK;
}

static void ins(struct cpu *cpu, const struct uop *u)
{
    string_io(cpu, u, true);
}

static void outs(struct cpu *cpu, const struct uop *u)
{
    string_io(cpu, u, false);
}

const struct exec_def exec_io[] = {
    {OP_IN, EXEC_ANY_FORM, NULL, in},
    {OP_OUT, EXEC_ANY_FORM, NULL, out},
    {OP_INS, EXEC_ANY_FORM, NULL, ins},
    {OP_OUTS, EXEC_ANY_FORM, NULL, outs},
    {0, 0, NULL, NULL},
};
