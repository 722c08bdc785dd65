/* SPDX-License-Identifier: MIT */
/* Zeroing and discarding, which change the map and no data; and unmapping what lies behind a disk's end. */
#include <errno.h>

#include "qcow2.h"

/* Is there anything under the cluster at `guest` that shows where the image has none? */
static bool has_backing(const struct qcow2 *q, uint64_t guest)
{
    return q->image->backing && guest < q->image->backing->disk_bytes;
}

/* Plain zeros over what does not read as zeros yet. */
static int write_zeros(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    static const uint8_t zeros[65536];
    int result = 0;
    while (!result && bytes) {
        uint64_t run;
        bool is_zero;
        if ((result = qcow2_extent_shared(image, offset, bytes, &run, &is_zero, err)))
            break;
        for (uint64_t done = 0, part; !result && !is_zero && done < run; done += part) {
            part = MIN(run - done, sizeof zeros);
            const struct iovec piece = {(void *)zeros, part};
            struct vec vec = {.piece = &piece};
            result = qcow2_write(image, offset + done, &vec, part, err);
        }
        offset += run;
        bytes -= run;
    }
    return result;
}

/* The data of a cluster in an external file, once nothing refers to it as data. */
static int zero_external(struct qcow2 *q, const struct mapping *old, bool give_back, imgvm_error *err)
{
    if (q->autoclear & AUTOCLEAR_RAW_DATA) /* the file alone must read right */
        return file_zero(q->data, old->host, q->cluster_bytes, give_back, err);
    if (give_back)
        file_punch(q->data, old->host, q->cluster_bytes);
    return 0;
}

/* One whole cluster reads as zeros from now on. */
static int zero_cluster(struct qcow2 *q, struct table *table, uint64_t guest, bool give_back, imgvm_error *err)
{
    uint64_t index = l2_index(q, guest);
    struct l2_entry entry = l2_load(q, table, index), zero = {.bitmap = has_backing(q, guest) ? bitmap_zero(q) : 0};
    struct mapping old;
    bool own;
    int result = map_decode(q, entry, 0, &old, err);
    if (result || (result = map_is_own(q, &old, &own, err)))
        return result;
    if (own && (has_data_file(q) || (!give_back && q->version >= 3))) { /* it keeps its place */
        zero = (struct l2_entry){entry.word, bitmap_zero(q)};
        if (has_data_file(q) && (result = zero_external(q, &old, give_back, err)))
            return result;
    } else if ((result = map_release(q, &old, err)))
        return result;
    if (zero.word != entry.word || zero.bitmap != entry.bitmap)
        l2_store(q, table, index, zero);
    return 0;
}

/* Whole clusters, in one L2 table. */
static int zero_in_table(struct qcow2 *q, uint64_t guest, uint64_t end, bool give_back, bool gain_only,
                         imgvm_error *err)
{
    struct table *table;
    uint64_t l1_index = guest >> l1_shift(q);
    if (!q->l1.entries[l1_index] && (gain_only || !has_backing(q, guest)))
        return 0;
    int result = map_l2_for_write(q, l1_index, &table, err);
    for (; !result && guest < end; guest += q->cluster_bytes) {
        struct l2_entry entry = l2_load(q, table, l2_index(q, guest));
        bool holds = entry.word || entry.bitmap & bitmap_allocated(q);
        if (holds || (!gain_only && has_backing(q, guest)))
            result = zero_cluster(q, table, guest, give_back, err);
    }
    return result;
}

static int zero_clusters(struct qcow2 *q, uint64_t guest, uint64_t end, bool give_back, bool gain_only,
                         imgvm_error *err)
{
    int result = 0;
    while (!result && guest < end) {
        uint64_t table_end = MIN(end, ((guest >> l1_shift(q)) + 1) << l1_shift(q));
        result = qcow2_trim(q, err);
        if (!result)
            result = zero_in_table(q, guest, table_end, give_back, gain_only, err);
        guest = table_end;
    }
    return result;
}

/* The whole clusters of a range; the disk's last one counts as whole when the range reaches the disk's end. */
static void whole_clusters(const imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *from, uint64_t *to)
{
    const struct qcow2 *q = image->qcow2;
    uint64_t end = offset + bytes;
    *from = align_up(offset, q->cluster_bytes);
    *to = end == image->disk_bytes ? align_up(end, q->cluster_bytes) : align_down(end, q->cluster_bytes);
}

/* Version 2 has no zero clusters: a backing file would show. */
static bool can_zero_by_map(const imgvm_image *image, uint64_t offset)
{
    return image->qcow2->version >= 3 || !has_backing(image->qcow2, offset);
}

int qcow2_zero(imgvm_image *image, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    uint64_t from, to, end = offset + bytes;
    int result = bytes ? qcow2_begin_modify(q, err) : 0;
    if (result || !bytes)
        return result;
    whole_clusters(image, offset, bytes, &from, &to);
    if (from >= to || !can_zero_by_map(image, offset))
        return write_zeros(image, offset, bytes, err);
    result = zero_clusters(q, from, to, give_back, false, err);
    if (!result && offset < from)
        result = write_zeros(image, offset, from - offset, err);
    if (!result && to < end)
        result = write_zeros(image, to, end - to, err);
    return result;
}

int qcow2_discard(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    uint64_t from, to;
    int result = bytes ? qcow2_begin_modify(image->qcow2, err) : 0;
    whole_clusters(image, offset, bytes, &from, &to);
    if (result || from >= to || !can_zero_by_map(image, offset))
        return result;
    return zero_clusters(image->qcow2, from, to, true, true, err);
}

/* ---- unmapping ---- */

static int release_entries(struct qcow2 *q, const struct table *table, uint64_t first, imgvm_error *err)
{
    for (uint64_t i = first; i < BIT(q->l2_bits); i++) {
        struct mapping old;
        int result = map_decode(q, l2_load(q, table, i), 0, &old, err);
        if (!result)
            result = map_release(q, &old, err);
        if (result)
            return result;
    }
    return 0;
}

static int unmap_table(struct qcow2 *q, uint64_t l1_index, imgvm_error *err)
{
    struct table *table;
    int result = map_l2(q, l1_index, &table, err);
    if (result || !table)
        return result;
    if ((result = releases_reserve(q, BIT(q->l2_bits) + 1, err)) || (result = release_entries(q, table, 0, err)))
        return result;
    cluster_release_later(q, table->offset, NULL); /* room is reserved */
    cache_drop(&q->l2_cache, table);
    offset_table_set(&q->l1, l1_index, 0);
    return 0;
}

int qcow2_unmap_from(struct qcow2 *q, uint64_t offset, imgvm_error *err)
{
    uint64_t l1_index = offset >> l1_shift(q), first = l2_index(q, offset);
    int result = 0;
    if (first && l1_index < q->l1.count && q->l1.entries[l1_index]) {
        struct table *table;
        if ((result = map_l2_for_write(q, l1_index, &table, err)) || (result = release_entries(q, table, first, err)))
            return result;
        for (uint64_t i = first; i < BIT(q->l2_bits); i++)
            l2_store(q, table, i, (struct l2_entry){0});
    }
    for (l1_index += first != 0; !result && l1_index < q->l1.count; l1_index++) {
        result = qcow2_trim(q, err);
        if (!result && q->l1.entries[l1_index])
            result = unmap_table(q, l1_index, err);
    }
    return result;
}
