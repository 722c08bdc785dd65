/* SPDX-License-Identifier: MIT */
/* Memory operands: their addresses, and which of them are checked together (check.c). Operands with the same registers,
 * moved by nothing but constants in between, lean on the check of the first, and lose no flags:
 *
 *     mov  r15, gs:[addend of the first]
 *     OP   ..., [base + r15 + disp] */
#include "emit.h"

#define DIRECT_BYTES 4   /* less than that by itself is read 7 % slower beside its base, as measured on Zen 3 */
#define GROUP_BYTES 1024 /* a group reaches no further, so that it seldom straddles pages */

/* ---- addresses ---- */

void memory_offset(struct emitter *e, const struct insn *in, int64_t disp)
{
    struct assembler *a = &e->a;
    struct place at = {NO_REG, NO_REG, in->scale, (int32_t)disp};
    unsigned size = in->asize == 8 ? 8 : 4;
    if (in->base == INSN_REG_RIP) {
        emit_rip(e, T0, e->rip + (uint64_t)disp);
        return;
    }
    if (in->base != INSN_REG_NONE)
        at.base = (uint8_t)fetch_register(e, in->base, T0);
    if (in->index != INSN_REG_NONE)
        at.index = (uint8_t)fetch_register(e, in->index, T1);
    if (at.base == NO_REG && at.index == NO_REG) {
        mov_imm64(a, T0, (uint64_t)disp & bits_mask_bytes(in->asize));
        return;
    }
    if (at.index == NO_REG && !disp && in->asize == 2) {
        op_rr(a, OPC(0x0fb7), T0, at.base);
        return;
    }
    if (at.index == NO_REG && !disp)
        op_rr(a, OPCS(0x89, size), at.base, T0);
    else
        op_place(a, OPCS(0x8d, size), T0, at);
    if (in->asize == 2)
        op_rr(a, OPC(0x0fb7), T0, T0);
}

/* T0: the lowest offset -> its linear address. Outside 64-bit mode all bytes must be inside of the segment, in which case
 * none of their offsets wraps around but where the address size is 16 and the limit higher. */
static void put_segment(struct emitter *e, unsigned i, unsigned segment, unsigned bytes, bool write, bool group)
{
    struct assembler *a = &e->a;
    if (segment == INSN_SEG_FLAT)
        return;
    if (!e->code64) {
        unsigned last = T0;
        if (bytes > 1)
            op_rm(a, OPCW(0x8d), last = T1, T0, (int32_t)bytes - 1);
        op_cpu(a, OPCW(0x3b), last, CPU(seg_last) + (uint32_t)sizeof(int64_t) * (write * 8u + segment));
        struct cold *cold = emit_cold(e, COLD_LIMIT, i);
        cold->patch = put_jcc(a, CC_GREATER);
        cold->group = group;
    }
    op_cpu(a, OPCS(0x03, e->code64 ? 8 : 4), T0, CPU(seg_base) + 8 * segment);
}

void memory_move_stack(struct emitter *e, int32_t by, unsigned temp)
{
    unsigned bytes = stack_pointer_bytes(e->cpu);
    op_rm(&e->a, OPCS(0x8d, bytes == 8 ? 8 : 4), bytes == 2 ? temp : H_R13, H_R13, by);
    if (bytes == 2)
        op_rr(&e->a, OPCS(0x89, 2), temp, H_R13);
}

/* ---- groups ---- */

void memory_moved(struct emitter *e, unsigned reg, int64_t by)
{
    if (reg < 16)
        e->moved[reg] += by;
}

void memory_changed(struct emitter *e, unsigned registers)
{
    for (unsigned g = 0; g < GROUPS; g++) {
        struct group *group = &e->groups[g];
        if ((group->base < 16 && (registers >> group->base & 1)) || (group->index < 16 && (registers >> group->index & 1)))
            group->valid = false;
    }
}

void memory_forget(struct emitter *e)
{
    for (unsigned g = 0; g < GROUPS; g++)
        e->groups[g].valid = false;
}

static bool same_registers(const struct group *g, const struct reference *r)
{
    return g->valid && g->write == r->write && g->base == r->in.base && g->index == r->in.index &&
           (g->index == INSN_REG_NONE || g->scale == r->in.scale) && g->segment == r->in.segment && g->asize == r->in.asize;
}

static int64_t base_moved(const struct emitter *e, unsigned base)
{
    return base < 16 ? e->moved[base] : 0;
}

/* Looks ahead from instruction i: which later accesses can lean on its check? */
static unsigned gather(const struct emitter *e, unsigned i, const struct reference *first, int64_t *low, int64_t *high)
{
    struct group like = {.valid = true, .write = first->write, .base = first->in.base, .index = first->in.index,
                         .scale = first->in.scale, .segment = first->in.segment, .asize = first->in.asize};
    unsigned members = 0;
    int64_t moved = 0; /* the base since instruction i */
    *low = first->in.disp;
    *high = first->in.disp + (int64_t)first->bytes;
    for (unsigned k = i;; k++) {
        const struct plan *plan = &e->plans[k];
        if (plan->moved_register == first->in.base)
            moved += plan->moved_by;
        else if (plan->written >> first->in.base & 1)
            break;
        if (k + 1 >= e->block->count)
            break;
        const struct reference *found = &e->plans[k + 1].memory;
        if (!found->bytes || !same_registers(&like, found))
            continue;
        int64_t from = found->in.disp + moved, to = from + (int64_t)found->bytes;
        int64_t new_low = MIN(*low, from), new_high = MAX(*high, to);
        if (new_high - new_low > GROUP_BYTES)
            continue;
        *low = new_low;
        *high = new_high;
        members++;
    }
    return members;
}

/* 16-bit addresses may wrap around inside of a segment; 32-bit ones of 64-bit code are rare. */
static bool may_lead(const struct emitter *e, const struct insn *in)
{
    return in->base < 16 && in->index == INSN_REG_NONE && in->segment == INSN_SEG_FLAT && in->asize == (e->code64 ? 8 : 4);
}

/* A member's place: its 32-bit address, as it wraps around, and the addend. */
static struct place narrow_place(struct emitter *e, const struct insn *in, uint32_t addend, bool keep_t1)
{
    struct assembler *a = &e->a;
    memory_offset(e, in, in->disp);
    e->held_at = NULL;
    op_cpu(a, OPCW(0x8b), T1, addend);
    if (!keep_t1)
        return (struct place){T0, T1, 0, 0};
    op_place(a, OPCW(0x8d), T0, (struct place){T0, T1, 0, 0});
    return (struct place){T0, NO_REG, 0, 0};
}

static struct place place_of(struct emitter *e, unsigned i, const struct reference *r, bool keep_t1)
{
    struct assembler *a = &e->a;
    const struct insn *in = &r->in;
    int64_t moved = base_moved(e, in->base);
    for (unsigned g = 0; g < GROUPS; g++) {
        const struct group *group = &e->groups[g];
        int64_t from = in->disp + moved - group->base_moved;
        if (!same_registers(group, r) || from < group->low || from + (int64_t)r->bytes > group->high)
            continue;
        /* proven by an earlier instruction of this block */
        uint32_t addend = group->addend;
        unsigned base = in->base < 16 ? host_register(in->base) : NO_REG;
        if (!e->code64)
            return narrow_place(e, in, addend, keep_t1);
        if (!keep_t1 && base != NO_REG && in->index == INSN_REG_NONE && in->segment == INSN_SEG_FLAT) {
            if (e->held != addend || e->held_at != a->p)
                op_cpu(a, OPCW(0x8b), T1, addend);
            e->held = addend;
            e->held_at = a->p;
            return (struct place){(uint8_t)base, T1, 0, in->disp};
        }
        if (in->segment != INSN_SEG_FLAT || in->index != INSN_REG_NONE || in->base >= 16)
            continue; /* would lose flags or a temporary: a check of its own */
        op_cpu(a, OPCW(0x8b), T0, addend);
        if (base != NO_REG) {
            op_place(a, OPCW(0x8d), T0, (struct place){(uint8_t)base, T0, 0, in->disp});
            return (struct place){T0, NO_REG, 0, 0};
        }
        load_temp(e, T1, in->base);
        e->held_at = NULL;
        op_place(a, OPCW(0x8d), T0, (struct place){T1, T0, 0, in->disp});
        return (struct place){T0, NO_REG, 0, 0};
    }
    flags_yield(e, i);
    int64_t low = in->disp, high = low + (int64_t)r->bytes;
    unsigned members = may_lead(e, in) ? gather(e, i, r, &low, &high) : 0;
    if (low != (int32_t)low) {
        members = 0;
        low = in->disp;
        high = low + (int64_t)r->bytes;
    }
    unsigned lead = e->next_group % GROUPS;
    struct check check = check_of(e, r, (unsigned)(high - low), r == &e->plans[i].memory ? emit_uop(e, i)->pages : ONE_PAGE);
    check.low = low;
    check.group = members > 0;
    check.lead = CPU(lead) + 8 * lead;
    check_begin(e, i, &check);
    struct place at;
    if ((members || r->bytes >= DIRECT_BYTES) && check_is_direct(e, in, keep_t1)) {
        at = check_put_direct(e, i, in, &check);
    } else if (check_is_of_page(e, in, &check)) {
        at = check_put_of_page(e, i, in, &check);
    } else {
        memory_offset(e, in, low);
        put_segment(e, i, in->segment, check.bytes, r->write, check.group);
        at = check_put(e, i, in, &check, keep_t1);
    }
    at.disp += (int32_t)(in->disp - low);
    if (members) {
        e->next_group++;
        e->groups[lead] = (struct group){.valid = true, .write = r->write, .base = in->base, .index = in->index, .scale = in->scale,
                                         .segment = in->segment, .asize = in->asize, .base_moved = moved, .low = low, .high = high,
                                         .slot = check.slot, .addend = check_addend(e, &check)};
    }
    return at;
}

struct place memory_operand(struct emitter *e, unsigned i, bool keep_t1)
{
    return place_of(e, i, &e->plans[i].memory, keep_t1);
}

struct place memory_bit_string(struct emitter *e, unsigned i)
{
    struct assembler *a = &e->a;
    const struct reference *r = &e->plans[i].memory;
    const struct insn *in = &r->in;
    unsigned log_bits = in->osize == 8 ? 6 : 5;
    struct check check = check_of(e, r, r->bytes, ONE_PAGE);
    flags_yield(e, i);
    memory_offset(e, in, in->disp);
    put_segment(e, i, in->segment, r->bytes, r->write, false);
    unsigned index = fetch_register(e, in->reg, T1);
    op_rr(a, in->osize == 8 ? OPCW(0x89) : OPCW(0x63), in->osize == 8 ? index : T1, in->osize == 8 ? T1 : index);
    shift_imm(a, SHIFT_SAR, true, T1, log_bits);
    op_place(a, OPCW(0x8d), T0, (struct place){T0, T1, (uint8_t)(log_bits - 3), 0});
    return check_put(e, i, in, &check, true);
}

struct place memory_push(struct emitter *e, unsigned i)
{
    unsigned size = emit_uop(e, i)->in.osize;
    struct reference r = stack_reference(e->cpu, -(int32_t)size, size, true);
    return place_of(e, i, &r, true);
}

void memory_keep_addend(struct emitter *e, const uint8_t *start)
{
    if (e->held_at >= start)
        e->held_at = e->a.p;
}

/* ---- the slow way ---- */

void memory_resume(struct emitter *e, const struct cold *cold)
{
    if (cold->restore)
        flags_restore(e);
    if (cold->held)
        op_cpu(&e->a, OPCW(0x8b), T1, cold->held);
    patch_jump(put_jmp(&e->a), cold->resume);
}

void memory_cold(struct emitter *e, const struct cold *cold)
{
    struct assembler *a = &e->a;
    if (cold->kind == COLD_ACCESS)
        check_cold(e, cold);
    flags_to_cc_from(e, &cold->flags);
    emit_call_executor(e, cold->index);
    if (cold->group && cold->resume) {
        /* those that lean on this check are not to follow */
        branch_uncount(e, e->block->count - cold->index - 1u);
        branch_exit_here(e, (e->rip + emit_uop(e, cold->index)->next) & e->rip_mask);
        return;
    }
    if (!cold->resume) {
        PUT(a, 0x0f, 0x0b); /* a branch: its executor set cpu->rip and the call did not come back */
        return;
    }
    memory_resume(e, cold);
}
