/* SPDX-License-Identifier: MIT */
/* A new, empty image: header, refcount table, refcount blocks, L1 table, in this order. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qcow2.h"

#define CLUSTER_BYTES_DEFAULT 65536u
#define REFCOUNT_ORDER 4u /* 16 bits */

struct plan {
    unsigned cluster_bits;
    uint64_t disk_bytes, l1_entries;
    uint64_t table_clusters, blocks, l1_clusters, clusters;
};

static int plan_image(uint64_t disk_bytes, uint32_t cluster_bytes, struct plan *out, imgvm_error *err)
{
    if (!cluster_bytes)
        cluster_bytes = CLUSTER_BYTES_DEFAULT;
    if (cluster_bytes & (cluster_bytes - 1) || cluster_bytes < BIT(CLUSTER_BITS_MIN) ||
        cluster_bytes > BIT(CLUSTER_BITS_MAX)) {
        error_set(err, EINVAL, "clusters of %u bytes are not possible", cluster_bytes);
        return error_hint(err, "a power of two from 512 to 2097152 (2 MiB)");
    }
    if (disk_bytes % 512) {
        error_set(err, EINVAL, "a disk of %" PRIu64 " bytes is not possible", disk_bytes);
        return error_hint(err, "disks have whole sectors of 512 bytes");
    }
    *out = (struct plan){.cluster_bits = (unsigned)__builtin_ctz(cluster_bytes), .disk_bytes = disk_bytes};
    out->l1_entries = l1_entries_of(out->cluster_bits, disk_bytes);
    if (disk_bytes > INT64_MAX || out->l1_entries > L1_BYTES_MAX / 8) {
        error_set(err, EFBIG, "a disk of %" PRIu64 " bytes is too large for clusters of %u bytes", disk_bytes,
                  cluster_bytes);
        return error_hint(err, "larger clusters allow larger disks");
    }
    out->l1_clusters = MAX((out->l1_entries * 8 + cluster_bytes - 1) / cluster_bytes, 1);
    /* The refcount blocks count themselves. */
    uint64_t per_block = BIT(out->cluster_bits + 3 - REFCOUNT_ORDER);
    for (uint64_t blocks = 0; blocks != out->blocks || !blocks;) {
        out->blocks = MAX(blocks, 1);
        out->table_clusters = (out->blocks * 8 + cluster_bytes - 1) / cluster_bytes;
        out->clusters = 1 + out->table_clusters + out->blocks + out->l1_clusters;
        blocks = (out->clusters + per_block - 1) / per_block;
    }
    return 0;
}

static void fill_header(const struct plan *plan, uint8_t *head)
{
    uint64_t table = 1, l1 = table + plan->table_clusters + plan->blocks;
    store_be32(head, QCOW2_MAGIC);
    store_be32(head + HEADER_VERSION, 3);
    store_be32(head + HEADER_CLUSTER_BITS, plan->cluster_bits);
    store_be64(head + HEADER_DISK_BYTES, plan->disk_bytes);
    store_be32(head + HEADER_L1_ENTRIES, (uint32_t)plan->l1_entries);
    store_be64(head + HEADER_L1_OFFSET, l1 << plan->cluster_bits);
    store_be64(head + HEADER_REFCOUNT_TABLE_OFFSET, table << plan->cluster_bits);
    store_be32(head + HEADER_REFCOUNT_TABLE_CLUSTERS, (uint32_t)plan->table_clusters);
    store_be32(head + HEADER_REFCOUNT_ORDER, REFCOUNT_ORDER);
    store_be32(head + HEADER_BYTES, HEADER_V3_BYTES);
}

/* The header comes last: before it, the file is not an image yet. */
static int write_image(struct block_file *file, const struct plan *plan, imgvm_error *err)
{
    uint64_t cluster_bytes = BIT(plan->cluster_bits), first_block = 1 + plan->table_clusters;
    uint64_t per_block = cluster_bytes * 8 >> REFCOUNT_ORDER;
    uint8_t *cluster = malloc(cluster_bytes);
    int result = cluster ? 0 : qcow2_no_memory(err);
    for (uint64_t at = 1; !result && at < plan->clusters; at++) {
        memset(cluster, 0, cluster_bytes);
        if (at < first_block) {
            for (uint64_t i = 0, block = (at - 1) * cluster_bytes / 8; i < cluster_bytes / 8 && block < plan->blocks;
                 i++, block++)
                store_be64(cluster + 8 * i, (first_block + block) << plan->cluster_bits);
        } else if (at < first_block + plan->blocks) {
            for (uint64_t i = 0; i < per_block && (at - first_block) * per_block + i < plan->clusters; i++)
                store_be16(cluster + 2 * i, 1);
        }
        result = file_write(file, at << plan->cluster_bits, cluster, cluster_bytes, err);
    }
    if (!result) {
        memset(cluster, 0, cluster_bytes);
        fill_header(plan, cluster);
        result = file_write(file, 0, cluster, cluster_bytes, err);
    }
    free(cluster);
    return result ? result : file_sync(file, err);
}

int imgvm_image_create(const char *path, uint64_t disk_bytes, uint32_t cluster_bytes, imgvm_error *err)
{
    struct plan plan = {0};
    struct block_file file;
    int result = plan_image(disk_bytes, cluster_bytes, &plan, err);
    if (result || (result = file_create(&file, path, err)))
        return result;
    result = write_image(&file, &plan, err);
    if (result)
        unlink(path);
    file_close(&file);
    return result;
}
