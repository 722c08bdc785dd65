/* SPDX-License-Identifier: MIT */
/* Repair. The references that can be followed are the truth; refcounts and COPIED bits are made to agree with them, and
 * references that lead nowhere are cut. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2.h"

/* Refcounts that differ, in place. `lower_only`: leaks, nothing else. */
static int correct_counts(struct recount *recount, bool lower_only, imgvm_error *err)
{
    struct qcow2 *q = recount->q;
    for (uint64_t i = 0; i < recount->clusters; i++) {
        uint64_t refcount, counted = recount->counts[i];
        int result = refcount_get(q, i, &refcount, err);
        if (!result && (lower_only ? refcount > counted : refcount != counted))
            result = refcount_set(q, i, counted, err);
        if (result || (result = qcow2_trim(q, err)))
            return result;
    }
    return qcow2_write_back(q, err);
}

int qcow2_repair_refcounts(struct qcow2 *q, imgvm_error *err)
{
    struct recount recount;
    int result = qcow2_begin_modify(q, err);
    if (result || (result = recount_begin(q, &recount, err)))
        return result;
    result = correct_counts(&recount, false, err);
    recount_end(&recount);
    if (!result)
        result = map_refresh_copied(q, err);
    if (result && err && err->code == -EIO) {
        error_set(err, EIO, "%s was not closed properly and its refcounts cannot be repaired here", q->file->path);
        error_hint(err, "try `imgvm check --repair all` on a copy");
    }
    return result;
}

/* ---- new refcount tables, when the old ones cannot be used ---- */

/* Are there counts without a block, or blocks that lie over something else? */
static bool blocks_unusable(struct recount *recount)
{
    struct qcow2 *q = recount->q;
    unsigned block_bits = q->cluster_bits + 3 - q->refcount_order;
    if (recount->broken_blocks)
        return true;
    for (uint64_t i = 0; i < q->refcounts.count; i++) {
        uint64_t cluster = (q->refcounts.entries[i] & ENTRY_OFFSET_MASK) >> q->cluster_bits;
        if (cluster && recount->counts[cluster] > 1)
            return true;
    }
    for (uint64_t i = 0; i < recount->clusters; i++) {
        uint64_t block = i >> block_bits;
        if (recount->counts[i] && (block >= q->refcounts.count || !(q->refcounts.entries[block] & ENTRY_OFFSET_MASK)))
            return true;
    }
    return false;
}

/* All blocks anew, behind the file's end, with a table that names them; one header write switches to it. Then the old
 * ones are what nobody refers to. */
static int rebuild_blocks(struct recount *recount, imgvm_error *err)
{
    struct qcow2 *q = recount->q;
    const uint64_t per_block = BIT(q->cluster_bits + 3 - q->refcount_order), start = recount->clusters;
    uint64_t blocks = 0, table_clusters = 0, total = start, needed;
    while ((needed = (total + per_block - 1) / per_block) != blocks) {
        blocks = needed;
        table_clusters = clusters_of(q, blocks * 8);
        total = start + blocks + table_clusters;
    }
    if (table_clusters << q->cluster_bits > REFCOUNT_TABLE_BYTES_MAX)
        return error_set(err, EFBIG, "%s has too many clusters for a refcount table", q->file->path);
    uint64_t entries = table_clusters << (q->cluster_bits - 3);
    uint64_t *table = calloc(entries, sizeof *table);
    int result = table ? file_write_zeros(q->file, start << q->cluster_bits, (total - start) << q->cluster_bits, err)
                       : qcow2_no_memory(err);
    for (uint64_t i = 0; !result && i < blocks; i++)
        table[i] = (start + i) << q->cluster_bits;
    if (result) {
        free(table);
        return result;
    }
    while (q->block_cache.live_count)
        cache_drop(&q->block_cache, q->block_cache.live[0]);
    result = cache_grow(&q->block_cache, entries, err);
    if (result) {
        free(table);
        return result;
    }
    free(q->refcounts.entries);
    q->refcounts = (struct offset_table){.offset = (start + blocks) << q->cluster_bits, .entries = table,
                                         .count = entries};
    q->free_hint = 0;
    for (uint64_t i = 0; !result && i < total; i++) {
        uint64_t counted = i < start ? recount->counts[i] : 1;
        if (counted)
            result = refcount_set(q, i, MIN(counted, refcount_max(q)), err);
    }
    /* The old table and blocks were counted as in use; the next recount finds them free. */
    return result ? result : qcow2_write_back(q, err);
}

/* ---- references that lead nowhere ---- */

static bool is_inside(const struct qcow2 *q, uint64_t offset)
{
    return !(offset & (q->cluster_bytes - 1)) && offset < file_bytes(q->file);
}

/* Cuts the entries of one L2 table that cannot be followed; true when there were some. */
static bool mend_l2(struct qcow2 *q, uint8_t *table)
{
    bool changed = false;
    for (uint64_t i = 0; i < BIT(q->l2_bits); i++) {
        uint8_t *at = table + (i << (q->cluster_bits - q->l2_bits));
        struct l2_entry entry = l2_parse(q, at);
        struct mapping mapping;
        bool good = !map_decode(q, entry, 0, &mapping, NULL);
        if (good && mapping.kind != CLUSTER_COMPRESSED)
            good = !mapping.placed || has_data_file(q) ||
                   (is_inside(q, mapping.host) && !qcow2_is_fixed_metadata(q, mapping.host, q->cluster_bytes));
        if (good && mapping.kind == CLUSTER_COMPRESSED && entry.word & ENTRY_COPIED)
            good = false;
        if (good)
            continue;
        struct l2_entry uncopied = {entry.word & ~ENTRY_COPIED, 0};
        if (entry.word & ENTRY_COMPRESSED && !map_decode(q, uncopied, 0, &mapping, NULL))
            l2_format(q, at, uncopied);
        else
            memset(at, 0, BIT(q->cluster_bits - q->l2_bits));
        changed = true;
    }
    return changed;
}

/* The same for a whole tree, in the file: nothing of it is cached. Two L1 entries that share a table keep it once. */
static int mend_tree(struct qcow2 *q, uint64_t l1_offset, uint64_t entries, imgvm_error *err)
{
    uint64_t bytes = entries * 8;
    uint8_t *l1 = malloc(bytes + 1), *table = malloc(q->cluster_bytes);
    uint8_t *seen = calloc(1, clusters_of(q, file_bytes(q->file)) / 8 + 1);
    int result = l1 && table && seen ? file_read(q->file, l1_offset, l1, bytes, err) : qcow2_no_memory(err);
    for (uint64_t i = 0; !result && i < entries; i++) {
        uint64_t offset = load_be64(l1 + 8 * i) & ENTRY_OFFSET_MASK, cluster = offset >> q->cluster_bits;
        if (!offset)
            continue;
        if (!is_inside(q, offset) || qcow2_is_fixed_metadata(q, offset, q->cluster_bytes) ||
            seen[cluster / 8] >> cluster % 8 & 1) {
            memset(l1 + 8 * i, 0, 8);
            result = file_write(q->file, l1_offset + 8 * i, l1 + 8 * i, 8, err);
            continue;
        }
        seen[cluster / 8] |= (uint8_t)(1u << cluster % 8);
        result = file_read(q->file, offset, table, q->cluster_bytes, err);
        if (!result && mend_l2(q, table))
            result = file_write(q->file, offset, table, q->cluster_bytes, err);
    }
    free(l1);
    free(table);
    free(seen);
    return result;
}

static int mend_trees(struct qcow2 *q, imgvm_error *err)
{
    int result = mend_tree(q, q->l1.offset, q->l1.count, err);
    for (uint32_t i = 0; !result && i < q->snapshot_count; i++) {
        uint64_t offset = q->snapshots[i].l1_offset, bytes = (uint64_t)q->snapshots[i].l1_entries * 8;
        if (bytes && is_inside(q, offset) && bytes <= L1_BYTES_MAX && bytes <= file_bytes(q->file) - offset)
            result = mend_tree(q, offset, q->snapshots[i].l1_entries, err);
    }
    /* The live L1 table as it is in the file now. */
    while (q->l2_cache.live_count)
        cache_drop(&q->l2_cache, q->l2_cache.live[0]);
    free(q->l1.entries);
    q->l1.entries = NULL;
    int read = offset_table_read(q, &q->l1, "L1 table", err);
    if (!q->l1.entries)
        q->l1.count = 0;
    return result ? result : read;
}

static int repair_all(struct qcow2 *q, imgvm_error *err)
{
    struct recount recount;
    int result = mend_trees(q, err);
    if (result || (result = recount_begin(q, &recount, err)))
        return result;
    if (blocks_unusable(&recount)) {
        result = rebuild_blocks(&recount, err);
        recount_end(&recount);
        if (result || (result = recount_begin(q, &recount, err)))
            return result;
    }
    result = correct_counts(&recount, false, err);
    recount_end(&recount);
    if (!result)
        result = map_refresh_copied(q, err);
    return result;
}

int qcow2_repair(struct qcow2 *q, bool all, imgvm_error *err)
{
    struct recount recount;
    uint64_t leaks = 0, corruptions = 0;
    int result = qcow2_begin_modify(q, err);
    if (result)
        return result;
    if (all) {
        if ((result = repair_all(q, err)))
            return result;
        /* Clean but for the flag? Then the flag goes. */
        uint64_t flags = q->incompatible;
        q->incompatible &= ~INCOMPATIBLE_CORRUPT;
        result = qcow2_check(q, &leaks, &corruptions, err);
        q->incompatible = flags;
        if (!result && !corruptions)
            result = qcow2_set_incompatible(q, INCOMPATIBLE_CORRUPT | INCOMPATIBLE_DIRTY, false, err);
        return result;
    }
    /* Where there is damage, a count that is too high may be one that is about to be needed. */
    if ((result = qcow2_check(q, &leaks, &corruptions, err)) || corruptions ||
        (result = recount_begin(q, &recount, err)))
        return result;
    result = correct_counts(&recount, true, err);
    recount_end(&recount);
    return result ? result : map_refresh_copied(q, err);
}
