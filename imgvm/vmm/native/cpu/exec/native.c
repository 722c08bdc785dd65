/* SPDX-License-Identifier: MIT */
/* The thunks of one processor (native.h): code pages, and a table that finds the code of an encoding again. */
#include "native.h"

#include <errno.h>
#include <stdlib.h>

#define CODE_BYTES (2u << 20) /* touched as it fills */
#define THUNK_ALIGN 16u

/* Read by the signal handler of this thread only; initial-exec so that reading it calls nothing. */
static __thread struct native_cache *active __attribute__((tls_model("initial-exec")));

void native_cache_activate(struct native_cache *cache)
{
    active = cache;
}

struct native_cache *native_cache_active(void)
{
    return active;
}

struct native_cache *native_cache_create(imgvm_error *err)
{
    struct native_cache *cache = calloc(1, sizeof *cache);
    if (!cache) {
        error_set(err, ENOMEM, "no memory for the table of native thunks");
        return NULL;
    }
    cache->generation = 1;
    if (code_memory_map(&cache->code, CODE_BYTES, NULL, false, err) < 0) {
        free(cache);
        return NULL;
    }
    return cache;
}

void native_cache_destroy(struct native_cache *cache)
{
    if (!cache)
        return;
    code_memory_unmap(&cache->code);
    free(cache);
}

/* Everything native_emit looks at. key[0] is never 0. */
static void thunk_key(uint64_t key[2], const struct insn *insn)
{
    bool memory = insn->flags & INSN_MEM;
    uint8_t flags = insn->flags & (INSN_MEM | INSN_W | INSN_VEX);
    uint8_t modrm = memory ? insn->modrm & 0x38 : insn->modrm;
    key[0] = (uint64_t)insn->row | (uint64_t)insn->reg << 16 | (uint64_t)(memory ? 0 : insn->rm) << 24 |
             (uint64_t)insn->vvvv << 32 | (uint64_t)flags << 40 | (uint64_t)insn->osize << 48 | UINT64_C(1) << 63;
    key[1] = (uint32_t)insn->imm | (uint64_t)modrm << 32 | (uint64_t)insn->vl << 40 | (uint64_t)insn->rm_size << 48;
}

/* Drops all: so rare that nothing finer pays. Nobody is inside the code, for one thread uses the cache. */
static void drop_all(struct native_cache *cache)
{
    for (unsigned i = 0; i < NATIVE_TABLE_SLOTS; i++)
        cache->slots[i] = (struct native_slot){0};
    cache->used = cache->count = 0;
    cache->generation++;
}

native_fn native_thunk(struct native_cache *cache, const struct insn *insn, const struct op_info *info)
{
    uint64_t key[2];
    thunk_key(key, insn);
    uint64_t hash = (key[0] ^ key[1] * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xd6e8feb86659fd93);
    unsigned slot = hash >> 40;
    for (;; slot++) {
        struct native_slot *s = &cache->slots[slot % NATIVE_TABLE_SLOTS];
        if (s->key[0] == key[0] && s->key[1] == key[1])
            return s->code;
        if (!s->key[0])
            break;
    }

    uint8_t bytes[NATIVE_MAX_BYTES];
    unsigned length = native_emit(bytes, insn, info);
    if (!length)
        return NULL;
    /* half-full at most, so that a free slot is near */
    if (cache->count >= NATIVE_TABLE_SLOTS / 2 || cache->used + length > cache->code.bytes) {
        drop_all(cache);
        slot = hash >> 40;
    }
    uint8_t *to = cache->code.writable + cache->used;
    for (unsigned i = 0; i < length; i++) /* not memcpy: vector registers are the guest's */
        ((volatile uint8_t *)to)[i] = bytes[i];
    struct native_slot *s = &cache->slots[slot % NATIVE_TABLE_SLOTS];
    s->key[0] = key[0];
    s->key[1] = key[1];
    s->code = (native_fn)(uintptr_t)(cache->code.executable + cache->used);
    cache->used += (length + THUNK_ALIGN - 1) & ~(THUNK_ALIGN - 1);
    cache->count++;
    return s->code;
}
