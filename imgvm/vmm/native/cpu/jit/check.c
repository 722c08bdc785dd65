/* SPDX-License-Identifier: MIT */
/* The check of a memory operand's address, and its translation. Each operand has an access slot, which remembers the page it
 * went to last:
 *
 *     lea  r14, [operand]
 *     mov  r15, r14
 *     xor  r15, gs:[slot.tag]
 *     cmp  r15, 4096 - bytes        the same page, and the operand does not leave it
 *     ja   cold                     refilled from the TLB, the TLB from the tables; or the executor
 *     add  r14, gs:[slot.addend]
 *     OP   ..., [r14]
 *
 * An operand of one register and a constant does without r14: OP ..., [register + r15 + constant], where r15 is the addend. It
 * stays there for the others of its group, until something changes r15.
 *
 * (It could be checked as r14 - tag and end so as well. That waits less and is an instruction shorter, but was slower by
 * 5 % on the host that it was measured on.)
 *
 * One that goes to several pages by turns misses all the time. There are two other checks for it, and learn.c finds out
 * which does best. With several slots, the cold path looks into the others: as fast as one slot, where the host's
 * prediction learns which of them is next. Or the TLB is asked in line, which waits longer, but predicts nothing:
 *
 *     lea  r14, [operand]
 *     mov  r15d, r14d; shr r15d, 7; and r15d, 1023 * 32
 *     xor  r14, gs:[r15 + tlb.tag]
 *     cmp  r14, 4096 - bytes; ja cold
 *     mov  r15, gs:[r15 + tlb.addend]
 *     OP   ..., [operand + r15] */
#include "emit.h"

#define FEW 4 /* slots */
#define SLOT_BYTES ((uint32_t)sizeof(struct access_slot))

static uint32_t slot_at(const struct emitter *e, unsigned slot)
{
    return CPU(mmu.slots) + (uint32_t)(e->bank * ACCESS_SLOTS + slot) * SLOT_BYTES;
}

static uint32_t addend_at(const struct emitter *e, unsigned slot)
{
    return slot_at(e, slot) + offsetof(struct access_slot, addend);
}

/* Operands that are likely to meet in a page share slots: the fewer there are in use, the fewer are to be filled again
 * when translations were dropped. Of a kind they are told apart by a hash, so that two that do not meet seldom disturb
 * each other. Each slot is for loads or for stores. */
enum { STACK_SLOTS = 16, SEGMENT_SLOTS = 32, CONSTANT_SLOTS = 128, SHARED_SLOTS = STACK_SLOTS + SEGMENT_SLOTS + CONSTANT_SLOTS };
_Static_assert(SHARED_SLOTS % FEW == 0 && STORE_SLOTS % FEW == 0 && ACCESS_SLOTS % FEW == 0, "several slots of an operand's own lie together");

static unsigned shared_slot(unsigned first, unsigned slots, uint64_t page, bool write)
{
    return first + (unsigned)((page ^ page >> 7) % (slots / 2)) * 2 + write;
}

static unsigned own_slots(struct emitter *e, unsigned count, bool write)
{
    unsigned *next = &e->jit->next_slot[write];
    unsigned first = write ? SHARED_SLOTS : STORE_SLOTS, end = write ? STORE_SLOTS : ACCESS_SLOTS;
    *next = (unsigned)align_up(*next, count);
    unsigned slot = first + *next % (end - first);
    *next += count;
    return slot;
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
    return own_slots(e, 1, r->write);
}

/* Can the address be made a second time without T1, and is it linear? */
static bool may_ask_tlb(const struct emitter *e, const struct insn *in)
{
    bool index_in_memory = in->index != INSN_REG_NONE && host_register(in->index) == NO_REG;
    return e->code64 && in->segment == INSN_SEG_FLAT && in->asize == 8 && !index_in_memory;
}

struct check check_of(struct emitter *e, const struct reference *r, unsigned bytes, unsigned learnt)
{
    struct check check = {.bytes = bytes, .write = r->write, .low = r->in.disp, .pages = learnt & PAGES_MASK, .trial = learnt & PAGES_TRIAL};
    if (check.pages == MANY_PAGES && !may_ask_tlb(e, &r->in))
        check.pages = FEW_PAGES;
    check.slot = check.pages == FEW_PAGES ? own_slots(e, FEW, r->write) : check.pages == MANY_PAGES ? own_slots(e, 1, r->write) : slot_for(e, r);
    return check;
}

uint32_t check_addend(const struct emitter *e, const struct check *check)
{
    return check->pages == ONE_PAGE ? addend_at(e, check->slot) : check->lead;
}

/* The slots may hold other pages from here on, and T1 is no addend. */
static void forget_slots(struct emitter *e, const struct check *check)
{
    unsigned count = check->pages == FEW_PAGES ? FEW : 1;
    for (unsigned g = 0; g < GROUPS; g++)
        if (e->groups[g].slot - check->slot < count)
            e->groups[g].valid = false;
    e->held_at = NULL;
}

/* Before the address is made: counts the accesses of a check on trial. */
void check_begin(struct emitter *e, unsigned i, const struct check *check)
{
    if (!check->trial)
        return;
    op_cpu(&e->a, OPC(0xff), 1, CPU(trial_left)); /* dec */
    struct cold *cold = emit_cold(e, COLD_LIMIT, i);
    cold->patch = put_jcc(&e->a, CC_EQUAL);
    cold->group = check->group;
}

static struct cold *put_miss(struct emitter *e, unsigned i, const struct insn *in, const struct check *check)
{
    struct cold *cold = emit_cold(e, COLD_ACCESS, i);
    cold->in = *in;
    cold->patch = put_jcc(&e->a, CC_ABOVE);
    cold->check = *check;
    cold->group = check->group;
    return cold;
}

/* T1: linear, and lost. "Above": it is not in the slot. */
static void put_compare(struct emitter *e, unsigned slot, unsigned bytes)
{
    op_cpu(&e->a, OPCW(0x33), T1, slot_at(e, slot));
    alu_imm(&e->a, ALU_CMP, true, T1, GUEST_PAGE_SIZE - bytes);
}

/* Is the operand's register the host's, so that its address need not be kept until the addend is there? */
bool check_is_direct(const struct emitter *e, const struct insn *in, bool keep_t1)
{
    return !keep_t1 && e->code64 && in->asize == 8 && in->segment == INSN_SEG_FLAT && in->base < 16 &&
           host_register(in->base) != NO_REG && in->index == INSN_REG_NONE;
}

static struct place beside_base(const struct insn *in, const struct check *check)
{
    return (struct place){(uint8_t)host_register(in->base), T1, 0, (int32_t)check->low};
}

/* T1 is the addend from here on, until something is emitted that changes it. */
static void hold_addend(struct emitter *e, const struct check *check)
{
    if (!check->group)
        return;
    if (check->pages != ONE_PAGE)
        op_cpu(&e->a, OPCW(0x89), T1, check->lead);
    e->held = check_addend(e, check);
    e->held_at = e->a.p;
}

/* T1: linear; the addend from here on, unless it was added to T0. */
static void put_slot_check(struct emitter *e, unsigned i, const struct insn *in, const struct check *check)
{
    put_compare(e, check->slot, check->bytes);
    struct cold *cold = put_miss(e, i, in, check);
    op_cpu(&e->a, check->adds ? OPCW(0x03) : OPCW(0x8b), check->adds ? T0 : T1, addend_at(e, check->slot));
    cold->done = e->a.p;
}

/* T0: linear, and lost; T1 is the addend from here on. */
static void put_tlb_check(struct emitter *e, unsigned i, const struct insn *in, const struct check *check)
{
    struct assembler *a = &e->a;
    uint32_t bank = CPU(mmu.tlb) + e->bank * (uint32_t)sizeof(((struct mmu *)0)->tlb[0]);
    uint32_t tag = check->write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag);
    op_rr(a, OPC(0x89), T0, T1);
    put_tlb_index(a, T1);
    op_cpu_at(a, OPCW(0x33), T0, T1, bank + tag);
    alu_imm(a, ALU_CMP, true, T0, GUEST_PAGE_SIZE - check->bytes);
    struct cold *cold = put_miss(e, i, in, check);
    op_cpu_at(a, OPCW(0x8b), T1, T1, bank + (uint32_t)offsetof(struct tlb_entry, addend));
    cold->done = a->p;
}

struct place check_put_direct(struct emitter *e, unsigned i, const struct insn *in, struct check *check)
{
    struct assembler *a = &e->a;
    forget_slots(e, check);
    check->remade = true;
    if (check->pages == MANY_PAGES) {
        memory_offset(e, in, check->low);
        put_tlb_check(e, i, in, check);
    } else {
        unsigned base = host_register(in->base);
        if (check->low)
            op_rm(a, OPCW(0x8d), T1, base, (int32_t)check->low);
        else
            mov_rr(a, T1, base);
        put_slot_check(e, i, in, check);
    }
    hold_addend(e, check);
    return beside_base(in, check);
}

bool check_is_of_page(const struct emitter *e, const struct insn *in, const struct check *check)
{
    return e->block->floats && in->base == INSN_REG_RIP && in->index == INSN_REG_NONE && in->segment == INSN_SEG_FLAT &&
           in->asize == 8 && check->pages == ONE_PAGE &&
           (e->rip + (uint64_t)check->low) % GUEST_PAGE_SIZE + check->bytes <= GUEST_PAGE_SIZE;
}

/* What is read there does not wait for cpu->code_page, which may just have been written: the slot knows the page. */
struct place check_put_of_page(struct emitter *e, unsigned i, const struct insn *in, struct check *check)
{
    struct assembler *a = &e->a;
    uint64_t at = e->rip + (uint64_t)check->low, page = align_down(at, GUEST_PAGE_SIZE);
    forget_slots(e, check);
    e->held_at = NULL;
    check->remade = check->of_page = true;
    emit_rip(e, T1, page);
    op_cpu(a, OPCW(0x3b), T1, slot_at(e, check->slot));
    struct cold *cold = emit_cold(e, COLD_ACCESS, i);
    cold->in = *in;
    cold->patch = put_jcc(a, CC_NE);
    cold->check = *check;
    cold->done = a->p;
    op_cpu(a, OPCW(0x8b), T0, slot_at(e, check->slot));
    op_cpu(a, OPCW(0x03), T0, addend_at(e, check->slot));
    return (struct place){T0, NO_REG, 0, (int32_t)(at - page)};
}

struct place check_put(struct emitter *e, unsigned i, const struct insn *in, struct check *check, bool keep_t1)
{
    struct assembler *a = &e->a;
    forget_slots(e, check);
    check->adds = check->pages == ONE_PAGE;
    check->remade = check->pages == MANY_PAGES;
    if (check->remade) {
        put_tlb_check(e, i, in, check);
        memory_offset(e, in, check->low);
    } else {
        mov_rr(a, T1, T0);
        put_slot_check(e, i, in, check);
    }
    if (check->adds)
        return (struct place){T0, NO_REG, 0, 0};
    hold_addend(e, check);
    if (!keep_t1)
        return (struct place){T0, T1, 0, 0};
    op_rr(a, OPCW(0x01), T1, T0);
    return (struct place){T0, NO_REG, 0, 0};
}

/* ---- the slow way ---- */

/* T1 := the slot to be filled. */
static void put_next_slot(struct emitter *e, const struct check *check)
{
    struct assembler *a = &e->a;
    if (check->pages != FEW_PAGES) {
        mov_imm64(a, T1, slot_at(e, check->slot));
        return;
    }
    op_cpu(a, OPC(0x8b), T1, CPU(next_of_few));
    alu_imm(a, ALU_ADD, false, T1, SLOT_BYTES);
    alu_imm(a, ALU_AND, false, T1, (FEW - 1) * SLOT_BYTES);
    op_cpu(a, OPC(0x89), T1, CPU(next_of_few));
    alu_imm(a, ALU_ADD, false, T1, slot_at(e, check->slot));
}

void check_cold(struct emitter *e, const struct cold *cold)
{
    struct assembler *a = &e->a;
    const struct check *check = &cold->check;
    if (check->remade)
        memory_offset(e, &cold->in, check->low);
    for (unsigned k = 1; check->pages == FEW_PAGES && k < FEW; k++) {
        mov_rr(a, T1, T0);
        put_compare(e, check->slot + k, check->bytes);
        uint8_t *next = put_jcc(a, CC_ABOVE);
        op_cpu(a, OPCW(0x8b), T1, addend_at(e, check->slot + k));
        patch_jump(put_jmp(a), cold->done);
        patch_jump(next, a->p);
    }
    mov_rr(a, T1, T0);
    alu_imm(a, ALU_AND, false, T1, GUEST_PAGE_SIZE - 1);
    alu_imm(a, ALU_CMP, false, T1, GUEST_PAGE_SIZE - check->bytes);
    uint8_t *crosses = put_jcc(a, CC_ABOVE);
    put_next_slot(e, check);
    jit_put_call(e->jit, a, e->jit->refill[e->bank == MMU_USER][check->write]);
    if (check->adds || check->of_page) {
        patch_jump(put_jcc(a, CC_AE), cold->done);
    } else {
        uint8_t *refused = put_jcc(a, CC_BELOW);
        op_cpu_at(a, OPCW(0x8b), T1, T1, offsetof(struct access_slot, addend));
        if (!check->remade)
            op_rr(a, OPCW(0x29), T1, T0);
        patch_jump(put_jmp(a), cold->done);
        patch_jump(refused, a->p);
    }
    patch_jump(crosses, a->p);
}
