/* SPDX-License-Identifier: MIT */
/* needs: machine/*.c backend/soft*.c backend/alarm.c arch/*.c base/*.c mem/*.c dev/*.c dev/pci/*.c dev/virtio/*.c block/*.c */
/* needs: cpu/decode/*.c cpu/exec/*.c cpu/mmu/*.c cpu/jit/*.c */
/* libs: z zstd */
/* Processors that share memory, with the translator. */
#include "smp_cases.h"

#include "backend/backend.h"

/* This program links no KVM. */
const struct engine_ops *engine_find(uint32_t id)
{
    return id == IMGVM_ENGINE_JIT ? &engine_jit_ops : NULL;
}

int main(void)
{
    return smp_cases(IMGVM_ENGINE_JIT, 16384);
}
