/* SPDX-License-Identifier: MIT */
/* RDMSR and WRMSR (SDM vol. 4, chapter 2; vol. 2 for the faults). */
#include "exec.h"
#include "trace.h"

#define IA32_TSC 0x10
#define IA32_PLATFORM_ID 0x17
#define IA32_APIC_BASE 0x1b
#define IA32_TSC_ADJUST 0x3b
#define IA32_PRED_CMD 0x49
#define IA32_BIOS_UPDT_TRIG 0x79
#define IA32_BIOS_SIGN_ID 0x8b
#define IA32_MTRRCAP 0xfe
#define IA32_ARCH_CAPABILITIES 0x10a
#define IA32_FLUSH_CMD 0x10b
#define IA32_SYSENTER_ESP 0x175
#define IA32_SYSENTER_EIP 0x176
#define IA32_MCG_CAP 0x179
#define IA32_MCG_STATUS 0x17a
#define IA32_MTRR_PHYSBASE0 0x200
#define IA32_MTRR_FIX64K 0x250
#define IA32_MTRR_FIX4K_LAST 0x26f
#define IA32_PAT 0x277
#define IA32_MTRR_DEF_TYPE 0x2ff
#define IA32_TSC_DEADLINE 0x6e0
#define IA32_TSC_AUX 0xc0000103
#define IA32_XSS 0xda0
#define IA32_EFER 0xc0000080
#define IA32_LSTAR 0xc0000082
#define IA32_CSTAR 0xc0000083
#define IA32_FS_BASE 0xc0000100
#define IA32_GS_BASE 0xc0000101
#define IA32_KERNEL_GS_BASE 0xc0000102
/* AMD's alone (APM vol. 2, appendix A); guests read and write them back, nothing here depends on them */
#define AMD_SYSCFG 0xc0010010
#define AMD_HWCR 0xc0010015
#define AMD_NB_CFG 0xc001001f
#define AMD_DE_CFG 0xc0011029
#define DE_CFG_LFENCE_SERIALIZES 2u

#define MTRR_VARIABLE 8
#define MTRRCAP (MTRR_VARIABLE | 0x100 | 0x400) /* fixed ranges, write-combining */

/* The storage of a plain row, or NULL; *valid: its writable bits. */
static uint64_t *plain(struct cpu *cpu, uint32_t index, uint64_t *valid)
{
    if (index == IA32_TSC_AUX && !cpuid_has(&cpu->cpuid, FEATURE_RDTSCP) && !cpuid_has(&cpu->cpuid, FEATURE_RDPID))
        return NULL;
    switch (index) {
#define MSR(name, number, field, bits) \
    case number:                       \
        *valid = bits;                 \
        return &cpu->s.field;
#include "../../arch/msr.def"
#undef MSR
    default:
        if (index - IA32_MTRR_PHYSBASE0 < 2 * MTRR_VARIABLE) {
            unsigned n = (index - IA32_MTRR_PHYSBASE0) / 2;
            *valid = BIT(CPUID_PHYSICAL_BITS) - 1;
            *valid &= index & 1 ? ~UINT64_C(0x7ff) : ~UINT64_C(0xf00);
            return index & 1 ? &cpu->s.mtrr_mask[n] : &cpu->s.mtrr_base[n];
        }
        return NULL;
    }
}

static bool board_owns(uint32_t index)
{
    return index == IA32_APIC_BASE || index == IA32_TSC_DEADLINE || (index >= 0x800 && index <= 0x8ff);
}

static bool is_amd_msr(const struct cpu *cpu, uint32_t index)
{
    return cpu->cpuid.vendor == CPU_VENDOR_AMD &&
           (index == AMD_SYSCFG || index == AMD_HWCR || index == AMD_NB_CFG || index == AMD_DE_CFG);
}

static bool read_msr(struct cpu *cpu, uint32_t index, uint64_t *value)
{
    uint64_t valid;
    uint64_t *storage = plain(cpu, index, &valid);
    if (storage) {
        *value = *storage;
        return true;
    }
    if (board_owns(index)) {
        cpu_fpu_leave(cpu);
        return cpu->callbacks.msr_read(cpu->opaque, index, value);
    }
    if (is_amd_msr(cpu, index)) {
        *value = index == AMD_DE_CFG ? DE_CFG_LFENCE_SERIALIZES : 0;
        return true;
    }
    switch (index) {
    case IA32_TSC: *value = cpu_tsc(cpu); return true;
    case IA32_TSC_ADJUST: *value = cpu->s.tsc_adjust; return true;
    case IA32_XSS: *value = 0; return cpuid_has(&cpu->cpuid, FEATURE_XSAVES);
    case IA32_PLATFORM_ID: case IA32_MCG_CAP: case IA32_MCG_STATUS: *value = 0; return true;
    case IA32_BIOS_SIGN_ID: *value = UINT64_C(1) << 32; return true;
    case IA32_MTRRCAP: *value = MTRRCAP; return true;
    case IA32_ARCH_CAPABILITIES: *value = CPUID_ARCH_CAPABILITIES; return true;
    case IA32_SYSENTER_ESP: *value = cpu->s.sysenter_esp; return true;
    case IA32_SYSENTER_EIP: *value = cpu->s.sysenter_eip; return true;
    case IA32_EFER: *value = cpu->s.efer; return true;
    case IA32_LSTAR: *value = cpu->s.lstar; return true;
    case IA32_CSTAR: *value = cpu->s.cstar; return true;
    case IA32_FS_BASE: *value = cpu->seg_base[FS]; return true;
    case IA32_GS_BASE: *value = cpu->seg_base[GS]; return true;
    case IA32_KERNEL_GS_BASE: *value = cpu->s.kernel_gs_base; return true;
    default: return false;
    }
}

static bool set_address(const struct cpu *cpu, uint64_t *field, uint64_t value)
{
    if (!canonical_in_register(cpu, value))
        return false;
    *field = value;
    return true;
}

static bool set_base(struct cpu *cpu, unsigned index, uint64_t value)
{
    if (!canonical_in_register(cpu, value))
        return false;
    cpu->s.segment[index].base = value;
    cpu->seg_base[index] = value;
    return true;
}

static bool set_efer(struct cpu *cpu, uint64_t value)
{
    if (value & ~cpuid_efer_bits(&cpu->cpuid))
        return false;
    if (((value ^ cpu->s.efer) & EFER_LME) && (cpu->s.cr0 & CR0_PG))
        return false;
    bool nx_changed = (value ^ cpu->s.efer) & EFER_NXE;
    cpu->s.efer = (value & ~(uint64_t)EFER_LMA) | (cpu->s.efer & EFER_LMA);
    cpu_update_mode(cpu);
    if (nx_changed)
        mmu_flush(&cpu->mmu);
    return true;
}

static void move_tsc(struct cpu *cpu, uint64_t delta)
{
    cpu->s.tsc_offset += delta;
    cpu->tsc_piece.ticks = 0;
    cpu->s.tsc_adjust += delta;
    if (cpu->callbacks.tsc_offset_changed) {
        cpu_fpu_leave(cpu);
        cpu->callbacks.tsc_offset_changed(cpu->opaque, cpu->s.tsc_offset);
    }
}

static bool is_memory_type(uint64_t type, bool pat)
{
    return type <= 1 || (type >= 4 && type <= 6) || (pat && type == 7);
}

/* The memory types in the PAT and the MTRRs (SDM vol. 3, 11.11.2 and 11.12.2). */
static bool types_valid(uint32_t index, uint64_t value)
{
    unsigned bytes;
    bool pat = index == IA32_PAT;
    if (pat || (index >= IA32_MTRR_FIX64K && index <= IA32_MTRR_FIX4K_LAST))
        bytes = 8;
    else if (index == IA32_MTRR_DEF_TYPE || (index - IA32_MTRR_PHYSBASE0 < 2 * MTRR_VARIABLE && !(index & 1)))
        bytes = 1;
    else
        return true;
    for (unsigned i = 0; i < bytes; i++)
        if (!is_memory_type(value >> (8 * i) & 0xff, pat))
            return false;
    return true;
}

static bool write_msr(struct cpu *cpu, uint32_t index, uint64_t value)
{
    uint64_t valid;
    uint64_t *storage = plain(cpu, index, &valid);
    if (storage) {
        if (value & ~valid || !types_valid(index, value))
            return false;
        *storage = value;
        return true;
    }
    if (board_owns(index)) {
        cpu_fpu_leave(cpu);
        return cpu->callbacks.msr_write(cpu->opaque, index, value);
    }
    if (is_amd_msr(cpu, index))
        return true;
    switch (index) {
    case IA32_TSC: move_tsc(cpu, value - cpu_tsc(cpu)); return true;
    case IA32_TSC_ADJUST: move_tsc(cpu, value - cpu->s.tsc_adjust); return true;
    case IA32_PRED_CMD: case IA32_FLUSH_CMD: return !(value & ~UINT64_C(1));
    case IA32_BIOS_UPDT_TRIG: case IA32_BIOS_SIGN_ID: case IA32_MCG_STATUS: return true;
    case IA32_SYSENTER_ESP: return set_address(cpu, &cpu->s.sysenter_esp, value);
    case IA32_SYSENTER_EIP: return set_address(cpu, &cpu->s.sysenter_eip, value);
    case IA32_XSS: return !value && cpuid_has(&cpu->cpuid, FEATURE_XSAVES); /* it has no bit */
    case IA32_EFER: return set_efer(cpu, value);
    case IA32_LSTAR: return set_address(cpu, &cpu->s.lstar, value);
    case IA32_CSTAR: return set_address(cpu, &cpu->s.cstar, value);
    case IA32_FS_BASE: return set_base(cpu, FS, value);
    case IA32_GS_BASE: return set_base(cpu, GS, value);
    case IA32_KERNEL_GS_BASE: return set_address(cpu, &cpu->s.kernel_gs_base, value);
    default: return false;
    }
}

static void rdmsr(struct cpu *cpu, const struct uop *u)
{
    uint64_t value = 0;
    uint32_t index = (uint32_t)cpu->gpr[RCX];
    bool known = !cpu->cpl && read_msr(cpu, index, &value);
    if (unlikely(cpu->traced))
        cpu_trace_msr(cpu, false, index, value, known);
    if (!known)
        raise_gp(cpu, u, 0);
    cpu->gpr[RAX] = (uint32_t)value;
    cpu->gpr[RDX] = value >> 32;
    END_BLOCK;
}

static void wrmsr(struct cpu *cpu, const struct uop *u)
{
    uint64_t value = cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX];
    uint32_t index = (uint32_t)cpu->gpr[RCX];
    bool known = !cpu->cpl && write_msr(cpu, index, value);
    if (unlikely(cpu->traced))
        cpu_trace_msr(cpu, true, index, value, known);
    if (!known)
        raise_gp(cpu, u, 0);
    END_BLOCK;
}

const struct exec_def exec_msr[] = {
    {OP_RDMSR, EXEC_ANY_FORM, NULL, rdmsr},
    {OP_WRMSR, EXEC_ANY_FORM, NULL, wrmsr},
    {0, 0, NULL, NULL},
};
