/* SPDX-License-Identifier: MIT */
/* Which translator the processors of a native test have: none, unless a test_jit_*.c that includes it says so. */
#ifndef WORLD_TRANSLATOR
#define WORLD_TRANSLATOR NULL
#endif
#ifndef WORLD_NAME_CODE
#define WORLD_NAME_CODE NULL
#endif
#ifndef WORLD_TIME_PIECE
#define WORLD_TIME_PIECE NULL
#endif
#ifndef WORLD_BLOCK_BYTES
#define WORLD_BLOCK_BYTES 0
#endif
#ifndef WORLD_CODE_BYTES
#define WORLD_CODE_BYTES 0
#endif
#ifndef WORLD_TRANSLATE_AFTER
#define WORLD_TRANSLATE_AFTER 0
#endif
#ifndef WORLD_COUNTS
#define WORLD_COUNTS false
#endif
