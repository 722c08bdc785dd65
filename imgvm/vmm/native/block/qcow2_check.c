/* SPDX-License-Identifier: MIT */
/* The check: counts every reference anew and compares. A cluster counted too high leaks, one counted too low (or
 * a reference that leads nowhere) is damage. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2.h"

static void count_one(struct recount *recount, uint64_t host)
{
    uint64_t cluster = host >> recount->q->cluster_bits;
    if (cluster >= recount->clusters)
        recount->corruptions++;
    else
        recount->counts[cluster] += recount->counts[cluster] < UINT32_MAX;
}

static void count_range(struct recount *recount, uint64_t offset, uint64_t bytes)
{
    for (uint64_t i = 0; i < clusters_of(recount->q, bytes); i++)
        count_one(recount, offset + (i << recount->q->cluster_bits));
}

static int visit(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    struct recount *recount = opaque;
    uint64_t refcount;
    count_one(recount, host);
    if (!recount->active || kind == REFERENCE_L1)
        return 0;
    if (kind == REFERENCE_COMPRESSED) {
        recount->corruptions += !!(entry & ENTRY_COPIED);
        return 0;
    }
    int result = refcount_get(recount->q, host >> recount->q->cluster_bits, &refcount, err);
    if (recount->q->block_cache.live_count > recount->q->block_cache.live_limit)
        cache_evict_clean(&recount->q->block_cache, recount->q->block_cache.live_limit / 2);
    recount->corruptions += !result && (refcount == 1) != !!(entry & ENTRY_COPIED);
    return result == -EIO ? 0 : result; /* a broken refcount block is counted once, below */
}

static int broken(void *opaque, const char *what, uint64_t value, imgvm_error *err)
{
    struct recount *recount = opaque;
    (void)what;
    (void)value;
    (void)err;
    recount->corruptions++;
    return 0;
}

/* The bitmap directory (while its autoclear bit says that it is valid), the bitmaps' tables and clusters. */
static int count_bitmaps(struct recount *recount, imgvm_error *err)
{
    struct qcow2 *q = recount->q;
    uint64_t at = q->bitmaps_offset, end = at + q->bitmaps_bytes;
    if (!q->bitmaps_count)
        return 0;
    if (at > file_bytes(q->file) || q->bitmaps_bytes > file_bytes(q->file) - at)
        return broken(recount, NULL, at, err);
    count_range(recount, at, q->bitmaps_bytes);
    for (uint32_t i = 0; i < q->bitmaps_count; i++) {
        uint8_t head[24], entry[8];
        int result = end - at < sizeof head ? -EIO : file_read(q->file, at, head, sizeof head, err);
        if (result)
            return result == -EIO ? broken(recount, NULL, at, err) : result;
        uint64_t table = load_be64(head), entries = load_be32(head + 8);
        uint64_t bytes = align_up(24 + load_be32(head + 20) + (uint64_t)load_be16(head + 18), 8);
        if (bytes > end - at || table & (q->cluster_bytes - 1) || table > file_bytes(q->file) ||
            entries * 8 > file_bytes(q->file) - table)
            return broken(recount, NULL, table, err);
        at += bytes;
        count_range(recount, table, entries * 8);
        for (uint64_t j = 0; j < entries; j++) {
            if ((result = file_read(q->file, table + 8 * j, entry, 8, err)))
                return result;
            if (load_be64(entry) & ENTRY_OFFSET_MASK)
                count_one(recount, load_be64(entry) & ENTRY_OFFSET_MASK);
        }
    }
    return 0;
}

static int count_all(struct recount *recount, imgvm_error *err)
{
    struct qcow2 *q = recount->q;
    const struct walker walker = {visit, broken, recount};
    count_one(recount, 0);
    count_range(recount, q->refcounts.offset, q->refcounts.count * 8);
    for (uint64_t i = 0; i < q->refcounts.count; i++) {
        uint64_t block = q->refcounts.entries[i] & ENTRY_OFFSET_MASK;
        if (block & (q->cluster_bytes - 1) || block >= file_bytes(q->file)) {
            recount->corruptions++;
            recount->broken_blocks = true;
        } else if (block)
            count_one(recount, block);
    }
    count_range(recount, q->snapshots_offset, q->snapshot_table_bytes);
    int result = count_bitmaps(recount, err);
    for (uint32_t i = 0; !result && i < q->snapshot_count; i++)
        result = l1_walk(q, q->snapshots[i].l1_offset, q->snapshots[i].l1_entries, &walker, err);
    recount->active = true;
    return result ? result : l1_walk(q, q->l1.offset, q->l1.count, &walker, err);
}

int recount_begin(struct qcow2 *q, struct recount *recount, imgvm_error *err)
{
    *recount = (struct recount){.q = q, .clusters = clusters_of(q, file_bytes(q->file))};
    if (recount->clusters > UINT64_C(1) << 28)
        return error_set(err, EFBIG, "%s has too many clusters to examine", q->file->path);
    recount->counts = calloc(recount->clusters, sizeof *recount->counts);
    if (!recount->counts)
        return qcow2_no_memory(err);
    int result = count_all(recount, err);
    if (result)
        free(recount->counts);
    return result;
}

void recount_end(struct recount *recount)
{
    free(recount->counts);
}

int qcow2_check(struct qcow2 *q, uint64_t *leaks, uint64_t *corruptions, imgvm_error *err)
{
    struct recount recount;
    int result = recount_begin(q, &recount, err);
    if (result)
        return result;
    for (uint64_t i = 0; i < recount.clusters; i++) {
        uint64_t refcount;
        if (q->block_cache.live_count > q->block_cache.live_limit)
            cache_evict_clean(&q->block_cache, q->block_cache.live_limit / 2);
        if (refcount_get(q, i, &refcount, NULL)) {
            recount.corruptions++;
            i |= BIT(q->cluster_bits + 3 - q->refcount_order) - 1; /* the block cannot be read: on to the next */
            continue;
        }
        *leaks += refcount > recount.counts[i];
        recount.corruptions += refcount < recount.counts[i];
    }
    *corruptions = recount.corruptions + !!(q->incompatible & INCOMPATIBLE_CORRUPT);
    recount_end(&recount);
    return 0;
}
