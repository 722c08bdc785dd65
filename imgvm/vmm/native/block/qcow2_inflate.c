/* SPDX-License-Identifier: MIT */
/* Compressed clusters: raw deflate or zstd. Guests read clusters in pieces, so some are kept as they came out; each
 * has a lock of its own, for reads run side by side. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "qcow2.h"

#define INFLATERS 8

struct inflater {
    pthread_mutex_t lock;
    uint64_t word; /* L2 entry of what `inflated` holds; 0: nothing */
    uint8_t *inflated, *deflated;
    ZSTD_DCtx *zstd;
    z_stream deflate;
    bool deflate_ready;
};

int inflaters_init(struct qcow2 *q, imgvm_error *err)
{
    q->inflaters = calloc(INFLATERS, sizeof *q->inflaters);
    if (!q->inflaters)
        return qcow2_no_memory(err);
    for (unsigned i = 0; i < INFLATERS; i++)
        pthread_mutex_init(&q->inflaters[i].lock, NULL);
    return 0;
}

void inflaters_free(struct qcow2 *q)
{
    for (unsigned i = 0; q->inflaters && i < INFLATERS; i++) {
        struct inflater *inflater = &q->inflaters[i];
        if (inflater->deflate_ready)
            inflateEnd(&inflater->deflate);
        ZSTD_freeDCtx(inflater->zstd);
        free(inflater->inflated);
        free(inflater->deflated);
        pthread_mutex_destroy(&inflater->lock);
    }
    free(q->inflaters);
}

void inflaters_forget(struct qcow2 *q)
{
    for (unsigned i = 0; i < INFLATERS; i++)
        q->inflaters[i].word = 0;
}

/* The stream may stop before its room does; what counts is that it fills one cluster. */
static bool inflate_deflate(const struct qcow2 *q, struct inflater *inflater, uint64_t bytes)
{
    z_stream *stream = &inflater->deflate;
    if (!inflater->deflate_ready && inflateInit2(stream, -MAX_WBITS) != Z_OK)
        return false;
    inflater->deflate_ready = true;
    if (inflateReset(stream) != Z_OK)
        return false;
    stream->next_in = inflater->deflated;
    stream->avail_in = (uInt)bytes;
    stream->next_out = inflater->inflated;
    stream->avail_out = (uInt)q->cluster_bytes;
    int status = inflate(stream, Z_FINISH);
    return (status == Z_STREAM_END || status == Z_BUF_ERROR || status == Z_OK) && !stream->avail_out;
}

static bool inflate_zstd(const struct qcow2 *q, struct inflater *inflater, uint64_t bytes)
{
    if (!inflater->zstd && !(inflater->zstd = ZSTD_createDCtx()))
        return false;
    ZSTD_DCtx_reset(inflater->zstd, ZSTD_reset_session_only);
    ZSTD_inBuffer in = {inflater->deflated, bytes, 0};
    ZSTD_outBuffer out = {inflater->inflated, q->cluster_bytes, 0};
    size_t status = 1;
    while (out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        status = ZSTD_decompressStream(inflater->zstd, &out, &in);
        if (ZSTD_isError(status) || (in.pos == in_before && out.pos == out_before))
            break;
    }
    return !ZSTD_isError(status) && out.pos == out.size;
}

static int fill(struct qcow2 *q, struct inflater *inflater, uint64_t word, const struct mapping *mapping,
                imgvm_error *err)
{
    /* The sector count allows for at most two clusters (x bits of it, 512 bytes each). */
    uint64_t room = 2 * q->cluster_bytes + COMPRESSED_SECTOR_BYTES;
    if (!inflater->inflated)
        inflater->inflated = malloc(q->cluster_bytes);
    if (!inflater->deflated)
        inflater->deflated = malloc(room);
    if (!inflater->inflated || !inflater->deflated)
        return qcow2_no_memory(err);
    if (mapping->bytes > room)
        return qcow2_corrupt(q, err, "a compressed cluster has %" PRIu64 " bytes", mapping->bytes);
    inflater->word = 0;
    int result = file_read(q->file, mapping->host, inflater->deflated, mapping->bytes, err);
    if (result)
        return result;
    bool whole = q->compression == COMPRESSION_ZSTD ? inflate_zstd(q, inflater, mapping->bytes)
                                                    : inflate_deflate(q, inflater, mapping->bytes);
    if (!whole)
        return qcow2_corrupt(q, err, "the compressed cluster at offset %#" PRIx64 " does not decompress",
                             mapping->host);
    inflater->word = word;
    return 0;
}

int cluster_inflate_shared(struct qcow2 *q, uint64_t word, const struct mapping *mapping, uint64_t in_cluster,
                           struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    /* Neighbours in the file are read together: they should not share one. */
    struct inflater *inflater = &q->inflaters[(word * UINT64_C(0x9e3779b97f4a7c15) >> 32) % INFLATERS];
    pthread_mutex_lock(&inflater->lock);
    int result = inflater->word == word ? 0 : fill(q, inflater, word, mapping, err);
    if (!result)
        vec_put(vec, inflater->inflated + in_cluster, bytes);
    pthread_mutex_unlock(&inflater->lock);
    return result;
}
