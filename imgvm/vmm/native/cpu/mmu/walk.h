/* SPDX-License-Identifier: MIT */
/* Walks of the page tables (SDM vol. 3, 4.3 to 4.5), and the caches of what they found on the way (4.10.3). */
#ifndef IMGVM_CPU_MMU_WALK_H
#define IMGVM_CPU_MMU_WALK_H

#include <stdbool.h>
#include <stdint.h>

#include "../../base/bits.h"

struct mmu;

#define MAXPHYADDR 46
#define PTE_ADDRESS UINT64_C(0xffffffffff000) /* bits 51:12 */

#define WALK_TABLES 64u      /* places for page-directory entries */
#define WALK_DIRECTORIES 16u /* and for page-directory-pointer-table entries */

/* An entry that leads to a table. It is as good as its address space (struct stlb), and goes with any INVLPG. */
struct walk_cached {
    uint64_t prefix; /* linear address above what the table covers */
    uint64_t space;  /* 0: empty */
    uint64_t *table; /* host address */
    uint64_t rights; /* of all levels so far */
};

struct walk_cache {
    struct walk_cached tables[WALK_TABLES], directories[WALK_DIRECTORIES];
};

enum walk_how {
    WALK_LOOK,  /* changes nothing, not even accessed bits */
    WALK_FRESH, /* from the root */
    WALK_CACHED,
};

struct walk {
    uint64_t rights; /* AND of W and U, OR of NX, over the levels */
    uint64_t *slot64;
    uint32_t *slot32;
    uint64_t leaf;
    unsigned size;    /* enum leaf_size */
    uint32_t entry32; /* what slot32 held: leaf is that, with PSE-36 resolved */
    bool reserved, present;
    bool again; /* a table changed under the walk */
};

struct walk walk_tables(struct mmu *mmu, uint64_t linear, enum walk_how how);
/* Sets accessed, or accessed and dirty, in what the walk ended at, as hardware does: in one locked step. false: it has
 * become another entry in the meantime, so that the walk has to start over. */
bool walk_mark(const struct walk *walk, uint64_t bits);
void walk_cache_drop(struct walk_cache *cache);
/* What leads to this address. */
void walk_cache_drop_page(struct walk_cache *cache, uint64_t linear);

#endif
