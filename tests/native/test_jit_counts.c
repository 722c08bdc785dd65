/* SPDX-License-Identifier: MIT */
/* What the processor counts of itself while translated code runs: why that is left, what it calls, what the MMU did. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/jit.h"
#define WORLD_TRANSLATOR &jit_translator
#define WORLD_COUNTS true
#include "mode_world.h"

struct wanted {
    const char *group, *name;
    uint64_t value;
};

static void take(void *opaque, const char *group, const char *name, uint64_t value)
{
    struct wanted *wanted = opaque;
    if (!strcmp(group, wanted->group) && (!wanted->name || !strcmp(name, wanted->name)))
        wanted->value += value;
}

/* name NULL: all of the group */
static uint64_t count(struct world *w, const char *group, const char *name)
{
    struct wanted wanted = {group, name, 0};
    cpu_tell_counts(w->cpu, &(struct count_sink){take, &wanted});
    return wanted.value;
}

GUEST(loop, 64, "mov $100, %ecx\n 1: smsw %eax\n push $2\n popf\n dec %ecx\n jnz 1b\n hlt");

static void test_executors(void)
{
    static struct x86_state s;
    struct world w;
    world_init(&w);
    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, loop), CPU_EXIT_HALT);
    CHECK_EQ(count(&w, "executors", "smsw"), 100);
    CHECK_EQ(count(&w, "executors", "popf"), 100);
    CHECK_EQ(count(&w, "executors", "hlt"), 1);
    CHECK_EQ(count(&w, "executors", NULL), 201);
    CHECK_EQ(count(&w, "interrupts", "halts"), 1);
    CHECK_EQ(count(&w, "exits", NULL), count(&w, "translator", "entered"));
    CHECK(count(&w, "exits", "executor") > 0); /* hlt */
    CHECK(count(&w, "translator", "translated") >= 3 && count(&w, "translator", "translated") <= count(&w, "blocks", "decoded"));
    world_destroy(&w);
}

/* RBX walks over pages: one refill each. Then a computed jump to where nobody was yet, and a fault at RDI. */
GUEST(pages, 64,
      "mov $32, %ecx\n 1: mov (%rbx), %eax\n add $4096, %rbx\n dec %ecx\n jnz 1b\n"
      "mov %cr3, %rax\n mov %rax, %cr3\n invlpg (%rbx)\n invlpg (%rbx)\n"
      "lea 2f(%rip), %rax\n jmp *%rax\n ud2\n 2: mov (%rdi), %eax\n hlt");

static void test_exits_and_mmu(void)
{
    static struct x86_state s;
    struct world w;
    world_init(&w);
    long_mode(&w, &s);
    s.gpr[RBX] = DATA;
    s.gpr[RDI] = UINT64_C(0x7f0000000000);
    CHECK_EQ(RUN(&w, &s, pages), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_PF);
    CHECK_EQ(count(&w, "exceptions", "pf"), 1);
    CHECK_EQ(count(&w, "exceptions", NULL), 1);
    CHECK_EQ(count(&w, "exits", "fault"), 1);
    CHECK(count(&w, "exits", "computed_jump") >= 1);
    CHECK(count(&w, "exits", "unlinked") >= 1);
    CHECK_EQ(count(&w, "exits", NULL), count(&w, "translator", "entered"));
    CHECK(count(&w, "mmu", "walks") >= 32 && count(&w, "mmu", "walks") < 80);
    CHECK_EQ(count(&w, "mmu", "page_flushes"), 2);
    CHECK_EQ(count(&w, "mmu", "space_flushes"), 1);
    CHECK(count(&w, "mmu", "fetch_misses") >= 1);
    world_destroy(&w);
}

/* Code that writes the immediate of the MOV in the loop, from outside of its block. */
GUEST(rewrite, 64, "mov $10, %ecx\n jmp 1f\n .balign 256\n 1: mov $1, %eax\n dec %ecx\n jz 3f\n jmp 2f\n .balign 256\n"
                   "2: incb 1b+1(%rip)\n jmp 1b\n 3: hlt");

static void test_code_writes(void)
{
    static struct x86_state s;
    struct world w;
    world_init(&w);
    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, rewrite), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], 10);
    CHECK_EQ(count(&w, "blocks", "code_writes"), 9);
    CHECK(count(&w, "blocks", "stale") >= 9);
    CHECK(count(&w, "translator", "killed") >= 9);
    world_destroy(&w);
}

int main(void)
{
    world_main_begin();
    test_executors();
    test_exits_and_mmu();
    test_code_writes();
    return check_report();
}
