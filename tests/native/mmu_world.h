/* SPDX-License-Identifier: MIT */
/* A small world for tests of the MMU alone: memory, two roots of tables that are changed behind the caches' back, and what
 * the supervisor's first level has. A translation that is kept when it must not be is stale, and shows it. */
#ifndef IMGVM_TEST_MMU_WORLD_H
#define IMGVM_TEST_MMU_WORLD_H

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

static inline uint64_t *entry_at(uint64_t gpa)
{
    return guest_mem_ptr(&mem, gpa, 8, true);
}

/* The entry of `level` for `linear` under `root`; tables on the way are made. */
static inline uint64_t *slot(uint64_t root, uint64_t linear, unsigned level)
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

static inline void map(uint64_t root, uint64_t linear, uint64_t entry)
{
    *slot(root, linear, 1) = entry | PTE_P;
}

static inline void begin(uint32_t cr4)
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
static inline uint64_t translate(uint64_t linear, enum mmu_access access, enum mmu_who who)
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
static inline bool hits(uint64_t linear)
{
    return mmu.tlb[0][linear >> 12 & (TLB_ENTRIES - 1)].read_tag == align_down(linear, GUEST_PAGE_SIZE);
}

static inline bool hits_write(uint64_t linear)
{
    return mmu.tlb[0][linear >> 12 & (TLB_ENTRIES - 1)].write_tag == align_down(linear, GUEST_PAGE_SIZE);
}

#define LOCAL UINT64_C(0x400000)
#define GLOBAL UINT64_C(0xffff800000600000)

/* All that takes the translation of LOCAL away; DROP_WRITES and DROP_PAGE leave other pages', to PAGE_2, alone. */
enum drop { DROP_SWITCH, DROP_ALL, DROP_LOCAL, DROP_RIGHTS, DROP_WRITES, DROP_ALL_WRITES, DROP_PAGE, DROPS };

static inline void drop(enum drop how)
{
    switch (how) {
    case DROP_SWITCH: mmu_load_cr3(&mmu, ROOT_A | 1, true); break;
    case DROP_ALL: mmu_flush(&mmu); break;
    case DROP_LOCAL: mmu_flush_local(&mmu); break;
    case DROP_RIGHTS: mmu_flush_rights(&mmu); break;
    case DROP_WRITES: mmu_drop_writes(&mmu, PAGE_1); break;
    case DROP_ALL_WRITES: mmu_drop_all_writes(&mmu); break;
    case DROP_PAGE: mmu_flush_page(&mmu, LOCAL); break;
    case DROPS: break;
    }
}

static inline void make_world(void)
{
    imgvm_error err;
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, RAM_BYTES, false, &err), 0);
    mmu_init(&mmu, &mem);
}

#endif
