/* SPDX-License-Identifier: MIT */
/* What jit.c and translate.c share. */
#ifndef IMGVM_CPU_JIT_TRANSLATE_H
#define IMGVM_CPU_JIT_TRANSLATE_H

#include "assembler.h"
#include "jit.h"

#define JIT_CODE_BYTES (64u << 20)
#define JIT_SITES (1u << 18)
#define JIT_EXITS (1u << 18)
#define JIT_TRAPS (1u << 17)

/* One instruction that its executor runs: `after` makes the executor's tail call come back. */
struct jit_site {
    struct uop u, after;
    struct block *block;
    uint64_t rip; /* of the block */
};

/* An exit with a constant target. Linked, it compares a number that tells whether its target is still what it was, and
 * jumps there: within a page the count of writes to code; across pages TLB flushes as well (block_key's low half). */
struct jit_exit {
    uint8_t *expected; /* imm32 */
    uint8_t *jump;     /* rel32 */
    uint64_t target;
    bool same_page;
};

/* An instruction that may trap on the host, and where its executor is called instead. In the order of `pc`. */
struct jit_trap {
    uint32_t pc, cold; /* offsets into the code */
};

struct jit_link {
    uint64_t linear, key;
    const void *code;
    uint64_t spare;
};

struct translator {
    uint8_t *writable;
    const uint8_t *executable;
    size_t used, first_free;
    uint32_t generation;
    const void *enter, *exit, *exit_saved, *dispatch, *callout;
    struct jit_site *sites;
    struct jit_exit *exits;
    struct jit_trap *traps;
    unsigned site_count, exit_count, trap_count;
    struct jit_link *jump;
};

/* Translates `block`, which starts at linear address `rip`. NULL: not now (the cache was full and has started over, or
 * the block's targets are not canonical). */
const void *jit_translate(struct cpu *cpu, struct translator *jit, struct block *block, uint64_t rip);
void jit_flush(struct translator *jit);
void jit_put_jump(const struct translator *jit, struct assembler *a, const void *target);
void jit_continue(struct cpu *cpu, const struct uop *u);

#endif
