/* SPDX-License-Identifier: MIT */
/* Opening: every field of the header is checked before anything is built on it. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

/* Memory for tables. With clusters of 64 KiB, 32 MiB of L2 tables map 256 GiB of disk. */
#define L2_CACHE_BYTES (UINT64_C(32) << 20)
#define REFCOUNT_CACHE_BYTES (UINT64_C(16) << 20)
#define CACHE_TABLES_MIN 8

int qcow2_corrupt(const struct qcow2 *q, imgvm_error *err, const char *format, ...)
{
    char what[256];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    error_set(err, EIO, "%s is corrupt: %s", q->file->path, what);
    error_hint(err, "`imgvm check` or `qemu-img check` lists the damage; restore a copy");
    return -EIO;
}

int qcow2_no_memory(imgvm_error *err)
{
    return error_set(err, ENOMEM, "out of memory");
}

static bool overlaps(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

bool qcow2_is_fixed_metadata(const struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    for (const struct disk_map *map = q->further; map; map = map->next)
        if (overlaps(offset, bytes, map->l1.offset, map->l1.count * 8))
            return true;
    return overlaps(offset, bytes, 0, q->cluster_bytes) ||
           overlaps(offset, bytes, q->l1.offset, q->l1.count * 8) ||
           overlaps(offset, bytes, q->refcounts.offset, q->refcounts.count * 8) ||
           overlaps(offset, bytes, q->refcount_offset_on_disk, q->refcount_clusters_on_disk << q->cluster_bits) ||
           overlaps(offset, bytes, q->snapshots_offset, q->snapshot_table_bytes);
}

static int unsupported(const struct qcow2 *q, imgvm_error *err, const char *what, const char *hint)
{
    error_set(err, ENOTSUP, "%s uses %s, which imgvm does not support", q->file->path, what);
    return error_hint(err, "%s", hint);
}

/* The name that the image itself gives to an incompatible feature bit, or "". */
static void feature_name(const uint8_t *names, size_t bytes, unsigned bit, char out[48])
{
    out[0] = 0;
    for (size_t at = 0; names && at + FEATURE_NAME_RECORD_BYTES <= bytes; at += FEATURE_NAME_RECORD_BYTES)
        if (names[at] == 0 && names[at + 1] == bit) {
            memcpy(out, names + at + 2, 46);
            out[46] = 0;
            for (char *c = out; *c; c++)
                if (*c < ' ' || *c > '~')
                    *c = '?';
        }
}

static int check_features(const struct qcow2 *q, const uint8_t *names, size_t names_bytes, imgvm_error *err)
{
    uint64_t known = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_EXTERNAL_DATA |
                     INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2;
    for (unsigned bit = 0; bit < 64; bit++)
        if ((q->incompatible & ~known) >> bit & 1) {
            char name[48], what[128];
            feature_name(names, names_bytes, bit, name);
            snprintf(what, sizeof what, name[0] ? "feature \"%s\" (incompatible bit %u)"
                                                : "an unknown feature%s (incompatible bit %u)", name, bit);
            return unsupported(q, err, what, "a newer imgvm or the program that wrote the image may know it");
        }
    if (q->image->writable && !q->image->repairing && q->incompatible & INCOMPATIBLE_CORRUPT) {
        error_set(err, EIO, "%s is marked corrupt and can only be read", q->file->path);
        return error_hint(err, "copy it, then try `imgvm check --repair all` on the copy");
    }
    return 0;
}

struct extensions {
    const uint8_t *feature_names;
    size_t feature_names_bytes;
};

static int parse_extensions(struct qcow2 *q, const uint8_t *head, size_t head_bytes, size_t at,
                            struct extensions *out, struct backing_name *backing, imgvm_error *err)
{
    size_t end = head_bytes;
    uint64_t backing_offset = load_be64(head + HEADER_BACKING_OFFSET);
    if (backing_offset)
        end = MIN(end, backing_offset);
    while (at + 8 <= end) {
        uint32_t type = load_be32(head + at);
        size_t bytes = load_be32(head + at + 4);
        if (type == EXTENSION_END)
            return 0;
        at += 8;
        if (bytes > end - at)
            return qcow2_corrupt(q, err, "header extension %#x has %zu bytes", type, bytes);
        const uint8_t *data = head + at;
        if (type == EXTENSION_BACKING_FORMAT) {
            if (bytes >= sizeof backing->format)
                return qcow2_corrupt(q, err, "the format name of its backing file has %zu bytes", bytes);
            memcpy(backing->format, data, bytes);
        } else if (type == EXTENSION_FEATURE_NAMES) {
            out->feature_names = data;
            out->feature_names_bytes = bytes;
        } else if (type == EXTENSION_BITMAPS && bytes >= 24 && q->autoclear & AUTOCLEAR_BITMAPS) {
            q->bitmaps_count = load_be32(data);
            q->bitmaps_bytes = load_be64(data + 8);
            q->bitmaps_offset = load_be64(data + 16);
        } else if (type == EXTENSION_DATA_FILE) {
            if (bytes >= sizeof q->data_file)
                return qcow2_corrupt(q, err, "the name of its data file has %zu bytes", bytes);
            memcpy(q->data_file, data, bytes);
        } else if (type == EXTENSION_BASE_ID) {
            if (bytes != sizeof q->base_id)
                return qcow2_corrupt(q, err, "what it was laid over is said in %zu bytes", bytes);
            memcpy(q->base_id, data, bytes);
        }
        at += align_up(bytes, 8);
    }
    return 0;
}

static int parse_backing_name(struct qcow2 *q, const uint8_t *head, size_t head_bytes, struct backing_name *backing,
                              imgvm_error *err)
{
    uint64_t offset = load_be64(head + HEADER_BACKING_OFFSET);
    uint32_t bytes = load_be32(head + HEADER_BACKING_BYTES);
    if (!offset || !bytes)
        return 0;
    if (bytes > BACKING_NAME_BYTES_MAX || offset > head_bytes || bytes > head_bytes - offset)
        return qcow2_corrupt(q, err, "the name of its backing file (%u bytes at %" PRIu64 ") is not in the header",
                             bytes, offset);
    memcpy(backing->name, head + offset, bytes);
    memcpy(q->backing_file, backing->name, sizeof q->backing_file);
    return 0;
}

static int parse_version(struct qcow2 *q, const uint8_t *head, uint64_t *header_bytes, imgvm_error *err)
{
    q->version = load_be32(head + HEADER_VERSION);
    if (q->version != 2 && q->version != 3) {
        error_set(err, ENOTSUP, "%s has qcow version %u; versions 2 and 3 are supported", q->file->path, q->version);
        return error_hint(err, "`qemu-img convert -O qcow2` converts it");
    }
    if (q->file->bytes < (q->version == 2 ? HEADER_V2_BYTES : HEADER_V3_BYTES_MIN))
        return qcow2_corrupt(q, err, "it is cut off inside the header (%" PRIu64 " bytes)", q->file->bytes);
    q->cluster_bits = load_be32(head + HEADER_CLUSTER_BITS);
    if (q->cluster_bits < CLUSTER_BITS_MIN || q->cluster_bits > CLUSTER_BITS_MAX)
        return qcow2_corrupt(q, err, "its cluster size is 2^%u bytes", q->cluster_bits);
    q->cluster_bytes = BIT(q->cluster_bits);
    q->l2_bits = q->cluster_bits - 3;
    q->subclusters = 1;
    q->subcluster_bits = q->cluster_bits;
    q->refcount_order = 4;
    *header_bytes = HEADER_V2_BYTES;
    if (q->version == 3) {
        q->incompatible = load_be64(head + HEADER_INCOMPATIBLE);
        q->compatible = load_be64(head + HEADER_COMPATIBLE);
        q->autoclear = load_be64(head + HEADER_AUTOCLEAR);
        q->refcount_order = load_be32(head + HEADER_REFCOUNT_ORDER);
        *header_bytes = load_be32(head + HEADER_BYTES);
        if (q->refcount_order > REFCOUNT_ORDER_MAX)
            return qcow2_corrupt(q, err, "its refcounts have 2^%u bits", q->refcount_order);
        if (*header_bytes < HEADER_V3_BYTES_MIN || *header_bytes > q->cluster_bytes || *header_bytes % 8)
            return qcow2_corrupt(q, err, "its header has %" PRIu64 " bytes", *header_bytes);
        if (*header_bytes > HEADER_COMPRESSION)
            q->compression = head[HEADER_COMPRESSION];
    }
    if (q->incompatible & INCOMPATIBLE_EXTENDED_L2) {
        if (q->cluster_bits < EXTENDED_CLUSTER_BITS_MIN)
            return qcow2_corrupt(q, err, "its clusters of 2^%u bytes are too small for subclusters", q->cluster_bits);
        q->l2_bits = q->cluster_bits - 4;
        q->subclusters = SUBCLUSTERS;
        q->subcluster_bits = q->cluster_bits - 5;
    }
    return 0;
}

static int check_compression(const struct qcow2 *q, imgvm_error *err)
{
    if (q->compression > COMPRESSION_ZSTD)
        return unsupported(q, err, "an unknown compression type", "a newer imgvm may know it");
    if (!!q->compression != !!(q->incompatible & INCOMPATIBLE_COMPRESSION))
        return qcow2_corrupt(q, err, "its compression type %u contradicts its feature bits", q->compression);
    return 0;
}

static int parse_tables(struct qcow2 *q, const uint8_t *head, imgvm_error *err)
{
    uint64_t disk_bytes = load_be64(head + HEADER_DISK_BYTES);
    q->l1.count = load_be32(head + HEADER_L1_ENTRIES);
    q->l1.offset = load_be64(head + HEADER_L1_OFFSET);
    if (disk_bytes > INT64_MAX || l1_entries_of(l1_shift(q), disk_bytes) > L1_BYTES_MAX / 8)
        return qcow2_corrupt(q, err, "a disk of %" PRIu64 " bytes is too large for its clusters", disk_bytes);
    if (q->l1.count > L1_BYTES_MAX / 8 || q->l1.count < l1_entries_of(l1_shift(q), disk_bytes))
        return qcow2_corrupt(q, err, "its L1 table has %" PRIu64 " entries for a disk of %" PRIu64 " bytes",
                             q->l1.count, disk_bytes);
    q->image->disk_bytes = disk_bytes;

    q->refcounts.offset = q->refcount_offset_on_disk = load_be64(head + HEADER_REFCOUNT_TABLE_OFFSET);
    q->refcount_clusters_on_disk = load_be32(head + HEADER_REFCOUNT_TABLE_CLUSTERS);
    if (!q->refcount_clusters_on_disk || q->refcount_clusters_on_disk << q->cluster_bits > REFCOUNT_TABLE_BYTES_MAX)
        return qcow2_corrupt(q, err, "its refcount table has %" PRIu64 " clusters", q->refcount_clusters_on_disk);
    q->refcounts.count = q->refcount_clusters_on_disk << (q->cluster_bits - 3);

    int result = offset_table_read(q, &q->l1, "L1 table", err);
    if (!result)
        result = offset_table_read(q, &q->refcounts, "refcount table", err);
    if (!result)
        result = snapshots_load(q, load_be64(head + HEADER_SNAPSHOTS_OFFSET), load_be32(head + HEADER_SNAPSHOTS), err);
    if (result)
        return result;

    const struct { const char *name; uint64_t offset, bytes; } tables[] = {
        {"header", 0, q->cluster_bytes},
        {"L1 table", q->l1.offset, q->l1.count * 8},
        {"refcount table", q->refcounts.offset, q->refcounts.count * 8},
        {"snapshot table", q->snapshots_offset, q->snapshot_table_bytes},
    };
    for (size_t i = 0; i < ARRAY_LEN(tables); i++)
        for (size_t j = 0; j < i; j++)
            if (tables[i].bytes && tables[j].bytes &&
                overlaps(tables[i].offset, tables[i].bytes, tables[j].offset, tables[j].bytes))
                return qcow2_corrupt(q, err, "its %s lies over its %s", tables[i].name, tables[j].name);
    return 0;
}

static int make_caches(struct qcow2 *q, imgvm_error *err)
{
    int result = cache_init(&q->l2_cache, q->l1.count, MAX(L2_CACHE_BYTES >> q->cluster_bits, CACHE_TABLES_MIN), err);
    if (!result)
        result = cache_init(&q->block_cache, q->refcounts.count,
                            MAX(REFCOUNT_CACHE_BYTES >> q->cluster_bits, CACHE_TABLES_MIN), err);
    return result ? result : inflaters_init(q, err);
}

static int open_data_file(struct qcow2 *q, imgvm_error *err)
{
    imgvm_image *image = q->image;
    char path[PATH_MAX];
    if (!(q->incompatible & INCOMPATIBLE_EXTERNAL_DATA))
        return 0;
    if (!q->data_file[0]) {
        error_set(err, ENOTSUP, "%s does not name its external data file", q->file->path);
        return error_hint(err, "`qemu-img amend -o data_file=NAME` writes the name into it");
    }
    int result = image_resolve(image, "data file", q->data_file, path, sizeof path, err);
    if (!result)
        result = file_open(&image->data_file, path, image->writable, err);
    if (result) {
        image->data_file.fd = -1;
        return result;
    }
    if (image->data_file.device == q->file->device && image->data_file.inode == q->file->inode)
        return qcow2_corrupt(q, err, "it is its own data file");
    q->data = &image->data_file;
    return 0;
}

static int open_checked(struct qcow2 *q, uint8_t *head, size_t head_bytes, struct backing_name *backing,
                        imgvm_error *err)
{
    uint64_t header_bytes = 0;
    struct extensions extensions = {0};
    if (q->file->bytes < HEADER_V2_BYTES)
        return qcow2_corrupt(q, err, "it is cut off inside the header (%" PRIu64 " bytes)", q->file->bytes);
    int result = parse_version(q, head, &header_bytes, err);
    if (result)
        return result;
    head_bytes = MIN(head_bytes, q->cluster_bytes); /* all of the header lives in the first cluster */
    if ((result = parse_extensions(q, head, head_bytes, header_bytes, &extensions, backing, err)) ||
        (result = check_features(q, extensions.feature_names, extensions.feature_names_bytes, err)) ||
        (result = check_compression(q, err)))
        return result;
    switch (load_be32(head + HEADER_CRYPT)) {
    case CRYPT_NONE:
        break;
    case CRYPT_AES:
        return unsupported(q, err, "AES encryption", "`qemu-img convert` with its passphrase decrypts it");
    case CRYPT_LUKS:
        return unsupported(q, err, "LUKS encryption", "`qemu-img convert` with its passphrase decrypts it");
    default:
        return qcow2_corrupt(q, err, "its encryption method is %u", load_be32(head + HEADER_CRYPT));
    }
    q->used_end = align_up(q->file->bytes, q->cluster_bytes);
    if ((result = parse_backing_name(q, head, head_bytes, backing, err)) || (result = parse_tables(q, head, err)) ||
        (result = make_caches(q, err)))
        return result;
    return open_data_file(q, err);
}

int qcow2_open(imgvm_image *image, struct backing_name *backing, imgvm_error *err)
{
    struct qcow2 *q = calloc(1, sizeof *q);
    /* The first cluster, whatever its size: a short file reads as if zeros followed. */
    size_t head_bytes = MAX(MIN(image->file.bytes, BIT(CLUSTER_BITS_MAX)), BIT(CLUSTER_BITS_MIN));
    uint8_t *head = malloc(head_bytes);
    int result = q && head ? 0 : qcow2_no_memory(err);
    if (!result) {
        q->image = image;
        q->file = q->data = &image->file;
        result = file_read(q->file, 0, head, head_bytes, err);
    }
    if (!result)
        result = open_checked(q, head, head_bytes, backing, err);
    free(head);
    if (result) {
        qcow2_free(q);
        return result;
    }
    image->qcow2 = q;
    image->ops = &qcow2_ops;
    return 0;
}

int qcow2_open_finish(imgvm_image *image, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    if (!image->writable || image->repairing || !(q->incompatible & INCOMPATIBLE_DIRTY))
        return 0;
    /* Somebody with lazy refcounts did not close the image: count anew before allocating anything. */
    int result = qcow2_repair_refcounts(q, err);
    return result ? result : qcow2_set_incompatible(q, INCOMPATIBLE_DIRTY, false, err);
}
