/* SPDX-License-Identifier: MIT */
/* Compressed clusters: raw deflate or zstd. Guests read clusters in pieces, so some are kept as they came out. Reads run side
 * by side, each with an inflater of its own, unless they are after the same cluster. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "qcow2.h"

#define INFLATERS 8

struct inflater {
    bool busy;
    uint64_t last_use;
    uint64_t word;   /* L2 entry of the cluster that it has; 0: none */
    bool begun;      /* `deflated` has it */
    uint64_t filled; /* bytes of it that `inflated` has */
    uint8_t *inflated, *deflated;
    ZSTD_DCtx *zstd;
    z_stream deflate;
    bool deflate_ready;
};

struct inflaters {
    pthread_mutex_t lock; /* who is busy, and with what */
    pthread_cond_t idle;
    uint64_t uses;
    struct inflater each[INFLATERS];
};

int inflaters_init(struct qcow2 *q, imgvm_error *err)
{
    q->inflaters = calloc(1, sizeof *q->inflaters);
    if (!q->inflaters)
        return qcow2_no_memory(err);
    pthread_mutex_init(&q->inflaters->lock, NULL);
    pthread_cond_init(&q->inflaters->idle, NULL);
    return 0;
}

void inflaters_free(struct qcow2 *q)
{
    if (!q->inflaters)
        return;
    for (struct inflater *inflater = q->inflaters->each; inflater < q->inflaters->each + INFLATERS; inflater++) {
        if (inflater->deflate_ready)
            inflateEnd(&inflater->deflate);
        ZSTD_freeDCtx(inflater->zstd);
        free(inflater->inflated);
        free(inflater->deflated);
    }
    pthread_mutex_destroy(&q->inflaters->lock);
    pthread_cond_destroy(&q->inflaters->idle);
    free(q->inflaters);
}

void inflaters_forget(struct qcow2 *q)
{
    for (unsigned i = 0; i < INFLATERS; i++)
        q->inflaters->each[i].word = 0;
}

/* The one that has the cluster, else the one that was used longest ago; NULL: it is busy, or all are. */
static struct inflater *choose(struct inflaters *inflaters, uint64_t word)
{
    struct inflater *oldest = NULL;
    for (struct inflater *each = inflaters->each; each < inflaters->each + INFLATERS; each++) {
        if (each->word == word)
            return each->busy ? NULL : each;
        if (!each->busy && (!oldest || each->last_use < oldest->last_use))
            oldest = each;
    }
    return oldest;
}

static struct inflater *take_inflater(struct inflaters *inflaters, uint64_t word)
{
    struct inflater *inflater;
    pthread_mutex_lock(&inflaters->lock);
    while (!(inflater = choose(inflaters, word)))
        pthread_cond_wait(&inflaters->idle, &inflaters->lock);
    inflater->busy = true;
    inflater->last_use = ++inflaters->uses;
    if (inflater->word != word) { /* others who want this cluster wait from now on */
        inflater->word = word;
        inflater->begun = false;
    }
    pthread_mutex_unlock(&inflaters->lock);
    return inflater;
}

static void give_inflater_back(struct inflaters *inflaters, struct inflater *inflater, bool failed)
{
    pthread_mutex_lock(&inflaters->lock);
    inflater->busy = false;
    if (failed)
        inflater->word = 0;
    pthread_cond_broadcast(&inflaters->idle);
    pthread_mutex_unlock(&inflaters->lock);
}

/* Goes on until `need` bytes are there: a guest that reads little does not pay for the cluster's rest. */
static bool inflate_deflate(const struct qcow2 *q, struct inflater *inflater, uint64_t need)
{
    z_stream *stream = &inflater->deflate;
    stream->next_out = inflater->inflated + inflater->filled;
    stream->avail_out = (uInt)(need - inflater->filled);
    /* For a whole cluster in one go the output is the window, too. */
    int status = inflate(stream, !inflater->filled && need == q->cluster_bytes ? Z_FINISH : Z_SYNC_FLUSH);
    /* The stream may stop before its room does; what counts is that it gave what was asked for. */
    return (status == Z_STREAM_END || status == Z_BUF_ERROR || status == Z_OK) && !stream->avail_out;
}

static bool begin_deflate(struct inflater *inflater, uint64_t bytes)
{
    z_stream *stream = &inflater->deflate;
    if (!inflater->deflate_ready && inflateInit2(stream, -MAX_WBITS) != Z_OK)
        return false;
    inflater->deflate_ready = true;
    stream->next_in = inflater->deflated;
    stream->avail_in = (uInt)bytes;
    return inflateReset(stream) == Z_OK;
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

static int not_inflated(const struct qcow2 *q, const struct mapping *mapping, imgvm_error *err)
{
    return qcow2_corrupt(q, err, "the compressed cluster at offset %#" PRIx64 " does not decompress", mapping->host);
}

static int begin(struct qcow2 *q, struct inflater *inflater, const struct mapping *mapping, imgvm_error *err)
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
    int result = file_read(q->file, mapping->host, inflater->deflated, mapping->bytes, err);
    if (result)
        return result;
    if (q->compression == COMPRESSION_DEFLATE && !begin_deflate(inflater, mapping->bytes))
        return not_inflated(q, mapping, err);
    inflater->begun = true;
    inflater->filled = 0;
    return 0;
}

static int fill(struct qcow2 *q, struct inflater *inflater, const struct mapping *mapping, uint64_t need, imgvm_error *err)
{
    int result = inflater->begun ? 0 : begin(q, inflater, mapping, err);
    if (result || inflater->filled >= need)
        return result;
    if (q->compression == COMPRESSION_ZSTD)
        need = q->cluster_bytes; /* most clusters are one block, which comes out whole or not at all */
    bool done = q->compression == COMPRESSION_ZSTD ? inflate_zstd(q, inflater, mapping->bytes)
                                                   : inflate_deflate(q, inflater, need);
    if (!done)
        return not_inflated(q, mapping, err);
    inflater->filled = need;
    return 0;
}

int cluster_inflate_shared(struct qcow2 *q, uint64_t word, const struct mapping *mapping, uint64_t in_cluster,
                           struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    struct inflater *inflater = take_inflater(q->inflaters, word);
    int result = fill(q, inflater, mapping, in_cluster + bytes, err);
    if (!result)
        vec_put(vec, inflater->inflated + in_cluster, bytes);
    give_inflater_back(q->inflaters, inflater, result != 0);
    return result;
}
