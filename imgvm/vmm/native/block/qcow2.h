/* SPDX-License-Identifier: MIT */
/* An open qcow2 file. The parts, from the bottom up:
 *
 *    qcow2_header.c     open: every header field checked; small header updates     qcow2_create.c
 *    qcow2_cache.c      L2 tables and refcount blocks in memory
 *    qcow2_refcount.c   who uses which cluster; allocation
 *    qcow2_map.c        guest offset -> cluster; the order of writing metadata back
 *    qcow2_io.c         read and write                                             qcow2_inflate.c
 *    qcow2_snapshot.c   the snapshot table                                         qcow2_config.c, payload.c
 *    qcow2_walk.c, qcow2_check.c   recounts all references
 *
 * The file is untrusted: whatever was read from it is checked where it is used. All functions run under the
 * handle's lock and return 0 or -errno with *err filled.
 *
 * What a power loss finds: nothing on disk refers to a cluster whose content and refcount are not on disk yet,
 * and no refcount falls before the reference is gone. So an interrupted image has leaks at worst. */
#ifndef IMGVM_BLOCK_QCOW2_H
#define IMGVM_BLOCK_QCOW2_H

#include "image.h"
#include "qcow2_format.h"

struct table {
    uint64_t index;  /* in the L1 or refcount table */
    uint64_t offset; /* in the file */
    size_t live;     /* position in table_cache.live */
    bool dirty, used;
    uint8_t data[]; /* one cluster, as on disk */
};

struct table_cache {
    struct table **slots; /* by index; NULL: not in memory */
    uint64_t slot_count;
    struct table **live;
    size_t live_count, live_room, live_limit, hand, dirty_count;
};

/* A table of offsets in host byte order, with the range that must be written back. */
struct offset_table {
    uint64_t offset;
    uint64_t *entries;
    uint64_t count;
    uint64_t dirty_from, dirty_to; /* empty when from >= to */
};

struct snapshot {
    size_t at, bytes; /* its record in snapshot_table */
    uint64_t l1_offset, disk_bytes, vm_state_bytes;
    uint32_t l1_entries;
    uint32_t extra_bytes;
    uint16_t id_bytes, name_bytes;
};

struct blob {
    char name[PAYLOAD_NAME_BYTES];
    uint64_t offset, bytes;
    uint8_t sha256[32];
};

struct config {
    uint32_t snapshot; /* index */
    uint64_t virtual_offset, bytes;
    uint32_t count;
    struct blob *blobs;
};

struct qcow2 {
    imgvm_image *image;
    struct block_file *file;

    unsigned version, cluster_bits, l2_bits, refcount_order, compression;
    uint64_t cluster_bytes;
    uint64_t incompatible, compatible, autoclear;
    uint64_t bitmaps_offset, bitmaps_bytes; /* the bitmap directory, when its extension is valid */
    uint32_t bitmaps_count;
    char backing_file[1024];

    struct offset_table l1, refcounts;
    uint64_t refcount_clusters_on_disk; /* as the header says; smaller than refcounts needs while it moves */
    uint64_t refcount_offset_on_disk;
    struct table_cache l2_cache, block_cache;
    uint64_t free_hint; /* every cluster before it is in use */
    uint64_t *frees;    /* cluster numbers that lose one reference once the metadata is on disk */
    size_t free_count, free_room;
    bool failed;   /* a flush failed: what the disk holds is unknown */
    bool modified; /* autoclear bits are off, as a writer must have them */

    uint8_t *snapshot_table; /* all records, as on disk */
    size_t snapshot_table_bytes;
    uint64_t snapshots_offset;
    struct snapshot *snapshots;
    uint32_t snapshot_count;
    struct config *config; /* NULL: not looked for yet */

    uint8_t *bounce;   /* one cluster for partial writes */
    uint8_t *inflated; /* the cluster that was decompressed last, of L2 entry inflated_entry (0: none) */
    uint8_t *deflated;
    uint64_t inflated_entry;
};

static inline uint64_t clusters_of(const struct qcow2 *q, uint64_t bytes)
{
    return (bytes >> q->cluster_bits) + !!(bytes & (q->cluster_bytes - 1));
}

/* L1 entries that map a disk of this size. */
static inline uint64_t l1_entries_of(unsigned cluster_bits, uint64_t disk_bytes)
{
    unsigned shift = 2 * cluster_bits - 3;
    return (disk_bytes >> shift) + !!(disk_bytes & (BIT(shift) - 1));
}

/* -EIO: "PATH is corrupt: ..." with a hint. */
int qcow2_corrupt(const struct qcow2 *q, imgvm_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int qcow2_no_memory(imgvm_error *err);

/* qcow2_header.c */
int qcow2_open_finish(imgvm_image *image, imgvm_error *err); /* after the backing file is open */
void qcow2_info(const struct qcow2 *q, imgvm_image_info *out);
int qcow2_begin_modify(struct qcow2 *q, imgvm_error *err); /* before the first change of anything */
int qcow2_write_header(struct qcow2 *q, unsigned at, const void *data, size_t bytes, imgvm_error *err);
void qcow2_free(struct qcow2 *q);
/* Does [offset, offset + bytes) touch the header, L1, refcount table or snapshot table? */
bool qcow2_is_fixed_metadata(const struct qcow2 *q, uint64_t offset, uint64_t bytes);
int qcow2_sync(struct qcow2 *q, imgvm_error *err); /* fdatasync; a failure is remembered */

/* qcow2_cache.c */
int cache_init(struct table_cache *cache, uint64_t slots, size_t live_limit, imgvm_error *err);
void cache_free(struct table_cache *cache);
int cache_grow(struct table_cache *cache, uint64_t slots, imgvm_error *err);
int cache_load(struct qcow2 *q, struct table_cache *cache, uint64_t index, uint64_t offset, struct table **out,
               imgvm_error *err);
/* A new table, all zero and dirty; the caller has checked that the slot is empty. */
int cache_add(struct qcow2 *q, struct table_cache *cache, uint64_t index, uint64_t offset, struct table **out,
              imgvm_error *err);
void cache_drop(struct table_cache *cache, struct table *table);
void cache_dirty(struct table_cache *cache, struct table *table);
int cache_write_back(struct qcow2 *q, struct table_cache *cache, imgvm_error *err);
void cache_evict_clean(struct table_cache *cache, size_t keep);

int offset_table_read(struct qcow2 *q, struct offset_table *table, const char *what, imgvm_error *err);
void offset_table_set(struct offset_table *table, uint64_t index, uint64_t entry);
int offset_table_write(struct qcow2 *q, struct offset_table *table, imgvm_error *err);

/* qcow2_refcount.c */
int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out, imgvm_error *err);
int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value, imgvm_error *err);
/* At least `min`, at most `max` neighbouring clusters, refcount 1 each. *got may be NULL when min == max. */
int clusters_alloc(struct qcow2 *q, uint64_t min, uint64_t max, uint64_t *offset, uint64_t *got, imgvm_error *err);
/* Takes back what clusters_alloc gave and nothing on disk refers to. */
void clusters_unalloc(struct qcow2 *q, uint64_t offset, uint64_t count);
/* Drops one reference, after the next write-back. */
int cluster_release_later(struct qcow2 *q, uint64_t offset, imgvm_error *err);
int releases_reserve(struct qcow2 *q, size_t more, imgvm_error *err);
void releases_apply(struct qcow2 *q);

/* qcow2_map.c */
enum cluster_kind { CLUSTER_NONE, CLUSTER_ZERO, CLUSTER_DATA, CLUSTER_COMPRESSED };
struct mapping {
    enum cluster_kind kind;
    uint64_t host;  /* DATA; ZERO when a cluster is kept for it (else 0); COMPRESSED: first byte */
    uint64_t bytes; /* COMPRESSED: at most */
};
int map_decode(const struct qcow2 *q, uint64_t entry, struct mapping *out, imgvm_error *err);
/* The L2 table for reading; NULL when there is none. */
int map_l2(struct qcow2 *q, uint64_t l1_index, struct table **out, imgvm_error *err);
/* The L2 table, made or copied as needed, for changing. */
int map_l2_for_write(struct qcow2 *q, uint64_t l1_index, struct table **out, imgvm_error *err);
int map_release(struct qcow2 *q, const struct mapping *mapping, imgvm_error *err); /* later */
/* After references were dropped that the live tree may have shared: makes its COPIED bits true again. */
int map_refresh_copied(struct qcow2 *q, imgvm_error *err);
int qcow2_write_back(struct qcow2 *q, imgvm_error *err);
/* Keeps memory bounded. Call between operations: tables handed out before may be gone after. */
int qcow2_trim(struct qcow2 *q, imgvm_error *err);

/* qcow2_io.c */
extern const struct image_ops qcow2_ops;
/* One whole cluster of the guest's disk through L2 entry `entry`. */
int cluster_read(struct qcow2 *q, uint64_t entry, uint64_t guest_offset, void *data, imgvm_error *err);
/* qcow2_inflate.c: fills q->inflated. */
int cluster_inflate(struct qcow2 *q, uint64_t entry, const struct mapping *mapping, imgvm_error *err);

/* qcow2_snapshot.c */
int snapshots_load(struct qcow2 *q, uint64_t offset, uint32_t count, imgvm_error *err);
int qcow2_snapshot_info(const struct qcow2 *q, uint32_t index, imgvm_snapshot_info *out);
/* The record of snapshot `index` is replaced by `record` (index == snapshot_count: appended), on disk by one
 * header write. */
int snapshots_replace(struct qcow2 *q, uint32_t index, const uint8_t *record, size_t bytes, imgvm_error *err);

/* Everything that an L1 table refers to, the table itself included: one visit a reference. `broken` hears of what
 * cannot be followed; it (as visit) ends the walk by returning an error. No L2 table is entered twice. */
enum reference { REFERENCE_L1, REFERENCE_L2, REFERENCE_DATA, REFERENCE_COMPRESSED };
struct walker {
    int (*visit)(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err);
    int (*broken)(void *opaque, const char *what, uint64_t value, imgvm_error *err);
    void *opaque;
};
int l1_walk(struct qcow2 *q, uint64_t l1_offset, uint64_t l1_entries, const struct walker *walker, imgvm_error *err);

/* qcow2_config.c */
int config_load(struct qcow2 *q, imgvm_error *err); /* -ENOENT without a message when there is none */
void config_forget(struct qcow2 *q);
uint32_t config_count(const struct qcow2 *q);
int config_info(const struct qcow2 *q, uint32_t index, imgvm_blob_info *out, imgvm_error *err);
int config_read(struct qcow2 *q, uint32_t index, void *data, uint64_t bytes, imgvm_error *err);
/* payload.c: the bytes that a set of blobs becomes */
struct payload_layout {
    uint64_t bytes, head_bytes;
    uint8_t *head; /* head and index */
    uint64_t *offsets;
};
int payload_layout(const imgvm_payload *payload, struct payload_layout *out, imgvm_error *err);
void payload_layout_free(struct payload_layout *layout);
/* `bytes` of the payload from `at` on, zeros past its end. */
void payload_fill(const imgvm_payload *payload, const struct payload_layout *layout, uint64_t at, uint8_t *out,
                  uint64_t bytes);

int config_set(struct qcow2 *q, const imgvm_payload *payload, uint32_t date_sec, imgvm_error *err);

/* qcow2_check.c */
int qcow2_check(struct qcow2 *q, uint64_t *leaks, uint64_t *corruptions, imgvm_error *err);
int qcow2_repair_refcounts(struct qcow2 *q, imgvm_error *err);

#endif
