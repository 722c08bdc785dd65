/* SPDX-License-Identifier: MIT */
/* Memory that nothing may miss: guest RAM and every larger allocation of the processor lie between pages that cannot be
 * touched, and a fault of the host's ends the program with a report. */
#ifndef IMGVM_HOSTILE_GUARDS_H
#define IMGVM_HOSTILE_GUARDS_H

#include "mem/guest_mem.h"

#define GUARD_BYTES (1u << 30)

/* Moves the memory, which nobody has used yet. */
void guard_memory(struct guest_mem *mem);
/* After the processor's own handlers were installed. */
void guard_faults(void);
/* What is told when one comes. */
extern char guard_story[200];

#endif
