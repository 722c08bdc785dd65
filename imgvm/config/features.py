# SPDX-License-Identifier: MIT
"""The processor features that `machine.cpu.features` can name: the rows of cpuid.def, in its order. A config
is checked without the native core, hence the copy; a test holds the two together."""

from __future__ import annotations

CPU_FEATURES = (
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca",
    "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "ss", "ht", "sse3", "pclmulqdq",
    "monitor", "vmx", "smx", "ssse3", "fma", "cx16", "pcid", "sse4_1", "sse4_2", "x2apic", "movbe",
    "popcnt", "tsc_deadline_timer", "aes", "xsave", "avx", "f16c", "rdrand", "hypervisor", "arat",
    "fsgsbase", "tsc_adjust", "bmi1", "avx2", "fdp_excptn_only", "smep", "bmi2", "erms", "invpcid",
    "zero_fcs_fds", "rdseed", "adx", "smap", "clflushopt", "clwb", "sha_ni", "umip", "pku", "la57", "waitpkg",
    "gfni", "vaes", "vpclmulqdq", "rdpid", "movdiri", "movdir64b", "fsrm", "md_clear", "serialize",
    "spec_ctrl", "stibp", "flush_l1d", "arch_capabilities", "ssbd", "avx_vnni", "bhi_ctrl", "xsaveopt",
    "xsavec", "xgetbv1", "xsaves", "lahf_lm", "svm", "abm", "3dnowprefetch", "syscall", "nx", "pdpe1gb",
    "rdtscp", "lm", "nonstop_tsc",
)  # fmt: skip
