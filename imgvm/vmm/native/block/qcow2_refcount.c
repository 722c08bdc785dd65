/* SPDX-License-Identifier: MIT */
/* How many references each cluster has, and the allocation of free ones. The refcount table points to refcount
 * blocks of one cluster each; both are clusters themselves and count their own. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

/* A valid image counts few clusters that its file has not grown to yet. */
#define UNWRITTEN_CLUSTERS_MAX (UINT64_C(1) << 20)

/* log2 of the refcounts in a block */
static unsigned block_bits(const struct qcow2 *q)
{
    return q->cluster_bits + 3 - q->refcount_order;
}

static uint64_t block_offset(const struct qcow2 *q, uint64_t block)
{
    return block < q->refcounts.count ? q->refcounts.entries[block] & ENTRY_OFFSET_MASK : 0;
}

/* Refcounts narrower than a byte fill it from the least significant bit. */
static uint64_t count_load(const struct qcow2 *q, const uint8_t *data, uint64_t index)
{
    switch (q->refcount_order) {
    case 0:
    case 1:
    case 2: {
        unsigned width = 1u << q->refcount_order, per_byte = 8 / width;
        return data[index / per_byte] >> index % per_byte * width & ((1u << width) - 1);
    }
    case 3: return data[index];
    case 4: return load_be16(data + 2 * index);
    case 5: return load_be32(data + 4 * index);
    default: return load_be64(data + 8 * index);
    }
}

static void count_store(const struct qcow2 *q, uint8_t *data, uint64_t index, uint64_t value)
{
    switch (q->refcount_order) {
    case 0:
    case 1:
    case 2: {
        unsigned width = 1u << q->refcount_order, per_byte = 8 / width;
        unsigned shift = index % per_byte * width, mask = ((1u << width) - 1) << shift;
        data[index / per_byte] = (uint8_t)((data[index / per_byte] & ~mask) | (value << shift & mask));
        break;
    }
    case 3: data[index] = (uint8_t)value; break;
    case 4: store_be16(data + 2 * index, (uint16_t)value); break;
    case 5: store_be32(data + 4 * index, (uint32_t)value); break;
    default: store_be64(data + 8 * index, value); break;
    }
}

int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out, imgvm_error *err)
{
    uint64_t block = cluster >> block_bits(q), offset = block_offset(q, block);
    struct table *table;
    *out = 0;
    if (!offset)
        return 0;
    int result = cache_load(q, &q->block_cache, block, offset, &table, err);
    if (!result)
        *out = count_load(q, table->data, cluster & (BIT(block_bits(q)) - 1));
    return result;
}

uint64_t refcount_max(const struct qcow2 *q)
{
    return UINT64_MAX >> (64 - (1u << q->refcount_order));
}

int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value, imgvm_error *err)
{
    uint64_t block = cluster >> block_bits(q), offset = block_offset(q, block);
    struct table *table;
    if (!offset)
        return qcow2_corrupt(q, err, "cluster %llu has no refcount", (unsigned long long)cluster);
    if (value > refcount_max(q))
        return error_set(err, EOVERFLOW, "%s: a cluster has more references than its refcount can hold",
                         q->file->path);
    int result = cache_load(q, &q->block_cache, block, offset, &table, err);
    if (result)
        return result;
    uint64_t index = cluster & (BIT(block_bits(q)) - 1);
    count_store(q, table->data, index, value);
    cache_dirty(q, &q->block_cache, table, index << q->refcount_order >> 3, MAX(1u << q->refcount_order >> 3, 1));
    if (!value && cluster < q->free_hint)
        q->free_hint = cluster;
    return 0;
}

static int is_free(struct qcow2 *q, uint64_t cluster, bool *out, imgvm_error *err)
{
    uint64_t count;
    /* A search may pass through every block of a large image. */
    if (unlikely(q->block_cache.live_count > q->block_cache.live_limit))
        cache_evict_clean(&q->block_cache, q->block_cache.live_limit / 4 * 3);
    int result = refcount_get(q, cluster, &count, err);
    *out = !count;
    return result;
}

/* What an allocation of [start, start + run) needs besides: refcount blocks for ranges that have none, and a new
 * refcount table when those do not fit the present one. They are put right behind the run, and so may need
 * further blocks themselves. */
struct growth {
    uint64_t blocks, table_clusters, total; /* total: with the run */
};

static struct growth plan_growth(const struct qcow2 *q, uint64_t start, uint64_t run)
{
    struct growth plan = {0, 0, run};
    for (;;) {
        uint64_t last = (start + plan.total - 1) >> block_bits(q);
        plan.blocks = plan.table_clusters = 0;
        for (uint64_t block = start >> block_bits(q); block <= last; block++)
            plan.blocks += !block_offset(q, block);
        if (last >= q->refcounts.count)
            plan.table_clusters = clusters_of(q, (last + 1 + (last + 1) / 2) * 8);
        uint64_t total = run + plan.blocks + plan.table_clusters;
        if (total <= plan.total)
            return plan;
        plan.total = total;
    }
}

/* The part of a growth that can fail: memory, and disk space for the new metadata, whose contents are
 * written by qcow2_write_back and must not find the disk full then. */
static int prepare_growth(struct qcow2 *q, uint64_t start, uint64_t run, const struct growth *plan, imgvm_error *err)
{
    uint64_t extras = plan->total - run;
    int result = 0;
    for (uint64_t block = start >> block_bits(q); block <= (start + plan->total - 1) >> block_bits(q); block++) {
        struct table *table;
        if (block_offset(q, block) &&
            (result = cache_load(q, &q->block_cache, block, block_offset(q, block), &table, err)))
            return result;
    }
    if (!extras)
        return 0;
    if (plan->table_clusters) {
        uint64_t entries = plan->table_clusters << (q->cluster_bits - 3);
        if (entries * 8 > REFCOUNT_TABLE_BYTES_MAX)
            return error_set(err, EFBIG, "%s: a file with clusters of %llu bytes cannot grow further", q->file->path,
                             (unsigned long long)q->cluster_bytes);
        if ((result = cache_grow(&q->block_cache, entries, err)))
            return result;
        uint64_t *grown = realloc(q->refcounts.entries, entries * 8);
        if (!grown)
            return qcow2_no_memory(err);
        memset(grown + q->refcounts.count, 0, (entries - q->refcounts.count) * 8);
        q->refcounts.entries = grown;
    }
    return file_write_zeros(q->file, (start + run) << q->cluster_bits, extras << q->cluster_bits, err);
}

static int add_blocks(struct qcow2 *q, uint64_t start, uint64_t run, const struct growth *plan, imgvm_error *err)
{
    uint64_t first = start >> block_bits(q), last = (start + plan->total - 1) >> block_bits(q);
    uint64_t at = start + run;
    for (uint64_t block = first; block <= last; block++) {
        struct table *table;
        if (block_offset(q, block))
            continue;
        int result = cache_add(q, &q->block_cache, block, at++ << q->cluster_bits, &table, err);
        if (result) { /* the entries are not set yet: new tables are those without one */
            while (block-- > first)
                if (!block_offset(q, block) && q->block_cache.slots[block])
                    cache_drop(&q->block_cache, q->block_cache.slots[block]);
            return result;
        }
    }
    return 0;
}

/* Nothing here fails: all memory is there and all blocks are loaded. */
static void commit_alloc(struct qcow2 *q, uint64_t start, uint64_t run, const struct growth *plan)
{
    uint64_t last = (start + plan->total - 1) >> block_bits(q);
    uint64_t old_offset = q->refcounts.offset, old_clusters = q->refcounts.count >> (q->cluster_bits - 3);
    if (plan->table_clusters) {
        q->refcounts.offset = (start + run + plan->blocks) << q->cluster_bits;
        q->refcounts.count = plan->table_clusters << (q->cluster_bits - 3);
    }
    for (uint64_t block = start >> block_bits(q); block <= last; block++)
        if (!block_offset(q, block))
            offset_table_set(&q->refcounts, block, q->block_cache.slots[block]->offset);
    for (uint64_t i = 0; i < plan->total; i++)
        refcount_set(q, start + i, 1, NULL);
    q->used_end = MAX(q->used_end, (start + plan->total) << q->cluster_bits);
    /* A table that moved before it was ever written leaves nothing behind on disk. */
    if (plan->table_clusters && old_offset != q->refcount_offset_on_disk)
        clusters_unalloc(q, old_offset, old_clusters);
}

/* The first run of min..max free clusters from `from` on. */
static int find_run(struct qcow2 *q, uint64_t from, uint64_t min, uint64_t max, uint64_t *start, uint64_t *run,
                    imgvm_error *err)
{
    const uint64_t limit = clusters_of(q, file_bytes(q->file)) + UNWRITTEN_CLUSTERS_MAX;
    for (;; from += *run) {
        bool is = false;
        int result = 0;
        for (; !(result = is_free(q, from, &is, err)) && !is; from++)
            if (from > limit)
                return qcow2_corrupt(q, err, "its refcounts cover far more clusters than it has");
        *run = 1;
        while (!result && *run < max && !(result = is_free(q, from + *run, &is, err)) && is)
            ++*run;
        if (result)
            return result;
        *start = from;
        if (*run >= min)
            return 0;
    }
}

int clusters_alloc(struct qcow2 *q, uint64_t min, uint64_t max, uint64_t *offset, uint64_t *got, imgvm_error *err)
{
    uint64_t from = q->free_hint, start = 0, run = 0;
    struct growth plan;
    for (;;) {
        int result = find_run(q, from, min, max, &start, &run, err);
        if (result)
            return result;
        plan = plan_growth(q, start, run);
        uint64_t clear = run;
        bool is = true;
        while (clear < plan.total && !(result = is_free(q, start + clear, &is, err)) && is)
            clear++;
        if (result)
            return result;
        if (clear == plan.total)
            break;
        from = start + clear;
    }
    if (start + plan.total > HOST_OFFSET_MAX >> q->cluster_bits)
        return error_set(err, EFBIG, "%s: the file cannot grow further", q->file->path);
    if (qcow2_is_fixed_metadata(q, start << q->cluster_bits, plan.total << q->cluster_bits))
        return qcow2_corrupt(q, err, "its refcounts call metadata at offset %#llx free",
                             (unsigned long long)(start << q->cluster_bits));
    int result = prepare_growth(q, start, run, &plan, err);
    if (!result)
        result = add_blocks(q, start, run, &plan, err);
    if (result)
        return result;
    if (from == q->free_hint && min == 1) /* else the search may have left holes behind */
        q->free_hint = start + plan.total;
    commit_alloc(q, start, run, &plan);
    *offset = start << q->cluster_bits;
    if (got)
        *got = run;
    return 0;
}

void clusters_unalloc(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    q->packed_at = 0;
    for (uint64_t i = 0; i < count; i++)
        refcount_set(q, (offset >> q->cluster_bits) + i, 0, NULL); /* at worst a leak */
}

int releases_reserve(struct qcow2 *q, size_t more, imgvm_error *err)
{
    if (q->free_room - q->free_count >= more)
        return 0;
    size_t room = MAX(2 * q->free_room, q->free_count + more + 64);
    uint64_t *grown = realloc(q->frees, room * sizeof *grown);
    if (!grown)
        return qcow2_no_memory(err);
    q->frees = grown;
    q->free_room = room;
    return 0;
}

int cluster_release_later(struct qcow2 *q, uint64_t offset, imgvm_error *err)
{
    int result = releases_reserve(q, 1, err);
    if (!result)
        q->frees[q->free_count++] = offset >> q->cluster_bits;
    return result;
}

static int by_number(const void *a, const void *b)
{
    const uint64_t *na = a, *nb = b;
    return (*na > *nb) - (*na < *nb);
}

/* Nobody uses these clusters any more: the host gets their space. An image that lies may say so of its own tables. */
static void give_back(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    uint64_t offset = cluster << q->cluster_bits, bytes = count << q->cluster_bits;
    if (count && !qcow2_is_fixed_metadata(q, offset, bytes))
        file_punch(q->file, offset, bytes);
}

void releases_apply(struct qcow2 *q)
{
    uint64_t run_at = 0, run = 0;
    if (!q->free_count)
        return;
    inflaters_forget(q);
    q->packed_at = 0;
    qsort(q->frees, q->free_count, sizeof *q->frees, by_number);
    for (size_t i = 0; i < q->free_count; i++) {
        uint64_t count;
        /* What fails here leaks a cluster, no more. */
        if (refcount_get(q, q->frees[i], &count, NULL) || !count || refcount_set(q, q->frees[i], count - 1, NULL) ||
            count > 1)
            continue;
        if (!run || q->frees[i] != run_at + run) {
            give_back(q, run_at, run);
            run_at = q->frees[i];
            run = 0;
        }
        run++;
    }
    give_back(q, run_at, run);
    q->free_count = 0;
}

/* One reference more to a cluster in use; false when its refcount can hold no more. */
static int add_reference(struct qcow2 *q, uint64_t cluster, bool *done, imgvm_error *err)
{
    uint64_t count;
    int result = refcount_get(q, cluster, &count, err);
    *done = !result && count && count < refcount_max(q);
    return *done ? refcount_set(q, cluster, count + 1, err) : result;
}

int bytes_alloc(struct qcow2 *q, uint64_t bytes, uint64_t *offset, imgvm_error *err)
{
    uint64_t at = q->packed_at, room = align_up(at, q->cluster_bytes) - at, next;
    bool shared = false;
    int result = 0;
    if (at && bytes <= room) {
        if ((result = add_reference(q, at >> q->cluster_bits, &shared, err)))
            return result;
        next = at;
    }
    if (!shared) {
        if ((result = clusters_alloc(q, 1, 1, &next, NULL, err)))
            return result;
        /* Right behind what is there? Then the data begins in the cluster before. */
        if (at && room && room < bytes && next == at + room) {
            if ((result = add_reference(q, at >> q->cluster_bits, &shared, err))) {
                clusters_unalloc(q, next, 1);
                return result;
            }
            next = shared ? at : next;
        }
    }
    *offset = next;
    q->packed_at = next + bytes;
    if (!(q->packed_at & (q->cluster_bytes - 1)))
        q->packed_at = 0;
    return 0;
}

void bytes_unalloc(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    q->packed_at = 0;
    for (uint64_t i = offset >> q->cluster_bits; i <= (offset + bytes - 1) >> q->cluster_bits; i++) {
        uint64_t count;
        if (!refcount_get(q, i, &count, NULL) && count)
            refcount_set(q, i, count - 1, NULL); /* at worst a leak */
    }
}
