/* SPDX-License-Identifier: MIT */
/* What stays cached of address translations and what must not (SDM vol. 3, 4.10.4). */
// needs: base/error.c mem/guest_mem.c cpu/mmu/*.c
#include "mmu_world.h"

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

int main(void)
{
    make_world();
    test_cr3();
    test_pcid();
    test_invpcid();
    test_large_pages();
    test_structure_caches();
    test_faults();
    test_accessed_and_dirty();
    test_rights();
    test_drop_writes();
    guest_mem_destroy(&mem);
    return check_report();
}
