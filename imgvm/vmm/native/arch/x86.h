/* SPDX-License-Identifier: MIT */
/* Architectural constants with the names of the Intel SDM. Facts only: no state, no code that acts. */
#ifndef IMGVM_ARCH_X86_H
#define IMGVM_ARCH_X86_H

#include <stdint.h>

enum x86_gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum x86_sreg { ES, CS, SS, DS, FS, GS };

/* EFLAGS (SDM vol. 1, 3.4.3) */
#define EFLAGS_CF 0x000001u
#define EFLAGS_FIXED 0x000002u
#define EFLAGS_PF 0x000004u
#define EFLAGS_AF 0x000010u
#define EFLAGS_ZF 0x000040u
#define EFLAGS_SF 0x000080u
#define EFLAGS_TF 0x000100u
#define EFLAGS_IF 0x000200u
#define EFLAGS_DF 0x000400u
#define EFLAGS_OF 0x000800u
#define EFLAGS_IOPL 0x003000u
#define EFLAGS_NT 0x004000u
#define EFLAGS_RF 0x010000u
#define EFLAGS_VM 0x020000u
#define EFLAGS_AC 0x040000u
#define EFLAGS_VIF 0x080000u
#define EFLAGS_VIP 0x100000u
#define EFLAGS_ID 0x200000u
#define EFLAGS_STATUS (EFLAGS_CF | EFLAGS_PF | EFLAGS_AF | EFLAGS_ZF | EFLAGS_SF | EFLAGS_OF)

/* Control registers (SDM vol. 3, 2.5) */
#define CR0_PE 0x00000001u
#define CR0_MP 0x00000002u
#define CR0_EM 0x00000004u
#define CR0_TS 0x00000008u
#define CR0_ET 0x00000010u
#define CR0_NE 0x00000020u
#define CR0_WP 0x00010000u
#define CR0_AM 0x00040000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u

#define CR4_VME 0x000001u
#define CR4_PVI 0x000002u
#define CR4_TSD 0x000004u
#define CR4_DE 0x000008u
#define CR4_PSE 0x000010u
#define CR4_PAE 0x000020u
#define CR4_MCE 0x000040u
#define CR4_PGE 0x000080u
#define CR4_PCE 0x000100u
#define CR4_OSFXSR 0x000200u
#define CR4_OSXMMEXCPT 0x000400u
#define CR4_UMIP 0x000800u
#define CR4_LA57 0x001000u
#define CR4_VMXE 0x002000u
#define CR4_FSGSBASE 0x010000u
#define CR4_PCIDE 0x020000u
#define CR4_OSXSAVE 0x040000u
#define CR4_SMEP 0x100000u
#define CR4_SMAP 0x200000u
#define CR4_PKE 0x400000u

#define EFER_SCE 0x0001u
#define EFER_LME 0x0100u
#define EFER_LMA 0x0400u
#define EFER_NXE 0x0800u
#define EFER_SVME 0x1000u
#define EFER_FFXSR 0x4000u

#define XCR0_X87 0x01u
#define XCR0_SSE 0x02u
#define XCR0_AVX 0x04u
#define XCR0_PKRU 0x200u

/* Exception vectors (SDM vol. 3, table 6-1) */
enum x86_exception {
    EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6, EXC_NM = 7, EXC_DF = 8,
    EXC_TS = 10, EXC_NP = 11, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14, EXC_MF = 16, EXC_AC = 17, EXC_MC = 18, EXC_XM = 19,
};

/* Page-fault error code (SDM vol. 3, 4.7) */
#define PF_P 0x01u
#define PF_W 0x02u
#define PF_U 0x04u
#define PF_RSVD 0x08u
#define PF_I 0x10u
#define PF_PK 0x20u

/* Page-table entry bits (SDM vol. 3, 4.3-4.5) */
#define PTE_P 0x001u
#define PTE_W 0x002u
#define PTE_U 0x004u
#define PTE_PWT 0x008u
#define PTE_PCD 0x010u
#define PTE_A 0x020u
#define PTE_D 0x040u
#define PTE_PS 0x080u
#define PTE_G 0x100u
#define PTE_NX (UINT64_C(1) << 63)
#define PTE_KEY (UINT64_C(15) << 59) /* protection key, in a leaf of long mode */
#define PTE_KEY_SHIFT 59

/* Debug registers (SDM vol. 3, 17.2) */
#define DR6_FIXED 0xffff0ff0u
#define DR6_BD 0x2000u
#define DR6_BS 0x4000u
#define DR6_BT 0x8000u
#define DR7_FIXED 0x400u
#define DR7_GD 0x2000u

/* Segment attributes, in the layout of VMX access rights (SDM vol. 3, table 25-2): bits 55:40 of a descriptor,
 * i.e. type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, and "unusable" 16. */
#define SEG_TYPE 0x000fu
#define SEG_ACCESSED 0x0001u
#define SEG_WRITE_READ 0x0002u /* data: writable; code: readable */
#define SEG_EXPAND_CONFORM 0x0004u /* data: expand-down; code: conforming */
#define SEG_CODE 0x0008u
#define SEG_S 0x0010u
#define SEG_DPL 0x0060u
#define SEG_DPL_SHIFT 5
#define SEG_P 0x0080u
#define SEG_AVL 0x1000u
#define SEG_L 0x2000u
#define SEG_DB 0x4000u
#define SEG_G 0x8000u
#define SEG_UNUSABLE 0x10000u

#endif
