/* SPDX-License-Identifier: MIT */
/* Small integer programs, the same machine code for every contestant. They lie in a section of their own, refer to
 * nothing outside it and use general registers only, so that their bytes can be copied into a guest. */
#ifndef IMGVM_BENCHMARKS_KERNELS_H
#define IMGVM_BENCHMARKS_KERNELS_H

#include <stdint.h>

#define SCRATCH_BYTES 0x10000u

typedef uint64_t kernel_fn(uint64_t rounds, uint8_t *scratch); /* returns a checksum */

struct kernel {
    const char *name;
    kernel_fn *run;
    uint64_t rounds; /* some 200 million instructions */
};

/* One row a kernel; what it is about. */
#define KERNELS(K)                                                    \
    K(mix, 12000000)    /* shifts, xors, multiplications in registers */ \
    K(sum, 1700)        /* loads and stores over 64 KiB */            \
    K(sieve, 160)       /* bytes and branches that are hard to foresee */ \
    K(fib, 34)          /* calls and returns */                       \
    K(sort, 90)         /* compares, swaps, nested loops */

#define KERNEL_DECLARE(name, rounds) kernel_fn kernel_##name;
KERNELS(KERNEL_DECLARE)

#endif
