/* SPDX-License-Identifier: MIT */
/* The snapshot table: records of varying length, rewritten as a whole. Records of others are kept byte for byte. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

static int parse_record(const struct qcow2 *q, size_t at, size_t end, struct snapshot *out)
{
    if (end - at < SNAPSHOT_FIXED_BYTES)
        return -EIO;
    const uint8_t *record = q->snapshot_table + at;
    *out = (struct snapshot){
        .at = at,
        .l1_offset = load_be64(record + SNAPSHOT_L1_OFFSET),
        .l1_entries = load_be32(record + SNAPSHOT_L1_ENTRIES),
        .vm_state_bytes = load_be32(record + SNAPSHOT_VM_STATE_BYTES),
        .extra_bytes = load_be32(record + SNAPSHOT_EXTRA_BYTES),
        .id_bytes = load_be16(record + SNAPSHOT_ID_BYTES),
        .name_bytes = load_be16(record + SNAPSHOT_NAME_BYTES),
        .disk_bytes = (q->image->map ? q->image->map->holder : q->image)->disk_bytes,
    };
    if (out->extra_bytes > SNAPSHOT_EXTRA_BYTES_MAX)
        return -EIO;
    size_t bytes = SNAPSHOT_FIXED_BYTES + out->extra_bytes + out->id_bytes + out->name_bytes;
    out->bytes = align_up(bytes, 8);
    if (bytes > end - at)
        return -EIO;
    const uint8_t *extra = record + SNAPSHOT_FIXED_BYTES;
    if (out->extra_bytes >= EXTRA_VM_STATE_BYTES + 8)
        out->vm_state_bytes = load_be64(extra + EXTRA_VM_STATE_BYTES);
    if (out->extra_bytes >= EXTRA_DISK_BYTES + 8)
        out->disk_bytes = load_be64(extra + EXTRA_DISK_BYTES);
    return 0;
}

static int parse_table(struct qcow2 *q, size_t bytes, uint32_t count, imgvm_error *err)
{
    size_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (at > bytes || parse_record(q, at, bytes, &q->snapshots[i]))
            return qcow2_corrupt(q, err, "the record of its snapshot %u is damaged or too long", i);
        at += q->snapshots[i].bytes;
    }
    /* The last record's padding need not be in the file. */
    q->snapshot_table_bytes = MIN(at, bytes);
    return 0;
}

int snapshots_load(struct qcow2 *q, uint64_t offset, uint32_t count, imgvm_error *err)
{
    if (!count)
        return 0; /* QEMU leaves the old offset behind */
    if (count > SNAPSHOTS_MAX)
        return qcow2_corrupt(q, err, "it has %u snapshots", count);
    if (!offset || offset & (q->cluster_bytes - 1) || offset >= q->file->bytes)
        return qcow2_corrupt(q, err, "its snapshot table lies at offset %#" PRIx64, offset);
    uint64_t room = MIN(q->file->bytes - offset, SNAPSHOT_TABLE_BYTES_MAX);
    /* As much as can belong to the table: a record has an id and a name of up to 64 KiB each. */
    room = MIN(room, count * (SNAPSHOT_FIXED_BYTES + SNAPSHOT_EXTRA_BYTES_MAX + 2 * UINT64_C(65536) + 8));
    q->snapshot_table = malloc(room);
    q->snapshots = calloc(count, sizeof *q->snapshots);
    if (!q->snapshot_table || !q->snapshots)
        return qcow2_no_memory(err);
    q->snapshots_offset = offset;
    int result = file_read(q->file, offset, q->snapshot_table, room, err);
    if (!result)
        result = parse_table(q, room, count, err);
    q->snapshot_count = result ? 0 : count;
    return result;
}

static void copy_text(char *out, size_t room, const uint8_t *text, size_t bytes)
{
    size_t part = MIN(bytes, room - 1);
    memcpy(out, text, part);
    out[part] = 0;
}

int qcow2_snapshot_info(const struct qcow2 *q, uint32_t index, imgvm_snapshot_info *out)
{
    if (index >= q->snapshot_count)
        return -ENOENT;
    const struct snapshot *snapshot = &q->snapshots[index];
    const uint8_t *record = q->snapshot_table + snapshot->at;
    const uint8_t *id = record + SNAPSHOT_FIXED_BYTES + snapshot->extra_bytes;
    copy_text(out->id, sizeof out->id, id, snapshot->id_bytes);
    copy_text(out->name, sizeof out->name, id + snapshot->id_bytes, snapshot->name_bytes);
    out->disk_bytes = snapshot->disk_bytes;
    out->vm_state_bytes = snapshot->vm_state_bytes;
    out->date_sec = load_be32(record + SNAPSHOT_DATE_SEC);
    out->date_nsec = load_be32(record + SNAPSHOT_DATE_NSEC);
    out->vm_clock_ns = load_be64(record + SNAPSHOT_VM_CLOCK_NS);
    return 0;
}

/* The table with one record replaced, appended or (bytes 0) taken away, in new memory. */
static uint8_t *assemble(const struct qcow2 *q, uint32_t index, const uint8_t *record, size_t bytes, size_t *out_bytes)
{
    size_t before = 0, after = 0, after_at = 0;
    for (uint32_t i = 0; i < q->snapshot_count; i++) {
        if (i < index)
            before += q->snapshots[i].bytes;
        else if (i > index) {
            after_at = after ? after_at : q->snapshots[i].at;
            after += q->snapshots[i].bytes;
        }
    }
    *out_bytes = before + align_up(bytes, 8) + after;
    uint8_t *table = calloc(1, align_up(MAX(*out_bytes, 1), q->cluster_bytes));
    if (!table)
        return NULL;
    /* The last record may have lost its padding. */
    if (before)
        memcpy(table, q->snapshot_table, MIN(before, q->snapshot_table_bytes));
    if (bytes)
        memcpy(table + before, record, bytes);
    if (after)
        memcpy(table + before + align_up(bytes, 8), q->snapshot_table + after_at,
               MIN(after, q->snapshot_table_bytes - after_at));
    return table;
}

int snapshots_replace(struct qcow2 *q, uint32_t index, const uint8_t *record, size_t bytes, imgvm_error *err)
{
    uint32_t count = bytes ? MAX(q->snapshot_count, index + 1) : q->snapshot_count - 1;
    size_t table_bytes;
    uint8_t field[12], *table = assemble(q, index, record, bytes, &table_bytes);
    uint64_t clusters = clusters_of(q, table_bytes), offset = 0;
    uint64_t old_offset = q->snapshots_offset, old_clusters = clusters_of(q, q->snapshot_table_bytes);
    struct snapshot *snapshots = calloc(count + 1, sizeof *snapshots);
    int result = table && snapshots ? 0 : qcow2_no_memory(err);
    if (!result && (count > SNAPSHOTS_MAX || table_bytes > SNAPSHOT_TABLE_BYTES_MAX)) {
        error_set(err, EFBIG, "%s has too many snapshots for another one", q->file->path);
        result = error_hint(err, "delete some with `qemu-img snapshot -d`");
    }
    if (!result)
        result = releases_reserve(q, old_clusters, err);
    if (!result)
        result = clusters ? clusters_alloc(q, clusters, clusters, &offset, NULL, err) : 0;
    if (result)
        goto fail;
    store_be32(field, count);
    store_be64(field + 4, offset);
    if ((result = file_write(q->file, offset, table, clusters << q->cluster_bits, err)) ||
        (result = qcow2_write_back(q, err))) {
        clusters_unalloc(q, offset, clusters);
        goto fail;
    }
    /* From here on the clusters stay allocated even in failure: the header may name the new table. */
    if ((result = qcow2_write_header(q, HEADER_SNAPSHOTS, field, sizeof field, err)))
        goto fail;

    free(q->snapshot_table);
    free(q->snapshots);
    q->snapshot_table = table;
    q->snapshots = snapshots;
    q->snapshots_offset = offset;
    q->snapshot_count = count;
    for (uint64_t i = 0; i < old_clusters; i++)
        cluster_release_later(q, old_offset + (i << q->cluster_bits), NULL); /* room is reserved */
    return parse_table(q, table_bytes, count, err);

fail:
    free(table);
    free(snapshots);
    return result;
}

unsigned long snapshots_next_id(const struct qcow2 *q)
{
    unsigned long largest = 0;
    for (uint32_t i = 0; i < q->snapshot_count; i++) {
        const struct snapshot *snapshot = &q->snapshots[i];
        const uint8_t *id = q->snapshot_table + snapshot->at + SNAPSHOT_FIXED_BYTES + snapshot->extra_bytes;
        unsigned long number = 0;
        for (unsigned j = 0; j < snapshot->id_bytes && number < UINT32_MAX; j++)
            number = id[j] >= '0' && id[j] <= '9' ? number * 10 + (id[j] - '0') : UINT32_MAX;
        if (number < UINT32_MAX)
            largest = MAX(largest, number);
    }
    return largest + 1;
}
