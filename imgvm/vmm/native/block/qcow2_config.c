/* SPDX-License-Identifier: MIT */
/* The embedded configuration: finding it, reading a blob, replacing all of it in one step
 * (docs/image-format.md). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/sha256.h"
#include "qcow2.h"

static bool is_named_config(const struct qcow2 *q, const struct snapshot *snapshot)
{
    const uint8_t *name = q->snapshot_table + snapshot->at + SNAPSHOT_FIXED_BYTES + snapshot->extra_bytes +
                          snapshot->id_bytes;
    return snapshot->name_bytes == strlen(CONFIG_SNAPSHOT_NAME) &&
           !memcmp(name, CONFIG_SNAPSHOT_NAME, snapshot->name_bytes);
}

static const uint8_t *config_extra(const struct qcow2 *q, const struct snapshot *snapshot)
{
    const uint8_t *extra = q->snapshot_table + snapshot->at + SNAPSHOT_FIXED_BYTES + EXTRA_KNOWN_BYTES;
    return snapshot->extra_bytes >= EXTRA_KNOWN_BYTES + CONFIG_EXTRA_BYTES && !memcmp(extra, CONFIG_EXTRA_MAGIC, 8)
               ? extra : NULL;
}

static int find_snapshot(const struct qcow2 *q, uint32_t *index)
{
    for (*index = 0; *index < q->snapshot_count; ++*index)
        if (is_named_config(q, &q->snapshots[*index]) && config_extra(q, &q->snapshots[*index]))
            return 0;
    return -ENOENT;
}

static int damaged(const struct qcow2 *q, imgvm_error *err, const char *what)
{
    error_set(err, EIO, "%s: its embedded configuration is damaged: %s", q->file->path, what);
    return error_hint(err, "pack the image again, or restore a copy");
}

/* Head and index in one buffer: its digest is checked before anything in it is believed. */
static int read_index(struct qcow2 *q, const struct snapshot *snapshot, struct config *config, imgvm_error *err)
{
    uint8_t head[PAYLOAD_HEAD_BYTES], digest[SHA256_BYTES];
    int result = beyond_read(q, snapshot, config->virtual_offset, head, sizeof head, err);
    if (result)
        return result;
    config->count = load_be32(head + 12);
    if (memcmp(head, PAYLOAD_MAGIC, 8) || load_be32(head + 8) != CONFIG_VERSION ||
        load_be64(head + 16) != config->bytes || config->count > PAYLOAD_BLOBS_MAX ||
        config->bytes < PAYLOAD_HEAD_BYTES + (uint64_t)config->count * PAYLOAD_RECORD_BYTES)
        return damaged(q, err, "its head is wrong");
    uint64_t index_bytes = (uint64_t)config->count * PAYLOAD_RECORD_BYTES;
    uint8_t *index = malloc(index_bytes + 1);
    config->blobs = calloc(config->count + 1, sizeof *config->blobs);
    if (!index || !config->blobs) {
        free(index);
        return qcow2_no_memory(err);
    }
    result = beyond_read(q, snapshot, config->virtual_offset + PAYLOAD_HEAD_BYTES, index, index_bytes, err);
    struct sha256 sha;
    sha256_init(&sha);
    sha256_update(&sha, head, PAYLOAD_HASHED_HEAD_BYTES);
    sha256_update(&sha, index, index_bytes);
    sha256_final(&sha, digest);
    if (!result && memcmp(digest, head + PAYLOAD_HASHED_HEAD_BYTES, SHA256_BYTES))
        result = damaged(q, err, "the checksum of its index is wrong");
    uint64_t blob_bytes = 0; /* none shares its bytes with another: all of them are no more than the payload */
    for (uint32_t i = 0; !result && i < config->count; i++) {
        const uint8_t *record = index + i * PAYLOAD_RECORD_BYTES;
        struct blob *blob = &config->blobs[i];
        memcpy(blob->name, record, PAYLOAD_NAME_BYTES);
        blob->offset = load_be64(record + 64);
        blob->bytes = load_be64(record + 72);
        memcpy(blob->sha256, record + 80, SHA256_BYTES);
        if (!blob->name[0] || blob->name[PAYLOAD_NAME_BYTES - 1] || blob->offset > config->bytes ||
            blob->bytes > config->bytes - blob->offset || blob->bytes > config->bytes - blob_bytes)
            result = damaged(q, err, "its index is wrong");
        blob_bytes += blob->bytes;
    }
    free(index);
    return result;
}

void config_forget(struct qcow2 *q)
{
    if (q->config)
        free(q->config->blobs);
    free(q->config);
    q->config = NULL;
}

int config_load(struct qcow2 *q, imgvm_error *err)
{
    uint32_t index;
    if (q->config)
        return 0;
    if (find_snapshot(q, &index))
        return -ENOENT;
    const struct snapshot *snapshot = &q->snapshots[index];
    const uint8_t *extra = config_extra(q, snapshot);
    if (load_be32(extra + 8) != CONFIG_VERSION) {
        error_set(err, ENOTSUP, "%s holds a configuration of version %u; this imgvm knows version %u", q->file->path,
                  load_be32(extra + 8), CONFIG_VERSION);
        return error_hint(err, "use a newer imgvm, or pack the image again");
    }
    q->config = calloc(1, sizeof *q->config);
    if (!q->config)
        return qcow2_no_memory(err);
    q->config->snapshot = index;
    q->config->virtual_offset = load_be64(extra + 16);
    q->config->bytes = load_be64(extra + 24);
    uint64_t mapped = (uint64_t)snapshot->l1_entries << l1_shift(q);
    int result = 0;
    if (q->config->bytes < PAYLOAD_HEAD_BYTES || q->config->virtual_offset & (q->cluster_bytes - 1) ||
        q->config->virtual_offset > mapped || q->config->bytes > mapped - q->config->virtual_offset)
        result = damaged(q, err, "its place is wrong");
    else if (q->config->bytes > file_bytes(q->file)) /* every cluster of it was written */
        result = damaged(q, err, "it is larger than the file");
    if (!result)
        result = read_index(q, snapshot, q->config, err);
    if (result)
        config_forget(q);
    return result;
}

uint32_t config_count(const struct qcow2 *q)
{
    return q->config->count;
}

int config_info(const struct qcow2 *q, uint32_t index, imgvm_blob_info *out, imgvm_error *err)
{
    if (index >= q->config->count)
        return error_set(err, EINVAL, "%s: its configuration has no blob number %u", q->file->path, index);
    const struct blob *blob = &q->config->blobs[index];
    memset(out, 0, sizeof *out);
    memcpy(out->name, blob->name, sizeof out->name);
    memcpy(out->sha256, blob->sha256, sizeof out->sha256);
    out->bytes = blob->bytes;
    return 0;
}

int config_read(struct qcow2 *q, uint32_t index, void *data, uint64_t bytes, imgvm_error *err)
{
    uint8_t digest[SHA256_BYTES];
    if (index >= q->config->count || bytes != q->config->blobs[index].bytes)
        return error_set(err, EINVAL, "%s: its configuration has no blob number %u of %" PRIu64 " bytes",
                         q->file->path, index, bytes);
    const struct blob *blob = &q->config->blobs[index];
    int result = beyond_read(q, &q->snapshots[q->config->snapshot], q->config->virtual_offset + blob->offset, data,
                              bytes, err);
    if (result)
        return result;
    sha256(data, bytes, digest);
    if (memcmp(digest, blob->sha256, sizeof digest)) {
        char what[PAYLOAD_NAME_BYTES + 40];
        snprintf(what, sizeof what, "the checksum of blob %s is wrong", blob->name);
        return damaged(q, err, what);
    }
    return 0;
}

/* ---- writing ---- */

struct writer {
    struct qcow2 *q;
    const imgvm_payload *payload;
    struct payload_layout layout;
    struct beyond beyond;
    uint64_t *old; /* host offsets that the replaced config referred to */
    size_t old_count, old_room;
    bool old_shared; /* some of them are also in use elsewhere (`qemu-img snapshot -a` did that) */
};

static void fill(void *opaque, uint64_t at, uint8_t *out, uint64_t bytes)
{
    const struct writer *w = opaque;
    payload_fill(w->payload, &w->layout, at, out, bytes);
}

static int remember(void *opaque, enum reference kind, uint64_t host, uint64_t entry, imgvm_error *err)
{
    struct writer *w = opaque;
    uint64_t count;
    (void)kind;
    (void)entry;
    int result = refcount_get(w->q, host >> w->q->cluster_bits, &count, err);
    if (result)
        return result;
    w->old_shared |= count > 1;
    if (w->old_count == w->old_room) {
        size_t room = w->old_room ? 2 * w->old_room : 256;
        uint64_t *grown = realloc(w->old, room * sizeof *grown);
        if (!grown)
            return qcow2_no_memory(err);
        w->old = grown;
        w->old_room = room;
    }
    w->old[w->old_count++] = host;
    return 0;
}

static int refuse_broken(void *opaque, const char *what, uint64_t value, imgvm_error *err)
{
    struct writer *w = opaque;
    return qcow2_corrupt(w->q, err, "%s in snapshot " CONFIG_SNAPSHOT_NAME " is %#" PRIx64, what, value);
}

static size_t make_record(const struct writer *w, uint32_t index, uint32_t date_sec, uint8_t out[512])
{
    const struct qcow2 *q = w->q;
    uint8_t *extra = out + SNAPSHOT_FIXED_BYTES, *id = extra + EXTRA_KNOWN_BYTES + CONFIG_EXTRA_BYTES;
    size_t id_bytes;
    memset(out, 0, 512);
    const struct snapshot *old = index < q->snapshot_count ? &q->snapshots[index] : NULL;
    if (old && old->id_bytes <= 128) {
        id_bytes = old->id_bytes;
        memcpy(id, q->snapshot_table + old->at + SNAPSHOT_FIXED_BYTES + old->extra_bytes, id_bytes);
    } else
        id_bytes = (size_t)sprintf((char *)id, "%lu", snapshots_next_id(q));
    memcpy(id + id_bytes, CONFIG_SNAPSHOT_NAME, strlen(CONFIG_SNAPSHOT_NAME));

    store_be64(out + SNAPSHOT_L1_OFFSET, w->beyond.l1_offset);
    store_be32(out + SNAPSHOT_L1_ENTRIES, (uint32_t)w->beyond.l1_entries);
    store_be16(out + SNAPSHOT_ID_BYTES, (uint16_t)id_bytes);
    store_be16(out + SNAPSHOT_NAME_BYTES, (uint16_t)strlen(CONFIG_SNAPSHOT_NAME));
    store_be32(out + SNAPSHOT_DATE_SEC, date_sec);
    store_be32(out + SNAPSHOT_EXTRA_BYTES, EXTRA_KNOWN_BYTES + CONFIG_EXTRA_BYTES);
    store_be64(extra + EXTRA_DISK_BYTES, q->image->disk_bytes);
    store_be64(extra + EXTRA_ICOUNT, UINT64_MAX); /* none */
    memcpy(extra + EXTRA_KNOWN_BYTES, CONFIG_EXTRA_MAGIC, 8);
    store_be32(extra + EXTRA_KNOWN_BYTES + 8, CONFIG_VERSION);
    store_be64(extra + EXTRA_KNOWN_BYTES + 16, w->beyond.offset);
    store_be64(extra + EXTRA_KNOWN_BYTES + 24, w->layout.bytes);
    return (size_t)(id - out) + id_bytes + strlen(CONFIG_SNAPSHOT_NAME);
}

/* A snapshot of that name which is not ours may hold somebody's data. */
static int refuse_foreign(const struct qcow2 *q, imgvm_error *err)
{
    for (uint32_t i = 0; i < q->snapshot_count; i++)
        if (is_named_config(q, &q->snapshots[i]) && !config_extra(q, &q->snapshots[i])) {
            error_set(err, EEXIST, "%s has a snapshot " CONFIG_SNAPSHOT_NAME " that imgvm did not write",
                      q->file->path);
            return error_hint(err, "delete it with `qemu-img snapshot -d " CONFIG_SNAPSHOT_NAME "`");
        }
    return 0;
}

int config_set(struct qcow2 *q, const imgvm_payload *payload, uint32_t date_sec, imgvm_error *err)
{
    struct writer w = {.q = q, .payload = payload, .beyond.q = q};
    uint8_t record[512];
    uint32_t index;
    int result = qcow2_begin_modify(q, err);
    if (result || (result = refuse_foreign(q, err)))
        return result;
    if (!find_snapshot(q, &index)) {
        const struct walker walker = {remember, refuse_broken, &w};
        result = l1_walk(q, q->snapshots[index].l1_offset, q->snapshots[index].l1_entries, &walker, err);
    }
    if (!result)
        result = releases_reserve(q, w.old_count, err);
    if (!result)
        result = payload_layout(w.payload, &w.layout, err);
    if (!result) {
        const struct beyond_source source = {fill, &w, w.layout.bytes};
        result = beyond_write(&w.beyond, q, &source, NULL, err);
    }
    if (!result) {
        size_t bytes = make_record(&w, index, date_sec, record);
        result = snapshots_replace(q, index, record, bytes, err);
    }
    config_forget(q);
    if (result) {
        beyond_undo(&w.beyond);
    } else {
        releases_reserve(q, w.old_count, NULL);
        for (size_t i = 0; i < w.old_count; i++)
            cluster_release_later(q, w.old[i], NULL);
        result = qcow2_write_back(q, err);
        if (!result && w.old_shared)
            result = map_refresh_copied(q, err);
    }
    payload_layout_free(&w.layout);
    beyond_free(&w.beyond);
    free(w.old);
    return result;
}
