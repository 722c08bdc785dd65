/* SPDX-License-Identifier: MIT */
/* Segments: loads and their faults, limits and types, expand-down, wrap-arounds, stack or general-protection faults,
 * canonical addresses, in 16-, 32- and 64-bit code (SDM vol. 3, chapters 3, 5 and 20). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

/* The code stopped in this handler (-1: at its own HLT), with this error code, at this offset. */
static void check_fault(struct world *w, const struct x86_state *s, int vector, uint32_t error, uint64_t offset)
{
    unsigned size = s->efer & EFER_LMA ? 8 : 4;
    CHECK_VECTOR(s, vector);
    if (vector < 0 || stopped_in(s) != vector)
        return;
    CHECK_EQ(get32(w, s->gpr[RSP]), error);
    CHECK_EQ(get(w, s->gpr[RSP] + size, size), CODE + offset);
}

/* ---- loads ---- */

GUEST(load_ds32, 32, "mov %ax, %ds; hlt");
GUEST(load_ss32, 32, "mov %ax, %ss; hlt");
GUEST(load_ds64, 64, "mov %eax, %ds; hlt");
GUEST(load_ss64, 64, "mov %eax, %ss; hlt");
GUEST(load_cs, 32, ".byte 0x8e, 0xc8; hlt"); /* mov %ax, %cs */

static void try_load(struct world *w, bool ss, bool user, uint16_t selector, uint64_t entry, int vector)
{
    struct x86_state s;
    for (unsigned wide = 0; wide < 2; wide++) {
        (wide ? long_mode : protected_mode)(w, &s);
        if (user)
            to_user(&s);
        put64(w, GDT + FREE_SEL, entry);
        s.gpr[RAX] = selector;
        const uint8_t *begin = wide ? (ss ? load_ss64_begin : load_ds64_begin) : ss ? load_ss32_begin : load_ds32_begin;
        CHECK_EQ(run(w, &s, begin, begin + (wide ? 3 : 4)), CPU_EXIT_HALT);
        if (vector < 0) {
            uint32_t next = wide ? 2 : 3;
            if (user)
                check_fault(w, &s, EXC_GP, 0, next - (wide ? 0 : 1));
            else
                CHECK_VECTOR(&s, -1);
        } else {
            check_fault(w, &s, vector, selector & 0xfffc, 0);
        }
    }
}

static void test_loads(struct world *w)
{
    const uint64_t none = 0;
    try_load(w, false, false, FREE_SEL, descriptor(0, 0xfffff, 0xc093), -1);
    try_load(w, false, false, FREE_SEL, descriptor(0, 0xfffff, 0xc091), -1);       /* read-only */
    try_load(w, false, false, FREE_SEL, descriptor(0, 0xfffff, 0xc013), EXC_NP);
    try_load(w, false, false, FREE_SEL, descriptor(0, 0xfffff, 0xc099), EXC_GP);   /* execute-only code */
    try_load(w, false, false, FREE_SEL, descriptor(0, 0xfffff, 0xc09b), -1);       /* readable code */
    try_load(w, false, false, FREE_SEL, descriptor(0, 0x67, 0x0089), EXC_GP);      /* a TSS */
    try_load(w, false, false, 0x7f8 + 8, none, EXC_GP);                            /* beyond the table */
    try_load(w, false, false, 0x0c, none, EXC_GP);                                 /* no LDT */
    try_load(w, false, false, 0, none, -1);
    try_load(w, false, false, 3, none, -1);
    try_load(w, false, false, FREE_SEL | 3, descriptor(0, 0xfffff, 0xc093), EXC_GP); /* RPL 3 for DPL 0 */
    try_load(w, false, false, FREE_SEL | 3, descriptor(0, 0xfffff, 0xc09f), -1);     /* conforming: never mind */
    try_load(w, false, true, FREE_SEL | 3, descriptor(0, 0xfffff, 0xc093), EXC_GP);
    try_load(w, false, true, FREE_SEL, descriptor(0, 0xfffff, 0xc0f3), -1);
    try_load(w, true, false, FREE_SEL, descriptor(0, 0xfffff, 0xc093), -1);
    try_load(w, true, false, FREE_SEL, descriptor(0, 0xfffff, 0xc091), EXC_GP);    /* not writable */
    try_load(w, true, false, FREE_SEL, descriptor(0, 0xfffff, 0xc013), EXC_SS);
    try_load(w, true, false, FREE_SEL, descriptor(0, 0xfffff, 0xc0f3), EXC_GP);    /* DPL 3 in ring 0 */
    try_load(w, true, false, FREE_SEL | 1, descriptor(0, 0xfffff, 0xc093), EXC_GP);
    try_load(w, true, false, FREE_SEL, descriptor(0, 0xfffff, 0xc09b), EXC_GP);
    try_load(w, true, true, FREE_SEL | 3, descriptor(0, 0xfffff, 0xc0f3), -1);
    try_load(w, true, true, FREE_SEL, descriptor(0, 0xfffff, 0xc0f3), EXC_GP);

    struct x86_state s;
    protected_mode(w, &s); /* a null stack segment: only in 64-bit mode, and not in ring 3 */
    s.gpr[RAX] = 0;
    CHECK_EQ(RUN(w, &s, load_ss32), CPU_EXIT_HALT);
    check_fault(w, &s, EXC_GP, 0, 0);
    long_mode(w, &s);
    s.gpr[RAX] = 0;
    CHECK_EQ(RUN(w, &s, load_ss64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    long_mode(w, &s);
    to_user(&s);
    s.gpr[RAX] = 3;
    CHECK_EQ(RUN(w, &s, load_ss64), CPU_EXIT_HALT);
    check_fault(w, &s, EXC_GP, 0, 0);
    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, load_cs), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    /* a load marks the descriptor */
    protected_mode(w, &s);
    put64(w, GDT + FREE_SEL, descriptor(0, 0xfffff, 0xc092));
    s.gpr[RAX] = FREE_SEL;
    CHECK_EQ(RUN(w, &s, load_ds32), CPU_EXIT_HALT);
    CHECK_EQ(get(w, GDT + FREE_SEL + 5, 1), 0x93);
}

/* ---- accesses ---- */

GUEST(read_gs, 32, "mov %gs:(%edi), %eax; hlt");
GUEST(write_gs, 32, "mov %eax, %gs:(%edi); hlt");
GUEST(read_gs_byte, 32, "mov %gs:(%edi), %al; hlt");

static void try_access(struct world *w, const uint8_t *begin, const uint8_t *end, uint32_t attributes, uint32_t limit, uint32_t offset,
                       bool allowed)
{
    struct x86_state s;
    protected_mode(w, &s);
    s.segment[GS] = (struct x86_segment){FREE_SEL, attributes, limit, DATA};
    s.gpr[RDI] = offset;
    CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
    check_fault(w, &s, allowed ? -1 : EXC_GP, 0, 0);
}
#define TRY(name, attributes, limit, offset, allowed) try_access(w, name##_begin, name##_end, attributes, limit, offset, allowed)

static void test_limits(struct world *w)
{
    TRY(read_gs, 0x4093, 0xfff, 0xffc, true);
    TRY(read_gs, 0x4093, 0xfff, 0xffd, false);
    TRY(read_gs_byte, 0x4093, 0xfff, 0xfff, true);
    TRY(read_gs_byte, 0x4093, 0xfff, 0x1000, false);
    TRY(write_gs, 0x4093, 0xfff, 0xffc, true);
    TRY(write_gs, 0x4093, 0xfff, 0xfffffffe, false);
    TRY(write_gs, 0x4091, 0xfff, 0, false);  /* read-only */
    TRY(read_gs, 0x4091, 0xfff, 0, true);
    TRY(read_gs, 0x4099, 0xfff, 0, false);   /* execute-only */
    TRY(read_gs, 0x409b, 0xfff, 0, true);
    TRY(write_gs, 0x409b, 0xfff, 0, false);  /* code is never written */
    TRY(read_gs, SEG_UNUSABLE, 0xffffffff, 0, false);
    /* expand-down: valid above the limit, up to FFFFh or FFFFFFFFh */
    TRY(read_gs, 0x4097, 0xfff, 0xfff, false);
    TRY(read_gs, 0x4097, 0xfff, 0x1000, true);
    TRY(read_gs, 0x0097, 0xfff, 0xfffc, true);
    TRY(read_gs, 0x0097, 0xfff, 0xfffd, false);
    TRY(read_gs, 0x4097, 0xfff, 0xfffd, true);
}

GUEST(push32, 32, "push %eax; hlt");
GUEST(pop32, 32, "pop %eax; hlt");
GUEST(base_ebp, 32, "mov 4(%ebp), %eax; hlt");
GUEST(base_ebp_ds, 32, "mov %ds:4(%ebp), %eax; hlt");
GUEST(call32, 32, "call 1f; 1: hlt");
GUEST(enter32, 32, "enter $16, $0; hlt");
GUEST(pusha32, 32, "pusha; hlt");

static void try_stack(struct world *w, const uint8_t *begin, const uint8_t *end, int vector)
{
    struct x86_state s;
    protected_mode(w, &s);
    /* the faults' own frames go to another stack: a ring-0 gate would push on this one */
    to_user(&s);
    s.segment[SS] = (struct x86_segment){USER_DATA, 0x40f3, 0xfff, DATA};
    s.gpr[RSP] = vector == EXC_SS && begin == pop32_begin ? 0xffe : 0x2000;
    s.gpr[RBP] = 0xffa;
    CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, vector);
    if (vector == EXC_SS) {
        CHECK_EQ(get32(w, s.gpr[RSP]), 0);
        CHECK_EQ(get32(w, s.gpr[RSP] + 4), CODE);
    }
}

static void test_stack_faults(struct world *w)
{
    try_stack(w, push32_begin, push32_end, EXC_SS);
    try_stack(w, pop32_begin, pop32_end, EXC_SS);
    try_stack(w, base_ebp_begin, base_ebp_end, EXC_SS);
    try_stack(w, base_ebp_ds_begin, base_ebp_ds_end, EXC_GP); /* its HLT: DS has no such limit */
    try_stack(w, call32_begin, call32_end, EXC_SS);
    try_stack(w, enter32_begin, enter32_end, EXC_SS);
    try_stack(w, pusha32_begin, pusha32_end, EXC_SS);
}

/* ---- 64-bit: canonical or not ---- */

GUEST(read_rax, 64, "mov (%rax), %ecx; hlt");
GUEST(read_rbp, 64, "mov (%rbp), %ecx; hlt");
GUEST(read_rsp, 64, "mov 8(%rsp), %ecx; hlt");
GUEST(read_r13, 64, "mov (%r13), %ecx; hlt");
GUEST(read_fs_rbp, 64, "mov %fs:(%rbp), %ecx; hlt");
GUEST(push64, 64, "push %rcx; hlt");
GUEST(push_mem, 64, "push (%rax); hlt");
GUEST(pop64, 64, "pop %rcx; hlt");
GUEST(call64, 64, "call 1f; 1: hlt");
GUEST(ret64, 64, "ret; hlt");
GUEST(pushf64, 64, "pushfq; hlt");
GUEST(jump64, 64, "jmp *%rax; hlt");
GUEST(lodsb64, 64, "lodsb; hlt");
GUEST(string_end, 64, "mov (%rdx), %rcx; hlt");
GUEST(masked_end, 64, "vmaskmovpd (%rdx), %xmm1, %xmm0; hlt");

static void try_canonical(struct world *w, const uint8_t *begin, const uint8_t *end, bool bad_stack, int vector)
{
    struct x86_state s;
    long_mode(w, &s);
    to_user(&s); /* faults come on the TSS's stack */
    s.gpr[RAX] = s.gpr[RBP] = s.gpr[R13] = s.gpr[RSI] = UINT64_C(0x8000000000000000);
    s.gpr[RDX] = UINT64_C(0x00007ffffffffffc);
    if (bad_stack)
        s.gpr[RSP] = UINT64_C(0x0000800000000008);
    CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
    check_fault(w, &s, vector, 0, 0);
}
#define CANONICAL(name, bad_stack, vector) try_canonical(w, name##_begin, name##_end, bad_stack, vector)

static void test_canonical(struct world *w)
{
    CANONICAL(read_rax, false, EXC_GP);
    CANONICAL(read_rbp, false, EXC_SS);
    CANONICAL(read_rsp, true, EXC_SS);
    CANONICAL(read_r13, false, EXC_GP);
    CANONICAL(read_fs_rbp, false, EXC_GP);
    CANONICAL(push64, true, EXC_SS);
    CANONICAL(push_mem, false, EXC_GP);
    CANONICAL(pop64, true, EXC_SS);
    CANONICAL(call64, true, EXC_SS);
    CANONICAL(ret64, true, EXC_SS);
    CANONICAL(pushf64, true, EXC_SS);
    CANONICAL(jump64, false, EXC_GP);
    CANONICAL(lodsb64, false, EXC_GP);
    /* the first half is canonical, and not present; the page fault of it comes before the other's #GP */
    struct x86_state s;
    long_mode(w, &s);
    s.gpr[RDX] = UINT64_C(0x00007ffffffffffc);
    CHECK_EQ(RUN(w, &s, string_end), CPU_EXIT_HALT);
    CHECK(stopped_in(&s) == EXC_PF || stopped_in(&s) == EXC_GP);
    if (!__builtin_cpu_supports("avx"))
        return;
    /* as the host's processor has it, however the element is read */
    for (unsigned checked = 0; checked < 2; checked++) {
        long_mode(w, &s);
        to_user(&s);
        s.cr0 |= CR0_AM;
        s.rflags |= checked ? EFLAGS_AC : 0;
        s.gpr[RDX] = UINT64_C(0x00007ffffffffffc);
        s.xsave[512] |= 3;
        memset(s.xsave + 160 + 16, 0xff, 16);
        CHECK_EQ(RUN(w, &s, masked_end), CPU_EXIT_HALT);
        check_fault(w, &s, EXC_GP, 0, 0);
    }
}

/* ---- real mode: 64 KiB, and no wrap within an operand ---- */

GUEST(real_word, 16, "mov (%bx), %ax; hlt");
GUEST(real_byte, 16, "mov (%bx), %al; hlt");
GUEST(real_ss, 16, "mov (%bp), %ax; hlt");
GUEST(real_dword, 16, "mov (%ebx), %al; hlt");
GUEST(real_push, 16, "pushw %ax; hlt");
GUEST(real_pop, 16, "popw %ax; hlt");
GUEST(real_wrap, 16, "mov 2(%bx), %al; hlt");
GUEST(real_vex, 16, ".byte 0xc5, 0xf8, 0x28, 0xc0; hlt");

static void try_real(struct world *w, const uint8_t *begin, const uint8_t *end, uint32_t bx, uint16_t sp, int vector)
{
    struct x86_state s;
    real_mode(w, &s);
    put16(w, 0, 0xbeef); /* also the IVT's first entry */
    s.gpr[RBX] = s.gpr[RBP] = bx;
    s.gpr[RSP] = sp;
    CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, vector);
    if (vector >= 0)
        CHECK_EQ(get16(w, s.gpr[RSP] & 0xffff), 0);
}
#define REAL(name, bx, sp, vector) try_real(w, name##_begin, name##_end, bx, sp, vector)

static void test_real_mode(struct world *w)
{
    REAL(real_word, 0xfffe, STACK, -1);
    REAL(real_word, 0xffff, STACK, EXC_GP);
    REAL(real_byte, 0xffff, STACK, -1);
    REAL(real_ss, 0xffff, STACK, EXC_SS);
    REAL(real_dword, 0x10000, STACK, EXC_GP);
    REAL(real_push, 0, 0, -1); /* SP wraps to FFFEh */
    REAL(real_wrap, 0xffff, STACK, -1); /* the address is computed modulo 64 KiB */
    REAL(real_vex, 0, STACK, EXC_UD);
    struct x86_state s;
    real_mode(w, &s); /* a push at SP 1 has no place, nor has the fault's frame: shutdown */
    s.gpr[RSP] = 1;
    CHECK_EQ(RUN(w, &s, real_push), CPU_EXIT_SHUTDOWN);
    real_mode(w, &s); /* big real mode: limits stay as protected mode left them */
    s.segment[DS].limit = 0xffffffff;
    s.gpr[RBX] = 0x200000;
    put(w, 0x200000, 0x5a, 1);
    CHECK_EQ(RUN(w, &s, real_dword), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX] & 0xff, 0x5a);

    /* code runs up to FFFFh, and not around */
    real_mode(w, &s);
    static const uint8_t at_end[] = {0x40, 0x40};
    guest_mem_write(&w->mem, CODE + 0xfffe, at_end, 2);
    s.rip = 0xfffe;
    static const uint8_t halt[] = {0xf4};
    CHECK_EQ(run(w, &s, halt, halt + 1), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(s.gpr[RAX], 2);
    real_mode(w, &s); /* nor does an instruction */
    static const uint8_t too_long[] = {0xb8, 0x34};
    guest_mem_write(&w->mem, CODE + 0xfffe, too_long, 2);
    s.rip = 0xfffe;
    CHECK_EQ(run(w, &s, halt, halt + 1), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get16(w, STACK - 6), 0xfffe);
    real_mode(w, &s); /* a relative jump does go around */
    static const uint8_t jump[] = {0xeb, 0x00};
    guest_mem_write(&w->mem, CODE + 0xfffe, jump, 2);
    s.rip = 0xfffe;
    CHECK_EQ(run(w, &s, halt, halt + 1), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    CHECK_EQ(s.rip, 1);
}

/* The same code under a shorter code segment, after it ran under a long one. */
GUEST(limited, 32, "inc %eax; inc %eax; inc %eax; hlt");
GUEST(across, 32, "mov $0x12345678, %eax; hlt");
GUEST(flush_code, 32, "clflush %cs:0x40000; hlt");
GUEST(read_code, 32, "mov %cs:0x40000, %al; hlt");

/* The limit of the code segment is found before the page behind it is asked for. */
static void test_limit_before_page(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s); /* for its tables; the code is compatibility mode's */
    s.segment[CS] = (struct x86_segment){CODE32, 0xc09b, 0x10fff, 0};
    s.rip = 0x10ffe;
    CHECK(guest_mem_write(&w->mem, s.rip, across_begin, 5));
    put64(w, TABLES + 0x6000 + 8 * 0x11, 0); /* the next page is not there */
    cpu_set_state(w->cpu, &s);
    CHECK_EQ(cpu_run(w->cpu), CPU_EXIT_HALT);
    cpu_get_state(w->cpu, &s);
    CHECK_VECTOR(&s, EXC_GP);
}

/* CLFLUSH may name an execute-only segment; a load may not (SDM vol. 2, CLFLUSH). */
static void test_execute_only(struct world *w)
{
    struct x86_state s;
    for (unsigned read = 0; read < 2; read++) {
        protected_mode(w, &s);
        s.segment[CS].attributes &= ~SEG_WRITE_READ;
        CHECK_EQ(read ? RUN(w, &s, read_code) : RUN(w, &s, flush_code), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, read ? EXC_GP : -1);
    }
}

static void test_code_limit(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, limited), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, -1);
    protected_mode(w, &s);
    s.segment[CS].limit = CODE + 1;
    CHECK_EQ(RUN(w, &s, limited), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], 2);
    check_fault(w, &s, EXC_GP, 0, 2);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_loads(&w);
    test_limits(&w);
    test_stack_faults(&w);
    test_canonical(&w);
    test_real_mode(&w);
    test_code_limit(&w);
    test_execute_only(&w);
    test_limit_before_page(&w);
    world_destroy(&w);
    return check_report();
}
