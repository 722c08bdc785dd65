/* SPDX-License-Identifier: MIT */
/* Compressed clusters: raw deflate or zstd, with the last one kept, since guests read clusters in pieces. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "qcow2.h"

/* The stream may stop before its room does; what counts is that it fills one cluster. */
static bool inflate_deflate(const struct qcow2 *q, uint64_t bytes)
{
    z_stream stream = {
        .next_in = q->deflated, .avail_in = (uInt)bytes,
        .next_out = q->inflated, .avail_out = (uInt)q->cluster_bytes,
    };
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
        return false;
    int status = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    return (status == Z_STREAM_END || status == Z_BUF_ERROR || status == Z_OK) && !stream.avail_out;
}

static bool inflate_zstd(const struct qcow2 *q, uint64_t bytes)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context)
        return false;
    ZSTD_inBuffer in = {q->deflated, bytes, 0};
    ZSTD_outBuffer out = {q->inflated, q->cluster_bytes, 0};
    size_t status = 1;
    while (out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        status = ZSTD_decompressStream(context, &out, &in);
        if (ZSTD_isError(status) || (in.pos == in_before && out.pos == out_before))
            break;
    }
    ZSTD_freeDCtx(context);
    return !ZSTD_isError(status) && out.pos == out.size;
}

int cluster_inflate(struct qcow2 *q, uint64_t entry, const struct mapping *mapping, imgvm_error *err)
{
    if (q->inflated_entry == entry)
        return 0;
    /* The sector count allows for at most two clusters (x bits of it, 512 bytes each). */
    uint64_t room = 2 * q->cluster_bytes + COMPRESSED_SECTOR_BYTES;
    if (!q->inflated)
        q->inflated = malloc(q->cluster_bytes);
    if (!q->deflated)
        q->deflated = malloc(room);
    if (!q->inflated || !q->deflated)
        return qcow2_no_memory(err);
    if (mapping->bytes > room)
        return qcow2_corrupt(q, err, "a compressed cluster has %" PRIu64 " bytes", mapping->bytes);
    q->inflated_entry = 0;
    int result = file_read(q->file, mapping->host, q->deflated, mapping->bytes, err);
    if (result)
        return result;
    bool whole = q->compression == COMPRESSION_ZSTD ? inflate_zstd(q, mapping->bytes)
                                                     : inflate_deflate(q, mapping->bytes);
    if (!whole)
        return qcow2_corrupt(q, err, "the compressed cluster at offset %#" PRIx64 " does not decompress",
                             mapping->host);
    q->inflated_entry = entry;
    return 0;
}
