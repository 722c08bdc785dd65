/* SPDX-License-Identifier: MIT */
/* The first level of struct mmu. */
#define _GNU_SOURCE
#include "tlb.h"

#include <stdlib.h>
#include <sys/random.h>

#include "../../base/bits.h"

/* Whatever tag an empty slot has, the page of that number hits it: so it is one that is not canonical, and leads to a
 * page of its own, in which nothing is lost and nothing to be found. Translated code gets no #GP in this one page, of
 * which no guest knows the number: it has 2^50 to try. */
static uint64_t secret_page(const struct mmu *mmu)
{
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number)
        number = (uintptr_t)mmu * UINT64_C(0x9e3779b97f4a7c15);
    return align_down((number & ~BIT(63)) | BIT(62), GUEST_PAGE_SIZE);
}

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
    slot->tag = mmu->empty_page;
    slot->addend = (uint64_t)mmu->nowhere - mmu->empty_page;
}

/* Is what the slot holds to go? `what` is the caller's. */
typedef bool slot_rule(const struct mmu *mmu, unsigned bank, const struct access_slot *slot, uint64_t what, unsigned shift);

static inline bool is_high(uint64_t linear) { return linear >> 63; }

static inline void group_drop_if(struct mmu *mmu, unsigned bank, unsigned group, slot_rule *rule, uint64_t what,
                                 unsigned shift, uint8_t high_mark)
{
    uint8_t left = 0;
    struct access_slot *slot = &mmu->slots[bank][group * SLOT_GROUP];
    for (struct access_slot *end = slot + SLOT_GROUP; slot < end; slot++) {
        if (slot->tag == mmu->empty_page)
            continue;
        if (rule(mmu, bank, slot, what, shift))
            slot_clear(mmu, slot);
        else
            left |= is_high(slot->tag) ? high_mark : SLOT_LOCAL;
    }
    mmu->slots_filled[bank][group] = left;
}

/* In those of the first groups that have any of these marks. `known_global`: slots of the high half that are kept are
 * known to be so. */
static inline void groups_drop_if(struct mmu *mmu, unsigned bank, unsigned groups, uint8_t marks, slot_rule *rule,
                                  uint64_t what, unsigned shift, bool known_global)
{
    uint64_t wanted = marks * UINT64_C(0x0101010101010101);
    for (unsigned first = 0; first < groups; first += 8) {
        uint8_t *mark = &mmu->slots_filled[bank][first];
        uint64_t filled = load_le64(mark) & wanted;
        for (unsigned next; filled; filled &= ~(UINT64_C(0xff) << next)) {
            next = (unsigned)__builtin_ctzll(filled) & ~7u;
            group_drop_if(mmu, bank, first + next / 8, rule, what, shift, known_global ? SLOT_HIGH : mark[next / 8]);
        }
    }
}

static inline void slots_drop_if(struct mmu *mmu, unsigned bank, uint8_t marks, slot_rule *rule, uint64_t what, unsigned shift,
                                 bool known_global)
{
    groups_drop_if(mmu, bank, SLOT_GROUPS, marks, rule, what, shift, known_global);
}

static inline bool any_page(const struct mmu *mmu, unsigned bank, const struct access_slot *slot, uint64_t what, unsigned shift)
{
    (void)mmu, (void)bank, (void)slot, (void)what, (void)shift;
    return true;
}

static inline bool not_in_bank(const struct mmu *mmu, unsigned bank, const struct access_slot *slot, uint64_t what, unsigned shift)
{
    (void)what, (void)shift;
    return mmu->tlb[bank][(slot->tag / GUEST_PAGE_SIZE) % TLB_ENTRIES].read_tag != slot->tag;
}

static inline bool near(const struct mmu *mmu, unsigned bank, const struct access_slot *slot, uint64_t linear, unsigned shift)
{
    (void)mmu, (void)bank;
    return (slot->tag ^ linear) >> shift == 0;
}

static inline bool leads_to(const struct mmu *mmu, unsigned bank, const struct access_slot *slot, uint64_t host, unsigned shift)
{
    (void)mmu, (void)bank, (void)shift;
    return slot->tag + slot->addend == host;
}

/* ---- the level between ---- */

static struct wide_entry *wide_at(struct mmu *mmu, unsigned bank, uint64_t page)
{
    return &mmu->wide[bank][(page / GUEST_PAGE_SIZE) % WIDE_ENTRIES];
}

/* What was entered with the half's key that was is no longer found. */
static void wide_forget_half(struct mmu *mmu, bool high)
{
    uint64_t *key = &mmu->wide_key[high];
    *key += 2 * WIDE_WRITABLE;
    if (likely(*key < GUEST_PAGE_SIZE))
        return;
    *key = 3 * WIDE_WRITABLE; /* tags of zeros have no key */
    for (unsigned bank = 0; mmu->wide && bank < TLB_BANKS; bank++)
        for (unsigned i = 0; i < WIDE_ENTRIES; i++)
            if (mmu->wide[bank][i].tag && is_high(mmu->wide[bank][i].tag) == high) /* reading leaves an untouched page what it is */
                mmu->wide[bank][i].tag = 0;
}

static void wide_forget(struct mmu *mmu)
{
    wide_forget_half(mmu, false);
    wide_forget_half(mmu, true);
}

static void wide_keep(struct mmu *mmu, unsigned bank, const struct tlb_entry *entry)
{
    if (!mmu->wide)
        return;
    bool writable = entry->write_tag == entry->read_tag;
    uint64_t key = mmu->wide_key[is_high(entry->read_tag)] & ~(uint64_t)WIDE_WRITABLE;
    if (is_high(entry->read_tag) && entry->gpa & SLOT_LOCAL)
        return;
    *wide_at(mmu, bank, entry->read_tag) = (struct wide_entry){entry->read_tag | key | writable, entry->addend};
}

static void wide_drop_page(struct mmu *mmu, unsigned bank, uint64_t page)
{
    if (mmu->wide && (wide_at(mmu, bank, page)->tag ^ page) < GUEST_PAGE_SIZE)
        wide_at(mmu, bank, page)->tag = 0;
}

/* ---- */

static void strays_clear(uint64_t words[STRAY_WORDS])
{
    for (unsigned word = 0; word < STRAY_WORDS; word++)
        words[word] = 0;
}

/* Slots lose what the banks have lost, and all strays. */
static void slots_follow(struct mmu *mmu)
{
    wide_forget(mmu);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        slots_drop_if(mmu, bank, SLOT_ANY, not_in_bank, 0, 0, false);
        strays_clear(mmu->strays[bank].low);
        strays_clear(mmu->strays[bank].high);
        strays_clear(mmu->strays[bank].gpa);
    }
}

/* The same where the banks have kept what is global, and nothing else. */
static void local_slots_follow(struct mmu *mmu)
{
    wide_forget_half(mmu, false);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        slots_drop_if(mmu, bank, SLOT_LOCAL, not_in_bank, 0, 0, true);
        strays_clear(mmu->strays[bank].low);
    }
}

/* The pages that differ from `linear` only below bit `shift`. */
static void slots_drop_near(struct mmu *mmu, unsigned bank, uint64_t linear, unsigned shift)
{
    slots_drop_if(mmu, bank, is_high(linear) ? SLOT_ANY : SLOT_LOCAL, near, linear, shift, false);
}

static uint64_t *stray_word(uint64_t words[STRAY_WORDS], uint64_t page, uint64_t *bit)
{
    uint64_t hash = (page / GUEST_PAGE_SIZE * UINT64_C(0x9e3779b97f4a7c15)) >> 53; /* 11 bits */
    *bit = BIT(hash % 64);
    return &words[hash / 64];
}

static void note_stray(uint64_t words[STRAY_WORDS], uint64_t page)
{
    uint64_t bit, *word = stray_word(words, page, &bit);
    *word |= bit;
}

static uint64_t *linear_strays(struct mmu *mmu, unsigned bank, uint64_t linear)
{
    return is_high(linear) ? mmu->strays[bank].high : mmu->strays[bank].low;
}

static bool is_stray(uint64_t words[STRAY_WORDS], uint64_t page)
{
    uint64_t bit, *word = stray_word(words, page, &bit);
    return *word & bit;
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

bool mmu_track_stores(struct mmu *mmu)
{
    uint64_t end = 0;
    for (unsigned i = 0; i < mmu->mem->count; i++)
        end = MAX(end, mmu->mem->regions[i].gpa + mmu->mem->regions[i].size);
    mmu->stored_pages = align_up(end / GUEST_PAGE_SIZE, 64);
    mmu->stored = calloc(TLB_BANKS * mmu->stored_pages / 64 + 1, sizeof *mmu->stored);
    return mmu->stored;
}

static uint64_t *stored_word(struct mmu *mmu, unsigned bank, uint64_t gpa)
{
    uint64_t page = gpa / GUEST_PAGE_SIZE;
    return mmu->stored && page < mmu->stored_pages ? &mmu->stored[(bank * mmu->stored_pages + page) / 64] : NULL;
}

static void set_stored(struct mmu *mmu, unsigned bank, uint64_t gpa, bool stored)
{
    uint64_t *word = stored_word(mmu, bank, gpa), bit = BIT(gpa / GUEST_PAGE_SIZE % 64);
    if (word)
        *word = stored ? *word | bit : *word & ~bit;
}

static bool may_be_stored(struct mmu *mmu, unsigned bank, uint64_t gpa)
{
    const uint64_t *word = stored_word(mmu, bank, gpa);
    return !word || *word >> (gpa / GUEST_PAGE_SIZE % 64) & 1;
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
    if (entry->read_tag != page && (marks->filled[i / 64] >> (i % 64) & 1)) {
        note_stray(linear_strays(mmu, bank, entry->read_tag), entry->read_tag);
        note_stray(mmu->strays[bank].gpa, align_down(entry->gpa, GUEST_PAGE_SIZE));
        wide_keep(mmu, bank, entry);
    }
    entry_clear(entry, i);
    entry->read_tag = page;
    entry->addend = (uint64_t)(region->host + offset) - page;
    entry->gpa = gpa_page | (is_high(page) && translation->global ? SLOT_HIGH : SLOT_LOCAL);
    /* Writes to ROM, and to pages that hold decoded code, must come through the slow path. */
    if (translation->writable && !region->read_only &&
        !atomic_load_explicit(&region->code_granules[offset / GUEST_PAGE_SIZE], memory_order_relaxed)) {
        entry->write_tag = page;
        set_stored(mmu, bank, gpa_page, true);
    }
    tlb_set_mark(marks->filled, i, true);
    tlb_set_mark(marks->global, i, translation->global);
    tlb_set_mark(marks->large, i, translation->shift > GUEST_PAGE_SHIFT);
}

static void drop_write(struct mmu *mmu, unsigned bank, unsigned i)
{
    mmu->tlb[bank][i].write_tag = i ? 0 : GUEST_PAGE_SIZE;
}

void mmu_drop_writes(struct mmu *mmu, uint64_t gpa)
{
    gpa = align_down(gpa, GUEST_PAGE_SIZE);
    uint64_t host = (uint64_t)guest_mem_ptr(mmu->mem, gpa, GUEST_PAGE_SIZE, false);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        if (!may_be_stored(mmu, bank, gpa))
            continue;
        bool perhaps = is_stray(mmu->strays[bank].gpa, gpa);
        if (perhaps)
            wide_forget(mmu);
        for (unsigned word = 0; word < TLB_ENTRIES / 64; word++) {
            for (uint64_t left = mmu->marks[bank].filled[word]; left; left &= left - 1) {
                unsigned i = word * 64 + (unsigned)__builtin_ctzll(left);
                struct tlb_entry *entry = &mmu->tlb[bank][i];
                if (likely(align_down(entry->gpa, GUEST_PAGE_SIZE) != gpa || entry->write_tag != entry->read_tag))
                    continue; /* slots that write were filled from entries that may */
                perhaps = true;
                drop_write(mmu, bank, i);
            }
        }
        if (perhaps)
            groups_drop_if(mmu, bank, STORE_GROUPS, SLOT_ANY, leads_to, host, 0, false);
        set_stored(mmu, bank, gpa, false);
    }
}

void mmu_drop_all_writes(struct mmu *mmu)
{
    wide_forget(mmu);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        groups_drop_if(mmu, bank, STORE_GROUPS, SLOT_ANY, any_page, 0, 0, false);
        for (unsigned word = 0; word < TLB_ENTRIES / 64; word++)
            for (uint64_t left = mmu->marks[bank].filled[word]; left; left &= left - 1)
                drop_write(mmu, bank, word * 64 + (unsigned)__builtin_ctzll(left));
    }
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
    if (global_too)
        slots_follow(mmu);
    else
        local_slots_follow(mmu);
    if (global_too) {
        mmu->large[0].mask = mmu->large[1].mask = 0;
        mmu->large_shift = 0;
    }
}

void mmu_flush_rights(struct mmu *mmu)
{
    for (unsigned bank = 0; bank < TLB_BANKS; bank++)
        bank_drop(mmu, bank, true);
    slots_follow(mmu);
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
    wide_forget(mmu);
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
        bool known = mmu->tlb[bank][i].read_tag == page;
        if (known)
            bank_drop_entry(mmu, bank, i);
        wide_drop_page(mmu, bank, page);
        if (known || is_stray(linear_strays(mmu, bank, page), page))
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
    mmu->wide_key[0] = mmu->wide_key[1] = WIDE_WRITABLE;
    mmu->empty_page = secret_page(mmu);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        mmu_clear_bank(mmu->tlb[bank]);
        for (unsigned i = 0; i < ACCESS_SLOTS; i++)
            slot_clear(mmu, &mmu->slots[bank][i]);
    }
    for (unsigned i = 0; i < FETCH_ENTRIES; i++)
        mmu->fetch[i].tag = FETCH_EMPTY;
    tlb_drop(mmu, true);
}
