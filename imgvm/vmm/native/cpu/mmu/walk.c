/* SPDX-License-Identifier: MIT */
#include "walk.h"

#include "../../arch/x86.h"
#include "mmu.h"

/* Tables and their entries are accessed by physical address; one that is not in RAM reads as not present. */
static void *table_ptr(struct mmu *mmu, uint64_t gpa)
{
    return guest_mem_ptr(mmu->mem, gpa & mmu->physical_mask, GUEST_PAGE_SIZE, false);
}

static void walk_accumulate(struct walk *walk, uint64_t entry)
{
    walk->rights = (walk->rights & entry & (PTE_W | PTE_U)) | ((walk->rights | entry) & PTE_NX);
}

static bool set_bits64(uint64_t *slot, uint64_t entry, uint64_t bits)
{
    uint64_t now = entry;
    while ((now & bits) != bits) {
        if (__atomic_compare_exchange_n(slot, &now, now | bits, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            return true;
        if ((now ^ entry) & ~(uint64_t)(PTE_A | PTE_D))
            return false;
    }
    return true;
}

static bool set_bits32(uint32_t *slot, uint32_t entry, uint32_t bits)
{
    uint32_t now = entry;
    while ((now & bits) != bits) {
        if (__atomic_compare_exchange_n(slot, &now, now | bits, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            return true;
        if ((now ^ entry) & ~(PTE_A | PTE_D))
            return false;
    }
    return true;
}

bool walk_mark(const struct walk *walk, uint64_t bits)
{
    return walk->slot64 ? set_bits64(walk->slot64, walk->leaf, bits)
                        : set_bits32(walk->slot32, walk->entry32, (uint32_t)bits);
}

/* ---- paging-structure caches ---- */

static unsigned level_shift(unsigned level)
{
    return 12 + 9 * (level - 1);
}

/* Where an entry of this level (2: page directory, 3: page-directory-pointer table) would be kept. */
static struct walk_cached *cached_at(struct walk_cache *cache, uint64_t linear, unsigned level)
{
    uint64_t prefix = linear >> level_shift(level);
    return level == 2 ? &cache->tables[prefix % WALK_TABLES] : &cache->directories[prefix % WALK_DIRECTORIES];
}

/* The lowest level whose entry is known, or 0. */
static unsigned cache_find(struct mmu *mmu, uint64_t linear, struct walk_cached **found)
{
    for (unsigned level = 2; level <= 3; level++) {
        struct walk_cached *cached = cached_at(&mmu->walk_cache, linear, level);
        *found = cached;
        if (cached->space == mmu->stlb.current && cached->prefix == linear >> level_shift(level))
            return level;
    }
    return 0;
}

void walk_cache_drop(struct walk_cache *cache)
{
    for (unsigned i = 0; i < WALK_TABLES; i++)
        cache->tables[i].space = 0;
    for (unsigned i = 0; i < WALK_DIRECTORIES; i++)
        cache->directories[i].space = 0;
}

void walk_cache_drop_page(struct walk_cache *cache, uint64_t linear)
{
    cached_at(cache, linear, 2)->space = cached_at(cache, linear, 3)->space = 0;
}

/* ---- the walks ---- */

/* Where a walk of 64-bit entries begins: level and table, NULL if there is none. */
static uint64_t *walk_begin(struct mmu *mmu, uint64_t linear, enum walk_how how, struct walk *walk, unsigned *level)
{
    struct walk_cached *cached;
    unsigned known = how == WALK_CACHED ? cache_find(mmu, linear, &cached) : 0;
    if (known) {
        *level = known - 1;
        walk->rights = cached->rights;
        return cached->table;
    }
    if (mmu->efer & EFER_LMA) {
        *level = mmu->cr4 & CR4_LA57 ? 5 : 4;
        return table_ptr(mmu, mmu->cr3 & PTE_ADDRESS);
    }
    *level = 2;
    uint64_t pdpte = mmu->pdpte[(linear >> 30) & 3];
    return pdpte & PTE_P ? table_ptr(mmu, pdpte & PTE_ADDRESS) : NULL;
}

static enum leaf_size size_of_level(unsigned level)
{
    return level == 1 ? LEAF_4K : level == 2 ? LEAF_2M : LEAF_1G;
}

/* Five-level, four-level and PAE tables: 9 bits a level. */
static struct walk walk64(struct mmu *mmu, uint64_t linear, enum walk_how how)
{
    struct walk walk = {.rights = PTE_W | PTE_U};
    uint64_t reserved_always = (mmu->efer & EFER_NXE) ? 0 : PTE_NX;
    reserved_always |= (BIT(52) - 1) & ~(BIT(MAXPHYADDR) - 1);
    if (!(mmu->efer & EFER_LMA))
        reserved_always |= UINT64_C(0x7ff) << 52;
    unsigned level;
    uint64_t *table = walk_begin(mmu, linear, how, &walk, &level);
    for (; table; level--) {
        unsigned shift = level_shift(level);
        uint64_t *slot = &table[(linear >> shift) & 511];
        uint64_t entry = __atomic_load_n(slot, __ATOMIC_RELAXED);
        if (!(entry & PTE_P))
            return walk;
        bool leaf = level == 1 || ((entry & PTE_PS) && level <= 3);
        uint64_t reserved = reserved_always;
        if (level >= 4 || (level == 3 && mmu->no_gigabyte_pages))
            reserved |= PTE_PS;
        if (leaf && level > 1)
            reserved |= (BIT(shift) - 1) & ~UINT64_C(0x1fff); /* bit 12 is PAT */
        if (entry & reserved) {
            walk.present = walk.reserved = true;
            return walk;
        }
        walk_accumulate(&walk, entry);
        if (leaf) {
            walk.present = true;
            walk.slot64 = slot;
            walk.leaf = entry;
            walk.size = size_of_level(level);
            return walk;
        }
        if (how != WALK_LOOK && !(entry & PTE_A) && !set_bits64(slot, entry, PTE_A)) {
            walk.again = true;
            return walk;
        }
        table = table_ptr(mmu, entry & PTE_ADDRESS);
        if (table && how != WALK_LOOK && level <= 3)
            *cached_at(&mmu->walk_cache, linear, level) =
                (struct walk_cached){linear >> shift, mmu->stlb.current, table, walk.rights};
    }
    return walk;
}

static struct walk walk32(struct mmu *mmu, uint32_t linear, enum walk_how how)
{
    struct walk walk = {.rights = PTE_W | PTE_U};
    uint32_t *table = table_ptr(mmu, mmu->cr3 & 0xfffff000u);
    if (!table)
        return walk;
    uint32_t *slot = &table[linear >> 22];
    uint32_t entry = __atomic_load_n(slot, __ATOMIC_RELAXED);
    if (!(entry & PTE_P))
        return walk;
    walk_accumulate(&walk, entry);
    if ((entry & PTE_PS) && (mmu->cr4 & CR4_PSE)) {
        walk.present = true;
        walk.reserved = entry & BIT(21);
        /* PSE-36: bits 20:13 are address bits 39:32 (4.3) */
        walk.leaf = (entry & 0xffc00fffu) | ((uint64_t)((entry >> 13) & 0xff) << 32);
        walk.slot32 = slot;
        walk.entry32 = entry;
        walk.size = LEAF_4M;
        return walk;
    }
    if (how != WALK_LOOK && !(entry & PTE_A) && !set_bits32(slot, entry, PTE_A)) {
        walk.again = true;
        return walk;
    }
    table = table_ptr(mmu, entry & 0xfffff000u);
    if (!table)
        return walk;
    slot = &table[(linear >> 12) & 1023];
    entry = __atomic_load_n(slot, __ATOMIC_RELAXED);
    if (!(entry & PTE_P))
        return walk;
    walk_accumulate(&walk, entry);
    walk.present = true;
    walk.slot32 = slot;
    walk.entry32 = entry;
    walk.leaf = entry;
    walk.size = LEAF_4K;
    return walk;
}

struct walk walk_tables(struct mmu *mmu, uint64_t linear, enum walk_how how)
{
    return mmu->cr4 & CR4_PAE ? walk64(mmu, linear, how) : walk32(mmu, (uint32_t)linear, how);
}
