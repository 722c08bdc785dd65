/* SPDX-License-Identifier: MIT */
/* code_replacement ENGINE HOT COLD: a guest that calls functions at random, HOT of them fifteen times out of sixteen and COLD
 * others else, on a processor with little room for code. Prints calls a second, blocks decoded and blocks translated. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cpu/jit/jit.h"
#define WORLD_BLOCK_BYTES (2u << 20)
#define WORLD_CODE_BYTES (3u << 20)
static const struct translator_ops *engine;
#define WORLD_TRANSLATOR engine
#define WORLD_TRANSLATE_AFTER JIT_TRANSLATE_AFTER
#include "mode_world.h"

#define CALLS 4000000u
#define MANY 0x100000u /* where the functions are, 64 bytes each */
#define MOST 32768u

/* RDX calls; R10, R11: HOT - 1 and COLD - 1, R12: HOT. */
GUEST(calls, 64,
      "1: imul $1664525, %r8, %r8\n add $1013904223, %r8d\n mov %r8d, %eax\n shr $12, %eax\n"
      "test $0xf00, %r8d\n jz 2f\n and %r10d, %eax\n jmp 3f\n 2: and %r11d, %eax\n add %r12d, %eax\n"
      "3: shl $6, %eax\n add $0x100000, %eax\n call *%rax\n dec %rdx\n jnz 1b\n hlt");

/* Two blocks each. */
static const uint8_t function[] = {0x83, 0xc1, 0x01, 0x01, 0xcb, 0x31, 0xd9, 0xeb, 0x00, 0x83, 0xc6, 0x03, 0x01, 0xf7, 0xc3};

struct found {
    uint64_t decoded, translated;
};

static void take(void *opaque, const char *group, const char *name, uint64_t value)
{
    struct found *found = opaque;
    if (!strcmp(group, "blocks") && !strcmp(name, "decoded"))
        found->decoded += value;
    if (!strcmp(group, "translator") && !strcmp(name, "translated"))
        found->translated += value;
}

int main(int argc, char **argv)
{
    static struct x86_state s;
    struct world w;
    struct found found = {0};
    struct timespec begin, end;
    unsigned hot = argc > 2 ? (unsigned)atoi(argv[2]) : 0, cold = argc > 3 ? (unsigned)atoi(argv[3]) : 0;
    if (!hot || !cold || (hot & (hot - 1)) || (cold & (cold - 1)) || hot + cold > MOST)
        return fprintf(stderr, "usage: code_replacement interp|jit HOT COLD, powers of two\n"), 2;
    engine = strcmp(argv[1], "jit") ? NULL : &jit_translator;
    world_main_begin();
    world_init(&w);
    long_mode(&w, &s);
    for (unsigned i = 0; i < hot + cold; i++)
        guest_mem_write(&w.mem, MANY + 64 * i, function, sizeof function);
    s.gpr[RDX] = CALLS;
    s.gpr[R8] = 1;
    s.gpr[R10] = hot - 1;
    s.gpr[R11] = cold - 1;
    s.gpr[R12] = hot;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    if (RUN(&w, &s, calls) != CPU_EXIT_HALT || s.gpr[RDX])
        return fprintf(stderr, "the guest stopped at %#llx\n", (unsigned long long)s.rip), 1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    cpu_tell_counts(w.cpu, &(struct count_sink){take, &found});
    double seconds = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    printf("%.0f %llu %llu\n", CALLS / seconds, (unsigned long long)found.decoded, (unsigned long long)found.translated);
    return 0;
}
