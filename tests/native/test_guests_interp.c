/* SPDX-License-Identifier: MIT */
/* needs: machine/*.c backend/soft*.c backend/alarm.c arch/*.c base/*.c mem/*.c dev/*.c dev/pci/*.c dev/virtio/*.c block/*.c */
/* needs: cpu/decode/*.c cpu/exec/*.c cpu/mmu/*.c cpu/jit/*.c */
/* libs: z zstd */
/* Small guests on the software processor: the whole path from a Multiboot file to a status. */
#include "guest_cases.h"

#include "backend/backend.h"

/* This program links no KVM. */
const struct engine_ops *engine_find(uint32_t id)
{
    return id == IMGVM_ENGINE_INTERP ? &engine_soft_ops : NULL;
}

int main(void)
{
    return guest_cases(IMGVM_ENGINE_INTERP);
}
