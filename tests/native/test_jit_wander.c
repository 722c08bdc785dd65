/* SPDX-License-Identifier: MIT */
/* Operands that go to several pages by turns: each check that the translator may learn to use (jit/learn.h) gives what a
 * plain C model gives, also where an operand crosses pages, and the fault that ends the loop is precise. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/jit.h"

#include <stdlib.h>

#define WORLD_TRANSLATOR &jit_translator
#include "mode_world.h"

#define OFFSETS 0x100000u
#define ROUNDS 200000u
#define AREA 0x40000u /* 64 pages from DATA on */
#define NOWHERE UINT32_C(0xffffff00) /* from DATA on: not mapped */
#define BEYOND 0x1000000u            /* the limit */

static uint8_t area[AREA + 64];
static uint32_t offsets[ROUNDS + 1];
_Static_assert(OFFSETS + sizeof offsets <= 0x200000 && DATA + sizeof area <= OFFSETS, "inside of what is mapped");

static void take(void *opaque, const char *group, const char *name, uint64_t value)
{
    if (!strcmp(group, "translator") && !strcmp(name, "relearned"))
        *(uint64_t *)opaque = value;
}

static uint64_t relearned(struct world *w)
{
    uint64_t value = 0;
    cpu_tell_counts(w->cpu, &(struct count_sink){take, &value});
    return value;
}

/* Pages by turns, of which now and then one is crossed; at last, no page. */
static void make_offsets(unsigned pages, bool random)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned page = random ? (unsigned)rand() % pages : i * 5 / 3 % pages;
        unsigned at = i % 5000 == 4999 ? 4096 - 8 * (1 + (unsigned)rand() % 7) + 4 : 64 * ((unsigned)rand() % 63);
        offsets[i] = page * GUEST_PAGE_SIZE + at;
        if (offsets[i] > AREA - 64)
            offsets[i] = 0;
    }
    offsets[ROUNDS] = NOWHERE;
    for (unsigned i = 0; i < sizeof area; i++)
        area[i] = (uint8_t)rand();
}

static void add64(uint8_t *p, uint64_t v) { store_le64(p, load_le64(p) + v); }

GUEST(wide, 64,
      "1: mov (%rsi,%rcx,4), %r8d\n lea (%rbx,%r8), %rdi\n mov (%rdi), %rax\n add 8(%rdi), %rax\n xor %rcx, 16(%rdi)\n"
      "incq 24(%rdi)\n mov %rdi, %r13\n rol $5, %rax\n adc %rax, 32(%r13)\n mov %r8, %r14\n addl $3, 40(%rbx,%r14)\n"
      "movdqu 48(%rbx,%r8), %xmm0\n pxor %xmm0, %xmm1\n add %rax, %rbp\n inc %rcx\n jmp 1b");

static uint64_t model_wide(uint64_t *vector)
{
    uint64_t sum = 0;
    *vector = 0;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint8_t *at = area + offsets[i];
        uint64_t a = load_le64(at) + load_le64(at + 8);
        store_le64(at + 16, load_le64(at + 16) ^ i);
        add64(at + 24, 1);
        a = a << 5 | a >> 59;
        add64(at + 32, a + (a & 1));
        store_le32(at + 40, load_le32(at + 40) + 3);
        *vector ^= load_le64(at + 48);
        sum += a;
    }
    return sum;
}

static void test_wide(unsigned pages, bool random)
{
    static struct x86_state s;
    struct world w;
    world_init(&w);
    long_mode(&w, &s);
    make_offsets(pages, random);
    CHECK(guest_mem_write(&w.mem, DATA, area, sizeof area));
    CHECK(guest_mem_write(&w.mem, OFFSETS, offsets, sizeof offsets));
    s.gpr[RBX] = DATA;
    s.gpr[RSI] = OFFSETS;
    s.gpr[RCX] = s.gpr[RBP] = 0;
    CHECK_EQ(RUN(&w, &s, wide), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_PF);
    CHECK_EQ(s.cr2, DATA + (uint64_t)NOWHERE);
    CHECK_EQ(s.gpr[RCX], ROUNDS);
    uint64_t vector;
    CHECK_EQ(s.gpr[RBP], model_wide(&vector));
    CHECK_EQ(load_le64(s.xsave + 160 + 16), vector);
    static uint8_t seen[sizeof area];
    CHECK(guest_mem_read(&w.mem, DATA, seen, sizeof seen));
    CHECK(!memcmp(seen, area, sizeof seen));
    CHECK(pages == 1 ? relearned(&w) == 0 : relearned(&w) > 0);
    world_destroy(&w);
}

GUEST(narrow, 32,
      "1: mov (%esi,%ecx,4), %edx\n lea (%ebx,%edx), %edi\n mov (%edi), %eax\n add 8(%edi), %eax\n xor %ecx, 16(%edi)\n"
      "incl 24(%edi)\n rol $5, %eax\n adc %eax, 32(%ebx,%edx)\n add %eax, %ebp\n inc %ecx\n jmp 1b");

static uint32_t model_narrow(void)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint8_t *at = area + offsets[i];
        uint32_t a = load_le32(at) + load_le32(at + 8);
        store_le32(at + 16, load_le32(at + 16) ^ i);
        store_le32(at + 24, load_le32(at + 24) + 1);
        a = a << 5 | a >> 27;
        store_le32(at + 32, load_le32(at + 32) + a + (a & 1));
        sum += a;
    }
    return sum;
}

static void test_narrow(unsigned base)
{
    static struct x86_state s;
    struct world w;
    world_init(&w);
    protected_mode(&w, &s);
    s.segment[DS].base = base;
    make_offsets(64, true);
    CHECK(guest_mem_write(&w.mem, DATA, area, sizeof area));
    CHECK(guest_mem_write(&w.mem, OFFSETS, offsets, sizeof offsets - 4));
    s.segment[DS].limit = 0x1fffff - base;
    s.gpr[RBX] = DATA - base;
    s.gpr[RSI] = OFFSETS - base;
    s.gpr[RCX] = s.gpr[RBP] = 0;
    put32(&w, OFFSETS + 4 * ROUNDS, BEYOND);
    CHECK_EQ(RUN(&w, &s, narrow), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ((uint32_t)s.gpr[RCX], ROUNDS);
    CHECK_EQ((uint32_t)s.gpr[RBP], model_narrow());
    static uint8_t seen[sizeof area];
    CHECK(guest_mem_read(&w.mem, DATA, seen, sizeof seen));
    CHECK(!memcmp(seen, area, sizeof seen));
    CHECK(relearned(&w) > 0);
    world_destroy(&w);
}

int main(void)
{
    world_main_begin();
    test_wide(1, false);
    test_wide(3, false);
    test_wide(4, true);
    test_wide(64, true);
    test_narrow(0);
    test_narrow(0x1000);
    return check_report();
}
