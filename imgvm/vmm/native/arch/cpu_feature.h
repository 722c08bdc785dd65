/* SPDX-License-Identifier: MIT */
/* The CPUID feature bits of cpuid.def: their names, places and dependencies, and sets of them. Pure. */
#ifndef IMGVM_ARCH_CPU_FEATURE_H
#define IMGVM_ARCH_CPU_FEATURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whose processor CPUID names, and in whose way the few instructions go that differ by vendor. AUTO: nobody has said. */
enum cpu_vendor { CPU_VENDOR_AUTO, CPU_VENDOR_INTEL, CPU_VENDOR_AMD };
/* By the signature of CPUID leaf 0, in EBX, EDX, ECX; any other processor goes Intel's way. */
enum cpu_vendor cpu_vendor_of(uint32_t ebx);

enum cpu_feature {
    FEATURE_BASE, /* every processor has it */
#define FEATURE(name, ...) FEATURE_##name,
#include "cpuid.def"
#undef FEATURE
    FEATURE_COUNT
};

/* The classes of cpuid.def's legend. */
enum feature_class {
    FEATURE_CLASS_NONE, /* FEATURE_BASE */
    FEATURE_CLASS_V1, FEATURE_CLASS_V2, FEATURE_CLASS_V3, FEATURE_CLASS_SYSTEM, FEATURE_CLASS_NEWER, FEATURE_CLASS_HINT,
    FEATURE_CLASS_EXTRA, FEATURE_CLASS_LIVE,
};

enum { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

struct cpu_feature_row {
    uint32_t leaf;
    uint8_t subleaf, reg /* CPUID_EAX.. */, bit, class;
    const char *name;
};

extern const struct cpu_feature_row cpu_feature_rows[FEATURE_COUNT];

/* Without `needs` a processor does not announce `feature` (SDM vol. 1, chapters 12-14: how software detects them). */
struct cpu_feature_dependency {
    uint16_t feature, needs;
};

extern const struct cpu_feature_dependency cpu_feature_dependencies[];
extern const size_t cpu_feature_dependency_count;

/* FEATURE_BASE when no feature is called so; `length` characters of name count. */
enum cpu_feature cpu_feature_named(const char *name, size_t length);

struct feature_set {
    uint64_t bits[(FEATURE_COUNT + 63) / 64];
};

static inline bool feature_set_has(const struct feature_set *set, enum cpu_feature feature)
{
    return set->bits[feature / 64] >> (feature % 64) & 1;
}

static inline void feature_set_add(struct feature_set *set, enum cpu_feature feature)
{
    set->bits[feature / 64] |= UINT64_C(1) << (feature % 64);
}

/* With everything that stands on it. */
void feature_set_remove(struct feature_set *set, enum cpu_feature feature);

#endif
