/* SPDX-License-Identifier: MIT */
/* New clusters for what is written. They are claimed, and put into the map, under the handle's lock; between the two their
 * data is written without it, while others read and write. Until then the map shows what was there before, and nobody
 * else gets a claim to the same cluster of the disk. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2.h"

/* Who adds this much to the file's end may well add more: its space is taken ahead, which costs the host's file
 * system less than finding some for each piece. */
#define APPENDED_MIN (UINT64_C(1) << 20)
#define AHEAD_BYTES_MAX (UINT64_C(8) << 20)

#define READ_OVER_BYTES 8192 /* reading these, to be overwritten, takes less than reading twice */

static bool is_claimed(const imgvm_image *image, uint64_t guest)
{
    for (const struct claim *claim = image->qcow2->claims; claim; claim = claim->next)
        if (claim->image == image && guest >= claim->guest &&
            guest - claim->guest < claim->count << image->qcow2->cluster_bits)
            return true;
    return false;
}

/* How many clusters from `guest` on, `max` at most, must have new places; the first one must. */
static uint64_t run_to_claim(imgvm_image *image, const struct table *table, uint64_t guest, uint64_t max)
{
    struct qcow2 *q = image->qcow2;
    uint64_t count = 1;
    for (; count < max; count++) {
        uint64_t at = guest + (count << q->cluster_bits);
        struct mapping old;
        bool own;
        if (is_claimed(image, at) || map_decode(q, l2_load(q, table, l2_index(q, at)), 0, &old, NULL) ||
            map_is_own(q, &old, &own, NULL) || own)
            break;
    }
    return count;
}

/* Clusters for data: in an external file each guest cluster has its place. */
static int data_alloc(struct qcow2 *q, struct claim *claim, uint64_t max, imgvm_error *err)
{
    if (!has_data_file(q)) {
        uint64_t end = q->used_end;
        int result = clusters_alloc(q, 1, max, &claim->host, &claim->count, err);
        claim->appends = !result && claim->host >= end;
        return result;
    }
    claim->host = claim->guest;
    claim->count = max;
    claim->appends = claim->host >= file_bytes(q->data);
    return 0;
}

static void data_unalloc(struct qcow2 *q, const struct claim *claim, uint64_t count)
{
    if (!claim->own && !has_data_file(q))
        clusters_unalloc(q, claim->host, count);
}

/* Do all subclusters that are not data read as zeros, and is none data? */
static bool is_blank(const imgvm_image *image, struct l2_entry entry, uint64_t guest)
{
    const struct qcow2 *q = image->qcow2;
    if (entry.word & ENTRY_COMPRESSED || entry.bitmap & bitmap_allocated(q))
        return false;
    return entry.bitmap == bitmap_zero(q) || !image->backing || guest >= image->backing->disk_bytes;
}

static void reserve_ahead(struct qcow2 *q, struct claim *claim)
{
    uint64_t bytes = claim->count << q->cluster_bits, end = claim->host + bytes;
    if (!claim->appends || has_data_file(q))
        return;
    q->appended += bytes;
    if (end <= q->reserved_end || q->appended < APPENDED_MIN)
        return;
    claim->reserve = bytes + MIN(q->appended, AHEAD_BYTES_MAX);
    q->reserved_end = claim->host + claim->reserve;
}

int claim_make(imgvm_image *image, struct table *table, uint64_t offset, uint64_t bytes, struct claim *claim,
               imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    const uint64_t in_cluster = offset & (q->cluster_bytes - 1), clusters = in_cluster ? 0 : bytes >> q->cluster_bits;
    struct mapping old;
    *claim = (struct claim){.image = image, .guest = offset - in_cluster, .offset = offset};
    if (is_claimed(image, claim->guest))
        return 0;
    claim->entry = l2_load(q, table, l2_index(q, offset));
    int result = map_decode(q, claim->entry, subcluster_of(q, offset), &old, err);
    if (result || (result = map_is_own(q, &old, &claim->own, err)))
        return result;
    claim->whole = clusters && !claim->own;
    claim->host = old.host;
    claim->count = 1;
    if (!claim->own &&
        (result = data_alloc(q, claim, claim->whole ? run_to_claim(image, table, offset, clusters) : 1, err))) {
        claim->count = 0;
        return result;
    }
    if (claim->whole) {
        claim->bytes = claim->count << q->cluster_bits;
        reserve_ahead(q, claim);
    } else {
        claim->bytes = MIN(bytes, q->cluster_bytes - in_cluster);
        unsigned first = subcluster_of(q, offset), last = subcluster_of(q, offset + claim->bytes - 1);
        claim->fill = BIT(last + 1) - BIT(first);
        if (!claim->own)
            claim->fill |= old.kind == CLUSTER_COMPRESSED ? bitmap_allocated(q) : claim->entry.bitmap & bitmap_allocated(q);
    }
    l2_dirty(q, table, l2_index(q, offset)); /* stays in memory until the claim is in it */
    claim->next = q->claims;
    q->claims = claim;
    return 0;
}

/* What the guest sees of the cluster now, from `from` to `to` in it. */
static int read_old(const struct claim *claim, uint8_t *cluster, uint64_t from, uint64_t to, imgvm_error *err)
{
    const struct qcow2 *q = claim->image->qcow2;
    uint64_t sub_bytes = BIT(q->subcluster_bits);
    for (uint64_t at = from, part; at < to; at += part) {
        struct mapping mapping;
        int result = map_decode(q, claim->entry, subcluster_of(q, at), &mapping, err);
        const struct iovec piece = {cluster + at, to - at};
        struct vec vec = {.piece = &piece};
        part = mapping.kind == CLUSTER_COMPRESSED ? to - at : MIN(to, align_down(at, sub_bytes) + sub_bytes) - at;
        if (result || (result = mapped_read_shared(claim->image, claim->entry.word, &mapping, claim->guest + at, &vec,
                                                   part, err)))
            return result;
    }
    return 0;
}

/* The new data and around it what was there; only subclusters in `fill` must come out right. */
static int write_merged(const struct claim *claim, struct vec *vec, imgvm_error *err)
{
    const struct qcow2 *q = claim->image->qcow2;
    const uint64_t first = claim->offset - claim->guest, last = first + claim->bytes;
    uint64_t from = (uint64_t)__builtin_ctzll(claim->fill) << q->subcluster_bits;
    uint64_t to = (uint64_t)(64 - __builtin_clzll(claim->fill)) << q->subcluster_bits;
    uint8_t *cluster = malloc(q->cluster_bytes);
    if (!cluster)
        return qcow2_no_memory(err);
    const bool at_once = claim->bytes < READ_OVER_BYTES;
    int result = read_old(claim, cluster, from, at_once ? to : first, err);
    if (!result && !at_once)
        result = read_old(claim, cluster, last, to, err);
    if (!result) {
        vec_get(vec, cluster + first, claim->bytes);
        if (has_data_file(q)) /* a raw data file has the disk's size */
            to = MIN(to, MAX(last, claim->image->disk_bytes - claim->guest));
        result = file_write(q->data, claim->host + from, cluster + from, to - from, err);
    }
    free(cluster);
    return result;
}

static int write_data(const struct claim *claim, struct vec *vec, imgvm_error *err)
{
    const struct qcow2 *q = claim->image->qcow2;
    if (claim->reserve)
        file_reserve(q->file, claim->host, claim->reserve);
    /* Behind all that was ever used of the file, all is zero already. */
    if (claim->whole || (claim->appends && is_blank(claim->image, claim->entry, claim->guest) && !q->data->is_device))
        return file_writev(q->data, claim->host + (claim->offset - claim->guest), vec, claim->bytes, err);
    return write_merged(claim, vec, err);
}

static int put_into_map(struct qcow2 *q, const struct claim *claim, uint64_t *done, imgvm_error *err)
{
    struct table *table = q->l2_cache.slots[claim->guest >> l1_shift(q)];
    for (*done = 0; *done < claim->count; ++*done) {
        uint64_t index = l2_index(q, claim->guest) + *done;
        struct l2_entry entry = l2_load(q, table, index);
        struct mapping old;
        int result = claim->own ? 0 : map_decode(q, entry, 0, &old, err);
        if (result || (!claim->own && (result = map_release(q, &old, err))))
            return result;
        if (claim->whole)
            entry = l2_data_entry(q, claim->host + (*done << q->cluster_bits), true);
        else {
            entry.word = claim->host | ENTRY_COPIED;
            entry.bitmap = (entry.bitmap | claim->fill) & ~(claim->fill << SUBCLUSTERS);
        }
        l2_store(q, table, index, entry);
    }
    return 0;
}

int claim_fulfil(struct claim *claim, struct vec *vec, imgvm_error *err)
{
    struct qcow2 *q = claim->image->qcow2;
    uint64_t mapped = 0;
    int result = write_data(claim, vec, err);
    map_lock(claim->image);
    struct claim **at = &q->claims;
    while (*at != claim)
        at = &(*at)->next;
    *at = claim->next;
    if (!result)
        result = put_into_map(q, claim, &mapped, err);
    if (!mapped) /* else those without a place in the map leak */
        data_unalloc(q, claim, claim->count);
    map_unlock(claim->image);
    return result;
}
