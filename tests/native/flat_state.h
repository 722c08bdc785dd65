/* SPDX-License-Identifier: MIT */
/* 64-bit ring 0 with flat segments, whose descriptors are the second and third of the GDT. */
#ifndef IMGVM_TEST_FLAT_STATE_H
#define IMGVM_TEST_FLAT_STATE_H

#include "arch/state.h"
#include "arch/x86.h"
#include "check.h"
#include "mem/guest_mem.h"

static inline void flat_long_mode(struct x86_state *s, uint64_t tables)
{
    x86_state_reset(s, true);
    s->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_MP | CR0_WP;
    s->cr3 = tables;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->xcr0 = 7;
    s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    for (unsigned i = 0; i < 6; i++)
        s->segment[i] = (struct x86_segment){16, 0xc093, 0xffffffff, 0};
    s->segment[CS] = (struct x86_segment){8, 0xa09b, 0xffffffff, 0};
}

/* One to one and the user's: 2 MiB pages, but 4 KiB ones for the first 2 MiB. `tables`: seven pages. */
static inline void map_first_4_gib(struct guest_mem *mem, uint64_t tables)
{
    const uint64_t flags = 7, large = 0x80, directories = tables + 0x2000, first = tables + 0x6000;
    uint64_t pdpt[4], entry[512];
    for (uint64_t i = 0; i < 4; i++) {
        pdpt[i] = (directories + 0x1000 * i) | flags;
        for (uint64_t j = 0; j < 512; j++)
            entry[j] = i << 30 | j << 21 | large | flags;
        if (i == 0)
            entry[0] = first | flags;
        CHECK(guest_mem_write(mem, directories + 0x1000 * i, entry, sizeof entry));
    }
    for (uint64_t j = 0; j < 512; j++)
        entry[j] = j << 12 | flags;
    CHECK(guest_mem_write(mem, first, entry, sizeof entry));
    CHECK(guest_mem_write(mem, tables + 0x1000, pdpt, sizeof pdpt));
    entry[0] = (tables + 0x1000) | flags;
    CHECK(guest_mem_write(mem, tables, entry, 8));
}

#endif
