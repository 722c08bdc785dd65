/* SPDX-License-Identifier: MIT */
/* Victims: what the first level lost to another page is found between the levels, until something takes it away. */
// needs: base/error.c mem/guest_mem.c cpu/mmu/*.c
#include "mmu_world.h"

/* As translated code asks (jit.c, make_refill). */
static bool wide_hits(uint64_t page, bool write)
{
    uint64_t differs = mmu.wide[0][page / GUEST_PAGE_SIZE % WIDE_ENTRIES].tag ^ (page | mmu.wide_key[page >> 63]);
    return write ? !differs : !(differs & ~(uint64_t)WIDE_WRITABLE);
}

static void test_wide(void)
{
    static struct wide_entry wide[TLB_BANKS][WIDE_ENTRIES];
    const uint64_t other = LOCAL + TLB_ENTRIES * 0x1000, third = other + TLB_ENTRIES * 0x1000;
    mmu.wide = wide;
    for (enum drop how = 0; how <= DROPS; how++) {
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
        drop(how);
        if (how == DROPS) /* as many keys as there are: they begin anew, and what had one before has none */
            for (unsigned i = 0; i < GUEST_PAGE_SIZE / 2 - 2; i++)
                mmu_flush_rights(&mmu);
        CHECK(!wide_hits(LOCAL, false) && !wide_hits(LOCAL, true));
        CHECK_EQ(wide_hits(other, false), how == DROP_PAGE);
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
    make_world();
    test_wide();
    guest_mem_destroy(&mem);
    return check_report();
}
