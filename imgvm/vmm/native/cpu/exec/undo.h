/* SPDX-License-Identifier: MIT */
/* What guest memory held before the interpreter wrote it, so that a block's stores can be taken back: for those who run
 * a block twice and compare (jit/lockstep.c).
 *
 * While cpu->undo is set, the TLB bank in use is the empty one, so that every access comes through access.c's slow path,
 * which notes here what it is about to write, and enters nothing in the TLB. */
#ifndef IMGVM_CPU_EXEC_UNDO_H
#define IMGVM_CPU_EXEC_UNDO_H

#include <stdbool.h>
#include <stdint.h>

struct cpu;

#define UNDO_RANGES 1024u
#define UNDO_BYTES 65536u

struct undo_range {
    uint8_t *host;
    uint32_t size, at; /* index into `before` and `after` */
};

struct undo_log {
    bool abandoned; /* the block did what cannot be taken back; it was left in the middle of that instruction */
    unsigned count;
    uint32_t used;
    struct undo_range range[UNDO_RANGES];
    uint8_t before[UNDO_BYTES], after[UNDO_BYTES];
};

/* [host, host+size) is about to be written. Does not return when there is no more room (undo_abandon). */
void undo_note(struct cpu *cpu, uint8_t *host, unsigned size);
/* Back to cpu->landing with undo->abandoned. */
_Noreturn void undo_abandon(struct cpu *cpu);
/* Memory as it was; what it held until now is kept in `after`. */
void undo_take_back(struct undo_log *undo);
/* Does memory hold again what undo_take_back found? The first range where it does not, or NULL. */
const struct undo_range *undo_compare(const struct undo_log *undo);
/* Memory as it was once more, `after` left alone. */
void undo_take_back_again(const struct undo_log *undo);

#endif
