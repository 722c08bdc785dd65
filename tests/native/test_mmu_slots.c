/* SPDX-License-Identifier: MIT */
/* What translated code remembers of the first level, and the marks of the pages that it may have stored to. */
// needs: base/error.c mem/guest_mem.c cpu/mmu/*.c
#include <stdlib.h>

#include "mmu_world.h"

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
    for (enum drop how = 0; how < DROPS; how++) {
        begin(CR4_PGE | CR4_PCIDE);
        map(ROOT_A, LOCAL, PAGE_1 | PTE_W);
        map(ROOT_A, LOCAL + 0x1000, PAGE_2 | PTE_W);
        CHECK(WRITE(LOCAL) != NONE && WRITE(LOCAL + 0x1000) != NONE);
        struct access_slot *slot = fill_slot(7, LOCAL), *other = fill_slot(STORE_SLOTS - 9, LOCAL + 0x1000);
        drop(how);
        CHECK(slot->tag != LOCAL);
        CHECK_EQ(other->tag == LOCAL + 0x1000, how == DROP_WRITES || how == DROP_PAGE);
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

int main(void)
{
    make_world();
    test_empty_slots();
    test_slots();
    test_high_slots();
    test_stores_are_tracked();
    guest_mem_destroy(&mem);
    return check_report();
}
