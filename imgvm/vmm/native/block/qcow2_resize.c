/* SPDX-License-Identifier: MIT */
/* Another size of the disk, and another L1 table in place of the live one. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2.h"

static int publish_l1(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t disk_bytes, imgvm_error *err)
{
    uint8_t field[24];
    if (q->image->map)
        return disk_publish_l1(q, offset, count, disk_bytes, err);
    store_be64(field, disk_bytes);
    store_be32(field + (HEADER_CRYPT - HEADER_DISK_BYTES), CRYPT_NONE);
    store_be32(field + (HEADER_L1_ENTRIES - HEADER_DISK_BYTES), (uint32_t)count);
    store_be64(field + (HEADER_L1_OFFSET - HEADER_DISK_BYTES), offset);
    return qcow2_write_header(q, HEADER_DISK_BYTES, field, sizeof field, err);
}

int l1_replace(struct qcow2 *q, uint64_t *entries, uint64_t count, uint64_t disk_bytes, imgvm_error *err)
{
    uint64_t clusters = MAX(clusters_of(q, count * 8), 1), offset = 0;
    uint64_t old_offset = q->l1.offset, old_clusters = clusters_of(q, q->l1.count * 8);
    uint8_t *table = calloc(clusters, q->cluster_bytes);
    int result = table ? cache_grow(&q->l2_cache, count, err) : qcow2_no_memory(err);
    if (!result)
        result = releases_reserve(q, old_clusters, err);
    if (!result)
        result = clusters_alloc(q, clusters, clusters, &offset, NULL, err);
    if (result) {
        free(table);
        return result;
    }
    for (uint64_t i = 0; i < count; i++)
        store_be64(table + 8 * i, entries[i]);
    result = file_write(q->file, offset, table, clusters << q->cluster_bits, err);
    free(table);
    if (!result)
        result = qcow2_write_back(q, err);
    if (result) {
        clusters_unalloc(q, offset, clusters);
        return result;
    }
    /* From here on the clusters stay allocated even in failure: the header may name the new table. */
    if ((result = publish_l1(q, offset, count, disk_bytes, err)))
        return result;
    free(q->l1.entries);
    q->l1 = (struct offset_table){.offset = offset, .entries = entries, .count = count};
    q->image->disk_bytes = disk_bytes;
    for (uint64_t i = 0; i < old_clusters; i++)
        cluster_release_later(q, old_offset + (i << q->cluster_bits), NULL); /* room is reserved */
    return 0;
}

static int set_size(struct qcow2 *q, uint64_t disk_bytes, imgvm_error *err)
{
    uint8_t field[8];
    int result = qcow2_write_back(q, err);
    store_be64(field, disk_bytes);
    if (result || (result = qcow2_write_header(q, HEADER_DISK_BYTES, field, sizeof field, err)))
        return result;
    q->image->disk_bytes = disk_bytes;
    return 0;
}

static int grow_l1(struct qcow2 *q, uint64_t count, imgvm_error *err)
{
    uint64_t *entries = calloc(count, sizeof *entries);
    if (!entries)
        return qcow2_no_memory(err);
    memcpy(entries, q->l1.entries, q->l1.count * sizeof *entries);
    int result = l1_replace(q, entries, count, q->image->disk_bytes, err);
    if (result)
        free(entries);
    return result;
}

/* What becomes visible must read as zeros: whatever an earlier shrink left behind the end, and the backing file. */
static int blank(imgvm_image *image, uint64_t from, uint64_t to, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    uint64_t cluster_end = MIN(align_up(from, q->cluster_bytes), to);
    const imgvm_image *backing = image->backing;
    int result = qcow2_unmap_from(q, align_up(from, q->cluster_bytes), err);
    if (!result && from < cluster_end)
        result = qcow2_zero(image, from, cluster_end - from, true, err);
    if (!result && backing && cluster_end < MIN(to, backing->disk_bytes))
        result = qcow2_zero(image, cluster_end, MIN(to, align_up(backing->disk_bytes, q->cluster_bytes)) - cluster_end,
                            true, err);
    return result;
}

static int check_size(const struct qcow2 *q, uint64_t disk_bytes, imgvm_error *err)
{
    if (disk_bytes % 512) {
        error_set(err, EINVAL, "%s: a disk of %" PRIu64 " bytes is not possible", q->file->path, disk_bytes);
        return error_hint(err, "disks have whole sectors of 512 bytes");
    }
    if (disk_bytes > INT64_MAX || l1_entries_of(l1_shift(q), disk_bytes) > L1_BYTES_MAX / 8) {
        error_set(err, EFBIG, "%s: a disk of %" PRIu64 " bytes is too large for clusters of %" PRIu64 " bytes",
                  q->file->path, disk_bytes, q->cluster_bytes);
        return error_hint(err, "larger clusters allow larger disks");
    }
    return 0;
}

int qcow2_resize(imgvm_image *image, uint64_t disk_bytes, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    uint64_t old = image->disk_bytes, count = l1_entries_of(l1_shift(q), disk_bytes);
    int result = check_size(q, disk_bytes, err);
    if (result || disk_bytes == old || (result = qcow2_begin_modify(q, err)))
        return result;
    if (disk_bytes < old) {
        if ((result = set_size(q, disk_bytes, err)) ||
            (result = qcow2_unmap_from(q, align_up(disk_bytes, q->cluster_bytes), err)))
            return result;
    } else {
        if (count > q->l1.count && (result = grow_l1(q, count, err)))
            return result;
        if ((result = blank(image, old, disk_bytes, err)) || (result = set_size(q, disk_bytes, err)))
            return result;
    }
    if (has_data_file(q) && !q->data->is_device && q->autoclear & AUTOCLEAR_RAW_DATA &&
        (result = file_set_size(q->data, disk_bytes, err)))
        return result;
    if (disk_bytes < old) {
        file_unreserve(q->file);
        q->reserved_end = q->appended = 0;
    }
    return qcow2_write_back(q, err);
}
