/* SPDX-License-Identifier: MIT */
/* The kernels as an ordinary program: on the host, and under an operating system in a guest. Prints
 * `kernel NAME NANOSECONDS CHECKSUM`, a line each. */
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "kernels.h"

#define KERNEL_ROW(name, rounds) {#name, kernel_##name, rounds},
static const struct kernel kernels[] = {KERNELS(KERNEL_ROW)};
static uint8_t scratch[SCRATCH_BYTES] __attribute__((aligned(4096)));

int main(void)
{
    for (unsigned i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        uint64_t sum = kernels[i].run(kernels[i].rounds, scratch);
        clock_gettime(CLOCK_MONOTONIC, &end);
        int64_t ns = (end.tv_sec - begin.tv_sec) * INT64_C(1000000000) + end.tv_nsec - begin.tv_nsec;
        printf("kernel %s %" PRId64 " %" PRIx64 "\n", kernels[i].name, ns, sum);
        fflush(stdout);
    }
    return 0;
}
