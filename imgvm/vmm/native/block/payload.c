/* SPDX-License-Identifier: MIT */
/* A set of named blobs, and the bytes it becomes: head, index, blobs (qcow2_format.h draws them). The same
 * blobs in the same order give the same bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/sha256.h"
#include "qcow2.h"

struct payload_blob {
    char name[PAYLOAD_NAME_BYTES];
    uint8_t *data;
    uint64_t bytes;
};

struct imgvm_payload {
    struct payload_blob *blobs;
    uint32_t count;
};

int imgvm_payload_new(imgvm_payload **out, imgvm_error *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? 0 : qcow2_no_memory(err);
}

void imgvm_payload_free(imgvm_payload *payload)
{
    if (!payload)
        return;
    for (uint32_t i = 0; i < payload->count; i++)
        free(payload->blobs[i].data);
    free(payload->blobs);
    free(payload);
}

int imgvm_payload_add(imgvm_payload *payload, const char *name, const void *data, uint64_t bytes, imgvm_error *err)
{
    size_t length = strnlen(name, PAYLOAD_NAME_BYTES);
    if (!length || length >= PAYLOAD_NAME_BYTES)
        return error_set(err, EINVAL, "the name of a config blob has 1 to %d bytes", PAYLOAD_NAME_BYTES - 1);
    for (uint32_t i = 0; i < payload->count; i++)
        if (!strcmp(payload->blobs[i].name, name))
            return error_set(err, EEXIST, "config blob %s is there already", name);
    if (payload->count >= PAYLOAD_BLOBS_MAX)
        return error_set(err, E2BIG, "a config holds at most %u blobs", PAYLOAD_BLOBS_MAX);
    struct payload_blob *blobs = realloc(payload->blobs, (payload->count + 1) * sizeof *blobs);
    if (!blobs)
        return qcow2_no_memory(err);
    payload->blobs = blobs;
    struct payload_blob *blob = &blobs[payload->count];
    *blob = (struct payload_blob){.data = malloc(MAX(bytes, 1)), .bytes = bytes};
    if (!blob->data)
        return qcow2_no_memory(err);
    memcpy(blob->name, name, length);
    if (bytes)
        memcpy(blob->data, data, bytes);
    payload->count++;
    return 0;
}

int payload_layout(const imgvm_payload *payload, struct payload_layout *out, imgvm_error *err)
{
    *out = (struct payload_layout){.head_bytes = PAYLOAD_HEAD_BYTES + (uint64_t)payload->count * PAYLOAD_RECORD_BYTES};
    out->head = calloc(1, out->head_bytes);
    out->offsets = calloc(payload->count + 1, sizeof *out->offsets);
    if (!out->head || !out->offsets) {
        payload_layout_free(out);
        return qcow2_no_memory(err);
    }
    uint64_t end = out->head_bytes;
    for (uint32_t i = 0; i < payload->count; i++) {
        const struct payload_blob *blob = &payload->blobs[i];
        uint8_t *record = out->head + PAYLOAD_HEAD_BYTES + i * PAYLOAD_RECORD_BYTES;
        out->offsets[i] = align_up(end, PAYLOAD_ALIGN);
        end = out->offsets[i] + blob->bytes;
        memcpy(record, blob->name, PAYLOAD_NAME_BYTES);
        store_be64(record + 64, out->offsets[i]);
        store_be64(record + 72, blob->bytes);
        sha256(blob->data, blob->bytes, record + 80);
    }
    out->bytes = end;
    memcpy(out->head, PAYLOAD_MAGIC, 8);
    store_be32(out->head + 8, CONFIG_VERSION);
    store_be32(out->head + 12, payload->count);
    store_be64(out->head + 16, out->bytes);
    struct sha256 sha;
    sha256_init(&sha);
    sha256_update(&sha, out->head, PAYLOAD_HASHED_HEAD_BYTES);
    sha256_update(&sha, out->head + PAYLOAD_HEAD_BYTES, out->head_bytes - PAYLOAD_HEAD_BYTES);
    sha256_final(&sha, out->head + PAYLOAD_HASHED_HEAD_BYTES);
    return 0;
}

void payload_layout_free(struct payload_layout *layout)
{
    free(layout->head);
    free(layout->offsets);
    *layout = (struct payload_layout){0};
}

/* Copies the overlap of [at, at + bytes) and [from, from + count). */
static void fill_part(uint64_t at, uint8_t *out, uint64_t bytes, uint64_t from, const uint8_t *data, uint64_t count)
{
    uint64_t begin = MAX(at, from), end = MIN(at + bytes, from + count);
    if (begin < end)
        memcpy(out + (begin - at), data + (begin - from), end - begin);
}

void payload_fill(const imgvm_payload *payload, const struct payload_layout *layout, uint64_t at, uint8_t *out,
                  uint64_t bytes)
{
    memset(out, 0, bytes);
    fill_part(at, out, bytes, 0, layout->head, layout->head_bytes);
    for (uint32_t i = 0; i < payload->count; i++)
        fill_part(at, out, bytes, layout->offsets[i], payload->blobs[i].data, payload->blobs[i].bytes);
}
