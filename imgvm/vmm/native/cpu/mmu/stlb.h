/* SPDX-License-Identifier: MIT */
/* The second-level TLB: what page walks found, of whatever size, for several address spaces at a time. It holds rights
 * as the tables have them, so that it serves every privilege and is not touched by a change of CR0.WP or CR4.SMAP.
 *
 * An address space has a number, new whenever its translations must go: that is how all of them go at once. Global ones
 * belong to a space of their own, which every lookup sees. A PCID leads to a number; a VPID or ASID can. */
#ifndef IMGVM_CPU_MMU_STLB_H
#define IMGVM_CPU_MMU_STLB_H

#include <stdbool.h>
#include <stdint.h>

#define STLB_WAYS 4u
#define STLB_SETS 1024u
#define STLB_PCIDS 4096u
#define STLB_SPACE_BITS 17 /* of a space's number in a tag; the page number's 45 bits and the size's 2 are above */

/* A leaf looks like a page-table entry: address, P, W, U, D, G, NX and protection key where those are, rights already
 * those of all levels, and in bits that hardware ignores the size of the page. */
#define LEAF_SIZE_SHIFT 9
enum leaf_size { LEAF_4K, LEAF_2M, LEAF_4M, LEAF_1G, LEAF_SIZES };

extern const uint8_t leaf_shift[LEAF_SIZES]; /* log2 of the page's bytes */

static inline enum leaf_size leaf_size(uint64_t leaf)
{
    return (enum leaf_size)(leaf >> LEAF_SIZE_SHIFT & 3);
}

struct stlb_set {
    uint64_t tag[STLB_WAYS], leaf[STLB_WAYS]; /* leaf 0: empty */
};

struct stlb {
    _Alignas(64) struct stlb_set set[STLB_SETS];
    uint8_t clock[STLB_SETS]; /* a bit for each way that was used since the hand passed; above them the hand */
    uint8_t sizes;            /* a bit for each leaf_size that may be there */
    unsigned pcid;
    uint64_t current, global; /* numbers of the selected space and of that of global pages */
    uint64_t next;            /* number: they are never used twice */
    uint64_t oldest;          /* what is older is no longer anybody's */
    uint64_t space[STLB_PCIDS];
    uint64_t living[(1u << STLB_SPACE_BITS) / 64]; /* by number as in tags: not dropped yet; others' places are free */
};

void stlb_init(struct stlb *stlb);
void stlb_select(struct stlb *stlb, unsigned pcid);
/* The leaf for `linear` in the selected space, or 0. */
uint64_t stlb_lookup(struct stlb *stlb, uint64_t linear);
void stlb_insert(struct stlb *stlb, uint64_t linear, uint64_t leaf);

/* Dropping. What concerns the selected space changes `current`. */
void stlb_drop_all(struct stlb *stlb);                     /* of all spaces, global ones too */
void stlb_drop_local(struct stlb *stlb);                   /* of all spaces, but global ones */
void stlb_drop_space(struct stlb *stlb, unsigned pcid);    /* but global ones */
void stlb_drop_page(struct stlb *stlb, uint64_t linear);   /* in the selected space, a global one too */
void stlb_drop_page_of(struct stlb *stlb, unsigned pcid, uint64_t linear); /* but a global one */

#endif
