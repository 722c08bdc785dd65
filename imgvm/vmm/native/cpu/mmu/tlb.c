/* SPDX-License-Identifier: MIT */
/* The first level of struct mmu. */
#include "tlb.h"

#include "../../base/bits.h"

/* Whatever tag an empty slot has, the page of that number hits it: so it is one that is not canonical, and leads to a
 * page of its own, in which nothing is lost and nothing to be found. (Translated code gets no #GP in this one page.) */
#define SLOT_EMPTY_PAGE UINT64_C(0x5a1f93c6b7e2d000)

static inline void entry_clear(struct tlb_entry *entry, unsigned index)
{
    /* a page number whose low bits differ from the index */
    entry->read_tag = entry->write_tag = index ? 0 : GUEST_PAGE_SIZE;
}

void mmu_clear_bank(struct tlb_entry bank[TLB_ENTRIES])
{
    for (unsigned i = 0; i < TLB_ENTRIES; i++)
        entry_clear(&bank[i], i);
}

static inline void slot_clear(struct mmu *mmu, struct access_slot *slot)
{
    slot->tag = SLOT_EMPTY_PAGE;
    slot->addend = (uint64_t)mmu->nowhere - SLOT_EMPTY_PAGE;
}

/* What translated code remembers of a bank's entries goes with any of them: slots say nothing of a page but its tag. */
static void slots_drop(struct mmu *mmu)
{
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        for (unsigned i = 0; mmu->slots_used[bank] && i < ACCESS_SLOTS; i++)
            slot_clear(mmu, &mmu->slots[bank][i]);
        mmu->slots_used[bank] = false;
        for (unsigned word = 0; word < STRAY_WORDS; word++)
            mmu->strays[bank][word] = 0;
        for (unsigned word = 0; word < TLB_ENTRIES / 64; word++)
            mmu->slots_used[bank] |= mmu->marks[bank].filled[word] != 0; /* they may be filled from what is left */
    }
}

/* The pages that differ from `linear` only below bit `shift`. */
static void slots_drop_near(struct mmu *mmu, unsigned bank, uint64_t linear, unsigned shift)
{
    for (unsigned i = 0; mmu->slots_used[bank] && i < ACCESS_SLOTS; i++)
        if ((mmu->slots[bank][i].tag ^ linear) >> shift == 0)
            slot_clear(mmu, &mmu->slots[bank][i]);
}

static uint64_t *stray_word(struct mmu *mmu, unsigned bank, uint64_t page, uint64_t *bit)
{
    uint64_t hash = (page / GUEST_PAGE_SIZE * UINT64_C(0x9e3779b97f4a7c15)) >> 55; /* 9 bits */
    *bit = BIT(hash % 64);
    return &mmu->strays[bank][hash / 64];
}

static void bank_drop(struct mmu *mmu, unsigned bank, bool global_too)
{
    struct tlb_marks *marks = &mmu->marks[bank];
    for (unsigned word = 0; word < TLB_ENTRIES / 64; word++) {
        uint64_t drop = marks->filled[word] & (global_too ? ~UINT64_C(0) : ~marks->global[word]);
        marks->filled[word] &= ~drop;
        for (; drop; drop &= drop - 1) {
            unsigned i = word * 64 + (unsigned)__builtin_ctzll(drop);
            entry_clear(&mmu->tlb[bank][i], i);
        }
    }
}

static void bank_drop_entry(struct mmu *mmu, unsigned bank, unsigned i)
{
    entry_clear(&mmu->tlb[bank][i], i);
    mmu->marks[bank].filled[i / 64] &= ~BIT(i % 64);
}

/* The parts of large pages that lie in the same 1 << shift bytes. */
static void bank_drop_large(struct mmu *mmu, unsigned bank, uint64_t linear, unsigned shift)
{
    struct tlb_marks *marks = &mmu->marks[bank];
    for (unsigned word = 0; word < TLB_ENTRIES / 64; word++) {
        for (uint64_t left = marks->filled[word] & marks->large[word]; left; left &= left - 1) {
            unsigned i = word * 64 + (unsigned)__builtin_ctzll(left);
            if ((mmu->tlb[bank][i].read_tag ^ linear) >> shift == 0)
                bank_drop_entry(mmu, bank, i);
        }
    }
}

void mmu_fill(struct mmu *mmu, uint64_t linear, const struct mmu_page *translation, const struct guest_region *region,
              enum mmu_who who)
{
    uint64_t page = align_down(linear, GUEST_PAGE_SIZE), gpa_page = align_down(translation->gpa, GUEST_PAGE_SIZE);
    for (unsigned held = 0; held < mmu->held_count; held++)
        if (unlikely(mmu->held_page[held] == page))
            return;
    for (unsigned w = 0; w < mmu->watch_count; w++)
        if (unlikely(mmu->watch_page[w] == page))
            return;
    unsigned i = (page / GUEST_PAGE_SIZE) % TLB_ENTRIES;
    unsigned bank = mmu_bank(mmu, who);
    struct tlb_entry *entry = &mmu->tlb[bank][i];
    struct tlb_marks *marks = &mmu->marks[bank];
    uint64_t offset = gpa_page - region->gpa;
    if (entry->read_tag != page) {
        uint64_t stray, *word = stray_word(mmu, bank, entry->read_tag, &stray);
        *word |= stray;
    }
    entry_clear(entry, i);
    entry->read_tag = page;
    entry->addend = (uint64_t)(region->host + offset) - page;
    entry->gpa = gpa_page;
    /* Writes to ROM, and to pages that hold decoded code, must come through the slow path. */
    if (translation->writable && !region->read_only &&
        !atomic_load_explicit(&region->code_granules[offset / GUEST_PAGE_SIZE], memory_order_relaxed))
        entry->write_tag = page;
    mmu->slots_used[bank] = true; /* for now slots may take entries from it */
    tlb_set_mark(marks->filled, i, true);
    tlb_set_mark(marks->global, i, translation->global);
    tlb_set_mark(marks->large, i, translation->shift > GUEST_PAGE_SHIFT);
}

static void drop_writes(struct mmu *mmu, bool all, uint64_t gpa)
{
    slots_drop(mmu);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        for (unsigned word = 0; word < TLB_ENTRIES / 64; word++) {
            for (uint64_t left = mmu->marks[bank].filled[word]; left; left &= left - 1) {
                unsigned i = word * 64 + (unsigned)__builtin_ctzll(left);
                struct tlb_entry *entry = &mmu->tlb[bank][i];
                if (all || entry->gpa == gpa)
                    entry->write_tag = i ? 0 : GUEST_PAGE_SIZE;
            }
        }
    }
}

void mmu_drop_writes(struct mmu *mmu, uint64_t gpa)
{
    drop_writes(mmu, false, align_down(gpa, GUEST_PAGE_SIZE));
}

void mmu_drop_all_writes(struct mmu *mmu)
{
    drop_writes(mmu, true, 0);
}

/* ---- dropping ---- */

static void fetch_drop(struct mmu *mmu, bool global_too)
{
    struct fetch_marks *marks = &mmu->fetch_marks;
    for (unsigned word = 0; word < FETCH_ENTRIES / 64; word++) {
        uint64_t drop = marks->filled[word] & (global_too ? ~UINT64_C(0) : ~marks->global[word]);
        marks->filled[word] &= ~drop;
        for (; drop; drop &= drop - 1)
            mmu->fetch[word * 64 + (unsigned)__builtin_ctzll(drop)].tag = FETCH_EMPTY;
    }
}

void tlb_drop(struct mmu *mmu, bool global_too)
{
    for (unsigned bank = 0; bank < TLB_BANKS; bank++)
        bank_drop(mmu, bank, global_too);
    fetch_drop(mmu, global_too);
    slots_drop(mmu);
    if (global_too) {
        mmu->large[0].mask = mmu->large[1].mask = 0;
        mmu->large_shift = 0;
    }
}

void mmu_flush_rights(struct mmu *mmu)
{
    for (unsigned bank = 0; bank < TLB_BANKS; bank++)
        bank_drop(mmu, bank, true);
    slots_drop(mmu);
}

void tlb_note_large(struct mmu *mmu, uint64_t linear, unsigned shift)
{
    unsigned half = linear >> 63;
    uint64_t mask = ~(BIT(shift) - 1);
    mmu->large_shift = MAX(mmu->large_shift, shift);
    if (!mmu->large[half].mask) {
        mmu->large[half].base = linear & mask;
        mmu->large[half].mask = mask;
        return;
    }
    mask &= mmu->large[half].mask;
    while ((linear ^ mmu->large[half].base) & mask)
        mask <<= 1;
    mmu->large[half].mask = mask;
    mmu->large[half].base &= mask;
}

/* A large page of which any part may be in the first level. */
static void drop_large_page(struct mmu *mmu, uint64_t linear)
{
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        bank_drop_large(mmu, bank, linear, mmu->large_shift);
        slots_drop_near(mmu, bank, linear, mmu->large_shift);
    }
    for (unsigned i = 0; i < FETCH_ENTRIES; i++)
        if (mmu->fetch[i].shift > GUEST_PAGE_SHIFT && (mmu->fetch[i].tag ^ linear) >> mmu->large_shift == 0)
            mmu->fetch[i].tag = FETCH_EMPTY;
}

void tlb_drop_page(struct mmu *mmu, uint64_t linear)
{
    uint64_t page = align_down(linear, GUEST_PAGE_SIZE);
    unsigned half = linear >> 63, i = (linear / GUEST_PAGE_SIZE) % TLB_ENTRIES;
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        uint64_t stray, *strays = stray_word(mmu, bank, page, &stray);
        bool known = mmu->tlb[bank][i].read_tag == page;
        if (known)
            bank_drop_entry(mmu, bank, i);
        if (known || (*strays & stray))
            slots_drop_near(mmu, bank, linear, GUEST_PAGE_SHIFT);
    }
    struct fetch_entry *fetch = &mmu->fetch[(linear / GUEST_PAGE_SIZE) % FETCH_ENTRIES];
    if ((fetch->tag & ~UINT64_C(1)) == page)
        fetch->tag = FETCH_EMPTY;
    if (unlikely(mmu->large[half].mask && ((linear ^ mmu->large[half].base) & mmu->large[half].mask) == 0))
        drop_large_page(mmu, linear);
}

void tlb_init(struct mmu *mmu)
{
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        mmu_clear_bank(mmu->tlb[bank]);
        mmu->slots_used[bank] = true;
    }
    for (unsigned i = 0; i < FETCH_ENTRIES; i++)
        mmu->fetch[i].tag = FETCH_EMPTY;
    tlb_drop(mmu, true);
}
