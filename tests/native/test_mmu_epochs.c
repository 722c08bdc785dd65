/* SPDX-License-Identifier: MIT */
/* What was found by linear address, code above all, is good while its privilege's epoch is the same. */
// needs: base/error.c mem/guest_mem.c cpu/mmu/*.c
#include "mmu_world.h"

static uint32_t epoch(bool user)
{
    mmu_select_epoch(&mmu, user);
    return mmu.epoch;
}

/* The page is not looked up again (below) but found changed: an epoch that would be kept for it ends. */
static void change(uint64_t linear)
{
    *slot(ROOT_A, linear, 1) &= ~PTE_A;
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
    change(user_page);
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
        change(user_page);
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
            change(LOCAL);
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
        change(LOCAL);
    }
    mmu_load_cr3(&mmu, ROOT_A, true);
    CHECK(epoch(true) > last);
}

/* So long that it is worth a look whether everything is where it was. */
static void work(void)
{
    for (uint64_t since = __builtin_ia32_rdtsc(); __builtin_ia32_rdtsc() - since < 4000000;)
        continue;
}

enum change { UNCHANGED, ELSEWHERE, ABSENT, NOT_EXECUTABLE, NOT_USERS, NOT_ACCESSED, OTHER_ROOT, FLUSHED, NEW_BLOCKS, BRIEFLY, CHANGES };

/* An address space that has lost its translations keeps its epoch, if all of its code is where it was. */
static void test_epochs_found_again(void)
{
    for (unsigned pages = 1; pages < 400; pages += 133) {
        for (unsigned what = 0; what < CHANGES; what++) {
            begin(CR4_PGE);
            for (unsigned i = 0; i < pages; i++) {
                map(ROOT_A, LOCAL + 0x1000 * i, (PAGE_1 + 0x1000 * i) | PTE_U);
                map(ROOT_B, LOCAL + 0x1000 * i, (PAGE_1 + 0x1000 * i) | PTE_U | PTE_A);
                FETCH(LOCAL + 0x1000 * i, true);
            }
            uint32_t before = epoch(true);
            if (what != BRIEFLY)
                work();
            uint64_t *last = slot(ROOT_A, LOCAL + 0x1000 * (pages - 1), 1);
            switch (what) {
            case ELSEWHERE: *last += 0x1000; break;
            case ABSENT: *last = 0; break;
            case NOT_EXECUTABLE: *last |= PTE_NX; break;
            case NOT_USERS: *last &= ~PTE_U; break;
            case NOT_ACCESSED: *last &= ~PTE_A; break;
            case FLUSHED: mmu_flush(&mmu); break;
            case NEW_BLOCKS: mmu_forget_blocks(&mmu); break;
            }
            mmu_load_cr3(&mmu, ROOT_B, false);
            if (what != OTHER_ROOT)
                mmu_load_cr3(&mmu, ROOT_A, false);
            if (what == BRIEFLY && pages == 1)
                continue; /* it may have been long enough */
            CHECK_EQ(epoch(true) == before, what == UNCHANGED);
            mmu_flush_page(&mmu, LOCAL); /* there is code */
            CHECK(epoch(true) != before);
        }
    }
}

/* The very pages are known, where the filter would say yes to nearly any. */
static void test_many_pages(void)
{
    begin(CR4_PGE);
    for (unsigned i = 0; i < 6000; i++) {
        map(ROOT_A, LOCAL + 0x2000 * i, (PAGE_1 + 0x1000 * i) | PTE_U);
        FETCH(LOCAL + 0x2000 * i, true);
    }
    uint32_t before = epoch(true);
    CHECK(mmu_pages_are_single(&mmu));
    for (unsigned i = 0; i < 6000; i++)
        mmu_flush_page(&mmu, LOCAL + 0x2000 * i + 0x1000);
    CHECK_EQ(epoch(true), before);
    mmu_flush_page(&mmu, LOCAL + 0x2000 * 4321);
    CHECK(epoch(true) != before);
}

/* Nobody may count on a page of code having one address, once it has two; or once there are too many to know. */
static void test_pages_at_two_addresses(void)
{
    begin(CR4_PGE);
    map(ROOT_A, LOCAL, PAGE_1 | PTE_U);
    map(ROOT_A, LOCAL + 0x1000, PAGE_2 | PTE_U);
    map(ROOT_A, LOCAL + 0x7000, PAGE_1 | PTE_U);
    FETCH(LOCAL, true);
    FETCH(LOCAL + 0x1000, true);
    FETCH(LOCAL, true);
    CHECK(mmu_pages_are_single(&mmu));
    uint32_t before = epoch(true);
    FETCH(LOCAL + 0x7000, true);
    CHECK(!mmu_pages_are_single(&mmu));
    CHECK(epoch(true) != before);
    before = epoch(true);
    FETCH(LOCAL + 0x7000, true);
    CHECK(!mmu_pages_are_single(&mmu));
    CHECK_EQ(epoch(true), before);
    mmu_flush(&mmu);
    CHECK(mmu_pages_are_single(&mmu));
    for (unsigned i = 0; i <= CODE_LIST; i++) {
        map(ROOT_A, LOCAL + 0x1000 * i, (PAGE_1 + 0x1000 * i) | PTE_U);
        FETCH(LOCAL + 0x1000 * i, true);
    }
    CHECK(!mmu_pages_are_single(&mmu));
}

int main(void)
{
    make_world();
    test_epochs();
    test_epochs_of_spaces();
    test_epochs_found_again();
    test_many_pages();
    test_pages_at_two_addresses();
    guest_mem_destroy(&mem);
    return check_report();
}
