/* SPDX-License-Identifier: MIT */
/* Linked with --wrap of the allocators: what they give out of a page or more ends (but for alignment) at a guard. */
#define _GNU_SOURCE
#include "guards.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/bits.h"

#define GUARDED_FROM 16384u
#define SIDE_GUARD (1u << 20)

char guard_story[200];

void *__real_aligned_alloc(size_t alignment, size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_calloc(size_t count, size_t size);

static uint8_t *reserve(size_t bytes)
{
    uint8_t *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        abort();
    return p;
}

/* Never freed: processors live as long as this program. */
static void *guarded(size_t alignment, size_t size)
{
    size_t pages = align_up(size, 4096);
    uint8_t *p = reserve(SIDE_GUARD + pages + SIDE_GUARD) + SIDE_GUARD;
    if (mprotect(p, pages, PROT_READ | PROT_WRITE) < 0)
        abort();
    return p + align_down(pages - size, alignment);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return size < GUARDED_FROM ? __real_aligned_alloc(alignment, size) : guarded(alignment, size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return count * size < GUARDED_FROM ? __real_calloc(count, size) : guarded(16, count * size);
}

void guard_memory(struct guest_mem *mem)
{
    for (unsigned i = 0; i < mem->count; i++) {
        struct guest_region *region = &mem->regions[i];
        uint8_t *to = reserve(GUARD_BYTES + region->size + GUARD_BYTES) + GUARD_BYTES;
        if (mremap(region->host, region->size, region->size, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
            abort();
        region->host = to;
    }
}

static struct sigaction before;

/* An instruction that is #GP on the host comes without an address (SI_KERNEL): perhaps the guest's own. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    if (info->si_code != SEGV_MAPERR && info->si_code != SEGV_ACCERR) {
        before.sa_sigaction(number, info, context);
        return;
    }
    char text[400];
    const ucontext_t *machine = context;
    int length = snprintf(text, sizeof text, "host fault at %p, rip %#llx: %s\n", info->si_addr,
                          (unsigned long long)machine->uc_mcontext.gregs[REG_RIP], guard_story);
    if (write(1, text, (size_t)length) != length)
        _exit(4);
    _exit(3);
}

void guard_faults(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaction(SIGSEGV, &action, &before) < 0 || !(before.sa_flags & SA_SIGINFO))
        abort();
}
