/* SPDX-License-Identifier: MIT */
/* Operands that go to several pages by turns, and which check (check.c) serves each of them best. */
#ifndef IMGVM_CPU_JIT_LEARN_H
#define IMGVM_CPU_JIT_LEARN_H

#include "../exec/exec.h"

/* uop.pages: a check, and two bits beside it. */
enum pages { ONE_PAGE, FEW_PAGES, MANY_PAGES, CHECKS, PAGES_MASK = 3, PAGES_TRIAL = 4, PAGES_SETTLED = 8 };

#define LEARN_ROUNDS 3
#define LEARN_REFILLS 1024u /* of a slot, then learn_refilled is asked */

/* One operand of a processor at a time has its checks tried in turn, in the very code that needs it. */
struct learner {
    uint64_t refilled_since[TLB_BANKS * ACCESS_SLOTS]; /* the host's TSC when a slot's refills were 0 */
    bool asked; /* the executor called next is that of an operand whose check is to be looked at */
    const struct block *block; /* the operand that is tried; NULL: none is */
    unsigned index, window;
    enum pages tried;
    uint64_t began, ticks[CHECKS][LEARN_ROUNDS]; /* this window; what those that count took */
};

/* A slot was refilled from the TLB LEARN_REFILLS times. 0: its operand's executor is to be called, which knows whose it is. */
uint64_t learn_refilled(struct cpu *cpu, uint64_t host, uint64_t slot_offset);
/* The executor of `u` is called for that reason, or because a window is over. Is the block to be translated anew? */
bool learn_look(struct cpu *cpu, struct block *block, const struct uop *u);

#endif
