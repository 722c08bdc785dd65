/* SPDX-License-Identifier: MIT */
/* needs: machine/[a-z]*.c backend/kvm*.c backend/handover.c arch/[a-z]*.c base/[a-z]*.c mem/[a-z]*.c dev/[a-z]*.c */
/* needs: dev/pci/[a-z]*.c dev/virtio/[a-z]*.c block/[a-z]*.c cpu/exec/[a-z]*.c cpu/mmu/[a-z]*.c cpu/decode/[a-z]*.c */
/* libs: z zstd */
/* KVM and the software processor take turns on one machine. Skipped where KVM cannot be used. */
#include "guest_run.h"

#include "backend/backend.h"

const struct engine_ops *engine_find(uint32_t id)
{
    return id == IMGVM_ENGINE_KVM ? &engine_kvm_ops : NULL;
}

static struct guest_run run;

int main(void)
{
    imgvm_error err;
    size_t size = 0;
    if (imgvm_engine_probe(IMGVM_ENGINE_KVM, &err) < 0) {
        printf("skipped: %s\n", err.message);
        return 0;
    }
    guest_begin();
    void *kernel = guest_build("tests/guest/handover.c", true, &size);
    imgvm_vm_config config = guest_config(IMGVM_ENGINE_KVM);
    guest_run_as(GUEST_LINUX, &config, kernel, size, "", NULL, &run);
    CHECK(run.ended);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    CHECK_EQ(run.result.status, 0);
    if (run.result.reason != IMGVM_REASON_DEBUG_EXIT)
        printf("%s\n", run.result.message);
    printf("hand-overs: %llu, %llu instructions in software\n", (unsigned long long)run.result.handovers,
           (unsigned long long)run.result.instructions);
    CHECK((run.result.handovers == 0) == (run.result.instructions == 0));
    free(kernel);
    guest_end();
    return check_report();
}
