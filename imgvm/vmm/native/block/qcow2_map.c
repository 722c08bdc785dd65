/* SPDX-License-Identifier: MIT */
/* From guest offsets to clusters, and the order in which changed metadata reaches the disk. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "qcow2.h"

/* Clusters waiting to be freed before a write-back is forced. */
#define RELEASES_MAX 65536

struct l2_entry l2_parse(const struct qcow2 *q, const uint8_t *data)
{
    struct l2_entry entry = {.word = load_be64(data)};
    if (entry.word & ENTRY_COMPRESSED)
        return entry;
    if (q->subclusters > 1) {
        entry.word &= ~ENTRY_ZERO;
        entry.bitmap = load_be64(data + 8);
    } else {
        bool zero = entry.word & ENTRY_ZERO && q->version >= 3;
        bool placed = entry.word & ENTRY_OFFSET_MASK || (has_data_file(q) && entry.word & ENTRY_COPIED);
        entry.word &= ~ENTRY_ZERO;
        entry.bitmap = zero ? bitmap_zero(q) : placed ? bitmap_allocated(q) : 0;
    }
    return entry;
}

struct l2_entry l2_load(const struct qcow2 *q, const struct table *table, uint64_t index)
{
    return l2_parse(q, table->data + (index << (q->cluster_bits - q->l2_bits)));
}

void l2_format(const struct qcow2 *q, uint8_t *data, struct l2_entry entry)
{
    if (q->subclusters > 1)
        store_be64(data + 8, entry.bitmap);
    else if (entry.bitmap & bitmap_zero(q))
        entry.word |= ENTRY_ZERO;
    store_be64(data, entry.word);
}

void l2_store(struct qcow2 *q, struct table *table, uint64_t index, struct l2_entry entry)
{
    l2_format(q, table->data + (index << (q->cluster_bits - q->l2_bits)), entry);
    l2_dirty(q, table, index);
}

void l2_dirty(struct qcow2 *q, struct table *table, uint64_t index)
{
    unsigned entry_bits = q->cluster_bits - q->l2_bits;
    cache_dirty(q, &q->l2_cache, table, index << entry_bits, BIT(entry_bits));
}

struct l2_entry l2_data_entry(const struct qcow2 *q, uint64_t host, bool copied)
{
    return (struct l2_entry){host | (copied ? ENTRY_COPIED : 0), bitmap_allocated(q)};
}

int map_decode(const struct qcow2 *q, struct l2_entry entry, unsigned subcluster, struct mapping *out,
               imgvm_error *err)
{
    *out = (struct mapping){.kind = CLUSTER_NONE};
    if (entry.word & ENTRY_COMPRESSED) {
        unsigned offset_bits = 62 - (q->cluster_bits - 8);
        uint64_t host = entry.word & (BIT(offset_bits) - 1);
        uint64_t sectors = bits_get(entry.word, 61, offset_bits) + 1;
        out->kind = CLUSTER_COMPRESSED;
        out->host = host;
        out->bytes = sectors * COMPRESSED_SECTOR_BYTES - host % COMPRESSED_SECTOR_BYTES;
        if (!host || host >= file_bytes(q->file) || has_data_file(q))
            return qcow2_corrupt(q, err, "a compressed cluster lies at offset %#" PRIx64, host);
        return 0;
    }
    out->host = entry.word & ENTRY_OFFSET_MASK;
    out->placed = out->host || (has_data_file(q) && entry.word & ENTRY_COPIED);
    if (out->host & (q->cluster_bytes - 1))
        return qcow2_corrupt(q, err, "a cluster lies at offset %#" PRIx64, out->host);
    if (entry.bitmap & entry.bitmap >> SUBCLUSTERS & bitmap_allocated(q) ||
        (entry.bitmap & bitmap_allocated(q) && !out->placed))
        return qcow2_corrupt(q, err, "the subclusters at offset %#" PRIx64 " contradict each other", out->host);
    if (entry.bitmap >> (SUBCLUSTERS + subcluster) & 1)
        out->kind = CLUSTER_ZERO;
    else if (entry.bitmap >> subcluster & 1)
        out->kind = CLUSTER_DATA;
    return 0;
}

int map_l2(struct qcow2 *q, uint64_t l1_index, struct table **out, imgvm_error *err)
{
    uint64_t offset = q->l1.entries[l1_index] & ENTRY_OFFSET_MASK;
    *out = NULL;
    return offset ? cache_load(q, &q->l2_cache, l1_index, offset, out, err) : 0;
}

/* A cluster of its own for an L2 table: its space is taken now, so that write-back never finds the disk full. */
static int place_l2(struct qcow2 *q, const uint8_t *contents, uint64_t *offset, imgvm_error *err)
{
    int result = clusters_alloc(q, 1, 1, offset, NULL, err);
    if (result)
        return result;
    result = file_write(q->file, *offset, contents, q->cluster_bytes, err);
    if (result)
        clusters_unalloc(q, *offset, 1);
    return result;
}

static int new_l2(struct qcow2 *q, uint64_t l1_index, struct table **out, imgvm_error *err)
{
    uint64_t offset;
    int result = cache_add(q, &q->l2_cache, l1_index, 0, out, err);
    if (result)
        return result;
    result = place_l2(q, (*out)->data, &offset, err);
    if (result) {
        cache_drop(&q->l2_cache, *out);
        return result;
    }
    (*out)->offset = offset;
    offset_table_set(&q->l1, l1_index, offset | ENTRY_COPIED);
    return 0;
}

int map_l2_for_write(struct qcow2 *q, uint64_t l1_index, struct table **out, imgvm_error *err)
{
    int result = map_l2(q, l1_index, out, err);
    if (result)
        return result;
    if (!*out)
        return new_l2(q, l1_index, out, err);
    uint64_t old = (*out)->offset, count, offset;
    if ((result = refcount_get(q, old >> q->cluster_bits, &count, err)))
        return result;
    if (likely(count == 1) && likely(!qcow2_is_fixed_metadata(q, old, q->cluster_bytes)))
        return 0;
    if (count <= 1)
        return qcow2_corrupt(q, err, "its L2 table at offset %#" PRIx64 " is counted as something else", old);
    /* Shared with a snapshot: from now on a copy. */
    if ((result = releases_reserve(q, 1, err)) || (result = place_l2(q, (*out)->data, &offset, err)))
        return result;
    (*out)->offset = offset;
    cache_dirty(q, &q->l2_cache, *out, 0, q->cluster_bytes);
    offset_table_set(&q->l1, l1_index, offset | ENTRY_COPIED);
    return cluster_release_later(q, old, err);
}

int map_release(struct qcow2 *q, const struct mapping *mapping, imgvm_error *err)
{
    if (mapping->kind != CLUSTER_COMPRESSED) {
        bool counted = mapping->placed && !has_data_file(q);
        return counted ? cluster_release_later(q, mapping->host, err) : 0;
    }
    /* Every host cluster that the compressed data touches counts one reference for it. */
    uint64_t first = mapping->host >> q->cluster_bits;
    uint64_t last = (mapping->host + mapping->bytes - 1) >> q->cluster_bits;
    int result = releases_reserve(q, last - first + 1, err);
    for (uint64_t cluster = first; !result && cluster <= last; cluster++)
        result = cluster_release_later(q, cluster << q->cluster_bits, err);
    return result;
}

/* The new place of the refcount table, with all it says, is on disk before the header names it. */
static int move_refcount_table(struct qcow2 *q, imgvm_error *err)
{
    uint8_t field[12];
    uint64_t old_offset = q->refcount_offset_on_disk, old_clusters = q->refcount_clusters_on_disk;
    uint64_t clusters = q->refcounts.count >> (q->cluster_bits - 3);
    int result = releases_reserve(q, old_clusters, err);
    if (result)
        return result;
    q->refcounts.dirty_from = 0;
    q->refcounts.dirty_to = q->refcounts.count;
    if ((result = offset_table_write(q, &q->refcounts, err)))
        return result;
    store_be64(field, q->refcounts.offset);
    store_be32(field + 8, (uint32_t)clusters);
    if ((result = qcow2_write_header(q, HEADER_REFCOUNT_TABLE_OFFSET, field, sizeof field, err)))
        return result;
    q->refcount_offset_on_disk = q->refcounts.offset;
    q->refcount_clusters_on_disk = clusters;
    for (uint64_t i = 0; i < old_clusters; i++)
        cluster_release_later(q, old_offset + (i << q->cluster_bits), NULL); /* room is reserved */
    return 0;
}

static bool has_changes(const struct offset_table *table)
{
    return table->dirty_from < table->dirty_to;
}

static int write_l2_tables(struct qcow2 *q, imgvm_error *err)
{
    bool any = q->l2_cache.dirty_count;
    int result = cache_write_back(q, &q->l2_cache, err);
    for (struct disk_map *map = q->further; !result && map; map = map->next) {
        any |= map->l2_cache.dirty_count != 0;
        result = cache_write_back(q, &map->l2_cache, err);
    }
    return result || !any ? result : qcow2_sync(q, err);
}

static int write_l1_tables(struct qcow2 *q, imgvm_error *err)
{
    bool any = has_changes(&q->l1);
    int result = any ? offset_table_write(q, &q->l1, err) : 0;
    for (struct disk_map *map = q->further; !result && map; map = map->next)
        if (has_changes(&map->l1)) {
            any = true;
            result = offset_table_write(q, &map->l1, err);
        }
    return result || !any ? result : qcow2_sync(q, err);
}

/*      data, refcount blocks  ->  refcount table  ->  L2 tables  ->  L1 table  ->  references dropped
 *
 * Each arrow is an fdatasync; stages with nothing to write are skipped. */
int qcow2_write_back(struct qcow2 *q, imgvm_error *err)
{
    int result = cache_write_back(q, &q->block_cache, err);
    if (result || (result = qcow2_sync(q, err)))
        return result;
    if (q->refcounts.offset != q->refcount_offset_on_disk) {
        if ((result = move_refcount_table(q, err)))
            return result;
    } else if (has_changes(&q->refcounts)) {
        if ((result = offset_table_write(q, &q->refcounts, err)) || (result = qcow2_sync(q, err)))
            return result;
    }
    if ((result = write_l2_tables(q, err)) || (result = write_l1_tables(q, err)))
        return result;
    releases_apply(q);
    return 0;
}

/* The word with its COPIED bit as the refcount wants it. */
static int refresh_word(struct qcow2 *q, uint64_t word, uint64_t *out, imgvm_error *err)
{
    uint64_t host = word & ENTRY_OFFSET_MASK, count;
    *out = word;
    if (!host || word & ENTRY_COMPRESSED)
        return 0;
    int result = refcount_get(q, host >> q->cluster_bits, &count, err);
    *out = (word & ~ENTRY_COPIED) | (count == 1 ? ENTRY_COPIED : 0);
    return result;
}

static int refresh_table(struct qcow2 *q, struct table *table, imgvm_error *err)
{
    for (uint64_t j = 0; j < BIT(q->l2_bits); j++) {
        struct l2_entry entry = l2_load(q, table, j);
        uint64_t word;
        int result = refresh_word(q, entry.word, &word, err);
        if (result)
            return result;
        if (word != entry.word) {
            entry.word = word;
            l2_store(q, table, j, entry);
        }
    }
    return 0;
}

int map_refresh_copied(struct qcow2 *q, imgvm_error *err)
{
    for (uint64_t i = 0; i < q->l1.count; i++) {
        struct table *table;
        uint64_t word;
        int result = qcow2_trim(q, err);
        if (result || (result = map_l2(q, i, &table, err)) ||
            (result = refresh_word(q, q->l1.entries[i], &word, err)))
            return result;
        if (word != q->l1.entries[i])
            offset_table_set(&q->l1, i, word);
        if (table && !has_data_file(q) && (result = refresh_table(q, table, err)))
            return result;
    }
    return qcow2_write_back(q, err);
}

static bool is_crowded(const struct qcow2 *q, const struct table_cache *cache)
{
    return unlikely(cache->live_count > cache->live_limit) || unlikely(q->free_count > RELEASES_MAX);
}

bool qcow2_is_crowded(const struct qcow2 *q)
{
    return is_crowded(q, &q->l2_cache) || is_crowded(q, &q->block_cache);
}

int qcow2_trim(struct qcow2 *q, imgvm_error *err)
{
    struct table_cache *caches[] = {&q->l2_cache, &q->block_cache};
    for (size_t i = 0; i < ARRAY_LEN(caches); i++) {
        struct table_cache *cache = caches[i];
        if (!is_crowded(q, cache))
            continue;
        if (cache->dirty_count > cache->live_limit / 2 || q->free_count > RELEASES_MAX) {
            int result = qcow2_write_back(q, err);
            if (result)
                return result;
        }
        cache_evict_clean(cache, cache->live_limit / 4 * 3);
    }
    return 0;
}
