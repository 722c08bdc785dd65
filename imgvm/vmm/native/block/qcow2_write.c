/* SPDX-License-Identifier: MIT */
/* Writes, while others read and write: what lies in clusters of ours is overwritten where it lies, the rest gets new ones.
 * The exclusive turn is for what changes more than entries of an L2 table. */
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

/* The table for a write in a shared turn; NULL when it takes the exclusive one. */
static int find_table(struct qcow2 *q, uint64_t offset, struct table **out, imgvm_error *err)
{
    *out = NULL;
    if (!q->modified || q->failed) /* the exclusive turn prepares, or says what is wrong */
        return 0;
    if (unlikely(q->l2_cache.live_count > q->l2_cache.live_limit))
        cache_evict_clean(&q->l2_cache, q->l2_cache.live_limit / 4 * 3);
    return map_l2(q, offset >> l1_shift(q), out, err);
}

enum image_place own_place_shared(imgvm_image *image, uint64_t offset, uint64_t bytes, struct image_extent *out)
{
    struct qcow2 *q = image->qcow2;
    struct table *table;
    uint64_t host = 0, run = 0;
    map_lock(image);
    int result = find_table(q, offset, &table, NULL);
    if (!result && table)
        result = own_run(q, table, offset, in_this_table(q, offset, bytes), &host, &run, NULL);
    q->unflushed += run;
    map_unlock(image);
    if (result || !run || host + run > file_bytes(q->data)) /* who lengthens the file keeps its length */
        return PLACE_UNKNOWN;
    *out = (struct image_extent){q->data, host, run};
    return PLACE_FILE;
}

/* May entries of this table change while others read and write? */
static bool is_changeable(struct qcow2 *q, const struct table *table)
{
    uint64_t count;
    return !qcow2_is_crowded(q) && !refcount_get(q, table->offset >> q->cluster_bits, &count, NULL) && count == 1 &&
           !qcow2_is_fixed_metadata(q, table->offset, q->cluster_bytes);
}

/* One step of a write: *part says how far it came. 0: no further in a shared turn. */
static int write_step(imgvm_image *image, bool exclusive, uint64_t offset, struct vec *vec, uint64_t bytes,
                      uint64_t *part, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    struct table *table = NULL;
    struct claim claim = {0};
    uint64_t host = 0;
    *part = 0;
    map_lock(image);
    bytes = in_this_table(q, offset, bytes);
    int result = exclusive ? map_l2_for_write(q, offset >> l1_shift(q), &table, err) : find_table(q, offset, &table, err);
    if (!result && table)
        result = own_run(q, table, offset, bytes, &host, part, err);
    if (!result && table && !*part && (exclusive || is_changeable(q, table)))
        result = claim_make(image, table, offset, bytes, &claim, err);
    q->unflushed += *part + (claim.count << q->cluster_bits);
    map_unlock(image);
    if (result)
        return result;
    if (*part)
        return file_writev(q->data, host, vec, *part, err);
    *part = claim.bytes;
    return claim.count ? claim_fulfil(&claim, vec, err) : 0;
}

int qcow2_write_shared(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t *done,
                       imgvm_error *err)
{
    for (*done = 0; *done < bytes;) {
        uint64_t part;
        int result = write_step(image, false, offset + *done, vec, bytes - *done, &part, err);
        if (result || !part)
            return result;
        *done += part;
    }
    return 0;
}

int qcow2_write(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    int result = bytes ? qcow2_begin_modify(q, err) : 0;
    while (!result && bytes) {
        uint64_t part = 0;
        if ((result = qcow2_trim(q, err)) || (result = write_step(image, true, offset, vec, bytes, &part, err)))
            break;
        offset += part;
        bytes -= part;
    }
    return result;
}
