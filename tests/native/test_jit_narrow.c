/* SPDX-License-Identifier: MIT */
/* What only translated 32- and 16-bit code can get wrong: what it takes for granted of segments, and when that changes. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/exec/exec.h"
#include "cpu/jit/jit.h"
#define WORLD_TRANSLATOR &jit_translator
#include "mode_world.h"

/* Operands that are checked together and lie where their 32-bit addresses wrap around. The upper half of a register, left
 * from 64-bit code, means nothing. */
GUEST(wrapped, 32,
      "mov 0x40100(%ebx), %eax\n mov 0x40104(%ebx), %edx\n push 0x40108(%ebx)\n pop %ecx\n"
      "addl $1, 0x4010c(%ebx)\n addl $1, 0x40110(%ebx)\n hlt");
static void test_wrap(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    for (unsigned i = 0; i < 5; i++)
        put32(w, DATA + 4 * i, 100 + i);
    s.gpr[RBX] = UINT64_C(0xdeadbeefffffff00);
    CHECK_EQ(RUN(w, &s, wrapped), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RAX], 100);
    CHECK_EQ(s.gpr[RDX], 101);
    CHECK_EQ(s.gpr[RCX], 102);
    CHECK_EQ(get32(w, DATA + 12), 104);
    CHECK_EQ(get32(w, DATA + 16), 105);
}

/* DS is flat, and no longer is, in the middle of a block. */
GUEST(change_ds, 32, "mov (%esi), %ecx\n mov %eax, %ds\n mov (%esi), %edx\n mov %ebx, (%esi)\n hlt");
static void test_segment_changes(struct world *w)
{
    static const struct {
        uint32_t attributes, offset;
        int vector;
    } cases[] = {{0x4093, DATA, -1}, {0x4093, DATA + 0xffc, -1}, {0x4093, DATA + 0xffd, EXC_GP}, {0x4091, DATA, EXC_GP},
                 {0xc093, 0xfffffffe, EXC_GP}};
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct x86_state s;
        protected_mode(w, &s);
        put64(w, GDT + FREE_SEL, descriptor(0x1000, DATA + 0xfff, cases[i].attributes));
        put32(w, cases[i].offset < DATA + 0x1000 ? cases[i].offset : DATA, 5);
        if (cases[i].offset < DATA + 0x1000)
            put32(w, cases[i].offset + 0x1000, 6);
        s.gpr[RAX] = FREE_SEL;
        s.gpr[RBX] = 7;
        s.gpr[RSI] = cases[i].offset;
        CHECK_EQ(RUN(w, &s, change_ds), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, cases[i].vector);
        if (cases[i].vector < 0) {
            CHECK_EQ(s.gpr[RCX], 5);
            CHECK_EQ(s.gpr[RDX], 6);
            CHECK_EQ(get32(w, cases[i].offset + 0x1000), 7);
        }
    }
}

/* One EIP means two places: links and the table of computed jumps must tell them apart. */
GUEST(two_segments, 32, "mov $60, %ecx\n 1: lcall $0x58, $0\n lcall $0x60, $0\n dec %ecx\n jnz 1b\n hlt");
GUEST(count_eax, 32, "inc %eax\n call 1f\n jmp 2f\n 1: ret\n 2: lret");
GUEST(count_edx, 32, "inc %edx\n call 1f\n jmp 2f\n 1: ret\n 2: lret");
static void test_code_segments(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    CHECK(guest_mem_write(&w->mem, DATA, count_eax_begin, (uint64_t)(count_eax_end - count_eax_begin)));
    CHECK(guest_mem_write(&w->mem, DATA + 0x2000, count_edx_begin, (uint64_t)(count_edx_end - count_edx_begin)));
    put64(w, GDT + FREE_SEL, descriptor(DATA, 0xfff, 0x409b));
    put64(w, GDT + FREE_SEL + 8, descriptor(DATA + 0x2000, 0xfff, 0x409b));
    s.gpr[RAX] = s.gpr[RDX] = 0;
    CHECK_EQ(RUN(w, &s, two_segments), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RAX], 60);
    CHECK_EQ(s.gpr[RDX], 60);
}

/* More code segments than are remembered: the same code by 4000 names. */
GUEST(many_segments, 16, "inc %cx\n cmp $4000, %cx\n je 1f\n dec %bx\n add $16, %dx\n push %bx\n push %dx\n lret\n 1: hlt");
static void test_many_code_segments(struct world *w)
{
    for (unsigned again = 0; again < 2; again++) {
        struct x86_state s;
        real_mode(w, &s);
        s.gpr[RBX] = CODE / 16;
        s.gpr[RDX] = s.gpr[RCX] = 0;
        CHECK_EQ(RUN(w, &s, many_segments), CPU_EXIT_HALT);
        CHECK_EQ(s.gpr[RCX], 4000);
        CHECK_EQ(s.segment[CS].selector, CODE / 16 - 3999);
    }
}

/* SP wraps around in its segment and leaves the upper half of ESP alone. */
GUEST(short_stack, 32, "call 1f\n push %ax\n push %ax\n push %ax\n popw %dx\n push %ax\n hlt\n 1: ret");
static void test_short_stack(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    s.segment[SS] = (struct x86_segment){DATA16, 0x0093, 0xffff, DATA};
    s.gpr[RSP] = 0x120004;
    s.gpr[RAX] = 0x1234;
    s.gpr[RDX] = 0;
    CHECK_EQ(RUN(w, &s, short_stack), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RSP], 0x12fffe);
    CHECK_EQ(s.gpr[RDX], 0x1234);
    CHECK_EQ(get16(w, DATA + 0xfffe), 0x1234);
    CHECK_EQ(get16(w, DATA), 0x1234);
}

/* A jump beyond the segment's limit is its own #GP; a return there has not moved the stack pointer. */
GUEST(jump_out, 32, "jmp *%eax");
GUEST(return_out, 32, "push %eax\n ret");
GUEST(branch_out, 32, "test %eax, %eax\n jne .+0x3000\n hlt");
static void test_limit(struct world *w)
{
    for (unsigned i = 0; i < 3; i++) {
        struct x86_state s;
        protected_mode(w, &s);
        put64(w, GDT + FREE_SEL, descriptor(0, CODE + 0xfff, 0x409b));
        s.segment[CS] = (struct x86_segment){FREE_SEL, 0x409b, CODE + 0xfff, 0};
        s.gpr[RAX] = CODE + 0x1000;
        CHECK_EQ(i == 0 ? RUN(w, &s, jump_out) : i == 1 ? RUN(w, &s, return_out) : RUN(w, &s, branch_out), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, EXC_GP);
        CHECK_EQ(get32(w, s.gpr[RSP] + 4), i == 0 ? CODE : i == 1 ? CODE + 1 : CODE + 2);
        CHECK_EQ(s.gpr[RSP], STACK - 16 - (i == 1 ? 4 : 0));
    }
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_wrap(&w);
    test_segment_changes(&w);
    test_code_segments(&w);
    test_many_code_segments(&w);
    test_short_stack(&w);
    test_limit(&w);
    CHECK(w.cpu->counts.translated > 0);
    world_destroy(&w);
    return check_report();
}
