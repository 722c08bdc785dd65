/* SPDX-License-Identifier: MIT */
/* The first level of struct mmu (mmu.h): within cpu/mmu alone. */
#ifndef IMGVM_CPU_MMU_TLB_H
#define IMGVM_CPU_MMU_TLB_H

#include "mmu.h"

#define GUEST_PAGE_SHIFT 12

void tlb_init(struct mmu *mmu);
/* All translations, or all but the global ones, also those for fetches. */
void tlb_drop(struct mmu *mmu, bool global_too);
/* What may come from the page, of whatever size, that `linear` is in. */
void tlb_drop_page(struct mmu *mmu, uint64_t linear);
/* Fetches go there, as an entry of that name says. */
void mmu_fill_fetch(struct mmu *mmu, uint64_t tag, uint64_t gpa, uint8_t shift, bool global, uint32_t noted);
/* A part of a page of 1 << shift bytes is about to be entered. */
void tlb_note_large(struct mmu *mmu, uint64_t linear, unsigned shift);

static inline void tlb_set_mark(uint64_t *marks, unsigned i, bool value)
{
    marks[i / 64] = (marks[i / 64] & ~BIT(i % 64)) | (uint64_t)value << (i % 64);
}

#endif
