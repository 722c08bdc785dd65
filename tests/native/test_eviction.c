/* SPDX-License-Identifier: MIT */
/* More code than there is room for when decoded: what is used stays, what is not goes, and all of it runs as it should. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#ifndef WORLD_BLOCK_BYTES
#define WORLD_BLOCK_BYTES 1 /* as small as can be */
#endif
#include "mode_world.h"

#ifndef FUNCTIONS
#define FUNCTIONS 8000u
#endif
#define MANY 0x100000u /* where they are, 32 bytes each */
#define HOT (CODE + 0x800)

struct wanted {
    const char *group, *name;
    uint64_t value;
};

static void take(void *opaque, const char *group, const char *name, uint64_t value)
{
    struct wanted *wanted = opaque;
    if (!strcmp(group, wanted->group) && !strcmp(name, wanted->name))
        wanted->value += value;
}

static uint64_t count(struct world *w, const char *group, const char *name)
{
    struct wanted wanted = {group, name, 0};
    cpu_tell_counts(w->cpu, &(struct count_sink){take, &wanted});
    return wanted.value;
}

/* call HOT; inc ecx; jmp to the next. The last jumps back to CODE. */
static void put_functions(struct world *w)
{
    for (uint32_t i = 0; i < FUNCTIONS; i++) {
        uint32_t at = MANY + 32 * i, next = i + 1 < FUNCTIONS ? at + 32 : CODE;
        uint8_t code[12] = {0xe8, 0, 0, 0, 0, 0xff, 0xc1, 0xe9};
        store_le32(code + 1, HOT - (at + 5));
        store_le32(code + 8, next - (at + 12));
        CHECK(guest_mem_write(&w->mem, at, code, sizeof code));
    }
    static const uint8_t hot[] = {0x83, 0xc0, 0x03, 0xc3}; /* add eax, 3; ret */
    CHECK(guest_mem_write(&w->mem, HOT, hot, sizeof hot));
}

/* EDX rounds. */
GUEST(rounds, 64, "dec %edx\n js 1f\n mov $0x100000, %esi\n jmp *%rsi\n 1: hlt");

/* Two blocks a function and round; HOT, which is used all the time, stays, whatever goes. */
static void check_counts(struct world *w)
{
    uint64_t emptied = count(w, "blocks", "emptied"), decoded = count(w, "blocks", "decoded");
    uint64_t translated = count(w, "translator", "translated");
    if (WORLD_BLOCK_BYTES == 1) {
        CHECK(emptied > 20);
        CHECK(decoded >= 2 * FUNCTIONS && decoded <= 3 * 2 * FUNCTIONS + emptied / 8 + 10);
    } else { /* it is the translated ones that there is no room for */
        CHECK_EQ(emptied, 0);
        emptied = count(w, "translator", "emptied");
        CHECK(emptied > 5);
        CHECK(translated > 2 * FUNCTIONS && translated <= 3 * 2 * FUNCTIONS + emptied / 2 + 10);
    }
    if (WORLD_TRANSLATOR)
        CHECK(count(w, "translator", "killed") > FUNCTIONS);
}

static void test_rounds(void)
{
    static struct x86_state s;
    struct world w;
    world_init(&w);
    long_mode(&w, &s);
    put_functions(&w);
    s.gpr[RAX] = s.gpr[RCX] = 0;
    s.gpr[RDX] = 3;
    CHECK_EQ(RUN(&w, &s, rounds), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], 3 * 3 * FUNCTIONS);
    CHECK_EQ(s.gpr[RCX], 3 * FUNCTIONS);
    check_counts(&w);

    /* written meanwhile: all that were kept are stale */
    static const uint8_t other[] = {0x83, 0xc0, 0x05, 0xc3};
    CHECK(guest_mem_write(&w.mem, HOT, other, sizeof other));
    s.gpr[RAX] = s.gpr[RCX] = 0;
    s.gpr[RDX] = 1;
    s.rip = CODE;
    s.activity = X86_RUNNING;
    CHECK_EQ(RUN(&w, &s, rounds), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], 5 * FUNCTIONS);
    world_destroy(&w);
}

int main(void)
{
    world_main_begin();
    test_rounds();
    return check_report();
}
