/* SPDX-License-Identifier: MIT */
/* Interrupt, trap and call gates, returns, error codes with EXT, double and triple faults, NMI, alignment checks
 * (SDM vol. 3, chapters 5 and 6). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

/* ---- interrupt gates ---- */

GUEST(int40_32, 32, "int $0x40; hlt");
GUEST(int40_64, 64, "int $0x40; hlt");

static void try_gate(struct world *w, bool wide, bool user, uint64_t entry, int vector, uint32_t error)
{
    struct x86_state s;
    (wide ? long_mode : protected_mode)(w, &s);
    if (user)
        to_user(&s);
    put64(w, IDT + (wide ? 16 : 8) * 0x40, entry);
    CHECK_EQ(wide ? RUN(w, &s, int40_64) : RUN(w, &s, int40_32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, vector);
    if (vector != 0x40) {
        CHECK_EQ(frame(w, &s, 0), error);
        CHECK_EQ(frame(w, &s, 1), CODE); /* a fault of INT n returns to it */
    } else {
        CHECK_EQ(frame(w, &s, 0), CODE + 2);
    }
}

static void test_interrupt_gates(struct world *w)
{
    const uint32_t handler = HANDLERS + 16 * 0x40, code = 0x40 * 8 + 2;
    for (unsigned wide = 0; wide < 2; wide++) {
        uint16_t cs = wide ? CODE64 : CODE32;
        uint32_t attributes = wide ? 0xa09b : 0xc09b;
        try_gate(w, wide, false, gate(cs, handler, 0x8e), 0x40, 0);
        try_gate(w, wide, true, gate(cs, handler, 0x8e), EXC_GP, code); /* DPL 0 */
        try_gate(w, wide, true, gate(cs, handler, 0xee), 0x40, 0);
        try_gate(w, wide, true, gate(cs, handler, 0x6e), EXC_NP, code);
        try_gate(w, wide, false, gate(cs, handler, 0x8c), EXC_GP, code); /* a call gate */
        try_gate(w, wide, false, gate(cs, handler, 0x9e), EXC_GP, code); /* no system descriptor */
        try_gate(w, wide, false, gate(0, handler, 0x8e), EXC_GP, 0);
        try_gate(w, wide, false, gate(0x7f8 + 8, handler, 0x8e), EXC_GP, 0x7f8 + 8);
        try_gate(w, wide, false, gate(DATA0, handler, 0x8e), EXC_GP, DATA0);
        put64(w, GDT + FREE_SEL, descriptor(0, 0xfffff, attributes & ~SEG_P));
        try_gate(w, wide, false, gate(FREE_SEL, handler, 0x8e), EXC_NP, FREE_SEL);
        put64(w, GDT + FREE_SEL, descriptor(0, 0xfffff, attributes | 3 << SEG_DPL_SHIFT));
        try_gate(w, wide, false, gate(FREE_SEL, handler, 0x8e), EXC_GP, FREE_SEL); /* outward */
        put64(w, GDT + FREE_SEL, descriptor(0, 0xfffff, attributes | SEG_EXPAND_CONFORM));
        try_gate(w, wide, false, gate(FREE_SEL, handler, 0x8e), 0x40, 0);
    }
    try_gate(w, false, false, gate(CODE16, HANDLERS & 0xffff, 0x85), EXC_GP, CODE16); /* a task gate to no TSS */
    put64(w, GDT + FREE_SEL, descriptor(0, 0x10, 0x409b));
    try_gate(w, false, false, gate(FREE_SEL, handler, 0x8e), EXC_GP, 0); /* beyond the code segment */
    try_gate(w, true, false, gate(CODE32, handler, 0x8e), EXC_GP, CODE32); /* 32-bit code in long mode */

    /* beyond the table, and a conforming handler from ring 3 stays there */
    struct x86_state s;
    protected_mode(w, &s);
    s.idtr.limit = 0x40 * 8 + 6;
    CHECK_EQ(RUN(w, &s, int40_32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 0), 0x40 * 8 + 2);
    protected_mode(w, &s);
    to_user(&s);
    put64(w, GDT + FREE_SEL, descriptor(0, 0xfffff, 0xc09f));
    put64(w, IDT + 8 * 0x40, gate(FREE_SEL, HANDLERS + 16 * 0x40, 0xee));
    CHECK_EQ(RUN(w, &s, int40_32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* HLT in ring 3 */
    CHECK_EQ(get32(w, s.gpr[RSP] + 8), FREE_SEL | 3);
    /* 16-bit gates push words and take 16 bits of the offset */
    protected_mode(w, &s);
    put(w, 0x1240, 0xf4, 1);
    put64(w, IDT + 8 * 0x40, gate(CODE32, 0x77771240, 0x86));
    CHECK_EQ(RUN(w, &s, int40_32), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, 0x1241);
    CHECK_EQ(s.gpr[RSP], STACK - 6);
    CHECK_EQ(get16(w, STACK - 6), (CODE + 2) & 0xffff);
    /* a trap gate leaves IF, an interrupt gate does not */
    for (unsigned type = 0x8e; type <= 0x8f; type++) {
        protected_mode(w, &s);
        s.rflags |= EFLAGS_IF;
        put64(w, IDT + 8 * 0x40, gate(CODE32, HANDLERS + 16 * 0x40, type));
        CHECK_EQ(RUN(w, &s, int40_32), CPU_EXIT_HALT);
        CHECK_EQ(!!(s.rflags & EFLAGS_IF), type == 0x8f);
    }
}

/* ---- inner stacks ---- */

GUEST(undefined32, 32, "ud2; hlt");
GUEST(undefined64, 64, "ud2; hlt");
static void test_inner_stacks(struct world *w)
{
    struct x86_state s;
    static const struct {
        uint16_t selector;
        uint32_t attributes;
        int vector;
    } cases[] = {{FREE_SEL, 0xc093, EXC_UD}, {FREE_SEL, 0xc091, EXC_TS}, {FREE_SEL, 0xc013, EXC_SS},
                 {FREE_SEL, 0xc0f3, EXC_TS}, {FREE_SEL | 3, 0xc093, EXC_TS}, {0, 0xc093, EXC_TS}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        protected_mode(w, &s);
        to_user(&s);
        put64(w, GDT + FREE_SEL, descriptor(0, 0xfffff, cases[i].attributes));
        put32(w, TSS + 8, cases[i].selector);
        /* the second fault has the same TSS, unless it is in a conforming segment: no switch, so no stack is wanted */
        put64(w, GDT + FREE_SEL + 8, descriptor(0, 0xfffff, 0xc09f));
        put64(w, IDT + 8 * EXC_TS, gate(FREE_SEL + 8, HANDLERS + 16 * EXC_TS, 0x8e));
        put64(w, IDT + 8 * EXC_SS, gate(FREE_SEL + 8, HANDLERS + 16 * EXC_SS, 0x8e));
        put64(w, IDT + 8 * EXC_DF, gate(FREE_SEL + 8, HANDLERS + 16 * EXC_DF, 0x8e));
        put64(w, IDT + 8 * EXC_GP, gate(FREE_SEL + 8, HANDLERS + 16 * EXC_GP, 0x8e));
        put(w, HANDLERS + 16 * EXC_TS, 0xfeeb, 2); /* HLT is not for ring 3: loop */
        put(w, HANDLERS + 16 * EXC_SS, 0xfeeb, 2);
        guest_mem_write(&w->mem, CODE, undefined32_begin, 3);
        cpu_set_state(w->cpu, &s);
        cpu_run_count(w->cpu, 20);
        cpu_get_state(w->cpu, &s);
        s.rip += cases[i].vector != EXC_UD;
        CHECK_VECTOR(&s, cases[i].vector);
        if (cases[i].vector != EXC_UD)
            CHECK_EQ(get32(w, s.gpr[RSP]), (cases[i].selector & 0xfffc) | 1); /* EXT: an exception was being delivered */
        put(w, HANDLERS + 16 * EXC_TS, 0xf4, 2);
        put(w, HANDLERS + 16 * EXC_SS, 0xf4, 2);
    }
    put32(w, TSS + 8, DATA0);

    long_mode(w, &s); /* IST: its stack also without a change of ring; SS stays */
    put64(w, IDT + 16 * EXC_UD, gate(CODE64, HANDLERS + 16 * EXC_UD, 0x8e) | (uint64_t)3 << 32);
    put64(w, TSS + 36 + 16, 0x6018);
    CHECK_EQ(RUN(w, &s, undefined64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    CHECK_EQ(s.gpr[RSP], 0x6010 - 40);
    CHECK_EQ(s.segment[SS].selector, DATA0);
    CHECK_EQ(get64(w, s.gpr[RSP] + 24), STACK);
    long_mode(w, &s); /* from ring 3 SS becomes null */
    to_user(&s);
    CHECK_EQ(RUN(w, &s, undefined64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    CHECK_EQ(s.segment[SS].selector, 0);
    CHECK_EQ(get64(w, s.gpr[RSP] + 32), USER_DATA);
}

static void test_double_faults(struct world *w)
{
    struct x86_state s;
    for (unsigned wide = 0; wide < 2; wide++) {
        (wide ? long_mode : protected_mode)(w, &s); /* #UD, then #NP of its gate: benign and contributory come in turn */
        put64(w, IDT + (wide ? 16 : 8) * EXC_UD, gate(wide ? CODE64 : CODE32, 0, 0x0e));
        CHECK_EQ(wide ? RUN(w, &s, undefined64) : RUN(w, &s, undefined32), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, EXC_NP);
        CHECK_EQ(frame(w, &s, 0), EXC_UD * 8 + 3);
        (wide ? long_mode : protected_mode)(w, &s); /* #GP for INT, and #NP for that: a double fault */
        put64(w, IDT + (wide ? 16 : 8) * EXC_GP, gate(wide ? CODE64 : CODE32, 0, 0x0e));
        put64(w, IDT + (wide ? 16 : 8) * 0x40, 0);
        CHECK_EQ(wide ? RUN(w, &s, int40_64) : RUN(w, &s, int40_32), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, EXC_DF);
        CHECK_EQ(frame(w, &s, 0), 0);
        (wide ? long_mode : protected_mode)(w, &s); /* and that has no gate either */
        put64(w, IDT + (wide ? 16 : 8) * EXC_GP, 0);
        put64(w, IDT + (wide ? 16 : 8) * EXC_DF, 0);
        put64(w, IDT + (wide ? 16 : 8) * 0x40, 0);
        CHECK_EQ(wide ? RUN(w, &s, int40_64) : RUN(w, &s, int40_32), CPU_EXIT_SHUTDOWN);
    }
    protected_mode(w, &s); /* an external interrupt that finds no gate: #GP with EXT, no double fault */
    put64(w, IDT + 8 * 0x70, 0);
    s.rflags |= EFLAGS_IF;
    w->vector = 0x70;
    cpu_request(w->cpu, CPU_REQUEST_INTR);
    CHECK_EQ(RUN(w, &s, int40_32), CPU_EXIT_HALT);
    cpu_withdraw(w->cpu, CPU_REQUEST_INTR);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 0), 0x70 * 8 + 3);
}

/* ---- call gates and far returns ---- */

GUEST(call_gate32, 32, "push $0x11; push $0x22; lcall $0x5b, $0; hlt");
GUEST(gate_code32, 32, "mov 8(%esp), %eax; mov 12(%esp), %ebx; lret $8");
GUEST(gate_code16, 32, "mov 4(%esp), %eax; lretw $4");
static void test_call_gates(struct world *w)
{
    struct x86_state s;
    const uint32_t code = 0x11000;
    guest_mem_write(&w->mem, code, gate_code32_begin, (uint64_t)(gate_code32_end - gate_code32_begin));
    protected_mode(w, &s); /* ring 3 to 0 and back, two parameters */
    to_user(&s);
    put64(w, GDT + FREE_SEL, gate(CODE32, code, 0xec) | (uint64_t)2 << 32);
    CHECK_EQ(RUN(w, &s, call_gate32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* the HLT behind it */
    CHECK_EQ(frame(w, &s, 1), CODE + 11);
    CHECK_EQ(frame(w, &s, 2), USER_CODE32);
    CHECK_EQ(frame(w, &s, 4), USER_STACK); /* both stacks were cleared */
    CHECK_EQ(s.gpr[RAX], 0x22);
    CHECK_EQ(s.gpr[RBX], 0x11);

    protected_mode(w, &s); /* the gate's DPL, and its presence */
    to_user(&s);
    put64(w, GDT + FREE_SEL, gate(CODE32, code, 0x8c));
    CHECK_EQ(RUN(w, &s, call_gate32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 0), FREE_SEL);
    protected_mode(w, &s);
    to_user(&s);
    put64(w, GDT + FREE_SEL, gate(CODE32, code, 0x6c));
    CHECK_EQ(RUN(w, &s, call_gate32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_NP);
    CHECK_EQ(frame(w, &s, 0), FREE_SEL);
    protected_mode(w, &s); /* no room on the inner stack: #SS with its selector, on which nothing can be delivered */
    to_user(&s);
    put64(w, GDT + FREE_SEL, gate(CODE32, code, 0xec));
    put64(w, GDT + FREE_SEL + 8, descriptor(0, STACK - 8, 0x4093));
    put32(w, TSS + 8, FREE_SEL + 8);
    CHECK_EQ(RUN(w, &s, call_gate32), CPU_EXIT_SHUTDOWN);
    put32(w, TSS + 8, DATA0);
    protected_mode(w, &s); /* a TSS too short for the stack: #TS with TR */
    to_user(&s);
    s.tr.limit = 8;
    put64(w, GDT + FREE_SEL, gate(CODE32, code, 0xec));
    put64(w, GDT + FREE_SEL + 8, descriptor(0, 0xfffff, 0xc09f));
    put64(w, IDT + 8 * EXC_TS, gate(FREE_SEL + 8, HANDLERS + 16 * EXC_TS, 0x8e));
    put(w, HANDLERS + 16 * EXC_TS, 0xfeeb, 2);
    guest_mem_write(&w->mem, CODE, call_gate32_begin, 12);
    cpu_set_state(w->cpu, &s);
    cpu_run_count(w->cpu, 20);
    cpu_get_state(w->cpu, &s);
    s.rip++;
    CHECK_VECTOR(&s, EXC_TS);
    CHECK_EQ(frame(w, &s, 0), TSS_SEL);
    put(w, HANDLERS + 16 * EXC_TS, 0xf4, 2);

    protected_mode(w, &s); /* a 16-bit gate in the same ring */
    guest_mem_write(&w->mem, 0x1300, gate_code16_begin, (uint64_t)(gate_code16_end - gate_code16_begin));
    put64(w, GDT + FREE_SEL, gate(CODE32, 0x99991300, 0xe4));
    s.rip = 0x1400; /* the return address must fit in 16 bits */
    guest_mem_write(&w->mem, 0x1400, call_gate32_begin, 12);
    CHECK_EQ(RUN(w, &s, call_gate32), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, 0x140c);
    CHECK_EQ(s.gpr[RSP], STACK - 4);
    CHECK_EQ(s.gpr[RAX], 0x22);
}

/* ---- far jumps and calls without gates ---- */

GUEST(jump_far, 32, "ljmp *(%edi)");
GUEST(call_far, 32, "lcall *(%edi)");
GUEST(jump_far64, 64, "rex.w ljmp *(%rdi)");

/* -1: it arrived at the HLT at 11000h, in the ring it came from. */
static void try_far(struct world *w, bool wide, bool user, uint16_t selector, uint64_t entry, uint32_t offset, int vector, uint32_t error)
{
    for (unsigned call = 0; call < (wide ? 1u : 2u); call++) {
        struct x86_state s;
        (wide ? long_mode : protected_mode)(w, &s);
        if (user)
            to_user(&s);
        put64(w, GDT + FREE_SEL, entry);
        put(w, 0x11000, 0xf4, 1);
        put64(w, DATA, offset);
        put16(w, DATA + (wide ? 8 : 4), selector);
        s.gpr[RDI] = DATA;
        const uint8_t *begin = wide ? jump_far64_begin : call ? call_far_begin : jump_far_begin;
        CHECK_EQ(run(w, &s, begin, begin + (wide ? 3 : 2)), CPU_EXIT_HALT);
        if (vector >= 0) {
            CHECK_VECTOR(&s, vector);
            CHECK_EQ(frame(w, &s, 0), error);
            CHECK_EQ(frame(w, &s, 1), CODE);
        } else if (user) {
            CHECK_VECTOR(&s, EXC_GP);
            CHECK_EQ(frame(w, &s, 1), 0x11000);
            CHECK_EQ(frame(w, &s, 2), (selector & ~3u) | 3);
            CHECK_EQ(frame(w, &s, 4), USER_STACK - 8 * call);
        } else {
            CHECK_EQ(s.rip, 0x11001);
            CHECK_EQ(s.segment[CS].selector, selector & ~3u);
            CHECK_EQ(s.gpr[RSP], STACK - 8 * call);
        }
        if (vector < 0)
            CHECK_EQ(get(w, GDT + FREE_SEL + 5, 1) & 1, 1);
    }
}

static void test_far(struct world *w)
{
    const uint64_t code0 = descriptor(0, 0xfffff, 0xc09a), code3 = descriptor(0, 0xfffff, 0xc0fa),
                   conforming0 = descriptor(0, 0xfffff, 0xc09e), conforming3 = descriptor(0, 0xfffff, 0xc0fe);
    try_far(w, false, false, FREE_SEL, code0, 0x11000, -1, 0);
    try_far(w, false, false, FREE_SEL | 3, code0, 0x11000, EXC_GP, FREE_SEL); /* RPL above CPL */
    try_far(w, false, false, FREE_SEL, code3, 0x11000, EXC_GP, FREE_SEL);
    try_far(w, false, true, FREE_SEL, code0, 0x11000, EXC_GP, FREE_SEL);
    try_far(w, false, true, FREE_SEL, code3, 0x11000, -1, 0); /* a lower RPL becomes CPL */
    try_far(w, false, true, FREE_SEL, conforming0, 0x11000, -1, 0); /* inward without a change of ring */
    try_far(w, false, false, FREE_SEL, conforming3, 0x11000, EXC_GP, FREE_SEL);
    try_far(w, false, false, FREE_SEL | 3, conforming0, 0x11000, -1, 0);
    try_far(w, false, false, FREE_SEL, descriptor(0, 0xfffff, 0xc01a), 0x11000, EXC_NP, FREE_SEL);
    try_far(w, false, false, FREE_SEL, descriptor(0, 0xfffff, 0xc092), 0x11000, EXC_GP, FREE_SEL);
    try_far(w, false, false, FREE_SEL, descriptor(0, 0x10fff, 0x409a), 0x11000, EXC_GP, 0); /* beyond its limit */
    try_far(w, false, false, 0, 0, 0x11000, EXC_GP, 0);
    try_far(w, false, false, 0x800, 0, 0x11000, EXC_GP, 0x800);
    try_far(w, true, false, FREE_SEL, descriptor(0, 0xfffff, 0xa09a), 0x11000, -1, 0);
    try_far(w, true, false, FREE_SEL, descriptor(0, 0xfffff, 0xe09a), 0x11000, EXC_GP, FREE_SEL); /* L and D */
    try_far(w, true, false, FREE_SEL, descriptor(TSS, 0x67, 0x0089), 0x11000, EXC_GP, FREE_SEL); /* no task switches */
}

/* IRET outward: data segments that ring 3 may not have become null; FS of DPL 3 stays. */
GUEST(iret_out64, 64, "mov $0x33, %eax; push %rax; mov $0x9000, %eax; push %rax; push $0x3202; push $0x3b; lea 1f(%rip), %rax; push %rax;"
                      "iretq; 1: mov %ds, %eax; mov %fs, %ebx; hlt");
static void test_returns(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.segment[FS] = (struct x86_segment){USER_DATA, 0xc0f3, 0xffffffff, 0x1234};
    CHECK_EQ(RUN(w, &s, iret_out64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(s.gpr[RAX] & 0xffff, 0);
    CHECK_EQ(s.gpr[RBX] & 0xffff, USER_DATA);
    CHECK_EQ(frame(w, &s, 2), USER_CODE64);
    CHECK_EQ(frame(w, &s, 3) & (EFLAGS_IF | EFLAGS_IOPL), EFLAGS_IF | 0x3000);
    CHECK_EQ(frame(w, &s, 4), 0x9000);
}

GUEST(iret_flags, 32, "pushf; pop %eax; or $0x3200, %eax; push %eax; pushl $0x2b; call 1f; 1: addl $6, (%esp); iretl; pushf; pop %ebx; hlt");
/* The code segment is judged before the outer stack pointer is looked for (SDM vol. 2, RET). */
GUEST(far_return_drop, 32, "lret $0xff00");
GUEST(iret_frame, 32, "iret");
static void test_code_before_stack(struct world *w)
{
    struct x86_state s;
    for (unsigned bad_code = 0; bad_code < 2; bad_code++) {
        protected_mode(w, &s);
        s.segment[SS].limit = 0xffff; /* SS:ESP would be read beyond it */
        put32(w, STACK, CODE);
        put32(w, STACK + 4, bad_code ? DATA0 | 3 : USER_CODE32);
        CHECK_EQ(RUN(w, &s, far_return_drop), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, bad_code ? EXC_GP : EXC_SS);
    }
    for (unsigned bad_code = 0; bad_code < 2; bad_code++) {
        protected_mode(w, &s);
        s.segment[SS].limit = STACK + 11;
        put32(w, STACK, CODE);
        put32(w, STACK + 4, bad_code ? DATA0 | 3 : USER_CODE32);
        put32(w, STACK + 8, EFLAGS_FIXED);
        CHECK_EQ(RUN(w, &s, iret_frame), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, bad_code ? EXC_GP : EXC_SS);
    }
}

static void test_iret_privilege(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s); /* ring 3 cannot give itself IF or IOPL */
    to_user(&s);
    CHECK_EQ(RUN(w, &s, iret_flags), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(s.gpr[RBX] & (EFLAGS_IF | EFLAGS_IOPL), 0);
    CHECK_EQ(s.gpr[RAX] & (EFLAGS_IF | EFLAGS_IOPL), 0x3200);
}

/* ---- NMI ---- */

GUEST(nmi_loop, 64, "1: jmp 1b");
GUEST(nmi_handler, 64, "incl 0x40000; 1: cmpl $0, 0x40004; je 1b; iretq");
static void test_nmi(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    put64(w, DATA, 0);
    guest_mem_write(&w->mem, 0x11000, nmi_handler_begin, (uint64_t)(nmi_handler_end - nmi_handler_begin));
    put64(w, IDT + 16 * EXC_NMI, gate(CODE64, 0x11000, 0x8e));
    guest_mem_write(&w->mem, CODE, nmi_loop_begin, 2);
    cpu_set_state(w->cpu, &s);
    cpu_request(w->cpu, CPU_REQUEST_NMI);
    cpu_run_count(w->cpu, 50);
    CHECK_EQ(get32(w, DATA), 1);
    cpu_request(w->cpu, CPU_REQUEST_NMI); /* while one is being handled, the next waits */
    cpu_run_count(w->cpu, 50);
    CHECK_EQ(get32(w, DATA), 1);
    put32(w, DATA + 4, 1);
    cpu_run_count(w->cpu, 50); /* until the IRET */
    CHECK_EQ(get32(w, DATA), 2);
    cpu_get_state(w->cpu, &s);
    CHECK_EQ(s.rip, CODE);
    CHECK(!s.nmi_blocked);

    long_mode(w, &s); /* also an IRET that faults lets NMIs in */
    s.nmi_blocked = true;
    s.gpr[RSP] = 0x6000;
    put64(w, 0x6000, CODE);
    put64(w, 0x6008, 0);
    static const uint8_t iretq[] = {0x48, 0xcf};
    CHECK_EQ(run(w, &s, iretq, iretq + 2), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK(!s.nmi_blocked);
}

/* ---- alignment ---- */

GUEST(misaligned, 64, "mov 1(%rdi), %eax; hlt");
GUEST(misaligned_byte, 64, "mov 1(%rdi), %al; hlt");
GUEST(misaligned_push, 64, "push %rax; hlt");
GUEST(misaligned_string, 64, "mov $3, %ecx; rep movsq; hlt");
GUEST(misaligned_far, 64, "mov 3(%rdi), %ax; hlt");

static void try_alignment(struct world *w, const uint8_t *begin, const uint8_t *end, bool am, bool ac, bool user, bool absent, int vector)
{
    struct x86_state s;
    long_mode(w, &s);
    if (user)
        to_user(&s);
    s.cr0 |= am ? CR0_AM : 0;
    s.rflags |= ac ? EFLAGS_AC : 0;
    s.gpr[RDI] = DATA;
    s.gpr[RSI] = DATA + 0x101;
    if (begin == misaligned_push_begin)
        s.gpr[RSP] = USER_STACK - 4;
    if (absent)
        put64(w, TABLES + 0x6000 + 8 * (DATA >> 12), 0);
    CHECK_EQ(run(w, &s, begin, end), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, vector);
    if (vector == EXC_AC)
        CHECK_EQ(frame(w, &s, 0), 0);
}
#define ALIGN(name, am, ac, user, absent, vector) try_alignment(w, name##_begin, name##_end, am, ac, user, absent, vector)

static void test_alignment(struct world *w)
{
    ALIGN(misaligned, true, true, true, false, EXC_AC);
    ALIGN(misaligned, false, true, true, false, EXC_GP); /* its HLT */
    ALIGN(misaligned, true, false, true, false, EXC_GP);
    ALIGN(misaligned, true, true, false, false, -1); /* ring 0 is not asked */
    ALIGN(misaligned, true, true, true, true, EXC_PF); /* a page fault comes first */
    ALIGN(misaligned_byte, true, true, true, false, EXC_GP);
    ALIGN(misaligned_push, true, true, true, false, EXC_AC);
    ALIGN(misaligned_string, true, true, true, false, EXC_AC);
    ALIGN(misaligned_far, true, true, true, false, EXC_AC);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_interrupt_gates(&w);
    test_inner_stacks(&w);
    test_double_faults(&w);
    test_call_gates(&w);
    test_far(&w);
    test_returns(&w);
    test_code_before_stack(&w);
    test_iret_privilege(&w);
    test_nmi(&w);
    test_alignment(&w);
    world_destroy(&w);
    return check_report();
}
