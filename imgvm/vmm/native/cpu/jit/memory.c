/* SPDX-License-Identifier: MIT */
/* Memory operands. Each has an access slot of its own, which remembers the page it went to last:
 *
 *     lea  r14, [operand]
 *     mov  r15, r14
 *     xor  r15, gs:[slot.tag]
 *     cmp  r15, 4096 - bytes        the same page, and the operand does not leave it
 *     ja   cold                     refilled from the TLB, the TLB from the tables; or the executor
 *     add  r14, gs:[slot.addend]
 *     OP   ..., [r14]
 *
 * Operands with the same registers, moved by nothing but constants in between, are checked together by the first; the
 * others take its slot's addend and lose no flags:
 *
 *     mov  r15, gs:[slot.addend]
 *     OP   ..., [base + r15 + disp]
 *
 * (The first could be checked as r14 - tag and end so as well. That waits less and is an instruction shorter, but was
 * slower by 5 % on the host that it was measured on.) */
#include "emit.h"

#define GROUP_BYTES 1024 /* a group reaches no further, so that it seldom straddles pages */

static uint32_t slot_at(const struct emitter *e, unsigned slot)
{
    return CPU(mmu.slots) + (uint32_t)((e->bank * ACCESS_SLOTS + slot) * sizeof(struct access_slot));
}

/* Operands that are likely to meet in a page share slots: the fewer there are in use, the fewer are to be filled again
 * when translations were dropped. Of a kind they are told apart by a hash, so that two that do not meet seldom disturb
 * each other. Each slot is for loads or for stores. */
enum { STACK_SLOTS = 16, SEGMENT_SLOTS = 32, CONSTANT_SLOTS = 128, SHARED_SLOTS = STACK_SLOTS + SEGMENT_SLOTS + CONSTANT_SLOTS };

static unsigned shared_slot(unsigned first, unsigned slots, uint64_t page, bool write)
{
    return first + (unsigned)((page ^ page >> 7) % (slots / 2)) * 2 + write;
}

static unsigned slot_for(struct emitter *e, const struct reference *r)
{
    const struct insn *in = &r->in;
    uint64_t code = e->rip / GUEST_PAGE_SIZE;
    bool constant = (in->base == INSN_REG_NONE || in->base == INSN_REG_RIP) && in->index == INSN_REG_NONE;
    uint64_t address = (uint64_t)(int64_t)in->disp + (in->base == INSN_REG_RIP ? e->rip : 0);
    if (in->base == RSP && in->index == INSN_REG_NONE && in->segment == INSN_SEG_FLAT)
        return shared_slot(0, STACK_SLOTS, code, r->write);
    if (in->segment != INSN_SEG_FLAT && constant)
        return shared_slot(STACK_SLOTS, SEGMENT_SLOTS, address / GUEST_PAGE_SIZE ^ in->segment, r->write);
    if (constant)
        return shared_slot(STACK_SLOTS + SEGMENT_SLOTS, CONSTANT_SLOTS, address / GUEST_PAGE_SIZE, r->write);
    if (r->write)
        return SHARED_SLOTS + e->jit->next_store_slot++ % (STORE_SLOTS - SHARED_SLOTS);
    return STORE_SLOTS + e->jit->next_load_slot++ % (ACCESS_SLOTS - STORE_SLOTS);
}

/* ---- addresses ---- */

/* T0 := base + index * scale + disp, of the address size's bits. T1 is used when an index is in memory. */
static void put_offset(struct emitter *e, const struct insn *in, int64_t disp)
{
    struct assembler *a = &e->a;
    struct place at = {NO_REG, NO_REG, in->scale, (int32_t)disp};
    unsigned size = in->asize == 8 ? 8 : 4;
    if (in->base == INSN_REG_RIP) {
        mov_imm64(a, T0, e->rip + (uint64_t)disp);
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

void memory_offset(struct emitter *e, const struct insn *in)
{
    put_offset(e, in, in->disp);
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
        op_gs(a, OPCW(0x3b), last, CPU(seg_last) + (uint32_t)sizeof(int64_t) * (write * 8u + segment));
        struct cold *cold = emit_cold(e, COLD_LIMIT, i);
        cold->patch = put_jcc(a, CC_GREATER);
        cold->group = group;
    }
    op_gs(a, OPCS(0x03, e->code64 ? 8 : 4), T0, CPU(seg_base) + 8 * segment);
}

void memory_move_stack(struct emitter *e, int32_t by, unsigned temp)
{
    unsigned bytes = stack_pointer_bytes(e->cpu);
    op_rm(&e->a, OPCS(0x8d, bytes == 8 ? 8 : 4), bytes == 2 ? temp : H_R13, H_R13, by);
    if (bytes == 2)
        op_rr(&e->a, OPCS(0x89, 2), temp, H_R13);
}

/* The slot may hold another page now. */
static void forget_slot(struct emitter *e, unsigned slot)
{
    for (unsigned g = 0; g < GROUPS; g++)
        if (e->groups[g].slot == slot)
            e->groups[g].valid = false;
}

/* What a check is about: bytes from the lowest address on. */
struct check {
    unsigned slot, bytes;
    bool write, group;
};

/* T0: the lowest address -> the host's. T1 is lost. */
static void put_check(struct emitter *e, unsigned i, struct check check)
{
    struct assembler *a = &e->a;
    mov_rr(a, T1, T0);
    op_gs(a, OPCW(0x33), T1, slot_at(e, check.slot));
    alu_imm(a, ALU_CMP, true, T1, GUEST_PAGE_SIZE - check.bytes);
    struct cold *cold = emit_cold(e, COLD_ACCESS, i);
    cold->patch = put_jcc(a, CC_ABOVE);
    cold->bytes = check.bytes;
    cold->slot = check.slot;
    cold->write = check.write;
    cold->group = check.group;
    op_gs(a, OPCW(0x03), T0, slot_at(e, check.slot) + offsetof(struct access_slot, addend));
    cold->done = a->p;
    forget_slot(e, check.slot);
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
    memory_offset(e, in);
    op_gs(a, OPCW(0x8b), T1, addend);
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
        uint32_t addend = slot_at(e, group->slot) + offsetof(struct access_slot, addend);
        unsigned base = in->base < 16 ? host_register(in->base) : NO_REG;
        if (!e->code64)
            return narrow_place(e, in, addend, keep_t1);
        if (!keep_t1 && base != NO_REG && in->index == INSN_REG_NONE && in->segment == INSN_SEG_FLAT) {
            op_gs(a, OPCW(0x8b), T1, addend);
            return (struct place){(uint8_t)base, T1, 0, in->disp};
        }
        if (in->segment != INSN_SEG_FLAT || in->index != INSN_REG_NONE || in->base >= 16)
            continue; /* would lose flags or a temporary: a check of its own */
        op_gs(a, OPCW(0x8b), T0, addend);
        if (base != NO_REG) {
            op_place(a, OPCW(0x8d), T0, (struct place){(uint8_t)base, T0, 0, in->disp});
            return (struct place){T0, NO_REG, 0, 0};
        }
        load_temp(e, T1, in->base);
        op_place(a, OPCW(0x8d), T0, (struct place){T1, T0, 0, in->disp});
        return (struct place){T0, NO_REG, 0, 0};
    }
    flags_yield(e, i);
    int64_t low = in->disp, high = low + (int64_t)r->bytes;
    unsigned members = may_lead(e, in) ? gather(e, i, r, &low, &high) : 0;
    unsigned slot = slot_for(e, r);
    if (low != (int32_t)low) {
        members = 0;
        low = in->disp;
        high = low + (int64_t)r->bytes;
    }
    struct check check = {slot, (unsigned)(high - low), r->write, members > 0};
    put_offset(e, in, low);
    put_segment(e, i, in->segment, check.bytes, r->write, check.group);
    put_check(e, i, check);
    if (members) {
        struct group *group = &e->groups[e->next_group++ % GROUPS];
        *group = (struct group){.valid = true, .write = r->write, .base = in->base, .index = in->index, .scale = in->scale,
                                .segment = in->segment, .asize = in->asize, .base_moved = moved, .low = low, .high = high, .slot = slot};
    }
    return (struct place){T0, NO_REG, 0, (int32_t)(in->disp - low)};
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
    unsigned slot = slot_for(e, r), log_bits = in->osize == 8 ? 6 : 5;
    flags_yield(e, i);
    put_offset(e, in, in->disp);
    put_segment(e, i, in->segment, r->bytes, r->write, false);
    unsigned index = fetch_register(e, in->reg, T1);
    op_rr(a, in->osize == 8 ? OPCW(0x89) : OPCW(0x63), in->osize == 8 ? index : T1, in->osize == 8 ? T1 : index);
    shift_imm(a, SHIFT_SAR, true, T1, log_bits);
    op_place(a, OPCW(0x8d), T0, (struct place){T0, T1, (uint8_t)(log_bits - 3), 0});
    put_check(e, i, (struct check){slot, r->bytes, r->write, false});
    return (struct place){T0, NO_REG, 0, 0};
}

struct place memory_push(struct emitter *e, unsigned i)
{
    unsigned size = emit_uop(e, i)->in.osize;
    struct reference r = stack_reference(e->cpu, -(int32_t)size, size, true);
    return place_of(e, i, &r, true);
}

/* ---- the slow way ---- */

void memory_cold(struct emitter *e, const struct cold *cold)
{
    struct assembler *a = &e->a;
    if (cold->kind == COLD_ACCESS) {
        mov_rr(a, T1, T0);
        alu_imm(a, ALU_AND, false, T1, GUEST_PAGE_SIZE - 1);
        alu_imm(a, ALU_CMP, false, T1, GUEST_PAGE_SIZE - cold->bytes);
        uint8_t *crosses = put_jcc(a, CC_ABOVE);
        mov_imm64(a, T1, slot_at(e, cold->slot));
        jit_put_call(e->jit, a, e->jit->refill[cold->write]);
        patch_jump(put_jcc(a, CC_AE), cold->done);
        patch_jump(crosses, a->p);
    }
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
    if (cold->restore)
        flags_restore(e);
    patch_jump(put_jmp(a), cold->resume);
}
