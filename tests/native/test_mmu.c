/* SPDX-License-Identifier: MIT */
/* What stays cached of address translations and what must not (SDM vol. 3, 4.10.4), seen through tables that change
 * behind the cache's back: a translation that is kept is stale and shows it. */
// needs: base/error.c mem/guest_mem.c cpu/mmu/*.c
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "check.h"
#include "cpu/mmu/mmu.h"

#define RAM_BYTES (64u << 20)
#define ROOT_A 0x100000u /* tables of two address spaces, a MiB each */
#define ROOT_B 0x200000u
#define PAGE_1 0x1000000u /* what is mapped; bytes there are never looked at */
#define PAGE_2 0x1400000u
#define NONE UINT64_MAX

static struct guest_mem mem;
static struct mmu mmu;
static uint64_t next_table[2];

static uint64_t *entry_at(uint64_t gpa)
{
    return guest_mem_ptr(&mem, gpa, 8, true);
}

/* The entry of `level` for `linear` under `root`; tables on the way are made. */
static uint64_t *slot(uint64_t root, uint64_t linear, unsigned level)
{
    uint64_t table = root, *entry;
    for (unsigned at = 4;; at--) {
        entry = entry_at(table + 8 * (linear >> (12 + 9 * (at - 1)) & 511));
        if (at == level)
            return entry;
        if (!(*entry & PTE_P))
            *entry = (next_table[root == ROOT_B] += 0x1000) | PTE_P | PTE_W | PTE_U;
        table = *entry & PTE_ADDRESS;
    }
}

static void map(uint64_t root, uint64_t linear, uint64_t entry)
{
    *slot(root, linear, 1) = entry | PTE_P;
}

static void begin(uint32_t cr4)
{
    memset(guest_mem_ptr(&mem, 0, PAGE_1, true), 0, PAGE_1);
    next_table[0] = ROOT_A;
    next_table[1] = ROOT_B;
    mmu.cr0 = CR0_PE | CR0_PG | CR0_WP;
    mmu.cr3 = ROOT_A;
    mmu.cr4 = CR4_PAE | cr4;
    mmu.efer = EFER_LME | EFER_LMA | EFER_NXE;
    mmu.ac = false;
    mmu_flush(&mmu);
}

/* The physical address, or NONE: a fault, its code in last_fault. */
static struct mmu_fault last_fault;
static uint64_t translate(uint64_t linear, enum mmu_access access, enum mmu_who who)
{
    struct mmu_page page;
    if (!mmu_translate(&mmu, linear, access, who, &page, &last_fault))
        return NONE;
    if (access != MMU_FETCH)
        mmu_fill(&mmu, linear, &page, guest_mem_find(&mem, page.gpa), who);
    return page.gpa;
}
#define READ(linear) translate(linear, MMU_READ, MMU_SUPERVISOR)
#define WRITE(linear) translate(linear, MMU_WRITE, MMU_SUPERVISOR)

/* Does the first level answer, in the supervisor's bank? */
static bool hits(uint64_t linear)
{
    return mmu.tlb[0][linear >> 12 & (TLB_ENTRIES - 1)].read_tag == align_down(linear, GUEST_PAGE_SIZE);
}

static bool hits_write(uint64_t linear)
{
    return mmu.tlb[0][linear >> 12 & (TLB_ENTRIES - 1)].write_tag == align_down(linear, GUEST_PAGE_SIZE);
}

#define LOCAL UINT64_C(0x400000)
#define GLOBAL UINT64_C(0xffff800000600000)

static void test_cr3(void)
{
    begin(CR4_PGE);
    map(ROOT_A, LOCAL, PAGE_1);
    map(ROOT_A, GLOBAL, PAGE_1 | PTE_G);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    CHECK_EQ(READ(GLOBAL + 5), PAGE_1 + 5);
    map(ROOT_A, LOCAL, PAGE_2);
    map(ROOT_A, GLOBAL, PAGE_2 | PTE_G);
    mmu_load_cr3(&mmu, ROOT_A, false);
    CHECK(!hits(LOCAL));
    CHECK(hits(GLOBAL));
    CHECK_EQ(READ(LOCAL), PAGE_2);
    CHECK_EQ(READ(GLOBAL), PAGE_1); /* kept */
    mmu_flush_page(&mmu, GLOBAL + 0xfff);
    CHECK(!hits(GLOBAL));
    CHECK(hits(LOCAL));
    CHECK_EQ(READ(GLOBAL), PAGE_2);

    begin(0); /* without CR4.PGE the bit means nothing */
    map(ROOT_A, GLOBAL, PAGE_1 | PTE_G);
    CHECK_EQ(READ(GLOBAL), PAGE_1);
    map(ROOT_A, GLOBAL, PAGE_2 | PTE_G);
    mmu_load_cr3(&mmu, ROOT_A, false);
    CHECK_EQ(READ(GLOBAL), PAGE_2);
}

static void test_pcid(void)
{
    begin(CR4_PGE | CR4_PCIDE);
    mmu_load_cr3(&mmu, ROOT_A | 1, false);
    map(ROOT_A, LOCAL, PAGE_1);
    map(ROOT_B, LOCAL, PAGE_2);
    map(ROOT_A, GLOBAL, PAGE_1 | PTE_G);
    map(ROOT_B, GLOBAL, PAGE_1 | PTE_G);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    CHECK_EQ(READ(GLOBAL), PAGE_1);
    mmu_load_cr3(&mmu, ROOT_B | 2, false);
    CHECK(hits(GLOBAL));
    CHECK(!hits(LOCAL));
    CHECK_EQ(READ(LOCAL), PAGE_2);
    map(ROOT_A, LOCAL, PAGE_1 + 0x1000);
    map(ROOT_B, LOCAL, PAGE_2 + 0x1000);
    mmu_load_cr3(&mmu, ROOT_A | 1, true); /* bit 63: as it was left */
    CHECK_EQ(READ(LOCAL), PAGE_1);
    mmu_load_cr3(&mmu, ROOT_B | 2, true);
    CHECK_EQ(READ(LOCAL), PAGE_2);
    mmu_load_cr3(&mmu, ROOT_A | 1, false);
    CHECK_EQ(READ(LOCAL), PAGE_1 + 0x1000);
    mmu_load_cr3(&mmu, ROOT_B | 2, true); /* which the last one did not concern */
    CHECK_EQ(READ(LOCAL), PAGE_2);
    mmu_load_cr3(&mmu, ROOT_B | 2, true); /* nothing changes: not even the first level */
    CHECK(hits(LOCAL));
    mmu_load_cr3(&mmu, ROOT_B | 2, false);
    CHECK_EQ(READ(LOCAL), PAGE_2 + 0x1000);
    mmu_load_cr3(&mmu, ROOT_A | 3, true); /* never seen: nothing to keep */
    CHECK_EQ(READ(LOCAL), PAGE_1 + 0x1000);
    /* an INVLPG concerns this PCID's page alone, and a global one */
    map(ROOT_A, LOCAL, PAGE_1 + 0x2000);
    mmu_flush_page(&mmu, LOCAL);
    CHECK_EQ(READ(LOCAL), PAGE_1 + 0x2000);
    mmu_load_cr3(&mmu, ROOT_A | 1, true);
    CHECK_EQ(READ(LOCAL), PAGE_1 + 0x1000);
    CHECK_EQ(READ(GLOBAL), PAGE_1);
}

/* The four types, seen from PCID 1 with a page of its own, one of PCID 2 and a global one. */
static void test_invpcid(void)
{
    for (unsigned type = 0; type < 5; type++) {
        begin(CR4_PGE | CR4_PCIDE);
        static const uint64_t pages[] = {LOCAL, LOCAL + 0x1000, GLOBAL};
        for (unsigned pcid = 2; pcid >= 1; pcid--) {
            mmu_load_cr3(&mmu, ROOT_A | pcid, false);
            for (unsigned i = 0; i < 3; i++) {
                map(ROOT_A, pages[i], PAGE_1 | (i == 2 ? PTE_G : 0));
                CHECK_EQ(READ(pages[i]), PAGE_1);
            }
        }
        for (unsigned i = 0; i < 3; i++)
            map(ROOT_A, pages[i], PAGE_2 | (i == 2 ? PTE_G : 0));
        switch (type) {
        case 0: mmu_flush_page_of(&mmu, 2, LOCAL); break;
        case 1: mmu_flush_space(&mmu, 2); break;
        case 2: mmu_flush(&mmu); break;
        case 3: mmu_flush_local(&mmu); break;
        default: mmu_flush_page_of(&mmu, 1, LOCAL); break;
        }
        uint64_t own = type == 2 || type == 3 ? PAGE_2 : PAGE_1, other = type == 0 || type == 4 ? PAGE_1 : PAGE_2;
        CHECK_EQ(READ(LOCAL), type == 4 ? PAGE_2 : own);
        CHECK_EQ(READ(LOCAL + 0x1000), own);
        CHECK_EQ(READ(GLOBAL), type == 2 ? PAGE_2 : PAGE_1);
        mmu_load_cr3(&mmu, ROOT_A | 2, true);
        CHECK_EQ(READ(LOCAL), type == 0 ? PAGE_2 : other);
        CHECK_EQ(READ(LOCAL + 0x1000), other);
        CHECK_EQ(READ(GLOBAL), type == 2 ? PAGE_2 : PAGE_1);
    }
    begin(CR4_PGE | CR4_PCIDE); /* type 0 leaves the second level's global pages alone */
    map(ROOT_A, GLOBAL, PAGE_1 | PTE_G);
    CHECK_EQ(READ(GLOBAL), PAGE_1);
    map(ROOT_A, GLOBAL, PAGE_2 | PTE_G);
    mmu_flush_page_of(&mmu, 0, GLOBAL);
    CHECK_EQ(READ(GLOBAL), PAGE_1);
}

/* A large page is one translation: an INVLPG anywhere in it takes all of its parts, and nothing of its neighbours'. */
static void test_large_pages(void)
{
    static const struct {
        unsigned level;
        uint64_t bytes, flags;
    } sizes[] = {{2, 2 << 20, 0}, {2, 2 << 20, PTE_G}, {3, 1 << 30, 0}};
    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        uint64_t bytes = sizes[i].bytes, base = UINT64_C(0x4000000000), entry = PTE_P | PTE_PS | PTE_W | sizes[i].flags;
        begin(CR4_PGE);
        for (unsigned n = 0; n < 2; n++)
            *slot(ROOT_A, base + n * bytes, sizes[i].level) = entry;
        map(ROOT_A, LOCAL, PAGE_1);
        CHECK_EQ(READ(LOCAL), PAGE_1);
        uint64_t walks = mmu.walks;
        CHECK_EQ(READ(base + 0x1000), 0x1000);
        CHECK_EQ(READ(base + 0x5008), 0x5008);
        CHECK_EQ(READ(base + 0x1ff000), 0x1ff000);
        CHECK_EQ(mmu.walks, walks + 1); /* the others came from the second level's one entry */
        CHECK_EQ(READ(base + bytes + 0x7000), 0x7000);
        for (unsigned n = 0; n < 2; n++)
            *slot(ROOT_A, base + n * bytes, sizes[i].level) = 0;
        mmu_flush_page(&mmu, base + 0x1fe123);
        CHECK(!hits(base + 0x1000) && !hits(base + 0x5000) && !hits(base + 0x1ff000));
        CHECK(hits(LOCAL));
        CHECK_EQ(READ(base + 0x1000), NONE);
        CHECK_EQ(READ(base + 0x5000), NONE);
        CHECK_EQ(READ(base + bytes + 0x8000), 0x8000);
        CHECK_EQ(READ(base + bytes + 0x7000), 0x7000);
        if (!sizes[i].flags) {
            mmu_load_cr3(&mmu, ROOT_A, false);
            CHECK_EQ(READ(base + bytes + 0x7000), NONE);
        }
    }
    begin(0); /* a part that the second level has forgotten */
    *slot(ROOT_A, LOCAL, 2) = PTE_P | PTE_PS;
    CHECK_EQ(READ(LOCAL + 0x3000), 0x3000);
    for (unsigned i = 0; i < STLB_SETS; i++)
        memset(mmu.stlb.set[i].leaf, 0, sizeof mmu.stlb.set[i].leaf);
    mmu_flush_page(&mmu, LOCAL + 0x9000);
    CHECK(!hits(LOCAL + 0x3000));

    begin(CR4_PSE); /* 4 MiB, and PSE-36 */
    mmu.efer = 0;
    mmu.cr4 = CR4_PSE;
    mmu_flush(&mmu);
    *entry_at(ROOT_A + 4) = PTE_P | PTE_PS | 0x400000 | PTE_W;
    CHECK_EQ(READ(0x400000), 0x400000);
    CHECK_EQ(READ(0x7ff004), 0x7ff004);
    CHECK_EQ(WRITE(0x7ff004), 0x7ff004);
    *entry_at(ROOT_A + 4) = PTE_P | PTE_PS | 0x800000;
    CHECK_EQ(READ(0x600000), 0x600000);
    mmu_flush_page(&mmu, 0x500000);
    CHECK_EQ(READ(0x600000), 0xa00000);
    CHECK(!hits(0x7ff000));
}

/* Entries that lead to tables are cached as well; software that changes one must execute INVLPG, for any address. */
static void test_structure_caches(void)
{
    uint64_t other = 0x300000, a = LOCAL, b = LOCAL + 0x1000, c = LOCAL + 0x2000, d = LOCAL + 0x3000;
    for (unsigned level = 2; level <= 3; level++) {
        begin(CR4_PCIDE);
        for (uint64_t page = a; page <= d; page += 0x1000)
            map(ROOT_A, page, PAGE_1);
        CHECK_EQ(READ(a), PAGE_1);
        uint64_t table = level == 2 ? other : other + 0x1000;
        *entry_at(other + 0x1000 + 8 * (LOCAL >> 21 & 511)) = other | PTE_P | PTE_W | PTE_U;
        for (uint64_t page = a; page <= d; page += 0x1000)
            *entry_at(other + 8 * (page >> 12 & 511)) = PAGE_2 | PTE_P;
        *slot(ROOT_A, LOCAL, level) = table | PTE_P | PTE_W | PTE_U;
        CHECK_EQ(READ(b), PAGE_1); /* stale, which is allowed */
        mmu_load_cr3(&mmu, ROOT_A | 7, false);
        mmu_load_cr3(&mmu, ROOT_A, true);
        CHECK_EQ(READ(c), PAGE_1);
        mmu_flush_page(&mmu, 0x123456789000);
        CHECK_EQ(READ(d), PAGE_2);
        CHECK_EQ(READ(a), PAGE_1); /* a translation by itself stays */
        mmu_load_cr3(&mmu, ROOT_A, false);
        CHECK_EQ(READ(a), PAGE_2);
    }
    begin(0);
    map(ROOT_A, a, PAGE_1);
    map(ROOT_A, b, PAGE_1);
    CHECK_EQ(READ(a), PAGE_1);
    *slot(ROOT_A, LOCAL, 2) = 0;
    mmu_load_cr3(&mmu, ROOT_A, false);
    CHECK_EQ(READ(b), NONE);
    begin(0); /* a PDE that takes rights away, and gives them back: a fault is taken by the tables of now */
    map(ROOT_A, a, PAGE_1 | PTE_W);
    map(ROOT_A, b, PAGE_1 | PTE_W);
    *slot(ROOT_A, LOCAL, 2) &= ~(uint64_t)PTE_W;
    CHECK_EQ(READ(a), PAGE_1);
    CHECK_EQ(WRITE(a), NONE);
    *slot(ROOT_A, LOCAL, 2) |= PTE_W;
    CHECK_EQ(WRITE(b), PAGE_1);
    CHECK_EQ(WRITE(a), PAGE_1);
}

/* Software gives rights without any INVLPG, and a fault takes what was cached with it. */
static void test_faults(void)
{
    begin(0);
    CHECK_EQ(READ(LOCAL), NONE);
    map(ROOT_A, LOCAL, PAGE_1);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    CHECK_EQ(WRITE(LOCAL), NONE);
    CHECK_EQ(last_fault.error_code, PF_P | PF_W);
    map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
    CHECK_EQ(WRITE(LOCAL), PAGE_1);
    CHECK_EQ(translate(LOCAL, MMU_READ, MMU_USER), NONE);
    map(ROOT_A, LOCAL, PAGE_1 | PTE_W | PTE_U | PTE_NX);
    CHECK_EQ(translate(LOCAL, MMU_READ, MMU_USER), PAGE_1);
    CHECK_EQ(translate(LOCAL, MMU_FETCH, MMU_USER), NONE);
    map(ROOT_A, LOCAL, PAGE_1 | PTE_W | PTE_U);
    CHECK_EQ(translate(LOCAL, MMU_FETCH, MMU_USER), PAGE_1);
    map(ROOT_A, LOCAL, PAGE_1);
    mmu_flush_page(&mmu, LOCAL);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    *slot(ROOT_A, LOCAL, 1) = 0;
    CHECK_EQ(READ(LOCAL), PAGE_1); /* stale */
    CHECK_EQ(WRITE(LOCAL), NONE);
    CHECK_EQ(last_fault.error_code, PF_W);
    CHECK(!hits(LOCAL));
    CHECK_EQ(READ(LOCAL), NONE);
}

static void test_accessed_and_dirty(void)
{
    begin(0);
    map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
    uint64_t *entry = slot(ROOT_A, LOCAL, 1);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    CHECK_EQ(*entry & (PTE_A | PTE_D), PTE_A);
    CHECK(!hits_write(LOCAL));
    CHECK_EQ(WRITE(LOCAL), PAGE_1);
    CHECK_EQ(*entry & (PTE_A | PTE_D), PTE_A | PTE_D);
    CHECK(hits_write(LOCAL));
    *entry &= ~(uint64_t)(PTE_A | PTE_D);
    CHECK_EQ(WRITE(LOCAL), PAGE_1);
    CHECK_EQ(*entry & (PTE_A | PTE_D), 0); /* the cached translation is dirty */
    mmu_flush_page(&mmu, LOCAL);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    CHECK(!hits_write(LOCAL));
    CHECK_EQ(*entry & (PTE_A | PTE_D), PTE_A);
    CHECK_EQ(*slot(ROOT_A, LOCAL, 2) & PTE_A, PTE_A);
}

/* Rights are looked at by each privilege and mode anew, though one entry of the second level serves them all. */
static void test_rights(void)
{
    begin(0);
    map(ROOT_A, LOCAL, PAGE_1 | PTE_U);
    CHECK_EQ(translate(LOCAL, MMU_READ, MMU_USER), PAGE_1);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    CHECK_EQ(WRITE(LOCAL), NONE);
    mmu.cr0 &= ~(uint64_t)CR0_WP;
    mmu_flush_rights(&mmu);
    CHECK_EQ(WRITE(LOCAL), PAGE_1);
    CHECK(hits_write(LOCAL));
    mmu.cr0 |= CR0_WP;
    mmu_flush_rights(&mmu);
    CHECK(!hits(LOCAL));
    CHECK_EQ(WRITE(LOCAL), NONE);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    mmu.cr4 |= CR4_SMAP;
    mmu_flush_rights(&mmu);
    CHECK_EQ(READ(LOCAL), NONE);
    mmu.ac = true;
    CHECK_EQ(READ(LOCAL), PAGE_1);
    CHECK_EQ(translate(LOCAL, MMU_READ, MMU_IMPLICIT), NONE);
}

/* Stores to a page that has become code must come the slow way, all others need not. */
static void test_drop_writes(void)
{
    begin(0);
    map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
    map(ROOT_A, LOCAL + 0x1000, PAGE_2 | PTE_W);
    map(ROOT_A, LOCAL + 0x2000, PAGE_1 | PTE_W);
    for (unsigned i = 0; i < 3; i++)
        CHECK(WRITE(LOCAL + i * 0x1000) != NONE);
    mmu_drop_writes(&mmu, PAGE_1 + 0x123);
    CHECK(hits(LOCAL) && !hits_write(LOCAL) && hits(LOCAL + 0x2000) && !hits_write(LOCAL + 0x2000));
    CHECK(hits_write(LOCAL + 0x1000));
    mmu_drop_all_writes(&mmu);
    CHECK(hits(LOCAL + 0x1000) && !hits_write(LOCAL + 0x1000));
}

static uint64_t leaf(uint64_t gpa)
{
    return gpa | PTE_P;
}

/* Numbers of spaces in tags repeat; translations do not come back with them. */
static void test_spaces_repeat(void)
{
    struct stlb *stlb = aligned_alloc(64, sizeof *stlb);
    stlb_init(stlb);
    stlb_select(stlb, 2);
    stlb_insert(stlb, LOCAL, leaf(PAGE_2));
    stlb_select(stlb, 1);
    stlb_insert(stlb, LOCAL, leaf(PAGE_1));
    stlb_insert(stlb, GLOBAL, leaf(PAGE_1) | PTE_G);
    bool back = false, wrong = false;
    for (unsigned i = 0; i < 300000; i++) {
        stlb_drop_space(stlb, 1);
        back |= stlb_lookup(stlb, LOCAL) != 0;
        uint64_t shared = stlb_lookup(stlb, GLOBAL);
        wrong |= shared && (shared & PTE_ADDRESS) != PAGE_1;
    }
    CHECK(!back && !wrong);
    stlb_select(stlb, 2);
    uint64_t kept = stlb_lookup(stlb, LOCAL); /* it may be gone, but not be another */
    CHECK(kept == 0 || kept == leaf(PAGE_2));
    free(stlb);
}

/* CLOCK, not FIFO: what is used stays. */
static void test_replacement(void)
{
    struct stlb *stlb = aligned_alloc(64, sizeof *stlb);
    stlb_init(stlb);
    uint64_t page[8];
    unsigned found = 0;
    for (uint64_t linear = 0; found < 8; linear += 0x1000) /* pages of one set */
        if (((linear >> 12 ^ linear >> 22) & (STLB_SETS - 1)) == 5)
            page[found++] = linear;
    for (unsigned i = 0; i < 4; i++)
        stlb_insert(stlb, page[i], leaf(PAGE_1));
    CHECK(stlb_lookup(stlb, page[0]) && stlb_lookup(stlb, page[2]));
    stlb_insert(stlb, page[4], leaf(PAGE_1));
    CHECK(stlb_lookup(stlb, page[0]) && !stlb_lookup(stlb, page[1]) && stlb_lookup(stlb, page[2]));
    stlb_insert(stlb, page[5], leaf(PAGE_1));
    CHECK(stlb_lookup(stlb, page[0]) && !stlb_lookup(stlb, page[3]) && stlb_lookup(stlb, page[4]));
    stlb_insert(stlb, page[4], leaf(PAGE_2)); /* a place that it has already */
    CHECK_EQ(stlb_lookup(stlb, page[4]), leaf(PAGE_2));
    CHECK(stlb_lookup(stlb, page[5]) && stlb_lookup(stlb, page[0]));
    for (unsigned i = 0; i < 4000; i++)
        stlb_insert(stlb, page[i % 8], leaf(PAGE_1)); /* everything used: the hand must come to an end */
    free(stlb);
}

/* What was found by linear address is good while its privilege's epoch is the same. */
static uint32_t epoch(bool user)
{
    mmu_select_epoch(&mmu, user);
    return mmu.epoch;
}

#define FETCH(linear, user) CHECK(mmu_fetch(&mmu, linear, user, &last_fault) != NULL)
static void test_epochs(void)
{
    uint64_t user_page = LOCAL, kernel = GLOBAL, module = GLOBAL + 0x200000;
    begin(CR4_PGE | CR4_PCIDE);
    map(ROOT_A, user_page, PAGE_1 | PTE_U);
    map(ROOT_A, kernel, PAGE_2 | PTE_G);
    map(ROOT_A, module, PAGE_2);
    *slot(ROOT_A, GLOBAL + 0x40000000, 2) = PTE_P | PTE_PS | PTE_G;
    FETCH(user_page, true);
    FETCH(kernel, false);
    FETCH(GLOBAL + 0x40001000, false);
    uint32_t of_user = epoch(true), of_kernel = epoch(false);
    mmu_flush_page(&mmu, LOCAL + 0x10000); /* no code there */
    CHECK_EQ(READ(LOCAL + 0x20000), NONE);
    CHECK(epoch(true) == of_user && epoch(false) == of_kernel);
    mmu_load_cr3(&mmu, ROOT_A, false); /* the user's page is not global */
    CHECK_EQ(epoch(false), of_kernel);
    CHECK(epoch(true) != of_user);
    of_user = epoch(true);
    FETCH(user_page, true);
    mmu_flush_page(&mmu, user_page);
    CHECK(epoch(true) != of_user && epoch(false) == of_kernel);
    of_user = epoch(true);
    mmu_flush_page(&mmu, GLOBAL + 0x40155000); /* another part of the large page */
    CHECK(epoch(true) == of_user && epoch(false) != of_kernel);
    of_kernel = epoch(false);
    FETCH(kernel, false); /* known already, yet it counts for the new epoch */
    mmu_flush_page(&mmu, kernel);
    CHECK(epoch(false) != of_kernel);
    of_kernel = epoch(false);
    FETCH(module, false); /* one page that is not global is enough */
    FETCH(kernel, false);
    mmu_load_cr3(&mmu, ROOT_A | 1, true);
    CHECK(epoch(false) != of_kernel);
    for (unsigned i = 0; i < 4; i++) {
        FETCH(user_page, true);
        FETCH(kernel, false);
        of_user = epoch(true), of_kernel = epoch(false);
        switch (i) {
        case 0: mmu_flush(&mmu); break;
        case 1: mmu_flush_local(&mmu); break;
        case 2: mmu_flush_space(&mmu, 1); break;
        default: mmu_flush_space(&mmu, 2); break; /* another's */
        }
        CHECK_EQ(epoch(true) != of_user, i < 3);
        CHECK_EQ(epoch(false) != of_kernel, i == 0);
    }
    FETCH(user_page, true);
    of_user = epoch(true);
    *slot(ROOT_A, user_page, 1) = 0;
    CHECK_EQ(translate(user_page, MMU_WRITE, MMU_USER), NONE); /* the fault takes the translation */
    CHECK(epoch(true) != of_user);
    CHECK(!mmu_fetch(&mmu, user_page, true, &last_fault));
}

/* Each address space finds its epoch again, if nothing was dropped meanwhile, and never another's. */
static void test_epochs_of_spaces(void)
{
    for (unsigned what = 0; what < 8; what++) {
        begin(CR4_PGE | CR4_PCIDE);
        map(ROOT_A, LOCAL, PAGE_1 | PTE_U);
        map(ROOT_A, LOCAL + 0x1000, PAGE_1 | PTE_U | PTE_G);
        uint32_t of[4];
        for (unsigned pcid = 1; pcid < 4; pcid++) {
            mmu_load_cr3(&mmu, ROOT_A | pcid, false);
            FETCH(LOCAL, true);
            FETCH(LOCAL + 0x1000, true);
            of[pcid] = epoch(true);
        }
        CHECK(of[1] != of[2] && of[2] != of[3] && of[1] != of[3]);
        switch (what) {
        case 1: mmu_flush_page_of(&mmu, 1, LOCAL); break;
        case 2: mmu_flush_space(&mmu, 1); break;
        case 3: mmu_flush_local(&mmu); break;
        case 4: mmu_flush(&mmu); break;
        case 5: mmu_flush_page(&mmu, LOCAL + 0x1000); break; /* global: everybody's */
        case 6: mmu_load_cr3(&mmu, ROOT_A | 1, false); break;
        case 7: mmu_forget_blocks(&mmu); break;
        }
        mmu_load_cr3(&mmu, ROOT_A | 1, true);
        uint32_t now = epoch(true);
        CHECK_EQ(now == of[1], what == 0);
        CHECK(now != of[2] && now != of[3]);
        mmu_load_cr3(&mmu, ROOT_A | 2, true);
        CHECK_EQ(epoch(true) == of[2], what == 0 || what == 2 || what == 6);
        CHECK(epoch(true) != now && epoch(true) != of[1] && epoch(true) != of[3]);
    }
    begin(CR4_PCIDE); /* more spaces than are remembered */
    map(ROOT_A, LOCAL, PAGE_1 | PTE_U);
    uint32_t first = epoch(true), last = first;
    for (unsigned pcid = 1; pcid < 20; pcid++) {
        mmu_load_cr3(&mmu, ROOT_A | pcid, true);
        FETCH(LOCAL, true);
        CHECK(epoch(true) > last);
        last = epoch(true);
    }
    mmu_load_cr3(&mmu, ROOT_A, true);
    CHECK(epoch(true) > last);
}

static struct access_slot *fill_slot(unsigned i, uint64_t page)
{
    const struct tlb_entry *entry = &mmu.tlb[0][page / GUEST_PAGE_SIZE % TLB_ENTRIES];
    CHECK_EQ(entry->read_tag, page);
    mmu.slots[0][i] = (struct access_slot){page, entry->addend};
    mmu.slots_filled[0][i / SLOT_GROUP] |= entry->gpa & SLOT_ANY;
    return &mmu.slots[0][i];
}

/* An empty slot is hit by one page, which leads to a page of the processor's own: by none that is canonical, and by none that
 * was found out on another processor. */
static void test_empty_slots(void)
{
    struct mmu *another = calloc(1, sizeof *another);
    mmu_init(another, &mem);
    for (unsigned i = 0; i < ACCESS_SLOTS; i++) {
        const struct access_slot *slot = &another->slots[0][i];
        CHECK(!x86_canonical(slot->tag, true) && slot->tag % GUEST_PAGE_SIZE == 0);
        CHECK_EQ(slot->tag + slot->addend, (uint64_t)another->nowhere);
    }
    CHECK(another->slots[0][0].tag != mmu.empty_page);
    free(another);
}

/* What translated code remembers of the first level. */
static void test_slots(void)
{
    for (unsigned what = 0; what < 6; what++) {
        begin(CR4_PGE | CR4_PCIDE);
        map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
        map(ROOT_A, LOCAL + 0x1000, PAGE_2 | PTE_W);
        CHECK(WRITE(LOCAL) != NONE && WRITE(LOCAL + 0x1000) != NONE);
        struct access_slot *slot = fill_slot(7, LOCAL), *other = fill_slot(STORE_SLOTS - 9, LOCAL + 0x1000);
        switch (what) {
        case 0: mmu_load_cr3(&mmu, ROOT_A | 1, true); break;
        case 1: mmu_flush(&mmu); break;
        case 2: mmu_flush_rights(&mmu); break;
        case 3: mmu_drop_writes(&mmu, PAGE_1); break;
        case 4: mmu_drop_all_writes(&mmu); break;
        case 5: mmu_flush_page(&mmu, LOCAL); break;
        }
        CHECK(slot->tag != LOCAL);
        CHECK_EQ(other->tag == LOCAL + 0x1000, what == 3 || what == 5);
    }
    begin(CR4_PGE); /* a bank that keeps global entries, from which a slot is filled later */
    map(ROOT_A, GLOBAL, PAGE_1 | PTE_G);
    CHECK_EQ(READ(GLOBAL), PAGE_1);
    mmu_load_cr3(&mmu, ROOT_A, false);
    CHECK(hits(GLOBAL));
    fill_slot(3, GLOBAL);
    mmu_flush(&mmu);
    CHECK(mmu.slots[0][3].tag != GLOBAL);
    begin(0); /* a page whose entry in the bank another one has taken */
    map(ROOT_A, LOCAL, PAGE_1);
    map(ROOT_A, LOCAL + TLB_ENTRIES * 0x1000, PAGE_2);
    CHECK_EQ(READ(LOCAL), PAGE_1);
    fill_slot(6, LOCAL);
    CHECK_EQ(READ(LOCAL + TLB_ENTRIES * 0x1000), PAGE_2);
    CHECK_EQ(mmu.slots[0][6].tag, LOCAL);
    mmu_flush_page(&mmu, LOCAL);
    CHECK(mmu.slots[0][6].tag != LOCAL);
    begin(CR4_PGE); /* global entries stay, and so do their slots; a change of rights takes both */
    map(ROOT_A, GLOBAL, PAGE_1 | PTE_G);
    map(ROOT_A, LOCAL, PAGE_2);
    CHECK(READ(GLOBAL) == PAGE_1 && READ(LOCAL) == PAGE_2);
    fill_slot(20, GLOBAL), fill_slot(21, LOCAL);
    mmu_load_cr3(&mmu, ROOT_A, false);
    CHECK(mmu.slots[0][20].tag == GLOBAL && mmu.slots[0][21].tag != LOCAL);
    mmu_flush_rights(&mmu);
    CHECK(mmu.slots[0][20].tag != GLOBAL);
    begin(0); /* a page that becomes code after its entry in the bank was taken */
    map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
    map(ROOT_A, LOCAL + TLB_ENTRIES * 0x1000, PAGE_2);
    CHECK_EQ(WRITE(LOCAL), PAGE_1);
    fill_slot(11, LOCAL);
    CHECK_EQ(READ(LOCAL + TLB_ENTRIES * 0x1000), PAGE_2);
    mmu_drop_writes(&mmu, PAGE_1);
    CHECK(mmu.slots[0][11].tag != LOCAL);
    begin(0); /* another part of a large page */
    *slot(ROOT_A, LOCAL, 2) = PTE_P | PTE_PS;
    CHECK_EQ(READ(LOCAL + 0x3000), 0x3000);
    fill_slot(5, LOCAL + 0x3000);
    mmu_flush_page(&mmu, LOCAL + 0x9000);
    CHECK(mmu.slots[0][5].tag != LOCAL + 0x3000);
}

static bool slot_has(unsigned i, uint64_t page)
{
    return mmu.slots[0][i].tag == page;
}

/* What a switch of address spaces leaves to the slots of the high half: all that is global, in the bank or not. */
static void test_high_slots(void)
{
    const uint64_t other = GLOBAL + TLB_ENTRIES * 0x1000, local = GLOBAL + 0x2000;
    begin(CR4_PGE);
    map(ROOT_A, GLOBAL, PAGE_1 | PTE_G);
    map(ROOT_A, other, PAGE_2 | PTE_G);
    map(ROOT_A, local, PAGE_2);
    map(ROOT_A, local + TLB_ENTRIES * 0x1000, PAGE_2);
    map(ROOT_A, LOCAL, PAGE_2);
    CHECK(READ(GLOBAL) == PAGE_1 && READ(LOCAL) == PAGE_2 && READ(local) == PAGE_2);
    fill_slot(0, GLOBAL), fill_slot(16, local), fill_slot(32, LOCAL), fill_slot(33, GLOBAL);
    CHECK_EQ(READ(other), PAGE_2); /* takes the entry of GLOBAL */
    mmu_load_cr3(&mmu, ROOT_A, false);
    CHECK(slot_has(0, GLOBAL));
    CHECK(!slot_has(16, local) && !slot_has(32, LOCAL));
    fill_slot(1, other);
    mmu_flush_page(&mmu, GLOBAL);
    CHECK(!slot_has(0, GLOBAL) && slot_has(1, other));
    CHECK(READ(local) == PAGE_2); /* one that is not global, and that the bank has lost */
    fill_slot(48, local), fill_slot(49, other);
    mmu_flush_page(&mmu, LOCAL); /* looks at the group, and forgets nothing about it */
    CHECK_EQ(READ(local + TLB_ENTRIES * 0x1000), PAGE_2);
    mmu_load_cr3(&mmu, ROOT_A, false);
    CHECK(!slot_has(48, local) && slot_has(49, other));
    CHECK_EQ(READ(local), PAGE_2);
    fill_slot(50, local);
    CHECK_EQ(READ(local + TLB_ENTRIES * 0x1000), PAGE_2);
    mmu_flush_page(&mmu, local); /* looked for among all marks */
    CHECK(!slot_has(50, local) && slot_has(49, other));
    mmu_flush(&mmu);
    CHECK(!slot_has(49, other) && !slot_has(1, other));
}

/* Which pages may have been stored to is known, so that a page that becomes code is only looked for where it was. */
static void test_stores_are_tracked(void)
{
    CHECK(mmu_track_stores(&mmu));
    for (unsigned round = 0; round < 3; round++) { /* what was dropped may be stored to again */
        begin(0);
        map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
        map(ROOT_A, LOCAL + 0x1000, PAGE_1 | PTE_W);
        map(ROOT_A, LOCAL + 0x2000, PAGE_2 | PTE_W);
        CHECK(WRITE(LOCAL) != NONE && WRITE(LOCAL + 0x1000) != NONE && WRITE(LOCAL + 0x2000) != NONE);
        fill_slot(1, LOCAL), fill_slot(STORE_SLOTS - 1, LOCAL + 0x1000), fill_slot(2, LOCAL + 0x2000);
        mmu_drop_writes(&mmu, PAGE_1 + 0x1000); /* another page */
        CHECK(hits_write(LOCAL) && slot_has(1, LOCAL));
        mmu_drop_writes(&mmu, PAGE_1 + 8);
        CHECK(!hits_write(LOCAL) && !hits_write(LOCAL + 0x1000) && hits_write(LOCAL + 0x2000));
        CHECK(!slot_has(1, LOCAL) && !slot_has(STORE_SLOTS - 1, LOCAL + 0x1000) && slot_has(2, LOCAL + 0x2000));
    }
    mmu.stored_pages = PAGE_2 / GUEST_PAGE_SIZE; /* of what lies beyond nothing is known */
    begin(0);
    map(ROOT_A, LOCAL, PAGE_2 | PTE_W);
    CHECK(WRITE(LOCAL) != NONE);
    mmu_drop_writes(&mmu, PAGE_2);
    CHECK(!hits_write(LOCAL));
    free(mmu.stored);
    mmu.stored = NULL;
}

/* As translated code asks (jit.c, make_refill). */
static bool wide_hits(uint64_t page, bool write)
{
    uint64_t differs = mmu.wide[0][page / GUEST_PAGE_SIZE % WIDE_ENTRIES].tag ^ (page | mmu.wide_key[page >> 63]);
    return write ? !differs : !(differs & ~(uint64_t)WIDE_WRITABLE);
}

/* What the first level lost to another page is found between the levels, until something takes it away. */
static void test_wide(void)
{
    static struct wide_entry wide[TLB_BANKS][WIDE_ENTRIES];
    const uint64_t other = LOCAL + TLB_ENTRIES * 0x1000, third = other + TLB_ENTRIES * 0x1000;
    mmu.wide = wide;
    for (unsigned what = 0; what < 8; what++) {
        begin(CR4_PGE | CR4_PCIDE);
        map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
        map(ROOT_A, other, PAGE_2);
        map(ROOT_A, third, PAGE_1 + 0x1000);
        CHECK(WRITE(LOCAL) == PAGE_1 && !wide_hits(LOCAL, false));
        CHECK(READ(other) == PAGE_2 && READ(third) == PAGE_1 + 0x1000);
        CHECK(wide_hits(LOCAL, true) && wide_hits(LOCAL, false));
        CHECK(wide_hits(other, false) && !wide_hits(other, true) && !wide_hits(third, false));
        const struct guest_region *region = guest_mem_find(&mem, PAGE_1);
        uint64_t host = LOCAL + wide[0][LOCAL / GUEST_PAGE_SIZE % WIDE_ENTRIES].addend;
        CHECK_EQ(host, (uint64_t)(region->host + (PAGE_1 - region->gpa)));
        switch (what) {
        case 0: mmu_load_cr3(&mmu, ROOT_A | 1, true); break;
        case 1: mmu_flush(&mmu); break;
        case 2: mmu_flush_rights(&mmu); break;
        case 3: mmu_drop_writes(&mmu, PAGE_1); break;
        case 4: mmu_drop_all_writes(&mmu); break;
        case 5: mmu_flush_page(&mmu, LOCAL); break;
        case 6: mmu_flush_local(&mmu); break;
        default: /* as many keys as there are: they begin anew, and what had one before has none */
            for (unsigned i = 0; i < GUEST_PAGE_SIZE / 2 - 2; i++)
                mmu_flush_rights(&mmu);
            break;
        }
        CHECK(!wide_hits(LOCAL, false) && !wide_hits(LOCAL, true));
        CHECK_EQ(wide_hits(other, false), what == 5);
    }
    begin(CR4_PGE); /* of the high half, only what is global is kept, and that whatever becomes of the other half */
    for (unsigned global = 0; global < 2; global++) {
        uint64_t high = GLOBAL + global * 0x1000;
        map(ROOT_A, high, PAGE_1 | (global ? PTE_G : 0));
        map(ROOT_A, high + TLB_ENTRIES * 0x1000, PAGE_2 | PTE_G);
        CHECK(READ(high) == PAGE_1 && READ(high + TLB_ENTRIES * 0x1000) == PAGE_2);
        CHECK_EQ(wide_hits(high, false), global);
        mmu_load_cr3(&mmu, ROOT_A, false);
        CHECK_EQ(wide_hits(high, false), global);
        mmu_flush_page(&mmu, high);
        CHECK(!wide_hits(high, false));
    }
    begin(0); /* a part of a large page that is dropped by another of its addresses */
    *slot(ROOT_A, LOCAL, 2) = PTE_P | PTE_PS;
    *slot(ROOT_A, other, 2) = PTE_P | PTE_PS;
    CHECK(READ(LOCAL + 0x3000) == 0x3000 && READ(other + 0x3000) == 0x3000);
    CHECK(wide_hits(LOCAL + 0x3000, false));
    mmu_flush_page(&mmu, LOCAL + 0x9000);
    CHECK(!wide_hits(LOCAL + 0x3000, false));
    mmu.wide = NULL;
}

int main(void)
{
    imgvm_error err;
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, RAM_BYTES, false, &err), 0);
    mmu_init(&mmu, &mem);
    test_cr3();
    test_pcid();
    test_invpcid();
    test_large_pages();
    test_structure_caches();
    test_faults();
    test_accessed_and_dirty();
    test_rights();
    test_drop_writes();
    test_spaces_repeat();
    test_replacement();
    test_epochs();
    test_epochs_of_spaces();
    test_empty_slots();
    test_slots();
    test_high_slots();
    test_stores_are_tracked();
    test_wide();
    guest_mem_destroy(&mem);
    return check_report();
}
