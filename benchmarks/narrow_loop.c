/* SPDX-License-Identifier: MIT */
/* Integer loops as a 32-bit program for any Linux that runs such, without a library: `kernel NAME NANOSECONDS CHECKSUM`, a
 * line each. */
#include <stdint.h>

#define SYS_EXIT 1
#define SYS_WRITE 4
#define SYS_CLOCK_GETTIME 265
#define CLOCK_MONOTONIC 1

static long call(long number, long a, const void *b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static uint8_t bytes[100000];

static uint32_t crc(void)
{
    static uint32_t table[256];
    uint32_t sum = 0;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (unsigned k = 0; k < 8; k++)
            table[i] = table[i] & 1 ? table[i] >> 1 ^ 0xedb88320u : table[i] >> 1;
    }
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    for (unsigned round = 0; round < 400; round++) {
        uint32_t value = ~0u;
        for (uint32_t i = 0; i < sizeof bytes; i++)
            value = table[(value ^ bytes[i]) & 255] ^ value >> 8;
        sum += value;
    }
    return sum;
}

static uint32_t sieve(void)
{
    uint32_t sum = 0;
    for (unsigned round = 0; round < 400; round++) {
        for (uint32_t i = 0; i < sizeof bytes; i++)
            bytes[i] = 1;
        for (uint32_t i = 2; i * i < sizeof bytes; i++)
            if (bytes[i])
                for (uint32_t j = i * i; j < sizeof bytes; j += i)
                    bytes[j] = 0;
        for (uint32_t i = 2; i < sizeof bytes; i++)
            sum += bytes[i];
    }
    return sum;
}

static __attribute__((noinline)) uint32_t fib_of(uint32_t n)
{
    return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2);
}

static uint32_t fib(void)
{
    return fib_of(32);
}

static uint64_t now_ns(void)
{
    struct { int32_t s, ns; } time;
    call(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, &time, 0);
    return (uint64_t)(uint32_t)time.s * 1000000000u + (uint32_t)time.ns;
}

static char line[80];
static unsigned used;

static void say(const char *text)
{
    while (*text)
        line[used++] = *text++;
}

static void say_hex(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        line[used++] = "0123456789abcdef"[value >> shift & 15];
}

static void run(const char *name, uint32_t (*kernel)(void))
{
    uint64_t begin = now_ns();
    uint32_t sum = kernel();
    uint64_t ns = now_ns() - begin;
    used = 0;
    say("kernel "), say(name), say(" 0x"), say_hex((uint32_t)(ns >> 32)), say_hex((uint32_t)ns), say(" "), say_hex(sum), say("\n");
    call(SYS_WRITE, 1, line, (long)used);
}

void _start(void)
{
    run("crc", crc);
    run("sieve", sieve);
    run("fib", fib);
    call(SYS_EXIT, 0, 0, 0);
}
