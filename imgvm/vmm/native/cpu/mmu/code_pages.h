/* SPDX-License-Identifier: MIT */
/* Where code was fetched from since an epoch began (struct mmu): within cpu/mmu alone. */
#ifndef IMGVM_CPU_MMU_CODE_PAGES_H
#define IMGVM_CPU_MMU_CODE_PAGES_H

#include "mmu.h"

void code_pages_note(struct mmu *mmu, struct code_pages *code, uint64_t linear, const struct fetch_entry *entry, bool global);
/* The supervisor's, or the selected space's, begins another epoch. */
void code_pages_new_epoch(struct mmu *mmu, struct code_pages *code);
/* The selected address space is another one, or has lost its translations. */
void code_pages_select(struct mmu *mmu);
/* A translation for `linear` goes, perhaps a global one; of the `selected` space, or of any. */
void code_pages_drop(struct mmu *mmu, uint64_t linear, bool selected);
/* What is known of other spaces, and of this one, is not to be found again. */
void code_pages_forget_spaces(struct mmu *mmu);

#endif
