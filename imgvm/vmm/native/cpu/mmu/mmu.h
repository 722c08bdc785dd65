/* SPDX-License-Identifier: MIT */
/* Address translation: a direct-mapped first-level TLB per privilege, filled by page walks. The
 * fast path is a tag comparison inlined at each access (cpu/exec/access.h); everything slow is here. */
#ifndef IMGVM_CPU_MMU_MMU_H
#define IMGVM_CPU_MMU_MMU_H

#include <stdbool.h>
#include <stdint.h>

#include "../../arch/x86.h"
#include "../../mem/guest_mem.h"

#define TLB_ENTRIES 1024u
/* Whose access it is. Implicit ones are the supervisor's too, to tables and stacks; EFLAGS.AC does not excuse them. */
enum mmu_who { MMU_SUPERVISOR, MMU_USER, MMU_IMPLICIT };

#define TLB_BANKS 3u /* supervisor, user, supervisor that may use the user's pages in spite of SMAP (EFLAGS.AC) */

/* tag ^ address <= 4096 - size proves two things at once: same page, and no page crossing (engine.md 4.3). An
 * empty entry holds a page number that cannot index it. */
struct tlb_entry {
    uint64_t read_tag, write_tag;
    uint64_t addend; /* host address = guest linear address + addend */
    uint64_t gpa;    /* page's guest physical address */
};

#define FETCH_ENTRIES 256u

struct fetch_entry {
    uint64_t tag; /* linear page | user; 1 bit tag never matches when empty */
    uint64_t gpa;
    const struct guest_region *region; /* NULL: MMIO or nothing */
};

enum mmu_access { MMU_READ, MMU_WRITE, MMU_FETCH };

/* Where one memory operand of translated code went last: the translator's own level above the TLB, in which each
 * operand has a place of its own. The tag is as in tlb_entry, of the kind that the operand needs. */
struct access_slot {
    uint64_t tag;
    uint64_t addend;
};
#define ACCESS_SLOTS 256u

/* What the walk needs to know of the processor; kept up to date by whoever writes the registers. */
struct mmu {
    struct tlb_entry tlb[TLB_BANKS][TLB_ENTRIES];
    struct fetch_entry fetch[FETCH_ENTRIES];
    /* bumped by every flush; what was cached by linear address under an older one is stale */
    _Alignas(8) uint32_t epoch;
    uint32_t mode_key; /* the processor's mode and privilege: beside the epoch, so that one load reads both */
    struct access_slot slots[TLB_BANKS][ACCESS_SLOTS];
    bool slots_used[TLB_BANKS];
    struct guest_mem *mem;
    uint64_t cr0, cr3, cr4, efer;
    uint64_t pdpte[4];     /* PAE: loaded with CR3 (SDM vol. 3, 4.4.1) */
    uint64_t physical_mask; /* all ones up to MAXPHYADDR, less bit 20 while A20 is masked */
    bool ac;               /* EFLAGS.AC, for SMAP */
    /* A 2 MiB or 1 GiB page is cached as 4 KiB entries. One range per canonical half covers all large pages cached
     * since the last flush: an INVLPG inside it must flush everything. mask 0: none. */
    struct { uint64_t base, mask; } large[2];
    bool third_bank_used;
    bool no_gigabyte_pages; /* not a feature of this processor */
    uint64_t *held_page; /* linear pages that a debugger watches: never entered in the TLB */
    unsigned held_count;
    uint64_t walks, flushes; /* statistics */
    uint64_t watch_page[4]; /* pages with data breakpoints: never entered in the TLB */
    unsigned watch_count;
};

struct mmu_fault {
    uint32_t error_code;
    bool general_protection; /* non-canonical address */
};

void mmu_init(struct mmu *mmu, struct guest_mem *mem);
void mmu_clear_bank(struct tlb_entry bank[TLB_ENTRIES]);
void mmu_flush(struct mmu *mmu);                      /* everything */
void mmu_flush_page(struct mmu *mmu, uint64_t linear); /* INVLPG */
/* CR3 was loaded in PAE mode: fetch the four PDPTEs. false: a reserved bit is set (#GP). */
bool mmu_load_pdptes(struct mmu *mmu, uint64_t cr3);

/* Walks the tables; sets accessed and dirty bits. On success *gpa is the byte's physical address and *writable
 * says whether a write would be allowed without another walk (dirty already set). */
bool mmu_translate(struct mmu *mmu, uint64_t linear, enum mmu_access access, enum mmu_who who, uint64_t *gpa,
                   bool *writable, struct mmu_fault *fault);
/* Looks without side effects (debuggers, monitors). */
bool mmu_probe(struct mmu *mmu, uint64_t linear, uint64_t *gpa);

/* Enter a translation that mmu_translate just gave, so that the next access hits. RAM only. */
void mmu_fill(struct mmu *mmu, uint64_t linear, uint64_t gpa, const struct guest_region *region, enum mmu_who who,
              bool writable);
/* The bank of explicit accesses now. */
static inline struct tlb_entry *mmu_bank(struct mmu *mmu, enum mmu_who who)
{
    return mmu->tlb[who == MMU_USER ? 1 : who == MMU_SUPERVISOR && mmu->ac && (mmu->cr4 & CR4_SMAP) ? 2 : 0];
}

#endif
