/* SPDX-License-Identifier: MIT */
/* The instructions that 64-bit mode has not got, with the results that their pages in the manual give (SDM vol. 2). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

/* Each adjusts after its own arithmetic; AX goes to the next word of DATA, the flags (CF, AF) beside it. */
#define STORE "mov %ax, (%edi); pushfl; popl %edx; and $0x11, %edx; mov %dl, 2(%edi); add $4, %edi;"
GUEST(decimal, 32, "mov $0x40000, %edi;"
                   "mov $0x79, %eax; mov $0x35, %bl; add %bl, %al; daa;" STORE
                   "mov $0x35, %eax; mov $0x47, %bl; sub %bl, %al; das;" STORE
                   "mov $0x0005, %eax; add $6, %al; aaa;" STORE
                   "mov $0x0203, %eax; sub $5, %al; aas;" STORE
                   "mov $63, %eax; aam;" STORE
                   "mov $0x0603, %eax; aad;" STORE
                   "mov $0x0005, %eax; add $3, %al; aaa;" STORE "hlt");
static void test_decimal(struct world *w)
{
    static const struct {
        uint16_t ax;
        uint8_t flags, of_them; /* CF 1, AF 10h; undefined ones are left out */
    } expected[] = {
        {0x14, 0x11, 0x11}, {0x88, 0x11, 0x11}, {0x0101, 0x11, 0x11}, {0x0108, 0x11, 0x11}, {0x0603, 0, 0}, {63, 0, 0},
        {0x0008, 0, 0x11},
    };
    struct x86_state s;
    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, decimal), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    for (unsigned i = 0; i < ARRAY_LEN(expected); i++) {
        CHECK_EQ(get16(w, DATA + 4 * i), expected[i].ax);
        CHECK_EQ(get(w, DATA + 4 * i + 2, 1) & expected[i].of_them, expected[i].flags);
    }
}

GUEST(aam_0, 32, ".byte 0xd4, 0; hlt");
GUEST(bound, 32, "bound %eax, 0x40000; hlt");
GUEST(into, 32, "into; hlt");
GUEST(rdpmc, 32, "rdpmc; hlt");
static void test_traps(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, aam_0), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DE);

    static const struct {
        int32_t index;
        int vector;
    } bounds[] = {{-3, -1}, {10, -1}, {11, EXC_BR}, {-4, EXC_BR}};
    for (unsigned i = 0; i < ARRAY_LEN(bounds); i++) {
        protected_mode(w, &s);
        put32(w, DATA, (uint32_t)-3);
        put32(w, DATA + 4, 10);
        s.gpr[RAX] = (uint32_t)bounds[i].index;
        CHECK_EQ(RUN(w, &s, bound), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, bounds[i].vector);
    }
    for (unsigned overflow = 0; overflow < 2; overflow++) {
        protected_mode(w, &s);
        s.rflags |= overflow ? EFLAGS_OF : 0;
        CHECK_EQ(RUN(w, &s, into), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, overflow ? EXC_OF : -1);
    }
    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, rdpmc), CPU_EXIT_HALT); /* there are no counters */
    CHECK_VECTOR(&s, EXC_GP);
}

/* 82 is 80's alias: /0 to /7 on BL with 21h, from 43h and a carry; CMP leaves BL. */
GUEST(alias, 32, "mov $0x40000, %edi;"
                 ".irp digit, 0, 1, 2, 3, 4, 5, 6, 7; mov $0x43, %bl; stc; .byte 0x82, 0xc3 + 8 * \\digit, 0x21;"
                 "mov %bl, (%edi); inc %edi; .endr; hlt");
GUEST(segments, 32, "push %es; push %ss; push %ds; mov (%esp), %eax; mov 4(%esp), %ebx; mov 8(%esp), %ecx;"
                    "pop %es; pop %ss; pop %ds; hlt");
GUEST(all, 32, "mov $1, %eax; mov $2, %ecx; mov $3, %edx; mov $4, %ebx; mov $6, %ebp; mov $7, %esi; mov $8, %edi; pusha;"
               "xor %eax, %eax; xor %ecx, %ecx; xor %edx, %edx; xor %ebx, %ebx; xor %ebp, %ebp; xor %esi, %esi; xor %edi, %edi;"
               "movl $0x12345678, 12(%esp); popa; hlt"); /* what is popped for ESP is thrown away */
GUEST(salc, 32, "mov $0x1234, %eax; stc; .byte 0xd6; mov %eax, %ebx; clc; .byte 0xd6; hlt");
GUEST(sidt, 32, "sidt 0x40000; hlt");
static void test_moves(struct world *w)
{
    static const uint8_t results[8] = {0x64, 0x63, 0x65, 0x21, 0x01, 0x22, 0x62, 0x43};
    struct x86_state s;
    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, alias), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    for (unsigned i = 0; i < 8; i++)
        CHECK_EQ(get(w, DATA + i, 1), results[i]);

    protected_mode(w, &s);
    s.segment[ES].selector = DATA0;
    s.segment[SS].selector = s.segment[DS].selector = DATA0;
    CHECK_EQ(RUN(w, &s, segments), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RSP], STACK);
    CHECK_EQ(s.gpr[RAX] & 0xffff, DATA0);
    CHECK_EQ(s.gpr[RBX] & 0xffff, DATA0);
    CHECK_EQ(s.gpr[RCX] & 0xffff, DATA0);

    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, all), CPU_EXIT_HALT);
    static const uint8_t order[] = {RAX, RCX, RDX, RBX, RBP, RSI, RDI}, values[] = {1, 2, 3, 4, 6, 7, 8};
    for (unsigned i = 0; i < ARRAY_LEN(order); i++)
        CHECK_EQ(s.gpr[order[i]], values[i]);
    CHECK_EQ(s.gpr[RSP], STACK);

    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, salc), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RBX], 0x12ff);
    CHECK_EQ(s.gpr[RAX], 0x1200);

    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, sidt), CPU_EXIT_HALT);
    CHECK_EQ(get16(w, DATA), 0xfff);
    CHECK_EQ(get32(w, DATA + 2), IDT);
}

/* Far pointers: both halves arrive, and a selector that may not be loaded leaves the register as it was. */
GUEST(far_pointers, 32, "les 0x40000, %esi; mov %es, %edx; lds 0x40000, %edi; mov %ds, %ebp; hlt");
static void test_far_pointers(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    put32(w, DATA, 0xcafe1234);
    put16(w, DATA + 4, DATA0);
    CHECK_EQ(RUN(w, &s, far_pointers), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RSI], 0xcafe1234);
    CHECK_EQ(s.gpr[RDI], 0xcafe1234);
    CHECK_EQ(s.gpr[RDX] & 0xffff, DATA0);
    CHECK_EQ(s.gpr[RBP] & 0xffff, DATA0);
    protected_mode(w, &s);
    put16(w, DATA + 4, 0x7f8 + 8); /* beyond the table */
    s.gpr[RSI] = 5;
    CHECK_EQ(RUN(w, &s, far_pointers), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(s.gpr[RSI], 5);
}

/* Registers 8 to 15 are not there: VZEROALL and VZEROUPPER leave them, a register in an immediate's bits 7:4 has no
 * bit 7, and VEX.W does not make EAX and EDX longer. */
#define XMM(s, n) ((s)->xsave + 160 + 16 * (n))
#define YMM_HIGH(s, n) ((s)->xsave + 576 + 16 * (n))
GUEST(zero_all, 32, "vzeroall; hlt");
GUEST(zero_upper, 32, "vzeroupper; hlt");
GUEST(is4, 32, ".byte 0xc4, 0xe3, 0x71, 0x4a, 0xc2, 0xb0; hlt");         /* vblendvps xmm0, xmm1, xmm2, xmm(11 & 7) */
GUEST(compare_strings, 32, ".byte 0xc4, 0xe3, 0xf9, 0x61, 0xc8, 0x08; hlt"); /* vpcmpestri xmm1, xmm0, 8 with W */
static void test_vectors(struct world *w)
{
    struct x86_state s;
    if (!__builtin_cpu_supports("avx"))
        return;
    for (unsigned all = 0; all < 2; all++) {
        protected_mode(w, &s);
        store_le64(s.xsave + 512, 7);
        memset(XMM(&s, 0), 0x11, 256);
        memset(YMM_HIGH(&s, 0), 0x22, 256);
        CHECK_EQ(all ? RUN(w, &s, zero_all) : RUN(w, &s, zero_upper), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, -1);
        uint64_t live = load_le64(s.xsave + 512);
        CHECK_EQ(live & 4, 4);
        for (unsigned n = 0; n < 16; n++) {
            CHECK_EQ(XMM(&s, n)[15], all && n < 8 ? 0 : 0x11);
            CHECK_EQ(YMM_HIGH(&s, n)[15], n < 8 ? 0 : 0x22);
        }
    }
    protected_mode(w, &s);
    store_le64(s.xsave + 512, 7);
    memset(XMM(&s, 1), 0x11, 16);
    memset(XMM(&s, 2), 0x22, 16);
    memset(XMM(&s, 3), 0x80, 16);
    memset(XMM(&s, 11), 0, 16);
    CHECK_EQ(RUN(w, &s, is4), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(XMM(&s, 0)[0], 0x22);
    protected_mode(w, &s);
    store_le64(s.xsave + 512, 7);
    memset(XMM(&s, 0), 0x33, 32);
    s.gpr[RAX] = UINT64_C(0x100000002); /* two characters each */
    s.gpr[RDX] = UINT64_C(0x100000002);
    CHECK_EQ(RUN(w, &s, compare_strings), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK(s.rflags & EFLAGS_ZF && s.rflags & EFLAGS_SF); /* both are shorter than a register */
}

/* ENTER with a 16-bit stack pointer: EBP becomes what ESP became, its upper half untouched by the borrow. */
GUEST(enter16, 32, "enter $8, $0; hlt");
static void test_enter(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    s.segment[SS] = (struct x86_segment){DATA16, 0x93, 0xffff, 0};
    s.gpr[RSP] = 0x50000000;
    CHECK_EQ(RUN(w, &s, enter16), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RBP], 0x5000fffc);
    CHECK_EQ(s.gpr[RSP], 0x5000fff4);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_decimal(&w);
    test_traps(&w);
    test_moves(&w);
    test_far_pointers(&w);
    test_vectors(&w);
    test_enter(&w);
    world_destroy(&w);
    return check_report();
}
