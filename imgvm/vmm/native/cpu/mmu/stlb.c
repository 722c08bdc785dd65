/* SPDX-License-Identifier: MIT */
#include "stlb.h"

#include "../../arch/x86.h"
#include "../../base/bits.h"

#define SPACE_MASK (BIT(STLB_SPACE_BITS) - 1)

const uint8_t leaf_shift[LEAF_SIZES] = {[LEAF_4K] = 12, [LEAF_2M] = 21, [LEAF_4M] = 22, [LEAF_1G] = 30};

static unsigned set_of(uint64_t linear, enum leaf_size size)
{
    uint64_t page = linear >> leaf_shift[size];
    return (unsigned)(page ^ page >> 10) % STLB_SETS;
}

/* Bits 63:57 of a canonical address are copies of bit 56. */
static uint64_t tag_of(uint64_t linear, enum leaf_size size, uint64_t space)
{
    unsigned shift = leaf_shift[size];
    return (linear >> shift << shift) << 7 | (uint64_t)size << STLB_SPACE_BITS | (space & SPACE_MASK);
}

/* ---- address spaces ---- */

/* Not by memset: the guest's vector state may be in the registers that it uses. */
static void empty(struct stlb *stlb)
{
    for (unsigned i = 0; i < STLB_SETS; i++)
        for (unsigned way = 0; way < STLB_WAYS; way++)
            stlb->set[i].leaf[way] = 0;
    for (unsigned i = 0; i < ARRAY_LEN(stlb->living); i++)
        stlb->living[i] = 0;
    stlb->sizes = BIT(LEAF_4K);
}

static void set_living(struct stlb *stlb, uint64_t space, bool living)
{
    uint64_t *word = &stlb->living[(space & SPACE_MASK) / 64];
    *word = (*word & ~BIT(space % 64)) | (uint64_t)living << (space % 64);
}

static uint64_t take_number(struct stlb *stlb)
{
    set_living(stlb, stlb->next, true);
    return stlb->next++;
}

static uint64_t new_space(struct stlb *stlb)
{
    if (unlikely(!(stlb->next & SPACE_MASK))) {
        /* tags begin to repeat: nothing of the old ones may be left, nor any space that still uses one */
        empty(stlb);
        stlb->oldest = ++stlb->next;
        stlb->global = take_number(stlb);
        stlb->current = stlb->space[stlb->pcid] = take_number(stlb);
    }
    return take_number(stlb);
}

void stlb_select(struct stlb *stlb, unsigned pcid)
{
    stlb->pcid = pcid;
    if (stlb->space[pcid] < stlb->oldest)
        stlb->space[pcid] = new_space(stlb);
    stlb->current = stlb->space[pcid];
}

void stlb_init(struct stlb *stlb)
{
    empty(stlb);
    for (unsigned i = 0; i < STLB_PCIDS; i++)
        stlb->space[i] = 0;
    stlb->pcid = 0;
    stlb->next = stlb->oldest = 1;
    stlb->global = new_space(stlb);
    stlb_select(stlb, 0);
}

void stlb_drop_all(struct stlb *stlb)
{
    set_living(stlb, stlb->global, false);
    stlb->global = new_space(stlb);
    stlb->sizes = BIT(LEAF_4K);
    stlb_drop_local(stlb);
}

void stlb_drop_local(struct stlb *stlb)
{
    for (unsigned i = 0; i < ARRAY_LEN(stlb->living); i++)
        stlb->living[i] = 0;
    set_living(stlb, stlb->global, true);
    stlb->oldest = stlb->next;
    stlb_select(stlb, stlb->pcid);
}

void stlb_drop_space(struct stlb *stlb, unsigned pcid)
{
    if (stlb->space[pcid] >= stlb->oldest)
        set_living(stlb, stlb->space[pcid], false);
    stlb->space[pcid] = 0;
    if (pcid == stlb->pcid)
        stlb_select(stlb, pcid);
}

/* ---- translations ---- */

/* The way that holds it, or STLB_WAYS. */
static inline unsigned find(const struct stlb *stlb, const struct stlb_set *set, uint64_t linear, enum leaf_size size)
{
    uint64_t own = tag_of(linear, size, stlb->current), shared = tag_of(linear, size, stlb->global);
    unsigned way = 0;
    while (way < STLB_WAYS && ((set->tag[way] != own && set->tag[way] != shared) || !set->leaf[way]))
        way++;
    return way;
}

uint64_t stlb_lookup(struct stlb *stlb, uint64_t linear)
{
    for (unsigned sizes = stlb->sizes; sizes; sizes &= sizes - 1) {
        enum leaf_size size = (enum leaf_size)__builtin_ctz(sizes);
        unsigned index = set_of(linear, size);
        unsigned way = find(stlb, &stlb->set[index], linear, size);
        if (way == STLB_WAYS)
            continue;
        stlb->clock[index] |= (uint8_t)(1u << way);
        return stlb->set[index].leaf[way];
    }
    return 0;
}

static bool is_free(const struct stlb *stlb, const struct stlb_set *set, unsigned way)
{
    uint64_t space = set->tag[way] & SPACE_MASK;
    return !set->leaf[way] || !(stlb->living[space / 64] >> (space % 64) & 1);
}

/* CLOCK: the hand passes over what was used since it came by last, and takes the first that was not. */
static unsigned victim(struct stlb *stlb, unsigned index)
{
    unsigned used = stlb->clock[index] & 15u, hand = stlb->clock[index] >> 4;
    while (used >> hand & 1) {
        used &= ~(1u << hand);
        hand = (hand + 1) % STLB_WAYS;
    }
    stlb->clock[index] = (uint8_t)(((hand + 1) % STLB_WAYS) << 4 | used);
    return hand;
}

void stlb_insert(struct stlb *stlb, uint64_t linear, uint64_t leaf)
{
    enum leaf_size size = leaf_size(leaf);
    unsigned index = set_of(linear, size);
    struct stlb_set *set = &stlb->set[index];
    unsigned way = find(stlb, set, linear, size);
    for (unsigned i = 0; way == STLB_WAYS && i < STLB_WAYS; i++)
        if (is_free(stlb, set, i))
            way = i;
    if (way == STLB_WAYS)
        way = victim(stlb, index);
    stlb->clock[index] &= (uint8_t)~(1u << way); /* whoever was there before: it has yet to be used again */
    set->tag[way] = tag_of(linear, size, leaf & PTE_G ? stlb->global : stlb->current);
    set->leaf[way] = leaf;
    stlb->sizes |= (uint8_t)BIT(size);
}

static void drop(struct stlb *stlb, uint64_t linear, uint64_t space)
{
    for (unsigned sizes = stlb->sizes; sizes; sizes &= sizes - 1) {
        enum leaf_size size = (enum leaf_size)__builtin_ctz(sizes);
        struct stlb_set *set = &stlb->set[set_of(linear, size)];
        for (unsigned way = 0; way < STLB_WAYS; way++)
            if (set->tag[way] == tag_of(linear, size, space))
                set->leaf[way] = 0;
    }
}

void stlb_drop_page(struct stlb *stlb, uint64_t linear)
{
    drop(stlb, linear, stlb->current);
    drop(stlb, linear, stlb->global);
}

void stlb_drop_page_of(struct stlb *stlb, unsigned pcid, uint64_t linear)
{
    if (stlb->space[pcid] >= stlb->oldest)
        drop(stlb, linear, stlb->space[pcid]);
}
