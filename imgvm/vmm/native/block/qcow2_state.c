/* SPDX-License-Identifier: MIT */
/* An open image as it changes: the first modification, header fields, flush and close. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2.h"

#define MUCH_BYTES (UINT64_C(512) << 10) /* to be written with the metadata: takes longer than to wait for the disk twice */

int qcow2_sync(struct qcow2 *q, imgvm_error *err)
{
    int result = has_data_file(q) ? file_sync(q->data, err) : 0;
    if (!result)
        result = file_sync(q->file, err);
    /* The kernel reports lost pages once and then calls them clean: nothing may build on them. */
    q->failed |= result != 0;
    return result;
}

/* All that precedes is on disk before the header changes, and the header before anything that follows. */
int qcow2_write_header(struct qcow2 *q, unsigned at, const void *data, size_t bytes, imgvm_error *err)
{
    int result = qcow2_sync(q, err);
    if (result)
        return result;
    result = file_write(q->file, at, data, bytes, err);
    q->failed |= result != 0; /* who knows which header the disk has now */
    return result ? result : qcow2_sync(q, err);
}

int qcow2_set_incompatible(struct qcow2 *q, uint64_t bits, bool on, imgvm_error *err)
{
    uint8_t field[8];
    uint64_t value = on ? q->incompatible | bits : q->incompatible & ~bits;
    if (q->version < 3 || value == q->incompatible)
        return 0;
    store_be64(field, value);
    int result = qcow2_write_header(q, HEADER_INCOMPATIBLE, field, sizeof field, err);
    if (!result)
        q->incompatible = value;
    return result;
}

int qcow2_begin_modify(struct qcow2 *q, imgvm_error *err)
{
    if (unlikely(q->failed)) {
        error_set(err, EIO, "%s: an earlier flush failed; nothing more is written", q->file->path);
        return error_hint(err, "check the host's disk, then the image with `imgvm check`");
    }
    if (likely(q->modified))
        return 0;
    if (q->autoclear) {
        /* Features that would have to be kept up to date with every change, by who knows them. */
        uint64_t kept = has_data_file(q) ? q->autoclear & AUTOCLEAR_RAW_DATA : 0;
        uint8_t bits[8];
        store_be64(bits, kept);
        int result = kept == q->autoclear ? 0 : qcow2_write_header(q, HEADER_AUTOCLEAR, bits, sizeof bits, err);
        if (result)
            return result;
        q->autoclear = kept;
        q->bitmaps_count = 0;
    }
    q->modified = true;
    return 0;
}

void qcow2_free(struct qcow2 *q)
{
    if (!q)
        return;
    cache_free(&q->l2_cache);
    cache_free(&q->block_cache);
    config_forget(q);
    free(q->l1.entries);
    free(q->refcounts.entries);
    free(q->frees);
    free(q->snapshot_table);
    free(q->snapshots);
    inflaters_free(q);
    free(q);
}

void qcow2_info(const struct qcow2 *q, imgvm_image_info *out)
{
    out->version = q->version;
    out->cluster_bytes = (uint32_t)q->cluster_bytes;
    out->snapshots = q->snapshot_count;
    out->incompatible = q->incompatible;
    out->compatible = q->compatible;
    out->autoclear = q->autoclear;
    memcpy(out->backing_file, q->backing_file, sizeof out->backing_file);
    memcpy(out->base_id, q->base_id, sizeof out->base_id);
}

static bool metadata_is_clean(const struct qcow2 *q)
{
    for (const struct disk_map *map = q->further; map; map = map->next)
        if (map->l2_cache.dirty_count || map->l1.dirty_from < map->l1.dirty_to)
            return false;
    return !q->l2_cache.dirty_count && !q->block_cache.dirty_count && !q->free_count &&
           q->l1.dirty_from >= q->l1.dirty_to && q->refcounts.dirty_from >= q->refcounts.dirty_to &&
           q->refcounts.offset == q->refcount_offset_on_disk;
}

static int qcow2_flush_data(imgvm_image *image, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    pthread_mutex_lock(&image->lock);
    bool clean = metadata_is_clean(q), modified = q->modified, failed = q->failed;
    bool much = q->unflushed >= MUCH_BYTES;
    q->unflushed = 0;
    pthread_mutex_unlock(&image->lock);
    if (failed || !modified) /* the exclusive turn says what is wrong */
        return !failed && clean;
    if (!clean && !much)
        return 0;
    /* The exclusive turn, in which the metadata follows, is short when the data is out. */
    int result = clean ? file_sync(q->data, err) : file_write_dirty(q->data, err);
    if (result) {
        pthread_mutex_lock(&image->lock);
        q->failed = true;
        pthread_mutex_unlock(&image->lock);
    }
    return result ? result : clean;
}

static int qcow2_flush(imgvm_image *image, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    if (!q->modified)
        return 0;
    int result = qcow2_begin_modify(q, err); /* not after a failed flush */
    return result ? result : qcow2_write_back(q, err);
}

/* A file may end inside the last cluster that a guest wrote to: what is missing reads as zeros. Not every other
 * reader knows that (libqcow does not). Where this fails, the image is as good as before. */
static void complete_last_cluster(struct qcow2 *q)
{
    uint64_t bytes = file_bytes(q->file);
    if (!q->file->is_device && bytes & (q->cluster_bytes - 1))
        file_set_size(q->file, clusters_of(q, bytes) << q->cluster_bits, NULL);
}

static int qcow2_close(imgvm_image *image, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    int result = image->writable ? qcow2_flush(image, err) : 0;
    /* The first write-back dropped references; the second records that. */
    if (!result && q->block_cache.dirty_count)
        result = qcow2_flush(image, err);
    if (!result && image->writable && q->modified)
        complete_last_cluster(q);
    qcow2_free(q);
    image->qcow2 = NULL;
    return result;
}

const struct image_ops qcow2_ops = {
    .read = qcow2_read_shared, .write_shared = qcow2_write_shared, .extent = qcow2_extent_shared,
    .place = qcow2_place_shared, .flush_data = qcow2_flush_data, .write = qcow2_write, .zero = qcow2_zero, .discard = qcow2_discard,
    .flush = qcow2_flush, .resize = qcow2_resize, .close = qcow2_close,
};
