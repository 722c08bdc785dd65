/* SPDX-License-Identifier: MIT */
/* Sleeping on a word of memory (futex(2)), within this process. */
#ifndef IMGVM_BASE_FUTEX_H
#define IMGVM_BASE_FUTEX_H

#include <stdatomic.h>
#include <stdint.h>

/* Sleeps while *word is `expected`, until futex_wake or `ns` have passed (UINT64_MAX: for ever). May return early. */
void futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t ns);
void futex_wake(_Atomic uint32_t *word, int threads);

#endif
