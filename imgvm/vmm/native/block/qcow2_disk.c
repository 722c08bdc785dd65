/* SPDX-License-Identifier: MIT */
/* Further disks in the same file. Each has an L1 table of its own, which the record of a snapshot keeps, so that every
 * program that knows qcow2 counts and keeps its clusters.
 *
 * Disks share refcounts, snapshot table and cluster allocation; the map is each one's own. So whoever works on a further
 * disk takes a turn of the file's handle (image.h), and puts the disk's map where struct qcow2 has that of the first disk:
 * for the whole of an exclusive turn, and in a shared one for a lookup, under the handle's lock. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

#define NAME_BYTES_MAX 63

/* ---- the record ---- */

static bool is_disk(const struct qcow2 *q, const struct snapshot *snapshot)
{
    const uint8_t *extra = q->snapshot_table + snapshot->at + SNAPSHOT_FIXED_BYTES + EXTRA_KNOWN_BYTES;
    return snapshot->extra_bytes >= EXTRA_KNOWN_BYTES + DISK_EXTRA_BYTES && !memcmp(extra, DISK_EXTRA_MAGIC, 8);
}

static bool is_named(const struct qcow2 *q, const struct snapshot *snapshot, const char *name)
{
    const uint8_t *id = q->snapshot_table + snapshot->at + SNAPSHOT_FIXED_BYTES + snapshot->extra_bytes;
    const size_t prefix = strlen(DISK_SNAPSHOT_PREFIX), bytes = strlen(name);
    return snapshot->name_bytes == prefix + bytes && !memcmp(id + snapshot->id_bytes, DISK_SNAPSHOT_PREFIX, prefix) &&
           !memcmp(id + snapshot->id_bytes + prefix, name, bytes);
}

static const struct snapshot *find(const struct qcow2 *q, const char *name)
{
    for (uint32_t i = 0; i < q->snapshot_count; i++)
        if (is_disk(q, &q->snapshots[i]) && is_named(q, &q->snapshots[i], name))
            return &q->snapshots[i];
    return NULL;
}

bool disk_is_record(const struct qcow2 *q, uint32_t index)
{
    return is_disk(q, &q->snapshots[index]);
}

bool disk_is_there(const struct qcow2 *q, const char *name)
{
    return find(q, name) != NULL;
}

int disk_name(const struct qcow2 *q, uint32_t index, char *name, size_t name_size)
{
    const size_t prefix = strlen(DISK_SNAPSHOT_PREFIX);
    imgvm_snapshot_info info;
    for (uint32_t i = 0; !qcow2_snapshot_info(q, i, &info); i++)
        if (is_disk(q, &q->snapshots[i]) && !strncmp(info.name, DISK_SNAPSHOT_PREFIX, prefix) && !index--) {
            snprintf(name, name_size, "%s", info.name + prefix);
            return 0;
        }
    return -ENOENT;
}

static size_t make_record(const struct qcow2 *q, const char *name, uint64_t l1_offset, uint64_t l1_entries,
                          uint64_t disk_bytes, uint32_t date_sec, uint8_t out[256])
{
    uint8_t *extra = out + SNAPSHOT_FIXED_BYTES, *id = extra + EXTRA_KNOWN_BYTES + DISK_EXTRA_BYTES;
    memset(out, 0, 256);
    size_t id_bytes = (size_t)sprintf((char *)id, "%lu", snapshots_next_id(q));
    size_t name_bytes = (size_t)sprintf((char *)id + id_bytes, DISK_SNAPSHOT_PREFIX "%s", name);
    store_be64(out + SNAPSHOT_L1_OFFSET, l1_offset);
    store_be32(out + SNAPSHOT_L1_ENTRIES, (uint32_t)l1_entries);
    store_be16(out + SNAPSHOT_ID_BYTES, (uint16_t)id_bytes);
    store_be16(out + SNAPSHOT_NAME_BYTES, (uint16_t)name_bytes);
    store_be32(out + SNAPSHOT_DATE_SEC, date_sec);
    store_be32(out + SNAPSHOT_EXTRA_BYTES, EXTRA_KNOWN_BYTES + DISK_EXTRA_BYTES);
    store_be64(extra + EXTRA_DISK_BYTES, disk_bytes);
    store_be64(extra + EXTRA_ICOUNT, UINT64_MAX); /* none */
    memcpy(extra + EXTRA_KNOWN_BYTES, DISK_EXTRA_MAGIC, 8);
    store_be32(extra + EXTRA_KNOWN_BYTES + 8, DISK_VERSION);
    return (size_t)(id - out) + id_bytes + name_bytes;
}

static int check_new(const struct qcow2 *q, const char *name, uint64_t disk_bytes, imgvm_error *err)
{
    imgvm_snapshot_info info;
    char full[NAME_BYTES_MAX + sizeof DISK_SNAPSHOT_PREFIX];
    size_t bytes = strnlen(name, NAME_BYTES_MAX + 1);
    if (!bytes || bytes > NAME_BYTES_MAX)
        return error_set(err, EINVAL, "the name of a disk has 1 to %d bytes", NAME_BYTES_MAX);
    snprintf(full, sizeof full, DISK_SNAPSHOT_PREFIX "%s", name);
    for (uint32_t i = 0; !qcow2_snapshot_info(q, i, &info); i++)
        if (!strcmp(info.name, full))
            return error_set(err, EEXIST, "%s has a snapshot %s already", q->file->path, full);
    if (has_data_file(q)) {
        error_set(err, ENOTSUP, "%s has its data in another file: it can hold no further disk", q->file->path);
        return error_hint(err, "`imgvm convert` makes an image that holds all of it");
    }
    if (disk_bytes > INT64_MAX || l1_entries_of(l1_shift(q), disk_bytes) > L1_BYTES_MAX / 8)
        return error_set(err, EFBIG, "%s: a disk of %" PRIu64 " bytes is too large for its clusters", q->file->path,
                         disk_bytes);
    return 0;
}

int disk_add(struct qcow2 *q, const char *name, uint64_t disk_bytes, uint32_t date_sec, imgvm_error *err)
{
    uint8_t record[256];
    uint64_t offset = 0, entries = MAX(l1_entries_of(l1_shift(q), disk_bytes), 1), clusters = clusters_of(q, entries * 8);
    int result = check_new(q, name, disk_bytes, err);
    if (result || (result = qcow2_begin_modify(q, err)) ||
        (result = clusters_alloc(q, clusters, clusters, &offset, NULL, err)))
        return result;
    uint8_t *table = calloc(clusters, q->cluster_bytes);
    result = table ? file_write(q->file, offset, table, clusters << q->cluster_bits, err) : qcow2_no_memory(err);
    free(table);
    if (!result) {
        size_t bytes = make_record(q, name, offset, entries, disk_bytes, date_sec, record);
        result = snapshots_replace(q, q->snapshot_count, record, bytes, err);
    }
    if (result && !q->failed)
        clusters_unalloc(q, offset, clusters);
    config_forget(q);
    return result;
}

int disk_publish_l1(struct qcow2 *q, uint64_t offset, uint64_t entries, uint64_t disk_bytes, imgvm_error *err)
{
    uint32_t index = 0;
    while (index < q->snapshot_count && !(is_disk(q, &q->snapshots[index]) && q->snapshots[index].l1_offset == q->l1.offset))
        index++;
    if (index == q->snapshot_count)
        return qcow2_corrupt(q, err, "the record of a further disk is gone");
    const struct snapshot *old = &q->snapshots[index];
    uint8_t *record = calloc(1, old->bytes);
    if (!record)
        return qcow2_no_memory(err);
    memcpy(record, q->snapshot_table + old->at, MIN(old->bytes, q->snapshot_table_bytes - old->at));
    store_be64(record + SNAPSHOT_L1_OFFSET, offset);
    store_be32(record + SNAPSHOT_L1_ENTRIES, (uint32_t)entries);
    store_be64(record + SNAPSHOT_FIXED_BYTES + EXTRA_DISK_BYTES, disk_bytes);
    int result = snapshots_replace(q, index, record, old->bytes, err);
    free(record);
    return result;
}

/* ---- whose turn it is ---- */

static void exchange(struct qcow2 *q, struct disk_map *map)
{
    const struct disk_map first = {.l1 = q->l1, .l2_cache = q->l2_cache};
    q->l1 = map->l1;
    q->l2_cache = map->l2_cache;
    map->l1 = first.l1;
    map->l2_cache = first.l2_cache;
}

void disk_enter(imgvm_image *disk)
{
    imgvm_image *holder = disk->map->holder;
    pthread_rwlock_wrlock(&holder->turn);
    exchange(disk->qcow2, disk->map);
    disk->qcow2->image = disk;
}

void disk_leave(imgvm_image *disk)
{
    imgvm_image *holder = disk->map->holder;
    disk->qcow2->image = holder;
    exchange(disk->qcow2, disk->map);
    pthread_rwlock_unlock(&holder->turn);
}

/* Not when the disk has an exclusive turn, in which lookups as of a shared one are made, too. */
static bool is_away(const imgvm_image *image)
{
    return image->map && image->qcow2->image != image;
}

void map_lock(imgvm_image *image)
{
    pthread_mutex_lock(image->map ? &image->map->holder->lock : &image->lock);
    if (is_away(image))
        exchange(image->qcow2, image->map);
}

void map_unlock(imgvm_image *image)
{
    if (is_away(image))
        exchange(image->qcow2, image->map);
    pthread_mutex_unlock(image->map ? &image->map->holder->lock : &image->lock);
}

static bool try_share(imgvm_image *disk) { return !pthread_rwlock_tryrdlock(&disk->map->holder->turn); }
static void share(imgvm_image *disk) { pthread_rwlock_rdlock(&disk->map->holder->turn); }
static void unshare(imgvm_image *disk) { pthread_rwlock_unlock(&disk->map->holder->turn); }

static int disk_read(imgvm_image *disk, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    share(disk);
    int result = qcow2_ops.read(disk, offset, vec, bytes, err);
    unshare(disk);
    return result;
}

static int disk_write_shared(imgvm_image *disk, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t *done,
                               imgvm_error *err)
{
    share(disk);
    int result = qcow2_ops.write_shared(disk, offset, vec, bytes, done, err);
    unshare(disk);
    return result;
}

static int disk_extent(imgvm_image *disk, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero,
                       imgvm_error *err)
{
    share(disk);
    int result = qcow2_ops.extent(disk, offset, bytes, run, is_zero, err);
    unshare(disk);
    return result;
}

static int disk_flush_data(imgvm_image *disk, imgvm_error *err)
{
    share(disk);
    int result = qcow2_ops.flush_data(disk->map->holder, err); /* data of all disks is in the same file */
    unshare(disk);
    return result;
}

static int disk_write(imgvm_image *disk, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    disk_enter(disk);
    int result = qcow2_ops.write(disk, offset, vec, bytes, err);
    disk_leave(disk);
    return result;
}

static int disk_zero(imgvm_image *disk, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err)
{
    disk_enter(disk);
    int result = qcow2_ops.zero(disk, offset, bytes, give_back, err);
    disk_leave(disk);
    return result;
}

static int disk_discard(imgvm_image *disk, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    disk_enter(disk);
    int result = qcow2_ops.discard(disk, offset, bytes, err);
    disk_leave(disk);
    return result;
}

static int disk_flush(imgvm_image *disk, imgvm_error *err)
{
    disk_enter(disk);
    int result = qcow2_ops.flush(disk, err);
    disk_leave(disk);
    return result;
}

static int disk_resize(imgvm_image *disk, uint64_t disk_bytes, imgvm_error *err)
{
    (void)disk_bytes;
    return error_set(err, ENOTSUP, "%s: only the image's first disk can be resized", disk->file.path);
}

static int disk_close(imgvm_image *disk, imgvm_error *err)
{
    struct qcow2 *q = disk->qcow2;
    imgvm_image *holder = disk->map->holder;
    int result = disk->writable ? disk_flush(disk, err) : 0;
    pthread_rwlock_wrlock(&holder->turn);
    for (struct disk_map **at = &q->further; *at; at = &(*at)->next)
        if (*at == disk->map) {
            *at = disk->map->next;
            break;
        }
    pthread_rwlock_unlock(&holder->turn);
    cache_free(&disk->map->l2_cache);
    free(disk->map->l1.entries);
    free(disk->map);
    disk->map = NULL;
    disk->qcow2 = NULL;
    return result;
}

static const struct image_ops disk_ops = {
    .read = disk_read, .write_shared = disk_write_shared, .extent = disk_extent, .place = qcow2_place_shared,
    .try_share = try_share, .unshare = unshare, .flush_data = disk_flush_data,
    .write = disk_write, .zero = disk_zero, .discard = disk_discard, .flush = disk_flush, .resize = disk_resize,
    .close = disk_close,
};

/* ---- opening ---- */

static int check_found(const struct qcow2 *q, const struct snapshot *found, const char *name, imgvm_error *err)
{
    const uint8_t *extra = q->snapshot_table + found->at + SNAPSHOT_FIXED_BYTES + EXTRA_KNOWN_BYTES;
    const uint64_t l1_bytes = (uint64_t)found->l1_entries * 8;
    for (const struct disk_map *map = q->further; map; map = map->next)
        if (map->l1.offset == found->l1_offset)
            return error_set(err, EBUSY, "%s: its disk %s is open already", q->file->path, name);
    if (load_be32(extra + 8) != DISK_VERSION) {
        error_set(err, ENOTSUP, "%s: its disk %s is of version %u; this imgvm knows version %u", q->file->path, name,
                  load_be32(extra + 8), DISK_VERSION);
        return error_hint(err, "use a newer imgvm, or pack the image again");
    }
    if (found->disk_bytes > INT64_MAX || found->l1_entries > L1_BYTES_MAX / 8 ||
        found->l1_entries < l1_entries_of(l1_shift(q), found->disk_bytes))
        return qcow2_corrupt(q, err, "its disk %s of %" PRIu64 " bytes has %u L1 entries", name, found->disk_bytes,
                             found->l1_entries);
    if (found->l1_offset & (q->cluster_bytes - 1) || qcow2_is_fixed_metadata(q, found->l1_offset, l1_bytes))
        return qcow2_corrupt(q, err, "the L1 table of its disk %s lies at offset %#" PRIx64, name, found->l1_offset);
    return 0;
}

int disk_open(imgvm_image *holder, const char *name, imgvm_image *disk, imgvm_error *err)
{
    struct qcow2 *q = holder->qcow2;
    const struct snapshot *found = find(q, name);
    if (!found)
        return -ENOENT;
    int result = check_found(q, found, name, err);
    if (result)
        return result;
    struct disk_map *map = calloc(1, sizeof *map);
    if (!map)
        return qcow2_no_memory(err);
    map->holder = holder;
    map->l1.offset = found->l1_offset;
    map->l1.count = found->l1_entries;
    result = offset_table_read(q, &map->l1, "L1 table of a further disk", err);
    if (!result)
        result = cache_init(&map->l2_cache, map->l1.count, q->l2_cache.live_limit, err);
    if (result) {
        cache_free(&map->l2_cache);
        free(map->l1.entries);
        free(map);
        return result;
    }
    map->next = q->further;
    q->further = map;
    disk->map = map;
    disk->qcow2 = q;
    disk->ops = &disk_ops;
    disk->writable = holder->writable;
    disk->disk_bytes = found->disk_bytes;
    return 0;
}
