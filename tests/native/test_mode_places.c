/* SPDX-License-Identifier: MIT */
/* A user's code that lies at more than one address, in one address space and in several: what it finds relative to RIP, where
 * its calls return, and what follows its page. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#define ROUNDS 60
#define TABLES_OF(space) (TABLES + 0x100000u * (space))
#define PLACE(i) (0x100000u + 0x8000u * (i)) /* linear: of the shared page; of what is its own, the next */
#define PLACES 3u
#define SHARED 0x240000u /* physical: code, in all places */
#define OWN(space, place) (0x250000u + 0x4000u * (3 * (space) + (place)))
#define SPACES 2u

/* The shared page. At its start, a function that says of its place what it finds relative to RIP, and goes to and fro; near its
 * end, one that runs on into the next page, with an instruction in both. */
GUEST(shared, 64,
      "mov shared_begin+0x1800(%rip), %eax; call 1f; jmp shared_begin+0x1010\n"
      ".org shared_begin+0x100\n"
      "lea shared_begin(%rip), %rcx; add %rcx, %rdi; call shared_begin+0x1100; add %rax, %rsi; ret\n"
      "1: add $1, %r10; ret\n"
      ".org shared_begin+0xff0, 0x90\n"
      "lea 1(%rbp), %rbp\n"
      ".org shared_begin+0xffd, 0x90\n"
      ".byte 0x81, 0xc5, 0x00\n"); /* add $0x10000, %ebp, with most of the constant behind */
GUEST(own, 64,
      ".byte 0x00, 0x01, 0x00; ret\n"
      ".org own_begin+0x10\n"
      "jmp own_begin-0x1000+0x100\n"
      ".org own_begin+0x100\n"
      "mov own_begin+0x800(%rip), %ebx; add %rbx, %r11; ret\n");
/* r8 rounds: the places from r13 on, r15 bytes of them; then the next space by a call of the kernel, which moves r13, too. */
GUEST(caller, 64,
      "again: mov %r13, %r12\n"
      "1: call *%r12; lea 0xff0(%r12), %rax; call *%rax\n"
      "add $0x8000, %r12; lea (%r13, %r15), %rax; cmp %rax, %r12; jb 1b\n"
      "int $0x80; dec %r8; jnz again; hlt\n"
      ".org caller_begin+0x200\n"
      "xor 0x40000, %r13; mov %cr3, %rax; xchg %rax, %r14; mov %rax, %cr3; iretq\n");
#define KERNEL_ENTRY (CODE + 0x200)

static void map(struct world *w, unsigned space, uint32_t linear, uint64_t gpa)
{
    put64(w, TABLES_OF(space) + 0x6000 + 8 * (linear >> 12), gpa | 7);
}

static void begin(struct world *w, struct x86_state *s)
{
    long_mode(w, s);
    static uint8_t tables[0x7000];
    CHECK(guest_mem_read(&w->mem, TABLES, tables, sizeof tables));
    CHECK(guest_mem_write(&w->mem, TABLES_OF(1), tables, sizeof tables));
    put64(w, TABLES_OF(1), (TABLES_OF(1) + 0x1000) | 7);
    put64(w, TABLES_OF(1) + 0x1000, (TABLES_OF(1) + 0x2000) | 7);
    put64(w, TABLES_OF(1) + 0x2000, (TABLES_OF(1) + 0x6000) | 7);
    CHECK(guest_mem_write(&w->mem, SHARED, shared_begin, (uint64_t)(shared_end - shared_begin)));
    for (unsigned space = 0; space < SPACES; space++)
        for (unsigned place = 0; place < PLACES; place++) {
            uint64_t gpa = OWN(space, place);
            CHECK(guest_mem_write(&w->mem, gpa, own_begin, (uint64_t)(own_end - own_begin)));
            put32(w, gpa + 0x800, 1 + 10 * space + 100 * place);
            map(w, space, PLACE(place), SHARED);
            map(w, space, PLACE(place) + 0x1000, gpa);
        }
    put64(w, IDT + 16 * 0x80, gate(CODE64, KERNEL_ENTRY, 0xee));
    to_user(s);
}

/* Of each space the places from `first` on; in the other space from another one. */
static void test_places(unsigned first, unsigned count, unsigned other, bool pcid)
{
    static struct x86_state s;
    struct world w;
    world_init(&w);
    begin(&w, &s);
    s.cr4 |= pcid ? CR4_PCIDE : 0;
    for (unsigned i = RAX; i <= R15; i++)
        if (i != RSP)
            s.gpr[i] = 0;
    s.gpr[R8] = ROUNDS;
    s.gpr[R13] = PLACE(first);
    s.gpr[R15] = PLACE(count) - PLACE(0);
    put64(&w, DATA, PLACE(first) ^ PLACE(other));
    s.gpr[R14] = TABLES_OF(1) | (pcid ? BIT(63) | 1 : 0);
    CHECK_EQ(RUN(&w, &s, caller), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* of HLT */
    uint64_t own = 0, where = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned from = round % 2 ? other : first;
        for (unsigned place = from; place < from + count; place++) {
            own += 1 + 10 * (round % 2) + 100 * place;
            where += PLACE(place);
        }
    }
    CHECK_EQ(s.gpr[R8], 0);
    CHECK_EQ(s.gpr[RSI], own);
    CHECK_EQ(s.gpr[R11], own);
    CHECK_EQ(s.gpr[RDI], where);
    CHECK_EQ(s.gpr[R10], count * ROUNDS);
    CHECK_EQ(s.gpr[RBP], count * ROUNDS * 0x10001);
    world_destroy(&w);
}

int main(void)
{
    world_main_begin();
    for (unsigned pcid = 0; pcid < 2; pcid++) {
        test_places(0, PLACES, 0, pcid);
        test_places(0, 1, 1, pcid);
        test_places(1, 2, 0, pcid);
        test_places(2, 1, 2, pcid);
    }
    return check_report();
}
