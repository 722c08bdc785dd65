/* SPDX-License-Identifier: MIT */
/* PKRU: the instructions that read and write it, XSAVE's component 9, CPUID, and that a new value counts at once. What
 * keys allow is in test_mode_paging.c. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#define PAGE 0x41000u
#define SLOT (TABLES + 0x6000 + 8 * (PAGE >> 12))
#define KEY 3u
#define AD (1u << 2 * KEY)
#define WD (2u << 2 * KEY)

static void begin(struct world *w, struct x86_state *s)
{
    long_mode(w, s);
    put64(w, SLOT, PAGE | 7 | (uint64_t)KEY << PTE_KEY_SHIFT);
    s->cr4 |= CR4_PKE;
    s->xcr0 |= XCR0_PKRU;
    s->gpr[RDI] = PAGE;
    s->gpr[RCX] = s->gpr[RDX] = 0;
}

GUEST(reads, 64, "rdpkru; hlt");
GUEST(writes, 64, "wrpkru; hlt");
static void test_registers(struct world *w)
{
    struct x86_state s;
    begin(w, &s);
    s.pkru = 0x89abcdef;
    s.gpr[RAX] = s.gpr[RDX] = ~UINT64_C(0);
    s.gpr[RCX] = UINT64_C(1) << 32; /* ECX, not RCX */
    CHECK_EQ(RUN(w, &s, reads), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RAX], 0x89abcdef);
    CHECK_EQ(s.gpr[RDX], 0);
    begin(w, &s);
    s.gpr[RAX] = UINT64_C(0x123456789);
    CHECK_EQ(RUN(w, &s, writes), CPU_EXIT_HALT);
    CHECK_EQ(s.pkru, 0x23456789);
    static const struct {
        bool write, pke;
        uint64_t rcx, rdx;
        int vector;
    } refused[] = {{false, true, 1, 0, EXC_GP}, {true, true, 1, 0, EXC_GP}, {true, true, 0, 1, EXC_GP},
                   {false, false, 0, 0, EXC_UD}, {true, false, 0, 0, EXC_UD}, {true, false, 1, 1, EXC_UD}};
    for (unsigned i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        begin(w, &s);
        s.cr4 &= ~(uint64_t)(refused[i].pke ? 0 : CR4_PKE);
        s.pkru = 4;
        s.gpr[RCX] = refused[i].rcx;
        s.gpr[RDX] = refused[i].rdx;
        CHECK_EQ(refused[i].write ? RUN(w, &s, writes) : RUN(w, &s, reads), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, refused[i].vector);
        CHECK_EQ(s.pkru, 4);
    }
    begin(w, &s); /* ring 3 may */
    to_user(&s);
    s.gpr[RAX] = 0x55555554;
    CHECK_EQ(RUN(w, &s, writes), CPU_EXIT_HALT);
    CHECK_EQ(s.pkru, 0x55555554);
}

/* The page is in the TLB, for reading and writing, when its key is closed. */
GUEST(closes, 64,
      "xor %ecx, %ecx; xor %edx, %edx; movl $1, (%rdi); mov (%rdi), %ebx; mov %r8d, %eax; wrpkru; mov (%rdi), %r9d;"
      "movl $2, (%rdi); hlt");
GUEST(closes_by_xrstor, 64,
      "movl $1, (%rdi); mov (%rdi), %ebx; mov $0x200, %eax; xor %edx, %edx; xrstor (%rsi); mov (%rdi), %r9d;"
      "movl $2, (%rdi); hlt");
static void test_takes_effect(struct world *w)
{
    for (unsigned by_xrstor = 0; by_xrstor < 2; by_xrstor++) {
        for (unsigned i = 0; i < 3; i++) {
            static const uint32_t values[] = {0x0c, WD, AD};
            struct x86_state s;
            begin(w, &s);
            put32(w, PAGE, 0);
            for (unsigned offset = 0; offset < 1024; offset += 8)
                put64(w, DATA + offset, 0);
            put64(w, DATA + 512, XCR0_PKRU); /* compacted, PKRU alone: behind the header */
            put64(w, DATA + 520, BIT(63) | XCR0_PKRU);
            put32(w, DATA + 576, values[i]);
            s.gpr[RSI] = DATA;
            s.gpr[R8] = values[i];
            s.gpr[R9] = 77;
            CHECK_EQ(by_xrstor ? RUN(w, &s, closes_by_xrstor) : RUN(w, &s, closes), CPU_EXIT_HALT);
            CHECK_EQ(s.pkru, values[i]);
            CHECK_VECTOR(&s, i ? EXC_PF : -1);
            CHECK_EQ(s.gpr[RBX], 1);
            CHECK_EQ(s.gpr[R9], i < 2 ? 1 : 77);
            CHECK_EQ(get32(w, PAGE), i ? 1 : 2);
            if (i)
                CHECK_EQ(get32(w, s.gpr[RSP]), PF_P | PF_PK | (i == 1 ? PF_W : 0));
        }
    }
}

GUEST(asks, 64,
      "mov $7, %eax; xor %ecx, %ecx; cpuid; mov %ecx, %esi;"
      "mov $13, %eax; xor %ecx, %ecx; cpuid; mov %ebx, %r8d; mov %eax, %r9d;"
      "mov $13, %eax; mov $9, %ecx; cpuid; mov %eax, %r10d; mov %ebx, %r11d; hlt");
static uint32_t offset_of_pkru(struct world *w)
{
    struct x86_state s;
    uint32_t offset = 0;
    for (unsigned on = 0; on < 2; on++) {
        begin(w, &s);
        s.cr4 &= ~(uint64_t)(on ? 0 : CR4_PKE);
        CHECK_EQ(RUN(w, &s, asks), CPU_EXIT_HALT);
        CHECK_EQ(s.gpr[RSI] >> 3 & 3, on ? 3 : 1); /* PKU, OSPKE */
        CHECK_EQ(s.gpr[R9] & XCR0_PKRU, XCR0_PKRU);
        CHECK_EQ(s.gpr[R10], 8);
        offset = (uint32_t)s.gpr[R11];
        CHECK_EQ(s.gpr[R8], offset + 8);
    }
    CHECK(offset >= 832);
    return offset;
}

GUEST(by_xsave, 64, "mov $0x207, %eax; xor %edx, %edx; xsave (%rsi); hlt");
GUEST(by_xsaveopt, 64, "mov $0x200, %eax; xor %edx, %edx; xsaveopt (%rsi); hlt");
GUEST(by_xsavec, 64, "mov $0x204, %eax; xor %edx, %edx; xsavec (%rsi); hlt");
GUEST(by_xrstor, 64, "mov $0x200, %eax; xor %edx, %edx; xrstor (%rsi); hlt");
GUEST(in_use, 64, "mov $1, %ecx; xgetbv; hlt");
static void test_xsave(struct world *w)
{
    uint32_t offset = offset_of_pkru(w);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t value = i ? 0x11223344 : 0;
        struct x86_state s;
        for (unsigned at = 0; at < offset + 64; at += 8)
            put64(w, DATA + at, 0);
        begin(w, &s);
        s.gpr[RSI] = DATA;
        s.pkru = value;
        put64(w, DATA + offset, 0x99);
        CHECK_EQ(RUN(w, &s, by_xsave), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, -1);
        CHECK_EQ(get64(w, DATA + offset), value); /* an initial component too */
        CHECK_EQ(get64(w, DATA + 512) & XCR0_PKRU, i ? XCR0_PKRU : 0);
        CHECK_EQ(get64(w, DATA + 520), 0);
        put64(w, DATA + offset, 0x99);
        s.rip = CODE;
        CHECK_EQ(RUN(w, &s, by_xsaveopt), CPU_EXIT_HALT);
        CHECK_EQ(get64(w, DATA + offset), i ? value : 0x99);
        begin(w, &s);
        s.gpr[RSI] = DATA;
        put64(w, DATA + 512, i ? XCR0_PKRU : 0);
        put32(w, DATA + offset, 0x55);
        s.pkru = 0x1000;
        CHECK_EQ(RUN(w, &s, by_xrstor), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, -1);
        CHECK_EQ(s.pkru, i ? 0x55 : 0);
        begin(w, &s);
        s.gpr[RSI] = DATA;
        s.pkru = value;
        put64(w, DATA + 832, 0x99);
        CHECK_EQ(RUN(w, &s, by_xsavec), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, -1);
        CHECK_EQ(get64(w, DATA + 520), BIT(63) | 0x204);
        CHECK_EQ(get64(w, DATA + 832), i ? value : 0x99);
        begin(w, &s);
        s.pkru = value;
        CHECK_EQ(RUN(w, &s, in_use), CPU_EXIT_HALT);
        CHECK_EQ(s.gpr[RAX] & XCR0_PKRU, i ? XCR0_PKRU : 0);
    }
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_registers(&w);
    test_takes_effect(&w);
    test_xsave(&w);
    world_destroy(&w);
    return check_report();
}
