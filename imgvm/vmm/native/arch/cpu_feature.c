/* SPDX-License-Identifier: MIT */
#include "cpu_feature.h"

#include "../base/bits.h"

#define EAX CPUID_EAX
#define EBX CPUID_EBX
#define ECX CPUID_ECX
#define EDX CPUID_EDX
const struct cpu_feature_row cpu_feature_rows[FEATURE_COUNT] = {
    [FEATURE_BASE] = {.name = ""},
#define FEATURE(name, leaf, subleaf, reg, bit, text, class)                                                       \
    [FEATURE_##name] = {leaf, subleaf, reg, bit, FEATURE_CLASS_##class, text},
#include "cpuid.def"
#undef FEATURE
};

/* A parent stands above its children. */
const struct cpu_feature_dependency cpu_feature_dependencies[] = {
    {FEATURE_SSE, FEATURE_FXSR}, {FEATURE_SSE2, FEATURE_SSE}, {FEATURE_SSE3, FEATURE_SSE2},
    {FEATURE_SSSE3, FEATURE_SSE3}, {FEATURE_SSE41, FEATURE_SSSE3}, {FEATURE_SSE42, FEATURE_SSE41},
    {FEATURE_AES, FEATURE_SSE2}, {FEATURE_PCLMULQDQ, FEATURE_SSE2}, {FEATURE_SHA, FEATURE_SSE2},
    {FEATURE_GFNI, FEATURE_SSE2}, {FEATURE_XSAVE, FEATURE_FXSR}, {FEATURE_XSAVEOPT, FEATURE_XSAVE},
    {FEATURE_XSAVEC, FEATURE_XSAVE}, {FEATURE_XGETBV1, FEATURE_XSAVE}, {FEATURE_XSAVES, FEATURE_XSAVEC},
    {FEATURE_AVX, FEATURE_XSAVE}, {FEATURE_F16C, FEATURE_AVX}, {FEATURE_FMA, FEATURE_AVX},
    {FEATURE_AVX2, FEATURE_AVX}, {FEATURE_VAES, FEATURE_AVX}, {FEATURE_VPCLMULQDQ, FEATURE_AVX},
    {FEATURE_AVX_VNNI, FEATURE_AVX2}, {FEATURE_PKU, FEATURE_XSAVE}, {FEATURE_LA57, FEATURE_LM}, {FEATURE_X2APIC, FEATURE_APIC},
    {FEATURE_TSC_DEADLINE, FEATURE_APIC}, {FEATURE_SYSCALL, FEATURE_LM}, {FEATURE_LAHF64, FEATURE_LM},
    {FEATURE_PDPE1GB, FEATURE_LM}, {FEATURE_PCID, FEATURE_LM}, {FEATURE_FSGSBASE, FEATURE_LM},
    {FEATURE_CX16, FEATURE_CX8}, {FEATURE_INVARIANT_TSC, FEATURE_TSC}, {FEATURE_RDTSCP, FEATURE_TSC},
    {FEATURE_TSC_ADJUST, FEATURE_TSC},
};
const size_t cpu_feature_dependency_count = ARRAY_LEN(cpu_feature_dependencies);

enum cpu_feature cpu_feature_named(const char *name, size_t length)
{
    for (unsigned feature = FEATURE_BASE + 1; feature < FEATURE_COUNT; feature++) {
        const char *text = cpu_feature_rows[feature].name;
        size_t i = 0;
        while (i < length && text[i] && text[i] == name[i])
            i++;
        if (i == length && !text[i])
            return feature;
    }
    return FEATURE_BASE;
}

void feature_set_remove(struct feature_set *set, enum cpu_feature feature)
{
    set->bits[feature / 64] &= ~BIT(feature % 64);
    for (size_t i = 0; i < cpu_feature_dependency_count; i++)
        if (cpu_feature_dependencies[i].needs == feature)
            feature_set_remove(set, cpu_feature_dependencies[i].feature);
}

enum cpu_vendor cpu_vendor_of(uint32_t ebx)
{
    return ebx == 0x68747541 /* "Auth" */ ? CPU_VENDOR_AMD : CPU_VENDOR_INTEL;
}
