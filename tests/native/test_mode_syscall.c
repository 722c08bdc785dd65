/* SPDX-License-Identifier: MIT */
/* SYSENTER and SYSCALL and their kin, as Intel's processors have them (SDM vol. 2) and as AMD's do. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

GUEST(sysenter32, 32, "sysenter; hlt");
GUEST(sysenter64, 64, "sysenter; hlt");
GUEST(sysexit32, 32, "sysexit; hlt");
GUEST(sysexit64, 64, "rex.w sysexit; hlt");
GUEST(syscall32, 32, "syscall; hlt");
GUEST(sysret32, 32, "sysret; hlt");
GUEST(syscall64, 64, "syscall; hlt");
GUEST(sysret64, 64, "sysretq; hlt");
GUEST(halt_there, 64, "nop; hlt");
static void test_fast_calls(struct world *w)
{
    struct x86_state s;
    const uint32_t there = 0x11000;
    guest_mem_write(&w->mem, there, halt_there_begin, 2);
    protected_mode(w, &s);
    to_user(&s);
    s.sysenter_cs = CODE32;
    s.sysenter_eip = there;
    s.sysenter_esp = 0x6000;
    s.rflags |= EFLAGS_IF;
    CHECK_EQ(RUN(w, &s, sysenter32), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, there + 2);
    CHECK_EQ(s.gpr[RSP], 0x6000);
    CHECK_EQ(s.segment[CS].selector, CODE32);
    CHECK_EQ(s.segment[SS].selector, CODE32 + 8);
    CHECK_EQ(s.rflags & EFLAGS_IF, 0);
    protected_mode(w, &s); /* no CS set */
    CHECK_EQ(RUN(w, &s, sysenter32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    real_mode(w, &s);
    s.sysenter_cs = 8;
    CHECK_EQ(RUN(w, &s, sysenter32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    protected_mode(w, &s);
    s.sysenter_cs = 0x100;
    s.gpr[RDX] = there;
    s.gpr[RCX] = USER_STACK;
    CHECK_EQ(RUN(w, &s, sysexit32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* HLT in ring 3 */
    CHECK_EQ(frame(w, &s, 1), there + 1);
    CHECK_EQ(frame(w, &s, 2), 0x113);
    CHECK_EQ(frame(w, &s, 5), 0x11b);
    protected_mode(w, &s); /* only ring 0 leaves */
    to_user(&s);
    s.sysenter_cs = 0x100;
    CHECK_EQ(RUN(w, &s, sysexit32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 1), CODE);
    long_mode(w, &s);
    s.sysenter_cs = 0x100;
    s.gpr[RDX] = BIT(50);
    CHECK_EQ(RUN(w, &s, sysexit64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 1), CODE);

    /* from compatibility mode: SYSENTER enters 64-bit code, SYSCALL is not there (as with Intel) */
    for (unsigned i = 0; i < 3; i++) {
        long_mode(w, &s);
        to_user(&s);
        s.segment[CS] = (struct x86_segment){USER_CODE32, 0xc0fb, 0xffffffff, 0};
        s.sysenter_cs = CODE64;
        s.sysenter_eip = there;
        s.sysenter_esp = 0x6000;
        s.star = (uint64_t)CODE64 << 32;
        s.lstar = s.cstar = there;
        CHECK_EQ(i == 0 ? RUN(w, &s, sysenter32) : i == 1 ? RUN(w, &s, syscall32) : RUN(w, &s, sysret32), CPU_EXIT_HALT);
        if (i == 0)
            CHECK_EQ(s.rip, there + 2);
        else
            CHECK_VECTOR(&s, EXC_UD);
        CHECK_EQ(s.segment[CS].selector, CODE64);
    }
    long_mode(w, &s);
    s.efer &= ~(uint64_t)EFER_SCE;
    CHECK_EQ(RUN(w, &s, syscall64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
    long_mode(w, &s);
    s.gpr[RCX] = BIT(47);
    CHECK_EQ(RUN(w, &s, sysret64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 2), CODE64); /* still in ring 0 */

    /* TF and SYSCALL: masked, nothing traps; else the step is taken in the kernel */
    for (unsigned masked = 0; masked < 2; masked++) {
        long_mode(w, &s);
        to_user(&s);
        s.star = (uint64_t)CODE64 << 32;
        s.lstar = there;
        s.sfmask = masked ? EFLAGS_TF : 0;
        s.rflags |= EFLAGS_TF;
        s.gpr[RSP] = STACK;
        CHECK_EQ(RUN(w, &s, syscall64), CPU_EXIT_HALT);
        if (masked) {
            CHECK_EQ(s.rip, there + 2);
        } else {
            CHECK_VECTOR(&s, EXC_DB);
            CHECK_EQ(frame(w, &s, 0), there);
        }
        CHECK_EQ(s.gpr[R11] & EFLAGS_TF, EFLAGS_TF);
    }
}

/* ---- the same with AMD's processors (APM vol. 3, SYSCALL, SYSRET, SYSENTER, SYSEXIT) ---- */

GUEST(sysret64_to_32, 64, "sysret; hlt");
GUEST(cpuid_vendor, 64, "xor %eax, %eax; cpuid; hlt");

#define THERE 0x11000u

static void amd_syscall(struct world *w)
{
    struct x86_state s;
    /* compatibility mode: to CSTAR, in 64-bit code */
    long_mode(w, &s);
    to_user(&s);
    s.segment[CS] = (struct x86_segment){USER_CODE32, 0xc0fb, 0xffffffff, 0};
    s.star = (uint64_t)CODE64 << 32;
    s.lstar = 0x3000;
    s.cstar = THERE;
    s.sfmask = EFLAGS_IF | EFLAGS_DF;
    s.rflags |= EFLAGS_IF | EFLAGS_DF | EFLAGS_CF;
    CHECK_EQ(RUN(w, &s, syscall32), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, THERE + 2);
    CHECK_EQ(s.segment[CS].selector, CODE64);
    CHECK_EQ(s.segment[CS].attributes & (SEG_L | SEG_DB | SEG_DPL), SEG_L);
    CHECK_EQ(s.segment[SS].selector, CODE64 + 8);
    CHECK_EQ(s.gpr[RCX], CODE + 2);
    CHECK_EQ(s.gpr[R11], EFLAGS_FIXED | EFLAGS_IF | EFLAGS_DF | EFLAGS_CF);
    CHECK_EQ(s.rflags, EFLAGS_FIXED | EFLAGS_CF);
    /* 64-bit mode: to LSTAR */
    long_mode(w, &s);
    to_user(&s);
    s.star = (uint64_t)CODE64 << 32;
    s.lstar = THERE;
    CHECK_EQ(RUN(w, &s, syscall64), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, THERE + 2);
    /* legacy mode: to STAR, in flat 32-bit code; R11 has no part in it, and of the flags VM, IF and RF go */
    protected_mode(w, &s);
    to_user(&s);
    s.efer = EFER_SCE;
    s.star = (uint64_t)(CODE32 | 3) << 32 | THERE;
    s.sfmask = EFLAGS_CF;
    s.rflags |= EFLAGS_IF | EFLAGS_CF;
    s.gpr[R11] = 77;
    CHECK_EQ(RUN(w, &s, syscall32), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, THERE + 2);
    CHECK_EQ(s.segment[CS].selector, CODE32);
    CHECK_EQ(s.segment[CS].attributes & (SEG_L | SEG_DB | SEG_DPL), SEG_DB);
    CHECK_EQ(s.gpr[RCX], CODE + 2);
    CHECK_EQ(s.gpr[R11], 77);
    CHECK_EQ(s.rflags, EFLAGS_FIXED | EFLAGS_CF);
    protected_mode(w, &s); /* no SCE */
    CHECK_EQ(RUN(w, &s, syscall32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_UD);
}

static void amd_sysret(struct world *w)
{
    struct x86_state s;
    const uint64_t star = (uint64_t)(USER_CODE32 | 3) << 48;
    /* legacy mode: CS and SS's selector, IF on, the other flags as they were */
    protected_mode(w, &s);
    s.efer = EFER_SCE;
    s.star = star;
    s.gpr[RCX] = THERE;
    s.gpr[RSP] = USER_STACK;
    s.rflags |= EFLAGS_CF;
    CHECK_EQ(RUN(w, &s, sysret32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP); /* HLT in ring 3 */
    CHECK_EQ(frame(w, &s, 1), THERE + 1);
    CHECK_EQ(frame(w, &s, 2), USER_CODE32);
    CHECK_EQ(frame(w, &s, 3) & (EFLAGS_IF | EFLAGS_CF), EFLAGS_IF | EFLAGS_CF);
    CHECK_EQ(frame(w, &s, 5), USER_CODE32 + 8);
    /* compatibility mode, ring 0: to 32-bit code */
    long_mode(w, &s);
    s.segment[CS] = (struct x86_segment){CODE32, 0xc09b, 0xffffffff, 0};
    s.star = star;
    s.gpr[RCX] = THERE;
    CHECK_EQ(RUN(w, &s, sysret32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 2), USER_CODE32);
    /* above ring 0, and in real mode: #GP, not #UD */
    protected_mode(w, &s);
    to_user(&s);
    s.efer = EFER_SCE;
    CHECK_EQ(RUN(w, &s, sysret32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 1), CODE);
    real_mode(w, &s);
    s.efer = EFER_SCE;
    CHECK_EQ(RUN(w, &s, sysret32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    /* an address that is not canonical: found by ring 3, where Intel's SYSRET faults itself */
    long_mode(w, &s);
    s.star = star;
    s.gpr[RCX] = BIT(47);
    CHECK_EQ(RUN(w, &s, sysret64), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, EXC_GP);
    CHECK_EQ(frame(w, &s, 1), BIT(47));
    CHECK_EQ(frame(w, &s, 2), (USER_CODE32 + 16) | 3);
}

/* SYSRET to 32-bit code after an interrupt made SS null: the stack cannot be used until SS is loaded again. */
GUEST(push_there, 32, "push %eax; hlt");
static void amd_sysret_keeps_ss(struct world *w, bool null_ss)
{
    struct x86_state s;
    guest_mem_write(&w->mem, THERE, push_there_begin, 2);
    long_mode(w, &s);
    s.star = (uint64_t)(USER_CODE32 | 3) << 48;
    s.gpr[RCX] = THERE;
    s.gpr[R11] = EFLAGS_FIXED;
    s.gpr[RSP] = USER_STACK;
    if (null_ss)
        s.segment[SS] = (struct x86_segment){.attributes = SEG_UNUSABLE};
    CHECK_EQ(RUN(w, &s, sysret64_to_32), CPU_EXIT_HALT);
    CHECK_VECTOR(&s, null_ss ? EXC_SS : EXC_GP);
    CHECK_EQ(frame(w, &s, 1), THERE + !null_ss);
    CHECK_EQ(frame(w, &s, 5), USER_CODE32 + 8);
    guest_mem_write(&w->mem, THERE, halt_there_begin, 2);
}

static void amd_sysenter(struct world *w)
{
    struct x86_state s;
    protected_mode(w, &s); /* as Intel's */
    to_user(&s);
    s.sysenter_cs = CODE32;
    s.sysenter_eip = THERE;
    s.sysenter_esp = 0x6000;
    CHECK_EQ(RUN(w, &s, sysenter32), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, THERE + 2);
    for (unsigned i = 0; i < 4; i++) { /* not in long mode */
        long_mode(w, &s);
        s.sysenter_cs = CODE64;
        if (i >= 2)
            s.segment[CS] = (struct x86_segment){CODE32, 0xc09b, 0xffffffff, 0};
        CHECK_EQ(i == 0 ? RUN(w, &s, sysenter64) : i == 1 ? RUN(w, &s, sysexit64) : i == 2 ? RUN(w, &s, sysenter32) : RUN(w, &s, sysexit32),
                 CPU_EXIT_HALT);
        CHECK_VECTOR(&s, EXC_UD);
    }
}

static void test_fast_calls_amd(struct world *w)
{
    struct x86_state s;
    guest_mem_write(&w->mem, THERE, halt_there_begin, 2);
    amd_syscall(w);
    amd_sysret(w);
    amd_sysret_keeps_ss(w, false);
    amd_sysret_keeps_ss(w, true);
    amd_sysenter(w);
    long_mode(w, &s);
    CHECK_EQ(RUN(w, &s, cpuid_vendor), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RBX], 0x68747541);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init_as(&w, CPU_VENDOR_AMD);
    test_fast_calls_amd(&w);
    world_destroy(&w);
    world_init(&w);
    test_fast_calls(&w);
    world_destroy(&w);
    return check_report();
}
