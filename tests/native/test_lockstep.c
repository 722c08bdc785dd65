/* SPDX-License-Identifier: MIT */
/* The lock-step: that it finds a difference of any kind, and that checking has no effects that can be seen. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/lockstep.h"
#define WORLD_TRANSLATOR &lockstep_translator
#include "mode_world.h"

GUEST(counts, 64,
      "mov $100, %ecx\n"
      "1: add $3, %rax\n"
      "mov %rax, 0x40000(,%rcx,8)\n"
      "pushf\n pop %rdx\n"
      "movq %rax, %xmm1\n paddq %xmm1, %xmm2\n"
      "dec %ecx\n jnz 1b\n"
      "hlt");

static void test_agreement(struct world *w)
{
    static struct x86_state s;
    long_mode(w, &s);
    s.gpr[RAX] = 0;
    CHECK_EQ(RUN(w, &s, counts), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], 300);
    CHECK_EQ(get64(w, DATA + 8), 300);
    CHECK_EQ(get64(w, DATA + 800), 3);
    CHECK_EQ(load_le64(s.xsave + 160 + 32), 3 * 5050);
    const struct lockstep_counts *n = lockstep_counts(w->cpu);
    CHECK(n && n->compared >= 100);
    CHECK_EQ(n->settled, 0);
    CHECK_EQ(n->skipped, 0);
}

/* What the outside is asked, it is asked once. */
GUEST(asks, 64,
      "mov $0x80, %edx\n mov $0x5a, %eax\n"
      "out %al, %dx\n in %dx, %eax\n mov %eax, %edi\n"
      "mov $0xc0000000, %ebx\n mov (%rbx), %rsi\n mov %rsi, (%rbx)\n"
      "rdtsc\n mov %rax, %r8\n rdtsc\n"
      "hlt");

static void test_outside_is_asked_once(struct world *w)
{
    static struct x86_state s;
    long_mode(w, &s);
    w->port_reads = w->port_writes = w->mmio_reads = w->mmio_writes = 0;
    w->now = 0;
    CHECK_EQ(RUN(w, &s, asks), CPU_EXIT_HALT);
    CHECK_EQ(w->port_writes, 1);
    CHECK_EQ(w->port_reads, 1);
    CHECK_EQ(w->mmio_reads, 1);
    CHECK_EQ(w->mmio_writes, 1);
    CHECK_EQ(s.gpr[RDI], 0x12345678);
    CHECK_EQ(s.gpr[RSI], UINT64_C(0x1122334455667788));
    CHECK_EQ((uint32_t)s.gpr[RAX] - (uint32_t)s.gpr[R8], 10); /* two looks at a clock that moves by ten */
}

/* A fault in the middle of a block, with a store before it; a store into the running block. */
GUEST(faults, 64, "movl $1, 0x40000\n mov %rax, (%rbx)\n movl $2, 0x40000\n hlt");
GUEST(patches, 64,
      "mov $2, %ecx\n"
      "1: movb $0x42, 2f+1(%rip)\n"
      "2: mov $0x11, %al\n"
      "add %al, %ah\n dec %ecx\n jnz 1b\n hlt");

static void test_events(struct world *w)
{
    static struct x86_state s;
    long_mode(w, &s);
    s.gpr[RBX] = UINT64_C(0x8000000000000000);
    CHECK_EQ(RUN(w, &s, faults), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, DATA), 1);
    long_mode(w, &s);
    s.gpr[RBX] = UINT64_C(0x700000000000);
    CHECK_EQ(RUN(w, &s, faults), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_PF);
    CHECK_EQ(s.cr2, UINT64_C(0x700000000000));
    uint64_t before = lockstep_counts(w->cpu)->abandoned;
    long_mode(w, &s);
    s.gpr[RAX] = 0;
    CHECK_EQ(RUN(w, &s, patches), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], 0x8442);
    CHECK(lockstep_counts(w->cpu)->abandoned > before);
}

/* Runs the code, then makes the interpreter's idea of one instruction another one's, and runs it again: the translation
 * is what it was, but for what it leaves to executors, which is the interpreter's. */
GUEST(victim, 64, "add $7, %rax\n mov %rax, (%rbx)\n mov %rax, (%r9)\n fld1\n cmp %rcx, %rax\n hlt");

static bool found(struct world *w, unsigned index, void (*change)(struct uop *u), const char *what)
{
    static struct x86_state s;
    for (unsigned round = 0; round < 2; round++) {
        long_mode(w, &s);
        s.gpr[RAX] = 1000;
        s.gpr[RBX] = DATA;
        s.gpr[RCX] = 999;
        s.gpr[R9] = 0xc0000000; /* nobody's */
        if (round)
            change(&w->cpu->block->uops[index]);
        enum cpu_exit exit = round ? (cpu_set_state(w->cpu, &s), cpu_run(w->cpu)) : RUN(w, &s, victim);
        if (round && exit == CPU_EXIT_INTERNAL && strstr(cpu_message(w->cpu), what) && strstr(cpu_message(w->cpu), "add rax, 0x7"))
            return true;
        if (round)
            printf("%u: exit %d, %s\n", index, exit, cpu_message(w->cpu));
    }
    return false;
}

static void other_immediate(struct uop *u) { u->in.imm = 6; }
static void other_register(struct uop *u) { u->in.reg = RSP; }
static void other_fn(struct uop *u) { u->fn = u[1].fn; }
static void other_operand(struct uop *u) { u->in.rm = u->in.reg = RBX; }

static void test_differences(void)
{
    static const struct {
        unsigned index;
        void (*change)(struct uop *u);
        const char *what;
    } cases[] = {
        {0, other_immediate, "rax      interpreted 00000000000003ee translated 00000000000003ef"},
        {1, other_register, "memory at"},
        {3, other_fn, "fsw"},
        {4, other_operand, "rflags"},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct world w;
        world_init(&w);
        CHECK(found(&w, cases[i].index, cases[i].change, cases[i].what));
        world_destroy(&w);
    }
}

static void test_one_processor(void)
{
    static const struct cpu_callbacks none;
    imgvm_error err;
    struct guest_mem mem;
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    struct cpu_options options = {.id = 0, .count = 2, .translator = &lockstep_translator};
    CHECK(!cpu_create(&none, NULL, &mem, &options, &err));
    CHECK(strstr(err.message, "one processor") != NULL);
    guest_mem_destroy(&mem);
}

int main(void)
{
    world_main_begin();
    struct world w;
    world_init(&w);
    test_agreement(&w);
    test_outside_is_asked_once(&w);
    test_events(&w);
    world_destroy(&w);
    test_differences();
    test_one_processor();
    return check_report();
}
