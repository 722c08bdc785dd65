/* SPDX-License-Identifier: MIT */
/* Follows an L1 table through its L2 tables. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/sha256.h"
#include "qcow2.h"

/* So many clusters are recounted in memory; 16 TiB with clusters of 64 KiB. */
#define CLUSTERS_MAX (UINT64_C(1) << 28)

static bool is_table(const struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    return offset && !(offset & (q->cluster_bytes - 1)) && offset <= q->file->bytes &&
           bytes <= q->file->bytes - offset;
}

static int walk_l2(struct qcow2 *q, const uint8_t *table, const struct walker *walker, imgvm_error *err)
{
    int result = 0;
    for (uint64_t i = 0; !result && i < BIT(q->l2_bits); i++) {
        struct l2_entry entry = l2_parse(q, table + (i << (q->cluster_bits - q->l2_bits)));
        struct mapping mapping;
        if (!entry.word && !entry.bitmap)
            continue;
        if (map_decode(q, entry, 0, &mapping, NULL)) {
            result = walker->broken(walker->opaque, "a cluster's offset", entry.word, err);
            continue;
        }
        if (mapping.kind != CLUSTER_COMPRESSED) {
            if (mapping.placed && !has_data_file(q))
                result = walker->visit(walker->opaque, REFERENCE_DATA, mapping.host, entry.word, err);
            continue;
        }
        uint64_t last = align_down(mapping.host + mapping.bytes - 1, q->cluster_bytes);
        for (uint64_t host = align_down(mapping.host, q->cluster_bytes); !result && host <= last;
             host += q->cluster_bytes)
            result = walker->visit(walker->opaque, REFERENCE_COMPRESSED, host, entry.word, err);
    }
    return result;
}

static int walk_l1(struct qcow2 *q, const uint8_t *l1, uint64_t entries, uint8_t *seen, uint8_t *table,
                   const struct walker *walker, imgvm_error *err)
{
    int result = 0;
    for (uint64_t i = 0; !result && i < entries; i++) {
        uint64_t entry = load_be64(l1 + 8 * i), offset = entry & ENTRY_OFFSET_MASK;
        uint64_t cluster = offset >> q->cluster_bits;
        if (!offset)
            continue;
        if (!is_table(q, offset, 1)) {
            result = walker->broken(walker->opaque, "an L2 table's offset", entry, err);
            continue;
        }
        if ((result = walker->visit(walker->opaque, REFERENCE_L2, offset, entry, err)))
            break;
        if (seen[cluster / 8] >> cluster % 8 & 1) {
            result = walker->broken(walker->opaque, "an L2 table used twice", entry, err);
            continue;
        }
        seen[cluster / 8] |= (uint8_t)(1u << cluster % 8);
        result = file_read(q->file, offset, table, q->cluster_bytes, err);
        if (!result)
            result = walk_l2(q, table, walker, err);
    }
    return result;
}

int l1_walk(struct qcow2 *q, uint64_t l1_offset, uint64_t l1_entries, const struct walker *walker, imgvm_error *err)
{
    uint64_t bytes = l1_entries * 8, file_clusters = clusters_of(q, q->file->bytes);
    if (!l1_entries)
        return 0;
    if (bytes > L1_BYTES_MAX || !is_table(q, l1_offset, bytes))
        return walker->broken(walker->opaque, "an L1 table's offset", l1_offset, err);
    if (file_clusters > CLUSTERS_MAX)
        return error_set(err, EFBIG, "%s has too many clusters to examine", q->file->path);
    uint8_t *l1 = malloc(bytes), *seen = calloc(1, file_clusters / 8 + 1), *table = malloc(q->cluster_bytes);
    int result = l1 && seen && table ? 0 : qcow2_no_memory(err);
    if (!result) /* first of all: a visitor may release what it sees */
        result = file_read(q->file, l1_offset, l1, bytes, err);
    for (uint64_t at = 0; !result && at < bytes; at += q->cluster_bytes)
        result = walker->visit(walker->opaque, REFERENCE_L1, l1_offset + at, 0, err);
    if (!result)
        result = walk_l1(q, l1, l1_entries, seen, table, walker, err);
    free(l1);
    free(seen);
    free(table);
    return result;
}

static int add_to_digest(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    (void)host;
    (void)err;
    uint8_t word[8];
    if (kind != REFERENCE_DATA && kind != REFERENCE_COMPRESSED)
        return 0;
    store_be64(word, entry & ~ENTRY_COPIED);
    sha256_update(opaque, word, sizeof word);
    return 0;
}

static int refuse_broken(void *opaque, const char *what, uint64_t value, imgvm_error *err)
{
    (void)opaque;
    return error_set(err, EIO, "%s is %#llx", what, (unsigned long long)value);
}

int map_digest(struct qcow2 *q, uint8_t digest[32], imgvm_error *err)
{
    struct sha256 sha;
    sha256_init(&sha);
    const struct walker walker = {add_to_digest, refuse_broken, &sha};
    int result = l1_walk(q, q->l1.offset, q->l1.count, &walker, err);
    sha256_final(&sha, digest);
    return result;
}
