/* SPDX-License-Identifier: MIT */
/* REP MOVS of any length, alignment and overlap does what a loop of elements does, and leaves vector registers alone. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include <stdlib.h>

#include "mode_world.h"

#define AREA 0x8000u
#define VECTORS (DATA + AREA) /* 64 bytes, and where they are to be found again */

static uint8_t area[AREA];

GUEST(bytes, 64, "movdqu (%r8), %xmm0\n movdqu 16(%r8), %xmm1\n movdqu 32(%r8), %xmm2\n movdqu 48(%r8), %xmm3\n rep movsb\n"
                 "movdqu %xmm0, 64(%r8)\n movdqu %xmm1, 80(%r8)\n movdqu %xmm2, 96(%r8)\n movdqu %xmm3, 112(%r8)\n hlt");
GUEST(words, 64, "rep movsw\n hlt");
GUEST(doubles, 64, "rep movsl\n hlt");
GUEST(quads, 64, "rep movsq\n hlt");

static void model(uint32_t to, uint32_t from, uint32_t count, unsigned size)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t element = 0;
        memcpy(&element, area + from + i * size, size);
        memcpy(area + to + i * size, &element, size);
    }
}

static enum cpu_exit copy(struct world *w, struct x86_state *s, unsigned size)
{
    switch (size) {
    case 1: return RUN(w, s, bytes);
    case 2: return RUN(w, s, words);
    case 4: return RUN(w, s, doubles);
    default: return RUN(w, s, quads);
    }
}

/* Near to each other as often as not. */
static uint32_t place_near(uint32_t other, uint32_t bytes)
{
    uint32_t most = AREA - bytes, at = rand() % 2 ? (uint32_t)rand() % most : other + (uint32_t)rand() % 300 - 150;
    return at < most ? at : most;
}

static void test_copies(void)
{
    static struct x86_state s;
    static uint8_t seen[AREA];
    struct world w;
    uint8_t vectors[64], found[64];
    world_init(&w);
    for (unsigned i = 0; i < AREA; i++)
        area[i] = (uint8_t)rand();
    for (unsigned i = 0; i < sizeof vectors; i++)
        vectors[i] = (uint8_t)rand();
    CHECK(guest_mem_write(&w.mem, DATA, area, AREA));
    CHECK(guest_mem_write(&w.mem, VECTORS, vectors, sizeof vectors));
    for (unsigned round = 0; round < 3000; round++) {
        unsigned size = 1u << rand() % 4;
        uint32_t count = (uint32_t)rand() % (rand() % 4 ? 300 : 6000) / size;
        uint32_t from = (uint32_t)rand() % (AREA - count * size), to = place_near(from, count * size);
        long_mode(&w, &s);
        s.gpr[RSI] = DATA + from;
        s.gpr[RDI] = DATA + to;
        s.gpr[RCX] = count;
        s.gpr[R8] = VECTORS;
        CHECK_EQ(copy(&w, &s, size), CPU_EXIT_HALT);
        model(to, from, count, size);
        CHECK_EQ(s.gpr[RCX], 0);
        CHECK_EQ(s.gpr[RSI], DATA + from + count * size);
        CHECK_EQ(s.gpr[RDI], DATA + to + count * size);
        CHECK(guest_mem_read(&w.mem, DATA, seen, AREA));
        CHECK(!memcmp(seen, area, AREA));
        CHECK(size > 1 || (guest_mem_read(&w.mem, VECTORS + 64, found, 64) && !memcmp(found, vectors, 64)));
    }
    world_destroy(&w);
}

int main(void)
{
    world_main_begin();
    test_copies();
    return check_report();
}
