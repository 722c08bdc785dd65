/* SPDX-License-Identifier: MIT */
/* Names of translated code (cpu_callbacks.name_code), as Linux perf shows them. */
#ifndef IMGVM_CPU_JIT_PERF_MAP_H
#define IMGVM_CPU_JIT_PERF_MAP_H

#include "translate.h"

/* The fixed pieces of code. */
void perf_map_stubs(struct cpu *cpu, const struct translator *jit);
/* "ring3-64:401000": privilege, bits, guest address; what is seldom run of it has ":cold" behind. */
void perf_map_block(struct cpu *cpu, const struct block *block, ptrdiff_t bytes, const void *cold, ptrdiff_t cold_bytes);

#endif
