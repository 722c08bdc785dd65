/* SPDX-License-Identifier: MIT */
/* Page faults of as many processes at once as its argument says, PAGES in all: prints `faults NANOSECONDS`. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGES 48000
#define CHUNK 128 /* pages, far from a huge one */
#define PAGE_BYTES 4096

static int touch(unsigned pages)
{
    for (unsigned done = 0; done < pages; done += CHUNK) {
        volatile uint8_t *p = mmap(NULL, CHUNK * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return 1;
        for (unsigned i = 0; i < CHUNK; i++)
            p[i * PAGE_BYTES] = 1;
        munmap((void *)p, CHUNK * PAGE_BYTES);
    }
    return 0;
}

int main(int argc, char **argv)
{
    unsigned workers = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    struct timespec begin, end;
    if (!workers)
        return 2;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (unsigned i = 0; i < workers; i++)
        if (fork() == 0)
            _exit(touch(PAGES / workers));
    int failed = 0;
    for (unsigned i = 0; i < workers; i++) {
        int status;
        failed |= wait(&status) < 0 || status;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("faults %lld\n", (end.tv_sec - begin.tv_sec) * 1000000000ll + end.tv_nsec - begin.tv_nsec);
    return failed;
}
