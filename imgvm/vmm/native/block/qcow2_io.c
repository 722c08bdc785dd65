/* SPDX-License-Identifier: MIT */
/* The guest's reads and writes. Both walk one L2 table at a time and join neighbouring clusters. */
#include <errno.h>
#include <string.h>

#include "qcow2.h"

static unsigned l1_shift(const struct qcow2 *q)
{
    return q->cluster_bits + q->l2_bits;
}

static uint64_t l2_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->cluster_bits & (BIT(q->l2_bits) - 1);
}

/* What an overlay does not have comes from its backing file, or is zero; backing files may be shorter. */
static int read_backing(struct qcow2 *q, uint64_t offset, uint8_t *data, uint64_t bytes, imgvm_error *err)
{
    imgvm_image *backing = q->image->backing;
    uint64_t below = backing && offset < backing->disk_bytes ? MIN(bytes, backing->disk_bytes - offset) : 0;
    memset(data + below, 0, bytes - below);
    return below ? imgvm_image_read(backing, offset, data, below, err) : 0;
}

/* `bytes` of the guest's disk at `offset`, inside the cluster (or, for other kinds than COMPRESSED, run of
 * clusters) that `mapping` describes. */
static int read_mapped(struct qcow2 *q, uint64_t entry, const struct mapping *mapping, uint64_t offset, uint8_t *data,
                       uint64_t bytes, imgvm_error *err)
{
    uint64_t in_cluster = offset & (q->cluster_bytes - 1);
    int result = 0;
    switch (mapping->kind) {
    case CLUSTER_NONE:
        return read_backing(q, offset, data, bytes, err);
    case CLUSTER_ZERO:
        memset(data, 0, bytes);
        return 0;
    case CLUSTER_DATA:
        return file_read(q->file, mapping->host + in_cluster, data, bytes, err);
    case CLUSTER_COMPRESSED:
        result = cluster_inflate(q, entry, mapping, err);
        if (!result)
            memcpy(data, q->inflated + in_cluster, bytes);
    }
    return result;
}

int cluster_read(struct qcow2 *q, uint64_t entry, uint64_t guest_offset, void *data, imgvm_error *err)
{
    struct mapping mapping;
    int result = map_decode(q, entry, &mapping, err);
    return result ? result : read_mapped(q, entry, &mapping, guest_offset, data, q->cluster_bytes, err);
}

/* How many clusters from `index` on, `max` at most, continue `mapping` without a break. */
static uint64_t run_length(struct qcow2 *q, const struct table *table, uint64_t index, uint64_t max,
                           const struct mapping *mapping)
{
    uint64_t run = 1;
    for (struct mapping next; run < max && mapping->kind != CLUSTER_COMPRESSED; run++) {
        if (map_decode(q, load_be64(table->data + 8 * (index + run)), &next, NULL) || next.kind != mapping->kind)
            break;
        if (mapping->kind == CLUSTER_DATA && next.host != mapping->host + (run << q->cluster_bits))
            break;
    }
    return run;
}

static int qcow2_read(imgvm_image *image, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    for (uint8_t *out = data; bytes;) {
        struct table *table;
        int result = qcow2_trim(q, err);
        if (result || (result = map_l2(q, offset >> l1_shift(q), &table, err)))
            return result;
        uint64_t in_cluster = offset & (q->cluster_bytes - 1);
        uint64_t part = MIN(bytes, BIT(l1_shift(q)) - (offset & (BIT(l1_shift(q)) - 1)));
        struct mapping mapping = {.kind = CLUSTER_NONE};
        uint64_t entry = 0;
        if (table) {
            uint64_t index = l2_index(q, offset);
            entry = load_be64(table->data + 8 * index);
            if ((result = map_decode(q, entry, &mapping, err)))
                return result;
            uint64_t run = run_length(q, table, index, clusters_of(q, in_cluster + part), &mapping);
            part = MIN(part, (run << q->cluster_bits) - in_cluster);
        }
        if ((result = read_mapped(q, entry, &mapping, offset, out, part, err)))
            return result;
        out += part;
        offset += part;
        bytes -= part;
    }
    return 0;
}

/* May the cluster be overwritten where it lies? The refcount decides; the entry's COPIED bit only repeats it. */
static int is_own(struct qcow2 *q, const struct mapping *mapping, bool *out, imgvm_error *err)
{
    uint64_t count;
    *out = false;
    if (mapping->kind == CLUSTER_NONE || mapping->kind == CLUSTER_COMPRESSED || !mapping->host)
        return 0;
    int result = refcount_get(q, mapping->host >> q->cluster_bits, &count, err);
    if (result)
        return result;
    if (!count || qcow2_is_fixed_metadata(q, mapping->host, q->cluster_bytes))
        return qcow2_corrupt(q, err, "the cluster at offset %#llx is counted as something else",
                             (unsigned long long)mapping->host);
    *out = count == 1;
    return 0;
}

/* Writes `bytes` inside one cluster that is not ours to overwrite as it is: shared, compressed, zero, absent. */
static int write_partial(struct qcow2 *q, struct table *table, uint64_t offset, const uint8_t *data, uint64_t bytes,
                         imgvm_error *err)
{
    uint64_t index = l2_index(q, offset), in_cluster = offset & (q->cluster_bytes - 1), host;
    uint64_t entry = load_be64(table->data + 8 * index);
    struct mapping old;
    bool own;
    int result = map_decode(q, entry, &old, err);
    if (result || (result = is_own(q, &old, &own, err)) ||
        (result = read_mapped(q, entry, &old, offset - in_cluster, q->bounce, q->cluster_bytes, err)))
        return result;
    memcpy(q->bounce + in_cluster, data, bytes);
    if (own) /* a zero cluster that keeps its place */
        host = old.host;
    else if ((result = clusters_alloc(q, 1, 1, &host, NULL, err)))
        return result;
    result = file_write(q->file, host, q->bounce, q->cluster_bytes, err);
    if (!result && !own)
        result = map_release(q, &old, err);
    if (result) {
        if (!own)
            clusters_unalloc(q, host, 1);
        return result;
    }
    store_be64(table->data + 8 * index, host | ENTRY_COPIED);
    cache_dirty(&q->l2_cache, table);
    return 0;
}

/* Writes up to `count` whole clusters to new places; *done says how many. */
static int write_whole(struct qcow2 *q, struct table *table, uint64_t offset, const uint8_t *data, uint64_t count,
                       uint64_t *done, imgvm_error *err)
{
    uint64_t index = l2_index(q, offset), host, got;
    struct mapping old;
    bool own;
    uint64_t fresh = 1;
    for (; fresh < count; fresh++) {
        if (map_decode(q, load_be64(table->data + 8 * (index + fresh)), &old, NULL) ||
            is_own(q, &old, &own, NULL) || own)
            break;
    }
    int result = clusters_alloc(q, 1, fresh, &host, &got, err);
    if (result)
        return result;
    result = file_write(q->file, host, data, got << q->cluster_bits, err);
    for (uint64_t i = 0; !result && i < got; i++) {
        result = map_decode(q, load_be64(table->data + 8 * (index + i)), &old, err);
        if (!result)
            result = map_release(q, &old, err);
        if (!result)
            store_be64(table->data + 8 * (index + i), (host + (i << q->cluster_bits)) | ENTRY_COPIED);
        else if (i)
            got = i, result = 0; /* the rest leaks; the next call reports what is wrong there */
    }
    if (result) {
        clusters_unalloc(q, host, got);
        return result;
    }
    cache_dirty(&q->l2_cache, table);
    *done = got;
    return 0;
}

/* One step of a write: *part says how far it came. */
static int write_step(struct qcow2 *q, uint64_t offset, const uint8_t *data, uint64_t bytes, uint64_t *part,
                      imgvm_error *err)
{
    struct table *table;
    int result = map_l2_for_write(q, offset >> l1_shift(q), &table, err);
    if (result)
        return result;
    uint64_t index = l2_index(q, offset), in_cluster = offset & (q->cluster_bytes - 1);
    uint64_t in_table = MIN(bytes, BIT(l1_shift(q)) - (offset & (BIT(l1_shift(q)) - 1)));
    struct mapping mapping, next;
    bool own;
    if ((result = map_decode(q, load_be64(table->data + 8 * index), &mapping, err)) ||
        (result = is_own(q, &mapping, &own, err)))
        return result;
    if (own && mapping.kind == CLUSTER_DATA) {
        uint64_t run = 1, max = clusters_of(q, in_cluster + in_table);
        for (; run < max; run++)
            if (map_decode(q, load_be64(table->data + 8 * (index + run)), &next, NULL) ||
                next.kind != CLUSTER_DATA || next.host != mapping.host + (run << q->cluster_bits) ||
                is_own(q, &next, &own, NULL) || !own)
                break;
        *part = MIN(in_table, (run << q->cluster_bits) - in_cluster);
        return file_write(q->file, mapping.host + in_cluster, data, *part, err);
    }
    uint64_t whole = in_cluster ? 0 : in_table >> q->cluster_bits;
    if (whole && !own) {
        result = write_whole(q, table, offset, data, whole, part, err);
        *part <<= q->cluster_bits;
        return result;
    }
    *part = MIN(bytes, q->cluster_bytes - in_cluster);
    return write_partial(q, table, offset, data, *part, err);
}

static int qcow2_write(imgvm_image *image, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    int result = bytes ? qcow2_begin_modify(q, err) : 0;
    for (const uint8_t *in = data; !result && bytes;) {
        uint64_t part = 0;
        if ((result = qcow2_trim(q, err)) || (result = write_step(q, offset, in, bytes, &part, err)))
            break;
        in += part;
        offset += part;
        bytes -= part;
    }
    return result;
}

static int qcow2_flush(imgvm_image *image, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    if (!q->modified)
        return 0;
    int result = qcow2_begin_modify(q, err); /* not after a failed flush */
    return result ? result : qcow2_write_back(q, err);
}

static int qcow2_close(imgvm_image *image, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    int result = image->writable ? qcow2_flush(image, err) : 0;
    /* The first write-back dropped references; the second records that. */
    if (!result && q->block_cache.dirty_count)
        result = qcow2_flush(image, err);
    qcow2_free(q);
    image->qcow2 = NULL;
    return result;
}

const struct image_ops qcow2_ops = {qcow2_read, qcow2_write, qcow2_flush, qcow2_close};
