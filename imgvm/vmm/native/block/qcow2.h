/* SPDX-License-Identifier: MIT */
/* An open qcow2 file. The parts, from the bottom up:
 *
 *    qcow2_header.c     open: every header field checked; small header updates     qcow2_create.c
 *    qcow2_cache.c      L2 tables and refcount blocks in memory
 *    qcow2_refcount.c   who uses which cluster; allocation
 *    qcow2_map.c        guest offset -> cluster; the order of writing metadata back
 *    qcow2_read.c       reads, also while others read                              qcow2_inflate.c
 *    qcow2_write.c      writes, while others read and write                        qcow2_compress.c
 *    qcow2_claim.c      new clusters for what is written
 *    qcow2_discard.c    zeroing, discarding, unmapping                             qcow2_resize.c
 *    qcow2_table.c      the snapshot table              qcow2_snapshot.c           what is done with snapshots
 *    qcow2_disk.c       further disks of the machine in the same file
 *    qcow2_beyond.c     data beyond the disk            qcow2_config.c, payload.c  the embedded configuration
 *    qcow2_walk.c, qcow2_check.c, qcow2_repair.c   recount all references
 *
 * The file is untrusted: whatever was read from it is checked where it is used. Functions return 0 or -errno with *err
 * filled. They run in the handle's exclusive turn, except those named *_shared (image.h says what that is).
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

/* The map of a further disk; while that disk has its turn, the first disk's. */
struct disk_map {
    struct offset_table l1;
    struct table_cache l2_cache;
    imgvm_image *holder; /* the handle of the file */
    struct disk_map *next;
};

struct qcow2 {
    imgvm_image *image; /* whose map l1 and l2_cache are */
    struct block_file *file;

    struct block_file *data; /* where data clusters are: the same file, or an external data file */

    unsigned version, cluster_bits, l2_bits, refcount_order, compression;
    unsigned subclusters;     /* in a cluster: 1, or 32 with extended L2 entries */
    unsigned subcluster_bits; /* log2 of a subcluster's bytes */
    uint64_t cluster_bytes;
    uint64_t incompatible, compatible, autoclear;
    uint64_t bitmaps_offset, bitmaps_bytes; /* the bitmap directory, when its extension is valid */
    uint32_t bitmaps_count;
    char data_file[1024];
    char backing_file[1024];

    struct offset_table l1, refcounts;
    uint64_t refcount_clusters_on_disk; /* as the header says; smaller than refcounts needs while it moves */
    uint64_t refcount_offset_on_disk;
    struct table_cache l2_cache, block_cache;
    struct disk_map *further; /* all maps but the one in l1 and l2_cache */
    uint64_t free_hint; /* every cluster before it is in use */
    uint64_t used_end;  /* nothing from here on in the file was ever in use: all is zero */
    uint64_t appended, reserved_end; /* data put there since the file is open; space taken ahead */
    struct claim *claims;
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

    struct inflaters *inflaters; /* each with a cluster that it decompressed */
    uint64_t packed_at;         /* where the next compressed cluster may go: inside a cluster that has room (0: none) */
};

static inline uint64_t clusters_of(const struct qcow2 *q, uint64_t bytes)
{
    return (bytes >> q->cluster_bits) + !!(bytes & (q->cluster_bytes - 1));
}

/* log2 of the disk that an L2 table maps */
static inline unsigned l1_shift(const struct qcow2 *q)
{
    return q->cluster_bits + q->l2_bits;
}

/* L1 entries that map a disk of this size. */
static inline uint64_t l1_entries_of(unsigned l1_shift, uint64_t disk_bytes)
{
    return (disk_bytes >> l1_shift) + !!(disk_bytes & (BIT(l1_shift) - 1));
}

static inline uint64_t l2_index(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->cluster_bits & (BIT(q->l2_bits) - 1);
}

static inline unsigned subcluster_of(const struct qcow2 *q, uint64_t offset)
{
    return (unsigned)(offset >> q->subcluster_bits & (q->subclusters - 1));
}

/* Data clusters in an external file are not counted: each belongs to the guest's cluster at the same offset. */
static inline bool has_data_file(const struct qcow2 *q)
{
    return q->data != q->file;
}

/* -EIO: "PATH is corrupt: ..." with a hint. */
int qcow2_corrupt(const struct qcow2 *q, imgvm_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int qcow2_no_memory(imgvm_error *err);

/* qcow2_header.c */
int qcow2_open_finish(imgvm_image *image, imgvm_error *err); /* after the backing file is open */
/* Does [offset, offset + bytes) touch the header, L1, refcount table or snapshot table? */
bool qcow2_is_fixed_metadata(const struct qcow2 *q, uint64_t offset, uint64_t bytes);

/* qcow2_state.c */
extern const struct image_ops qcow2_ops;
void qcow2_info(const struct qcow2 *q, imgvm_image_info *out);
int qcow2_begin_modify(struct qcow2 *q, imgvm_error *err); /* before the first change of anything */
int qcow2_write_header(struct qcow2 *q, unsigned at, const void *data, size_t bytes, imgvm_error *err);
/* Sets or clears incompatible feature bits, on disk when it returns. Version 2 has none: nothing happens. */
int qcow2_set_incompatible(struct qcow2 *q, uint64_t bits, bool on, imgvm_error *err);
void qcow2_free(struct qcow2 *q);
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
uint64_t refcount_max(const struct qcow2 *q);
int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value, imgvm_error *err);
/* At least `min`, at most `max` neighbouring clusters, refcount 1 each. *got may be NULL when min == max. */
int clusters_alloc(struct qcow2 *q, uint64_t min, uint64_t max, uint64_t *offset, uint64_t *got, imgvm_error *err);
/* Takes back what clusters_alloc gave and nothing on disk refers to. */
void clusters_unalloc(struct qcow2 *q, uint64_t offset, uint64_t count);
/* A place for `bytes` (less than a cluster) of compressed data; each cluster that it touches counts a reference more. */
int bytes_alloc(struct qcow2 *q, uint64_t bytes, uint64_t *offset, imgvm_error *err);
void bytes_unalloc(struct qcow2 *q, uint64_t offset, uint64_t bytes);
/* Drops one reference, after the next write-back. */
int cluster_release_later(struct qcow2 *q, uint64_t offset, imgvm_error *err);
int releases_reserve(struct qcow2 *q, size_t more, imgvm_error *err);
void releases_apply(struct qcow2 *q);

/* qcow2_map.c */
/* An L2 entry, the same for all images: what ENTRY_ZERO says without extended L2 entries is in `bitmap`, whose
 * subcluster is then the whole cluster; a cluster of data has bit 0 set. */
struct l2_entry {
    uint64_t word;   /* without ENTRY_ZERO */
    uint64_t bitmap; /* 0 for compressed clusters */
};
enum cluster_kind { CLUSTER_NONE, CLUSTER_ZERO, CLUSTER_DATA, CLUSTER_COMPRESSED };
struct mapping {
    enum cluster_kind kind; /* of the subcluster that was asked for */
    bool placed;            /* DATA, ZERO, NONE: the cluster has a place, at `host` */
    uint64_t host;          /* COMPRESSED: first byte */
    uint64_t bytes;         /* COMPRESSED: at most */
};
struct l2_entry l2_load(const struct qcow2 *q, const struct table *table, uint64_t index);
struct l2_entry l2_parse(const struct qcow2 *q, const uint8_t *data);
void l2_store(struct qcow2 *q, struct table *table, uint64_t index, struct l2_entry entry); /* makes it dirty */
void l2_format(const struct qcow2 *q, uint8_t *data, struct l2_entry entry);
/* The entry of a cluster at `host` that holds nothing but data. `copied`: it is ours alone. */
struct l2_entry l2_data_entry(const struct qcow2 *q, uint64_t host, bool copied);
/* The bits of all subclusters: allocated, zero. */
static inline uint64_t bitmap_allocated(const struct qcow2 *q) { return BIT(q->subclusters) - 1; }
static inline uint64_t bitmap_zero(const struct qcow2 *q) { return (BIT(q->subclusters) - 1) << SUBCLUSTERS; }
int map_decode(const struct qcow2 *q, struct l2_entry entry, unsigned subcluster, struct mapping *out,
               imgvm_error *err);
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
bool qcow2_is_crowded(const struct qcow2 *q); /* trimming has something to do */

/* qcow2_read.c */
int qcow2_read_shared(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
/* `bytes` inside the cluster (or, for other kinds than COMPRESSED, run of clusters) that `mapping` describes, from
 * guest offset `offset` on. */
int mapped_read_shared(const imgvm_image *image, uint64_t word, const struct mapping *mapping, uint64_t offset,
                       struct vec *vec, uint64_t bytes, imgvm_error *err);

int qcow2_extent_shared(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero,
                        imgvm_error *err);

enum image_place qcow2_place_shared(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes,
                                    struct image_extent *out);

/* qcow2_write.c */
/* Where a write in place goes. */
enum image_place own_place_shared(imgvm_image *image, uint64_t offset, uint64_t bytes, struct image_extent *out);
int qcow2_write_shared(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t *done,
                       imgvm_error *err);
int qcow2_write(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
/* May the cluster be overwritten where it lies? The refcount decides; the entry's COPIED bit only repeats it. */
int map_is_own(struct qcow2 *q, const struct mapping *mapping, bool *out, imgvm_error *err);

/* qcow2_claim.c */
/* Part of a write that needs new clusters: one or more whole ones, or what is inside one. */
struct claim {
    imgvm_image *image;
    uint64_t guest, count;  /* clusters of the disk; 0: there is no claim */
    uint64_t offset, bytes; /* what is written */
    uint64_t host;
    bool own;     /* the cluster keeps its place */
    bool whole;
    bool appends; /* its place was never used before */
    uint64_t reserve;
    struct l2_entry entry; /* not whole: of the cluster; and the subclusters that become data */
    uint64_t fill;
    struct claim *next;
};
/* Under the handle's lock, for what cannot be written where it lies, inside `table`. No claim (and no error) when another
 * has the cluster, which does not happen in the exclusive turn. */
int claim_make(imgvm_image *image, struct table *table, uint64_t offset, uint64_t bytes, struct claim *claim,
               imgvm_error *err);
int claim_fulfil(struct claim *claim, struct vec *vec, imgvm_error *err); /* without the lock */

/* qcow2_discard.c */
int qcow2_zero(imgvm_image *image, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err);
/* Whole clusters in the range become zeros where that gives space back; the rest stays. */
int qcow2_discard(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err);
/* Everything mapped from `offset` (a cluster's start) on becomes unmapped. */
int qcow2_unmap_from(struct qcow2 *q, uint64_t offset, imgvm_error *err);

/* qcow2_resize.c */
int qcow2_resize(imgvm_image *image, uint64_t disk_bytes, imgvm_error *err);
/* Puts another L1 table, of other entries and size, in place of the live one by one header write, with the disk's size.
 * The clusters of the old table are released later; nothing of the trees is. `entries` belongs to q afterwards. */
int l1_replace(struct qcow2 *q, uint64_t *entries, uint64_t count, uint64_t disk_bytes, imgvm_error *err);

/* qcow2_inflate.c */
int inflaters_init(struct qcow2 *q, imgvm_error *err);
void inflaters_free(struct qcow2 *q);
void inflaters_forget(struct qcow2 *q); /* clusters may get other contents now */
/* `bytes` at `in_cluster` of a compressed cluster. */
int cluster_inflate_shared(struct qcow2 *q, uint64_t word, const struct mapping *mapping, uint64_t in_cluster,
                           struct vec *vec, uint64_t bytes, imgvm_error *err);
/* qcow2_compress.c: whole clusters (the disk's last one may be cut off by its end), compressed by `threads`. */
int qcow2_write_compressed(imgvm_image *image, uint64_t offset, const uint8_t *data, uint64_t bytes, unsigned threads,
                           imgvm_error *err);
/* qcow2_table.c */
int snapshots_load(struct qcow2 *q, uint64_t offset, uint32_t count, imgvm_error *err);
int qcow2_snapshot_info(const struct qcow2 *q, uint32_t index, imgvm_snapshot_info *out);
/* The record of snapshot `index` is replaced by `record` (index == snapshot_count: appended; bytes 0: taken away), on
 * disk by one header write. */
int snapshots_replace(struct qcow2 *q, uint32_t index, const uint8_t *record, size_t bytes, imgvm_error *err);
/* One more than the largest number among the ids, as QEMU chooses them. */
unsigned long snapshots_next_id(const struct qcow2 *q);

/* qcow2_snapshot.c */
int snapshot_create(struct qcow2 *q, const char *name, const imgvm_snapshot_state *state, imgvm_error *err);
int snapshot_apply(struct qcow2 *q, uint32_t index, imgvm_error *err);
int snapshot_delete(struct qcow2 *q, uint32_t index, imgvm_error *err);
/* A part of the snapshot's disk, or of the state beyond it. */
int snapshot_read(struct qcow2 *q, uint32_t index, bool state, uint64_t offset, void *data, uint64_t bytes,
                  imgvm_error *err);
int snapshot_extent(struct qcow2 *q, uint32_t index, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero,
                    imgvm_error *err);
/* References to all that the first `entries` entries of an L1 table map, one more each; -EOVERFLOW before anything
 * changed when one is at its limit. The caller has set the dirty bit. */
int tree_add_references(struct qcow2 *q, uint64_t l1_offset, uint64_t entries, imgvm_error *err);
int tree_check_references(struct qcow2 *q, uint64_t l1_offset, uint64_t entries, imgvm_error *err);

/* qcow2_disk.c */
int disk_add(struct qcow2 *q, const char *name, uint64_t disk_bytes, uint32_t date_sec, imgvm_error *err);
/* Fills *disk, whose mutexes are there; -ENOENT without a message when the file has no such disk. */
int disk_open(imgvm_image *holder, const char *name, imgvm_image *disk, imgvm_error *err);
/* In a shared turn: in between, the map of q is this handle's, which may be a further disk's, and nobody else's lookup. */
void map_lock(imgvm_image *image);
void map_unlock(imgvm_image *image);
/* In between, the map of q is the disk's, and nobody else has a turn. */
void disk_enter(imgvm_image *disk);
void disk_leave(imgvm_image *disk);
/* The disk whose turn it is gets another L1 table and size, on disk by one header write. */
int disk_publish_l1(struct qcow2 *q, uint64_t offset, uint64_t entries, uint64_t disk_bytes, imgvm_error *err);
bool disk_is_there(const struct qcow2 *q, const char *name);
int disk_name(const struct qcow2 *q, uint32_t index, char *name, size_t name_size); /* -ENOENT behind the last */
bool disk_is_record(const struct qcow2 *q, uint32_t index); /* is the snapshot a disk? */

/* qcow2_beyond.c */
struct beyond_source {
    void (*fill)(void *opaque, uint64_t at, uint8_t *out, uint64_t bytes); /* zeros past its end */
    void *opaque;
    uint64_t bytes;
};
struct cluster_run {
    uint64_t offset, count;
};
struct beyond {
    struct qcow2 *q;
    uint64_t offset; /* where the data begins for the snapshot: behind all that the disk's L1 entries map */
    uint64_t l1_offset, l1_entries, l1_first;
    struct cluster_run *runs; /* all that was allocated, to take it back in failure */
    size_t run_count;
};
/* Writes the data, and an L1 table that maps `disk_entries` (those of the active table, or NULL: an empty disk) and, behind
 * the disk, the data. *b is for the record; beyond_undo takes the clusters back, beyond_free is always due. */
int beyond_write(struct beyond *b, struct qcow2 *q, const struct beyond_source *source, const uint64_t *disk_entries,
                 imgvm_error *err);
void beyond_undo(struct beyond *b);
void beyond_free(struct beyond *b);
/* Reads through a snapshot's own L1 table. */
int beyond_read(struct qcow2 *q, const struct snapshot *snapshot, uint64_t at, uint8_t *data, uint64_t bytes,
                imgvm_error *err);
/* *run bytes from `at` on are known to be zeros, or may be anything. */
int beyond_extent(struct qcow2 *q, const struct snapshot *snapshot, uint64_t at, uint64_t bytes, uint64_t *run,
                  bool *is_zero, imgvm_error *err);

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
struct recount {
    struct qcow2 *q;
    uint32_t *counts; /* references found, a file cluster each */
    uint64_t clusters;
    bool active;        /* the walk is in the live L1 tree, whose COPIED bits must be true */
    bool broken_blocks; /* the refcount table names blocks that cannot be */
    uint64_t corruptions;
};
int recount_begin(struct qcow2 *q, struct recount *recount, imgvm_error *err);
void recount_end(struct recount *recount);
int qcow2_check(struct qcow2 *q, uint64_t *leaks, uint64_t *corruptions, imgvm_error *err);

/* qcow2_repair.c */
int qcow2_repair_refcounts(struct qcow2 *q, imgvm_error *err);
/* What imgvm_image_repair does. */
int qcow2_repair(struct qcow2 *q, bool all, imgvm_error *err);

#endif
