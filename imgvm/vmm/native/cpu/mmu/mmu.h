/* SPDX-License-Identifier: MIT */
/* Address translation, in two levels. The first is direct-mapped, one bank a privilege; its tag comparison is inlined
 * at each access (exec/exec.h) and in translated code. It is refilled from the second (stlb.h), and that from page
 * walks (walk.h). What invalidates what is SDM vol. 3, 4.10.4; more may go than must, never less. */
#ifndef IMGVM_CPU_MMU_MMU_H
#define IMGVM_CPU_MMU_MMU_H

#include <stdbool.h>
#include <stdint.h>

#include "../../arch/x86.h"
#include "../../mem/guest_mem.h"
#include "stlb.h"
#include "walk.h"

#define TLB_ENTRIES 1024u
/* Whose access it is. Implicit ones are the supervisor's too, to tables and stacks; EFLAGS.AC does not excuse them. */
enum mmu_who { MMU_SUPERVISOR, MMU_USER, MMU_IMPLICIT };

#define TLB_BANKS 3u /* supervisor, user, supervisor that may use the user's pages in spite of SMAP (EFLAGS.AC) */

/* tag ^ address <= 4096 - size proves two things at once: same page, and no page crossing (engine.md). An
 * empty entry holds a page number that cannot index it. */
struct tlb_entry {
    uint64_t read_tag, write_tag;
    uint64_t addend; /* host address = guest linear address + addend */
    uint64_t gpa;    /* page's guest physical address | the mark of a group of slots (below) that holds it */
};

/* Which entries of a bank are filled, and which of those are global, or parts of a large page: dropping some costs what
 * there is to drop. */
struct tlb_marks {
    uint64_t filled[TLB_ENTRIES / 64], global[TLB_ENTRIES / 64], large[TLB_ENTRIES / 64];
};
#define FETCH_ENTRIES 1024u
struct fetch_marks {
    uint64_t filled[FETCH_ENTRIES / 64], global[FETCH_ENTRIES / 64];
};

/* For fetches; each is a page. */
struct fetch_entry {
    uint64_t tag; /* linear page | user; FETCH_EMPTY: never matches */
    uint64_t gpa;
    const struct guest_region *region; /* NULL: MMIO or nothing */
    uint32_t noted; /* the epoch in which it was asked for last: translated code may go by it in that one (jit.c) */
    uint8_t shift;  /* log2 of the bytes of the page that it is in */
};
#define FETCH_EMPTY 2u

#define CODE_FILTER_WORDS 64u

#define CODE_SPACES 6u

#define CODE_LIST 8192u
#define CODE_INDEX 16384u

struct code_page {
    uint64_t linear, gpa;
    uint16_t place[2]; /* in the indexes */
};

/* From which pages code was fetched since `epoch` began (code_pages.c). */
struct code_pages {
    uint64_t space; /* its number (struct stlb); 0: none, or the supervisor's */
    uint64_t root;  /* of its tables: CR3's address */
    uint64_t stay;  /* how long it was the selected one, the last time: ticks of the host's TSC */
    uint32_t epoch;
    bool local, global; /* from one that is not global, that is */
    bool unlisted;   /* from one that is not in the list */
    uint64_t shifts; /* a bit for each log2 of their sizes; 0: from none */
    uint64_t filter[CODE_FILTER_WORDS];
    bool twice;      /* some page is listed at two addresses */
    unsigned listed; /* of a space, found by hashes of the linear page and of the physical one */
    struct code_page list[CODE_LIST];
    uint16_t index[2][CODE_INDEX];
};

enum mmu_access { MMU_READ, MMU_WRITE, MMU_FETCH };

/* Where one memory operand of translated code went last: the translator's own level above the TLB, in which each
 * operand has a place of its own. The tag is as in tlb_entry, of the kind that the operand needs. */
struct access_slot {
    uint64_t tag;
    uint64_t addend;
};
#define ACCESS_SLOTS 16384u
#define STORE_SLOTS 4096u /* the first; stores have no others, so that a page that becomes code is looked for among these */
/* A bank's slots are dropped by groups, which are marked by what they hold: global pages of the high half, which a switch
 * of address spaces leaves alone, or others. */
#define SLOT_GROUP 16u
#define SLOT_GROUPS (ACCESS_SLOTS / SLOT_GROUP)
#define STORE_GROUPS (STORE_SLOTS / SLOT_GROUP)
#define SLOT_HIGH 1u
#define SLOT_LOCAL 2u
#define SLOT_ANY (SLOT_HIGH | SLOT_LOCAL)

/* Pages that may be in a slot though no longer in the bank: filters of one hash, by linear page of either half and by
 * guest physical page. */
#define STRAY_WORDS 32u
struct tlb_strays {
    uint64_t low[STRAY_WORDS], high[STRAY_WORDS], gpa[STRAY_WORDS];
};

/* Translated code's level between the two of the TLB: what the first level lost to another page. A tag is the page and,
 * in the bits below, the key of its half (mmu.wide_key) and whether it may be written: a new key empties a half at once. */
struct wide_entry {
    uint64_t tag, addend;
};
#define WIDE_ENTRIES 16384u /* a bank */
#define WIDE_WRITABLE 1u

/* What the walk needs to know of the processor; kept up to date by whoever writes the registers. */
struct mmu {
    struct tlb_entry tlb[TLB_BANKS][TLB_ENTRIES];
    struct tlb_marks marks[TLB_BANKS];
    struct fetch_entry fetch[FETCH_ENTRIES];
    struct fetch_marks fetch_marks;
    /* That of the code that runs, which is one of `code`. What was found by linear address, in the same mode, may be
     * used while it is the same: no translation of a page that code was fetched from has been dropped meanwhile. The
     * number is never given out again. A supervisor has one of its own, so that a new CR3, which takes the user's pages
     * away, leaves what is known of a kernel's (global) pages alone; and each of the address spaces last used has one
     * for CPL 3, found again with the space, if nothing was dropped meanwhile. */
    _Alignas(8) uint32_t epoch;
    uint32_t mode_key; /* the processor's mode and privilege, 6 bits: beside the epoch, so that one load reads both */
    uint32_t last_epoch;
    bool user;                                /* CPL 3 */
    unsigned user_code, next_code;            /* the selected space's; where the next one goes */
    uint64_t user_code_since;                 /* by the host's TSC */
    struct access_slot slots[TLB_BANKS][ACCESS_SLOTS];
    _Alignas(8) uint8_t slots_filled[TLB_BANKS][SLOT_GROUPS]; /* SLOT_LOCAL, SLOT_HIGH; by whoever fills one */
    uint8_t nowhere[GUEST_PAGE_SIZE]; /* where empty slots lead */
    uint64_t empty_page;              /* and what their tags are */
    struct wide_entry (*wide)[WIDE_ENTRIES]; /* TLB_BANKS of them, zeros at first; NULL: nobody asks. High ones are global */
    uint64_t wide_key[2]; /* low, high: | WIDE_WRITABLE; of all bits below a page number */
    struct tlb_strays strays[TLB_BANKS];
    /* A bit for each page of guest memory below stored_pages, a bank's after another's: it may have been stored to through
     * the bank. NULL: any may. */
    uint64_t *stored;
    uint64_t stored_pages; /* a multiple of 64 */
    struct guest_mem *mem;
    uint64_t cr0, cr3, cr4, efer;
    uint32_t pkru;
    uint64_t pdpte[4];     /* PAE: loaded with CR3 (SDM vol. 3, 4.4.1) */
    uint64_t physical_mask; /* all ones up to MAXPHYADDR, less bit 20 while A20 is masked */
    bool ac;               /* EFLAGS.AC, for SMAP */
    /* The first level has large pages as 4 KiB entries. One range per canonical half covers all of them since it was
     * last empty: an INVLPG inside it must look for more than one. mask 0: none. */
    struct { uint64_t base, mask; } large[2];
    unsigned large_shift; /* the largest of them */
    bool no_gigabyte_pages; /* not a feature of this processor */
    uint64_t *held_page; /* linear pages that a debugger watches: never entered in the TLB */
    unsigned held_count;
    bool looks_at_code; /* a debugger: translated code goes to no page but by blocks that were looked for in this epoch */
    /* statistics: translations by a walk, by the second level, for fetches; all dropped, or an address space's, or a page's */
    uint64_t walks, refills, fetch_misses, flushes, space_flushes, page_flushes;
    uint64_t spaces_found; /* address spaces that kept their epoch */
    uint64_t watch_page[4]; /* pages with data breakpoints: never entered in the TLB */
    unsigned watch_count;
    struct walk_cache walk_cache;
    struct stlb stlb;
    struct code_pages code[1 + CODE_SPACES];  /* the supervisor's first */
};

struct mmu_fault {
    uint32_t error_code;
    bool general_protection; /* non-canonical address */
};

/* A translation. */
struct mmu_page {
    uint64_t gpa;  /* of the byte */
    bool writable; /* without another walk: allowed, and dirty already */
    bool global;
    uint8_t shift; /* log2 of the page's bytes */
};

void mmu_init(struct mmu *mmu, struct guest_mem *mem);
/* false: out of memory. free(mmu->stored) at the end. */
bool mmu_track_stores(struct mmu *mmu);
void mmu_clear_bank(struct tlb_entry bank[TLB_ENTRIES]);

/* CR3 was loaded in PAE mode: fetch the four PDPTEs. false: a reserved bit is set (#GP). */
bool mmu_load_pdptes(struct mmu *mmu, uint64_t cr3);
/* MOV to CR3; cr4 is up to date. `keep` (bit 63 of its operand): what is cached for the PCID stays. */
void mmu_load_cr3(struct mmu *mmu, uint64_t cr3, bool keep);

/* Everything, after changes that concern all translations. Selects the space of CR3 and CR4. */
void mmu_flush(struct mmu *mmu);
/* What may be done with the pages has changed (CR0.WP, CR4.SMAP, PKRU, breakpoints), the translations have not. */
void mmu_flush_rights(struct mmu *mmu);
void mmu_flush_page(struct mmu *mmu, uint64_t linear);                    /* INVLPG */
void mmu_flush_page_of(struct mmu *mmu, unsigned pcid, uint64_t linear);  /* INVPCID, types 0, */
void mmu_flush_space(struct mmu *mmu, unsigned pcid);                     /* 1 */
void mmu_flush_local(struct mmu *mmu);                                    /* and 3; 2 is mmu_flush */
/* A page has become code: stores to it must come the slow way. The physical page is known, or it may be any. */
void mmu_drop_writes(struct mmu *mmu, uint64_t gpa);
void mmu_drop_all_writes(struct mmu *mmu);

/* Blocks are gone: nothing that leads to one may be used any more. */
void mmu_forget_blocks(struct mmu *mmu);

/* Are the bits above an address's 48, or 57 (`wide`), copies of its highest (SDM vol. 1, 3.3.7.1)? Those of 48 bits are
 * canonical in 57, too. */
static inline bool x86_canonical(uint64_t address, bool wide)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address ||
           (wide && (uint64_t)((int64_t)(address << 7) >> 7) == address);
}
/* Could it be an address at all? Outside long mode all are. */
static inline bool mmu_canonical(const struct mmu *mmu, uint64_t linear)
{
    return !(mmu->efer & EFER_LMA) || x86_canonical(linear, mmu->cr4 & CR4_LA57);
}
/* mode_key and epoch, in one load. */
static inline uint64_t mmu_code_key(const struct mmu *mmu)
{
    return (uint64_t)mmu->mode_key << 32 | mmu->epoch;
}
/* Translates; sets accessed and dirty bits. */
bool mmu_translate(struct mmu *mmu, uint64_t linear, enum mmu_access access, enum mmu_who who, struct mmu_page *page,
                   struct mmu_fault *fault);
/* Looks without side effects (debuggers, monitors). */
bool mmu_probe(struct mmu *mmu, uint64_t linear, uint64_t *gpa);
/* The page that code at `linear` is in; NULL: a fault. */
const struct fetch_entry *mmu_fetch(struct mmu *mmu, uint64_t linear, bool user, struct mmu_fault *fault);

/* Enter a translation that mmu_translate just gave, so that the next access hits. RAM only. */
void mmu_fill(struct mmu *mmu, uint64_t linear, const struct mmu_page *page, const struct guest_region *region,
              enum mmu_who who);
/* The bank of such accesses now. */
static inline unsigned mmu_bank(const struct mmu *mmu, enum mmu_who who)
{
    return who == MMU_USER ? 1 : who == MMU_SUPERVISOR && mmu->ac && (mmu->cr4 & CR4_SMAP) ? 2 : 0;
}
/* Is no page of the user's code known at two addresses, in this epoch? */
static inline bool mmu_pages_are_single(const struct mmu *mmu)
{
    const struct code_pages *code = &mmu->code[mmu->user_code];
    return !code->twice && !code->unlisted && code->space;
}
/* Code of this privilege runs from now on. */
static inline void mmu_select_epoch(struct mmu *mmu, bool user)
{
    mmu->user = user;
    mmu->epoch = mmu->code[user ? mmu->user_code : 0].epoch;
}

#endif
