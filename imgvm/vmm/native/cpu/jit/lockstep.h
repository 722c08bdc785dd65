/* SPDX-License-Identifier: MIT */
/* The translator under supervision: every block that it is about to run is interpreted first, and the two must agree in
 * registers, flags, vector state, events, ports, MMIO and what was written to memory. The first disagreement ends the
 * machine (CPU_EXIT_INTERNAL) with a report in cpu_message.
 *
 * The interpreter's stores are taken back before the translated code runs (exec/undo.h). Ports, MMIO, MSRs of the local
 * APIC and the clock are asked once, by the interpreter, and what they said is played back to the translated code. Where
 * the two disagree both are run again, for a device may have written the memory that they read in between: only a
 * disagreement that stays is one.
 *
 * Translated blocks are not linked in this mode. One processor, for another one's stores would look like mistakes. */
#ifndef IMGVM_CPU_JIT_LOCKSTEP_H
#define IMGVM_CPU_JIT_LOCKSTEP_H

#include "jit.h"

extern const struct translator_ops lockstep_translator;

struct lockstep_counts {
    uint64_t compared;  /* blocks that were run by both, and agreed */
    uint64_t settled;   /* of these: only the second or third time */
    uint64_t abandoned; /* what they did cannot be taken back (stores to code) or was too much */
    uint64_t skipped;   /* random numbers, a debugger's watchpoints */
};

/* NULL unless the processor was created with lockstep_translator. */
const struct lockstep_counts *lockstep_counts(const struct cpu *cpu);

#endif
