/* SPDX-License-Identifier: MIT */
/* test_counted.c again, every block translated at once. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/jit.h"
#define WORLD_TRANSLATOR &jit_translator
#include "test_counted.c"
