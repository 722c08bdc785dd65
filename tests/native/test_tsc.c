/* SPDX-License-Identifier: MIT */
/* RDTSC where the machine's clock is given in pieces: translated code then reads it by itself, until a piece ends. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "base/host_tsc.h"

#include <stdint.h>
struct clock_piece;
static uint64_t give_piece(void *opaque, struct clock_piece *out);
#define WORLD_TIME_PIECE give_piece
#include "mode_world.h"

#define READS 50u
#define NEVER (UINT64_C(1) << 62)

static struct clock_piece piece;
static unsigned pieces_given;

static uint64_t give_piece(void *opaque, struct clock_piece *out)
{
    (void)opaque;
    pieces_given++;
    *out = piece;
    return clock_piece_at(&piece, host_tsc() - piece.tsc);
}

/* Half a nanosecond a tick, from a million on. */
static void begin_piece(uint64_t ticks)
{
    piece = (struct clock_piece){.tsc = host_tsc(), .ticks = ticks, .slope = UINT64_C(1) << 63, .ns = 1000000};
    pieces_given = 0;
}

static uint64_t now_ns(void)
{
    return clock_piece_at(&piece, host_tsc() - piece.tsc);
}

GUEST(reads, 64, "1: rdtsc\n shl $32, %rdx\n or %rdx, %rax\n mov %rax, (%rdi)\n add $8, %rdi\n dec %ebx\n jnz 1b\n hlt");

static void test_it_never_goes_back(struct world *w)
{
    static const uint64_t ticks[] = {NEVER, 1, 0};
    for (unsigned k = 0; k < ARRAY_LEN(ticks); k++) {
        struct x86_state s;
        long_mode(w, &s);
        s.gpr[RBX] = READS;
        s.gpr[RDI] = DATA;
        s.tsc_offset = 5000;
        begin_piece(ticks[k]);
        uint64_t last = now_ns() + 5000;
        CHECK_EQ(RUN(w, &s, reads), CPU_EXIT_HALT);
        for (unsigned i = 0; i < READS; i++) {
            uint64_t tsc = get64(w, DATA + 8 * i);
            CHECK(tsc >= last);
            last = tsc;
        }
        CHECK(now_ns() + 5000 >= last);
        bool translated = WORLD_TRANSLATOR != NULL;
        CHECK_EQ(pieces_given, translated && ticks[k] == NEVER ? 1 : READS);
    }
}

GUEST(all_of_it, 64, "1: stc\n rdtscp\n setc (%rdi)\n mov %rax, 8(%rdi)\n mov %rdx, 16(%rdi)\n mov %rcx, 24(%rdi)\n"
                     "add $32, %rdi\n dec %ebx\n jnz 1b\n hlt");

static void test_registers_and_flags(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.tsc_aux = 0x12345678;
    s.tsc_offset = UINT64_C(0xabcd) << 32;
    s.gpr[RBX] = 3;
    s.gpr[RDI] = DATA;
    begin_piece(NEVER);
    CHECK_EQ(RUN(w, &s, all_of_it), CPU_EXIT_HALT);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t at = DATA + 32 * i;
        CHECK_EQ(get(w, at, 1), 1);
        CHECK_EQ(get64(w, at + 8) >> 32, 0);
        CHECK_EQ(get64(w, at + 16), 0xabcd);
        CHECK_EQ(get64(w, at + 24), 0x12345678);
    }
}

GUEST(user, 64, "1: mov $17, %eax\n mov $18, %edx\n rdtsc\n dec %ebx\n jnz 1b\n ud2");

static void test_forbidden_to_users(struct world *w)
{
    for (unsigned forbidden = 0; forbidden < 2; forbidden++) { /* the second time, by what was translated the first time */
        struct x86_state s;
        long_mode(w, &s);
        put64(w, GDT + TSS_SEL, descriptor(TSS, TSS_IO_MAP + 0x2000, 0x89));
        to_user(&s);
        s.cr4 |= forbidden ? CR4_TSD : 0;
        s.gpr[RBX] = 3;
        begin_piece(NEVER);
        CHECK_EQ(RUN(w, &s, user), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, forbidden ? EXC_GP : EXC_UD);
        CHECK_EQ(s.gpr[RAX] == 17 && s.gpr[RDX] == 18, forbidden);
    }
}

/* Ring 0 forbids it, and writes the TSC, between two reads of one run. */
GUEST(moves, 64,
      "1: rdtsc\n mov %cr4, %rax\n or $4, %rax\n mov %rax, %cr4\n rdtsc\n and $~4, %rax\n"
      "mov %cr4, %rax\n and $~4, %rax\n mov %rax, %cr4\n"
      "mov $0x10, %ecx\n xor %eax, %eax\n mov $0x4000, %edx\n wrmsr\n rdtsc\n mov %edx, (%rdi)\n add $4, %rdi\n"
      "dec %ebx\n jnz 1b\n hlt");

static void test_writes_count_at_once(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.gpr[RBX] = 3;
    s.gpr[RDI] = DATA;
    begin_piece(NEVER);
    CHECK_EQ(RUN(w, &s, moves), CPU_EXIT_HALT);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(get32(w, DATA + 4 * i), 0x4000);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_it_never_goes_back(&w);
    test_registers_and_flags(&w);
    test_forbidden_to_users(&w);
    test_writes_count_at_once(&w);
    world_destroy(&w);
    return check_report();
}
