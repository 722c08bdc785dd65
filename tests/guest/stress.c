/* SPDX-License-Identifier: MIT */
/* A Linux program that works on all processors at once for a number of seconds and checks what comes of it: computing,
 * processes that start and end, messages through pipes, page tables and code that change under others. It prints one
 * line and ends with 0, or says what was wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KINDS 5
#define PAGE 4096

static double end_at;
static unsigned processors;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#define EXPECT(condition)                                                                \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            printf("stress: line %d: %s (errno %d)\n", __LINE__, #condition, errno);     \
            fflush(stdout);                                                              \
            _exit(1);                                                                    \
        }                                                                                \
    } while (0)

/* The same numbers again and again: integers, floating point, and memory that is not in the TLB. */
static uint64_t compute(void)
{
    static uint8_t table[1 << 20];
    uint64_t x = 88172645463325252;
    double d = 1;
    for (unsigned i = 0; i < 100000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        table[x % sizeof table] = (uint8_t)(table[(x >> 20) % sizeof table] + i);
        d = d * 1.0000001 + (double)(x & 255);
    }
    uint64_t bits;
    memcpy(&bits, &d, 8);
    for (unsigned i = 0; i < sizeof table; i += 64)
        bits = bits * 31 + table[i];
    memset(table, 0, sizeof table);
    return bits;
}

static unsigned long work_compute(void)
{
    static _Atomic uint64_t first;
    unsigned long turns = 0;
    first = compute();
    while (now() < end_at) {
        EXPECT(compute() == first);
        turns++;
    }
    return turns;
}

static unsigned long work_fork(void)
{
    unsigned long turns = 0;
    while (now() < end_at) {
        pid_t child = fork();
        EXPECT(child >= 0);
        if (!child) {
            char *words[] = {"/bin/busybox", "true", NULL};
            if (turns % 8 == 0)
                execv(words[0], words);
            _exit(turns % 8 == 0 ? 111 : (int)(turns % 100));
        }
        int status;
        EXPECT(waitpid(child, &status, 0) == child);
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == (turns % 8 == 0 ? 0 : (int)(turns % 100)));
        turns++;
    }
    return turns;
}

static unsigned long work_pipe(void)
{
    int there[2], back[2];
    unsigned long turns = 0, number;
    EXPECT(pipe(there) == 0 && pipe(back) == 0);
    pid_t child = fork();
    EXPECT(child >= 0);
    if (!child) {
        while (read(there[0], &number, sizeof number) == sizeof number && number != ~0ul) {
            number++;
            EXPECT(write(back[1], &number, sizeof number) == sizeof number);
        }
        _exit(0);
    }
    for (; now() < end_at; turns++) {
        number = turns;
        EXPECT(write(there[1], &number, sizeof number) == sizeof number);
        EXPECT(read(back[0], &number, sizeof number) == sizeof number && number == turns + 1);
    }
    number = ~0ul;
    EXPECT(write(there[1], &number, sizeof number) == sizeof number);
    EXPECT(waitpid(child, NULL, 0) == child);
    close(there[0]), close(there[1]), close(back[0]), close(back[1]);
    return turns;
}

/* One thread gives the pages away, makes them read-only and writable again; the others read what was written last, or the
 * zeros of a new page. */
static uint8_t *shared;
static _Atomic unsigned written;
static _Atomic int over;

static void *reader(void *opaque)
{
    (void)opaque;
    while (!over)
        for (unsigned page = 0; page < 8; page++) {
            unsigned before = written, value = *(volatile unsigned *)(shared + page * PAGE), after = written;
            EXPECT(value == 0 || (value + 1 >= before && value <= after + 1));
        }
    return NULL;
}

static unsigned long work_shootdown(void)
{
    pthread_t threads[2];
    over = 0;
    written = 1;
    shared = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED);
    for (unsigned i = 0; i < 2; i++)
        EXPECT(pthread_create(&threads[i], NULL, reader, NULL) == 0);
    unsigned turn = 1;
    for (; now() < end_at; turn++) {
        for (unsigned page = 0; page < 8; page++)
            *(volatile unsigned *)(shared + page * PAGE) = turn;
        written = turn;
        EXPECT(mprotect(shared, 8 * PAGE, PROT_READ) == 0);
        EXPECT(*(volatile unsigned *)(shared + turn % 8 * PAGE) == turn);
        EXPECT(mprotect(shared, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
        EXPECT(madvise(shared, 8 * PAGE, MADV_DONTNEED) == 0);
    }
    over = 1;
    for (unsigned i = 0; i < 2; i++)
        EXPECT(pthread_join(threads[i], NULL) == 0);
    munmap(shared, 8 * PAGE);
    return turn;
}

/* Code that is written and run at once, and run by another thread after it was told. */
static unsigned long work_code(void)
{
    uint8_t *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(code != MAP_FAILED);
    unsigned turn = 0;
    for (; now() < end_at; turn++) {
        uint8_t *at = code + turn % 31 * 128;
        at[0] = 0xb8; /* mov eax, imm32; ret */
        memcpy(at + 1, &turn, 4);
        at[5] = 0xc3;
        EXPECT(((unsigned (*)(void))at)() == turn);
    }
    munmap(code, PAGE);
    return turn;
}

static unsigned long (*const kinds[KINDS])(void) = {work_compute, work_fork, work_pipe, work_shootdown, work_code};

int main(int argc, char **argv)
{
    unsigned long sums[KINDS] = {0};
    processors = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    end_at = now() + (argc > 1 ? atof(argv[1]) : 1);
    int results[2];
    unsigned workers = processors > KINDS ? processors : KINDS;
    EXPECT(pipe(results) == 0);
    for (unsigned i = 0; i < workers; i++) {
        pid_t child = fork();
        EXPECT(child >= 0);
        if (!child) {
            unsigned long result[2] = {i % KINDS, kinds[i % KINDS]()};
            EXPECT(write(results[1], result, sizeof result) == sizeof result);
            _exit(0);
        }
    }
    int bad = 0, status;
    for (unsigned i = 0; i < workers; i++) {
        EXPECT(wait(&status) > 0);
        bad |= status;
    }
    for (unsigned i = 0; !bad && i < workers; i++) {
        unsigned long result[2];
        EXPECT(read(results[0], result, sizeof result) == sizeof result);
        sums[result[0]] += result[1];
    }
    printf("stress: processors=%u status=%d compute=%lu fork=%lu pipe=%lu shootdown=%lu code=%lu\n", processors, bad, sums[0],
           sums[1], sums[2], sums[3], sums[4]);
    return bad != 0;
}
