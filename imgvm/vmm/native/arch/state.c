/* SPDX-License-Identifier: MIT */
#include "state.h"

#include <string.h>

#include "../base/bits.h"

#define XSAVE_FCW 0
#define XSAVE_MXCSR 24
#define XSAVE_XSTATE_BV 512

void x86_state_reset(struct x86_state *state, bool bootstrap)
{
    memset(state, 0, sizeof *state);
    state->rip = 0xfff0;
    state->rflags = EFLAGS_FIXED;
    for (unsigned i = 0; i < 6; i++)
        state->segment[i] = (struct x86_segment){
            .attributes = SEG_P | SEG_S | SEG_WRITE_READ | SEG_ACCESSED, .limit = 0xffff};
    state->segment[CS].selector = 0xf000;
    state->segment[CS].base = 0xffff0000;
    state->segment[CS].attributes |= SEG_CODE;
    state->ldtr = (struct x86_segment){.attributes = SEG_P | 2, .limit = 0xffff};
    state->tr = (struct x86_segment){.attributes = SEG_P | 11, .limit = 0xffff};
    state->gdtr.limit = state->idtr.limit = 0xffff;
    state->cr0 = CR0_ET | CR0_NW | CR0_CD;
    state->dr[6] = DR6_FIXED;
    state->dr[7] = DR7_FIXED;
    state->xcr0 = XCR0_X87;
    state->gpr[RDX] = 0x000806f8; /* the processor's signature, as CPUID.1 EAX */
    state->pat = UINT64_C(0x0007040600070406);
    state->misc_enable = 1; /* fast strings */
    state->apic_base = 0xfee00800 | (bootstrap ? 0x100 : 0);
    state->activity = bootstrap ? X86_RUNNING : X86_WAIT_FOR_SIPI;
    store_le16(state->xsave + XSAVE_FCW, 0x0040);
    store_le32(state->xsave + XSAVE_MXCSR, 0x1f80);
    store_le64(state->xsave + XSAVE_XSTATE_BV, XCR0_X87 | XCR0_SSE);
}
