/* SPDX-License-Identifier: MIT */
#include "backend.h"

const struct engine_ops *engine_find(uint32_t id)
{
    switch (id) {
    case IMGVM_ENGINE_KVM:
        return &engine_kvm_ops;
    case IMGVM_ENGINE_INTERP:
        return &engine_soft_ops;
    case IMGVM_ENGINE_JIT:
        return &engine_jit_ops;
    default:
        return NULL;
    }
}
