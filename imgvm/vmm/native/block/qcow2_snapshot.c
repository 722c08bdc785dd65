/* SPDX-License-Identifier: MIT */
/* Snapshots made, applied and deleted. While references are added or dropped one by one, refcounts and COPIED bits do not
 * agree; the dirty bit (version 3) makes whoever opens the image after a power loss count anew. The disk itself changes
 * hands by one header write. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "qcow2.h"

/* ---- references of a whole tree ---- */

static void keep_cache_small(struct qcow2 *q)
{
    if (q->block_cache.live_count > q->block_cache.live_limit)
        cache_evict_clean(&q->block_cache, q->block_cache.live_limit / 2);
}

/* The refcount of what an entry refers to; 0 for the table itself, which is counted by who writes it. */
static int counted(struct qcow2 *q, enum reference kind, uint64_t host, uint64_t *count, imgvm_error *err)
{
    *count = 0;
    if (kind == REFERENCE_L1)
        return 0;
    keep_cache_small(q);
    return refcount_get(q, host >> q->cluster_bits, count, err);
}

static int visit_check(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    struct qcow2 *q = opaque;
    uint64_t count;
    (void)entry;
    int result = counted(q, kind, host, &count, err);
    if (result || count < refcount_max(q))
        return result;
    error_set(err, EOVERFLOW, "%s: its refcounts of %u bits count no further reference to a cluster", q->file->path,
              1u << q->refcount_order);
    return error_hint(err, "delete a snapshot, or convert the image to one with wider refcounts");
}

static int visit_add(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    struct qcow2 *q = opaque;
    uint64_t count;
    (void)entry;
    int result = counted(q, kind, host, &count, err);
    return result || kind == REFERENCE_L1 ? result : refcount_set(q, host >> q->cluster_bits, count + 1, err);
}

static int visit_release(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    struct qcow2 *q = opaque;
    (void)kind;
    (void)entry;
    int result = cluster_release_later(q, host, err);
    return result ? result : qcow2_trim(q, err);
}

/* The active table is released as a table by who replaces it. */
static int visit_release_below(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    return kind == REFERENCE_L1 ? 0 : visit_release(opaque, kind, host, entry, err);
}

static int refuse_broken(void *opaque, const char *what, uint64_t value, imgvm_error *err)
{
    return qcow2_corrupt(opaque, err, "%s is %#" PRIx64, what, value);
}

/* What cannot be followed cannot be released: it leaks. */
static int pass_broken(void *opaque, const char *what, uint64_t value, imgvm_error *err)
{
    (void)opaque, (void)what, (void)value, (void)err;
    return 0;
}

int tree_check_references(struct qcow2 *q, uint64_t l1_offset, uint64_t entries, imgvm_error *err)
{
    return l1_walk(q, l1_offset, entries, &(struct walker){visit_check, refuse_broken, q}, err);
}

int tree_add_references(struct qcow2 *q, uint64_t l1_offset, uint64_t entries, imgvm_error *err)
{
    return l1_walk(q, l1_offset, entries, &(struct walker){visit_add, refuse_broken, q}, err);
}

/* ---- the dirty stretch ---- */

static int begin(struct qcow2 *q, imgvm_error *err)
{
    return qcow2_set_incompatible(q, INCOMPATIBLE_DIRTY, true, err);
}

/* After failure the references are counted anew; if that fails too, the next one who opens the image does it. */
static int end(struct qcow2 *q, int result, imgvm_error *err)
{
    if (!result && !(result = map_refresh_copied(q, err)))
        return qcow2_set_incompatible(q, INCOMPATIBLE_DIRTY, false, err);
    q->free_count = 0;
    if (!q->failed && !qcow2_write_back(q, NULL) && !qcow2_repair_refcounts(q, NULL))
        qcow2_set_incompatible(q, INCOMPATIBLE_DIRTY, false, NULL);
    else
        q->failed = true;
    return result;
}

/* ---- create ---- */

static void fill_state(void *opaque, uint64_t at, uint8_t *out, uint64_t bytes)
{
    const imgvm_snapshot_state *state = opaque;
    uint64_t inside = at < state->bytes ? MIN(bytes, state->bytes - at) : 0;
    if (inside)
        memcpy(out, (const uint8_t *)state->data + at, inside);
    memset(out + inside, 0, bytes - inside);
}

static size_t make_record(const struct qcow2 *q, const struct beyond *beyond, const char *name,
                          const imgvm_snapshot_state *state, uint8_t out[512])
{
    uint8_t *extra = out + SNAPSHOT_FIXED_BYTES, *id = extra + EXTRA_KNOWN_BYTES;
    memset(out, 0, 512);
    size_t id_bytes = (size_t)sprintf((char *)id, "%lu", snapshots_next_id(q));
    memcpy(id + id_bytes, name, strlen(name));
    store_be64(out + SNAPSHOT_L1_OFFSET, beyond->l1_offset);
    store_be32(out + SNAPSHOT_L1_ENTRIES, (uint32_t)beyond->l1_entries);
    store_be16(out + SNAPSHOT_ID_BYTES, (uint16_t)id_bytes);
    store_be16(out + SNAPSHOT_NAME_BYTES, (uint16_t)strlen(name));
    store_be32(out + SNAPSHOT_DATE_SEC, state->date_sec);
    store_be32(out + SNAPSHOT_DATE_NSEC, state->date_nsec);
    store_be64(out + SNAPSHOT_VM_CLOCK_NS, state->vm_clock_ns);
    store_be32(out + SNAPSHOT_VM_STATE_BYTES, (uint32_t)MIN(state->bytes, UINT32_MAX));
    store_be32(out + SNAPSHOT_EXTRA_BYTES, EXTRA_KNOWN_BYTES);
    store_be64(extra + EXTRA_VM_STATE_BYTES, state->bytes);
    store_be64(extra + EXTRA_DISK_BYTES, q->image->disk_bytes);
    store_be64(extra + EXTRA_ICOUNT, UINT64_MAX); /* none */
    return (size_t)(id - out) + id_bytes + strlen(name);
}

static int check_name(const struct qcow2 *q, const char *name, imgvm_error *err)
{
    imgvm_snapshot_info info;
    size_t bytes = strnlen(name, sizeof info.name);
    if (!bytes || bytes == sizeof info.name)
        return error_set(err, EINVAL, "the name of a snapshot has 1 to %zu bytes", sizeof info.name - 1);
    if (!strcmp(name, CONFIG_SNAPSHOT_NAME)) {
        error_set(err, EINVAL, "%s: snapshot " CONFIG_SNAPSHOT_NAME " is where the configuration lives", q->file->path);
        return error_hint(err, "choose another name");
    }
    for (uint32_t i = 0; !qcow2_snapshot_info(q, i, &info); i++)
        if (!strcmp(info.name, name)) {
            error_set(err, EEXIST, "%s has a snapshot %s already", q->file->path, name);
            return error_hint(err, "delete it first, or choose another name");
        }
    return 0;
}

int snapshot_create(struct qcow2 *q, const char *name, const imgvm_snapshot_state *state, imgvm_error *err)
{
    struct beyond beyond = {.q = q};
    const struct beyond_source source = {fill_state, (void *)state, state->bytes};
    uint8_t record[512];
    int result = check_name(q, name, err);
    if (result || (result = qcow2_begin_modify(q, err)) || (result = qcow2_write_back(q, err)) ||
        (result = tree_check_references(q, q->l1.offset, q->l1.count, err)))
        return result;
    result = beyond_write(&beyond, q, &source, q->l1.entries, err);
    if (!result)
        result = begin(q, err);
    if (result) {
        beyond_undo(&beyond);
        beyond_free(&beyond);
        return result;
    }
    /* The disk loses its COPIED bits before the header makes its clusters shared. */
    result = tree_add_references(q, q->l1.offset, beyond.l1_first, err);
    if (!result)
        result = map_refresh_copied(q, err);
    if (!result)
        result = snapshots_replace(q, q->snapshot_count, record, make_record(q, &beyond, name, state, record), err);
    beyond_free(&beyond);
    return end(q, result, err);
}

/* ---- delete ---- */

int snapshot_delete(struct qcow2 *q, uint32_t index, imgvm_error *err)
{
    const struct snapshot gone = q->snapshots[index];
    int result = qcow2_begin_modify(q, err);
    if (result || (result = qcow2_write_back(q, err)) || (result = begin(q, err)))
        return result;
    config_forget(q);
    result = snapshots_replace(q, index, NULL, 0, err);
    if (!result)
        result = l1_walk(q, gone.l1_offset, gone.l1_entries, &(struct walker){visit_release, pass_broken, q}, err);
    if (!result)
        result = qcow2_write_back(q, err);
    return end(q, result, err);
}

/* ---- apply ---- */

/* The part of a snapshot's L1 table that maps its disk. */
static int disk_part(struct qcow2 *q, const struct snapshot *snapshot, uint64_t count, uint64_t **out,
                     imgvm_error *err)
{
    struct offset_table table = {.offset = snapshot->l1_offset, .count = MIN(count, snapshot->l1_entries)};
    int result = offset_table_read(q, &table, "snapshot's L1 table", err);
    uint64_t *entries = result ? NULL : calloc(MAX(count, 1), sizeof *entries);
    if (!result && !entries)
        result = qcow2_no_memory(err);
    for (uint64_t i = 0; !result && i < table.count; i++)
        entries[i] = table.entries[i] & ~ENTRY_COPIED;
    free(table.entries);
    *out = entries;
    return result;
}

static int switch_to(struct qcow2 *q, const struct snapshot *snapshot, uint64_t *entries, uint64_t count,
                     imgvm_error *err)
{
    const uint64_t old_offset = q->l1.offset, old_count = q->l1.count;
    int result = tree_add_references(q, snapshot->l1_offset, MIN(count, snapshot->l1_entries), err);
    if (!result)
        result = l1_replace(q, entries, count, snapshot->disk_bytes, err);
    if (result) {
        free(entries);
        return result;
    }
    while (q->l2_cache.live_count)
        cache_drop(&q->l2_cache, q->l2_cache.live[0]);
    result = l1_walk(q, old_offset, old_count, &(struct walker){visit_release_below, pass_broken, q}, err);
    return result ? result : qcow2_write_back(q, err);
}

int snapshot_apply(struct qcow2 *q, uint32_t index, imgvm_error *err)
{
    const struct snapshot snapshot = q->snapshots[index];
    uint64_t *entries, count = l1_entries_of(l1_shift(q), snapshot.disk_bytes);
    if (snapshot.disk_bytes > INT64_MAX || count > L1_BYTES_MAX / 8)
        return qcow2_corrupt(q, err, "a snapshot's disk has %" PRIu64 " bytes", snapshot.disk_bytes);
    int result = qcow2_begin_modify(q, err);
    if (result || (result = qcow2_write_back(q, err)) ||
        (result = tree_check_references(q, snapshot.l1_offset, MIN(count, snapshot.l1_entries), err)) ||
        (result = disk_part(q, &snapshot, count, &entries, err)))
        return result;
    result = begin(q, err);
    if (result) {
        free(entries);
        return result;
    }
    return end(q, switch_to(q, &snapshot, entries, count, err), err);
}

/* ---- read ---- */

static int check_range(struct qcow2 *q, const struct snapshot *snapshot, bool state, uint64_t offset, uint64_t bytes,
                       imgvm_error *err)
{
    uint64_t size = state ? snapshot->vm_state_bytes : snapshot->disk_bytes;
    if (offset > size || bytes > size - offset)
        return error_set(err, EINVAL, "%s: %" PRIu64 " bytes at %" PRIu64 " are beyond the end of the snapshot's %s",
                         q->file->path, bytes, offset, state ? "state" : "disk");
    if (snapshot->disk_bytes > INT64_MAX || size > INT64_MAX)
        return qcow2_corrupt(q, err, "a snapshot's disk has %" PRIu64 " bytes", snapshot->disk_bytes);
    return 0;
}

int snapshot_read(struct qcow2 *q, uint32_t index, bool state, uint64_t offset, void *data, uint64_t bytes,
                  imgvm_error *err)
{
    const struct snapshot *snapshot = &q->snapshots[index];
    int result = check_range(q, snapshot, state, offset, bytes, err);
    uint64_t start = state ? l1_entries_of(l1_shift(q), snapshot->disk_bytes) << l1_shift(q) : 0;
    return result ? result : beyond_read(q, snapshot, start + offset, data, bytes, err);
}

int snapshot_extent(struct qcow2 *q, uint32_t index, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero,
                    imgvm_error *err)
{
    int result = check_range(q, &q->snapshots[index], false, offset, bytes, err);
    return result ? result : beyond_extent(q, &q->snapshots[index], offset, bytes, run, is_zero, err);
}
