/* SPDX-License-Identifier: MIT */
/* What a processor counts of itself (count.def), and how it is told. */
#ifndef IMGVM_CPU_EXEC_COUNT_H
#define IMGVM_CPU_EXEC_COUNT_H

#include <stdint.h>

struct cpu_counts {
#define COUNT(field, group, name) uint64_t field;
#include "count.def"
#undef COUNT
    uint64_t exceptions[32]; /* delivered, by vector */
    uint64_t *executors;     /* by operation: those that translated code called; NULL: not counted */
};

#endif
