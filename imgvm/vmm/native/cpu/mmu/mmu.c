/* SPDX-License-Identifier: MIT */
/* SDM vol. 3, chapter 4. Not here yet: protection keys, LA57. */
#include "mmu.h"

#include "../../arch/x86.h"
#include "../../base/bits.h"

#define MAXPHYADDR 46

void mmu_init(struct mmu *mmu, struct guest_mem *mem)
{
    mmu->mem = mem;
    mmu->physical_mask = BIT(MAXPHYADDR) - 1;
    mmu->third_bank_used = true;
    for (unsigned bank = 0; bank < TLB_BANKS; bank++)
        mmu->slots_used[bank] = true;
    mmu_flush(mmu);
    mmu->flushes = 0;
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

static void clear_slots(struct mmu *mmu)
{
    for (unsigned bank = 0; bank < TLB_BANKS; bank++) {
        if (!mmu->slots_used[bank])
            continue;
        for (unsigned i = 0; i < ACCESS_SLOTS; i++)
            mmu->slots[bank][i].tag = 1; /* no page */
    }
}

void mmu_flush(struct mmu *mmu)
{
    clear_slots(mmu);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++)
        mmu->slots_used[bank] = false;
    for (unsigned bank = 0; bank < (mmu->third_bank_used ? TLB_BANKS : TLB_BANKS - 1); bank++)
        mmu_clear_bank(mmu->tlb[bank]);
    mmu->third_bank_used = false;
    for (unsigned i = 0; i < FETCH_ENTRIES; i++)
        mmu->fetch[i].tag = 2;
    mmu->large[0].mask = mmu->large[1].mask = 0;
    mmu->epoch++;
    mmu->flushes++;
}

static void note_large_page(struct mmu *mmu, uint64_t linear, uint64_t bytes)
{
    unsigned half = linear >> 63;
    uint64_t mask = ~(bytes - 1);
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

void mmu_flush_page(struct mmu *mmu, uint64_t linear)
{
    unsigned half = linear >> 63;
    if (mmu->large[half].mask && ((linear ^ mmu->large[half].base) & mmu->large[half].mask) == 0) {
        mmu_flush(mmu);
        return;
    }
    unsigned i = (linear / GUEST_PAGE_SIZE) % TLB_ENTRIES;
    clear_slots(mmu);
    for (unsigned bank = 0; bank < TLB_BANKS; bank++)
        entry_clear(&mmu->tlb[bank][i], i);
    mmu->fetch[(linear / GUEST_PAGE_SIZE) % FETCH_ENTRIES].tag = 2;
    mmu->epoch++;
}

/* A table entry is accessed by physical address; one that is not in RAM reads as not present. */
static void *entry_ptr(struct mmu *mmu, uint64_t gpa, unsigned size)
{
    return guest_mem_ptr(mmu->mem, gpa & mmu->physical_mask, size, false);
}

bool mmu_load_pdptes(struct mmu *mmu, uint64_t cr3)
{
    uint64_t value[4];
    for (unsigned i = 0; i < 4; i++) {
        uint64_t *entry = entry_ptr(mmu, (cr3 & 0xffffffe0u) + 8 * i, 8);
        value[i] = entry ? *entry : 0;
        if ((value[i] & PTE_P) && (value[i] & (0x1e6 | ~(BIT(MAXPHYADDR) - 1))))
            return false;
    }
    for (unsigned i = 0; i < 4; i++)
        mmu->pdpte[i] = value[i];
    return true;
}

static bool fault_page(struct mmu *mmu, struct mmu_fault *fault, uint32_t reason, enum mmu_access access, bool user)
{
    uint32_t code = reason | (user ? PF_U : 0);
    if (access == MMU_WRITE)
        code |= PF_W;
    /* the I bit is reported only where fetches are distinguished (4.7) */
    bool paging64 = mmu->cr4 & CR4_PAE;
    if (access == MMU_FETCH && ((paging64 && (mmu->efer & EFER_NXE)) || (mmu->cr4 & CR4_SMEP)))
        code |= PF_I;
    fault->error_code = code;
    fault->general_protection = false;
    return false;
}

struct walk {
    uint64_t rights; /* AND of W and U, OR of NX, over the levels */
    uint64_t *slot64;
    uint32_t *slot32;
    uint64_t leaf;
    uint64_t page_bytes;
    uint32_t entry32; /* what slot32 held: leaf is that, with PSE-36 resolved */
    bool reserved, present;
    bool again; /* a table changed under the walk */
};

static void walk_accumulate(struct walk *walk, uint64_t entry)
{
    walk->rights = (walk->rights & entry & (PTE_W | PTE_U)) | ((walk->rights | entry) & PTE_NX);
}

/* Sets A and D as hardware does, in one locked step. false: the entry has become another one in the meantime, so that
 * the walk has to start over. */
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

/* Four-level and PAE tables: 9 bits a level, 64-bit entries. Intermediate entries get A when `mark`. */
static struct walk walk64(struct mmu *mmu, uint64_t linear, bool mark)
{
    bool long_mode = mmu->efer & EFER_LMA;
    struct walk walk = {.rights = PTE_W | PTE_U};
    uint64_t reserved_always = (mmu->efer & EFER_NXE) ? 0 : PTE_NX;
    reserved_always |= (BIT(52) - 1) & ~(BIT(MAXPHYADDR) - 1);
    if (!long_mode)
        reserved_always |= UINT64_C(0x7ff) << 52;
    uint64_t table;
    int level;
    if (long_mode) {
        table = mmu->cr3 & UINT64_C(0xffffffffff000);
        level = 4;
    } else {
        uint64_t pdpte = mmu->pdpte[(linear >> 30) & 3];
        if (!(pdpte & PTE_P))
            return walk;
        table = pdpte & UINT64_C(0xffffffffff000);
        level = 2;
    }
    for (;; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint64_t *slot = entry_ptr(mmu, table + 8 * ((linear >> shift) & 511), 8);
        uint64_t entry = slot ? __atomic_load_n(slot, __ATOMIC_RELAXED) : 0;
        if (!(entry & PTE_P))
            return walk;
        bool leaf = level == 1 || ((entry & PTE_PS) && level <= 3);
        uint64_t reserved = reserved_always;
        if (level == 4 || (level == 3 && mmu->no_gigabyte_pages))
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
            walk.page_bytes = BIT(shift);
            return walk;
        }
        if (mark && !(entry & PTE_A) && !set_bits64(slot, entry, PTE_A)) {
            walk.again = true;
            return walk;
        }
        table = entry & UINT64_C(0xffffffffff000);
    }
}

static struct walk walk32(struct mmu *mmu, uint32_t linear, bool mark)
{
    struct walk walk = {.rights = PTE_W | PTE_U};
    uint32_t *slot = entry_ptr(mmu, (mmu->cr3 & 0xfffff000u) + 4 * (linear >> 22), 4);
    uint32_t entry = slot ? __atomic_load_n(slot, __ATOMIC_RELAXED) : 0;
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
        walk.page_bytes = BIT(22);
        return walk;
    }
    if (mark && !(entry & PTE_A) && !set_bits32(slot, entry, PTE_A)) {
        walk.again = true;
        return walk;
    }
    slot = entry_ptr(mmu, (entry & 0xfffff000u) + 4 * ((linear >> 12) & 1023), 4);
    entry = slot ? __atomic_load_n(slot, __ATOMIC_RELAXED) : 0;
    if (!(entry & PTE_P))
        return walk;
    walk_accumulate(&walk, entry);
    walk.present = true;
    walk.slot32 = slot;
    walk.entry32 = walk.leaf = entry;
    walk.page_bytes = BIT(12);
    return walk;
}

static struct walk walk_tables(struct mmu *mmu, uint64_t linear, bool mark)
{
    return mmu->cr4 & CR4_PAE ? walk64(mmu, linear, mark) : walk32(mmu, (uint32_t)linear, mark);
}

static uint64_t leaf_address(const struct mmu *mmu, const struct walk *walk, uint64_t linear)
{
    uint64_t base = walk->leaf & UINT64_C(0xffffffffff000) & ~(walk->page_bytes - 1);
    return (base | (linear & (walk->page_bytes - 1))) & mmu->physical_mask;
}

static bool canonical(uint64_t linear)
{
    return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

/* SDM vol. 3, 4.6.1 */
static bool allowed(const struct mmu *mmu, const struct walk *walk, enum mmu_access access, enum mmu_who who)
{
    bool user = who == MMU_USER;
    bool user_page = walk->rights & PTE_U;
    if (access == MMU_FETCH) {
        if (walk->rights & PTE_NX)
            return false;
        return user ? user_page : !(user_page && (mmu->cr4 & CR4_SMEP));
    }
    if (user)
        return user_page && (access == MMU_READ || (walk->rights & PTE_W));
    if (user_page && (mmu->cr4 & CR4_SMAP) && (who == MMU_IMPLICIT || !mmu->ac))
        return false;
    return access == MMU_READ || (walk->rights & PTE_W) || !(mmu->cr0 & CR0_WP);
}

bool mmu_translate(struct mmu *mmu, uint64_t linear, enum mmu_access access, enum mmu_who who, uint64_t *gpa,
                   bool *writable, struct mmu_fault *fault)
{
    bool user = who == MMU_USER;
    if (!(mmu->cr0 & CR0_PG)) {
        *gpa = (uint32_t)linear & mmu->physical_mask;
        *writable = true;
        return true;
    }
    if ((mmu->efer & EFER_LMA) && !canonical(linear)) {
        fault->general_protection = true;
        return false;
    }
    mmu->walks++;
    struct walk walk;
again:
    do
        walk = walk_tables(mmu, linear, true);
    while (unlikely(walk.again));
    if (!walk.present)
        return fault_page(mmu, fault, 0, access, user);
    if (walk.reserved)
        return fault_page(mmu, fault, PF_P | PF_RSVD, access, user);
    if (!allowed(mmu, &walk, access, who))
        return fault_page(mmu, fault, PF_P, access, user);
    if (walk.page_bytes > GUEST_PAGE_SIZE)
        note_large_page(mmu, linear, walk.page_bytes);
    uint64_t bits = PTE_A | (access == MMU_WRITE ? PTE_D : 0);
    if (!(walk.slot64 ? set_bits64(walk.slot64, walk.leaf, bits) : set_bits32(walk.slot32, walk.entry32, (uint32_t)bits)))
        goto again;
    *gpa = leaf_address(mmu, &walk, linear);
    *writable = access == MMU_WRITE || ((walk.leaf & PTE_D) && allowed(mmu, &walk, MMU_WRITE, who));
    return true;
}

bool mmu_probe(struct mmu *mmu, uint64_t linear, uint64_t *gpa)
{
    if (!(mmu->cr0 & CR0_PG)) {
        *gpa = (uint32_t)linear & mmu->physical_mask;
        return true;
    }
    struct walk walk = walk_tables(mmu, linear, false);
    if (!walk.present || walk.reserved)
        return false;
    *gpa = leaf_address(mmu, &walk, linear);
    return true;
}

void mmu_fill(struct mmu *mmu, uint64_t linear, uint64_t gpa, const struct guest_region *region, enum mmu_who who,
              bool writable)
{
    uint64_t page = align_down(linear, GUEST_PAGE_SIZE), gpa_page = align_down(gpa, GUEST_PAGE_SIZE);
    for (unsigned held = 0; held < mmu->held_count; held++)
        if (unlikely(mmu->held_page[held] == page))
            return;
    unsigned i = (page / GUEST_PAGE_SIZE) % TLB_ENTRIES;
    struct tlb_entry *bank = mmu_bank(mmu, who), *entry = &bank[i];
    mmu->third_bank_used |= bank == mmu->tlb[2];
    mmu->slots_used[(bank - mmu->tlb[0]) / TLB_ENTRIES] = true; /* for now slots may take entries from it */
    uint64_t offset = gpa_page - region->gpa;
    entry_clear(entry, i);
    for (unsigned w = 0; w < mmu->watch_count; w++)
        if (unlikely(mmu->watch_page[w] == page))
            return;
    entry->read_tag = page;
    entry->addend = (uint64_t)(region->host + offset) - page;
    entry->gpa = gpa_page;
    /* Writes to ROM, and to pages that hold decoded code, must come through the slow path. */
    if (writable && !region->read_only &&
        !atomic_load_explicit(&region->code_granules[offset / GUEST_PAGE_SIZE], memory_order_relaxed))
        entry->write_tag = page;
}
