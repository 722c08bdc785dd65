/* SPDX-License-Identifier: MIT */
/* Compressed writing. Several threads compress, a cluster each at a time; one writes what they made, in the order of the
 * disk: the file's bytes do not depend on how many threads there were. */
#include <errno.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "qcow2.h"

/* The specification's window, 4 KiB: readers may have no more. */
#define DEFLATE_WINDOW_BITS 12
#define DEFLATE_MEMORY 9
#define THREADS_MAX 64
#define BATCH_BYTES (UINT64_C(4) << 20)

struct job {
    const struct qcow2 *q;
    const uint8_t *data;
    uint64_t bytes, clusters;
    uint64_t next;     /* atomic: the cluster that the next free thread takes */
    uint8_t *packed;   /* cluster_bytes for each cluster */
    uint64_t *lengths; /* of what is in there; 0: all zeros; cluster_bytes: does not compress */
    bool failed;       /* atomic: a thread had no memory */
};

struct compressor {
    uint8_t *cluster; /* for the disk's last cluster, which may be a part of one */
    z_stream deflate;
    bool deflate_ready;
    ZSTD_CCtx *zstd;
};

static bool compressor_init(const struct qcow2 *q, struct compressor *c)
{
    c->cluster = calloc(1, q->cluster_bytes);
    if (q->compression == COMPRESSION_ZSTD)
        c->zstd = ZSTD_createCCtx();
    else
        c->deflate_ready = deflateInit2(&c->deflate, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW_BITS,
                                        DEFLATE_MEMORY, Z_DEFAULT_STRATEGY) == Z_OK;
    return c->cluster && (c->zstd || c->deflate_ready);
}

static void compressor_free(struct compressor *c)
{
    if (c->deflate_ready)
        deflateEnd(&c->deflate);
    ZSTD_freeCCtx(c->zstd);
    free(c->cluster);
}

/* The length of the compressed cluster; cluster_bytes when nothing is won. */
static uint64_t compress_one(const struct qcow2 *q, struct compressor *c, const uint8_t *data, uint8_t *out)
{
    uint64_t room = q->cluster_bytes - 1;
    if (q->compression == COMPRESSION_ZSTD) {
        size_t length = ZSTD_compress2(c->zstd, out, room, data, q->cluster_bytes);
        return ZSTD_isError(length) ? q->cluster_bytes : length;
    }
    if (deflateReset(&c->deflate) != Z_OK)
        return q->cluster_bytes;
    c->deflate.next_in = (uint8_t *)data;
    c->deflate.avail_in = (uInt)q->cluster_bytes;
    c->deflate.next_out = out;
    c->deflate.avail_out = (uInt)room;
    return deflate(&c->deflate, Z_FINISH) == Z_STREAM_END ? room - c->deflate.avail_out : q->cluster_bytes;
}

static bool is_all_zero(const uint8_t *data, uint64_t bytes)
{
    return !bytes || (!data[0] && !memcmp(data, data + 1, bytes - 1));
}

static void *work(void *opaque)
{
    struct job *job = opaque;
    const struct qcow2 *q = job->q;
    struct compressor compressor = {0};
    bool ready = compressor_init(q, &compressor);
    for (uint64_t i; ready && (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->clusters;) {
        uint64_t at = i << q->cluster_bits, bytes = MIN(q->cluster_bytes, job->bytes - at);
        const uint8_t *data = job->data + at;
        if (is_all_zero(data, bytes)) {
            job->lengths[i] = 0;
            continue;
        }
        if (bytes < q->cluster_bytes)
            data = memcpy(compressor.cluster, data, bytes);
        job->lengths[i] = compress_one(q, &compressor, data, job->packed + at);
    }
    if (!ready)
        __atomic_store_n(&job->failed, true, __ATOMIC_RELAXED);
    compressor_free(&compressor);
    return NULL;
}

/* The caller is one of the threads; where no more can be made, it is the only one. */
static int compress_all(struct job *job, unsigned threads, imgvm_error *err)
{
    pthread_t helpers[THREADS_MAX];
    unsigned made = 0;
    while (made + 1 < MIN(MIN(threads, THREADS_MAX), job->clusters) && !pthread_create(&helpers[made], NULL, work, job))
        made++;
    work(job);
    while (made)
        pthread_join(helpers[--made], NULL);
    return job->failed ? qcow2_no_memory(err) : 0;
}

/* Maps one cluster to `bytes` of compressed data. */
static int put_compressed(struct qcow2 *q, uint64_t guest, const uint8_t *data, uint64_t bytes, imgvm_error *err)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    struct table *table;
    struct mapping old;
    uint64_t host;
    int result = map_l2_for_write(q, guest >> l1_shift(q), &table, err);
    if (!result)
        result = map_decode(q, l2_load(q, table, l2_index(q, guest)), 0, &old, err);
    if (result || (result = bytes_alloc(q, bytes, &host, err)))
        return result;
    if (host >> offset_bits)
        result = error_set(err, EFBIG, "%s: the file cannot grow further", q->file->path);
    if (!result)
        result = file_write(q->file, host, data, bytes, err);
    if (!result)
        result = map_release(q, &old, err);
    if (result) {
        bytes_unalloc(q, host, bytes);
        return result;
    }
    uint64_t sectors = (host + bytes - 1) / COMPRESSED_SECTOR_BYTES - host / COMPRESSED_SECTOR_BYTES;
    l2_store(q, table, l2_index(q, guest), (struct l2_entry){host | sectors << offset_bits | ENTRY_COMPRESSED, 0});
    return 0;
}

static int write_batch(imgvm_image *image, uint64_t offset, const struct job *job, imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    int result = 0;
    for (uint64_t i = 0; !result && i < job->clusters; i++) {
        uint64_t at = i << q->cluster_bits, bytes = MIN(q->cluster_bytes, job->bytes - at);
        const struct iovec piece = {(uint8_t *)job->data + at, bytes};
        struct vec vec = {.piece = &piece};
        if ((result = qcow2_trim(q, err)))
            break;
        if (!job->lengths[i])
            result = qcow2_zero(image, offset + at, bytes, true, err);
        else if (job->lengths[i] == q->cluster_bytes)
            result = qcow2_write(image, offset + at, &vec, bytes, err);
        else
            result = put_compressed(q, offset + at, job->packed + at, job->lengths[i], err);
    }
    return result;
}

static int check_request(const imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    const struct qcow2 *q = image->qcow2;
    if (has_data_file(q)) {
        error_set(err, ENOTSUP, "%s has its data in another file, where it cannot be compressed", q->file->path);
        return error_hint(err, "make an image without an external data file");
    }
    if (offset % q->cluster_bytes || (bytes % q->cluster_bytes && offset + bytes != image->disk_bytes)) {
        error_set(err, EINVAL, "%s: only whole clusters of %llu bytes can be compressed", q->file->path,
                  (unsigned long long)q->cluster_bytes);
        return error_hint(err, "write the rest plainly");
    }
    return 0;
}

int qcow2_write_compressed(imgvm_image *image, uint64_t offset, const uint8_t *data, uint64_t bytes, unsigned threads,
                           imgvm_error *err)
{
    struct qcow2 *q = image->qcow2;
    uint64_t batch = MAX(BATCH_BYTES * MAX(threads, 1), q->cluster_bytes);
    int result = check_request(image, offset, bytes, err);
    if (result || (result = qcow2_begin_modify(q, err)))
        return result;
    uint8_t *packed = malloc(MIN(batch, align_up(bytes, q->cluster_bytes)) + 1);
    uint64_t *lengths = malloc((batch >> q->cluster_bits) * sizeof *lengths);
    if (!packed || !lengths)
        result = qcow2_no_memory(err);
    for (uint64_t at = 0; !result && at < bytes; at += batch) {
        uint64_t part = MIN(batch, bytes - at);
        struct job job = {q, data + at, part, clusters_of(q, part), 0, packed, lengths, false};
        result = compress_all(&job, threads, err);
        if (!result)
            result = write_batch(image, offset + at, &job, err);
    }
    free(packed);
    free(lengths);
    return result;
}
