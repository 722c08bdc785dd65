/* SPDX-License-Identifier: MIT */
/* Flags that live across an instruction which checks its vector unit and changes the registers that they were made of. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include "cpu/jit/jit.h"

#define WORLD_TRANSLATOR &jit_translator
#include "mode_world.h"

GUEST(branch, 64, "cmp %ebx, %eax\n movd %xmm0, %eax\n jne 1f\n mov $1, %ecx\n hlt\n 1: mov $2, %ecx\n hlt");
GUEST(condition, 64, "or $0, %al\n fnstsw %ax\n setz %cl\n hlt");
GUEST(frame, 64, "or $0, %al\n fnstsw %ax\n paddd (%rdi), %xmm0\n hlt");

static void test_flags(void)
{
    for (uint64_t equal = 0; equal < 2; equal++) {
        static struct x86_state s;
        struct world w;
        world_init(&w);
        long_mode(&w, &s);
        s.gpr[RAX] = 5;
        s.gpr[RBX] = equal ? 5 : 6;
        store_le64(s.xsave + 160, equal ? 6 : 5); /* xmm0: would turn it round */
        store_le64(s.xsave + 512, 3);
        CHECK_EQ(RUN(&w, &s, branch), CPU_EXIT_HALT);
        CHECK_EQ(s.gpr[RCX], equal ? 1 : 2);
        world_destroy(&w);

        world_init(&w);
        long_mode(&w, &s);
        s.gpr[RAX] = equal ? 0 : 1;
        store_le16(s.xsave + 2, equal ? 0x41 : 0); /* the status word is not zero when AL was */
        store_le64(s.xsave + 512, 1);
        CHECK_EQ(RUN(&w, &s, condition), CPU_EXIT_HALT);
        CHECK_EQ(s.gpr[RCX] & 0xff, equal);

        s.gpr[RAX] = equal ? 0 : 1;
        s.gpr[RDI] = UINT64_C(0x7f0000000000);
        s.rip = CODE;
        s.activity = X86_RUNNING;
        CHECK_EQ(RUN(&w, &s, frame), CPU_EXIT_HALT);
        CHECK_VECTOR(&s, EXC_PF);
        CHECK_EQ(get64(&w, s.gpr[RSP] + 24) & EFLAGS_ZF, equal ? EFLAGS_ZF : 0);
        world_destroy(&w);
    }
}

int main(void)
{
    world_main_begin();
    test_flags();
    return check_report();
}
