/* SPDX-License-Identifier: MIT */
/* Breakpoints, single steps, RF, and the shadow of MOV SS (SDM vol. 3, 6.8.3 and chapter 17). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#define FRAME_RIP(s) ((s).gpr[RSP])
#define FRAME_FLAGS(s) ((s).gpr[RSP] + 16)

GUEST(code_break, 64, "xor %eax, %eax; inc %eax; inc %eax; inc %eax; hlt");
static void test_code_breakpoint(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.dr[1] = CODE + 4; /* the second inc */
    s.dr[7] |= 0x4;     /* L1 */
    CHECK_EQ(RUN(w, &s, code_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.gpr[RAX], 1);
    CHECK_EQ(s.dr[6], DR6_FIXED | 2);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 4);
    CHECK_EQ(get64(w, FRAME_FLAGS(s)) & EFLAGS_RF, 0); /* the handler is to set it */

    /* with RF set the same instruction goes through, and RF is gone afterwards */
    long_mode(w, &s);
    s.dr[0] = CODE + 4;
    s.dr[2] = CODE + 6;
    s.dr[7] |= 0x12; /* G0, L2 */
    s.rip = CODE + 4;
    s.rflags |= EFLAGS_RF;
    CHECK_EQ(RUN(w, &s, code_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED | 4);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 6);

    /* not enabled: nothing happens */
    long_mode(w, &s);
    s.dr[0] = CODE + 4;
    CHECK_EQ(RUN(w, &s, code_break), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, CODE + 9);
    CHECK_EQ(s.gpr[RAX], 3);
}

GUEST(data_break, 64, "movl $1, 0x40000; movl $2, 0x40008; mov 0x40008, %eax; mov %eax, 0x40004; inc %ecx; hlt");
static void test_data_breakpoint(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.dr[0] = DATA + 4;
    s.dr[7] |= 0x2 | 0xd << 16; /* write, 4 bytes */
    CHECK_EQ(RUN(w, &s, data_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED | 1);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + (uint64_t)(data_break_end - data_break_begin) - 3); /* a trap: the next one */
    CHECK_EQ(get32(w, DATA + 4), 2);

    /* read or write: the write comes first; then resume and meet the read */
    long_mode(w, &s);
    s.dr[3] = DATA + 10;
    s.dr[7] |= 0x40 | 0x30000000u; /* access, 1 byte within the operand */
    CHECK_EQ(RUN(w, &s, data_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED | 8);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 22);
    s.rip = get64(w, FRAME_RIP(s));
    s.segment[CS] = (struct x86_segment){CODE64, 0xa09b, 0xffffffff, 0};
    CHECK_EQ(RUN(w, &s, data_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 29);

    /* eight bytes; an access that only reads does not meet a write breakpoint; another address neither */
    long_mode(w, &s);
    s.dr[0] = DATA + 0x10;
    s.dr[7] |= 0x1 | 0x9 << 16;
    CHECK_EQ(RUN(w, &s, data_break), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RCX], 1);
    CHECK_EQ(s.dr[6], DR6_FIXED);
}

GUEST(string_break, 64, "mov $0x40000, %edi; mov $0x41000, %esi; mov $6, %ecx; rep movsl; inc %eax; hlt");
static void test_repeated(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.dr[0] = DATA + 8;
    s.dr[7] |= 0x1 | 0xd << 16;
    CHECK_EQ(RUN(w, &s, string_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.gpr[RCX], 3); /* after the third iteration */
    CHECK_EQ(s.gpr[RDI], DATA + 12);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 15);
    CHECK_EQ(get64(w, FRAME_FLAGS(s)) & EFLAGS_RF, EFLAGS_RF); /* between two iterations */

    /* single steps: one an iteration */
    long_mode(w, &s);
    s.rflags |= EFLAGS_TF;
    s.rip = CODE + 15;
    s.gpr[RDI] = DATA;
    s.gpr[RSI] = DATA + 0x1000;
    s.gpr[RCX] = 100;
    CHECK_EQ(RUN(w, &s, string_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.gpr[RCX], 99);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 15);
    CHECK_EQ(s.dr[6], DR6_FIXED | DR6_BS);
}

GUEST(port_string, 64, "mov $0x86, %edx; mov $0x40000, %esi; mov $5, %ecx; rep outsb; hlt");
GUEST(port_break, 64, "in $0x60, %al; mov $0x84, %dx; out %eax, %dx; inc %ecx; hlt");
static void test_port_breakpoint(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.cr4 |= CR4_DE;
    s.dr[2] = 0x86;
    s.dr[7] |= 0x10 | 0x2u << 24; /* I/O, 1 byte */
    CHECK_EQ(RUN(w, &s, port_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED | 4);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 7);
    CHECK_EQ(w->last_port, 0x84);

    long_mode(w, &s); /* one trap an iteration */
    s.cr4 |= CR4_DE;
    s.dr[2] = 0x86;
    s.dr[7] |= 0x10 | 0x2u << 24;
    CHECK_EQ(RUN(w, &s, port_string), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.gpr[RCX], 4);

    long_mode(w, &s); /* without CR4.DE there are no I/O breakpoints */
    s.dr[2] = 0x86;
    s.dr[7] |= 0x10 | 0x2u << 24;
    CHECK_EQ(RUN(w, &s, port_break), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RCX], 1);
}

GUEST(stepping, 64, "pushfq; orl $0x100, (%rsp); popfq; nop; nop; hlt");
GUEST(step_int, 64, "int $0x50; nop; hlt");
GUEST(step_ss, 64, "mov $0x10, %eax; mov %eax, %ss; nop; nop; hlt");
GUEST(step_jump, 64, "jmp 1f; nop; nop; 1: nop; hlt");
GUEST(step_div, 64, "xor %ecx, %ecx; div %ecx; hlt");
GUEST(step_halt, 64, "hlt; nop; hlt");
GUEST(step_lss, 64, "lss 0x40000, %esp; nop; hlt");
static void test_single_step(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s); /* the trap of HLT ends the halt */
    s.rflags |= EFLAGS_TF;
    CHECK_EQ(RUN(w, &s, step_halt), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 1);

    long_mode(w, &s); /* LSS casts no shadow */
    put32(w, DATA, STACK);
    put16(w, DATA + 4, DATA0);
    s.rflags |= EFLAGS_TF;
    CHECK_EQ(RUN(w, &s, step_lss), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 8);

    long_mode(w, &s); /* the trap comes after the instruction behind POPF */
    CHECK_EQ(RUN(w, &s, stepping), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 10);
    CHECK_EQ(s.dr[6], DR6_FIXED | DR6_BS);
    CHECK_EQ(get64(w, FRAME_FLAGS(s)) & (EFLAGS_TF | EFLAGS_RF), EFLAGS_TF);
    CHECK_EQ(s.rflags & EFLAGS_TF, 0);

    long_mode(w, &s); /* INT clears TF: no trap in front of its handler */
    s.rflags |= EFLAGS_TF;
    CHECK_EQ(RUN(w, &s, step_int), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, 0x50);

    long_mode(w, &s); /* no trap between MOV SS and the next instruction */
    s.rflags |= EFLAGS_TF;
    s.rip = CODE + 5;
    CHECK_EQ(RUN(w, &s, step_ss), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 8);

    long_mode(w, &s);
    s.rflags |= EFLAGS_TF;
    CHECK_EQ(RUN(w, &s, step_jump), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 4);

    long_mode(w, &s); /* a fault is not stepped over: it comes instead of the trap, with RF */
    s.rflags |= EFLAGS_TF;
    s.rip = CODE + 2;
    s.gpr[RCX] = 0;
    CHECK_EQ(RUN(w, &s, step_div), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DE);
    CHECK_EQ(get64(w, FRAME_FLAGS(s)) & (EFLAGS_TF | EFLAGS_RF), EFLAGS_TF | EFLAGS_RF);
}

GUEST(load_ss, 64, "movw 0x40000, %ss; nop; nop; hlt");
static void test_stack_shadow(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s); /* a data breakpoint on MOV SS waits for the end of the next instruction */
    put16(w, DATA, DATA0);
    s.dr[0] = DATA;
    s.dr[7] |= 1 | 3 << 16;
    CHECK_EQ(RUN(w, &s, load_ss), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED | 1);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 8);

    long_mode(w, &s); /* a code breakpoint behind MOV SS is not seen, the one after that is */
    s.dr[0] = CODE + 7;
    s.dr[1] = CODE + 8;
    s.dr[7] |= 5;
    CHECK_EQ(RUN(w, &s, load_ss), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED | 2);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 8);
}

GUEST(shadowed, 64, "sti; nop; nop; 1: jmp 1b");
static void test_interrupt_shadow(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    w->vector = 0x60;
    cpu_request(w->cpu, CPU_REQUEST_INTR);
    CHECK_EQ(RUN(w, &s, shadowed), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, 0x60);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 2); /* behind the instruction after STI */
}

GUEST(detect, 64, "mov %db0, %rax; hlt");
GUEST(aliases, 64, "mov %db4, %rax; mov %db5, %rbx; mov $0x55, %ecx; mov %rcx, %db0; mov %db0, %rdx; hlt");
GUEST(icebp, 64, ".byte 0xf1; nop; hlt");
static void test_registers(struct world *w)
{
    struct x86_state s;
    long_mode(w, &s);
    s.dr[7] |= DR7_GD;
    CHECK_EQ(RUN(w, &s, detect), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED | DR6_BD);
    CHECK_EQ(s.dr[7] & DR7_GD, 0);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE);
    CHECK_EQ(get64(w, FRAME_FLAGS(s)) & EFLAGS_RF, EFLAGS_RF);

    long_mode(w, &s);
    CHECK_EQ(RUN(w, &s, aliases), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], DR6_FIXED);
    CHECK_EQ(s.gpr[RBX], DR7_FIXED);
    CHECK_EQ(s.gpr[RDX], 0x55);
    long_mode(w, &s);
    s.cr4 |= CR4_DE;
    CHECK_EQ(RUN(w, &s, aliases), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);

    long_mode(w, &s); /* INT1 is a trap that leaves DR6 alone */
    CHECK_EQ(RUN(w, &s, icebp), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(s.dr[6], DR6_FIXED);
    CHECK_EQ(get64(w, FRAME_RIP(s)), CODE + 1);
}

GUEST(real_break, 16, "mov $0x1234, %ax; mov %ax, 0x500; nop; hlt");
static void test_real_mode(struct world *w)
{
    struct x86_state s;
    real_mode(w, &s);
    s.dr[0] = 0x500;
    s.dr[7] |= 1 | 5 << 16;
    CHECK_EQ(RUN(w, &s, real_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get16(w, STACK - 6), 6);
    real_mode(w, &s);
    s.dr[0] = CODE + 3; /* linear, not an offset */
    s.dr[7] |= 1;
    CHECK_EQ(RUN(w, &s, real_break), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_DB);
    CHECK_EQ(get16(w, STACK - 6), 3);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    test_code_breakpoint(&w);
    test_data_breakpoint(&w);
    test_repeated(&w);
    test_port_breakpoint(&w);
    test_single_step(&w);
    test_stack_shadow(&w);
    test_interrupt_shadow(&w);
    test_registers(&w);
    test_real_mode(&w);
    world_destroy(&w);
    return check_report();
}
