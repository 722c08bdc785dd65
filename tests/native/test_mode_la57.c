/* SPDX-License-Identifier: MIT */
/* Five levels of paging: which addresses there are, what may switch to them, and that code runs there. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#include "cpu/exec/exec.h"

#define PML5 0x50000u
#define HIGH UINT64_C(0x00ab000000000000) /* canonical in 57 bits, not in 48 */
#define HIGH_INDEX (HIGH >> 48)
#define NOWHERE UINT64_C(0x0100000000000000) /* canonical in neither */
#define UNMAPPED UINT64_C(0x00cd000000000000)

/* Below 256 TiB, and at HIGH, what long_mode has below 4 GiB. */
static void begin(struct world *w, struct x86_state *s)
{
    long_mode(w, s);
    for (unsigned i = 0; i < 512; i++)
        put64(w, PML5 + 8 * i, 0);
    put64(w, PML5, TABLES | 7);
    put64(w, PML5 + 8 * HIGH_INDEX, TABLES | 7);
    put64(w, PML5 + 8 * 511, TABLES | 7);
    s->cr3 = PML5;
    s->cr4 |= CR4_LA57;
    s->gpr[RDI] = HIGH + DATA;
}

GUEST(touches, 64, "mov (%rdi), %rax; movl $0x1234, 8(%rdi); hlt");
static void test_addresses(struct world *w)
{
    struct x86_state s;
    begin(w, &s);
    put64(w, DATA, 0x5566778899);
    CHECK_EQ(RUN(w, &s, touches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RAX], 0x5566778899);
    CHECK_EQ(get32(w, DATA + 8), 0x1234);
    CHECK(get64(w, PML5 + 8 * HIGH_INDEX) & PTE_A);
    begin(w, &s);
    s.gpr[RDI] = (UINT64_C(511) << 48 | UINT64_C(0xfe) << 56) + DATA; /* bit 56 set, 63:57 copies of it */
    CHECK_EQ(RUN(w, &s, touches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    begin(w, &s);
    s.gpr[RDI] = NOWHERE;
    CHECK_EQ(RUN(w, &s, touches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    begin(w, &s);
    s.gpr[RDI] = UNMAPPED;
    CHECK_EQ(RUN(w, &s, touches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_PF);
    CHECK_EQ(s.cr2, UNMAPPED);
    CHECK_EQ(get64(w, s.gpr[RSP]), 0); /* not present, read by the supervisor */
    begin(w, &s);
    put64(w, PML5 + 8 * HIGH_INDEX, TABLES | 7 | PTE_PS);
    CHECK_EQ(RUN(w, &s, touches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_PF);
    CHECK_EQ(get64(w, s.gpr[RSP]), PF_P | PF_RSVD);
    /* with four levels there is no such address */
    begin(w, &s);
    s.cr3 = TABLES;
    s.cr4 &= ~(uint64_t)CR4_LA57;
    CHECK_EQ(RUN(w, &s, touches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
}

GUEST(goes, 64, "mov $0xab000000000000, %rax; lea 1f(%rip), %rbx; add %rax, %rbx; mov $200, %ecx; jmp *%rbx\n"
                "1: call 2f; dec %ecx; jnz 1b; lea 1b(%rip), %rdx; hlt; 2: inc %esi; ret");
static void test_code(struct world *w)
{
    struct x86_state s;
    begin(w, &s);
    s.gpr[RSP] = HIGH + STACK;
    s.gpr[RSI] = 0;
    CHECK_EQ(RUN(w, &s, goes), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RSI], 200);
    CHECK_EQ(s.gpr[RDX] >> 48, HIGH_INDEX);
    CHECK_EQ(s.rip >> 48, HIGH_INDEX);
    begin(w, &s);
    s.gpr[RSP] = HIGH + STACK;
    s.cr3 = TABLES;
    s.cr4 &= ~(uint64_t)CR4_LA57;
    s.gpr[RSP] = STACK;
    CHECK_EQ(RUN(w, &s, goes), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* the jump */
}

GUEST(switches, 64, "mov %cr4, %rax; xor $0x1000, %rax; mov %rax, %cr4; hlt");
GUEST(bases, 64, "wrfsbase %rdi; rdfsbase %rax; mov $0xc0000102, %ecx; mov %rdi, %rdx; mov %edi, %eax; shr $32, %rdx; wrmsr; hlt");
GUEST(asks, 64, "mov $7, %eax; xor %ecx, %ecx; cpuid; mov %ecx, %esi; mov $0x80000008, %eax; cpuid; hlt");
static void test_registers(struct world *w)
{
    struct x86_state s;
    begin(w, &s);
    CHECK_EQ(RUN(w, &s, switches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* not in long mode, neither way */
    CHECK(s.cr4 & CR4_LA57);
    long_mode(w, &s);
    CHECK_EQ(RUN(w, &s, switches), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    /* registers take 57 bits whatever the paging */
    long_mode(w, &s);
    s.cr4 |= CR4_FSGSBASE;
    s.gpr[RDI] = HIGH;
    CHECK_EQ(RUN(w, &s, bases), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.segment[FS].base, HIGH);
    CHECK_EQ(s.kernel_gs_base, HIGH);
    long_mode(w, &s);
    s.cr4 |= CR4_FSGSBASE;
    s.gpr[RDI] = NOWHERE;
    CHECK_EQ(RUN(w, &s, bases), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    long_mode(w, &s);
    CHECK_EQ(RUN(w, &s, asks), CPU_EXIT_HALT);
    CHECK(s.gpr[RSI] & 1u << 16);
    CHECK_EQ(s.gpr[RAX] >> 8 & 0xff, 57);
}

int main(void)
{
    static struct world w;
    world_main_begin();
    world_init(&w);
    feature_set_add(&w.cpu->cpuid.announced, FEATURE_LA57); /* only who asks for it has it */
    test_addresses(&w);
    test_code(&w);
    test_registers(&w);
    world_destroy(&w);
    return check_report();
}
