/* SPDX-License-Identifier: MIT */
/* Reads. The map is looked up under the handle's lock, an L2 table at a time and neighbours joined; the data is read
 * without it, while other reads and writes in place go on. */
#include <errno.h>

#include "qcow2.h"

/* What an overlay does not have comes from its backing file, or is zero; backing files may be shorter. */
static int read_backing(const imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    imgvm_image *backing = image->backing;
    uint64_t below = backing && offset < backing->disk_bytes ? MIN(bytes, backing->disk_bytes - offset) : 0;
    int result = below ? image_read(backing, offset, vec, below, err) : 0;
    if (!result)
        vec_zero(vec, bytes - below);
    return result;
}

int mapped_read_shared(const imgvm_image *image, uint64_t word, const struct mapping *mapping, uint64_t offset,
                       struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    uint64_t in_cluster = offset & (q->cluster_bytes - 1);
    switch (mapping->kind) {
    case CLUSTER_NONE:
        return read_backing(image, offset, vec, bytes, err);
    case CLUSTER_ZERO:
        vec_zero(vec, bytes);
        return 0;
    case CLUSTER_DATA:
        return file_readv(q->data, mapping->host + in_cluster, vec, bytes, err);
    case CLUSTER_COMPRESSED:
        break;
    }
    return cluster_inflate_shared(q, word, mapping, in_cluster, vec, bytes, err);
}

/* A stretch of the guest's disk that is one piece in the file, or is of one kind. */
struct extent {
    struct mapping mapping; /* of its first subcluster */
    uint64_t word;
    uint64_t bytes;
};

/* How far from `offset` on, `bytes` at most, the map goes on as it starts. */
static uint64_t run_bytes(const struct qcow2 *q, const struct table *table, uint64_t offset, uint64_t bytes,
                          const struct mapping *first)
{
    uint64_t sub_bytes = BIT(q->subcluster_bits);
    uint64_t at = align_down(offset, sub_bytes) + sub_bytes, end = offset + bytes;
    uint64_t cluster = offset >> q->cluster_bits;
    if (first->kind == CLUSTER_COMPRESSED)
        return MIN(end, (cluster + 1) << q->cluster_bits) - offset;
    for (; at < end; at += sub_bytes) {
        struct mapping next;
        struct l2_entry entry = l2_load(q, table, l2_index(q, at));
        if (map_decode(q, entry, subcluster_of(q, at), &next, NULL) || next.kind != first->kind)
            break;
        if (first->kind == CLUSTER_DATA &&
            next.host != first->host + (((at >> q->cluster_bits) - cluster) << q->cluster_bits))
            break;
    }
    return MIN(at, end) - offset;
}

static int look_up(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct extent *out, imgvm_error *err)
{
    struct table *table;
    *out = (struct extent){.mapping.kind = CLUSTER_NONE};
    if (unlikely(q->l2_cache.live_count > q->l2_cache.live_limit))
        cache_evict_clean(&q->l2_cache, q->l2_cache.live_limit / 4 * 3);
    int result = map_l2(q, offset >> l1_shift(q), &table, err);
    if (result)
        return result;
    out->bytes = MIN(bytes, BIT(l1_shift(q)) - (offset & (BIT(l1_shift(q)) - 1)));
    if (!table)
        return 0;
    struct l2_entry entry = l2_load(q, table, l2_index(q, offset));
    out->word = entry.word;
    result = map_decode(q, entry, subcluster_of(q, offset), &out->mapping, err);
    if (!result)
        out->bytes = run_bytes(q, table, offset, out->bytes, &out->mapping);
    return result;
}

int qcow2_read_shared(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    while (bytes) {
        struct extent extent;
        map_lock(image);
        int result = look_up(q, offset, bytes, &extent, err);
        map_unlock(image);
        if (result || (result = mapped_read_shared(image, extent.word, &extent.mapping, offset, vec, extent.bytes, err)))
            return result;
        offset += extent.bytes;
        bytes -= extent.bytes;
    }
    return 0;
}

int qcow2_extent_shared(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero,
                        imgvm_error *err)
{
    struct extent extent;
    map_lock(image);
    int result = look_up(image->qcow2, offset, bytes, &extent, err);
    map_unlock(image);
    if (result)
        return result;
    *run = extent.bytes;
    *is_zero = extent.mapping.kind == CLUSTER_ZERO;
    imgvm_image *backing = image->backing;
    if (extent.mapping.kind != CLUSTER_NONE)
        return 0;
    *is_zero = !backing || offset >= backing->disk_bytes;
    if (*is_zero)
        return 0;
    return image_extent(backing, offset, MIN(extent.bytes, backing->disk_bytes - offset), run, is_zero, err);
}

enum image_place qcow2_place_shared(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes,
                                    struct image_extent *out)
{
    static const enum image_place places[] = {
        [CLUSTER_NONE] = PLACE_BELOW, [CLUSTER_ZERO] = PLACE_ZERO, [CLUSTER_DATA] = PLACE_FILE,
        [CLUSTER_COMPRESSED] = PLACE_UNKNOWN,
    };
    struct qcow2 *q = image->qcow2;
    struct extent extent;
    if (write)
        return own_place_shared(image, offset, bytes, out);
    map_lock(image);
    int result = look_up(q, offset, bytes, &extent, NULL);
    map_unlock(image);
    if (result)
        return PLACE_UNKNOWN;
    *out = (struct image_extent){q->data, extent.mapping.host + (offset & (q->cluster_bytes - 1)), extent.bytes};
    return places[extent.mapping.kind];
}
