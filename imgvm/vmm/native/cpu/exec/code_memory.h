/* SPDX-License-Identifier: MIT */
/* Memory for generated code, mapped twice, so that no address is both writable and executable. */
#ifndef IMGVM_CPU_EXEC_CODE_MEMORY_H
#define IMGVM_CPU_EXEC_CODE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../base/error.h"

struct code_memory {
    uint8_t *writable; /* NULL: there are none */
    const uint8_t *executable;
    size_t bytes; /* touched as they fill */
};

/* The code will run within 2 GiB of `near`, if there is room; NULL: anywhere. `profiled`: Linux perf takes only what looks like
 * anonymous memory for a translator's code. */
int code_memory_map(struct code_memory *memory, size_t bytes, const void *near, bool profiled, imgvm_error *err);
void code_memory_unmap(struct code_memory *memory);

#endif
