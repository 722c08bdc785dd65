/* SPDX-License-Identifier: MIT */
/* Boots a Linux guest on the translator, records what reaches the second-level TLB (the linker puts __wrap_ functions
 * before those of cpu/mmu/stlb.c), and replays it with CLOCK and with FIFO.
 *
 *     tlb_trace MODEL VMLINUX INITRD CMDLINE      prints: POLICY LOOKUPS MISSES */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "cpu/mmu/stlb.h"
#include "include/imgvm_api.h"

#define RECORDS (64u << 20)

enum what { TRANSLATE, REPLACE, SELECT, DROP_ALL, DROP_LOCAL, DROP_SPACE, DROP_PAGE, DROP_PAGE_OF };

struct record {
    uint64_t linear, leaf;
    uint16_t pcid;
    uint8_t what;
};

static struct {
    struct record *record; /* touched as it fills */
    size_t count;
    uint64_t missed; /* the linear address that was looked up last and not found */
    bool on;
} trace;

/* ---- recording: the guest's vector registers are live here, so nothing of libc is called ---- */

static void note(enum what what, uint64_t linear, uint64_t leaf, unsigned pcid)
{
    if (trace.on && trace.count < RECORDS)
        trace.record[trace.count++] = (struct record){linear, leaf, (uint16_t)pcid, (uint8_t)what};
}

#define WRAP(result, name, ...)                                                                                      \
    result __real_##name(__VA_ARGS__);                                                                               \
    result __wrap_##name(__VA_ARGS__);                                                                               \
    result __wrap_##name(__VA_ARGS__)

/* What is looked up does not depend on the policy, for the first level does not either; so a replay can be told at once
 * what a walk will find. A fault finds nothing and changes nothing. */
WRAP(uint64_t, stlb_lookup, struct stlb *stlb, uint64_t linear)
{
    uint64_t leaf = __real_stlb_lookup(stlb, linear);
    trace.missed = leaf ? 1 : linear;
    if (leaf)
        note(TRANSLATE, linear, leaf, 0);
    return leaf;
}

WRAP(void, stlb_insert, struct stlb *stlb, uint64_t linear, uint64_t leaf)
{
    note(trace.missed == linear ? TRANSLATE : REPLACE, linear, leaf, 0);
    __real_stlb_insert(stlb, linear, leaf);
}

WRAP(void, stlb_select, struct stlb *stlb, unsigned pcid)
{
    note(SELECT, 0, 0, pcid);
    __real_stlb_select(stlb, pcid);
}

WRAP(void, stlb_drop_all, struct stlb *stlb)
{
    note(DROP_ALL, 0, 0, 0);
    __real_stlb_drop_all(stlb);
}

WRAP(void, stlb_drop_local, struct stlb *stlb)
{
    note(DROP_LOCAL, 0, 0, 0);
    __real_stlb_drop_local(stlb);
}

WRAP(void, stlb_drop_space, struct stlb *stlb, unsigned pcid)
{
    note(DROP_SPACE, 0, 0, pcid);
    __real_stlb_drop_space(stlb, pcid);
}

WRAP(void, stlb_drop_page, struct stlb *stlb, uint64_t linear)
{
    note(DROP_PAGE, linear, 0, 0);
    __real_stlb_drop_page(stlb, linear);
}

WRAP(void, stlb_drop_page_of, struct stlb *stlb, unsigned pcid, uint64_t linear)
{
    note(DROP_PAGE_OF, linear, 0, pcid);
    __real_stlb_drop_page_of(stlb, pcid, linear);
}

/* ---- replaying ---- */

/* CLOCK without its bits of use is FIFO: the hand takes whatever it points to. */
static void forget_use(struct stlb *stlb)
{
    for (unsigned i = 0; i < STLB_SETS; i++)
        stlb->clock[i] &= 0xf0;
}

static void replay(const char *policy, bool fifo)
{
    struct stlb *stlb = aligned_alloc(64, sizeof *stlb);
    memset(stlb, 0, sizeof *stlb);
    stlb_init(stlb);
    size_t lookups = 0, misses = 0;
    for (size_t i = 0; i < trace.count; i++) {
        const struct record *r = &trace.record[i];
        switch (r->what) {
        case TRANSLATE:
            lookups++;
            if (stlb_lookup(stlb, r->linear))
                break;
            misses++;
            /* fall through */
        case REPLACE: stlb_insert(stlb, r->linear, r->leaf); break;
        case SELECT: stlb_select(stlb, r->pcid); break;
        case DROP_ALL: stlb_drop_all(stlb); break;
        case DROP_LOCAL: stlb_drop_local(stlb); break;
        case DROP_SPACE: stlb_drop_space(stlb, r->pcid); break;
        case DROP_PAGE: stlb_drop_page(stlb, r->linear); break;
        default: stlb_drop_page_of(stlb, r->pcid, r->linear); break;
        }
        if (fifo && r->what == TRANSLATE)
            forget_use(stlb);
    }
    printf("%s %zu %zu\n", policy, lookups, misses);
    free(stlb);
}

/* ---- the guest ---- */

static void fail(const char *what, const imgvm_error *err)
{
    fprintf(stderr, "%s: %s\n", what, err ? err->message : "cannot be read");
    exit(1);
}

static void *contents(const char *name, uint64_t *bytes)
{
    struct stat st;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st))
        fail(name, NULL);
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        fail(name, NULL);
    *bytes = (uint64_t)st.st_size;
    return data;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "tlb_trace MODEL VMLINUX INITRD CMDLINE\n");
        return 2;
    }
    trace.record = mmap(NULL, RECORDS * sizeof *trace.record, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (trace.record == MAP_FAILED)
        fail("the trace", NULL);
    imgvm_error err;
    imgvm_vm *vm;
    imgvm_vm_config config = {.abi = IMGVM_ABI, .engine = IMGVM_ENGINE_JIT, .cpus = 1, .memory_bytes = 512u << 20,
                              .cpu_model = argv[1]};
    uint64_t kernel_bytes, initrd_bytes;
    void *kernel = contents(argv[2], &kernel_bytes), *initrd = contents(argv[3], &initrd_bytes);
    imgvm_result result;
    if (imgvm_vm_create(&config, &vm, &err) ||
        imgvm_vm_load_linux(vm, kernel, kernel_bytes, initrd, initrd_bytes, argv[4], &err) ||
        imgvm_vm_set_console(vm, -1, 2, 0, &err))
        fail("the machine", &err);
    trace.on = true;
    note(DROP_ALL, 0, 0, 0);
    if (imgvm_vm_start(vm, &err))
        fail("the machine", &err);
    imgvm_vm_wait(vm, -1, &result);
    trace.on = false;
    imgvm_vm_destroy(vm);
    if (result.reason != IMGVM_REASON_EXEC || result.status) {
        fprintf(stderr, "the guest ended for reason %u: %s\n", result.reason, result.message);
        return 1;
    }
    replay("CLOCK", false);
    replay("FIFO", true);
    return 0;
}
