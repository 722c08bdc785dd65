/* SPDX-License-Identifier: MIT */
/* A new, empty image: header, refcount table, refcount blocks, L1 table, in this order. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qcow2.h"

#define CLUSTER_BYTES_DEFAULT 65536u
#define REFCOUNT_BITS_DEFAULT 16u

struct plan {
    const imgvm_image_options *options;
    unsigned version, cluster_bits, refcount_order;
    uint64_t disk_bytes, l1_entries;
    uint64_t table_clusters, blocks, l1_clusters, clusters;
};

static int refuse(imgvm_error *err, const char *what, const char *hint)
{
    error_set(err, EINVAL, "%s", what);
    return error_hint(err, "%s", hint);
}

static int check_options(const imgvm_image_options *o, const struct plan *plan, imgvm_error *err)
{
    if (plan->version != 2 && plan->version != 3)
        return refuse(err, "qcow2 has versions 2 and 3", "leave the version out");
    if (plan->version == 2 && (plan->refcount_order != 4 || o->extended_l2 || o->lazy_refcounts || o->zstd ||
                               (o->data_file && *o->data_file)))
        return refuse(err, "version 2 has no other refcounts than 16 bits, no lazy ones, no subclusters, no zstd and no "
                           "data file", "take version 3");
    if (plan->refcount_order > REFCOUNT_ORDER_MAX)
        return refuse(err, "refcounts have 1, 2, 4, 8, 16, 32 or 64 bits", "16 is usual");
    if (o->extended_l2 && plan->cluster_bits < EXTENDED_CLUSTER_BITS_MIN)
        return refuse(err, "subclusters need clusters of 16 KiB at least", "128 KiB is usual with subclusters");
    if ((o->backing_file && strlen(o->backing_file) > BACKING_NAME_BYTES_MAX) ||
        (o->data_file && strlen(o->data_file) > BACKING_NAME_BYTES_MAX))
        return refuse(err, "the name of the backing or data file is too long", "at most 1023 bytes");
    if (o->backing_file && *o->backing_file && o->backing_format && strcmp(o->backing_format, "raw") &&
        strcmp(o->backing_format, "qcow2"))
        return refuse(err, "the format of a backing file is raw or qcow2", "convert it first");
    if (o->data_file_raw && (!o->data_file || !*o->data_file || (o->backing_file && *o->backing_file)))
        return refuse(err, "a raw data file needs a data file and bears no backing file", "leave one of them out");
    return 0;
}

static int plan_image(const imgvm_image_options *options, struct plan *out, imgvm_error *err)
{
    uint32_t cluster_bytes = options->cluster_bytes ? options->cluster_bytes : CLUSTER_BYTES_DEFAULT;
    uint32_t refcount_bits = options->refcount_bits ? options->refcount_bits : REFCOUNT_BITS_DEFAULT;
    uint64_t disk_bytes = options->disk_bytes;
    if (cluster_bytes & (cluster_bytes - 1) || cluster_bytes < BIT(CLUSTER_BITS_MIN) ||
        cluster_bytes > BIT(CLUSTER_BITS_MAX)) {
        error_set(err, EINVAL, "clusters of %u bytes are not possible", cluster_bytes);
        return error_hint(err, "a power of two from 512 to 2097152 (2 MiB)");
    }
    if (disk_bytes % 512) {
        error_set(err, EINVAL, "a disk of %" PRIu64 " bytes is not possible", disk_bytes);
        return error_hint(err, "disks have whole sectors of 512 bytes");
    }
    *out = (struct plan){.options = options, .version = options->version ? options->version : 3,
                         .cluster_bits = (unsigned)__builtin_ctz(cluster_bytes), .disk_bytes = disk_bytes,
                         .refcount_order = refcount_bits & (refcount_bits - 1) ? UINT32_MAX
                                                                               : (unsigned)__builtin_ctz(refcount_bits)};
    int result = check_options(options, out, err);
    if (result)
        return result;
    out->l1_entries = l1_entries_of(2 * out->cluster_bits - (options->extended_l2 ? 4 : 3), disk_bytes);
    if (disk_bytes > INT64_MAX || out->l1_entries > L1_BYTES_MAX / 8) {
        error_set(err, EFBIG, "a disk of %" PRIu64 " bytes is too large for clusters of %u bytes", disk_bytes,
                  cluster_bytes);
        return error_hint(err, "larger clusters allow larger disks");
    }
    out->l1_clusters = MAX((out->l1_entries * 8 + cluster_bytes - 1) / cluster_bytes, 1);
    /* The refcount blocks count themselves. */
    uint64_t per_block = BIT(out->cluster_bits + 3 - out->refcount_order);
    for (uint64_t blocks = 0; blocks != out->blocks || !blocks;) {
        out->blocks = MAX(blocks, 1);
        out->table_clusters = (out->blocks * 8 + cluster_bytes - 1) / cluster_bytes;
        out->clusters = 1 + out->table_clusters + out->blocks + out->l1_clusters;
        blocks = (out->clusters + per_block - 1) / per_block;
    }
    return 0;
}

/* A header extension at *at, when it fits into the cluster with the end behind it. */
static void put_extension(uint8_t *head, size_t *at, size_t room, uint32_t type, const void *data, size_t bytes)
{
    if (*at + 8 + align_up(bytes, 8) + 8 <= room) {
        store_be32(head + *at, type);
        store_be32(head + *at + 4, (uint32_t)bytes);
        memcpy(head + *at + 8, data, bytes);
    }
    *at += 8 + align_up(bytes, 8);
}

static int fill_header(const struct plan *plan, uint8_t *head, imgvm_error *err)
{
    const imgvm_image_options *o = plan->options;
    uint64_t table = 1, l1 = table + plan->table_clusters + plan->blocks;
    size_t room = BIT(plan->cluster_bits), at = plan->version == 2 ? HEADER_V2_BYTES : HEADER_V3_BYTES;
    const bool has_data_file = o->data_file && *o->data_file, has_backing = o->backing_file && *o->backing_file;
    store_be32(head, QCOW2_MAGIC);
    store_be32(head + HEADER_VERSION, plan->version);
    store_be32(head + HEADER_CLUSTER_BITS, plan->cluster_bits);
    store_be64(head + HEADER_DISK_BYTES, plan->disk_bytes);
    store_be32(head + HEADER_L1_ENTRIES, (uint32_t)plan->l1_entries);
    store_be64(head + HEADER_L1_OFFSET, l1 << plan->cluster_bits);
    store_be64(head + HEADER_REFCOUNT_TABLE_OFFSET, table << plan->cluster_bits);
    store_be32(head + HEADER_REFCOUNT_TABLE_CLUSTERS, (uint32_t)plan->table_clusters);
    if (plan->version >= 3) {
        store_be64(head + HEADER_INCOMPATIBLE, (has_data_file ? INCOMPATIBLE_EXTERNAL_DATA : 0) |
                                                   (o->zstd ? INCOMPATIBLE_COMPRESSION : 0) |
                                                   (o->extended_l2 ? INCOMPATIBLE_EXTENDED_L2 : 0));
        store_be64(head + HEADER_COMPATIBLE, o->lazy_refcounts ? COMPATIBLE_LAZY_REFCOUNTS : 0);
        store_be64(head + HEADER_AUTOCLEAR, o->data_file_raw ? AUTOCLEAR_RAW_DATA : 0);
        store_be32(head + HEADER_REFCOUNT_ORDER, plan->refcount_order);
        store_be32(head + HEADER_BYTES, HEADER_V3_BYTES);
        head[HEADER_COMPRESSION] = o->zstd ? COMPRESSION_ZSTD : COMPRESSION_DEFLATE;
    }
    if (has_backing && o->backing_format && *o->backing_format)
        put_extension(head, &at, room, EXTENSION_BACKING_FORMAT, o->backing_format, strlen(o->backing_format));
    if (has_data_file)
        put_extension(head, &at, room, EXTENSION_DATA_FILE, o->data_file, strlen(o->data_file));
    if (o->base_id)
        put_extension(head, &at, room, EXTENSION_BASE_ID, o->base_id, BASE_ID_BYTES);
    at += 8; /* the end of the extensions */
    size_t name_bytes = has_backing ? strlen(o->backing_file) : 0;
    if (at + name_bytes > room)
        return refuse(err, "the names of its files do not fit into the image's first cluster", "larger clusters hold more");
    if (has_backing) {
        store_be64(head + HEADER_BACKING_OFFSET, at);
        store_be32(head + HEADER_BACKING_BYTES, (uint32_t)name_bytes);
        memcpy(head + at, o->backing_file, name_bytes);
    }
    return 0;
}

/* `bits` of every refcount are 1: the clusters that the image begins with. */
static void fill_block(const struct plan *plan, uint8_t *block, uint64_t first)
{
    uint64_t per_block = BIT(plan->cluster_bits + 3 - plan->refcount_order);
    for (uint64_t i = 0; i < per_block && first + i < plan->clusters; i++) {
        uint64_t bit = i << plan->refcount_order;
        if (plan->refcount_order < 3)
            block[bit / 8] |= (uint8_t)(1u << bit % 8);
        else
            block[bit / 8 + (BIT(plan->refcount_order) / 8 - 1)] = 1; /* big-endian */
    }
}

/* The header comes last: before it, the file is not an image yet. */
static int write_image(struct block_file *file, const struct plan *plan, imgvm_error *err)
{
    uint64_t cluster_bytes = BIT(plan->cluster_bits), first_block = 1 + plan->table_clusters;
    uint64_t per_block = cluster_bytes * 8 >> plan->refcount_order;
    uint8_t *cluster = malloc(cluster_bytes);
    int result = cluster ? 0 : qcow2_no_memory(err);
    for (uint64_t at = 1; !result && at < plan->clusters; at++) {
        memset(cluster, 0, cluster_bytes);
        if (at < first_block) {
            for (uint64_t i = 0, block = (at - 1) * cluster_bytes / 8; i < cluster_bytes / 8 && block < plan->blocks;
                 i++, block++)
                store_be64(cluster + 8 * i, (first_block + block) << plan->cluster_bits);
        } else if (at < first_block + plan->blocks)
            fill_block(plan, cluster, (at - first_block) * per_block);
        result = file_write(file, at << plan->cluster_bits, cluster, cluster_bytes, err);
    }
    if (!result) {
        memset(cluster, 0, cluster_bytes);
        result = fill_header(plan, cluster, err);
    }
    if (!result)
        result = file_write(file, 0, cluster, cluster_bytes, err);
    free(cluster);
    return result ? result : file_sync(file, err);
}

/* The data file is made too, beside the image when its name is relative. */
static int create_data_file(const char *path, const imgvm_image_options *options, imgvm_error *err)
{
    imgvm_image image = {.file.path = (char *)path};
    struct block_file file;
    char where[PATH_MAX];
    int result = image_resolve(&image, "data file", options->data_file, where, sizeof where, err);
    if (result || (result = file_create(&file, where, err)))
        return result;
    result = file_set_size(&file, options->disk_bytes, err);
    if (result)
        unlink(where);
    file_close(&file);
    return result;
}

int imgvm_image_create_with(const char *path, const imgvm_image_options *options, imgvm_error *err)
{
    struct plan plan = {0};
    struct block_file file;
    int result = plan_image(options, &plan, err);
    if (result || (result = file_create(&file, path, err)))
        return result;
    result = write_image(&file, &plan, err);
    if (!result && options->data_file && *options->data_file)
        result = create_data_file(path, options, err);
    if (result)
        unlink(path);
    file_close(&file);
    return result;
}

int imgvm_image_create(const char *path, uint64_t disk_bytes, uint32_t cluster_bytes, imgvm_error *err)
{
    const imgvm_image_options options = {.disk_bytes = disk_bytes, .cluster_bytes = cluster_bytes};
    return imgvm_image_create_with(path, &options, err);
}
