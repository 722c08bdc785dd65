/* SPDX-License-Identifier: MIT */
/* needs: machine/*.c backend/kvm*.c backend/handover.c arch/*.c base/*.c mem/*.c dev/*.c dev/pci/*.c */
/* needs: dev/virtio/*.c block/*.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c */
/* libs: z zstd */
/* Small guests under KVM: the whole path from a Multiboot file to a status. Skipped where KVM cannot be used. */
#include "guest_cases.h"

#include "backend/backend.h"

/* This program links no software processor. */
const struct engine_ops *engine_find(uint32_t id)
{
    return id == IMGVM_ENGINE_KVM ? &engine_kvm_ops : NULL;
}

int main(void)
{
    imgvm_error err;
    if (imgvm_engine_probe(IMGVM_ENGINE_KVM, &err) < 0) {
        printf("skipped: %s\n", err.message);
        return 0;
    }
    return guest_cases(IMGVM_ENGINE_KVM);
}
