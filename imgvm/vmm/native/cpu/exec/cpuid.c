/* SPDX-License-Identifier: MIT */
#include "cpuid.h"

#include <stddef.h>

#include "../../arch/x86.h"
#include "../../base/bits.h"
#include "../decode/insn.h"
#include "fpu.h"

enum { EAX, EBX, ECX, EDX }; /* CPUID_EAX... */

/* ---- the host ---- */

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    __asm__ volatile("cpuid"
                     : "=a"(out[EAX]), "=b"(out[EBX]), "=c"(out[ECX]), "=d"(out[EDX])
                     : "a"(leaf), "c"(subleaf));
}

/* AVX is there only when the operating system keeps its registers. */
static bool host_keeps_avx(void)
{
    uint32_t leaf1[4], low, high;
    host_cpuid(1, 0, leaf1);
    if (!(leaf1[ECX] & BIT(27))) /* OSXSAVE */
        return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & (XCR0_SSE | XCR0_AVX)) == (XCR0_SSE | XCR0_AVX);
}

static bool stands_on_avx(enum cpu_feature feature)
{
    while (feature != FEATURE_AVX) {
        size_t i = 0;
        while (i < cpu_feature_dependency_count && cpu_feature_dependencies[i].feature != feature)
            i++;
        if (i == cpu_feature_dependency_count)
            return false;
        feature = cpu_feature_dependencies[i].needs;
    }
    return true;
}

enum cpu_vendor cpuid_host_vendor(void)
{
    uint32_t out[4];
    host_cpuid(0, 0, out);
    return cpu_vendor_of(out[EBX]);
}

bool cpuid_host_has(enum cpu_feature feature)
{
    const struct cpu_feature_row *row = &cpu_feature_rows[feature];
    uint32_t out[4];
    if (feature == FEATURE_BASE)
        return true;
    host_cpuid(row->leaf & 0x80000000, 0, out);
    if (out[EAX] < row->leaf)
        return false;
    host_cpuid(row->leaf, row->subleaf, out);
    return (out[row->reg] >> row->bit & 1) && (!stands_on_avx(feature) || host_keeps_avx());
}

uint32_t cpuid_pkru_offset(void)
{
    uint32_t out[4] = {0};
    if (cpuid_host_has(FEATURE_PKU))
        host_cpuid(0xd, 9, out);
    return out[EBX] ? out[EBX] : FPU_XSAVE_BYTES;
}

/* ---- configuration ---- */

void cpuid_announce(struct cpuid_config *config, enum cpu_feature feature)
{
    feature_set_add(&config->announced, feature);
}

void cpuid_init(struct cpuid_config *config, uint32_t apic_id, uint32_t count)
{
    bool exists[FEATURE_COUNT] = {false}, native[FEATURE_COUNT] = {false};
    *config = (struct cpuid_config){.apic_id = apic_id, .count = MAX(count, 1u), .vendor = CPU_VENDOR_INTEL,
                                      .xcr0 = XCR0_X87, .apic_enabled = true};

    for (unsigned op = 0; op < OP_COUNT; op++) {
        const struct op_info *info = &op_infos[op];
        exists[info->feature] |= info->kind == OPK_NATIVE || info->kind == OPK_INT || info->kind == OPK_MEM;
        native[info->feature] |= info->kind == OPK_NATIVE;
    }
    for (unsigned feature = 0; feature < FEATURE_COUNT; feature++)
        if (exists[feature] && (!native[feature] || cpuid_host_has(feature)))
            cpuid_announce(config, feature);
    /* fpu.h keeps no pointers to x87 instructions and operands: zero selectors, and offsets nobody may count on */
    cpuid_announce(config, FEATURE_FCS_FDS_DEPRECATED);
    cpuid_announce(config, FEATURE_FDP_EXCPTN_ONLY);
    if (count > 1)
        cpuid_announce(config, FEATURE_HTT); /* more than one processor in the package */
}

uint64_t cpuid_cr4_bits(const struct cpuid_config *config)
{
    static const struct {
        uint16_t feature;
        uint64_t bits;
    } rows[] = {
        {FEATURE_VME, CR4_VME | CR4_PVI}, {FEATURE_TSC, CR4_TSD}, {FEATURE_DE, CR4_DE}, {FEATURE_PSE, CR4_PSE},
        {FEATURE_PAE, CR4_PAE}, {FEATURE_MCE, CR4_MCE}, {FEATURE_PGE, CR4_PGE}, {FEATURE_FXSR, CR4_OSFXSR},
        {FEATURE_SSE, CR4_OSXMMEXCPT}, {FEATURE_UMIP, CR4_UMIP}, {FEATURE_VMX, CR4_VMXE}, {FEATURE_FSGSBASE, CR4_FSGSBASE},
        {FEATURE_PCID, CR4_PCIDE}, {FEATURE_XSAVE, CR4_OSXSAVE}, {FEATURE_SMEP, CR4_SMEP}, {FEATURE_SMAP, CR4_SMAP},
        {FEATURE_PKU, CR4_PKE}, {FEATURE_LA57, CR4_LA57},
    };
    uint64_t bits = CR4_PCE;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        if (cpuid_has(config, rows[i].feature))
            bits |= rows[i].bits;
    return bits;
}

uint64_t cpuid_efer_bits(const struct cpuid_config *config)
{
    return (cpuid_has(config, FEATURE_SYSCALL) ? EFER_SCE : 0) | (cpuid_has(config, FEATURE_LM) ? EFER_LME | EFER_LMA : 0) |
           (cpuid_has(config, FEATURE_NX) ? EFER_NXE : 0);
}

/* Announced, and everything it stands on too. */
static bool feature_visible(const struct cpuid_config *config, enum cpu_feature feature)
{
    for (size_t i = 0; i < cpu_feature_dependency_count; i++)
        if (cpu_feature_dependencies[i].feature == feature && !feature_visible(config, cpu_feature_dependencies[i].needs))
            return false;
    return cpuid_has(config, feature);
}

/* ---- leaves ---- */

#define MAX_BASIC 0x16u
#define MAX_HYPERVISOR 0x40000000u
#define MAX_EXTENDED 0x80000008u
#define MAX_BASIC_AMD 0xdu

static const char brand[48] = "imgvm software processor";
static const char hypervisor_signature[12] = "imgvmimgvm";

/* Bits that number 0..count-1 needs. */
static unsigned id_bits(uint32_t count)
{
    return count <= 1 ? 0 : 32 - __builtin_clz(count - 1);
}

static void put_features(const struct cpuid_config *config, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    for (unsigned feature = FEATURE_BASE + 1; feature < FEATURE_COUNT; feature++) {
        const struct cpu_feature_row *row = &cpu_feature_rows[feature];
        if (row->leaf == leaf && row->subleaf == subleaf && feature_visible(config, feature))
            out[row->reg] |= 1u << row->bit;
    }
}

static bool is_amd(const struct cpuid_config *config)
{
    return config->vendor == CPU_VENDOR_AMD;
}

static uint32_t max_basic(const struct cpuid_config *config)
{
    return is_amd(config) ? MAX_BASIC_AMD : MAX_BASIC;
}

static uint32_t signature(const struct cpuid_config *config)
{
    return is_amd(config) ? CPUID_SIGNATURE_AMD : CPUID_SIGNATURE;
}

/* "GenuineIntel", "AuthenticAMD" in EBX, EDX, ECX */
static void put_vendor(const struct cpuid_config *config, uint32_t out[4])
{
    out[EBX] = is_amd(config) ? 0x68747541 : 0x756e6547;
    out[EDX] = is_amd(config) ? 0x69746e65 : 0x49656e69;
    out[ECX] = is_amd(config) ? 0x444d4163 : 0x6c65746e;
}

static void put_version(const struct cpuid_config *config, uint32_t out[4])
{
    uint32_t logical = 1u << id_bits(config->count);
    out[EAX] = signature(config);
    out[EBX] = config->apic_id << 24 | MIN(logical, 255u) << 16 | 8 << 8; /* CLFLUSH: 8 quadwords */
    put_features(config, 1, 0, out);
    out[ECX] &= ~(1u << 27);
    if (config->osxsave && feature_visible(config, FEATURE_XSAVE))
        out[ECX] |= 1u << 27;
    if (!config->apic_enabled)
        out[EDX] &= ~(1u << 9);
}

/* Deterministic cache parameters: sizes of the processor whose signature leaf 1 gives. */
static void put_cache(const struct cpuid_config *config, uint32_t subleaf, uint32_t out[4])
{
    static const struct {
        uint8_t type, level; /* 1 data, 2 instruction, 3 unified */
        uint16_t ways;
        uint32_t sets;
        bool shared;
    } caches[] = {
        {1, 1, 12, 64, false}, {2, 1, 8, 64, false}, {3, 2, 16, 2048, false}, {3, 3, 16, 16384, true},
    };
    if (subleaf >= ARRAY_LEN(caches))
        return;
    uint32_t ids = 1u << id_bits(config->count);
    uint32_t sharing = caches[subleaf].shared ? ids : 1;
    out[EAX] = caches[subleaf].type | caches[subleaf].level << 5 | 1 << 8 | MIN(sharing - 1, 0xfffu) << 14 |
               MIN(ids - 1, 0x3fu) << 26;
    out[EBX] = (64 - 1) | (uint32_t)(caches[subleaf].ways - 1) << 22; /* line size, one partition, ways */
    out[ECX] = caches[subleaf].sets - 1;
}

/* One thread a core, cores in one package. */
static void put_topology(const struct cpuid_config *config, uint32_t subleaf, uint32_t out[4])
{
    out[ECX] = subleaf & 0xff;
    out[EDX] = config->apic_id;
    if (subleaf == 0) {
        out[EBX] = 1;
        out[ECX] |= 1 << 8; /* SMT */
    } else if (subleaf == 1) {
        out[EAX] = id_bits(config->count);
        out[EBX] = config->count;
        out[ECX] |= 2 << 8; /* core */
    }
}

static uint32_t xsave_bytes(uint64_t components, bool compacted)
{
    uint32_t bytes = fpu_xsave_bytes(components, compacted);
    if (!(components & XCR0_PKRU))
        return bytes;
    return compacted ? bytes + 8 : MAX(bytes, cpuid_pkru_offset() + 8);
}

static void put_xsave(const struct cpuid_config *config, uint32_t subleaf, uint32_t out[4])
{
    uint64_t components = XCR0_X87 | XCR0_SSE | (feature_visible(config, FEATURE_AVX) ? XCR0_AVX : 0) |
                          (feature_visible(config, FEATURE_PKU) ? XCR0_PKRU : 0);
    if (!feature_visible(config, FEATURE_XSAVE))
        return;
    switch (subleaf) {
    case 0:
        out[EAX] = (uint32_t)components;
        out[EBX] = xsave_bytes(config->xcr0, false);
        out[ECX] = xsave_bytes(components, false);
        break;
    case 1:
        put_features(config, 0xd, 1, out);
        if (out[EAX] & 2) /* XSAVEC, without which there is no XSAVES */
            out[EBX] = xsave_bytes(config->xcr0, true);
        break;
    case 2:
        if (components & XCR0_AVX) {
            out[EAX] = 256;
            out[EBX] = 576;
        }
        break;
    case 9:
        if (components & XCR0_PKRU) {
            out[EAX] = 8;
            out[EBX] = cpuid_pkru_offset();
        }
        break;
    }
}

static void put_text(const char *text, uint32_t *out, unsigned words)
{
    for (unsigned i = 0; i < words; i++)
        out[i] = load_le32(text + 4 * i);
}

static void query_basic(const struct cpuid_config *config, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    switch (leaf) {
    case 0x0:
        out[EAX] = max_basic(config);
        put_vendor(config, out);
        break;
    case 0x1:
        put_version(config, out);
        break;
    case 0x2: /* one line: caches are in leaf 4, prefetch 64 bytes, no other descriptor */
        if (is_amd(config)) /* whose caches are in 8000_0005h and 8000_0006h, and whose leaves 2 and 4 are reserved */
            break;
        out[EAX] = 0x0000ff01;
        out[EDX] = 0xf0;
        break;
    case 0x4:
        if (!is_amd(config))
            put_cache(config, subleaf, out);
        break;
    case 0x7:
        put_features(config, 0x7, subleaf, out);
        if (subleaf == 0) {
            out[EAX] = 2; /* last subleaf */
            out[ECX] = (out[ECX] & ~(1u << 4)) | (uint32_t)(config->ospke && feature_visible(config, FEATURE_PKU)) << 4;
        }
        break;
    case 0xb:
        put_topology(config, subleaf, out);
        break;
    case 0xd:
        put_xsave(config, subleaf, out);
        break;
    case 0x15: /* TSC = crystal * EBX / EAX. Linux takes the local APIC timer to count at the crystal's rate. */
        out[EAX] = 1;
        out[EBX] = 1;
        out[ECX] = CPUID_TSC_HZ;
        break;
    case 0x16: /* MHz: base, maximum, bus */
        out[EAX] = out[EBX] = CPUID_TSC_HZ / 1000000;
        out[ECX] = 100;
        break;
    default: /* no subleaves */
        put_features(config, leaf, 0, out);
        break;
    }
}

/* What AMD's extended leaves have and Intel's have not (APM vol. 3, E.4). */
static void put_extended_amd(const struct cpuid_config *config, uint32_t leaf, uint32_t out[4])
{
    uint32_t leaf1[4] = {0};
    switch (leaf) {
    case 0x80000000:
        put_vendor(config, out);
        break;
    case 0x80000001:
        put_features(config, 0x1, 0, leaf1);
        out[EAX] = signature(config);
        out[EDX] |= leaf1[EDX] & CPUID_REPEATED_BITS;
        if (config->count > 1)
            out[ECX] |= 1 << 1; /* CmpLegacy: cores, not threads */
        break;
    case 0x80000005: /* L1: 32 KB each, 8 ways, 64-byte lines */
        out[ECX] = out[EDX] = 32u << 24 | 8 << 16 | 1 << 8 | 64;
        break;
    case 0x80000006: /* L2: 1 MB, 8 ways (encoded 6); L3: 16 MB in units of 512 KB, 16 ways (8) */
        out[ECX] = 1024 << 16 | 6 << 12 | 1 << 8 | 64;
        out[EDX] = 32 << 18 | 8 << 12 | 1 << 8 | 64;
        break;
    case 0x80000008: /* cores, and the bits of the APIC ID that tell them apart */
        out[ECX] = id_bits(config->count) << 12 | (config->count - 1);
        break;
    }
}

static void query_extended(const struct cpuid_config *config, uint32_t leaf, uint32_t out[4])
{
    switch (leaf) {
    case 0x80000000:
        out[EAX] = MAX_EXTENDED;
        break;
    case 0x80000002: case 0x80000003: case 0x80000004:
        put_text(brand + 16 * (leaf - 0x80000002), out, 4);
        break;
    case 0x80000006: /* L2: 2 MB, 16 ways (encoded 8), 64-byte lines */
        out[ECX] = 2048 << 16 | 8 << 12 | 64;
        break;
    case 0x80000008:
        out[EAX] = CPUID_PHYSICAL_BITS | (cpuid_has(config, FEATURE_LA57) ? CPUID_LINEAR_BITS_LA57 : CPUID_LINEAR_BITS) << 8;
        break;
    default:
        put_features(config, leaf, 0, out);
        break;
    }
    if (is_amd(config))
        put_extended_amd(config, leaf, out);
}

void cpuid_query(const struct cpuid_config *config, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    out[EAX] = out[EBX] = out[ECX] = out[EDX] = 0;
    if (leaf >= 0x80000000 && leaf <= MAX_EXTENDED) {
        query_extended(config, leaf, out);
    } else if (leaf >= 0x40000000 && leaf <= MAX_HYPERVISOR) {
        if (feature_visible(config, FEATURE_HYPERVISOR)) {
            out[EAX] = MAX_HYPERVISOR;
            put_text(hypervisor_signature, &out[EBX], 3);
        }
    } else {
        /* beyond the last leaf, a processor answers what its last basic leaf says (SDM vol. 2, CPUID) */
        query_basic(config, MIN(leaf, max_basic(config)), subleaf, out);
    }
}
