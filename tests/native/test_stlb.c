/* SPDX-License-Identifier: MIT */
/* The second-level TLB by itself. */
// needs: cpu/mmu/stlb.c
#include <stdlib.h>

#include "arch/x86.h"
#include "check.h"
#include "cpu/mmu/stlb.h"
#include "cpu/mmu/walk.h"

#define PAGE_1 0x1000000u
#define PAGE_2 0x1400000u
#define LOCAL UINT64_C(0x400000)
#define GLOBAL UINT64_C(0xffff800000600000)

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

int main(void)
{
    test_spaces_repeat();
    test_replacement();
    return check_report();
}
