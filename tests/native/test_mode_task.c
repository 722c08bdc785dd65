/* SPDX-License-Identifier: MIT */
/* Hardware task switches: by far jump, call, gate, interrupt and IRET, 32- and 16-bit TSS, and the faults on the way
 * (SDM vol. 3, task management). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#define TASK2 0x3000u /* the other TSS, 32-bit */
#define TASK3 0x3800u /* a 16-bit one */
#define TASK2_SEL FREE_SEL
#define TASK3_SEL (FREE_SEL + 8)
#define GATE_SEL (FREE_SEL + 16)
#define LDT_SEL (FREE_SEL + 24)
#define SPARE_SEL (FREE_SEL + 32)
#define TASK_CODE 0x11000u
#define TASK_STACK 0x7000u

#define AVAILABLE32 0x0089
#define BUSY32 0x008b
#define AVAILABLE16 0x0081

static void put_task32(struct world *w, uint32_t tss, uint32_t eip)
{
    for (unsigned i = 0; i < 104; i += 4)
        put32(w, tss + i, 0);
    put32(w, tss + 32, eip);
    put32(w, tss + 36, EFLAGS_FIXED | EFLAGS_CF);
    for (uint32_t i = 0; i < 8; i++)
        put32(w, tss + 40 + 4 * i, 0x1000 + i);
    put32(w, tss + 40 + 4 * RSP, TASK_STACK);
    static const uint16_t selectors[] = {DATA0, CODE32, DATA0, DATA0, 0, DATA0}; /* FS null */
    for (unsigned i = 0; i < 6; i++)
        put32(w, tss + 72 + 4 * i, selectors[i]);
    put16(w, tss + 102, 104);
}

static void put_task16(struct world *w, uint32_t tss, uint16_t ip)
{
    for (unsigned i = 0; i < 44; i += 2)
        put16(w, tss + i, 0);
    put16(w, tss + 14, ip);
    put16(w, tss + 16, EFLAGS_FIXED | EFLAGS_ZF);
    for (uint16_t i = 0; i < 8; i++)
        put16(w, tss + 18 + 2 * i, 0x2000 + i);
    put16(w, tss + 18 + 2 * RSP, TASK_STACK);
    put16(w, tss + 34, DATA16);
    put16(w, tss + 36, SPARE_SEL);
    put16(w, tss + 38, DATA16);
    put16(w, tss + 40, DATA16);
}

static void setup(struct world *w, struct x86_state *s)
{
    protected_mode(w, s);
    put32(w, TSS, 0);
    put_task32(w, TASK2, TASK_CODE);
    put_task16(w, TASK3, 0x100);
    put64(w, GDT + TASK2_SEL, descriptor(TASK2, 103, AVAILABLE32));
    put64(w, GDT + TASK3_SEL, descriptor(TASK3, 43, AVAILABLE16));
    put64(w, GDT + GATE_SEL, gate(TASK2_SEL, 0, 0x85));
    put64(w, GDT + LDT_SEL, descriptor(LDT, 15, 0x0082));
    put64(w, GDT + SPARE_SEL, descriptor(TASK_CODE, 0xffff, 0x009b)); /* 16-bit code at TASK_CODE */
    put(w, TASK_CODE, 0xf4, 1);
    put(w, TASK_CODE + 0x100, 0xf4, 1);
}

static unsigned type_of(struct world *w, uint16_t selector)
{
    return (unsigned)get(w, GDT + selector + 5, 1) & 15;
}

GUEST(task_jump, 32, "mov $0xaaaa, %eax; stc; ljmp $0x58, $0; inc %ebx; hlt");
static void test_jump(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    s.gpr[RDI] = 0x77777777;
    CHECK_EQ(RUN(w, &s, task_jump), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, TASK_CODE + 1);
    CHECK_EQ(s.gpr[RAX], 0x1000);
    CHECK_EQ(s.gpr[RDI], 0x1007);
    CHECK_EQ(s.gpr[RSP], TASK_STACK);
    CHECK_EQ(s.rflags, EFLAGS_FIXED | EFLAGS_CF);
    CHECK_EQ(s.tr.selector, TASK2_SEL);
    CHECK_EQ(s.segment[FS].selector, 0);
    CHECK_EQ(s.cr0 & CR0_TS, CR0_TS);
    /* the old one: its registers, free again; the new one: busy, no link */
    CHECK_EQ(get32(w, TSS + 32), CODE + 13);
    CHECK_EQ(get32(w, TSS + 36) & EFLAGS_CF, EFLAGS_CF);
    CHECK_EQ(get32(w, TSS + 40), 0xaaaa);
    CHECK_EQ(get32(w, TSS + 40 + 4 * RDI), 0x77777777);
    CHECK_EQ(get16(w, TSS + 72 + 4 * CS), CODE32);
    CHECK_EQ(type_of(w, TSS_SEL), 9);
    CHECK_EQ(type_of(w, TASK2_SEL), 11);
    CHECK_EQ(get16(w, TASK2), 0);

    /* through a gate */
    setup(w, &s);
    put64(w, GDT + TASK2_SEL, descriptor(TASK2, 103, AVAILABLE32));
    put64(w, GDT + SPARE_SEL, gate(TASK2_SEL, 0, 0x85));
    put16(w, CODE, 0);
    static const uint8_t through_gate[] = {0xea, 0, 0, 0, 0, GATE_SEL, 0};
    CHECK_EQ(run(w, &s, through_gate, through_gate + sizeof through_gate), CPU_EXIT_HALT);
    CHECK_EQ(s.tr.selector, TASK2_SEL);
}

/* CALL, and the other task comes back by IRET; then a second call goes on behind its IRET. */
GUEST(task_call, 32, "lcall $0x58, $0; inc %ebx; lcall $0x58, $0; hlt");
GUEST(task_iret, 32, "inc %esi; iretl; add $16, %esi; iretl");
static void test_call(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    guest_mem_write(&w->mem, TASK_CODE, task_iret_begin, (uint64_t)(task_iret_end - task_iret_begin));
    CHECK_EQ(RUN(w, &s, task_call), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, CODE + 16);
    CHECK_EQ(s.gpr[RBX], 1);
    CHECK_EQ(s.tr.selector, TSS_SEL);
    CHECK_EQ(s.rflags & EFLAGS_NT, 0);
    CHECK_EQ(type_of(w, TSS_SEL), 11);
    CHECK_EQ(type_of(w, TASK2_SEL), 9);
    CHECK_EQ(get16(w, TASK2), TSS_SEL);
    CHECK_EQ(get32(w, TASK2 + 40 + 4 * RSI), 0x1006 + 17);
    CHECK_EQ(get32(w, TASK2 + 36) & EFLAGS_NT, 0); /* IRET takes it out of the image */
}

GUEST(task_16, 32, "mov $0x12345678, %ecx; lcall $0x60, $0; hlt");
GUEST(task_16_back, 16, "mov $0x4321, %dx; iret");
static void test_16bit(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    guest_mem_write(&w->mem, TASK_CODE + 0x100, task_16_back_begin, (uint64_t)(task_16_back_end - task_16_back_begin));
    CHECK_EQ(RUN(w, &s, task_16), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, CODE + 13);
    CHECK_EQ(s.gpr[RCX], 0x12345678);
    CHECK_EQ(get16(w, TASK3 + 18 + 2 * RDX), 0x4321);
    CHECK_EQ(get16(w, TASK3 + 14), 0x104);
    CHECK_EQ(get16(w, TASK3), TSS_SEL);
    CHECK_EQ(get16(w, TASK3 + 36), SPARE_SEL);
}

GUEST(task_fault, 32, "ud2; hlt");
GUEST(task_gp, 32, "mov $0x7f8, %eax; mov %eax, %ds; hlt");
GUEST(task_int, 32, "int $0x44; hlt");
static void test_events(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    put64(w, IDT + 8 * EXC_UD, gate(TASK2_SEL, 0, 0x85));
    CHECK_EQ(RUN(w, &s, task_fault), CPU_EXIT_HALT);
    CHECK_EQ(s.tr.selector, TASK2_SEL);
    CHECK_EQ(s.rflags & EFLAGS_NT, EFLAGS_NT);
    CHECK_EQ(get32(w, TSS + 32), CODE); /* a fault: the instruction itself */
    CHECK_EQ(get32(w, TSS + 36) & EFLAGS_RF, EFLAGS_RF);
    CHECK_EQ(s.gpr[RSP], TASK_STACK);
    CHECK_EQ(get16(w, TASK2), TSS_SEL);
    CHECK_EQ(type_of(w, TSS_SEL), 11); /* both are busy now */

    setup(w, &s); /* the error code goes onto the new task's stack */
    put64(w, IDT + 8 * EXC_GP, gate(TASK2_SEL, 0, 0x85));
    CHECK_EQ(RUN(w, &s, task_gp), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RSP], TASK_STACK - 4);
    CHECK_EQ(get32(w, TASK_STACK - 4), 0x7f8);

    setup(w, &s); /* INT n through a task gate, which its DPL allows or not */
    to_user(&s);
    put64(w, IDT + 8 * 0x44, gate(TASK2_SEL, 0, 0x85));
    CHECK_EQ(RUN(w, &s, task_int), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, s.gpr[RSP]), 0x44 * 8 + 2);
    setup(w, &s);
    to_user(&s);
    put64(w, IDT + 8 * 0x44, gate(TASK2_SEL, 0, 0xe5));
    CHECK_EQ(RUN(w, &s, task_int), CPU_EXIT_HALT);
    CHECK_EQ(s.tr.selector, TASK2_SEL);
    CHECK_EQ(get32(w, TSS + 32), CODE + 2);
    CHECK_EQ(get16(w, TSS + 72 + 4 * CS), USER_CODE32);

    setup(w, &s); /* a gate to a busy TSS, met by an exception: EXT is set */
    put64(w, IDT + 8 * EXC_UD, gate(TSS_SEL, 0, 0x85));
    CHECK_EQ(RUN(w, &s, task_fault), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, s.gpr[RSP]), TSS_SEL | 1);
}

/* Faults in the old task leave it as it was. */
static void check_refused(struct world *w, struct x86_state *s, int vector, uint32_t error)
{
    s->activity = X86_RUNNING;
    CHECK_EQ(RUN(w, s, task_jump), CPU_EXIT_HALT);
    CHECK_VECTOR(s, vector);
    CHECK_EQ(s->tr.selector, TSS_SEL);
    CHECK_EQ(get32(w, s->gpr[RSP]), error);
    CHECK_EQ(get32(w, s->gpr[RSP] + 4), CODE + 6);
    CHECK_EQ(type_of(w, TSS_SEL), 11);
}

static void test_refused(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    put64(w, GDT + TASK2_SEL, descriptor(TASK2, 103, BUSY32));
    check_refused(w, &s, EXC_GP, TASK2_SEL);
    setup(w, &s);
    put64(w, GDT + TASK2_SEL, descriptor(TASK2, 103, 0x0009));
    check_refused(w, &s, EXC_NP, TASK2_SEL);
    setup(w, &s);
    put64(w, GDT + TASK2_SEL, descriptor(TASK2, 102, AVAILABLE32));
    check_refused(w, &s, EXC_TS, TASK2_SEL);
    setup(w, &s);
    put64(w, GDT + TASK2_SEL, gate(TASK3_SEL | 4, 0, 0x85)); /* a gate's TSS must be in the GDT */
    check_refused(w, &s, EXC_GP, TASK3_SEL | 4);
    setup(w, &s); /* from ring 3 to a TSS of DPL 0 */
    to_user(&s);
    CHECK_EQ(RUN(w, &s, task_jump), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, s.gpr[RSP]), TASK2_SEL);
    /* IRET with NT to a task that is not busy */
    setup(w, &s);
    s.rflags |= EFLAGS_NT;
    put16(w, TSS, TASK2_SEL);
    static const uint8_t iret[] = {0xcf};
    CHECK_EQ(run(w, &s, iret, iret + 1), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_TS);
    CHECK_EQ(get32(w, s.gpr[RSP]), TASK2_SEL);
    CHECK_EQ(s.tr.selector, TSS_SEL);
}

/* Faults in the new task are its own: TR has changed, and EIP is the new task's. */
static void check_in_new(struct world *w, struct x86_state *s, int vector, uint32_t error)
{
    CHECK_EQ(RUN(w, s, task_jump), CPU_EXIT_HALT);
    CHECK_VECTOR(s, vector);
    CHECK_EQ(s->tr.selector, TASK2_SEL);
    CHECK_EQ(get32(w, s->gpr[RSP]), error);
    CHECK_EQ(get32(w, s->gpr[RSP] + 4), get32(w, TASK2 + 32));
    CHECK_EQ(type_of(w, TASK2_SEL), 11);
}

static void test_new_task_faults(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    put32(w, TASK2 + 72 + 4 * DS, CODE32 + 0x700); /* outside the GDT */
    check_in_new(w, &s, EXC_TS, CODE32 + 0x700);
    setup(w, &s);
    put64(w, GDT + SPARE_SEL, descriptor(0, 0xfffff, 0xc013)); /* data, not present */
    put32(w, TASK2 + 72 + 4 * ES, SPARE_SEL);
    check_in_new(w, &s, EXC_NP, SPARE_SEL);
    setup(w, &s);
    put32(w, TASK2 + 96, DATA0); /* no LDT; no stack segment yet either: only a third task can handle that */
    put64(w, IDT + 8 * EXC_TS, gate(TASK3_SEL, 0, 0x85));
    CHECK_EQ(RUN(w, &s, task_jump), CPU_EXIT_HALT);
    CHECK_EQ(s.tr.selector, TASK3_SEL);
    CHECK_EQ(get16(w, TASK3), TASK2_SEL);
    CHECK_EQ(get16(w, TASK_STACK - 2), DATA0);
    CHECK_EQ(s.gpr[RSP] & 0xffff, TASK_STACK - 2);
    CHECK_EQ(get32(w, TASK2 + 32), TASK_CODE);
    setup(w, &s);
    put32(w, TASK2 + 32, 0x10000); /* beyond the code segment's limit: no HLT there to see */
    put32(w, TASK2 + 72 + 4 * CS, SPARE_SEL);
    check_in_new(w, &s, EXC_GP, 0);
}

static void test_ldt_and_vm86(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    put64(w, LDT + 8, descriptor(0x500000, 0, 0x0093));
    put32(w, TASK2 + 96, LDT_SEL);
    put32(w, TASK2 + 72 + 4 * GS, 0x0c); /* LDT, entry 1 */
    CHECK_EQ(RUN(w, &s, task_jump), CPU_EXIT_HALT);
    CHECK_EQ(s.ldtr.selector, LDT_SEL);
    CHECK_EQ(s.segment[GS].base, 0x500000);

    setup(w, &s); /* a virtual-8086 task; its HLT faults to ring 0 of the same task */
    put32(w, TASK2 + 36, EFLAGS_FIXED | EFLAGS_VM);
    put32(w, TASK2 + 32, 0x100);
    put32(w, TASK2 + 72 + 4 * CS, TASK_CODE / 16);
    put32(w, TASK2 + 72 + 4 * DS, 0x4321);
    put32(w, TASK2 + 4, STACK);
    put32(w, TASK2 + 8, DATA0);
    CHECK_EQ(RUN(w, &s, task_jump), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, s.gpr[RSP] + 4), 0x100);
    CHECK_EQ(get32(w, s.gpr[RSP] + 28), 0x4321);
}

static void test_debug_trap(struct world *w)
{
    struct x86_state s;
    setup(w, &s);
    put16(w, TASK2 + 100, 1); /* T */
    s.dr[7] |= 0x3; /* local enables go with the task, global ones stay */
    s.dr[0] = 0x123456;
    CHECK_EQ(RUN(w, &s, task_jump), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6] & DR6_BT, DR6_BT);
    CHECK_EQ(s.dr[7] & 3, 2);
    CHECK_EQ(get32(w, s.gpr[RSP]), TASK_CODE); /* before its first instruction */
    CHECK_EQ(s.tr.selector, TASK2_SEL);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_jump(&w);
    test_call(&w);
    test_16bit(&w);
    test_events(&w);
    test_refused(&w);
    test_new_task_faults(&w);
    test_ldt_and_vm86(&w);
    test_debug_trap(&w);
    world_destroy(&w);
    return check_report();
}
