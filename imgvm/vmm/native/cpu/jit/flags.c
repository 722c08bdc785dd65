/* SPDX-License-Identifier: MIT */
/* The guest's status flags. They live in EFLAGS from the instruction that makes them to whoever reads them, but every
 * check of a memory operand destroys EFLAGS, and every fault shows them exactly. So, before EFLAGS are lost, either they
 * can be made again from registers that have not changed (a recipe: only slow paths pay), or they go to cpu->cc, or
 * nobody can see them before they are overwritten. */
#include "emit.h"

#define ALL_FLAGS EFLAGS_STATUS
#define NOT_PINNED (7u << 13) /* R13-R15 */

static void spill(struct emitter *e)
{
    struct assembler *a = &e->a;
    mov_rr(a, T1, H_RAX);
    PUT(a, 0x9f, 0x0f, 0x90, 0xc0); /* lahf; seto al */
    op_cpu(a, (struct opcode){.code = 0x89, .prefix = 0x66}, H_RAX, CPU(cc));
    mov_rr(a, H_RAX, T1);
}

void flags_restore(struct emitter *e)
{
    struct assembler *a = &e->a;
    mov_rr(a, T1, H_RAX);
    op_cpu(a, OPC(0x0fb7), H_RAX, CPU(cc));
    PUT(a, 0x04, 0x7f, 0x9e); /* add al, 7fh: OF; sahf: the others */
    mov_rr(a, H_RAX, T1);
}

uint16_t flags_killed(const struct uop *u)
{
    const struct op_info *info = &op_infos[u->in.op];
    bool by_count = info->attributes & OPA_MAY_KEEP_FLAGS;
    bool fixed_count = u->in.form != FORM_RM_CL && u->in.form != FORM_RM_REG_CL;
    return by_count && !(fixed_count && (u->in.imm & (u->in.osize == 8 ? 63 : 31))) ? 0 : info->flags_written;
}

void flags_analyse(struct emitter *e, bool shown_first)
{
    unsigned n = e->block->count;
    e->wanted[n] = ALL_FLAGS;
    for (unsigned i = n; i-- > 0;) {
        const struct uop *u = emit_uop(e, i);
        if (e->plans[i].shows_flags)
            e->wanted[i] = ALL_FLAGS;
        else
            e->wanted[i] = (uint16_t)((e->wanted[i + 1] & ~flags_killed(u)) | op_infos[u->in.op].flags_read);
    }
    if (shown_first)
        e->wanted[0] = ALL_FLAGS;
    e->flags = (struct flag_state){.in_cc = e->wanted[0], .recipe = NO_RECIPE};
}

/* ---- recipes ---- */

static unsigned register_bit(unsigned guest)
{
    return guest < 16 ? 1u << guest : ALL_REGISTERS; /* AH..BH are not worth following */
}

/* Registers that instruction i's flags can be made from again; ALL_REGISTERS: they cannot. */
static unsigned recipe_inputs(const struct uop *u)
{
    const struct insn *in = &u->in;
    if (in->flags & INSN_MEM)
        return ALL_REGISTERS;
    bool two = in->form == FORM_RM_REG || in->form == FORM_REG_RM;
    if (!two && in->form != FORM_RM_IMM && !(in->form == FORM_RM && in->op == OP_NEG))
        return ALL_REGISTERS;
    unsigned inputs = register_bit(in->rm) | (two ? register_bit(in->reg) : 0);
    switch (in->op) {
    case OP_CMP: case OP_TEST:
        return inputs;
    case OP_NEG:
        return host_register(in->rm) == NO_REG ? ALL_REGISTERS : inputs;
    case OP_ADD: case OP_SUB:
        return two && in->rm == in->reg && in->op == OP_ADD ? ALL_REGISTERS : inputs;
    case OP_AND: case OP_OR: case OP_XOR:
        return register_bit(in->form == FORM_REG_RM ? in->reg : in->rm);
    default:
        return ALL_REGISTERS;
    }
}

static void put_row(struct emitter *e, unsigned op, const struct insn *in)
{
    struct uop u = {.in = *in};
    struct shape s;
    u.in.op = (uint16_t)op;
    if (!shape_of(&u, &s))
        return;
    unsigned reg = s.digit ? s.reg : fetch_register(e, s.reg, T1);
    unsigned rm = fetch_register(e, in->rm, T0);
    op_rr(&e->a, s.op, reg, rm);
    for (unsigned i = 0; i < s.immediate; i++)
        put8(&e->a, (in->imm >> (8 * i)) & 0xff);
    /* the registers themselves end as they were */
}

/* EFLAGS := those of instruction k, whose inputs are what they were. */
static void put_recipe(struct emitter *e, int k)
{
    struct insn in = emit_uop(e, (unsigned)k)->in;
    bool two = in.form == FORM_RM_REG || in.form == FORM_REG_RM;
    unsigned destination = in.form == FORM_REG_RM ? in.reg : in.rm;
    switch (in.op) {
    case OP_AND: case OP_OR: case OP_XOR:
        in.form = FORM_RM_REG;
        in.rm = in.reg = (uint8_t)destination;
        put_row(e, OP_TEST, &in);
        break;
    case OP_ADD: case OP_SUB:
        if (two && in.rm == in.reg) {
            put_row(e, OP_SUB, &in);
            break;
        }
        if (host_register(destination) == NO_REG) { /* not undone in place: from a copy */
            unsigned temp = in.form == FORM_REG_RM ? T1 : T0, other = in.form == FORM_REG_RM ? T0 : T1;
            struct uop u = {.in = in};
            struct shape s;
            shape_of(&u, &s);
            load_temp(e, temp, destination);
            unsigned second = s.digit ? s.reg : fetch_register(e, in.form == FORM_REG_RM ? in.rm : in.reg, other);
            unsigned reg = in.form == FORM_REG_RM ? temp : second, rm = in.form == FORM_REG_RM ? second : temp;
            uint8_t flip = 0x28; /* between the opcodes of ADD and SUB; in group 1, between their digits */
            for (unsigned pass = 0; pass < 2; pass++) {
                struct opcode op = s.op;
                unsigned field = reg;
                if (pass == 0) {
                    if (s.digit)
                        field ^= flip >> 3;
                    else
                        op.code ^= flip;
                }
                op_rr(&e->a, op, field, rm);
                for (unsigned i = 0; i < s.immediate; i++)
                    put8(&e->a, (in.imm >> (8 * i)) & 0xff);
            }
            break;
        }
        put_row(e, in.op == OP_ADD ? OP_SUB : OP_ADD, &in);
        put_row(e, in.op, &in);
        break;
    case OP_NEG:
        put_row(e, OP_NEG, &in);
        put_row(e, OP_NEG, &in);
        break;
    default:
        put_row(e, in.op, &in);
        break;
    }
}

/* ---- the state ---- */

void flags_to_cc_from(struct emitter *e, const struct flag_state *state)
{
    if (state->in_cc)
        return;
    if (!state->in_eflags) {
        if (state->recipe == NO_RECIPE)
            return; /* nobody will ask */
        put_recipe(e, state->recipe);
    }
    spill(e);
}

void flags_to_eflags(struct emitter *e)
{
    if (e->flags.in_eflags)
        return;
    if (e->flags.recipe != NO_RECIPE)
        put_recipe(e, e->flags.recipe);
    else if (e->flags.in_cc)
        flags_restore(e);
    e->flags.in_eflags = true;
}

void flags_to_cc(struct emitter *e)
{
    flags_to_cc_from(e, &e->flags);
    e->flags.in_eflags |= e->flags.recipe != NO_RECIPE && !e->flags.in_cc;
    e->flags.in_cc = true;
}

void flags_before_operand(struct emitter *e)
{
    if (e->flags.recipe != NO_RECIPE && !(recipe_inputs(emit_uop(e, (unsigned)e->flags.recipe)) & NOT_PINNED))
        return; /* made again without a temporary */
    flags_to_cc(e);
    e->flags.recipe = NO_RECIPE;
}

void flags_yield(struct emitter *e, unsigned i)
{
    if (e->flags.in_eflags && !e->flags.in_cc && e->flags.recipe == NO_RECIPE && e->wanted[i]) {
        spill(e);
        e->flags.in_cc = true;
    }
    e->flags.in_eflags = false;
}

static bool recipe_changes(const struct emitter *e, unsigned written)
{
    return e->flags.recipe != NO_RECIPE && (recipe_inputs(emit_uop(e, (unsigned)e->flags.recipe)) & written);
}

void flags_before_change(struct emitter *e, unsigned i, unsigned written)
{
    const struct uop *u = emit_uop(e, i);
    bool wanted = e->wanted[i + 1] & ~flags_killed(u);
    bool checks = e->plans[i].memory.bytes || e->plans[i].loses_flags;
    bool kept = e->flags.in_cc || (e->flags.in_eflags && !checks);
    if (wanted && !kept && recipe_changes(e, written))
        flags_to_cc(e);
}

void flags_after_change(struct emitter *e, unsigned written)
{
    if (recipe_changes(e, written))
        e->flags.recipe = NO_RECIPE;
}

void flags_made(struct emitter *e, unsigned i)
{
    e->flags = (struct flag_state){.in_eflags = true, .recipe = NO_RECIPE};
    if (recipe_inputs(emit_uop(e, i)) != ALL_REGISTERS && op_infos[emit_uop(e, i)->in.op].flags_written == ALL_FLAGS)
        e->flags.recipe = (int)i;
}
