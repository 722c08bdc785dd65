/* SPDX-License-Identifier: MIT */
/* Guest physical memory: a few regions of RAM and ROM. Everything else is MMIO.
 *
 * Two rules keep cached code honest (docs/engine.md, "Code that is written"): whoever decodes instructions marks the
 * 128-byte granules they came from; whoever writes guest memory outside the processor's own
 * store path (DMA, loaders, KVM hand-over) goes through guest_mem_write or calls
 * guest_mem_written afterwards. */
#ifndef IMGVM_MEM_GUEST_MEM_H
#define IMGVM_MEM_GUEST_MEM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../base/error.h"

#define GUEST_PAGE_SIZE 4096u
#define GUEST_CODE_GRANULE 128u /* 32 granules a page: one bit each in a uint32_t */
#define GUEST_MEM_REGIONS 8

struct guest_region {
    uint64_t gpa, size; /* page-aligned */
    uint8_t *host;
    bool read_only; /* ROM: reads and fetches only; a write goes to the MMIO bus (dropped when nobody listens) */
    _Atomic uint32_t *code_granules;   /* per page: which granules hold decoded code */
    _Atomic uint32_t *code_generation; /* per page: bumped whenever such a granule is written */
};

struct guest_mem {
    struct guest_region regions[GUEST_MEM_REGIONS];
    unsigned count;
    _Atomic uint32_t *code_epoch; /* one word: bumped with any page's code_generation */
    _Atomic uint32_t code_settling; /* pages that have become code, and not all processors have seen it yet */
    /* Called after code_epoch was bumped, on whatever thread did it; NULL: nobody asks. */
    void (*code_changed)(void *opaque);
    void *code_changed_opaque;
};

int guest_mem_init(struct guest_mem *mem, imgvm_error *err);
void guest_mem_destroy(struct guest_mem *mem);
/* Add zeroed, page-aligned memory at gpa. */
int guest_mem_add(struct guest_mem *mem, uint64_t gpa, uint64_t size, bool read_only, imgvm_error *err);

/* The region that holds gpa, or NULL (MMIO or nothing). */
const struct guest_region *guest_mem_find(const struct guest_mem *mem, uint64_t gpa);
/* Host address of [gpa, gpa+size) when it lies in one RAM region (ROM too when !for_write); else NULL.
 * A device that writes through it must call guest_mem_written. */
void *guest_mem_ptr(const struct guest_mem *mem, uint64_t gpa, uint64_t size, bool for_write);
/* Copies that may span regions; false when any byte is not RAM (nothing is promised of the rest). */
bool guest_mem_read(const struct guest_mem *mem, uint64_t gpa, void *data, uint64_t size);
bool guest_mem_write(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size);
/* Loader's write: also into ROM. */
bool guest_mem_load(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size);
/* [gpa, gpa+size) was changed: cached code from there is stale. */
void guest_mem_written(const struct guest_mem *mem, uint64_t gpa, uint64_t size);
/* The same for a processor's store, before it is made (docs/engine.md, "Code that is written"), inside one page. true: there was
 * some. */
bool guest_mem_drop_code(const struct guest_mem *mem, const struct guest_region *region, uint64_t gpa, uint32_t size);
/* Anything may have been changed by somebody who does not tell (KVM's guest): all cached code is stale. */
void guest_mem_forget_code(const struct guest_mem *mem);
/* The bytes at gpa (size <= 4096, inside one page) are about to be cached as code. */
void guest_mem_mark_code(const struct guest_region *region, uint64_t gpa, uint32_t size);
/* The same. true: the page had no code before, and counts as settling until guest_mem_code_settled. */
bool guest_mem_settle_code(struct guest_mem *mem, const struct guest_region *region, uint64_t gpa, uint32_t size);
void guest_mem_code_settled(struct guest_mem *mem);

#endif
