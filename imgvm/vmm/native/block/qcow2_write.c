/* SPDX-License-Identifier: MIT */
/* Writes. What lies in clusters of ours is overwritten where it lies, also while others read and write; the rest waits
 * for the exclusive turn, gets new clusters, and the map changes. */
#include <errno.h>

#include "qcow2.h"

int map_is_own(struct qcow2 *q, const struct mapping *mapping, bool *out, imgvm_error *err)
{
    uint64_t count;
    *out = false;
    if (mapping->kind == CLUSTER_COMPRESSED || !mapping->placed)
        return 0;
    if (has_data_file(q)) {
        *out = true;
        return 0;
    }
    if (unlikely(q->block_cache.live_count > q->block_cache.live_limit))
        cache_evict_clean(&q->block_cache, q->block_cache.live_limit / 4 * 3);
    int result = refcount_get(q, mapping->host >> q->cluster_bits, &count, err);
    if (result)
        return result;
    if (!count || qcow2_is_fixed_metadata(q, mapping->host, q->cluster_bytes))
        return qcow2_corrupt(q, err, "the cluster at offset %#llx is counted as something else",
                             (unsigned long long)mapping->host);
    *out = count == 1;
    return 0;
}

/* How far from `offset` on, `bytes` at most, writing in place goes; *host says where. 0: not at all. */
static int own_run(struct qcow2 *q, const struct table *table, uint64_t offset, uint64_t bytes, uint64_t *host,
                   uint64_t *run, imgvm_error *err)
{
    uint64_t sub_bytes = BIT(q->subcluster_bits), end = offset + bytes, at = offset;
    uint64_t cluster = UINT64_MAX, expected = 0;
    *run = 0;
    for (; at < end; at = align_down(at, sub_bytes) + sub_bytes) {
        struct mapping mapping;
        bool own = true;
        int result = map_decode(q, l2_load(q, table, l2_index(q, at)), subcluster_of(q, at), &mapping, err);
        if (!result && at >> q->cluster_bits != cluster && mapping.kind == CLUSTER_DATA) {
            cluster = at >> q->cluster_bits;
            result = map_is_own(q, &mapping, &own, err);
        }
        if (result && at == offset)
            return result;
        if (result || mapping.kind != CLUSTER_DATA || !own)
            break;
        uint64_t here = mapping.host + (at & (q->cluster_bytes - 1));
        if (at == offset)
            *host = here;
        else if (here != expected)
            break;
        expected = here + sub_bytes - (at & (sub_bytes - 1));
    }
    *run = MIN(at, end) - offset;
    return 0;
}

static uint64_t in_this_table(const struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    return MIN(bytes, BIT(l1_shift(q)) - (offset & (BIT(l1_shift(q)) - 1)));
}

static int find_own(struct qcow2 *q, uint64_t offset, uint64_t bytes, uint64_t *host, uint64_t *run, imgvm_error *err)
{
    struct table *table;
    *run = 0;
    if (!q->modified || q->failed) /* the exclusive turn prepares, or says what is wrong */
        return 0;
    if (unlikely(q->l2_cache.live_count > q->l2_cache.live_limit))
        cache_evict_clean(&q->l2_cache, q->l2_cache.live_limit / 4 * 3);
    int result = map_l2(q, offset >> l1_shift(q), &table, err);
    if (result || !table)
        return result;
    return own_run(q, table, offset, in_this_table(q, offset, bytes), host, run, err);
}

int qcow2_write_shared(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t *done,
                       imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    for (*done = 0; *done < bytes;) {
        uint64_t host = 0, run;
        map_lock(image);
        int result = find_own(q, offset + *done, bytes - *done, &host, &run, err);
        map_unlock(image);
        if (result || !run || (result = file_writev(q->data, host, vec, run, err)))
            return result;
        *done += run;
    }
    return 0;
}

enum image_place own_place_shared(imgvm_image *image, uint64_t offset, uint64_t bytes, struct image_extent *out)
{
    struct qcow2 *q = image->qcow2;
    uint64_t host = 0, run;
    map_lock(image);
    int result = find_own(q, offset, bytes, &host, &run, NULL);
    map_unlock(image);
    if (result || !run || host + run > file_bytes(q->data)) /* who lengthens the file keeps its length */
        return PLACE_UNKNOWN;
    *out = (struct image_extent){q->data, host, run};
    return PLACE_FILE;
}

/* Clusters for data: in an external file each guest cluster has its place. */
static int data_alloc(struct qcow2 *q, uint64_t guest, uint64_t max, uint64_t *host, uint64_t *got, imgvm_error *err)
{
    if (!has_data_file(q))
        return clusters_alloc(q, 1, max, host, got, err);
    *host = guest;
    *got = max;
    return 0;
}

static void data_unalloc(struct qcow2 *q, uint64_t host, uint64_t count)
{
    if (!has_data_file(q))
        clusters_unalloc(q, host, count);
}

/* What the guest sees of one cluster now, from `from` to `to` in it. */
static int read_old(struct qcow2 *q, struct l2_entry entry, uint64_t guest, uint64_t from, uint64_t to, imgvm_error *err)
{
    uint64_t sub_bytes = BIT(q->subcluster_bits);
    for (uint64_t at = from, part; at < to; at += part) {
        struct mapping mapping;
        int result = map_decode(q, entry, subcluster_of(q, at), &mapping, err);
        const struct iovec piece = {q->bounce + at, to - at};
        struct vec vec = {.piece = &piece};
        part = mapping.kind == CLUSTER_COMPRESSED ? to - at : MIN(to, align_down(at, sub_bytes) + sub_bytes) - at;
        if (result || (result = mapped_read_shared(q->image, entry.word, &mapping, guest + at, &vec, part, err)))
            return result;
    }
    return 0;
}

/* Do all subclusters of the cluster at `guest` that are not data read as zeros, and is none data? */
static bool is_blank(const struct qcow2 *q, struct l2_entry entry, uint64_t guest)
{
    const imgvm_image *backing = q->image->backing;
    if (entry.word & ENTRY_COMPRESSED || entry.bitmap & bitmap_allocated(q))
        return false;
    return entry.bitmap == bitmap_zero(q) || !backing || guest >= backing->disk_bytes;
}

/* The contents of one cluster around `bytes` of new data; only subclusters in `fill` must come out right. */
static int merge(struct qcow2 *q, struct l2_entry entry, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t fill,
                 uint64_t *from, uint64_t *to, imgvm_error *err)
{
    uint64_t in_cluster = offset & (q->cluster_bytes - 1), guest = offset - in_cluster;
    *from = (uint64_t)__builtin_ctzll(fill) << q->subcluster_bits;
    *to = (uint64_t)(64 - __builtin_clzll(fill)) << q->subcluster_bits;
    int result = read_old(q, entry, guest, *from, in_cluster, err);
    if (!result)
        result = read_old(q, entry, guest, in_cluster + bytes, *to, err);
    if (!result)
        vec_get(vec, q->bounce + in_cluster, bytes);
    return result;
}

/* Writes `bytes` inside one cluster in which they cannot be written as it is: shared, compressed, zero, absent. */
static int write_partial(struct qcow2 *q, struct table *table, uint64_t offset, struct vec *vec, uint64_t bytes,
                         imgvm_error *err)
{
    uint64_t index = l2_index(q, offset), in_cluster = offset & (q->cluster_bytes - 1), from, to, host, got = 1;
    struct l2_entry entry = l2_load(q, table, index);
    struct mapping old;
    bool own;
    int result = map_decode(q, entry, subcluster_of(q, offset), &old, err);
    if (result || (result = map_is_own(q, &old, &own, err)))
        return result;
    unsigned first = subcluster_of(q, offset), last = subcluster_of(q, offset + bytes - 1);
    uint64_t fill = BIT(last + 1) - BIT(first);
    if (!own)
        fill |= old.kind == CLUSTER_COMPRESSED ? bitmap_allocated(q) : entry.bitmap & bitmap_allocated(q);
    host = old.host;
    if (!own && (result = data_alloc(q, offset - in_cluster, 1, &host, &got, err)))
        return result;
    if (!own && is_blank(q, entry, offset - in_cluster) && host >= file_bytes(q->data) && !q->data->is_device) {
        /* Behind the file's end all is zero already. */
        result = file_writev(q->data, host + in_cluster, vec, bytes, err);
    } else {
        result = merge(q, entry, offset, vec, bytes, fill, &from, &to, err);
        if (has_data_file(q)) /* a raw data file has the disk's size */
            to = MIN(to, MAX(in_cluster + bytes, q->image->disk_bytes - (offset - in_cluster)));
        if (!result)
            result = file_write(q->data, host + from, q->bounce + from, to - from, err);
    }
    if (!result && !own)
        result = map_release(q, &old, err);
    if (result) {
        if (!own)
            data_unalloc(q, host, 1);
        return result;
    }
    entry.word = host | ENTRY_COPIED;
    entry.bitmap = (entry.bitmap | fill) & ~(fill << SUBCLUSTERS);
    l2_store(q, table, index, entry);
    return 0;
}

/* Writes up to `count` whole clusters to new places; *done says how many. */
static int write_whole(struct qcow2 *q, struct table *table, uint64_t offset, struct vec *vec, uint64_t count,
                       uint64_t *done, imgvm_error *err)
{
    uint64_t index = l2_index(q, offset), host, got;
    struct mapping old;
    bool own;
    uint64_t fresh = 1;
    for (; fresh < count; fresh++) {
        if (map_decode(q, l2_load(q, table, index + fresh), 0, &old, NULL) || map_is_own(q, &old, &own, NULL) || own)
            break;
    }
    int result = data_alloc(q, offset, fresh, &host, &got, err);
    if (result)
        return result;
    result = file_writev(q->data, host, vec, got << q->cluster_bits, err);
    for (uint64_t i = 0; !result && i < got; i++) {
        result = map_decode(q, l2_load(q, table, index + i), 0, &old, err);
        if (!result)
            result = map_release(q, &old, err);
        if (!result)
            l2_store(q, table, index + i, l2_data_entry(q, host + (i << q->cluster_bits), true));
    }
    if (result) { /* those that are mapped keep their clusters, the rest leaks at worst */
        if (l2_load(q, table, index).word != (host | ENTRY_COPIED))
            data_unalloc(q, host, got);
        return result;
    }
    *done = got;
    return 0;
}

/* One step of a write: *part says how far it came. */
static int write_step(struct qcow2 *q, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t *part,
                      imgvm_error *err)
{
    struct table *table;
    int result = map_l2_for_write(q, offset >> l1_shift(q), &table, err);
    if (result)
        return result;
    uint64_t in_cluster = offset & (q->cluster_bytes - 1), host = 0;
    uint64_t in_table = in_this_table(q, offset, bytes), whole = in_cluster ? 0 : in_table >> q->cluster_bits;
    struct mapping mapping;
    bool own;
    if ((result = own_run(q, table, offset, in_table, &host, part, err)))
        return result;
    if (*part)
        return file_writev(q->data, host, vec, *part, err);
    if ((result = map_decode(q, l2_load(q, table, l2_index(q, offset)), subcluster_of(q, offset), &mapping, err)) ||
        (result = map_is_own(q, &mapping, &own, err)))
        return result;
    if (whole && !own) {
        result = write_whole(q, table, offset, vec, whole, part, err);
        *part <<= q->cluster_bits;
        return result;
    }
    *part = MIN(bytes, q->cluster_bytes - in_cluster);
    return write_partial(q, table, offset, vec, *part, err);
}

int qcow2_write(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    int result = bytes ? qcow2_begin_modify(q, err) : 0;
    while (!result && bytes) {
        uint64_t part = 0;
        if ((result = qcow2_trim(q, err)) || (result = write_step(q, offset, vec, bytes, &part, err)))
            break;
        offset += part;
        bytes -= part;
    }
    return result;
}
