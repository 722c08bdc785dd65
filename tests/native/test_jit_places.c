/* SPDX-License-Identifier: MIT */
/* test_mode_places.c with every block translated: once, for all places. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/jit.h"
#define WORLD_TRANSLATOR &jit_translator
#include "test_mode_places.c"
