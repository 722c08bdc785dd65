/* SPDX-License-Identifier: MIT */
/* L2 tables and refcount blocks in memory, found by their index in the table above them. Eviction is a
 * clock over clean tables and happens only in qcow2_trim, so that a table in hand stays valid. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

#define HOST_PAGE_BITS 12
#define PIECES_BITS_MAX 6 /* a bit for each in one word */

int cache_init(struct table_cache *cache, uint64_t slots, size_t live_limit, imgvm_error *err)
{
    *cache = (struct table_cache){.slot_count = MAX(slots, 1), .live_limit = live_limit};
    cache->slots = calloc(cache->slot_count, sizeof *cache->slots);
    return cache->slots ? 0 : qcow2_no_memory(err);
}

void cache_free(struct table_cache *cache)
{
    for (size_t i = 0; i < cache->live_count; i++)
        free(cache->live[i]);
    free(cache->live);
    free(cache->slots);
    *cache = (struct table_cache){0};
}

int cache_grow(struct table_cache *cache, uint64_t slots, imgvm_error *err)
{
    if (slots <= cache->slot_count)
        return 0;
    struct table **grown = realloc(cache->slots, slots * sizeof *grown);
    if (!grown)
        return qcow2_no_memory(err);
    memset(grown + cache->slot_count, 0, (slots - cache->slot_count) * sizeof *grown);
    cache->slots = grown;
    cache->slot_count = slots;
    return 0;
}

static int insert(struct qcow2 *q, struct table_cache *cache, uint64_t index, uint64_t offset, struct table **out,
                  imgvm_error *err)
{
    if (cache->live_count == cache->live_room) {
        size_t room = cache->live_room ? 2 * cache->live_room : 16;
        struct table **live = realloc(cache->live, room * sizeof *live);
        if (!live)
            return qcow2_no_memory(err);
        cache->live = live;
        cache->live_room = room;
    }
    struct table *table = malloc(sizeof *table + q->cluster_bytes);
    if (!table)
        return qcow2_no_memory(err);
    *table = (struct table){.index = index, .offset = offset, .live = cache->live_count, .used = true};
    cache->live[cache->live_count++] = table;
    cache->slots[index] = table;
    *out = table;
    return 0;
}

int cache_load(struct qcow2 *q, struct table_cache *cache, uint64_t index, uint64_t offset, struct table **out,
               imgvm_error *err)
{
    struct table *table = cache->slots[index];
    if (likely(table)) {
        table->used = true;
        *out = table;
        return 0;
    }
    if (!offset || offset & (q->cluster_bytes - 1) || offset >= file_bytes(q->file))
        return qcow2_corrupt(q, err, "%s %llu lies at offset %#llx",
                             cache == &q->l2_cache ? "L2 table" : "refcount block", (unsigned long long)index,
                             (unsigned long long)offset);
    int result = insert(q, cache, index, offset, &table, err);
    if (result)
        return result;
    result = file_read(q->file, offset, table->data, q->cluster_bytes, err);
    if (result) {
        cache_drop(cache, table);
        return result;
    }
    *out = table;
    return 0;
}

int cache_add(struct qcow2 *q, struct table_cache *cache, uint64_t index, uint64_t offset, struct table **out,
              imgvm_error *err)
{
    int result = insert(q, cache, index, offset, out, err);
    if (result)
        return result;
    memset((*out)->data, 0, q->cluster_bytes);
    cache_dirty(q, cache, *out, 0, q->cluster_bytes);
    return 0;
}

void cache_drop(struct table_cache *cache, struct table *table)
{
    struct table *last = cache->live[--cache->live_count];
    cache->live[table->live] = last;
    last->live = table->live;
    cache->slots[table->index] = NULL;
    cache->dirty_count -= table->dirty != 0;
    free(table);
}

/* log2 of what is written at once: no less than a page of the host's, or it would have to be read before. */
static unsigned piece_bits(const struct qcow2 *q)
{
    return MAX(MIN(q->cluster_bits, HOST_PAGE_BITS), q->cluster_bits - PIECES_BITS_MAX);
}

void cache_dirty(const struct qcow2 *q, struct table_cache *cache, struct table *table, uint64_t at, uint64_t bytes)
{
    cache->dirty_count += !table->dirty;
    for (uint64_t piece = at >> piece_bits(q); piece <= (at + bytes - 1) >> piece_bits(q); piece++)
        table->dirty |= BIT(piece);
}

static int by_offset(const void *a, const void *b)
{
    const struct table *const *ta = a, *const *tb = b;
    return ((*ta)->offset > (*tb)->offset) - ((*ta)->offset < (*tb)->offset);
}

static int write_pieces(struct qcow2 *q, const struct table *table, imgvm_error *err)
{
    const unsigned bits = piece_bits(q), count = 1u << (q->cluster_bits - bits);
    for (unsigned first = 0, last; first < count; first = last + 1) {
        for (last = first; last < count && table->dirty >> last & 1; last++)
            ;
        uint64_t at = (uint64_t)first << bits;
        int result = last > first
                         ? file_write(q->file, table->offset + at, table->data + at, (uint64_t)(last - first) << bits, err)
                         : 0;
        if (result)
            return result;
    }
    return 0;
}

int cache_write_back(struct qcow2 *q, struct table_cache *cache, imgvm_error *err)
{
    size_t count = 0;
    if (!cache->dirty_count)
        return 0;
    struct table **dirty = malloc(cache->dirty_count * sizeof *dirty);
    if (!dirty)
        return qcow2_no_memory(err);
    for (size_t i = 0; i < cache->live_count; i++)
        if (cache->live[i]->dirty)
            dirty[count++] = cache->live[i];
    qsort(dirty, count, sizeof *dirty, by_offset);
    int result = 0;
    for (size_t i = 0; i < count; i++) {
        if ((result = write_pieces(q, dirty[i], err)))
            break;
        dirty[i]->dirty = 0;
        cache->dirty_count--;
    }
    free(dirty);
    return result;
}

void cache_evict_clean(struct table_cache *cache, size_t keep)
{
    for (size_t steps = 2 * cache->live_count; steps && cache->live_count > keep; steps--) {
        if (cache->hand >= cache->live_count)
            cache->hand = 0;
        struct table *table = cache->live[cache->hand];
        if (table->dirty || table->used) {
            table->used = false;
            cache->hand++;
        } else
            cache_drop(cache, table);
    }
}

int offset_table_read(struct qcow2 *q, struct offset_table *table, const char *what, imgvm_error *err)
{
    uint64_t bytes = table->count * 8;
    if (table->offset & (q->cluster_bytes - 1) || table->offset > q->file->bytes ||
        bytes > q->file->bytes - table->offset || (bytes && !table->offset))
        return qcow2_corrupt(q, err, "its %s (%llu bytes at offset %#llx) is not inside the file", what,
                             (unsigned long long)bytes, (unsigned long long)table->offset);
    table->entries = malloc(MAX(bytes, 8));
    if (!table->entries)
        return qcow2_no_memory(err);
    int result = file_read(q->file, table->offset, table->entries, bytes, err);
    for (uint64_t i = 0; !result && i < table->count; i++)
        table->entries[i] = load_be64(&table->entries[i]);
    return result;
}

void offset_table_set(struct offset_table *table, uint64_t index, uint64_t entry)
{
    table->entries[index] = entry;
    if (table->dirty_from >= table->dirty_to) {
        table->dirty_from = index;
        table->dirty_to = index + 1;
        return;
    }
    table->dirty_from = MIN(table->dirty_from, index);
    table->dirty_to = MAX(table->dirty_to, index + 1);
}

int offset_table_write(struct qcow2 *q, struct offset_table *table, imgvm_error *err)
{
    uint8_t part[4096];
    for (uint64_t at = table->dirty_from; at < table->dirty_to;) {
        uint64_t count = MIN(table->dirty_to - at, sizeof part / 8);
        for (uint64_t i = 0; i < count; i++)
            store_be64(part + 8 * i, table->entries[at + i]);
        int result = file_write(q->file, table->offset + at * 8, part, count * 8, err);
        if (result)
            return result;
        at += count;
    }
    table->dirty_from = table->dirty_to = 0;
    return 0;
}
