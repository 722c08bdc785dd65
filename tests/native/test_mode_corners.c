/* SPDX-License-Identifier: MIT */
/* Corners that suites of single instructions like to look into, where other tests of the modes do not: real mode's
 * flags, interrupt table and stack, lengths, operand sizes of table registers, x87 images, error codes of what the
 * processor delivers by itself (SDM vol. 2; vol. 3, chapters 6 and 20). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

/* ---- real mode ---- */

GUEST(real_int, 16, "int $0x21; hlt");
GUEST(real_ivt, 16, "int $0x21; hlt");
GUEST(real_iretd, 16, "iretl");
GUEST(real_popfd, 16, "popfl; nop; hlt");
GUEST(real_pusha, 16, "pusha; hlt");
GUEST(real_pushad, 16, "pushal; hlt");
GUEST(real_push_sp, 16, "push %sp; hlt");
GUEST(real_pop_sp, 16, "pop %sp; hlt");
GUEST(real_far, 16, ".byte 0x66, 0xea, 0, 0, 1, 0, 0, 0"); /* offset 10000h */
GUEST(real_near, 16, ".byte 0x66, 0xe9, 0, 0, 1, 0");
GUEST(real_into, 16, "into; hlt");
GUEST(real_bound, 16, "bound %ax, 0x600; hlt");
GUEST(real_loop, 16, "1: inc %ax; addr32 loop 1b; hlt");
GUEST(real_aam, 16, ".byte 0xd4, 0; hlt");
GUEST(real_rep, 16, "rep movsb; hlt");
GUEST(real_string, 16, "lodsw; hlt");
GUEST(real_lldt, 16, ".byte 0x0f, 0x00, 0xd0; hlt");
GUEST(real_arpl, 16, ".byte 0x63, 0xc0; hlt");
GUEST(real_lock, 16, ".byte 0xf0, 0x40; hlt");
GUEST(real_long, 16, ".fill 15, 1, 0x66; nop; hlt");
GUEST(real_longest, 16, ".fill 14, 1, 0x66; nop; hlt");

#define REAL(name, ...) try_real(w, name##_begin, name##_end, (struct real){__VA_ARGS__})
struct real {
    uint32_t sp, eax, ecx, esi, limit;
    uint64_t flags;
};

/* The state afterwards. */
static struct x86_state try_real(struct world *w, const uint8_t *begin, const uint8_t *end, struct real with)
{
    struct x86_state s;
    real_mode(w, &s);
    s.gpr[RSP] = with.sp ? with.sp : STACK;
    s.gpr[RAX] = with.eax;
    s.gpr[RCX] = with.ecx;
    s.gpr[RSI] = with.esi;
    s.rflags |= with.flags;
    if (with.limit)
        s.idtr.limit = (uint16_t)with.limit;
    CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
    return s;
}

static void test_real_flags(struct world *w)
{
    /* an interrupt clears IF, TF and AC, and pushes 16 bits of the flags, 3:1 as they are */
    struct x86_state s = REAL(real_int, .flags = EFLAGS_IF | EFLAGS_AC | EFLAGS_DF | EFLAGS_IOPL | EFLAGS_CF);
    CHECK_VECTOR(&s, 0x21);
    CHECK_EQ(s.rflags, EFLAGS_FIXED | EFLAGS_DF | EFLAGS_IOPL | EFLAGS_CF);
    CHECK_EQ(get16(w, STACK - 2), EFLAGS_FIXED | EFLAGS_IF | EFLAGS_DF | EFLAGS_IOPL | EFLAGS_CF);
    CHECK_EQ(get16(w, STACK - 4), CODE / 16);
    CHECK_EQ(get16(w, STACK - 6), 2);
    /* IRETD: the flags & 257FD5h; VIF, VIP and VM stay as they are */
    put32(w, STACK, HANDLERS & 15);
    put32(w, STACK + 4, HANDLERS / 16);
    put32(w, STACK + 8, 0xffffffff & ~(uint32_t)(EFLAGS_TF | EFLAGS_RF));
    s = REAL(real_iretd, .sp = STACK);
    CHECK_EQ(s.rflags, (0x257fd5 & ~(EFLAGS_TF | EFLAGS_RF)) | EFLAGS_FIXED);
    /* POPFD: RF is cleared, VM, VIF and VIP stay */
    put32(w, STACK, 0xffffffff & ~(uint32_t)EFLAGS_TF);
    s = REAL(real_popfd, .sp = STACK);
    CHECK_EQ(s.rflags, (0x257fd5 & ~(EFLAGS_TF | EFLAGS_RF)) | EFLAGS_FIXED);
}

static void test_real_interrupts(struct world *w)
{
    /* past the table's limit: #GP, without an error code */
    struct x86_state s = REAL(real_ivt, .limit = 4 * 0x21 + 2);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(s.gpr[RSP], STACK - 6);
    CHECK_EQ(get16(w, STACK - 6), 0); /* a fault of INT */
    s = REAL(real_ivt, .limit = 4 * 0x21 + 3);
    CHECK_VECTOR(&s, 0x21);
    /* INTO, BOUND, AAM, undefined ones, and those that real mode has not */
    s = REAL(real_into, .flags = EFLAGS_OF);
    CHECK_VECTOR(&s, EXC_OF);
    CHECK_EQ(get16(w, STACK - 6), 1);
    put32(w, 0x600, 0x0005fffe); /* -2 to 5 */
    s = REAL(real_bound, .eax = 6);
    CHECK_VECTOR(&s, EXC_BR);
    CHECK_EQ(get16(w, STACK - 6), 0);
    s = REAL(real_bound, .eax = 0x1fffe);
    CHECK_VECTOR(&s, -1);
    s = REAL(real_aam, .eax = 5);
    CHECK_VECTOR(&s, EXC_DE);
    s = REAL(real_lldt, .eax = 0);
    CHECK_VECTOR(&s, EXC_UD);
    s = REAL(real_arpl, .eax = 0);
    CHECK_VECTOR(&s, EXC_UD);
    s = REAL(real_lock, .eax = 0);
    CHECK_VECTOR(&s, EXC_UD);
    /* more than 15 bytes are #GP, whatever they would be */
    s = REAL(real_long, .eax = 0);
    CHECK_VECTOR(&s, EXC_GP);
    s = REAL(real_longest, .eax = 0);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.rip, 16);
}

static void test_real_stack(struct world *w)
{
    struct x86_state s = REAL(real_push_sp, .sp = 0x1000);
    CHECK_EQ(get16(w, 0xffe), 0x1000);
    put16(w, 0x1000, 0x4444);
    s = REAL(real_pop_sp, .sp = 0x1000);
    CHECK_EQ(s.gpr[RSP], 0x4444);
    /* SDM vol. 2, PUSHA, real-address mode: #GP with SP 7, 9, 11, 13, 15 */
    for (uint32_t sp = 7; sp <= 15; sp += 2) {
        s = REAL(real_pusha, .sp = sp);
        CHECK_VECTOR(&s, EXC_GP);
        CHECK_EQ(s.gpr[RSP], sp - 6);
    }
    s = REAL(real_pusha, .sp = 16);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RSP], 0);
    s = REAL(real_pusha, .sp = 8); /* it wraps between two words */
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RSP], 0xfff8);
    s = REAL(real_pushad, .sp = 15);
    CHECK_VECTOR(&s, EXC_GP);
    /* a stack segment that was loaded in protected mode with B set is one of ESP, for interrupts as for PUSH */
    real_mode(w, &s);
    s.segment[SS] = (struct x86_segment){0, 0xc093, 0xffffffff, 0};
    s.gpr[RSP] = 0x48000;
    CHECK_EQ(RUN(w, &s, real_int), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, 0x21);
    CHECK_EQ(s.gpr[RSP], 0x48000 - 6);
    CHECK_EQ(get16(w, 0x48000 - 4), CODE / 16);
}

static void test_real_limits(struct world *w)
{
    struct x86_state s = REAL(real_far, .eax = 0);
    CHECK_VECTOR(&s, EXC_GP);
    s = REAL(real_near, .eax = 0);
    CHECK_VECTOR(&s, EXC_GP);
    s = REAL(real_loop, .ecx = 0x10002); /* 67h: ECX */
    CHECK_EQ(s.gpr[RAX], 2);
    CHECK_EQ(s.gpr[RCX], 0);
    s = REAL(real_rep, .ecx = 0x10000, .esi = 0xffff); /* CX is 0: nothing is touched */
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RCX], 0x10000);
    s = REAL(real_string, .esi = 0xffff);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(s.gpr[RSI], 0xffff);
    s = REAL(real_string, .esi = 0x1fffe); /* SI wraps, the upper half stays */
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.gpr[RSI], 0x10000);
}

/* ---- table registers ---- */

GUEST(tables16, 32, "data16 lgdt 0x40000; data16 sgdt 0x40010; lgdt 0x40000; sgdt 0x40020; hlt");

static void test_table_registers(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    put16(w, DATA, 0x1234);
    put32(w, DATA + 2, 0x89abcdef);
    CHECK_EQ(RUN(w, &s, tables16), CPU_EXIT_HALT);
    CHECK_EQ(get64(w, DATA + 0x10) & 0xffffffffffff, UINT64_C(0x00abcdef1234)); /* loads 24 bits, stores all 32 */
    CHECK_EQ(get64(w, DATA + 0x20) & 0xffffffffffff, UINT64_C(0x89abcdef1234));
}

/* ---- x87 images: 14 and 94 bytes, 28 and 108 ---- */

GUEST(image16, 16, "fninit; fld1; fnstenv 0x1000; fnsave 0x1100; hlt");
GUEST(image16_66, 16, "fninit; fld1; data32 fnstenv 0x1000; data32 fnsave 0x1100; hlt");
GUEST(image32, 32, "fninit; fld1; fnstenv 0x1000; fnsave 0x1100; hlt");
GUEST(image32_66, 32, "fninit; fld1; data16 fnstenv 0x1000; data16 fnsave 0x1100; hlt");

static void check_images(struct world *w, bool wide)
{
    unsigned environment = wide ? 28 : 14, width = environment / 7;
    CHECK_EQ(get16(w, 0x1000), 0x37f);
    CHECK_EQ(get16(w, 0x1000 + width), 0x3800);
    CHECK_EQ(get16(w, 0x1000 + 2 * width), 0x3fff);
    CHECK_EQ(get16(w, 0x1100), 0x37f); /* FNSTENV masked what it had not stored as masked; it all was */
    CHECK_EQ(get64(w, 0x1100 + environment), UINT64_C(1) << 63);
    CHECK_EQ(get16(w, 0x1100 + environment + 8), 0x3fff);
    CHECK_EQ(get16(w, 0x1000 + environment), 0xcccc);       /* nothing behind it */
    CHECK_EQ(get16(w, 0x1100 + environment + 80), 0xcccc);
}

static void test_x87_images(struct world *w)
{
    struct x86_state s;
    for (unsigned i = 0; i < 6; i++) {
        for (unsigned at = 0; at < 0x200; at += 8)
            put64(w, 0x1000 + at, UINT64_C(0xcccccccccccccccc));
        bool wide = i & 1;
        if (i < 2)
            real_mode(w, &s);
        else if (i < 4)
            v86_mode(w, &s, 3);
        else
            protected_mode(w, &s);
        enum cpu_exit exit = i < 4 ? wide ? RUN(w, &s, image16_66) : RUN(w, &s, image16)
                                   : wide ? RUN(w, &s, image32) : RUN(w, &s, image32_66);
        CHECK_EQ(exit, CPU_EXIT_HALT);
        check_images(w, wide);
    }
}

/* ---- stores of x87, MMX and SSE write a device, and do not read it; one that an exception forbids does neither ---- */

#define DEVICE 0xe0000010u

GUEST(to_mmx, 64, "movq %mm6, (%rdi); hlt");
GUEST(to_real8, 64, "fld1; fstpl (%rdi); hlt");
GUEST(to_real10, 64, "fld1; fstpt (%rdi); hlt");
GUEST(to_int4, 64, "fld1; fistpl (%rdi); hlt");
GUEST(to_bcd, 64, "fld1; fbstp (%rdi); hlt");
GUEST(to_control, 64, "fnstcw (%rdi); hlt");
GUEST(to_environment, 64, "fnstenv (%rdi); hlt");
GUEST(to_half, 64, "movlps %xmm1, (%rdi); hlt");
GUEST(to_vector, 64, "movups %xmm1, (%rdi); hlt");
GUEST(to_mxcsr, 64, "stmxcsr (%rdi); hlt");
GUEST(to_nti, 64, "movnti %rax, (%rdi); hlt");
GUEST(to_int2, 64, "fldcw (%rsi); fildll 8(%rsi); fists (%rdi); hlt");
GUEST(to_inexact, 64, "fldcw (%rsi); fldl 8(%rsi); fists (%rdi); hlt");

#define TO(name, writes) try_store(w, name##_begin, name##_end, writes)
static void try_store(struct world *w, const uint8_t *begin, const uint8_t *end, unsigned writes)
{
    struct x86_state s;
    long_mode(w, &s);
    s.gpr[RDI] = DEVICE;
    s.gpr[RSI] = DATA;
    w->mmio_reads = w->mmio_writes = 0;
    CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(w->mmio_reads, 0);
    CHECK_EQ(w->mmio_writes, writes);
}

static void test_stores_to_a_device(struct world *w)
{
    TO(to_mmx, 1);
    TO(to_real8, 1);
    TO(to_real10, 2);
    TO(to_int4, 1);
    TO(to_bcd, 2);
    TO(to_control, 1);
    TO(to_environment, 7);
    TO(to_half, 1);
    TO(to_vector, 2);
    TO(to_mxcsr, 1);
    TO(to_nti, 1);
    put16(w, DATA, 0x37f);
    put64(w, DATA + 8, UINT64_C(1) << 40);
    TO(to_int2, 1); /* masked: the indefinite integer */
    put16(w, DATA, 0x37e);
    TO(to_int2, 0);
    put64(w, DATA + 8, UINT64_C(0x3ff8000000000000)); /* 1.5 */
    put16(w, DATA, 0x35f);
    TO(to_inexact, 1); /* stored all the same */
    /* likewise where the operand goes on in another page */
    struct x86_state s;
    for (unsigned unmasked = 0; unmasked < 2; unmasked++) {
        long_mode(w, &s);
        s.gpr[RDI] = DATA + 0xfff;
        s.gpr[RSI] = DATA;
        put16(w, DATA, unmasked ? 0x37e : 0x37f);
        put64(w, DATA + 8, UINT64_C(1) << 40);
        put16(w, DATA + 0xfff, 0x1234);
        CHECK_EQ(RUN(w, &s, to_int2), CPU_EXIT_HALT);
        CHECK_EQ(get16(w, DATA + 0xfff), unmasked ? 0x1234 : 0x8000);
    }
}

/* ---- what the processor delivers by itself has EXT in its error codes; INT1 too, INT3 and INTO not ---- */

GUEST(ext_ud, 32, "ud2; hlt");
GUEST(ext_de, 32, "xor %ecx, %ecx; div %ecx; hlt");
GUEST(ext_int1, 32, ".byte 0xf1; hlt");
GUEST(ext_int3, 32, "int3; hlt");
GUEST(ext_into, 32, "into; hlt");

static void try_ext(struct world *w, const uint8_t *begin, const uint8_t *end, uint8_t vector, unsigned ext)
{
    const struct {
        uint64_t gate;
        int vector;
        uint32_t error;
    } cases[] = {
        {gate(CODE32, HANDLERS, 0x0e), EXC_NP, vector * 8u + 2},
        {gate(CODE32, HANDLERS, 0x80), EXC_GP, vector * 8u + 2},
        {gate(DATA0, HANDLERS, 0x8e), EXC_GP, DATA0},
        {gate(0, HANDLERS, 0x8e), EXC_GP, 0},
        {gate(0x7f8 + 8, HANDLERS, 0x8e), EXC_GP, 0x800},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct x86_state s;
        protected_mode(w, &s);
        s.rflags |= EFLAGS_OF;
        put64(w, IDT + 8 * vector, cases[i].gate);
        CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
        /* a contributory exception, met while another is delivered, is a double fault */
        bool doubled = vector == EXC_DE;
        CHECK_VECTOR(&s, doubled ? EXC_DF : cases[i].vector);
        CHECK_EQ(get32(w, s.gpr[RSP]), doubled ? 0 : cases[i].error | ext);
    }
}
#define EXT(name, vector, ext) try_ext(w, name##_begin, name##_end, vector, ext)

static void test_external_bit(struct world *w)
{
    EXT(ext_ud, EXC_UD, 1);
    EXT(ext_de, EXC_DE, 1);
    EXT(ext_int1, EXC_DB, 1);
    EXT(ext_int3, EXC_BP, 0);
    EXT(ext_into, EXC_OF, 0);
}

/* ---- code that goes on in a page that is not there: the fault is at that page's first byte ---- */

GUEST(half_there, 64, "mov $0x1122334455667788, %rax; hlt");

static void test_half_an_instruction(struct world *w)
{
    for (unsigned in_first = 1; in_first < 10; in_first++) {
        struct x86_state s;
        long_mode(w, &s);
        uint64_t at = CODE + 0x1000 - in_first;
        CHECK(guest_mem_write(&w->mem, at, half_there_begin, (uint64_t)(half_there_end - half_there_begin)));
        put64(w, TABLES + 0x6000 + 8 * ((CODE + 0x1000) >> 12), 0);
        s.rip = at;
        cpu_set_state(w->cpu, &s);
        CHECK_EQ(cpu_run(w->cpu), CPU_EXIT_HALT);
        cpu_get_state(w->cpu, &s);
        CHECK_VECTOR(&s, EXC_PF);
        CHECK_EQ(s.cr2, CODE + 0x1000);
        CHECK_EQ(get64(w, s.gpr[RSP]), PF_I);
        CHECK_EQ(get64(w, s.gpr[RSP] + 8), at);
    }
}

/* ---- XCR0 ---- */

GUEST(set_xcr0, 64, "xsetbv; hlt");

static void try_xcr0(struct world *w, uint32_t number, uint64_t value, int vector)
{
    struct x86_state s;
    long_mode(w, &s);
    s.gpr[RCX] = number;
    s.gpr[RAX] = (uint32_t)value;
    s.gpr[RDX] = value >> 32;
    CHECK_EQ(RUN(w, &s, set_xcr0), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, vector);
    CHECK_EQ(s.xcr0, vector < 0 ? value : 7);
}

static void test_xcr0(struct world *w)
{
    if (!__builtin_cpu_supports("avx"))
        return;
    try_xcr0(w, 0, 1, -1);
    try_xcr0(w, 0, 3, -1);
    try_xcr0(w, 0, 7, -1);
    try_xcr0(w, 0, 0, EXC_GP); /* x87 always */
    try_xcr0(w, 0, 2, EXC_GP);
    try_xcr0(w, 0, 5, EXC_GP); /* AVX without SSE */
    try_xcr0(w, 0, UINT64_C(1) << 63 | 7, EXC_GP);
    try_xcr0(w, 0, 0xf, EXC_GP);
    try_xcr0(w, 1, 7, EXC_GP);
}

/* ---- a 16-bit stack's end: a far call's two pushes may lie on both sides of it, neither across (as silicon has it) ---- */

GUEST(calls_far, 32, "lcall $0x18, $0x10007; hlt");

static void test_stack_wraps(struct world *w)
{
    static const uint32_t limits[] = {0xffff, 0xfffb};
    for (unsigned i = 0; i < ARRAY_LEN(limits); i++)
        for (uint32_t sp = 0; sp <= 8; sp++) {
            struct x86_state s;
            protected_mode(w, &s);
            s.segment[SS] = (struct x86_segment){DATA16, 0x0093, limits[i], 0};
            s.gpr[RSP] = sp;
            bool fits = sp % 4 == 0 && (limits[i] == 0xffff || sp == 8);
            /* else #SS, for which there is no room either */
            CHECK_EQ(RUN(w, &s, calls_far), fits ? CPU_EXIT_HALT : CPU_EXIT_SHUTDOWN);
            if (!fits)
                continue;
            CHECK_EQ(s.rip, CODE + 8);
            CHECK_EQ(s.gpr[RSP] & 0xffff, (sp - 8) & 0xffff);
            CHECK_EQ(get32(w, (sp - 4) & 0xffff), CODE32);
            CHECK_EQ(get32(w, (sp - 8) & 0xffff), CODE + 7);
        }
}

/* ---- XSAVES and XRSTORS: XSAVEC's format, ring 0's; IA32_XSS has no bit ---- */

GUEST(saves, 64, "xsaves (%rsi); hlt");
GUEST(restores, 64, "xrstors (%rsi); hlt");
GUEST(xss, 64, "mov $0xda0, %ecx; rdmsr; wrmsr; inc %eax; wrmsr; hlt");
GUEST(asks_sizes, 64, "mov $0xd, %eax; mov $1, %ecx; cpuid; hlt");

static bool has_xsaves(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    CHECK_EQ(RUN(w, &s, asks_sizes), CPU_EXIT_HALT);
    if (!(s.gpr[RAX] & 8))
        return false;
    CHECK_EQ(s.gpr[RBX], 832); /* XCR0 is 7 */
    CHECK_EQ(s.gpr[RCX], 0);
    CHECK_EQ(s.gpr[RDX], 0);
    return true;
}

static void begin_xsaves(struct world *w, struct x86_state *s)
{
    long_mode(w, s);
    s->gpr[RSI] = DATA;
    s->gpr[RAX] = s->gpr[RDX] = 0xffffffff;
    s->xsave[512] = XCR0_SSE;
    memset(s->xsave + 160, 0x11, 16);
}

static void try_restores(struct world *w, unsigned at, uint64_t value, int vector)
{
    struct x86_state s;
    uint64_t before = get64(w, DATA + at);
    put64(w, DATA + at, value);
    begin_xsaves(w, &s);
    CHECK_EQ(RUN(w, &s, restores), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, vector);
    put64(w, DATA + at, before);
}

static void test_xsaves(struct world *w)
{
    struct x86_state s;
    if (!__builtin_cpu_supports("avx") || !has_xsaves(w))
        return;
    for (unsigned i = 0; i < 832; i += 8)
        put64(w, DATA + i, UINT64_C(0x9999999999999999));
    begin_xsaves(w, &s);
    CHECK_EQ(RUN(w, &s, saves), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(get64(w, DATA + 512), XCR0_SSE); /* x87 and the upper halves are initial */
    CHECK_EQ(get64(w, DATA + 520), BIT(63) | 7);
    CHECK_EQ(get64(w, DATA + 160), UINT64_C(0x1111111111111111));
    CHECK_EQ(get32(w, DATA + 24), 0x1f80);
    CHECK_EQ(get64(w, DATA + 576), UINT64_C(0x9999999999999999)); /* not written */
    for (unsigned i = 528; i < 576; i += 8)
        put64(w, DATA + i, 0);
    put64(w, DATA + 160, 42);
    begin_xsaves(w, &s);
    CHECK_EQ(RUN(w, &s, restores), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(load_le64(s.xsave + 160), 42);
    try_restores(w, 520, 0, EXC_GP); /* not compacted */
    try_restores(w, 520, 7, EXC_GP);
    try_restores(w, 520, BIT(63) | 5, EXC_GP);     /* without what is in use */
    try_restores(w, 520, BIT(63) | 0x107, EXC_GP); /* with what XCR0 and IA32_XSS have not */
    try_restores(w, 568, 1, EXC_GP);
    try_restores(w, 24, BIT(31), EXC_GP); /* a reserved bit of MXCSR */
    begin_xsaves(w, &s);
    to_user(&s);
    CHECK_EQ(RUN(w, &s, saves), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    begin_xsaves(w, &s);
    s.cr4 &= ~(uint64_t)CR4_OSXSAVE;
    CHECK_EQ(RUN(w, &s, restores), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    begin_xsaves(w, &s);
    s.gpr[RSI] += 32;
    CHECK_EQ(RUN(w, &s, saves), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    long_mode(w, &s);
    CHECK_EQ(RUN(w, &s, xss), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* of the second WRMSR */
    CHECK_EQ(s.gpr[RAX], 1);
    CHECK_EQ(s.gpr[RDX], 0);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_real_flags(&w);
    test_real_interrupts(&w);
    test_real_stack(&w);
    test_real_limits(&w);
    test_table_registers(&w);
    test_x87_images(&w);
    test_stores_to_a_device(&w);
    test_external_bit(&w);
    test_half_an_instruction(&w);
    test_xcr0(&w);
    test_stack_wraps(&w);
    test_xsaves(&w);
    world_destroy(&w);
    return check_report();
}
