/* SPDX-License-Identifier: MIT */
/* What stands behind an imgvm_image handle: a raw or a qcow2 file, and the chain of images under it.
 * image.c checks every request and serialises them per handle; the formats see valid ones only. */
#ifndef IMGVM_BLOCK_IMAGE_H
#define IMGVM_BLOCK_IMAGE_H

#include <pthread.h>

#include "file.h"

#define BACKING_DEPTH_MAX 64

struct qcow2;

struct image_ops {
    int (*read)(imgvm_image *image, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err);
    int (*write)(imgvm_image *image, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err);
    int (*flush)(imgvm_image *image, imgvm_error *err);
    int (*close)(imgvm_image *image, imgvm_error *err); /* flushes and frees what the format allocated */
};

struct imgvm_image {
    const struct image_ops *ops;
    pthread_mutex_t lock; /* taken from overlay to backing file, never the other way */
    struct block_file file;
    bool writable;
    bool keep_to_folder; /* a backing file elsewhere is refused */
    uint64_t disk_bytes;
    imgvm_image *overlay; /* who has us as backing file; only while opening */
    imgvm_image *backing;
    unsigned depth;
    struct qcow2 *qcow2; /* NULL: raw */
};

/* Fills *image, whose file is open. The name of the backing file and its format (may be "") come back;
 * image.c opens it. */
struct backing_name {
    char name[1024];
    char format[32];
};

extern const struct image_ops raw_ops;
void raw_open(imgvm_image *image);
int qcow2_open(imgvm_image *image, struct backing_name *backing, imgvm_error *err);

#endif
