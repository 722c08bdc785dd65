/* SPDX-License-Identifier: MIT */
/* The code cache: what jit.c (fixed pieces, entry), link.c (ways from block to block) and translate.c share. */
#ifndef IMGVM_CPU_JIT_TRANSLATE_H
#define IMGVM_CPU_JIT_TRANSLATE_H

#include "../exec/cache_growth.h"
#include "assembler.h"
#include "jit.h"
#include "learn.h"

#ifndef JIT_SEGMENTS
#define JIT_SEGMENTS 128u
#endif
#define JIT_SEGMENT_BYTES (1u << 20)
#define JIT_PAGE_BUCKETS 4096u
#define JIT_JUMPS 16384u
#define JIT_INSN_BYTES 768u /* that one instruction may need at most, here and there, and what begins or ends a block */
#define JIT_HEAD_BYTES 16u     /* at least so long is a block: room for a jump away when it has died */
/* A user's code may lie at another address in each process. Once a page was met at a second one, all code in it is translated
 * for any: RIP is cpu->code_page and a constant. Below this, where no jump leads out of the canonical addresses; and where all
 * that it knows is not too far away. */
#define JIT_FLOATS_BELOW ((UINT64_C(1) << 47) - (UINT64_C(1) << 32))
#define JIT_FLOATS_FAR INT64_C(0x7fff0000)

/* A way out of a block to a constant target.
 *
 *   hot:   jcc/jmp stub                 directly to the target, once linked, where the stub does nothing on the way
 *   stub:  [flags to memory]
 *          [cmp epoch, expected; jne tail     to `again`, once linked]
 *          [code_page := the target's]
 *          jmp tail                     to the target, once linked
 *   tail:  out of translated code, with link_from = this exit
 *   again: to the target, if its page is the one that it was when linked, though in another epoch; else by the table of
 *          computed jumps; if it is not there, out, with link_from = this exit
 *
 * A target in the same page needs no check: when its code is written, whoever leads there is told (link.c). The address of
 * one in another page may mean something else in another epoch of the TLB. A user's blocks compare it, for each address
 * space has one. The supervisor has only one, and it seldom ends: then all that leads from page to page is unlinked. In an
 * epoch in which a page of code may be at two addresses, a user's have no such links, but the table of computed jumps. */
struct jit_exit {
    uint64_t target;   /* `floats`: from cpu->code_page */
    uint8_t *hot;      /* rel32; NULL: only the stub leads there */
    uint8_t *stub, *stub_jump, *tail;
    uint8_t *expected; /* imm32; NULL: not checked */
    uint8_t *again_page, *again_jump; /* imm32, the number of the physical page; rel32; NULL: it does not look */
    struct block *to;  /* linked with; NULL: with nothing */
    uint32_t next, previous; /* others that lead to the same block */
    uint32_t mode;
    uint32_t next_crossing;  /* of the supervisor's, from page to page */
    bool crosses, listed;
    bool saves_flags;  /* in the stub */
    bool floats;       /* its block does */
};
/* From `tail` to `again`; and from there, in ring 3 of 64-bit mode, from its end to the number of the target's physical page,
 * imm32, and the jump to the target, rel32: jit_exit.again. */
#define JIT_TAIL_BYTES 11
#define JIT_NO_PAGE UINT32_MAX /* the number of none */

/* An instruction that may trap on the host, and where its executor is called instead. In the order of `pc`. */
struct jit_trap {
    uint32_t pc, cold; /* offsets into the code */
};

/* Where computed jumps look. */
struct jit_jump {
    uint64_t linear;
    uint64_t key; /* epoch and mode, as at mmu.epoch */
    const void *code;
    uint64_t page; /* number of the physical page: while it is at `linear`, the epoch may be another. JIT_NO_PAGE: may not */
};

/* A part of the code cache. What is seldom run lies behind all that is run often, which is so the denser. */
struct jit_segment {
    size_t hot, hot_end, cold, cold_end; /* offsets */
    uint32_t first_exit;
    struct jit_trap *traps;
    unsigned trap_count;
    struct block *blocks; /* translated there */
    bool seen; /* a block of it was entered from C since the hand passed */
};

struct translator {
    struct code_memory memory;
    uint8_t *writable; /* those */
    const uint8_t *executable;
    int64_t cpu_from_start; /* struct cpu, seen from `executable` */
    bool far;               /* more than 2 GiB */
    size_t used, cold_used, first_free;
    const void *enter, *leave, *leave_at, *leave_dead, *leave_dead_floating, *leave_by_exit, *again, *check_page;
    const void *dispatch, *return_miss, *stray_return, *callout;
    const void *refill[2][2]; /* by the supervisor, a user; read, write */
    const void *enter_unit;
    struct jit_exit *exits; /* from number 1 */
    struct jit_trap *all_traps;
    uint32_t exits_a_segment, traps_a_segment;
    struct jit_segment segments[JIT_SEGMENTS];
    struct cache_growth growth; /* in segments */
    unsigned filling;
    /* of the segment that is being filled */
    struct jit_trap *traps;
    unsigned exit_count, trap_count; /* its last exit's number */
    uint32_t crossing, crossing_epoch; /* the supervisor's links from page to page, and the epoch that they are good in */
    struct jit_jump *jumps;
    struct block *pages[JIT_PAGE_BUCKETS];
    struct block *across; /* those that go on in another page */
    uint64_t *floating;   /* a bit for each guest physical page below pages_known: its code is translated for any address */
    uint64_t pages_known;
    uint32_t seen_code_epoch;
    unsigned next_slot[2]; /* for loads, for stores */
    struct learner learner;
    bool count, perf_map;
    struct cpu_counts *counts;
};

static inline const uint8_t *jit_rx(const struct translator *jit, const uint8_t *writable)
{
    return jit->executable + (writable - jit->writable);
}

/* `reg` := offset in a bank of the TLB's entry for the linear address in it. */
static inline void put_tlb_index(struct assembler *a, unsigned reg)
{
    _Static_assert(sizeof(struct tlb_entry) == 32, "the index is made by one shift, of 12 - 5");
    shift_imm(a, SHIFT_SHR, false, reg, 7);
    alu_imm(a, ALU_AND, false, reg, (TLB_ENTRIES - 1) << 5);
}

static inline struct assembler jit_assembler(const struct translator *jit, uint8_t *p)
{
    return (struct assembler){p, jit->cpu_from_start, jit->writable, jit->far};
}

/* Translates `block`, which starts at linear address `rip`. false: never (block->interpret). */
bool jit_translate(struct cpu *cpu, struct translator *jit, struct block *block, uint64_t rip);
/* jmp or jcc to a fixed piece of code */
void jit_put_jump(const struct translator *jit, struct assembler *a, const void *target);
void jit_put_call(const struct translator *jit, struct assembler *a, const void *target);

/* T0 = target rip, flags in cpu->cc: goes to its translation, if the table of computed jumps has it; `misses` are the
 * jumps to be patched for when it has not, with the target in cpu->rip. What is found there is canonical. `in_page`: and
 * cpu->code_page is told. */
void jit_put_lookup(struct assembler *a, uint8_t *misses[2], bool in_page);

/* May cpu->code_page be asked for? It is set on the way to another page. */
static inline bool jit_is_in_page(const struct cpu *cpu)
{
    return cpu->code64 && cpu->cpl == 3;
}
/* Where a translated block is that runs now, or starts now. */
static inline uint64_t jit_block_rip(const struct cpu *cpu, const struct block *block)
{
    return block->floats ? cpu->code_page + block->gpa % GUEST_PAGE_SIZE : block->translated_rip;
}
static inline uint64_t jit_exit_target(const struct cpu *cpu, const struct jit_exit *exit)
{
    return exit->floats ? cpu->code_page + exit->target : exit->target;
}

/* ---- segment.c ---- */

/* The code's bytes, for one of so many processors; `wanted` 0: as many as are good. Says how many segments there will be. */
size_t jit_segments_plan(struct translator *jit, unsigned processors, size_t wanted);
bool jit_segments_create(struct translator *jit); /* after the fixed pieces; false: out of memory */
void jit_segments_reset(struct translator *jit);
bool jit_segment_has_room(const struct translator *jit, unsigned instructions); /* for any block of so many */
/* Makes room, perhaps at the cost of what was translated. Not while translated code is on the stack. */
void jit_segment_next(struct cpu *cpu, struct translator *jit);
/* The traps among which one at this offset would be. */
const struct jit_trap *jit_segment_traps(const struct translator *jit, uint64_t pc, unsigned *count);

/* ---- link.c ---- */

/* Everything translated goes. Not while translated code is on the stack. */
void jit_forget(struct cpu *cpu, struct translator *jit);
/* This block's code must not be entered any more. */
void jit_kill(struct translator *jit, struct block *block);
/* Blocks of the page at gpa whose bytes have changed are killed. */
void jit_kill_stale_page(struct translator *jit, uint64_t gpa);
void jit_kill_stale(struct translator *jit);
static inline bool jit_page_floats(const struct translator *jit, uint64_t gpa)
{
    return gpa / GUEST_PAGE_SIZE < jit->pages_known && jit->floating[gpa / GUEST_PAGE_SIZE / 64] >> (gpa / GUEST_PAGE_SIZE % 64) & 1;
}
/* The page was met at a second address. */
void jit_float_page(struct translator *jit, uint64_t gpa);
/* A block was translated: its page is watched. */
void jit_register(struct translator *jit, struct block *block);
/* A block that goes on in another page begins with a check of the TLB's epoch, for links inside of its first page have none.
 * It is about to be entered, found by way of the TLB: this is the epoch that it is good in. */
#define JIT_EPOCH_AT(jit) ((jit)->far ? 8 : 6) /* imm32 of cmp dword [cpu + mmu.epoch], imm32 */
void jit_expect_epoch(const struct cpu *cpu, const struct translator *jit, const struct block *block);
/* Supervisor's code is about to run. */
void jit_follow_epoch(const struct cpu *cpu, struct translator *jit);
/* The exit's check sends everybody to its tail. */
void jit_exit_unlinked(struct jit_exit *exit);
/* It was left by this exit, and cpu->rip, cpu->code_page are still as it left them: next time, it goes to `block` directly. */
void jit_link(struct cpu *cpu, struct translator *jit, uint32_t exit, struct block *block);

#endif
