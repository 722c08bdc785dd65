/* SPDX-License-Identifier: MIT */
/* The whole state of one x86 processor as plain data: what engines hand to each other, what a
 * snapshot saves, what a debugger sees. Nothing here depends on an engine. */
#ifndef IMGVM_ARCH_STATE_H
#define IMGVM_ARCH_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "x86.h"

#define X86_XSAVE_BYTES 4096 /* standard (non-compacted) format; room for AVX-512 (2696 bytes) */

struct x86_segment {
    uint16_t selector;
    uint32_t attributes; /* SEG_* */
    uint32_t limit;      /* in bytes, G already applied */
    uint64_t base;
};

struct x86_table {
    uint64_t base;
    uint16_t limit;
};

enum x86_activity { X86_RUNNING, X86_HALTED, X86_WAIT_FOR_SIPI, X86_SHUTDOWN };

struct x86_state {
    uint64_t gpr[16]; /* in encoding order, enum x86_gpr */
    uint64_t rip;
    uint64_t rflags; /* bit 1 always set */
    struct x86_segment segment[6]; /* enum x86_sreg */
    struct x86_segment ldtr, tr;
    struct x86_table gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4;
    uint64_t dr[8]; /* 4 and 5 unused */
    uint64_t xcr0;
    uint32_t pkru; /* here, whatever xsave says of component 9 */

    /* model-specific registers (SDM vol. 4) */
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t tsc_offset; /* guest TSC = ns of the machine's clock + offset (the TSC runs at 1 GHz) */
    uint64_t tsc_aux, tsc_adjust;
    uint64_t pat, misc_enable, spec_ctrl, xss;
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
    uint64_t apic_base, tsc_deadline, cr8;

    /* between instructions */
    enum x86_activity activity;
    bool nmi_blocked;      /* from NMI delivery to IRET */
    bool interrupt_shadow; /* after STI or a load of SS */
    uint8_t sipi_vector;

    _Alignas(64) uint8_t xsave[X86_XSAVE_BYTES];
};

/* Power-on state (SDM vol. 3, table 9-1). The bootstrap processor runs at FFFFFFF0h, the others wait for SIPI. */
void x86_state_reset(struct x86_state *state, bool bootstrap);

#endif
