/* SPDX-License-Identifier: MIT */
/* test_eviction.c with every block translated, and room for all that is decoded but not for what is translated of it. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/jit.h"
#define WORLD_TRANSLATOR &jit_translator
#define WORLD_BLOCK_BYTES (64u << 20)
#define WORLD_CODE_BYTES 1
#define FUNCTIONS 30000u
#include "test_eviction.c"
