/* SPDX-License-Identifier: MIT */
/* SDM vol. 3, chapter 4. */
#include "mmu.h"

#include "../../base/bits.h"
#include "code_pages.h"
#include "tlb.h"

void mmu_fill_fetch(struct mmu *mmu, uint64_t tag, uint64_t gpa, uint8_t shift, bool global, uint32_t noted)
{
    unsigned i = (tag / GUEST_PAGE_SIZE) % FETCH_ENTRIES;
    mmu->fetch[i] = (struct fetch_entry){tag, gpa, guest_mem_find(mmu->mem, gpa), noted, shift};
    tlb_set_mark(mmu->fetch_marks.filled, i, true);
    tlb_set_mark(mmu->fetch_marks.global, i, global);
}

const struct fetch_entry *mmu_fetch(struct mmu *mmu, uint64_t linear, bool user, struct mmu_fault *fault)
{
    uint64_t page = align_down(linear, GUEST_PAGE_SIZE);
    unsigned i = (linear / GUEST_PAGE_SIZE) % FETCH_ENTRIES;
    struct fetch_entry *entry = &mmu->fetch[i];
    if (unlikely(entry->tag != (page | user))) {
        struct mmu_page found;
        mmu->fetch_misses++;
        if (!mmu_translate(mmu, linear, MMU_FETCH, user ? MMU_USER : MMU_SUPERVISOR, &found, fault))
            return NULL;
        mmu_fill_fetch(mmu, page | user, align_down(found.gpa, GUEST_PAGE_SIZE), found.shift, found.global, 0);
    }
    bool global = mmu->fetch_marks.global[i / 64] >> (i % 64) & 1;
    struct code_pages *code = &mmu->code[user ? mmu->user_code : 0];
    code_pages_note(mmu, code, linear, entry, global);
    entry->noted = mmu->looks_at_code ? 0 : code->epoch;
    return entry;
}

/* ---- invalidation ---- */

static unsigned current_pcid(const struct mmu *mmu)
{
    return mmu->cr4 & CR4_PCIDE ? mmu->cr3 & 0xfff : 0;
}

/* The selected space is another one, or a new one: the old one's translations, or all, leave the first level. */
static void leave_space(struct mmu *mmu, bool global_too)
{
    tlb_drop(mmu, global_too);
    if (global_too ? mmu->code[0].shifts != 0 : mmu->code[0].local)
        code_pages_new_epoch(mmu, &mmu->code[0]);
    code_pages_select(mmu);
}

void mmu_flush(struct mmu *mmu)
{
    stlb_drop_all(&mmu->stlb);
    stlb_select(&mmu->stlb, current_pcid(mmu));
    walk_cache_drop(&mmu->walk_cache);
    code_pages_forget_spaces(mmu); /* other rules may be in force */
    leave_space(mmu, true);
    mmu->flushes++;
}

void mmu_load_cr3(struct mmu *mmu, uint64_t cr3, bool keep)
{
    uint64_t before = mmu->stlb.current;
    mmu->cr3 = cr3;
    unsigned pcid = current_pcid(mmu);
    if (!keep)
        stlb_drop_space(&mmu->stlb, pcid);
    stlb_select(&mmu->stlb, pcid);
    if (mmu->stlb.current != before)
        leave_space(mmu, false);
    mmu->space_flushes += !keep;
}

void mmu_flush_space(struct mmu *mmu, unsigned pcid)
{
    uint64_t before = mmu->stlb.current;
    stlb_drop_space(&mmu->stlb, pcid);
    if (mmu->stlb.current != before)
        leave_space(mmu, false);
    mmu->space_flushes++;
}

void mmu_flush_local(struct mmu *mmu)
{
    stlb_drop_local(&mmu->stlb);
    leave_space(mmu, false);
    mmu->space_flushes++;
}

/* Out of the first level, in the selected space or global. */
static void drop_page(struct mmu *mmu, uint64_t linear)
{
    tlb_drop_page(mmu, linear);
    code_pages_drop(mmu, linear, true);
}

void mmu_flush_page(struct mmu *mmu, uint64_t linear)
{
    stlb_drop_page(&mmu->stlb, linear);
    walk_cache_drop(&mmu->walk_cache);
    drop_page(mmu, linear);
    mmu->page_flushes++;
}

void mmu_flush_page_of(struct mmu *mmu, unsigned pcid, uint64_t linear)
{
    stlb_drop_page_of(&mmu->stlb, pcid, linear);
    walk_cache_drop(&mmu->walk_cache);
    mmu->page_flushes++;
    if (pcid == current_pcid(mmu))
        drop_page(mmu, linear); /* a global one too: more than must */
    else
        code_pages_drop(mmu, linear, false);
}

/* ---- translation ---- */

bool mmu_load_pdptes(struct mmu *mmu, uint64_t cr3)
{
    const uint64_t *pdpt = guest_mem_ptr(mmu->mem, cr3 & 0xffffffe0u & mmu->physical_mask, 32, false);
    uint64_t value[4];
    for (unsigned i = 0; i < 4; i++) {
        value[i] = pdpt ? pdpt[i] : 0;
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

/* SDM vol. 3, 4.6.2: does the key of a user's page forbid this access, whatever the other rights? */
static bool key_denies(const struct mmu *mmu, uint64_t rights, enum mmu_access access, enum mmu_who who)
{
    if (likely(!(mmu->cr4 & CR4_PKE)) || access == MMU_FETCH || !(rights & PTE_U) || !(mmu->efer & EFER_LMA))
        return false;
    uint32_t key = mmu->pkru >> 2 * ((rights & PTE_KEY) >> PTE_KEY_SHIFT) & 3; /* bit 0: access, bit 1: write */
    return (key & 1) || ((key & 2) && access == MMU_WRITE && (who == MMU_USER || (mmu->cr0 & CR0_WP)));
}

/* SDM vol. 3, 4.6; `rights`: W and U of all levels, NX of any, and the key. */
static bool allowed(const struct mmu *mmu, uint64_t rights, enum mmu_access access, enum mmu_who who)
{
    if (unlikely(key_denies(mmu, rights, access, who)))
        return false;
    bool user = who == MMU_USER;
    bool user_page = rights & PTE_U;
    if (access == MMU_FETCH) {
        if (rights & PTE_NX)
            return false;
        return user ? user_page : !(user_page && (mmu->cr4 & CR4_SMEP));
    }
    if (user)
        return user_page && (access == MMU_READ || (rights & PTE_W));
    if (user_page && (mmu->cr4 & CR4_SMAP) && (who == MMU_IMPLICIT || !mmu->ac))
        return false;
    return access == MMU_READ || (rights & PTE_W) || !(mmu->cr0 & CR0_WP);
}

static uint64_t leaf_of(const struct mmu *mmu, const struct walk *walk)
{
    uint64_t address = walk->leaf & PTE_ADDRESS & ~(BIT(leaf_shift[walk->size]) - 1);
    uint64_t global = mmu->cr4 & CR4_PGE ? walk->leaf & PTE_G : 0;
    uint64_t kept = walk->leaf & (PTE_D | PTE_KEY);
    return address | walk->rights | PTE_P | kept | global | (uint64_t)walk->size << LEAF_SIZE_SHIFT;
}

static uint64_t address_in(const struct mmu *mmu, uint64_t leaf, uint64_t linear)
{
    uint64_t offset = BIT(leaf_shift[leaf_size(leaf)]) - 1;
    return ((leaf & PTE_ADDRESS & ~offset) | (linear & offset)) & mmu->physical_mask;
}

/* By the tables: the leaf, or 0 and the fault. */
static uint64_t walk_to(struct mmu *mmu, uint64_t linear, enum mmu_access access, enum mmu_who who, enum walk_how how,
                        struct mmu_fault *fault)
{
    bool user = who == MMU_USER;
    uint64_t bits = PTE_A | (access == MMU_WRITE ? PTE_D : 0);
    for (;; how = WALK_FRESH) {
        struct walk walk = walk_tables(mmu, linear, how);
        if (unlikely(walk.again))
            continue;
        uint64_t rights = walk.rights | (walk.leaf & PTE_KEY);
        bool good = walk.present && !walk.reserved && allowed(mmu, rights, access, who);
        if (!good && how == WALK_CACHED) {
            /* a fault is by what the tables say now, and drops all that is cached for the address (4.10.4.1) */
            walk_cache_drop_page(&mmu->walk_cache, linear);
            continue;
        }
        if (!good) {
            stlb_drop_page(&mmu->stlb, linear);
            drop_page(mmu, linear);
            uint32_t denied = PF_P | (key_denies(mmu, rights, access, who) ? PF_PK : 0);
            fault_page(mmu, fault, !walk.present ? 0 : walk.reserved ? PF_P | PF_RSVD : denied, access, user);
            return 0;
        }
        if (walk_mark(&walk, bits)) {
            walk.leaf |= bits;
            return leaf_of(mmu, &walk);
        }
    }
}

bool mmu_translate(struct mmu *mmu, uint64_t linear, enum mmu_access access, enum mmu_who who, struct mmu_page *page,
                   struct mmu_fault *fault)
{
    if (!(mmu->cr0 & CR0_PG)) {
        *page = (struct mmu_page){(uint32_t)linear & mmu->physical_mask, true, false, GUEST_PAGE_SHIFT};
        return true;
    }
    if (unlikely(!mmu_canonical(mmu, linear))) {
        fault->general_protection = true;
        return false;
    }
    uint64_t leaf = stlb_lookup(&mmu->stlb, linear);
    bool good = leaf && allowed(mmu, leaf, access, who);
    if (good && (access != MMU_WRITE || (leaf & PTE_D))) {
        mmu->refills++;
    } else {
        mmu->walks++;
        if (leaf && !good)
            walk_cache_drop_page(&mmu->walk_cache, linear);
        leaf = walk_to(mmu, linear, access, who, leaf && !good ? WALK_FRESH : WALK_CACHED, fault);
        if (!leaf)
            return false;
        stlb_insert(&mmu->stlb, linear, leaf);
    }
    uint8_t shift = leaf_shift[leaf_size(leaf)];
    if (shift > GUEST_PAGE_SHIFT)
        tlb_note_large(mmu, linear, shift);
    *page = (struct mmu_page){address_in(mmu, leaf, linear), (leaf & PTE_D) && allowed(mmu, leaf, MMU_WRITE, who),
                              leaf & PTE_G, shift};
    return true;
}

bool mmu_probe(struct mmu *mmu, uint64_t linear, uint64_t *gpa)
{
    if (!(mmu->cr0 & CR0_PG)) {
        *gpa = (uint32_t)linear & mmu->physical_mask;
        return true;
    }
    struct walk walk = walk_tables(mmu, linear, WALK_LOOK);
    if (!walk.present || walk.reserved)
        return false;
    *gpa = address_in(mmu, leaf_of(mmu, &walk), linear);
    return true;
}

void mmu_init(struct mmu *mmu, struct guest_mem *mem)
{
    mmu->mem = mem;
    mmu->physical_mask = BIT(MAXPHYADDR) - 1;
    stlb_init(&mmu->stlb);
    tlb_init(mmu);
    mmu->user = false;
    mmu->user_code = 1;
    code_pages_new_epoch(mmu, &mmu->code[0]); /* 1: what was never filled in says 0 */
    mmu_flush(mmu);
    mmu->flushes = 0;
}
