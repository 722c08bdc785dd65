/* SPDX-License-Identifier: MIT */
/* The CPUID that a guest sees under KVM: what the host supports, with this processor's place in the machine, less what
 * the machine is not to have (SDM vol. 2, CPUID). */
#include "kvm.h"

#include <string.h>
#include <sys/ioctl.h>

#include "../arch/x86.h"
#include "../base/bits.h"
#include "../cpu/exec/cpuid.h"

/* One package of single-thread cores (SDM vol. 3, 9.9.3 "Hierarchical ID"). */
void kvm_cpuid_adapt(struct kvm_cpuid2 *cpuid, const struct kvm_engine *kvm, unsigned id)
{
    unsigned shift = 0;
    while ((1u << shift) < kvm->cpus)
        shift++;
    bool deadline = ioctl(kvm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    for (unsigned i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        switch (entry->function) {
        case 1:
            entry->ebx = (entry->ebx & 0x0000ffff) | (id << 24) | ((1u << shift) << 16);
            entry->ecx |= BIT(31) | (deadline ? BIT(24) : 0);
            if (kvm->cpus > 1)
                entry->edx |= BIT(28);
            else
                entry->edx &= ~(uint32_t)BIT(28);
            break;
        case 4:
            entry->eax &= ~0xffffc000u;
            if (((entry->eax >> 5) & 7) == 3) /* the last cache level is shared by all */
                entry->eax |= ((1u << shift) - 1) << 14;
            entry->eax |= ((1u << shift) - 1) << 26;
            break;
        case 0xb:
        case 0x1f:
            entry->ecx = entry->index | (entry->index == 0 ? 0x100 : entry->index == 1 ? 0x200 : 0);
            entry->eax = entry->index == 1 ? shift : 0;
            entry->ebx = entry->index == 0 ? 1 : entry->index == 1 ? kvm->cpus : 0;
            entry->edx = id;
            break;
        }
    }
}

static uint32_t *entry_register(struct kvm_cpuid_entry2 *entry, unsigned reg)
{
    switch (reg) {
    case CPUID_EAX: return &entry->eax;
    case CPUID_EBX: return &entry->ebx;
    case CPUID_ECX: return &entry->ecx;
    default: return &entry->edx;
    }
}

static struct kvm_cpuid_entry2 *find(struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < cpuid->nent; i++)
        if (cpuid->entries[i].function == leaf && cpuid->entries[i].index == subleaf)
            return &cpuid->entries[i];
    return NULL;
}

/* Instructions without state or switches of their own run as the host's processor runs them, whatever its KVM reports;
 * some nested hosts report less than x86-64-v2. */
void kvm_cpuid_add_plain(struct kvm_cpuid2 *cpuid)
{
    static const enum cpu_feature plain[] = {FEATURE_SSE3, FEATURE_SSSE3, FEATURE_SSE41, FEATURE_SSE42, FEATURE_POPCNT,
                                             FEATURE_CX16, FEATURE_LAHF64};
    for (size_t i = 0; i < ARRAY_LEN(plain); i++) {
        const struct cpu_feature_row *row = &cpu_feature_rows[plain[i]];
        struct kvm_cpuid_entry2 *entry = find(cpuid, row->leaf, row->subleaf);
        if (entry && cpuid_host_has(plain[i]))
            *entry_register(entry, row->reg) |= 1u << row->bit;
    }
}

enum cpu_vendor kvm_cpuid_vendor(const struct kvm_cpuid2 *cpuid)
{
    struct kvm_cpuid2 *all = (struct kvm_cpuid2 *)cpuid;
    const struct kvm_cpuid_entry2 *entry = find(all, 0, 0);
    return entry ? cpu_vendor_of(entry->ebx) : CPU_VENDOR_INTEL;
}

void kvm_cpuid_set_vendor(struct kvm_cpuid2 *cpuid, enum cpu_vendor vendor)
{
    if (vendor == CPU_VENDOR_AUTO || vendor == kvm_cpuid_vendor(cpuid))
        return;
    /* a signature, and with AMD's the extended leaves' copies, that belong to the name */
    struct cpuid_config config;
    cpuid_init(&config, 0, 1);
    config.vendor = vendor;
    for (unsigned i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        uint32_t own[4];
        cpuid_query(&config, entry->function, entry->index, own);
        if (entry->function == 0 || entry->function == 0x80000000) {
            entry->ebx = own[CPUID_EBX];
            entry->ecx = own[CPUID_ECX];
            entry->edx = own[CPUID_EDX];
        } else if (entry->function == 1 || entry->function == 0x80000001) {
            entry->eax = own[CPUID_EAX];
        }
    }
}

void kvm_cpuid_features(struct kvm_cpuid2 *cpuid, struct feature_set *out)
{
    *out = (struct feature_set){0};
    for (unsigned feature = FEATURE_BASE + 1; feature < FEATURE_COUNT; feature++) {
        const struct cpu_feature_row *row = &cpu_feature_rows[feature];
        struct kvm_cpuid_entry2 *entry = find(cpuid, row->leaf, row->subleaf);
        if (entry && row->class != FEATURE_CLASS_LIVE && *entry_register(entry, row->reg) >> row->bit & 1)
            feature_set_add(out, feature);
    }
}

/* Registers all of whose bits are features: in them, bits that cpuid.def has no row for are unknown to us. */
static const struct {
    uint32_t leaf;
    uint8_t subleaf, reg;
} feature_registers[] = {
    {1, 0, CPUID_ECX}, {1, 0, CPUID_EDX}, {7, 0, CPUID_EBX}, {7, 0, CPUID_ECX}, {7, 0, CPUID_EDX}, {7, 1, CPUID_EAX},
    {7, 1, CPUID_EBX}, {7, 1, CPUID_ECX}, {7, 1, CPUID_EDX}, {0xd, 1, CPUID_EAX}, {0x80000001, 0, CPUID_ECX},
    {0x80000001, 0, CPUID_EDX},
};

static uint32_t granted_bits(const struct feature_set *granted, uint32_t leaf, uint32_t subleaf, unsigned reg, bool known)
{
    uint32_t bits = 0;
    for (unsigned feature = FEATURE_BASE + 1; feature < FEATURE_COUNT; feature++) {
        const struct cpu_feature_row *row = &cpu_feature_rows[feature];
        if (row->leaf == leaf && row->subleaf == subleaf && row->reg == reg && (known || feature_set_has(granted, feature)))
            bits |= 1u << row->bit;
    }
    return bits;
}

/* State components (SDM vol. 1, 13.2): only those that a granted feature uses. */
static void limit_xsave(struct kvm_cpuid2 *cpuid, const struct feature_set *granted, bool only_known)
{
    uint64_t keep = ~UINT64_C(0);
    if (!feature_set_has(granted, FEATURE_XSAVE))
        keep = 0;
    else if (!feature_set_has(granted, FEATURE_AVX))
        keep = XCR0_X87 | XCR0_SSE;
    else if (only_known)
        keep = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    if (keep != ~UINT64_C(0) && keep && feature_set_has(granted, FEATURE_PKU))
        keep |= BIT(9);
    uint64_t offered = 0;
    uint32_t size = keep ? 576 : 0;
    for (unsigned i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        if (entry->function != 0xd || keep == ~UINT64_C(0))
            continue;
        if (entry->index == 0) {
            offered = keep & (entry->eax | (uint64_t)entry->edx << 32);
            entry->eax = (uint32_t)offered;
            entry->edx = (uint32_t)(offered >> 32);
        } else if (entry->index == 1) {
            entry->ecx = entry->edx = 0; /* no supervisor components */
            if (!keep)
                entry->eax = entry->ebx = 0;
        } else if (entry->index > 63 || !(keep >> entry->index & 1)) {
            entry->eax = entry->ebx = entry->ecx = entry->edx = 0;
        } else {
            size = MAX(size, entry->ebx + entry->eax);
        }
    }
    struct kvm_cpuid_entry2 *main_leaf = find(cpuid, 0xd, 0);
    if (main_leaf && keep != ~UINT64_C(0)) {
        main_leaf->ecx = size;
        main_leaf->ebx = keep ? 576 : 0; /* XCR0 = 1; KVM keeps it up */
    }
}

void kvm_cpuid_limit(struct kvm_cpuid2 *cpuid, const struct feature_set *granted, bool only_known)
{
    /* what has no row may stand on AVX: AVX-512, AMX */
    bool drop_unknown = only_known || !feature_set_has(granted, FEATURE_AVX2);
    for (size_t i = 0; i < ARRAY_LEN(feature_registers); i++) {
        uint32_t leaf = feature_registers[i].leaf, subleaf = feature_registers[i].subleaf;
        unsigned reg = feature_registers[i].reg;
        struct kvm_cpuid_entry2 *entry = find(cpuid, leaf, subleaf);
        if (!entry)
            continue;
        uint32_t known = granted_bits(granted, leaf, subleaf, reg, true);
        uint32_t keep = granted_bits(granted, leaf, subleaf, reg, false) | (drop_unknown ? 0 : ~known);
        if (leaf == 0x80000001 && reg == CPUID_EDX && drop_unknown)
            keep |= CPUID_REPEATED_BITS & granted_bits(granted, 1, 0, CPUID_EDX, false);
        *entry_register(entry, reg) &= keep;
    }
    limit_xsave(cpuid, granted, only_known);
    /* leaves that describe what is gone: Processor Trace, Key Locker, AMX, AVX10 */
    static const uint32_t of_unknown[] = {0x14, 0x19, 0x1d, 0x1e, 0x24};
    for (unsigned i = 0; i < cpuid->nent && drop_unknown; i++)
        for (size_t j = 0; j < ARRAY_LEN(of_unknown); j++)
            if (cpuid->entries[i].function == of_unknown[j])
                cpuid->entries[i].eax = cpuid->entries[i].ebx = cpuid->entries[i].ecx = cpuid->entries[i].edx = 0;
}
