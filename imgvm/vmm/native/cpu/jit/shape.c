/* SPDX-License-Identifier: MIT */
#include "shape.h"

#include "../decode/isa.h"
#include "../exec/exec_select.h"

static void size_opcode(struct shape *s, unsigned size, uint32_t byte_code)
{
    s->op.code = byte_code + (size > 1);
    s->op.prefix = size == 2 ? 0x66 : 0;
    s->op.w = size == 8;
    s->size = size;
}

static bool fits8(uint64_t v) { return (uint64_t)(int64_t)(int8_t)v == v; }

/* Byte registers: AH..BH are not reachable beside a REX prefix, which a memory operand at [r14] wants. */
static bool high_byte(const struct insn *in)
{
    return in->reg >= 16 || (!(in->flags & INSN_MEM) && in->rm >= 16);
}

/* Not: 64-bit moffs; a RIP-relative displacement that does not fit. */
static bool addressable(const struct uop *u)
{
    return u->in.asize == 8 ? !u->ea_slow : u->in.base != INSN_REG_RIP;
}

/* Destinations in memory that LOCK is for. */
static bool lockable(const struct insn *in)
{
    return (in->flags & INSN_MEM) && (op_infos[in->op].attributes & OPA_LOCKABLE);
}

static bool lock_is_good(const struct insn *in)
{
    return !(in->flags & INSN_LOCK) || lockable(in);
}

bool shape_of(const struct uop *u, struct shape *s)
{
    static const uint8_t alu[] = {[OP_ADD] = 1, [OP_OR] = 2, [OP_ADC] = 3, [OP_SBB] = 4, [OP_AND] = 5, [OP_SUB] = 6, [OP_XOR] = 7, [OP_CMP] = 8};
    const struct insn *in = &u->in;
    unsigned size = in->osize;
    *s = (struct shape){0};
    if (((in->flags & INSN_MEM) && (!addressable(u) || high_byte(in))) || !lock_is_good(in))
        return false;
    s->op.lock = in->flags & INSN_LOCK;
    if (in->op < ARRAY_LEN(alu) && alu[in->op]) {
        unsigned k = alu[in->op] - 1u;
        bool keeps = in->op != OP_CMP;
        if (in->form == FORM_RM_REG) {
            size_opcode(s, size, k * 8);
            s->reg = in->reg, s->reg_read = true, s->rm_read = true, s->rm_written = keeps;
        } else if (in->form == FORM_REG_RM) {
            size_opcode(s, size, k * 8 + 2);
            s->reg = in->reg, s->reg_read = true, s->reg_written = keeps, s->rm_read = true;
        } else if (in->form == FORM_RM_IMM) {
            size_opcode(s, size, 0x80);
            s->digit = true, s->reg = (uint8_t)k, s->rm_read = true, s->rm_written = keeps;
            s->immediate = (uint8_t)(size == 1 ? 1 : size == 2 ? 2 : 4);
            if (size > 1 && fits8(in->imm))
                s->op.code = 0x83, s->immediate = 1;
        } else {
            return false;
        }
        s->op.rex = size == 1 && !high_byte(in);
        return true;
    }
    switch (in->op) {
    case OP_TEST:
        if (in->form == FORM_RM_REG) {
            size_opcode(s, size, 0x84);
            s->reg = in->reg, s->reg_read = true;
        } else if (in->form == FORM_RM_IMM) {
            size_opcode(s, size, 0xf6);
            s->digit = true, s->immediate = (uint8_t)(size == 1 ? 1 : size == 2 ? 2 : 4);
        } else {
            return false;
        }
        s->rm_read = true;
        break;
    case OP_MOV:
        if (in->form == FORM_RM_REG) {
            size_opcode(s, size, 0x88);
            s->reg = in->reg, s->reg_read = true, s->rm_written = true;
        } else if (in->form == FORM_REG_RM) {
            size_opcode(s, size, 0x8a);
            s->reg = in->reg, s->reg_written = true, s->reg_read = size < 4, s->rm_read = true;
        } else if (in->form == FORM_RM_IMM) {
            bool wide = size == 8 && (uint64_t)(int64_t)(int32_t)in->imm != in->imm;
            if (wide)
                return false;
            size_opcode(s, size, 0xc6);
            s->digit = true, s->rm_written = true, s->immediate = (uint8_t)(size == 1 ? 1 : size == 2 ? 2 : 4);
        } else {
            return false;
        }
        if (!(in->flags & INSN_MEM) && size < 4)
            s->rm_read = true; /* a partial write keeps the rest */
        break;
    case OP_MOVZX:
    case OP_MOVSX:
    case OP_MOVSXD: {
        unsigned from = insn_operand_size(in, 1);
        if (in->form != FORM_REG_RM || from > 4 || (from == 4 && in->op == OP_MOVZX))
            return false;
        s->op.code = from == 4 ? 0x63 : (in->op == OP_MOVZX ? 0x0fb6u : 0x0fbeu) + (from == 2);
        s->op.w = size == 8;
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.rex = from == 1 && !high_byte(in);
        s->size = from;
        s->reg = in->reg, s->reg_written = true, s->reg_read = size < 4, s->rm_read = true;
        return !high_byte(in) || in->reg != RSP; /* that one needs a REX prefix here */
    }
    case OP_INC:
    case OP_DEC:
        size_opcode(s, size, 0xfe);
        s->digit = true, s->reg = in->op == OP_DEC, s->rm_read = s->rm_written = true;
        break;
    case OP_NOT:
    case OP_NEG:
        size_opcode(s, size, 0xf6);
        s->digit = true, s->reg = in->op == OP_NOT ? 2 : 3, s->rm_read = s->rm_written = true;
        break;
    case OP_ROL: case OP_ROR: case OP_RCL: case OP_RCR: case OP_SHL: case OP_SHR: case OP_SAR: {
        static const uint8_t digits[] = {[OP_ROL - OP_ROL] = 0, [OP_ROR - OP_ROL] = 1, [OP_RCL - OP_ROL] = 2, [OP_RCR - OP_ROL] = 3,
                                         [OP_SHL - OP_ROL] = 4, [OP_SHR - OP_ROL] = 5, [OP_SAR - OP_ROL] = 7};
        if (in->form == FORM_RM_CL) {
            size_opcode(s, size, 0xd2);
        } else if (in->form == FORM_RM_IMM || in->form == FORM_RM_1) {
            if (!(in->imm & (size == 8 ? 63 : 31)))
                return false;
            size_opcode(s, size, 0xc0);
            s->immediate = 1;
        } else {
            return false;
        }
        s->digit = true, s->reg = digits[in->op - OP_ROL], s->rm_read = s->rm_written = true;
        break;
    }
    case OP_IMUL:
        if (in->form == FORM_REG_RM) {
            s->op.code = 0x0faf, s->reg_read = true;
        } else if (in->form == FORM_REG_RM_IMM) {
            s->op.code = fits8(in->imm) ? 0x6b : 0x69;
            s->immediate = (uint8_t)(fits8(in->imm) ? 1 : size == 2 ? 2 : 4);
            s->reg_read = size == 2;
        } else if (in->form == FORM_RM) {
            size_opcode(s, size, 0xf6);
            s->digit = true, s->reg = 5, s->rm_read = true;
            s->also_written = 1 << RAX | 1 << RDX;
            break;
        } else {
            return false;
        }
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.w = size == 8;
        s->size = size;
        s->reg = in->reg, s->reg_written = true, s->rm_read = true;
        return true;
    case OP_MUL: case OP_DIV: case OP_IDIV:
        if (in->form != FORM_RM)
            return false;
        size_opcode(s, size, 0xf6);
        s->digit = true, s->reg = in->op == OP_MUL ? 4 : in->op == OP_DIV ? 6 : 7, s->rm_read = true;
        s->traps = in->op != OP_MUL;
        s->also_written = 1 << RAX | 1 << RDX;
        break;
    case OP_XCHG:
        if (in->form != FORM_RM_REG)
            return false;
        size_opcode(s, size, 0x86);
        s->reg = in->reg, s->reg_read = s->reg_written = s->rm_read = s->rm_written = true;
        break;
    case OP_XADD:
        if (in->form != FORM_RM_REG || (!(in->flags & INSN_MEM) && in->reg == in->rm))
            return false;
        size_opcode(s, size, 0x0fc0);
        s->reg = in->reg, s->reg_read = s->reg_written = s->rm_read = s->rm_written = true;
        break;
    case OP_CMPXCHG:
        if (in->form != FORM_RM_REG)
            return false;
        size_opcode(s, size, 0x0fb0);
        s->reg = in->reg, s->reg_read = s->rm_read = s->rm_written = true;
        s->also_written = 1 << RAX;
        break;
    case OP_CMPXCHG8B: case OP_CMPXCHG16B:
        s->op.code = 0x0fc7, s->op.w = in->op == OP_CMPXCHG16B;
        s->size = s->op.w ? 16 : 8;
        s->digit = true, s->reg = 1, s->rm_read = s->rm_written = true;
        s->also_written = 1 << RAX | 1 << RDX;
        s->traps = s->op.w; /* #GP: not aligned */
        return in->flags & INSN_MEM;
    case OP_BSWAP:
        if (in->form != FORM_RM || size < 4 || (in->flags & INSN_MEM))
            return false;
        s->op.code = 0x0f, s->op.w = size == 8, s->digit = true, s->reg = 1; /* 0F C8+rd: as if /1 of 0F */
        s->rm_read = s->rm_written = true;
        return true;
    case OP_BSF: case OP_BSR:
        if (in->form != FORM_REG_RM)
            return false;
        s->op.code = in->op == OP_BSF ? 0x0fbc : 0x0fbd;
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.w = size == 8;
        s->size = size;
        s->reg = in->reg, s->reg_read = s->reg_written = true, s->rm_read = true;
        return true;
    case OP_SHLD: case OP_SHRD:
        if (in->form == FORM_RM_REG_IMM) {
            if (!(in->imm & (size == 8 ? 63 : 31)) || size == 2)
                return false;
            s->immediate = 1;
        } else if (in->form != FORM_RM_REG_CL || size == 2) {
            return false;
        }
        s->op.code = (in->op == OP_SHLD ? 0x0fa4u : 0x0facu) + (s->immediate ? 0 : 1);
        s->op.w = size == 8;
        s->size = size;
        s->reg = in->reg, s->reg_read = true, s->rm_read = s->rm_written = true;
        return true;
    case OP_CMOVCC:
        s->op.code = 0x0f40u | in->cond;
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.w = size == 8;
        s->size = size;
        s->reg = in->reg, s->reg_written = s->reg_read = true, s->rm_read = true;
        return true;
    case OP_SETCC:
        s->op.code = 0x0f90u | in->cond;
        s->op.rex = !high_byte(in);
        s->size = 1;
        s->digit = true, s->rm_written = true, s->rm_read = !(in->flags & INSN_MEM);
        return true;
    case OP_BT: case OP_BTS: case OP_BTR: case OP_BTC: {
        unsigned k = in->op == OP_BT ? 0 : in->op == OP_BTS ? 1 : in->op == OP_BTR ? 2 : 3;
        if (in->form == FORM_RM_REG && (in->flags & INSN_MEM))
            return false; /* SPECIAL_BIT_STRING */
        if (in->form == FORM_RM_REG) {
            s->op.code = 0x0fa3u + 8 * k;
            s->reg = in->reg, s->reg_read = true;
        } else {
            s->op.code = 0x0fba;
            s->digit = true, s->reg = (uint8_t)(4 + k), s->immediate = 1;
        }
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.w = size == 8;
        s->size = size;
        s->rm_read = true, s->rm_written = k != 0;
        return true;
    }
    default:
        return false;
    }
    s->op.rex = size == 1 && !high_byte(in);
    return true;
}

static enum special special_of(const struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    bool mem = in->flags & INSN_MEM, known = !mem || addressable(u);
    bool near = in->osize == 8 || !cpu->code64;
    switch (in->op) {
    case OP_BT: case OP_BTS: case OP_BTR: case OP_BTC: {
        bool string = mem && in->form == FORM_RM_REG && in->osize >= 4;
        return string && cpu->code64 && !u->ea_slow && lock_is_good(in) ? SPECIAL_BIT_STRING : SPECIAL_NONE;
    }
    case OP_MOV_FROM_SREG: return known ? SPECIAL_FROM_SREG : SPECIAL_NONE;
    case OP_CPUID: return SPECIAL_CPUID;
    case OP_RDTSC: case OP_RDTSCP: return cpu->callbacks.time_piece ? SPECIAL_RDTSC : SPECIAL_NONE;
    case OP_CLI: return cpu->cpl == 0 ? SPECIAL_CLI : SPECIAL_NONE;
    case OP_STI: return cpu->cpl == 0 ? SPECIAL_STI : SPECIAL_NONE;
    case OP_SWAPGS: return cpu->cpl == 0 && cpu->code64 ? SPECIAL_SWAPGS : SPECIAL_NONE;
    case OP_PUSHF: return in->osize == 8 ? SPECIAL_PUSHF : SPECIAL_NONE;
    case OP_MFENCE: case OP_SFENCE: return SPECIAL_FENCE;
    case OP_LEA: return known ? SPECIAL_LEA : SPECIAL_NONE;
    case OP_PUSH:
        if (mem)
            return near && known && in->form == FORM_RM ? SPECIAL_PUSH_MEM : SPECIAL_NONE;
        return near && (in->form == FORM_RM || in->form == FORM_IMM) ? SPECIAL_PUSH : SPECIAL_NONE;
    case OP_POP: return near && !mem && in->form == FORM_RM && (in->osize == 8 || in->rm != RSP) ? SPECIAL_POP : SPECIAL_NONE;
    case OP_NOP: case OP_PREFETCH: case OP_PREFETCHW: return SPECIAL_NOP;
    case OP_LFENCE: return SPECIAL_LFENCE;
    case OP_MOV: return in->form == FORM_RM_IMM && !mem && in->osize == 8 ? SPECIAL_MOV_IMM64 : SPECIAL_NONE;
    case OP_LEAVE: return near ? SPECIAL_LEAVE : SPECIAL_NONE;
    case OP_CBW: case OP_CWD: return SPECIAL_WIDEN;
    case OP_JCC: return SPECIAL_JCC;
    case OP_LOOP: case OP_LOOPE: case OP_LOOPNE: case OP_JCXZ: return SPECIAL_COUNTED;
    case OP_JMP: return in->form == FORM_REL ? SPECIAL_JMP : near && known ? SPECIAL_JMP_RM : SPECIAL_NONE;
    case OP_CALL: return in->form == FORM_REL ? SPECIAL_CALL : near && known ? SPECIAL_CALL_RM : SPECIAL_NONE;
    case OP_RET: return near ? SPECIAL_RET : SPECIAL_NONE;
    default: return SPECIAL_NONE;
    }
}

static uint16_t bit(unsigned guest) { return (uint16_t)(1u << (guest & 15)); } /* AH..BH: of RAX..RBX */

unsigned stack_pointer_bytes(const struct cpu *cpu)
{
    return cpu->code64 ? 8 : cpu->stack32 ? 4 : 2;
}

struct reference stack_reference(const struct cpu *cpu, int32_t disp, unsigned bytes, bool write)
{
    uint8_t segment = cpu->code64 || is_flat(cpu, SS) ? INSN_SEG_FLAT : SS;
    return (struct reference){.in = {.base = RSP, .index = INSN_REG_NONE, .segment = segment, .disp = disp,
                                     .asize = (uint8_t)stack_pointer_bytes(cpu)},
                              .bytes = bytes, .write = write};
}

/* Does an operation of `size` bytes move a register as addresses are counted? */
static bool moves_whole(const struct cpu *cpu, unsigned size)
{
    return size == (cpu->code64 ? 8 : 4);
}

static void moves_stack(struct plan *plan, const struct cpu *cpu, int32_t by)
{
    plan->written |= bit(RSP);
    if (cpu->code64 || cpu->stack32)
        plan->moved_register = RSP, plan->moved_by = by;
}

static void plan_special(struct plan *plan, const struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    bool mem = in->flags & INSN_MEM;
    unsigned size = in->osize;
    struct reference stack = stack_reference(cpu, 0, size, false);
    plan->shows_flags = true;
    switch (plan->special) {
    case SPECIAL_LEA:
        plan->written = bit(in->reg);
        if (moves_whole(cpu, in->osize) && in->asize == in->osize && in->base == in->reg && in->index == INSN_REG_NONE)
            plan->moved_register = in->reg, plan->moved_by = in->disp;
        plan->shows_flags = false;
        return;
    case SPECIAL_MOV_IMM64:
        plan->written = bit(in->rm);
        plan->shows_flags = false;
        return;
    case SPECIAL_WIDEN:
        plan->written = in->op == OP_CBW ? bit(RAX) : bit(RDX);
        plan->shows_flags = false;
        return;
    case SPECIAL_NOP: case SPECIAL_FENCE: case SPECIAL_LFENCE: case SPECIAL_SWAPGS:
        plan->shows_flags = false;
        return;
    case SPECIAL_BIT_STRING:
        plan->memory = (struct reference){.in = *in, .bytes = in->osize, .write = in->op != OP_BT};
        return;
    case SPECIAL_FROM_SREG:
        if (mem)
            plan->memory = (struct reference){.in = *in, .bytes = 2, .write = true};
        else
            plan->written = bit(in->rm);
        return;
    case SPECIAL_CPUID:
        plan->written = bit(RAX) | bit(RBX) | bit(RCX) | bit(RDX);
        plan->loses_flags = true;
        return;
    case SPECIAL_RDTSC:
        plan->written = bit(RAX) | bit(RDX) | (in->op == OP_RDTSCP ? bit(RCX) : 0);
        plan->loses_flags = true;
        return;
    case SPECIAL_PUSH_MEM:
        plan->memory = (struct reference){.in = *in, .bytes = size};
        moves_stack(plan, cpu, -(int32_t)size);
        return;
    case SPECIAL_PUSH: case SPECIAL_PUSHF: case SPECIAL_CALL:
        plan->memory = stack_reference(cpu, -(int32_t)size, size, true);
        moves_stack(plan, cpu, -(int32_t)size);
        return;
    case SPECIAL_POP:
        plan->memory = stack;
        plan->written = bit(RSP) | bit(in->rm);
        if (in->rm != RSP)
            moves_stack(plan, cpu, (int32_t)size);
        return;
    case SPECIAL_RET:
        plan->memory = stack;
        plan->written = bit(RSP);
        return;
    case SPECIAL_COUNTED:
        plan->written = in->op == OP_JCXZ ? 0 : bit(RCX);
        return;
    case SPECIAL_LEAVE:
        plan->memory = stack;
        plan->memory.in.base = RBP;
        plan->written = bit(RSP) | bit(RBP);
        return;
    case SPECIAL_JMP_RM: case SPECIAL_CALL_RM:
        if (mem)
            plan->memory = (struct reference){.in = *in, .bytes = size};
        return;
    default:
        return;
    }
}

static void plan_shape(struct plan *plan, const struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    const struct shape *s = &plan->shape;
    bool mem = in->flags & INSN_MEM;
    plan->written = s->also_written | (!s->digit && s->reg_written ? bit(s->reg) : 0) | (!mem && s->rm_written ? bit(in->rm) : 0);
    plan->shows_flags = mem || s->traps;
    if (mem)
        plan->memory = (struct reference){.in = *in, .bytes = s->size, .write = s->rm_written};
    if (mem || !moves_whole(cpu, in->osize))
        return;
    bool by_constant = in->form == FORM_RM_IMM && (in->op == OP_ADD || in->op == OP_SUB);
    bool fits = in->osize == 4 || (int64_t)in->imm == (int32_t)in->imm;
    if (by_constant && fits && (int32_t)in->imm != INT32_MIN)
        plan->moved_register = in->rm, plan->moved_by = in->op == OP_ADD ? (int32_t)in->imm : -(int32_t)in->imm;
}

static bool writes_memory(const struct uop *u)
{
    return (op_infos[u->in.op].attributes & (OPA_MEM_RMW | OPA_NO_MEM_READ)) && exec_memory_is_destination(&u->in);
}

static bool plan_native(struct plan *plan, const struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    bool mem = in->flags & INSN_MEM;
    uint8_t code[NATIVE_MAX_BYTES];
    struct native_registers registers = {.index = NATIVE_NO_INDEX};
    if (mem && op_infos[in->op].feature == FEATURE_SHA)
        return false; /* not every host's processor checks their alignment */
    if (!cpu->code64 && (in->op == OP_VZEROALL || in->op == OP_VZEROUPPER))
        return false; /* registers 8 to 15 are kept */
    if (op_infos[in->op].kind != OPK_NATIVE || !u->native || (mem && !addressable(u)) || !native_encode(code, in, &registers))
        return false;
    unsigned in_memory = 0; /* of those that are not pinned, two fit the temporaries, one beside an address */
    for (unsigned r = 13; r < 16; r++)
        in_memory += registers.used >> r & 1;
    if (in_memory > (mem ? 1u : 2u))
        return false;
    plan->loses_flags = u->unit; /* the check of the unit */
    plan->native_used = registers.used;
    plan->written = registers.written;
    plan->shows_flags = true;
    if (mem)
        plan->memory = (struct reference){.in = *in, .bytes = u->mem_size, .write = writes_memory(u)};
    return true;
}

static bool is_moffs(const struct insn *in)
{
    return in->flags & INSN_MEM && !in->modrm && in->base == INSN_REG_NONE && in->index == INSN_REG_NONE;
}

/* Outside 64-bit mode flat segments are as if there were none. */
static void plan_memory(struct plan *plan, const struct cpu *cpu)
{
    struct insn *in = &plan->memory.in;
    if (!plan->memory.bytes)
        return;
    if (is_moffs(in))
        in->disp = (int32_t)in->imm;
    if (cpu->code64)
        return;
    if (in->segment <= DS && is_flat(cpu, in->segment) && !(in->segment == CS && plan->memory.write))
        in->segment = INSN_SEG_FLAT;
}

void plan_by_executor(struct plan *plan)
{
    *plan = (struct plan){.way = BY_EXECUTOR, .moved_register = 16, .written = 0xffff, .shows_flags = true};
}

void plan_instruction(struct plan *plan, struct cpu *cpu, const struct uop *u)
{
    *plan = (struct plan){.moved_register = 16};
    if (u->in.length) {
        uint16_t feature = op_infos[u->in.op].feature;
        bool known = feature == FEATURE_BASE || cpuid_has(&cpu->cpuid, (enum cpu_feature)feature);
        if (known && plan_native(plan, cpu, u)) {
            plan->way = BY_NATIVE;
            plan_memory(plan, cpu);
            return;
        }
        if (known && (plan->special = special_of(cpu, u)) != SPECIAL_NONE) {
            plan->way = BY_SPECIAL;
            plan_special(plan, cpu, u);
            plan_memory(plan, cpu);
            return;
        }
        if (known && shape_of(u, &plan->shape)) {
            plan->way = BY_SHAPE;
            plan_shape(plan, cpu, u);
            plan_memory(plan, cpu);
            return;
        }
    }
    plan_by_executor(plan);
}
