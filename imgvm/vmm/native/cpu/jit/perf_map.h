/* SPDX-License-Identifier: MIT */
/* Names of translated code for Linux perf: /tmp/perf-PID.map, a line "START SIZE NAME" each. What is translated later to
 * the same place has the same address there: perf takes one of the two. */
#ifndef IMGVM_CPU_JIT_PERF_MAP_H
#define IMGVM_CPU_JIT_PERF_MAP_H

#include "translate.h"

/* Begins the process's file, which all its processors write. */
int perf_map_begin(imgvm_error *err);
/* The fixed pieces of code. */
void perf_map_stubs(const struct translator *jit);
/* "ring3-64:401000": privilege, bits, guest address */
void perf_map_block(const struct cpu *cpu, const struct block *block, size_t bytes);

#endif
