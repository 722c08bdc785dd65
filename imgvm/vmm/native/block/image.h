/* SPDX-License-Identifier: MIT */
/* What stands behind an imgvm_image handle: a raw or a qcow2 file, and the chain of images under it.
 *
 * image.c checks every request and gives it its turn. Shared turns (reads, most writes) go on side by side: they look the
 * map up, and change entries of it, under `lock`. In the exclusive turn (everything else) nobody else is there. Turns
 * and locks are taken from overlay to backing file, never the other way. */
#ifndef IMGVM_BLOCK_IMAGE_H
#define IMGVM_BLOCK_IMAGE_H

#include <pthread.h>

#include "file.h"
#include "image_plan.h"

#define BACKING_DEPTH_MAX 64

struct qcow2;
struct disk_map;

enum image_place {
    PLACE_UNKNOWN, /* it is not to be had, or changed, by moving bytes of a file */
    PLACE_FILE,
    PLACE_ZERO,
    PLACE_BELOW, /* the backing file's, or zeros where there is none */
};

struct image_ops {
    /* Shared. */
    int (*read)(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
    /* As far as that goes in a shared turn: *done bytes, which may be 0. */
    int (*write_shared)(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t *done,
                          imgvm_error *err);
    /* How far from `offset` on all is zero, or all may be something else. */
    int (*extent)(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero, imgvm_error *err);
    /* Where what begins at `offset` is: *out, at most `bytes` long. */
    enum image_place (*place)(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out);
    /* NULL, or what a shared turn takes besides the handle's: false when that would have to wait. */
    bool (*try_share)(imgvm_image *image);
    void (*unshare)(imgvm_image *image);
    /* 1 when data alone was to be flushed and is; 0 when the rest takes the exclusive turn. */
    int (*flush_data)(imgvm_image *image, imgvm_error *err);
    /* Exclusive. */
    int (*write)(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
    int (*zero)(imgvm_image *image, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err);
    int (*discard)(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err);
    int (*flush)(imgvm_image *image, imgvm_error *err);
    int (*resize)(imgvm_image *image, uint64_t disk_bytes, imgvm_error *err);
    int (*close)(imgvm_image *image, imgvm_error *err); /* flushes and frees what the format allocated */
};

struct imgvm_image {
    const struct image_ops *ops;
    pthread_rwlock_t turn; /* held for reading in a shared turn */
    pthread_mutex_t lock;  /* the map, in a shared turn */
    struct block_file file;
    struct block_file data_file; /* qcow2's external one; fd -1: none */
    bool writable;
    bool repairing;      /* opened to be repaired: its flags and refcounts are not believed */
    bool keep_to_folder; /* a backing file elsewhere is refused */
    uint64_t disk_bytes;
    imgvm_image *overlay; /* who has us as backing file; only while opening */
    imgvm_image *backing;
    bool backing_is_lent; /* and closed by somebody else */
    unsigned depth;
    struct qcow2 *qcow2; /* NULL: raw */
    struct disk_map *map; /* a further disk of that qcow2's file (qcow2_disk.c); else NULL */
};

/* Fills *image, whose file is open, and opens its data file. The name of the backing file and its format (may be "") come back;
 * image.c opens it. */
struct backing_name {
    char name[1024];
    char format[32];
};

/* For devices and for overlays: the pieces of memory at `vec`, which are consumed. The range is inside the disk. */
int image_read(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
int image_write(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
int image_extent(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero, imgvm_error *err);

/* Names in an image are relative to its folder. -EPERM when the image must keep to its folder and `name` leads out of
 * it; `what` says what kind of file it is. */
int image_resolve(const imgvm_image *image, const char *what, const char *name, char *out, size_t size,
                  imgvm_error *err);

/* For image_parts.c. */
int image_new(const char *path, imgvm_image **out, imgvm_error *err); /* without a file; `path` is for messages */
void image_free(imgvm_image *image);
int image_close_chain(imgvm_image *image, imgvm_error *err); /* from the top down */
void image_exclude(imgvm_image *image);
void image_leave(imgvm_image *image);
int image_refuse_read_only(const imgvm_image *image, imgvm_error *err);
int image_check_change(const imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err); /* writable, and in range? */
/* A further disk has a map only: snapshots, configuration and checks are the affair of the file's own handle. */
static inline bool image_has_tables(const imgvm_image *image)
{
    return image->qcow2 && !image->map;
}

extern const struct image_ops raw_ops;
void raw_open(imgvm_image *image);
int qcow2_open(imgvm_image *image, struct backing_name *backing, imgvm_error *err);

#endif
