/* SPDX-License-Identifier: MIT */
/* A copy of bytes that are wanted once more, perhaps, and much later. */
#ifndef IMGVM_MACHINE_KEEP_H
#define IMGVM_MACHINE_KEEP_H

#include <stdint.h>

/* In a file that has no name, in P_tmpdir, so that they take no memory meanwhile; where there can be none, in memory.
 * NULL: there is no room for that either, or size is 0. */
const void *keep_bytes(const void *data, uint64_t size);
void keep_forget(const void *kept, uint64_t size); /* NULL is fine */

#endif
