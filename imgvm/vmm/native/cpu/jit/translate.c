/* SPDX-License-Identifier: MIT */
/* From uops to host code. The integer core is re-encoded with renamed registers and checked memory operands, vector rows
 * run as they are, and everything else calls its executor. */
#include "emit.h"
#include "perf_map.h"

#include "../exec/exec_select.h"

struct cold *emit_cold(struct emitter *e, enum cold_kind kind, unsigned i)
{
    struct cold *cold = &e->cold[e->colds++];
    *cold = (struct cold){.kind = kind, .index = i, .flags = e->flags};
    return cold;
}

void emit_call_executor(struct emitter *e, unsigned i)
{
    mov_imm64(&e->a, T0, (uint64_t)e->block);
    mov_imm64(&e->a, T1, offsetof(struct block, uops) + i * sizeof(struct uop));
    jit_put_call(e->jit, &e->a, e->jit->callout);
}

static void put_immediate(struct emitter *e, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        put8(&e->a, (value >> (8 * i)) & 0xff);
}

/* ---- rows that are encoded anew ---- */

/* May the register operand be the processor's memory, where it lives? Not if a write to half of it clears the rest, nor
 * where memory has another meaning. */
static bool serves_in_memory(const struct insn *in, const struct shape *s)
{
    if (s->rm_written && (s->size == 4 || in->osize == 4))
        return false;
    switch (in->op) {
    case OP_XCHG: case OP_XADD: case OP_CMPXCHG: case OP_BSWAP: /* a lock; not encoded */
    case OP_BT: case OP_BTS: case OP_BTR: case OP_BTC: /* a string of bits */
        return false;
    default:
        return true;
    }
}

/* MOV, and what has a form for either direction, from a register in memory to one of the host's: in one instruction. */
static bool put_from_memory_register(struct emitter *e, const struct insn *in, const struct shape *s)
{
    bool either = (in->op == OP_ADD || in->op == OP_OR || in->op == OP_ADC || in->op == OP_SBB || in->op == OP_AND ||
                   in->op == OP_SUB || in->op == OP_XOR || in->op == OP_CMP || in->op == OP_MOV);
    if (!either || in->form != FORM_RM_REG || (in->flags & INSN_MEM) || in->osize == 1 || host_register(s->reg) != NO_REG)
        return false;
    unsigned r = host_register(in->rm);
    if (r == NO_REG)
        return false;
    struct opcode op = s->op;
    op.code |= 2; /* r, r/m */
    op_cpu(&e->a, op, r, CPU(gpr) + 8 * s->reg);
    return true;
}

static void put_shape(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct uop *u = emit_uop(e, i);
    const struct insn *in = &u->in;
    const struct shape *s = &e->plans[i].shape;
    const struct op_info *info = &op_infos[in->op];
    bool mem = in->flags & INSN_MEM;
    const uint8_t *start = a->p;
    struct place at = {NO_REG, NO_REG, 0, 0};
    unsigned reg = s->reg, rm = T0;
    bool reg_in_memory = !s->digit && host_register(s->reg) == NO_REG;
    /* flags it reads, or leaves some of as they were */
    bool needs_flags = info->flags_read || (info->flags_written && (e->wanted[i + 1] & ~flags_killed(u)));
    if (!needs_flags && put_from_memory_register(e, in, s)) {
        memory_keep_addend(e, start);
        return;
    }
    if (mem) {
        if (needs_flags)
            flags_before_operand(e);
        at = memory_operand(e, i, reg_in_memory || needs_flags);
    }
    if (needs_flags)
        flags_to_eflags(e);
    if (!s->digit) {
        reg = host_register(s->reg);
        if (reg == NO_REG) {
            reg = T1;
            if (s->reg_read)
                load_temp(e, T1, s->reg);
        }
    }
    bool in_place = false;
    if (!mem) {
        rm = host_register(in->rm);
        in_place = rm == NO_REG && serves_in_memory(in, s);
        if (rm == NO_REG && !in_place) {
            rm = T0;
            if (s->rm_read)
                load_temp(e, T0, in->rm);
        }
    }
    if (s->traps)
        emit_cold(e, COLD_TRAP, i)->pc = a->p;
    if (mem)
        op_place(a, s->op, reg, at);
    else if (in_place)
        op_cpu_imm(a, s->op, reg, CPU(gpr) + 8 * in->rm, s->immediate);
    else
        op_rr(a, s->op, reg, rm);
    put_immediate(e, s->immediate, in->imm);
    if (reg_in_memory && s->reg_written)
        store_temp(e, T1, s->reg);
    if (!mem && !in_place && rm == T0 && s->rm_written)
        store_temp(e, T0, in->rm);
    if (reg != T1 && !needs_flags)
        memory_keep_addend(e, start);
}

/* ---- rows that run as themselves ---- */

_Static_assert(offsetof(struct cpu, fpu_away) == offsetof(struct cpu, fpu_unready) + 1, "tested as one word");

/* The unit must be there and hold the guest's state. Nothing but an executor that was called in between changes that. */
static void put_unit_check(struct emitter *e, unsigned i, unsigned unit)
{
    struct assembler *a = &e->a;
    if (!unit || !(unit & ~e->fpu_units))
        return;
    flags_yield(e, i);
    op_cpu_imm(a, OPC(0xf7), 0, CPU(fpu_unready), 4); /* test */
    put32(a, 0x100u | unit);
    struct cold *cold = emit_cold(e, COLD_UNIT, i);
    cold->patch = put_jcc(a, CC_NE);
    cold->done = a->p;
    e->fpu_units |= unit;
}

static void unit_cold(struct emitter *e, const struct cold *cold)
{
    struct assembler *a = &e->a;
    mov_imm64(a, T1, emit_uop(e, cold->index)->unit);
    jit_put_call(e->jit, a, e->jit->enter_unit);
    patch_jump(put_jcc(a, CC_AE), cold->done);
    flags_to_cc_from(e, &cold->flags);
    emit_call_executor(e, cold->index);
    PUT(a, 0x0f, 0x0b); /* it raises what is due */
}

static void put_native(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct uop *u = emit_uop(e, i);
    const struct plan *plan = &e->plans[i];
    const struct op_info *info = &op_infos[u->in.op];
    bool mem = u->in.flags & INSN_MEM;
    put_unit_check(e, i, u->unit);
    const uint8_t *start = a->p;
    bool needs_flags = info->flags_read || (info->flags_written && ((e->wanted[i + 1] & ~flags_killed(u)) || info->flags_undefined));
    bool takes_temps = needs_flags || plan->native_used >> 13;
    struct place at = {T0, NO_REG, 0, 0};
    if (mem) {
        if (needs_flags)
            flags_before_operand(e);
        at = memory_operand(e, i, takes_temps);
    }
    if (needs_flags)
        flags_to_eflags(e);
    struct native_registers registers = {.base = at.base, .index = at.index, .disp = at.disp};
    unsigned temps[] = {T1, T0}, used = 0;
    for (unsigned r = 0; r < 16; r++) {
        registers.host[r] = (uint8_t)host_register(r);
        if (registers.host[r] != NO_REG || !(plan->native_used >> r & 1))
            continue;
        registers.host[r] = (uint8_t)temps[used++];
        load_temp(e, registers.host[r], r);
    }
    uint8_t code[NATIVE_MAX_BYTES];
    unsigned bytes = native_encode(code, &u->in, &registers);
    if (u->unit)
        emit_cold(e, COLD_TRAP, i)->pc = a->p;
    put_bytes(a, code, bytes);
    for (unsigned r = 13; r < 16; r++)
        if (plan->written >> r & 1)
            store_temp(e, registers.host[r], r);
    if (!takes_temps)
        memory_keep_addend(e, start);
}

/* ---- rows of their own ---- */

static void put_lea(struct emitter *e, const struct uop *u)
{
    const struct insn *in = &u->in;
    unsigned r = host_register(in->reg);
    memory_offset(e, in, in->disp);
    if (r == NO_REG && in->osize == 2) {
        load_temp(e, T1, in->reg);
        op_rr(&e->a, OPCS(0x89, 2), T0, T1);
        store_temp(e, T1, in->reg);
    } else {
        if (r != NO_REG || in->osize == 4)
            op_rr(&e->a, OPCS(0x89, in->osize), T0, r == NO_REG ? T0 : r);
        if (r == NO_REG)
            store_temp(e, T0, in->reg);
    }
}

static void put_push(struct emitter *e, unsigned i)
{
    const struct insn *in = &emit_uop(e, i)->in;
    bool imm = in->form == FORM_IMM;
    unsigned r = imm ? NO_REG : host_register(in->rm);
    struct place at = memory_operand(e, i, r == NO_REG);
    if (r == NO_REG) {
        r = T1;
        if (imm)
            mov_imm64(&e->a, T1, in->imm);
        else
            load_temp(e, T1, in->rm);
    }
    op_place(&e->a, OPCS(0x89, in->osize), r, at);
    memory_move_stack(e, -(int32_t)in->osize, T0);
}

static void put_push_memory(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    unsigned size = emit_uop(e, i)->in.osize;
    struct place at = memory_operand(e, i, false);
    op_place(a, OPCS(0x8b, size), T1, at);
    op_cpu(a, OPCW(0x89), T1, CPU(call_target));
    at = memory_push(e, i);
    op_cpu(a, OPCW(0x8b), T1, CPU(call_target));
    op_place(a, OPCS(0x89, size), T1, at);
    memory_move_stack(e, -(int32_t)size, T0);
}

/* As cli of exec/system.c and cpu_update_requests do it, in ring 0. */
static void put_cli(struct emitter *e, unsigned i)
{
    flags_yield(e, i);
    op_cpu_imm(&e->a, OPC(0x81), ALU_AND, CPU(eflags), 4);
    put32(&e->a, ~EFLAGS_IF);
    op_cpu_imm(&e->a, OPC(0x81), ALU_AND, CPU(request_mask), 4);
    put32(&e->a, ~CPU_REQUEST_INTR);
}

/* As sti of exec/exec_flags.c does it, in ring 0, where no interrupt waits. The next instruction of the block stands for
 * the shadow: it is not polled before that has run. */
static void put_sti(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    flags_yield(e, i);
    op_cpu_imm(a, OPC(0xf7), 0, CPU(requests), 4); /* test */
    put32(a, CPU_REQUEST_INTR);
    emit_cold(e, COLD_EXECUTOR, i)->patch = put_jcc(a, CC_NE);
    op_cpu_imm(a, OPC(0x81), ALU_OR, CPU(eflags), 4);
    put32(a, EFLAGS_IF);
    op_cpu_imm(a, OPC(0x81), ALU_OR, CPU(request_mask), 4);
    put32(a, CPU_REQUEST_INTR);
}

static void put_swapgs(struct emitter *e)
{
    struct assembler *a = &e->a;
    op_cpu(a, OPCW(0x8b), T0, CPU(seg_base[GS]));
    op_cpu(a, OPCW(0x8b), T1, CPU(s.kernel_gs_base));
    op_cpu(a, OPCW(0x89), T0, CPU(s.kernel_gs_base));
    op_cpu(a, OPCW(0x89), T1, CPU(seg_base[GS]));
    op_cpu(a, OPCW(0x89), T1, CPU(s.segment[GS].base));
}

static void put_from_sreg(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct insn *in = &emit_uop(e, i)->in;
    uint32_t selector = CPU(s.segment) + in->reg * (uint32_t)sizeof(struct x86_segment) + offsetof(struct x86_segment, selector);
    static const struct opcode word = {.code = 0x89, .prefix = 0x66};
    if (in->flags & INSN_MEM) {
        struct place at = memory_operand(e, i, true);
        op_cpu(a, OPC(0x0fb7), T1, selector);
        op_place(a, word, T1, at);
        return;
    }
    unsigned r = fetch_register(e, in->rm, T0);
    if (in->osize == 2) {
        op_cpu(a, OPC(0x0fb7), T1, selector);
        op_rr(a, word, T1, r);
    } else {
        op_cpu(a, OPC(0x0fb7), r, selector);
    }
    if (r == T0)
        store_temp(e, T0, in->rm);
}

/* What was asked before. */
static void put_cpuid(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const uint32_t memo = CPU(cpuid_memo);
    _Static_assert(sizeof(struct cpuid_memo) == 32, "the index is made by one shift");
    flags_yield(e, i);
    op_rr(a, OPC(0x89), H_RAX, T1);
    alu_imm(a, ALU_AND, false, T1, CPUID_MEMOS - 1);
    shift_imm(a, SHIFT_SHL, false, T1, 5);
    op_cpu_at(a, OPC(0x3b), H_RAX, T1, memo + offsetof(struct cpuid_memo, leaf));
    emit_cold(e, COLD_EXECUTOR, i)->patch = put_jcc(a, CC_NE);
    op_cpu_at(a, OPC(0x3b), H_RCX, T1, memo + offsetof(struct cpuid_memo, subleaf));
    emit_cold(e, COLD_EXECUTOR, i)->patch = put_jcc(a, CC_NE);
    op_cpu_at(a, OPC(0x83), ALU_CMP, T1, memo + offsetof(struct cpuid_memo, known));
    put8(a, 0);
    emit_cold(e, COLD_EXECUTOR, i)->patch = put_jcc(a, CC_EQUAL);
    static const uint8_t outputs[] = {H_RAX, H_RBX, H_RCX, H_RDX};
    for (unsigned k = 0; k < ARRAY_LEN(outputs); k++)
        op_cpu_at(a, OPC(0x8b), outputs[k], T1, memo + offsetof(struct cpuid_memo, out) + 4 * k);
}

/* BT, BTS, BTR, BTC of a string of bits in memory: its element was found by the index, here the rest of it counts. */
static void put_bit_string(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct insn *in = &emit_uop(e, i)->in;
    bool keeps = e->wanted[i + 1] & ~flags_killed(emit_uop(e, i));
    if (keeps)
        flags_before_operand(e);
    struct place at = memory_bit_string(e, i);
    unsigned r = fetch_register(e, in->reg, T1);
    if (r != T1)
        mov_rr(a, T1, r);
    alu_imm(a, ALU_AND, false, T1, in->osize * 8u - 1);
    if (keeps) {
        op_cpu(a, OPC(0x89), T1, CPU(call_target));
        flags_to_eflags(e);
        op_cpu(a, OPC(0x8b), T1, CPU(call_target));
    }
    unsigned k = in->op == OP_BT ? 0 : in->op == OP_BTS ? 1 : in->op == OP_BTR ? 2 : 3;
    op_place(a, (struct opcode){.code = 0x0fa3u + 8 * k, .w = in->osize == 8, .lock = in->flags & INSN_LOCK}, T1, at);
}

static void put_pushf(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    flags_to_cc(e);
    struct place at = memory_operand(e, i, true);
    op_cpu(a, OPC(0x0fb6), T1, CPU(cc)); /* OF */
    shift_imm(a, SHIFT_SHL, false, T1, 11);
    op_cpu(a, OPC(0x89), T1, CPU(refilled));
    op_cpu(a, OPC(0x0fb6), T1, CPU(cc) + 1);
    op_cpu(a, OPC(0x0b), T1, CPU(refilled));
    op_cpu(a, OPC(0x0b), T1, CPU(eflags));
    alu_imm(a, ALU_AND, false, T1, ~(uint32_t)EFLAGS_RF);
    op_place(a, OPCW(0x89), T1, at);
    memory_move_stack(e, -8, T0);
    e->flags.in_eflags = false;
}

static void put_pop(struct emitter *e, unsigned i)
{
    const struct insn *in = &emit_uop(e, i)->in;
    struct place at = memory_operand(e, i, false);
    unsigned r = host_register(in->rm);
    op_place(&e->a, OPCS(0x8b, in->osize), r == NO_REG ? T1 : r, at);
    if (in->rm != RSP)
        memory_move_stack(e, in->osize, T0);
    if (r == NO_REG)
        store_temp(e, T1, in->rm);
}

static void put_leave(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    unsigned size = emit_uop(e, i)->in.osize, bytes = stack_pointer_bytes(e->cpu);
    struct place at = memory_operand(e, i, true);
    op_rm(a, OPCS(0x8d, bytes == 8 ? 8 : 4), bytes == 2 ? T1 : H_R13, H_RBP, (int32_t)size);
    if (bytes == 2)
        op_rr(a, OPCS(0x89, 2), T1, H_R13);
    op_place(a, OPCS(0x8b, size), H_RBP, at);
}

static void put_special(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct uop *u = emit_uop(e, i);
    const struct insn *in = &u->in;
    unsigned r;
    switch (e->plans[i].special) {
    case SPECIAL_LEA:
        put_lea(e, u);
        break;
    case SPECIAL_MOV_IMM64:
        r = host_register(in->rm);
        mov_imm64(a, r == NO_REG ? T0 : r, in->imm);
        if (r == NO_REG)
            store_temp(e, T0, in->rm);
        break;
    case SPECIAL_WIDEN:
        if (in->osize == 2)
            put8(a, 0x66);
        if (in->osize == 8)
            put8(a, 0x48);
        put8(a, in->op == OP_CBW ? 0x98 : 0x99);
        break;
    case SPECIAL_PUSH:
        put_push(e, i);
        break;
    case SPECIAL_PUSH_MEM:
        put_push_memory(e, i);
        break;
    case SPECIAL_PUSHF:
        put_pushf(e, i);
        break;
    case SPECIAL_FENCE:
        PUT(a, 0x0f, 0xae);
        put8(a, in->op == OP_MFENCE ? 0xf0 : 0xf8);
        break;
    case SPECIAL_CLI:
        put_cli(e, i);
        break;
    case SPECIAL_STI:
        put_sti(e, i);
        break;
    case SPECIAL_SWAPGS:
        put_swapgs(e);
        break;
    case SPECIAL_BIT_STRING:
        put_bit_string(e, i);
        break;
    case SPECIAL_FROM_SREG:
        put_from_sreg(e, i);
        break;
    case SPECIAL_CPUID:
        put_cpuid(e, i);
        break;
    case SPECIAL_RDTSC:
        time_read(e, i);
        break;
    case SPECIAL_LFENCE:
        time_fence(e);
        break;
    case SPECIAL_POP:
        put_pop(e, i);
        break;
    case SPECIAL_LEAVE:
        put_leave(e, i);
        break;
    default: /* SPECIAL_NOP */
        break;
    }
}

/* ---- a block ---- */

static bool is_sti(const struct plan *plan)
{
    return plan->way == BY_SPECIAL && plan->special == SPECIAL_STI;
}

static bool is_branch(const struct plan *plan)
{
    return plan->way == BY_SPECIAL && plan->special >= SPECIAL_JCC;
}

/* It serializes (SDM vol. 3, 9.3): what other processors wrote before is seen by what comes next. */
static bool is_cpuid(const struct plan *plan)
{
    return plan->way == BY_SPECIAL && plan->special == SPECIAL_CPUID;
}

/* Code of instruction i, which is no branch. */
static void put_instruction(struct emitter *e, unsigned i)
{
    const struct plan *plan = &e->plans[i];
    const struct uop *u = emit_uop(e, i);
    unsigned first_cold = e->colds;
    if (plan->way == BY_EXECUTOR) {
        flags_to_cc(e);
        emit_call_executor(e, i);
        e->flags = (struct flag_state){.in_cc = true, .recipe = NO_RECIPE};
        memory_forget(e);
        return;
    }
    flags_before_change(e, i, plan->written);
    if (plan->way == BY_SHAPE)
        put_shape(e, i);
    else if (plan->way == BY_NATIVE)
        put_native(e, i);
    else
        put_special(e, i);
    flags_after_change(e, plan->written);
    if (op_infos[u->in.op].flags_written)
        flags_made(e, i);
    emit_set_resume(e, first_cold);
    unsigned moved = plan->moved_register < 16 ? 1u << plan->moved_register : 0;
    memory_changed(e, plan->written & ~moved);
    memory_moved(e, plan->moved_register, plan->moved_by);
}

/* The best place to poll, before the branch at the end: flags need no saving there. */
static bool good_for_poll(const struct emitter *e, unsigned i)
{
    return e->flags.in_cc || (e->flags.recipe != NO_RECIPE && flags_killed(emit_uop(e, i)) == EFLAGS_STATUS);
}

static void put_cold_paths(struct emitter *e)
{
    struct assembler *a = &e->a;
    for (unsigned k = 0; k < e->colds; k++) {
        const struct cold *cold = &e->cold[k];
        if (cold->patch)
            patch_jump(cold->patch, a->p);
        if (cold->kind == COLD_ACCESS || cold->kind == COLD_LIMIT) {
            memory_cold(e, cold);
        } else if (cold->kind == COLD_UNIT) {
            unit_cold(e, cold);
        } else if (cold->kind == COLD_EXECUTOR || cold->kind == COLD_TRAP) {
            if (cold->kind == COLD_TRAP)
                e->jit->traps[e->jit->trap_count++] = (struct jit_trap){(uint32_t)(cold->pc - e->jit->writable),
                                                                        (uint32_t)(a->p - e->jit->writable)};
            flags_to_cc_from(e, &cold->flags);
            emit_call_executor(e, cold->index);
            if (!cold->resume) {
                PUT(a, 0x0f, 0x0b); /* a branch: its executor set cpu->rip and the call did not come back */
                continue;
            }
            memory_resume(e, cold);
        } else {
            branch_cold(e, cold);
        }
    }
}

/* Code at addresses that only five-level paging has is interpreted. */
static bool is_48_bits(uint64_t v) { return (uint64_t)((int64_t)(v << 16) >> 16) == v; }

static bool targets_fit(const struct block *block, uint64_t rip)
{
    bool fit = is_48_bits(rip + block->bytes);
    for (unsigned i = 0; i < block->count; i++) {
        const struct uop *u = &block->uops[i];
        bool relative = u->in.length && u->in.form == FORM_REL;
        fit &= !relative || is_48_bits(rip + u->next + u->in.imm);
    }
    return fit || block->mode != INSN_MODE_64;
}

/* May the code be told by cpu->code_page where it is? */
static bool may_float(const struct block *block, uint64_t rip)
{
    bool near = rip < JIT_FLOATS_BELOW;
    for (unsigned i = 0; i < block->count; i++) {
        const struct uop *u = &block->uops[i];
        int64_t imm = (int64_t)u->in.imm, disp = u->in.disp;
        if (u->in.length && u->in.form == FORM_REL)
            near &= imm < JIT_FLOATS_FAR && imm > -JIT_FLOATS_FAR;
        if (u->in.length && (u->in.flags & INSN_MEM) && u->in.base == INSN_REG_RIP)
            near &= disp < JIT_FLOATS_FAR && disp > -JIT_FLOATS_FAR;
    }
    return near;
}

/* See jit_expect_epoch. */
static void put_epoch_check(struct emitter *e)
{
    op_cpu_imm(&e->a, OPC(0x81), ALU_CMP, CPU(mmu.epoch), 4);
    put32(&e->a, 0);
    struct cold *cold = emit_cold(e, COLD_POLL, 0);
    cold->patch = put_jcc(&e->a, CC_NE);
    cold->uncounted = true;
}

/* The instructions, from wherever the flags are at the first. */
static void put_body(struct emitter *e)
{
    struct block *block = e->block;
    e->wants_poll = branch_wants_poll(e) && !e->cpu->unlinked; /* else it comes back anyway */
    for (unsigned i = 0; i < block->count; i++) {
        if (is_branch(&e->plans[i])) {
            flags_before_change(e, i, e->plans[i].written);
            if (i + 1 == block->count) {
                branch_emit(e, i);
                return;
            }
            branch_aside(e, i);
            continue;
        }
        bool here = e->wants_poll && (good_for_poll(e, i) || is_sti(&e->plans[i]));
        if (here || (is_cpuid(&e->plans[i]) && !e->cpu->unlinked))
            branch_poll(e, i);
        put_instruction(e, i);
    }
    branch_fall_through(e);
}

#define LOOP_ALIGNMENT 64 /* a line of the host's cache */

/* Once more, for those who come from the end: the flags are where the end has them, in EFLAGS or to be made again, and
 * need not be saved on the way round. */
static void put_loop(struct emitter *e)
{
    memory_forget(e);
    e->held_at = NULL;
    e->flags = e->loop_flags;
    while ((e->a.p - e->a.start) % LOOP_ALIGNMENT)
        put8(&e->a, 0xcc); /* nobody comes by here */
    patch_jump(e->loop_patch, e->a.p);
    e->loop_head = e->a.p;
    put_body(e);
}

static void put_block(struct emitter *e)
{
    struct block *block = e->block;
    if (block->across_now)
        put_epoch_check(e);
    if (e->jit->count) {
        op_cpu_imm(&e->a, OPCW(0x81), ALU_ADD, CPU(instructions), 4);
        put32(&e->a, block->count);
    }
    e->loops = branch_loops(e);
    e->loop_head = NULL;
    put_body(e);
    if (e->loops)
        put_loop(e);
}

bool jit_translate(struct cpu *cpu, struct translator *jit, struct block *block, uint64_t rip)
{
    if (!targets_fit(block, rip)) {
        block->interpret = true;
        return false;
    }
    if (!jit_segment_has_room(jit, block->count))
        jit_segment_next(cpu, jit);
    cache_growth_note(&jit->growth, block->lost);
    block->lost = false;
    struct emitter e;
    e.a = jit_assembler(jit, jit->writable + jit->used);
    e.cpu = cpu;
    e.jit = jit;
    e.block = block;
    e.rip = rip;
    e.page = align_down(rip, GUEST_PAGE_SIZE);
    e.code64 = cpu->code64;
    e.in_page = jit_is_in_page(cpu);
    block->floats = e.in_page && jit_page_floats(jit, block->gpa) && may_float(block, rip);
    e.rip_mask = cpu_rip_mask(cpu);
    e.code_limit = cpu->s.segment[CS].limit;
    e.bank = cpu->mmu.mode_key >> MODE_KEY_BANK & 3;
    e.read_tsc = false;
    e.fpu_units = e.next_group = e.colds = e.held = 0;
    e.held_at = NULL;
    memory_forget(&e);
    for (unsigned i = 0; i < 16; i++)
        e.moved[i] = 0;
    for (unsigned i = 0; i < block->count; i++)
        plan_instruction(&e.plans[i], cpu, &block->uops[i]);
    for (unsigned i = 0; i < block->count; i++) {
        bool sti_leaves = is_sti(&e.plans[i]) && (i + 1 == block->count || cpu->unlinked);
        if (sti_leaves || !branch_stays_inside(&e, i))
            plan_by_executor(&e.plans[i]);
    }
    flags_analyse(&e, block->across_now != NULL);
    block->exits = jit->exit_count + 1;
    block->flags_dead = !e.wanted[0];
    uint8_t *start = e.a.p;
    put_block(&e);
    uint8_t *hot_end = e.a.p, *cold = jit->writable + jit->cold_used;
    jit->used = align_up((uint64_t)(hot_end - jit->writable), 16);
    e.a.p = cold;
    put_cold_paths(&e);
    jit->cold_used = (size_t)(e.a.p - jit->writable);
    block->exit_count = jit->exit_count + 1 - block->exits;
    block->translated = jit_rx(jit, start);
    block->translated_rip = rip;
    block->translated_segment = (uint8_t)jit->filling;
    block->translated_mode = cpu->mmu.mode_key;
    jit_register(jit, block);
    jit->counts->translated++;
    if (unlikely(jit->perf_map))
        perf_map_block(cpu, block, hot_end - start, jit_rx(jit, cold), e.a.p - cold);
    return true;
}
