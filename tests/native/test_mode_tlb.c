/* SPDX-License-Identifier: MIT */
/* Which instructions drop which translations, run by a guest: test_mmu.c shows the same of the MMU alone. And code that
 * changes place under the feet of whatever remembers where it was. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#define PAGE 0x41000u       /* what is looked at */
#define SLOT (TABLES + 0x6000 + 8 * (PAGE >> 12))
#define OLD 0x251000u       /* where it is first */
#define NEW 0x252000u       /* and then */
#define CALLED 0x50000u     /* CODE + 40000h: code that moves */
#define OTHER_TABLES 0x100000u
#define ONE 0x261000u       /* two places of it */
#define TWO 0x262000u
#define ROUNDS 40

/* ebx: before; the entry changes; something happens; ecx: after */
GUEST(by_cr4, 64, "mov (%rdi), %ebx; mov %r10, (%rsi); mov %rax, %cr4; mov (%rdi), %ecx; hlt");
GUEST(by_cr4_twice, 64,
      "mov %cr4, %rdx; mov (%rdi), %ebx; mov %r10, (%rsi); mov %rax, %cr4; mov %rdx, %cr4; mov (%rdi), %ecx; hlt");
GUEST(by_cr3, 64, "mov (%rdi), %ebx; mov %r10, (%rsi); mov %rax, %cr3; mov (%rdi), %ecx; hlt");
GUEST(by_cr3_and_back, 64, "mov (%rdi), %ebx; mov %r10, (%rsi); mov %rax, %cr3; mov %rdx, %cr3; mov (%rdi), %ecx; hlt");
GUEST(by_invlpg, 64, "mov (%rdi), %ebx; mov %r10, (%rsi); invlpg (%r8); mov (%rdi), %ecx; hlt");
GUEST(by_invpcid, 64, "mov (%rdi), %ebx; mov %r10, (%rsi); invpcid (%rbp), %rdx; mov (%rdi), %ecx; hlt");
GUEST(by_efer, 64,
      "mov (%rdi), %ebx; mov %r10, (%rsi); mov $0xc0000080, %ecx; rdmsr; btr $11, %eax; wrmsr; mov (%rdi), %ecx; hlt");
GUEST(by_wp, 64,
      "mov (%rdi), %ebx; mov %r10, (%rsi); mov %cr0, %rax; btr $16, %rax; mov %rax, %cr0; mov (%rdi), %ecx; hlt");
GUEST(by_nothing, 64, "mov (%rdi), %ebx; mov %r10, (%rsi); mov (%rdi), %ecx; hlt");

static void begin(struct world *w, struct x86_state *s, uint64_t flags)
{
    long_mode(w, s);
    put32(w, OLD, 0x1111);
    put32(w, NEW, 0x2222);
    put64(w, SLOT, OLD | 3 | flags);
    put64(w, TABLES + 0x6000 + 8 * (CODE >> 12), CODE | 3); /* CR4.SMEP may be on */
    s->cr4 |= CR4_PGE | CR4_PCIDE;
    s->gpr[RDI] = PAGE;
    s->gpr[RSI] = SLOT;
    s->gpr[R10] = NEW | 3 | flags;
    s->gpr[R8] = PAGE;
    s->gpr[RBP] = DATA;
}

/* Is the old translation gone afterwards? */
static bool gone(struct world *w, struct x86_state *s, const uint8_t *code, const uint8_t *end)
{
    CHECK_EQ(run(w, s, code, end), CPU_EXIT_HALT);
    CHECK_VECTOR(s, -1);
    CHECK_EQ(s->gpr[RBX], 0x1111);
    CHECK(s->gpr[RCX] == 0x1111 || s->gpr[RCX] == 0x2222);
    return s->gpr[RCX] == 0x2222;
}
#define GONE(name) gone(w, &s, name##_begin, name##_end)

static void test_control_registers(struct world *w)
{
    struct x86_state s;
    for (unsigned global = 0; global < 2; global++) {
        uint64_t flags = global ? PTE_G : 0;
        begin(w, &s, flags);
        CHECK(!GONE(by_nothing)); /* the others would show nothing if this were not so */
        begin(w, &s, flags);
        s.gpr[RAX] = TABLES;
        CHECK_EQ(GONE(by_cr3), !global);
        begin(w, &s, flags);
        s.gpr[RAX] = TABLES | BIT(63);
        CHECK(!GONE(by_cr3));
        begin(w, &s, flags); /* another PCID, and back: of both nothing, of the other, of this one everything */
        s.gpr[RAX] = TABLES | BIT(63) | 5;
        s.gpr[RDX] = TABLES | BIT(63);
        CHECK(!GONE(by_cr3_and_back));
        begin(w, &s, flags);
        s.gpr[RAX] = TABLES | 5;
        s.gpr[RDX] = TABLES | BIT(63);
        CHECK(!GONE(by_cr3_and_back));
        begin(w, &s, flags);
        s.gpr[RAX] = TABLES | BIT(63) | 5;
        s.gpr[RDX] = TABLES;
        CHECK_EQ(GONE(by_cr3_and_back), !global);
        begin(w, &s, flags); /* what PCID 5 sees was never cached for it */
        s.gpr[RAX] = TABLES | BIT(63) | 5;
        CHECK_EQ(GONE(by_cr3), !global);
        static const uint64_t all[] = {CR4_PGE, CR4_SMEP, CR4_PCIDE};
        for (unsigned i = 0; i < 3; i++) {
            begin(w, &s, flags);
            s.gpr[RAX] = s.cr4 ^ all[i];
            CHECK(GONE(by_cr4));
        }
        begin(w, &s, flags);
        s.gpr[RAX] = s.cr4 & ~(uint64_t)CR4_PGE;
        CHECK(GONE(by_cr4_twice));
        begin(w, &s, flags);
        s.gpr[RAX] = s.cr4 ^ CR4_DE;
        CHECK(!GONE(by_cr4));
        begin(w, &s, flags);
        CHECK(GONE(by_efer));
        begin(w, &s, flags);
        CHECK(!GONE(by_wp));
    }
}

static void test_invalidation(struct world *w)
{
    struct x86_state s;
    for (unsigned global = 0; global < 2; global++) {
        uint64_t flags = global ? PTE_G : 0;
        begin(w, &s, flags);
        s.gpr[R8] = PAGE + 0xfff;
        CHECK(GONE(by_invlpg));
        begin(w, &s, flags);
        s.gpr[R8] = PAGE + 0x1000;
        CHECK(!GONE(by_invlpg));
        for (unsigned type = 0; type < 4; type++) {
            for (unsigned pcid = 0; pcid < 2; pcid++) {
                for (unsigned other = 0; other < 2; other++) {
                    if (type == 0 && global && !pcid && !other)
                        continue; /* it may go */
                    begin(w, &s, flags);
                    s.gpr[RDX] = type;
                    put64(w, DATA, pcid);
                    put64(w, DATA + 8, PAGE + (other ? 0x1000 : 0));
                    bool want = type == 2 || (!global && (type == 3 || (!pcid && (type == 1 || !other))));
                    CHECK_EQ(GONE(by_invpcid), want);
                }
            }
        }
    }
}

/* The entry of a large page changes; an INVLPG elsewhere in that page, or in the next one. */
static void test_large_page(struct world *w)
{
    struct x86_state s;
    for (unsigned next = 0; next < 2; next++) {
        begin(w, &s, 0);
        put64(w, TABLES + 0x2000 + 8, 0x200000 | 0x83);
        s.gpr[RDI] = 0x351000;
        s.gpr[RSI] = TABLES + 0x2000 + 8;
        s.gpr[R10] = 0x83;
        put32(w, 0x351000, 0x1111);
        put32(w, 0x151000, 0x2222);
        s.gpr[R8] = next ? 0x400000 : 0x200123;
        CHECK_EQ(GONE(by_invlpg), !next);
    }
}

/* ---- code ---- */

/* r8 times: the code at CALLED from one address space, from the other; r9 has the answers in base 3 */
GUEST(switches, 64, "again: mov %r10, %cr3; call switches_begin + 0x40000; imul $3, %r9; add %rax, %r9;"
                    "mov %r11, %cr3; call switches_begin + 0x40000; imul $3, %r9; add %rax, %r9;"
                    "dec %r8; jnz again; hlt");
/* the same code, moved by its entry */
GUEST(moves, 64, "more: mov %r10, (%rsi); invlpg (%rdi); call moves_begin + 0x40000; imul $3, %r9; add %rax, %r9;"
                 "xchg %r10, %r11; dec %r8; jnz more; hlt");
GUEST(answers, 64, "mov $1, %eax; ret; .skip 10, 0x90; mov $2, %eax; ret");

static uint64_t expected(unsigned count)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < count; i++)
        sum = sum * 3 + (i & 1 ? 2 : 1);
    return sum;
}

static void begin_code(struct world *w, struct x86_state *s)
{
    long_mode(w, s);
    CHECK(guest_mem_write(&w->mem, ONE, answers_begin, 6));
    CHECK(guest_mem_write(&w->mem, TWO, answers_begin + 16, 6));
    CHECK_EQ(get(w, TWO, 1), 0xb8);
    put64(w, TABLES + 0x6000 + 8 * (CALLED >> 12), ONE | 3);
    static uint8_t tables[0x7000]; /* the other space: the same, but for that page */
    CHECK(guest_mem_read(&w->mem, TABLES, tables, sizeof tables));
    CHECK(guest_mem_write(&w->mem, OTHER_TABLES, tables, sizeof tables));
    put64(w, OTHER_TABLES, (OTHER_TABLES + 0x1000) | 7);
    put64(w, OTHER_TABLES + 0x1000, (OTHER_TABLES + 0x2000) | 7);
    put64(w, OTHER_TABLES + 0x2000, (OTHER_TABLES + 0x6000) | 7);
    put64(w, OTHER_TABLES + 0x6000 + 8 * (CALLED >> 12), TWO | 3);
    s->gpr[R8] = ROUNDS;
    s->gpr[R9] = 0;
}

static void test_code_in_two_spaces(struct world *w)
{
    static const struct {
        uint64_t one, two;
        bool pcid;
    } cases[] = {{0, 0, false}, {1, 2, true}, {1 | BIT(63), 2 | BIT(63), true}, {1, 2 | BIT(63), true}, {7, 7, true}};
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        for (unsigned global = 0; global < 2; global++) {
            struct x86_state s;
            begin_code(w, &s);
            s.cr4 |= CR4_PGE | (cases[i].pcid ? CR4_PCIDE : 0);
            if (global) /* the caller's page, in both */
                for (uint32_t tables = TABLES;; tables = OTHER_TABLES) {
                    put64(w, tables + 0x6000 + 8 * (CODE >> 12), CODE | 3 | PTE_G);
                    if (tables == OTHER_TABLES)
                        break;
                }
            s.gpr[R10] = TABLES | cases[i].one;
            s.gpr[R11] = OTHER_TABLES | cases[i].two;
            CHECK_EQ(RUN(w, &s, switches), CPU_EXIT_HALT);
            CHECK_VECTOR(&s, -1);
            CHECK_EQ(s.gpr[R9], expected(2 * ROUNDS));
        }
    }
}

static void test_code_that_moves(struct world *w)
{
    struct x86_state s;
    begin_code(w, &s);
    s.gpr[RDI] = CALLED;
    s.gpr[RSI] = TABLES + 0x6000 + 8 * (CALLED >> 12);
    s.gpr[R10] = ONE | 3;
    s.gpr[R11] = TWO | 3;
    CHECK_EQ(RUN(w, &s, moves), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[R9], expected(ROUNDS));
}

/* One page of code, run by ring 3 and by ring 0: what one of them may go on to is not the other's to reach. */
GUEST(crosses, 64, "jmp crosses_begin + 0x40000");
static void test_code_of_both_rings(struct world *w)
{
    for (unsigned i = 0; i < 6; i++) {
        struct x86_state s;
        begin_code(w, &s);
        put(w, ONE, 0xf4, 1);
        put64(w, TABLES + 0x6000 + 8 * (CALLED >> 12), ONE | 3);
        if (i & 1)
            to_user(&s);
        CHECK_EQ(RUN(w, &s, crosses), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, i & 1 ? EXC_PF : -1);
        if (i & 1)
            CHECK_EQ(get64(w, s.gpr[RSP]), PF_P | PF_U | PF_I);
    }
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_control_registers(&w);
    test_invalidation(&w);
    test_large_page(&w);
    test_code_in_two_spaces(&w);
    test_code_that_moves(&w);
    test_code_of_both_rings(&w);
    world_destroy(&w);
    return check_report();
}
