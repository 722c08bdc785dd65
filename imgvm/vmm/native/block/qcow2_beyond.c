/* SPDX-License-Identifier: MIT */
/* What a snapshot's L1 table maps: the disk as it was, and beyond it, where no L1 entry of the disk reaches, a VM state or
 * the embedded configuration. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2.h"

#define WRITE_CHUNK_BYTES (UINT64_C(1) << 20)

/* ---- reading; nothing of it is cached ---- */

static int load_table(struct qcow2 *q, const struct snapshot *snapshot, uint64_t l1_index, uint8_t *table, bool *there,
                      imgvm_error *err)
{
    uint8_t entry[8];
    *there = false;
    if (l1_index >= snapshot->l1_entries)
        return 0;
    int result = file_read(q->file, snapshot->l1_offset + 8 * l1_index, entry, sizeof entry, err);
    uint64_t offset = load_be64(entry) & ENTRY_OFFSET_MASK;
    if (result || !offset)
        return result;
    if (offset & (q->cluster_bytes - 1) || offset >= file_bytes(q->file))
        return qcow2_corrupt(q, err, "an L2 table of a snapshot lies at offset %#" PRIx64, offset);
    *there = true;
    return file_read(q->file, offset, table, q->cluster_bytes, err);
}

static int check_l1(struct qcow2 *q, const struct snapshot *snapshot, imgvm_error *err)
{
    uint64_t l1_bytes = (uint64_t)snapshot->l1_entries * 8;
    if (snapshot->l1_offset & (q->cluster_bytes - 1) || snapshot->l1_offset > file_bytes(q->file) ||
        l1_bytes > file_bytes(q->file) - snapshot->l1_offset)
        return qcow2_corrupt(q, err, "the L1 table of a snapshot is not in the file");
    return 0;
}

static int decode(struct qcow2 *q, const uint8_t *table, uint64_t at, struct l2_entry *entry, struct mapping *mapping,
                  imgvm_error *err)
{
    *entry = l2_parse(q, table + (l2_index(q, at) << (q->cluster_bits - q->l2_bits)));
    return map_decode(q, *entry, subcluster_of(q, at), mapping, err);
}

int beyond_read(struct qcow2 *q, const struct snapshot *snapshot, uint64_t at, uint8_t *data, uint64_t bytes,
                imgvm_error *err)
{
    uint64_t table_index = UINT64_MAX;
    bool there = false;
    uint8_t *table = malloc(q->cluster_bytes);
    int result = table ? check_l1(q, snapshot, err) : qcow2_no_memory(err);
    while (!result && bytes) {
        struct mapping mapping = {.kind = CLUSTER_NONE};
        struct l2_entry entry = {0};
        uint64_t part = MIN(bytes, BIT(q->subcluster_bits) - (at & (BIT(q->subcluster_bits) - 1)));
        if (at >> l1_shift(q) != table_index) {
            table_index = at >> l1_shift(q);
            if ((result = load_table(q, snapshot, table_index, table, &there, err)))
                break;
        }
        if (there && (result = decode(q, table, at, &entry, &mapping, err)))
            break;
        const struct iovec piece = {data, part};
        struct vec vec = {.piece = &piece};
        result = mapped_read_shared(q->image, entry.word, &mapping, at, &vec, part, err);
        data += part;
        at += part;
        bytes -= part;
    }
    free(table);
    return result;
}

/* How far from `at` on the map goes on as it starts, within one L2 table, and as what. */
static int run_of(struct qcow2 *q, const struct snapshot *snapshot, uint8_t *table, uint64_t at, uint64_t bytes,
                  uint64_t *run, enum cluster_kind *kind, imgvm_error *err)
{
    uint64_t in_table = at & (BIT(l1_shift(q)) - 1), end = at + MIN(bytes, BIT(l1_shift(q)) - in_table);
    uint64_t next = at, sub_bytes = BIT(q->subcluster_bits);
    bool there;
    int result = load_table(q, snapshot, at >> l1_shift(q), table, &there, err);
    *kind = CLUSTER_NONE;
    *run = at >> l1_shift(q) < snapshot->l1_entries ? end - at : bytes;
    if (result || !there)
        return result;
    for (; next < end; next = align_down(next, sub_bytes) + sub_bytes) {
        struct l2_entry entry;
        struct mapping mapping;
        if ((result = decode(q, table, next, &entry, &mapping, err)))
            return result;
        if (next == at)
            *kind = mapping.kind;
        if (mapping.kind != *kind)
            break;
    }
    *run = MIN(next, end) - at;
    return 0;
}

int beyond_extent(struct qcow2 *q, const struct snapshot *snapshot, uint64_t at, uint64_t bytes, uint64_t *run,
                  bool *is_zero, imgvm_error *err)
{
    enum cluster_kind kind;
    imgvm_image *backing = q->image->backing;
    uint8_t *table = malloc(q->cluster_bytes);
    int result = table ? check_l1(q, snapshot, err) : qcow2_no_memory(err);
    if (!result)
        result = run_of(q, snapshot, table, at, bytes, run, &kind, err);
    free(table);
    if (result)
        return result;
    if (kind == CLUSTER_NONE && backing && at < backing->disk_bytes)
        return image_extent(backing, at, MIN(*run, backing->disk_bytes - at), run, is_zero, err);
    *is_zero = kind == CLUSTER_ZERO || kind == CLUSTER_NONE;
    return 0;
}

/* ---- writing ---- */

static int take(struct beyond *b, uint64_t min, uint64_t max, uint64_t *offset, uint64_t *got, imgvm_error *err)
{
    struct cluster_run *runs = realloc(b->runs, (b->run_count + 1) * sizeof *runs);
    if (!runs)
        return qcow2_no_memory(err);
    b->runs = runs;
    int result = clusters_alloc(b->q, min, max, offset, got, err);
    if (!result)
        runs[b->run_count++] = (struct cluster_run){*offset, *got};
    return result;
}

static int write_data(struct beyond *b, const struct beyond_source *source, uint64_t *clusters, uint64_t count,
                      uint8_t *chunk, imgvm_error *err)
{
    struct qcow2 *q = b->q;
    uint64_t chunk_clusters = MAX(WRITE_CHUNK_BYTES >> q->cluster_bits, 1), offset, got;
    for (uint64_t done = 0; done < count; done += got) {
        int result = take(b, 1, MIN(count - done, chunk_clusters), &offset, &got, err);
        if (result)
            return result;
        source->fill(source->opaque, done << q->cluster_bits, chunk, got << q->cluster_bits);
        if ((result = file_write(q->file, offset, chunk, got << q->cluster_bits, err)))
            return result;
        for (uint64_t i = 0; i < got; i++)
            clusters[done + i] = offset + (i << q->cluster_bits);
    }
    return 0;
}

/* The L2 tables of the data, then the L1 table. COPIED bits are for the active tree. */
static int write_tables(struct beyond *b, const uint64_t *disk_entries, const uint64_t *clusters, uint64_t count,
                        uint8_t *chunk, imgvm_error *err)
{
    struct qcow2 *q = b->q;
    uint64_t tables = b->l1_entries - b->l1_first, got;
    uint64_t l1_clusters = MAX(clusters_of(q, b->l1_entries * 8), 1);
    uint8_t *l1 = calloc(l1_clusters, q->cluster_bytes);
    int result = l1 ? 0 : qcow2_no_memory(err);
    for (uint64_t i = 0; !result && disk_entries && i < b->l1_first; i++)
        store_be64(l1 + 8 * i, disk_entries[i] & ~ENTRY_COPIED);
    for (uint64_t i = 0; !result && i < tables; i++) {
        uint64_t offset;
        if ((result = take(b, 1, 1, &offset, &got, err)))
            break;
        memset(chunk, 0, q->cluster_bytes);
        for (uint64_t j = 0; j < BIT(q->l2_bits) && (i << q->l2_bits) + j < count; j++)
            l2_format(q, chunk + (j << (q->cluster_bits - q->l2_bits)),
                      l2_data_entry(q, clusters[(i << q->l2_bits) + j], false));
        result = file_write(q->file, offset, chunk, q->cluster_bytes, err);
        store_be64(l1 + 8 * (b->l1_first + i), offset);
    }
    if (!result)
        result = take(b, l1_clusters, l1_clusters, &b->l1_offset, &got, err);
    if (!result)
        result = file_write(q->file, b->l1_offset, l1, l1_clusters << q->cluster_bits, err);
    free(l1);
    return result;
}

int beyond_write(struct beyond *b, struct qcow2 *q, const struct beyond_source *source, const uint64_t *disk_entries,
                 imgvm_error *err)
{
    uint64_t count = clusters_of(q, source->bytes);
    *b = (struct beyond){.q = q, .l1_first = l1_entries_of(l1_shift(q), q->image->disk_bytes)};
    b->l1_entries = b->l1_first + (count >> q->l2_bits) + !!(count & (BIT(q->l2_bits) - 1));
    b->offset = b->l1_first << l1_shift(q);
    if (has_data_file(q)) {
        error_set(err, ENOTSUP, "%s has its data in another file: it can have no snapshot and hold no configuration",
                  q->file->path);
        return error_hint(err, "`imgvm convert` makes an image that holds all of it");
    }
    if (b->l1_entries > L1_BYTES_MAX / 8) {
        error_set(err, EFBIG, "%s: no room for %" PRIu64 " bytes beyond its disk", q->file->path, source->bytes);
        return error_hint(err, "larger clusters leave more room");
    }
    uint64_t *clusters = malloc((count + 1) * sizeof *clusters);
    uint8_t *chunk = malloc(MAX(WRITE_CHUNK_BYTES, q->cluster_bytes));
    int result = clusters && chunk ? 0 : qcow2_no_memory(err);
    if (!result)
        result = write_data(b, source, clusters, count, chunk, err);
    if (!result)
        result = write_tables(b, disk_entries, clusters, count, chunk, err);
    free(clusters);
    free(chunk);
    return result;
}

void beyond_undo(struct beyond *b)
{
    for (size_t i = 0; i < b->run_count && !b->q->failed; i++)
        clusters_unalloc(b->q, b->runs[i].offset, b->runs[i].count);
}

void beyond_free(struct beyond *b)
{
    free(b->runs);
    b->runs = NULL;
}
