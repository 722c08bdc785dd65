/* SPDX-License-Identifier: MIT */
/* The names of the CPUID feature bits of cpuid.def. */
#ifndef IMGVM_ARCH_CPU_FEATURE_H
#define IMGVM_ARCH_CPU_FEATURE_H

enum cpu_feature {
    FEATURE_BASE, /* every processor has it */
#define FEATURE(name, ...) FEATURE_##name,
#include "cpuid.def"
#undef FEATURE
    FEATURE_COUNT
};

#endif
