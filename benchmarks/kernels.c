/* SPDX-License-Identifier: MIT */
#include "kernels.h"

#define KERNEL __attribute__((section("bench_code"), noinline, noclone, used))

KERNEL uint64_t kernel_mix(uint64_t rounds, uint8_t *scratch)
{
    uint64_t x = 88172645463325252u, sum = 0;
    (void)scratch;
    while (rounds--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum += x * 0x9e3779b97f4a7c15u + (sum >> 29);
    }
    return sum;
}

KERNEL uint64_t kernel_sum(uint64_t rounds, uint8_t *scratch)
{
    uint32_t *words = (uint32_t *)(void *)scratch;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < SCRATCH_BYTES / 4; i++)
        words[i] = i * 2654435761u;
    while (rounds--)
        for (uint32_t i = 0; i < SCRATCH_BYTES / 4; i++) {
            sum += words[i];
            words[i] += (uint32_t)sum;
        }
    return sum;
}

KERNEL uint64_t kernel_sieve(uint64_t rounds, uint8_t *scratch)
{
    uint64_t found = 0;
    while (rounds--) {
        for (uint32_t i = 0; i < SCRATCH_BYTES; i++)
            scratch[i] = 1;
        for (uint32_t i = 2; i < SCRATCH_BYTES; i++)
            if (scratch[i]) {
                found += i ^ rounds;
                for (uint32_t j = 2 * i; j < SCRATCH_BYTES; j += i)
                    scratch[j] = 0;
            }
    }
    return found;
}

KERNEL uint64_t kernel_fib(uint64_t n, uint8_t *scratch)
{
    return n < 2 ? n : kernel_fib(n - 1, scratch) + kernel_fib(n - 2, scratch);
}

KERNEL uint64_t kernel_sort(uint64_t rounds, uint8_t *scratch)
{
    uint32_t *words = (uint32_t *)(void *)scratch, count = SCRATCH_BYTES / 16;
    uint64_t sum = 0;
    uint32_t seed = 1;
    while (rounds--) {
        for (uint32_t i = 0; i < count; i++)
            words[i] = (seed = seed * 1664525u + 1013904223u) >> 8;
        for (uint32_t gap = count / 2; gap; gap /= 2)
            for (uint32_t i = gap; i < count; i++) {
                uint32_t value = words[i], j = i;
                for (; j >= gap && words[j - gap] > value; j -= gap)
                    words[j] = words[j - gap];
                words[j] = value;
            }
        sum = sum * 31 + words[count / 3];
    }
    return sum;
}
