/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "guest_mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../base/bits.h"

#define HOST_LARGE_PAGE (UINT64_C(2) << 20)

int guest_mem_init(struct guest_mem *mem, imgvm_error *err)
{
    *mem = (struct guest_mem){0};
    /* its own cache line: every block of the software processor looks at it */
    mem->code_epoch = aligned_alloc(64, 64);
    if (!mem->code_epoch)
        return error_set(err, ENOMEM, "out of memory");
    atomic_store(mem->code_epoch, 0);
    return 0;
}

void guest_mem_destroy(struct guest_mem *mem)
{
    for (unsigned i = 0; i < mem->count; i++) {
        munmap(mem->regions[i].host, mem->regions[i].size);
        free(mem->regions[i].code_granules);
        free(mem->regions[i].code_generation);
    }
    mem->count = 0;
    free(mem->code_epoch);
    mem->code_epoch = NULL;
}

/* Pages of zeros, `size` bytes, where the host's large pages are the guest's: an address that differs from `gpa` by a
 * multiple of one. NULL: see errno. */
static uint8_t *map_ram(uint64_t gpa, uint64_t size)
{
    uint64_t reserved = size + HOST_LARGE_PAGE;
    uint8_t *start = mmap(NULL, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    uint64_t before = (gpa - (uintptr_t)start) % HOST_LARGE_PAGE;
    uint8_t *host = start + before;
    if (before)
        munmap(start, before);
    munmap(host + size, reserved - size - before);
    madvise(host, size, MADV_HUGEPAGE);
    return host;
}

int guest_mem_add(struct guest_mem *mem, uint64_t gpa, uint64_t size, bool read_only, imgvm_error *err)
{
    if (mem->count == GUEST_MEM_REGIONS || gpa % GUEST_PAGE_SIZE || size % GUEST_PAGE_SIZE || !size)
        return error_set(err, EINVAL, "guest memory at %#llx: bad region", (unsigned long long)gpa);
    uint8_t *host = map_ram(gpa, size);
    if (!host)
        return error_set(err, errno, "cannot map %llu MiB of guest memory: %s",
                         (unsigned long long)(size >> 20), strerror(errno));
    size_t pages = size / GUEST_PAGE_SIZE;
    struct guest_region region = {
        .gpa = gpa, .size = size, .host = host, .read_only = read_only,
        .code_granules = calloc(pages, sizeof(uint32_t)),
        .code_generation = calloc(pages, sizeof(uint32_t)),
    };
    if (!region.code_granules || !region.code_generation) {
        free(region.code_granules);
        free(region.code_generation);
        munmap(host, size);
        return error_set(err, ENOMEM, "out of memory");
    }
    mem->regions[mem->count++] = region;
    return 0;
}

const struct guest_region *guest_mem_find(const struct guest_mem *mem, uint64_t gpa)
{
    for (unsigned i = 0; i < mem->count; i++)
        if (gpa - mem->regions[i].gpa < mem->regions[i].size)
            return &mem->regions[i];
    return NULL;
}

void *guest_mem_ptr(const struct guest_mem *mem, uint64_t gpa, uint64_t size, bool for_write)
{
    const struct guest_region *region = guest_mem_find(mem, gpa);
    if (!region || (for_write && region->read_only))
        return NULL;
    uint64_t offset = gpa - region->gpa;
    return size <= region->size - offset ? region->host + offset : NULL;
}

enum copy_kind { COPY_OUT, COPY_IN, COPY_LOAD };

static bool copy(const struct guest_mem *mem, uint64_t gpa, void *data, uint64_t size, enum copy_kind kind)
{
    for (uint8_t *p = data; size;) {
        const struct guest_region *region = guest_mem_find(mem, gpa);
        if (!region || (kind == COPY_IN && region->read_only))
            return false;
        uint64_t offset = gpa - region->gpa;
        uint64_t n = MIN(size, region->size - offset);
        if (kind == COPY_OUT) {
            memcpy(p, region->host + offset, n);
        } else {
            memcpy(region->host + offset, p, n);
            guest_mem_written(mem, gpa, n);
        }
        p += n;
        gpa += n;
        size -= n;
    }
    return true;
}

bool guest_mem_read(const struct guest_mem *mem, uint64_t gpa, void *data, uint64_t size)
{
    return copy(mem, gpa, data, size, COPY_OUT);
}

bool guest_mem_write(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size)
{
    return copy(mem, gpa, (void *)data, size, COPY_IN);
}

bool guest_mem_load(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size)
{
    return copy(mem, gpa, (void *)data, size, COPY_LOAD);
}

/* Bits first..last of a page's granule word for the bytes [offset, offset+size). */
static uint32_t granule_mask(uint32_t offset, uint32_t size)
{
    unsigned first = offset / GUEST_CODE_GRANULE, last = (offset + size - 1) / GUEST_CODE_GRANULE;
    return (uint32_t)(((UINT64_C(2) << last) - 1) & ~((UINT64_C(1) << first) - 1));
}

static void code_changed(const struct guest_mem *mem)
{
    atomic_fetch_add(mem->code_epoch, 1);
    if (mem->code_changed)
        mem->code_changed(mem->code_changed_opaque);
}

bool guest_mem_drop_code(const struct guest_mem *mem, const struct guest_region *region, uint64_t gpa, uint32_t size)
{
    size_t page = (gpa - region->gpa) / GUEST_PAGE_SIZE;
    uint32_t granules = atomic_load_explicit(&region->code_granules[page], memory_order_relaxed);
    if (likely(!(granules & granule_mask((uint32_t)(gpa % GUEST_PAGE_SIZE), size))))
        return false;
    atomic_store(&region->code_granules[page], 0);
    atomic_fetch_add(&region->code_generation[page], 1);
    code_changed(mem);
    return true;
}

void guest_mem_written(const struct guest_mem *mem, uint64_t gpa, uint64_t size)
{
    /* the bytes before the marks; who decodes marks first, and then looks whether the bytes are what they were */
    atomic_thread_fence(memory_order_seq_cst);
    while (size) {
        const struct guest_region *region = guest_mem_find(mem, gpa);
        uint64_t n = MIN(size, GUEST_PAGE_SIZE - gpa % GUEST_PAGE_SIZE);
        if (region)
            guest_mem_drop_code(mem, region, gpa, (uint32_t)n);
        gpa += n;
        size -= n;
    }
}

void guest_mem_forget_code(const struct guest_mem *mem)
{
    for (unsigned i = 0; i < mem->count; i++) {
        const struct guest_region *region = &mem->regions[i];
        for (size_t page = 0; page < region->size / GUEST_PAGE_SIZE; page++) {
            if (!atomic_load_explicit(&region->code_granules[page], memory_order_relaxed))
                continue;
            atomic_store(&region->code_granules[page], 0);
            atomic_fetch_add(&region->code_generation[page], 1);
        }
    }
    code_changed(mem);
}

void guest_mem_mark_code(const struct guest_region *region, uint64_t gpa, uint32_t size)
{
    size_t page = (gpa - region->gpa) / GUEST_PAGE_SIZE;
    atomic_fetch_or(&region->code_granules[page], granule_mask((uint32_t)(gpa % GUEST_PAGE_SIZE), size));
}

bool guest_mem_settle_code(struct guest_mem *mem, const struct guest_region *region, uint64_t gpa, uint32_t size)
{
    _Atomic uint32_t *granules = &region->code_granules[(gpa - region->gpa) / GUEST_PAGE_SIZE];
    uint32_t before = atomic_load(granules), more = granule_mask((uint32_t)(gpa % GUEST_PAGE_SIZE), size);
    bool counted = false;
    do {
        if (!before && !counted) { /* before the mark: who sees the mark sees this */
            atomic_fetch_add(&mem->code_settling, 1);
            counted = true;
        }
    } while (!atomic_compare_exchange_weak(granules, &before, before | more));
    if (counted && before)
        atomic_fetch_sub(&mem->code_settling, 1);
    return !before;
}

void guest_mem_code_settled(struct guest_mem *mem)
{
    atomic_fetch_sub(&mem->code_settling, 1);
}
