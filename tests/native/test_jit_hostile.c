/* SPDX-License-Identifier: MIT */
/* Translated code touches nothing but guest memory and its processor, whatever the guest does. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/jit.h"
#define WORLD_TRANSLATOR &jit_translator
#include "mode_world.h"

#include <sys/mman.h>

/* What an operand remembers of the page it went to must not serve another page once it is dropped, not even that whose
 * number says "empty". RSI: a mapped page, chosen so that host address - RSI + RDI is outside of guest memory. */
GUEST(stale_slot, 64,
      "mov $2, %ecx\n"
      "1: mov %rsi, %rbx\n"
      "2: mov %al, 5(%rbx)\n"       /* first at RSI, then, after a flush, at RDI */
      "mov %cr3, %rdx\n mov %rdx, %cr3\n"
      "mov %rdi, %rsi\n dec %ecx\n jnz 1b\n hlt");

static void map(struct world *w, uint64_t linear, uint64_t gpa)
{
    uint64_t table = TABLES + 0x10000;
    put64(w, TABLES + 8 * (linear >> 39 & 511), table | 7);
    put64(w, table + 8 * (linear >> 30 & 511), (table + 0x1000) | 7);
    put64(w, table + 0x1000 + 8 * (linear >> 21 & 511), (table + 0x2000) | 7);
    put64(w, table + 0x2000 + 8 * (linear >> 12 & 511), gpa | 7);
}

static void test_dropped_slot(void)
{
    static const uint64_t targets[] = {0, 0xff0, UINT64_C(1) << 63, (UINT64_C(1) << 63) + 0xff0, 0x1000, UINT64_C(0x5a1f93c6b7e2d000)};
    uint8_t *victim = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(victim != MAP_FAILED);
    for (unsigned i = 0; i < ARRAY_LEN(targets); i++) {
        static struct x86_state s;
        struct world w;
        world_init(&w);
        long_mode(&w, &s);
        put64(&w, TABLES + 0x6000, 0); /* page 0 is not there, nor page 1 */
        put64(&w, TABLES + 0x6008, 0);
        /* a stale addend would lead from the target to the victim */
        uint64_t host = (uint64_t)guest_mem_ptr(&w.mem, DATA, 4096, true);
        uint64_t linear = (host - (uint64_t)(victim + 4096) + targets[i]) & ~UINT64_C(0xfff);
        linear = (uint64_t)((int64_t)(linear << 16) >> 16);
        if (linear >> 39 == 0 || linear >> 47)
            linear = UINT64_C(0x550000000000) | (linear & 0xfffffff000);
        map(&w, linear, DATA);
        s.gpr[RSI] = linear;
        s.gpr[RDI] = targets[i];
        s.gpr[RAX] = 0x5a;
        CHECK_EQ(RUN(&w, &s, stale_slot), CPU_EXIT_HALT);
        if (i < 5) /* the last is the page that stands for "empty" (mmu/tlb.c) */
            CHECK_VECTOR(&s, targets[i] >> 47 ? EXC_GP : EXC_PF);
        for (unsigned j = 0; j < 3 * 4096; j++)
            if (victim[j]) {
                CHECK(!"host memory was written");
                break;
            }
        world_destroy(&w);
    }
    munmap(victim, 3 * 4096);
}

int main(void)
{
    world_main_begin();
    test_dropped_slot();
    return check_report();
}
