/* SPDX-License-Identifier: MIT */
/* What the kernels leave out, as an ordinary static program: vector and x87 code, system calls, page faults, processes.
 * Prints `kernel NAME NANOSECONDS CHECKSUM`, a line each, as user_loop.c does. */
#include <emmintrin.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT 4096
static float left[COUNT] __attribute__((aligned(64))), right[COUNT] __attribute__((aligned(64)));
static uint8_t bytes[16384] __attribute__((aligned(64)));

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static uint64_t packed(void)
{
    __m128 sum = _mm_setzero_ps();
    for (unsigned i = 0; i < COUNT; i++)
        left[i] = 1.0f / (float)(i + 1), right[i] = (float)(i & 15);
    for (unsigned round = 0; round < 6000; round++)
        for (unsigned i = 0; i < COUNT; i += 4)
            sum = _mm_add_ps(sum, _mm_mul_ps(_mm_load_ps(left + i), _mm_load_ps(right + i)));
    float out[4];
    _mm_storeu_ps(out, sum);
    return bits_of(out[0] + out[1] + out[2] + out[3]);
}

static uint64_t packed_integers(void)
{
    __m128i sum = _mm_setzero_si128();
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    for (unsigned round = 0; round < 6000; round++)
        for (unsigned i = 0; i < sizeof bytes; i += 16) {
            __m128i value = _mm_load_si128((const __m128i *)(const void *)(bytes + i));
            sum = _mm_add_epi64(_mm_xor_si128(sum, value), _mm_sad_epu8(value, _mm_slli_epi16(value, 1)));
        }
    uint64_t out[2];
    _mm_storeu_si128((__m128i *)(void *)out, sum);
    return out[0] ^ out[1];
}

static uint64_t scalar(void)
{
    double x = 0.5, sum = 0;
    for (unsigned i = 0; i < 4000000; i++) {
        x = 3.7 * x * (1 - x);
        sum += x;
    }
    return bits_of(sum);
}

static uint64_t x87(void)
{
    volatile long double start = 0.5L;
    long double x = start, sum = 0;
    for (unsigned i = 0; i < 3000000; i++) {
        x = 3.7L * x * (1 - x);
        sum += x;
    }
    return bits_of((double)sum);
}

static uint64_t calls(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < 200000; i++)
        sum += syscall(SYS_getppid) > 0;
    return sum;
}

static uint64_t faults(void)
{
    uint64_t sum = 0;
    for (unsigned round = 0; round < 20; round++) {
        size_t size = 4 << 20;
        uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (size_t i = 0; i < size; i += 4096)
            sum += ++p[i];
        munmap(p, size);
    }
    return sum;
}

static uint64_t pipes(void)
{
    int there[2], back[2];
    uint64_t sum = 0;
    char c = 1;
    if (pipe(there) || pipe(back))
        return 0;
    pid_t child = fork();
    for (unsigned i = 0; i < 10000; i++) {
        if (child ? write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1
                  : read(there[0], &c, 1) != 1 || write(back[1], &c, 1) != 1)
            break;
        sum += (uint64_t)c;
    }
    if (!child)
        _exit(0);
    waitpid(child, NULL, 0);
    return sum;
}

static uint64_t forks(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < 500; i++) {
        int status = 0;
        pid_t child = fork();
        if (!child)
            _exit(7);
        waitpid(child, &status, 0);
        sum += (uint64_t)WEXITSTATUS(status);
    }
    return sum;
}

static const struct {
    const char *name;
    uint64_t (*run)(void);
} loops[] = {{"packed-floats", packed}, {"packed-integers", packed_integers}, {"scalar-doubles", scalar}, {"x87", x87},
             {"system-calls", calls},   {"page-faults", faults},              {"pipes", pipes},           {"forks", forks}};

int main(void)
{
    for (unsigned i = 0; i < sizeof loops / sizeof loops[0]; i++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        uint64_t sum = loops[i].run();
        clock_gettime(CLOCK_MONOTONIC, &end);
        int64_t ns = (end.tv_sec - begin.tv_sec) * INT64_C(1000000000) + end.tv_nsec - begin.tv_nsec;
        printf("kernel %s %" PRId64 " %" PRIx64 "\n", loops[i].name, ns, sum);
        fflush(stdout);
    }
    return 0;
}
