/* SPDX-License-Identifier: MIT */
/* Virtual-8086 mode, with and without its extensions, and PVI (SDM vol. 3, chapter 20). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

/* The ring-0 frame of a #GP out of virtual-8086 mode: error, EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS. */
static void check_gp_at(struct world *w, const struct x86_state *s, uint32_t eip)
{
    CHECK_VECTOR(s, EXC_GP);
    CHECK_EQ(get32(w, s->gpr[RSP]), 0);
    CHECK_EQ(get32(w, s->gpr[RSP] + 4), eip);
}

GUEST(v86_basic, 16, "mov $0x4000, %ax; mov %ax, %ds; mov %ax, %es; movw $0x1234, 0x10; mov %cs, %bx; push %bx; pop %cx; hlt");
static void test_basic(struct world *w)
{
    struct x86_state s;
    v86_mode(w, &s, 0);
    CHECK_EQ(RUN(w, &s, v86_basic), CPU_EXIT_HALT);
    uint32_t hlt = (uint32_t)(v86_basic_end - v86_basic_begin) - 1;
    check_gp_at(w, &s, hlt);
    CHECK_EQ(get16(w, 0x40010), 0x1234);
    CHECK_EQ(s.gpr[RCX] & 0xffff, CODE / 16);
    /* the frame: everything of the task, and null data segments in the handler */
    uint64_t frame = s.gpr[RSP];
    CHECK_EQ(frame, STACK - 40);
    CHECK_EQ(get32(w, frame + 8), CODE / 16);
    CHECK_EQ(get32(w, frame + 12) & (EFLAGS_VM | EFLAGS_RF), EFLAGS_VM | EFLAGS_RF);
    CHECK_EQ(get32(w, frame + 16), USER_STACK);
    CHECK_EQ(get32(w, frame + 20), 0);
    CHECK_EQ(get32(w, frame + 24), 0x4000);
    CHECK_EQ(get32(w, frame + 28), 0x4000);
    CHECK_EQ(s.segment[DS].selector, 0);
    CHECK_EQ(s.rflags & EFLAGS_VM, 0);
    CHECK_EQ(s.segment[SS].selector, DATA0);
}

/* Ring 0 enters the task by IRETD and gets it back by #GP. */
GUEST(v86_enter, 32, "pushl $0x11; pushl $0x22; pushl $0x33; pushl $0x44; pushl $0x55; pushl $0x666; pushl $0x23202; pushl $0x1000;"
                     "pushl $0x40; iretl; .org v86_enter_begin + 0x40\n.code16\n mov %ds, %ax; mov %es, %bx; mov %fs, %cx; mov %gs, %dx; cli; sti; hlt");
static void test_enter(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    CHECK_EQ(RUN(w, &s, v86_enter), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(s.gpr[RAX] & 0xffff, 0x33);
    CHECK_EQ(s.gpr[RBX] & 0xffff, 0x44);
    CHECK_EQ(s.gpr[RCX] & 0xffff, 0x22);
    CHECK_EQ(s.gpr[RDX] & 0xffff, 0x11);
    CHECK_EQ(get32(w, s.gpr[RSP] + 16), 0x666);
    CHECK_EQ(get32(w, s.gpr[RSP] + 20), 0x55);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & (EFLAGS_IOPL | EFLAGS_IF), EFLAGS_IOPL | EFLAGS_IF); /* CLI and STI: IOPL is 3 */
}

GUEST(v86_cli, 16, "nop; cli");
GUEST(v86_sti, 16, "nop; sti; nop; nop; hlt");
GUEST(v86_pushf, 16, "nop; pushf; hlt");
GUEST(v86_pushfl, 16, "nop; pushfl; hlt");
GUEST(v86_popf, 16, "nop; push %ax; popf; nop; hlt");
GUEST(v86_int, 16, "nop; int $0x21; hlt");
GUEST(v86_int3, 16, "nop; int3; hlt");
GUEST(v86_iret, 16, "push %ax; push %cs; push $8; iret; .org v86_iret_begin + 8; nop; hlt");
static void test_sensitive(struct world *w)
{
    struct x86_state s;
    /* IOPL below 3 and no VME: #GP(0) for all of them but INT3 */
    v86_mode(w, &s, 2);
    CHECK_EQ(RUN(w, &s, v86_cli), CPU_EXIT_HALT);
    check_gp_at(w, &s, 1);
    v86_mode(w, &s, 2);
    CHECK_EQ(RUN(w, &s, v86_sti), CPU_EXIT_HALT);
    check_gp_at(w, &s, 1);
    v86_mode(w, &s, 2);
    CHECK_EQ(RUN(w, &s, v86_pushf), CPU_EXIT_HALT);
    check_gp_at(w, &s, 1);
    v86_mode(w, &s, 2);
    CHECK_EQ(RUN(w, &s, v86_popf), CPU_EXIT_HALT);
    check_gp_at(w, &s, 2);
    v86_mode(w, &s, 2);
    CHECK_EQ(RUN(w, &s, v86_int), CPU_EXIT_HALT);
    check_gp_at(w, &s, 1);
    v86_mode(w, &s, 2);
    CHECK_EQ(RUN(w, &s, v86_iret), CPU_EXIT_HALT);
    check_gp_at(w, &s, 4);
    v86_mode(w, &s, 2); /* INT3 asks for the gate's DPL only, which is 0 here */
    CHECK_EQ(RUN(w, &s, v86_int3), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, s.gpr[RSP]), EXC_BP * 8 + 2);
    v86_mode(w, &s, 2);
    put64(w, IDT + 8 * EXC_BP, gate(CODE32, HANDLERS + 16 * EXC_BP, 0xee));
    CHECK_EQ(RUN(w, &s, v86_int3), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_BP);
    CHECK_EQ(get32(w, s.gpr[RSP]), 2);

    /* IOPL 3: the real flags, and INT through the IDT */
    v86_mode(w, &s, 3);
    s.gpr[RAX] = EFLAGS_IF | EFLAGS_CF;
    CHECK_EQ(RUN(w, &s, v86_popf), CPU_EXIT_HALT);
    check_gp_at(w, &s, 4);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & (EFLAGS_IF | EFLAGS_CF | EFLAGS_IOPL), EFLAGS_IF | EFLAGS_CF | EFLAGS_IOPL);
    v86_mode(w, &s, 3);
    put64(w, IDT + 8 * 0x21, gate(CODE32, HANDLERS + 16 * 0x21, 0xee));
    CHECK_EQ(RUN(w, &s, v86_int), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, 0x21);
    CHECK_EQ(get32(w, s.gpr[RSP]), 3);
    v86_mode(w, &s, 3); /* only ring 0 may be entered */
    put64(w, GDT + FREE_SEL, descriptor(0, 0xfffff, 0xc0fb));
    put64(w, IDT + 8 * 0x21, gate(FREE_SEL, HANDLERS + 16 * 0x21, 0xee));
    CHECK_EQ(RUN(w, &s, v86_int), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, s.gpr[RSP]), FREE_SEL);
}

static void test_redirection(struct world *w)
{
    struct x86_state s;
    /* VME, redirected, IOPL 3: the task's IVT; IF goes */
    v86_mode(w, &s, 3);
    s.cr4 |= CR4_VME;
    s.rflags |= EFLAGS_IF;
    CHECK_EQ(RUN(w, &s, v86_int), CPU_EXIT_HALT);
    check_gp_at(w, &s, 0); /* the HLT of the 16-bit handler */
    CHECK_EQ(get32(w, s.gpr[RSP] + 8), (HANDLERS + 0x1000 + 16 * 0x21) / 16);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & EFLAGS_IF, 0);
    CHECK_EQ(get16(w, USER_STACK - 6), 3);
    CHECK_EQ(get16(w, USER_STACK - 4), CODE / 16);
    CHECK_EQ(get16(w, USER_STACK - 2) & (EFLAGS_IF | EFLAGS_IOPL), EFLAGS_IF | EFLAGS_IOPL);

    /* IOPL 0: VIF plays IF, IOPL looks like 3 */
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    s.rflags |= EFLAGS_VIF;
    CHECK_EQ(RUN(w, &s, v86_int), CPU_EXIT_HALT);
    CHECK_EQ(get32(w, s.gpr[RSP] + 8), (HANDLERS + 0x1000 + 16 * 0x21) / 16);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & (EFLAGS_VIF | EFLAGS_IOPL), 0);
    CHECK_EQ(get16(w, USER_STACK - 2) & (EFLAGS_IF | EFLAGS_IOPL), EFLAGS_IF | EFLAGS_IOPL);

    /* the bit is set: #GP at IOPL 0, the IDT at IOPL 3 */
    put(w, TSS + TSS_IO_MAP - 32 + 0x21 / 8, 1 << (0x21 % 8), 1);
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    CHECK_EQ(RUN(w, &s, v86_int), CPU_EXIT_HALT);
    check_gp_at(w, &s, 1);
    v86_mode(w, &s, 3);
    s.cr4 |= CR4_VME;
    put64(w, IDT + 8 * 0x21, gate(CODE32, HANDLERS + 16 * 0x21, 0xee));
    CHECK_EQ(RUN(w, &s, v86_int), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, 0x21);
    put(w, TSS + TSS_IO_MAP - 32 + 0x21 / 8, 0, 1);
}

static void test_virtual_flag(struct world *w)
{
    struct x86_state s;
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    CHECK_EQ(RUN(w, &s, v86_sti), CPU_EXIT_HALT);
    check_gp_at(w, &s, 4);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & (EFLAGS_VIF | EFLAGS_IF), EFLAGS_VIF);
    v86_mode(w, &s, 0); /* an interrupt is pending: STI is the monitor's cue */
    s.cr4 |= CR4_VME;
    s.rflags |= EFLAGS_VIP;
    CHECK_EQ(RUN(w, &s, v86_sti), CPU_EXIT_HALT);
    check_gp_at(w, &s, 1);
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    s.rflags |= EFLAGS_VIF;
    CHECK_EQ(RUN(w, &s, v86_pushf), CPU_EXIT_HALT);
    CHECK_EQ(get16(w, USER_STACK - 2) & (EFLAGS_IF | EFLAGS_IOPL), EFLAGS_IF | EFLAGS_IOPL);
    v86_mode(w, &s, 0); /* the 32-bit form has no such help */
    s.cr4 |= CR4_VME;
    CHECK_EQ(RUN(w, &s, v86_pushfl), CPU_EXIT_HALT);
    check_gp_at(w, &s, 1);
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    s.gpr[RAX] = EFLAGS_IF | EFLAGS_ZF;
    CHECK_EQ(RUN(w, &s, v86_popf), CPU_EXIT_HALT);
    check_gp_at(w, &s, 4);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & (EFLAGS_VIF | EFLAGS_IF | EFLAGS_ZF | EFLAGS_IOPL), EFLAGS_VIF | EFLAGS_ZF);
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    s.rflags |= EFLAGS_VIP;
    s.gpr[RAX] = EFLAGS_IF;
    CHECK_EQ(RUN(w, &s, v86_popf), CPU_EXIT_HALT);
    check_gp_at(w, &s, 2);
    CHECK_EQ(get32(w, s.gpr[RSP] + 16), USER_STACK - 2); /* nothing was popped */
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    s.gpr[RAX] = EFLAGS_TF;
    CHECK_EQ(RUN(w, &s, v86_popf), CPU_EXIT_HALT);
    check_gp_at(w, &s, 2);
    v86_mode(w, &s, 0);
    s.cr4 |= CR4_VME;
    s.gpr[RAX] = EFLAGS_IF;
    CHECK_EQ(RUN(w, &s, v86_iret), CPU_EXIT_HALT);
    check_gp_at(w, &s, 9);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & (EFLAGS_VIF | EFLAGS_IF), EFLAGS_VIF);
}

GUEST(pvi, 32, "sti; pushf; pop %eax; cli; pushf; pop %ebx; popf; nop; hlt");
static void test_pvi(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s);
    to_user(&s);
    CHECK_EQ(RUN(w, &s, pvi), CPU_EXIT_HALT); /* no PVI: #GP */
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(get32(w, s.gpr[RSP] + 4), CODE);
    protected_mode(w, &s);
    to_user(&s);
    s.cr4 |= CR4_PVI;
    put32(w, USER_STACK, EFLAGS_IF);
    CHECK_EQ(RUN(w, &s, pvi), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* HLT, at last */
    CHECK_EQ(get32(w, s.gpr[RSP] + 4), CODE + 8);
    CHECK_EQ(s.gpr[RAX] & (EFLAGS_VIF | EFLAGS_IF), EFLAGS_VIF); /* PUSHF and POPF are as ever */
    CHECK_EQ(s.gpr[RBX] & (EFLAGS_VIF | EFLAGS_IF), 0);
    CHECK_EQ(get32(w, s.gpr[RSP] + 12) & EFLAGS_IF, 0);
    protected_mode(w, &s);
    to_user(&s);
    s.cr4 |= CR4_PVI;
    s.rflags |= EFLAGS_VIP;
    CHECK_EQ(RUN(w, &s, pvi), CPU_EXIT_HALT);
    CHECK_EQ(get32(w, s.gpr[RSP] + 4), CODE);
}

GUEST(v86_ports, 16, "in $0x60, %al; mov $0x3fe, %dx; in %dx, %ax; inc %dx; in %dx, %ax; hlt");
static void test_ports(struct world *w)
{
    struct x86_state s;
    put(w, TSS + TSS_IO_MAP + 0x400 / 8, 1, 1); /* port 400h only */
    v86_mode(w, &s, 3); /* IOPL is no matter in virtual-8086 mode */
    CHECK_EQ(RUN(w, &s, v86_ports), CPU_EXIT_HALT);
    check_gp_at(w, &s, 7);
    put(w, TSS + TSS_IO_MAP + 0x400 / 8, 0, 1);
    v86_mode(w, &s, 3);
    s.tr.limit = TSS_IO_MAP + 0x60 / 8; /* the byte behind must be there too */
    CHECK_EQ(RUN(w, &s, v86_ports), CPU_EXIT_HALT);
    check_gp_at(w, &s, 0);
}

GUEST(v86_undefined, 16, ".byte 0xc5, 0xf8, 0x28, 0xc0; hlt"); /* vmovaps */
GUEST(v86_andn, 16, ".byte 0xc4, 0xe2, 0x78, 0xf2, 0xc0; hlt");
GUEST(v86_lar, 16, "lar %ax, %bx; hlt");
GUEST(v86_wrap, 16, "mov 0xffff, %ax; hlt");
static void test_faults(struct world *w)
{
    struct x86_state s;
    v86_mode(w, &s, 0);
    CHECK_EQ(RUN(w, &s, v86_undefined), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    v86_mode(w, &s, 0);
    CHECK_EQ(RUN(w, &s, v86_andn), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    v86_mode(w, &s, 0);
    CHECK_EQ(RUN(w, &s, v86_lar), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    v86_mode(w, &s, 0);
    CHECK_EQ(RUN(w, &s, v86_wrap), CPU_EXIT_HALT);
    check_gp_at(w, &s, 0);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_basic(&w);
    test_enter(&w);
    test_sensitive(&w);
    test_redirection(&w);
    test_virtual_flag(&w);
    test_pvi(&w);
    test_ports(&w);
    test_faults(&w);
    world_destroy(&w);
    return check_report();
}
