/* SPDX-License-Identifier: MIT */
/* What CPUID answers (SDM vol. 2, CPUID). Pure: no processor state beyond the four live fields below. */
#ifndef IMGVM_CPU_EXEC_CPUID_H
#define IMGVM_CPU_EXEC_CPUID_H

#include <stdbool.h>
#include <stdint.h>

#include "../../arch/cpu_feature.h"

#define CPUID_SIGNATURE 0x000806f8u /* family 6, model 8Fh, stepping 8; also EDX at reset */
#define CPUID_SIGNATURE_AMD 0x00b00f21u /* family 1Ah, model 2, stepping 1 */
/* AMD's processors repeat these bits of leaf 1 EDX in leaf 8000_0001h (APM vol. 3, E.4.2). */
#define CPUID_REPEATED_BITS 0x0183f3ffu
#define CPUID_PHYSICAL_BITS 46
#define CPUID_LINEAR_BITS 48
#define CPUID_LINEAR_BITS_LA57 57
#define CPUID_TSC_HZ 1000000000u /* also what the local APIC's timer counts at */

/* IA32_ARCH_CAPABILITIES (SDM vol. 4): the flaws an interpreter does not have. Guests skip the page-table
 * isolation, retpolines and buffer clearing that cost most under emulation. */
#define ARCH_CAP_RDCL_NO 0x0001u
#define ARCH_CAP_IBRS_ALL 0x0002u
#define ARCH_CAP_SKIP_L1DFL_VMENTRY 0x0008u
#define ARCH_CAP_SSB_NO 0x0010u
#define ARCH_CAP_MDS_NO 0x0020u
#define ARCH_CAP_PSCHANGE_MC_NO 0x0040u
#define ARCH_CAP_TAA_NO 0x0100u
#define ARCH_CAP_SBDR_SSDP_NO 0x2000u
#define ARCH_CAP_FBSDP_NO 0x4000u
#define ARCH_CAP_PSDP_NO 0x8000u
#define ARCH_CAP_BHI_NO 0x100000u
#define ARCH_CAP_PBRSB_NO 0x1000000u
#define ARCH_CAP_GDS_NO 0x4000000u
#define ARCH_CAP_RFDS_NO 0x8000000u
#define ARCH_CAP_ITS_NO (UINT64_C(1) << 62)
#define CPUID_ARCH_CAPABILITIES                                                                                   \
    (ARCH_CAP_RDCL_NO | ARCH_CAP_IBRS_ALL | ARCH_CAP_SKIP_L1DFL_VMENTRY | ARCH_CAP_SSB_NO | ARCH_CAP_MDS_NO |     \
     ARCH_CAP_PSCHANGE_MC_NO | ARCH_CAP_TAA_NO | ARCH_CAP_SBDR_SSDP_NO | ARCH_CAP_FBSDP_NO | ARCH_CAP_PSDP_NO |   \
     ARCH_CAP_BHI_NO | ARCH_CAP_PBRSB_NO | ARCH_CAP_GDS_NO | ARCH_CAP_RFDS_NO | ARCH_CAP_ITS_NO)

struct cpuid_config {
    uint32_t apic_id, count; /* this processor; processors of the machine (one socket, one thread a core) */
    enum cpu_vendor vendor; /* INTEL or AMD */
    struct feature_set announced;
    /* live: keep equal to the processor's */
    uint64_t xcr0;
    bool osxsave;      /* CR4.OSXSAVE */
    bool ospke;        /* CR4.PKE */
    bool apic_enabled; /* IA32_APIC_BASE bit 11 */
};

/* An answer that holds as long as the processor's live values do. */
struct cpuid_memo {
    uint32_t leaf, subleaf, known, reserved;
    uint32_t out[4];
};
#define CPUID_MEMOS 16u /* by the leaf's low bits */

/* Announces every feature whose instructions exist (op.def) and, where they run as themselves, that the host has.
 * Asks the host's CPUID, which may cost microseconds: once a processor. */
void cpuid_init(struct cpuid_config *config, uint32_t apic_id, uint32_t count);
/* The engine has it: system features, in the caller's hands. */
void cpuid_announce(struct cpuid_config *config, enum cpu_feature feature);
/* An instruction whose feature is not announced is #UD. */
static inline bool cpuid_has(const struct cpuid_config *config, enum cpu_feature feature)
{
    return feature_set_has(&config->announced, feature);
}

/* Bits of CR4 and EFER that a processor with these features has; setting another one is #GP. */
uint64_t cpuid_cr4_bits(const struct cpuid_config *config);
uint64_t cpuid_efer_bits(const struct cpuid_config *config);

/* out: EAX, EBX, ECX, EDX. */
void cpuid_query(const struct cpuid_config *config, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

enum cpu_vendor cpuid_host_vendor(void);
/* Where the standard format of XSAVE images has PKRU: where this host has it, so that the software processor may go on
 * with an image that it wrote; else behind AVX. */
uint32_t cpuid_pkru_offset(void);
/* Does this host's processor and operating system have it? */
bool cpuid_host_has(enum cpu_feature feature);

#endif
