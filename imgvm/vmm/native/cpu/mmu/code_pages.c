/* SPDX-License-Identifier: MIT */
#include "code_pages.h"

#include "../../base/bits.h"
#include "tlb.h"
#include "walk.h"

/* A Bloom filter of one hash says which pages a translation that goes may have led to. A user's pages are listed as well, as
 * far as there is room: a large program has so many that the filter would say yes to most. So an address space that has
 * lost its translations (a MOV to CR3 without PCIDs; SDM vol. 3, 4.10.4.1) keeps its epoch, if they all are where they were:
 * the processor may fetch all translations anew at once, and these are looked up. */

#define PAGE_TICKS 60u /* of the host's TSC: what it costs to look one up */
#define WORTH 8u       /* so much longer than that it was at work, the last time */
#define PROBES 4u

static uint64_t *filter_word(struct code_pages *code, uint64_t linear, unsigned shift, uint64_t *bit)
{
    uint64_t hash = ((linear >> shift << 6 | shift) * UINT64_C(0x9e3779b97f4a7c15)) >> 52; /* 12 bits */
    *bit = BIT(hash % 64);
    return &code->filter[hash / 64];
}

/* By the linear address, by the physical one. */
static uint64_t key_of(const struct code_page *page, unsigned by)
{
    return by ? page->gpa : page->linear;
}

/* The page in the list, or NULL; then `place` is where the index may lead to it, CODE_INDEX if there is no such place. */
static const struct code_page *find_listed(const struct code_pages *code, unsigned by, uint64_t page, uint32_t *place)
{
    uint64_t hash = (page >> GUEST_PAGE_SHIFT) * UINT64_C(0x9e3779b97f4a7c15) >> 40;
    for (unsigned probe = 0; probe < PROBES; probe++) {
        *place = (uint32_t)(hash + probe) % CODE_INDEX;
        unsigned at = code->index[by][*place];
        if (at >= code->listed || code->list[at].place[by] != *place)
            return NULL; /* left from another epoch */
        if (key_of(&code->list[at], by) == page)
            return &code->list[at];
    }
    *place = CODE_INDEX;
    return NULL;
}

/* Links were made as if every page were at one address alone, or would have to be. */
static void begin_without_links(struct mmu *mmu, struct code_pages *code, bool *why)
{
    *why = true;
    code->epoch = ++mmu->last_epoch;
    mmu_select_epoch(mmu, mmu->user);
}

static void list_page(struct mmu *mmu, struct code_pages *code, uint64_t linear, uint64_t gpa)
{
    uint64_t page = align_down(linear, GUEST_PAGE_SIZE);
    uint32_t place[2] = {0, 0};
    if (find_listed(code, 0, page, &place[0]))
        return;
    bool twice = find_listed(code, 1, gpa, &place[1]);
    if (place[0] == CODE_INDEX || place[1] == CODE_INDEX || code->listed == CODE_LIST) {
        begin_without_links(mmu, code, &code->unlisted);
        return;
    }
    code->list[code->listed] = (struct code_page){page, gpa, {(uint16_t)place[0], (uint16_t)place[1]}};
    code->index[0][place[0]] = code->index[1][place[1]] = (uint16_t)code->listed++;
    if (twice && !code->twice)
        begin_without_links(mmu, code, &code->twice);
}

void code_pages_note(struct mmu *mmu, struct code_pages *code, uint64_t linear, const struct fetch_entry *entry, bool global)
{
    uint64_t bit, *word = filter_word(code, linear, entry->shift, &bit);
    *word |= bit;
    code->shifts |= BIT(entry->shift);
    code->local |= !global;
    code->global |= global;
    if (code->space && !code->unlisted)
        list_page(mmu, code, linear, entry->gpa);
}

static bool all_are_listed(const struct code_pages *code)
{
    return code->space && !code->unlisted && code->shifts == BIT(GUEST_PAGE_SHIFT);
}

/* Was code perhaps fetched from the page of any size that `linear` is in? */
static bool maybe_code(struct code_pages *code, uint64_t linear)
{
    uint32_t place;
    if (all_are_listed(code))
        return find_listed(code, 0, align_down(linear, GUEST_PAGE_SIZE), &place);
    for (uint64_t shifts = code->shifts; shifts; shifts &= shifts - 1) {
        uint64_t bit, *word = filter_word(code, linear, (unsigned)__builtin_ctzll(shifts), &bit);
        if (*word & bit)
            return true;
    }
    return false;
}

void code_pages_new_epoch(struct mmu *mmu, struct code_pages *code)
{
    code->epoch = ++mmu->last_epoch;
    code->local = code->global = code->unlisted = code->twice = false;
    code->shifts = 0;
    code->listed = 0;
    for (unsigned i = 0; i < CODE_FILTER_WORDS; i++)
        code->filter[i] = 0;
    mmu_select_epoch(mmu, mmu->user);
}

static uint64_t root(const struct mmu *mmu)
{
    return mmu->cr3 & PTE_ADDRESS;
}

/* Are all its pages still where they were, for a user to fetch from? What hardware would do when it fetches is done already:
 * the accessed bit is set. So they are entered as if they had been fetched from. */
static bool still_there(struct mmu *mmu, const struct code_pages *code)
{
    for (unsigned i = 0; i < code->listed; i++) {
        struct walk walk = walk_tables(mmu, code->list[i].linear, WALK_CACHED);
        bool fetchable = walk.present && !walk.reserved && !walk.again && (walk.rights & PTE_U) && !(walk.rights & PTE_NX);
        uint64_t offset = BIT(leaf_shift[walk.size]) - 1;
        uint64_t gpa = ((walk.leaf & PTE_ADDRESS & ~offset) | (code->list[i].linear & offset)) & mmu->physical_mask;
        if (!fetchable || !(walk.leaf & PTE_A) || gpa != code->list[i].gpa)
            return false;
        mmu_fill_fetch(mmu, code->list[i].linear | true, gpa, leaf_shift[walk.size], (mmu->cr4 & CR4_PGE) && (walk.leaf & PTE_G),
                       mmu->looks_at_code ? 0 : code->epoch);
    }
    return true;
}

static bool is_worth_a_look(const struct code_pages *code)
{
    return code->stay > (uint64_t)code->listed * PAGE_TICKS * WORTH;
}

/* The space whose root is selected, from before it lost its translations. */
static struct code_pages *found_again(struct mmu *mmu)
{
    for (unsigned i = 1; i <= CODE_SPACES; i++) {
        struct code_pages *code = &mmu->code[i];
        if (all_are_listed(code) && code->root == root(mmu) && is_worth_a_look(code) && still_there(mmu, code))
            return code;
    }
    return NULL;
}

/* Numbers of spaces are never used twice, so what is found under one is of a time since when nothing was dropped from it but by
 * code_pages_drop. */
static struct code_pages *known_space(struct mmu *mmu)
{
    for (unsigned i = 1; i <= CODE_SPACES; i++)
        if (mmu->code[i].space == mmu->stlb.current)
            return &mmu->code[i];
    return NULL;
}

void code_pages_select(struct mmu *mmu)
{
    uint64_t now = __builtin_ia32_rdtsc();
    mmu->code[mmu->user_code].stay = now - mmu->user_code_since;
    mmu->user_code_since = now;
    struct code_pages *code = known_space(mmu);
    if (!code && (code = found_again(mmu))) {
        code->space = mmu->stlb.current;
        mmu->spaces_found++;
    }
    if (code) {
        mmu->user_code = (unsigned)(code - mmu->code);
        mmu_select_epoch(mmu, mmu->user);
        return;
    }
    mmu->user_code = 1 + mmu->next_code++ % CODE_SPACES;
    code = &mmu->code[mmu->user_code];
    code->space = mmu->stlb.current;
    code->root = root(mmu);
    code_pages_new_epoch(mmu, code);
}

void code_pages_drop(struct mmu *mmu, uint64_t linear, bool selected)
{
    for (unsigned i = 0; i <= CODE_SPACES; i++) {
        struct code_pages *code = &mmu->code[i];
        bool current = i == 0 || i == mmu->user_code;
        if (selected && !current && !code->global)
            continue; /* its translations are its own */
        if (likely(!maybe_code(code, linear)))
            continue;
        if (current)
            code_pages_new_epoch(mmu, code);
        else
            code->space = 0; /* not to be found again */
    }
}

void code_pages_forget_spaces(struct mmu *mmu)
{
    for (unsigned i = 1; i <= CODE_SPACES; i++)
        mmu->code[i].space = 0;
}

/* The pages stay noted: they may be those of the block that is about to be made. */
void mmu_forget_blocks(struct mmu *mmu)
{
    for (unsigned i = 0; i <= CODE_SPACES; i++) {
        if (i != 0 && i != mmu->user_code)
            mmu->code[i].space = 0;
        mmu->code[i].epoch = ++mmu->last_epoch;
    }
    mmu_select_epoch(mmu, mmu->user);
}
