/* SPDX-License-Identifier: MIT */
/* Ways out of a block: jumps, calls, returns, and looks at what is pending.
 *
 * A guest call is a host call, so that the host's own prediction of returns works for the guest's. Beside the host's
 * return address lies the guest's:
 *
 *     [rsp + 8]  guest RIP behind the call
 *     [rsp]      host address: goes on there
 *
 * A guest return compares what it found on the guest's stack with the former and, if they agree, is a host return. Pairs
 * are hints: whoever leaves translated code drops them all, and a return without its pair looks its target up. */
#include "emit.h"

/* Whatever the code segment's base: an offset in the page is the same in linear and physical addresses. */
static bool same_page(const struct emitter *e, uint64_t target)
{
    return target - e->rip + e->block->gpa % GUEST_PAGE_SIZE < GUEST_PAGE_SIZE;
}

static uint64_t relative_target(const struct emitter *e, const struct uop *u)
{
    uint64_t target = e->rip + u->next + u->in.imm;
    return e->code64 ? target : target & bits_mask_bytes(u->in.osize == 2 ? 2 : 4);
}

bool branch_stays_inside(const struct emitter *e, unsigned i)
{
    const struct uop *u = emit_uop(e, i);
    return e->code64 || !u->in.length || u->in.form != FORM_REL || relative_target(e, u) <= e->code_limit;
}

/* ---- exits ---- */

static unsigned new_exit(struct emitter *e, uint64_t target)
{
    unsigned number = ++e->jit->exit_count;
    e->jit->exits[number] = (struct jit_exit){.target = e->block->floats ? target - e->page : target, .mode = e->cpu->mmu.mode_key,
                                              .crosses = e->cpu->cpl != 3 && !same_page(e, target),
                                              .floats = e->block->floats};
    return number;
}

static bool is_checked(const struct emitter *e, uint64_t target)
{
    return e->cpu->cpl == 3 && !same_page(e, target);
}

/* The stub, here: `state` is where the flags are, and `not_run` instructions of the block were left out. */
static void put_stub(struct emitter *e, unsigned number, const struct flag_state *state, unsigned not_run, uint64_t target)
{
    struct assembler *a = &e->a;
    struct jit_exit *exit = &e->jit->exits[number];
    exit->stub = a->p;
    exit->saves_flags = !state->in_cc;
    flags_to_cc_from(e, state);
    branch_uncount(e, not_run);
    if (is_checked(e, target)) {
        op_cpu_imm(a, OPC(0x81), ALU_CMP, CPU(mmu.epoch), 4);
        exit->expected = a->p;
        put32(a, 0);
        put_jcc(a, CC_NE);
        uint64_t page = align_down(target, GUEST_PAGE_SIZE);
        if (e->block->floats) {
            op_cpu_imm(a, OPCW(0x81), ALU_ADD, CPU(code_page), 4);
            put32(a, (uint32_t)(page - e->page));
        } else if (e->in_page) {
            mov_imm64(a, T1, page);
            op_cpu(a, OPCW(0x89), T1, CPU(code_page));
        }
    }
    exit->stub_jump = put_jmp(a);
}

static void put_tail(struct emitter *e, unsigned number, uint64_t target)
{
    struct assembler *a = &e->a;
    struct jit_exit *exit = &e->jit->exits[number];
    exit->tail = a->p;
    patch_jump(exit->stub_jump, a->p);
    PUT(a, 0x41, 0xbf); /* mov r15d, imm32 */
    put32(a, number);
    jit_put_jump(e->jit, a, e->jit->leave_by_exit);
    if (!exit->expected)
        return;
    emit_rip(e, T0, target);
    if (e->in_page) {
        PUT(a, 0x41, 0xbf); /* mov r15d, imm32 */
        exit->again_page = a->p;
        put32(a, JIT_NO_PAGE);
        jit_put_call(e->jit, a, e->jit->check_page);
        exit->again_jump = put_jcc(a, CC_AE);
    }
    jit_exit_unlinked(exit);
    mov_imm64(a, T1, number);
    jit_put_jump(e->jit, a, e->jit->again);
}

static const struct flag_state flags_saved = {.in_cc = true, .recipe = NO_RECIPE};

void branch_exit_here(struct emitter *e, uint64_t target)
{
    unsigned number = new_exit(e, target);
    put_stub(e, number, &flags_saved, 0, target);
    put_tail(e, number, target);
}

static unsigned not_run_after(const struct emitter *e, unsigned i)
{
    return e->jit->count ? e->block->count - i - 1u : 0;
}

/* `hot` is the rel32 of a jump that was just emitted. */
static void leave_by(struct emitter *e, unsigned i, uint8_t *hot, uint64_t target)
{
    unsigned number = new_exit(e, target);
    if (!not_run_after(e, i)) /* else the stub is never to be passed by */
        e->jit->exits[number].hot = hot;
    struct cold *cold = emit_cold(e, COLD_EXIT, i);
    cold->exit = number;
    cold->target = target;
    cold->patch = hot;
}

void branch_aside(struct emitter *e, unsigned i)
{
    const struct uop *u = emit_uop(e, i);
    flags_to_eflags(e);
    leave_by(e, i, put_jcc(&e->a, u->in.cond), relative_target(e, u));
}

/* ---- looks ---- */

bool branch_wants_poll(const struct emitter *e)
{
    const struct uop *u = emit_uop(e, e->block->count - 1u);
    if (e->plans[e->block->count - 1].way != BY_SPECIAL)
        return false;
    switch (e->plans[e->block->count - 1].special) {
    case SPECIAL_JMP: case SPECIAL_JCC: case SPECIAL_COUNTED: case SPECIAL_CALL: /* whatever goes round in a circle goes back once */
        return relative_target(e, u) <= e->rip + u->offset;
    case SPECIAL_JMP_RM: case SPECIAL_CALL_RM: case SPECIAL_RET:
        return true;
    default:
        return false;
    }
}

void branch_poll(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    e->wants_poll = false;
    if (e->flags.in_cc || e->flags.recipe != NO_RECIPE) {
        e->flags.in_eflags = false;
        op_cpu_imm(a, OPC(0x83), ALU_CMP, CPU(pending), 1);
        put8(a, 0);
        emit_cold(e, COLD_POLL, i)->patch = put_jcc(a, CC_NE);
        return;
    }
    mov_rr(a, T1, H_RCX); /* without touching the flags */
    op_cpu(a, OPC(0x8b), H_RCX, CPU(pending));
    PUT(a, 0xe3, 5); /* jrcxz over the jump */
    struct cold *cold = emit_cold(e, COLD_POLL, i);
    cold->patch = put_jmp(a);
    cold->rcx_in_t1 = true;
    mov_rr(a, H_RCX, T1);
}

void branch_uncount(struct emitter *e, unsigned not_run)
{
    if (!e->jit->count || !not_run)
        return;
    op_cpu_imm(&e->a, OPCW(0x81), ALU_SUB, CPU(instructions), 4);
    put32(&e->a, not_run);
}

static void poll_cold(struct emitter *e, const struct cold *cold)
{
    if (cold->rcx_in_t1)
        mov_rr(&e->a, H_RCX, T1);
    flags_to_cc_from(e, &cold->flags);
    branch_uncount(e, cold->uncounted ? 0 : e->block->count - cold->index);
    emit_rip(e, T0, e->rip + emit_uop(e, cold->index)->offset);
    jit_put_jump(e->jit, &e->a, e->jit->leave_at);
}

/* ---- computed targets ---- */

/* T0: to be canonical in 48 bits, or inside of the code segment, or it is the executor's, which raises what is due. T1 and
 * EFLAGS are lost. NULL: it is. */
static uint8_t *put_target_check(struct emitter *e)
{
    struct assembler *a = &e->a;
    if (!e->code64) {
        if (e->code_limit == UINT32_MAX)
            return NULL;
        alu_imm(a, ALU_CMP, false, T0, e->code_limit);
        return put_jcc(a, CC_ABOVE);
    }
    mov_rr(a, T1, T0);
    shift_imm(a, SHIFT_SAR, true, T1, 47);
    alu_imm(a, ALU_ADD, false, T1, 1);
    alu_imm(a, ALU_CMP, false, T1, 1);
    return put_jcc(a, CC_ABOVE);
}

static void check_target(struct emitter *e, unsigned i)
{
    uint8_t *patch = put_target_check(e);
    if (patch)
        emit_cold(e, COLD_EXECUTOR, i)->patch = patch;
}

/* T0 := what is read of this size, zero-extended */
static void load_target(struct emitter *e, unsigned size, struct place at)
{
    op_place(&e->a, size == 2 ? OPC(0x0fb7) : OPCS(0x8b, size), T0, at);
}

static void put_target(struct emitter *e, unsigned i, bool check)
{
    const struct insn *in = &emit_uop(e, i)->in;
    if (in->flags & INSN_MEM) {
        load_target(e, in->osize, memory_operand(e, i, false));
    } else {
        unsigned r = fetch_register(e, in->rm, T0);
        if (in->osize == 2)
            op_rr(&e->a, OPC(0x0fb7), T0, r);
        else if (r != T0)
            op_rr(&e->a, OPCS(0x89, in->osize), r, T0);
    }
    if (check)
        check_target(e, i);
}

static void put_jump_rm(struct emitter *e, unsigned i)
{
    uint8_t *misses[2];
    flags_to_cc(e);
    put_target(e, i, false);
    jit_put_lookup(&e->a, misses, e->in_page);
    for (unsigned k = 0; k < ARRAY_LEN(misses); k++)
        emit_cold(e, COLD_JUMP, i)->patch = misses[k];
}

/* It may be in the table after all, for another epoch, unless it is the executor's to raise what is due. */
static void jump_cold(struct emitter *e, const struct cold *cold)
{
    op_cpu(&e->a, OPCW(0x8b), T0, CPU(rip));
    uint8_t *wild = put_target_check(e);
    jit_put_jump(e->jit, &e->a, e->jit->dispatch);
    if (!wild)
        return;
    patch_jump(wild, e->a.p);
    emit_call_executor(e, cold->index);
    PUT(&e->a, 0x0f, 0x0b);
}

/* ---- calls and returns ---- */

/* The guest's half of a call, then the pair's first word. T1 holds the return address afterwards. */
static void put_call_pushes(struct emitter *e, unsigned i, struct place at, uint64_t back)
{
    struct assembler *a = &e->a;
    unsigned size = emit_uop(e, i)->in.osize;
    emit_rip(e, T1, back);
    op_place(a, OPCS(0x89, size), T1, at);
    memory_move_stack(e, -(int32_t)size, T0);
    flags_yield(e, i);
    op_cpu(a, OPCW(0x3b), H_RSP, CPU(host_stack_limit));
    struct cold *cold = emit_cold(e, COLD_STACK, i);
    cold->patch = put_jcc(a, CC_BELOW);
    cold->done = a->p;
    PUT(a, 0x41, 0x57); /* push r15 */
}

/* Where the host's return comes to: in the epoch of the call, for whoever ends it leaves translated code, which drops all
 * pairs. T0 is the guest's return address. */
static void put_landing(struct emitter *e, unsigned i, uint64_t back)
{
    struct assembler *a = &e->a;
    unsigned number = new_exit(e, back);
    op_rm(a, OPCW(0x8d), H_RSP, H_RSP, 8);
    if (e->block->floats) {
        op_rm(a, OPCW(0x8d), T0, T0, -(int32_t)(back - e->page));
        op_cpu(a, OPCW(0x89), T0, CPU(code_page));
    }
    put_stub(e, number, &flags_saved, 0, back);
    struct cold *cold = emit_cold(e, COLD_TAIL, i);
    cold->exit = number;
    cold->target = back;
}

static void put_call(struct emitter *e, unsigned i)
{
    const struct uop *u = emit_uop(e, i);
    uint64_t back = (e->rip + u->next) & e->rip_mask;
    struct place at = memory_operand(e, i, true);
    put_call_pushes(e, i, at, back);
    put8(&e->a, 0xe8);
    put32(&e->a, 0);
    leave_by(e, i, e->a.p - 4, relative_target(e, u));
    put_landing(e, i, back);
}

static void put_call_rm(struct emitter *e, unsigned i)
{
    uint64_t back = (e->rip + emit_uop(e, i)->next) & e->rip_mask;
    flags_to_cc(e);
    put_target(e, i, true);
    op_cpu(&e->a, OPCW(0x89), T0, CPU(call_target));
    struct place at = memory_push(e, i);
    put_call_pushes(e, i, at, back);
    op_cpu(&e->a, OPCW(0x8b), T0, CPU(call_target));
    jit_put_call(e->jit, &e->a, e->jit->dispatch);
    put_landing(e, i, back);
}

static void put_return(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct insn *in = &emit_uop(e, i)->in;
    int32_t moves = in->osize + (in->form == FORM_IMM ? (int32_t)(uint16_t)in->imm : 0);
    flags_to_cc(e);
    load_target(e, in->osize, memory_operand(e, i, false));
    if (!e->code64) /* before ESP changes, whose upper half may hold anything */
        check_target(e, i);
    memory_move_stack(e, moves, T1);
    op_rm(a, OPCW(0x3b), T0, H_RSP, 8);
    e->flags.in_eflags = false;
    struct cold *cold = emit_cold(e, COLD_RETURN, i);
    cold->patch = put_jcc(a, CC_NE);
    cold->moved_rsp = moves;
    put8(a, 0xc3);
}

static void return_cold(struct emitter *e, const struct cold *cold)
{
    uint8_t *wild = e->code64 ? put_target_check(e) : NULL;
    jit_put_jump(e->jit, &e->a, e->jit->return_miss);
    if (!wild)
        return;
    patch_jump(wild, e->a.p);
    op_rm(&e->a, OPCW(0x8d), H_R13, H_R13, -cold->moved_rsp);
    emit_call_executor(e, cold->index);
    PUT(&e->a, 0x0f, 0x0b); /* it raises #GP */
}

/* ---- a block's end ---- */

bool branch_loops(const struct emitter *e)
{
    unsigned last = e->block->count - 1u;
    const struct plan *plan = &e->plans[last];
    return plan->way == BY_SPECIAL && plan->special == SPECIAL_JCC && relative_target(e, emit_uop(e, last)) == e->rip &&
           last < BLOCK_MAX_INSNS / 2 && !e->cpu->unlinked && !e->jit->count;
}

static void put_jump_back(struct emitter *e, unsigned condition)
{
    uint8_t *jump = put_jcc(&e->a, condition);
    if (e->loop_head) {
        patch_jump(jump, e->loop_head);
    } else {
        e->loop_patch = jump;
        e->loop_flags = (struct flag_state){.in_eflags = true, .recipe = e->flags.recipe};
    }
}

/* What goes on at `jump`, a rel8, comes here. */
static void patch_short(struct assembler *a, uint8_t *jump)
{
    *jump = (uint8_t)(a->p - (jump + 1));
}

/* LOOP, LOOPE, LOOPNE and JCXZ; the host's do not touch the flags, nor does what stands for those that count in CX. */
static void put_counted(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct uop *u = emit_uop(e, i);
    unsigned op = u->in.op;
    bool is_loop = op != OP_JCXZ, by_zero = op == OP_LOOPE, by_nonzero = op == OP_LOOPNE;
    uint64_t target = relative_target(e, u), next = (e->rip + u->next) & e->rip_mask;
    flags_before_change(e, i, e->plans[i].written); /* again, after the poll */
    if (by_zero || by_nonzero)
        flags_to_eflags(e);
    flags_after_change(e, e->plans[i].written);
    if (u->in.asize != 2) {
        if (u->in.asize == 4)
            put8(a, 0x67);
        put8(a, by_nonzero ? 0xe0 : by_zero ? 0xe1 : is_loop ? 0xe2 : 0xe3), put8(a, 2); /* over this: */
        PUT(a, 0xeb, 5); /* over the next jump */
        leave_by(e, i, put_jmp(a), target);
        leave_by(e, i, put_jmp(a), next);
        return;
    }
    if (is_loop) {
        op_rm(a, OPC(0x8d), T0, H_RCX, -1);
        op_rr(a, (struct opcode){.code = 0x89, .prefix = 0x66}, T0, H_RCX);
    }
    mov_rr(a, T1, H_RCX);
    op_rr(a, OPC(0x0fb7), H_RCX, H_RCX);
    PUT(a, 0xe3, 0); /* jrcxz */
    uint8_t *none_left = a->p - 1;
    mov_rr(a, H_RCX, T1);
    if (by_zero || by_nonzero) {
        leave_by(e, i, put_jcc(a, by_zero ? CC_EQUAL : CC_NE), target);
        leave_by(e, i, put_jmp(a), next);
    } else {
        leave_by(e, i, put_jmp(a), is_loop ? target : next);
    }
    patch_short(a, none_left);
    mov_rr(a, H_RCX, T1);
    leave_by(e, i, put_jmp(a), is_loop ? next : target);
}

void branch_emit(struct emitter *e, unsigned i)
{
    const struct uop *u = emit_uop(e, i);
    if (e->wants_poll)
        branch_poll(e, i);
    switch (e->plans[i].special) {
    case SPECIAL_JCC:
        flags_to_eflags(e);
        if (e->loops)
            put_jump_back(e, u->in.cond);
        else
            leave_by(e, i, put_jcc(&e->a, u->in.cond), relative_target(e, u));
        leave_by(e, i, put_jmp(&e->a), (e->rip + u->next) & e->rip_mask);
        break;
    case SPECIAL_COUNTED:
        put_counted(e, i);
        break;
    case SPECIAL_JMP:
        leave_by(e, i, put_jmp(&e->a), relative_target(e, u));
        break;
    case SPECIAL_JMP_RM:
        put_jump_rm(e, i);
        break;
    case SPECIAL_CALL:
        put_call(e, i);
        break;
    case SPECIAL_CALL_RM:
        put_call_rm(e, i);
        break;
    default:
        put_return(e, i);
        break;
    }
}

void branch_fall_through(struct emitter *e)
{
    leave_by(e, e->block->count - 1u, put_jmp(&e->a), (e->rip + e->block->bytes) & e->rip_mask);
}

void branch_cold(struct emitter *e, const struct cold *cold)
{
    struct assembler *a = &e->a;
    switch (cold->kind) {
    case COLD_POLL:
        poll_cold(e, cold);
        return;
    case COLD_EXIT:
        put_stub(e, cold->exit, &cold->flags, not_run_after(e, cold->index), cold->target);
        put_tail(e, cold->exit, cold->target);
        return;
    case COLD_TAIL:
        put_tail(e, cold->exit, cold->target);
        return;
    case COLD_JUMP:
        jump_cold(e, cold);
        return;
    case COLD_STACK:
        op_cpu(a, OPCW(0x8b), H_RSP, CPU(host_stack));
        patch_jump(put_jmp(a), cold->done);
        return;
    default:
        return_cold(e, cold);
        return;
    }
}
