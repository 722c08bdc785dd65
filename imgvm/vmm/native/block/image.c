/* SPDX-License-Identifier: MIT */
/* The handle: opening by content, the backing chain, request checks, turns. */
#define _GNU_SOURCE
#include "image.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qcow2.h"

enum probe { PROBE_CONTENT, PROBE_RAW, PROBE_QCOW2 };

static int open_one(const char *path, int mode, enum probe probe, imgvm_image *overlay, imgvm_image *below,
                    imgvm_image **out, imgvm_error *err);

void image_free(imgvm_image *image)
{
    file_close(&image->file);
    file_close(&image->data_file);
    pthread_mutex_destroy(&image->lock);
    pthread_rwlock_destroy(&image->turn);
    free(image);
}

/* A handle without a file. `path`: what messages call it, unless a file is opened for it. */
int image_new(const char *path, imgvm_image **out, imgvm_error *err)
{
    imgvm_image *image = calloc(1, sizeof *image);
    char *name = path ? strdup(path) : NULL;
    if (!image || (path && !name)) {
        free(image);
        free(name);
        return error_set(err, ENOMEM, "out of memory");
    }
    pthread_mutex_init(&image->lock, NULL);
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    /* A stream of reads must not keep a flush waiting. */
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&image->turn, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    image->file.path = name;
    image->file.fd = image->data_file.fd = -1;
    *out = image;
    return 0;
}

/* Closes the whole chain, from the top down. */
int image_close_chain(imgvm_image *image, imgvm_error *err)
{
    int result = 0;
    while (image) {
        imgvm_image *backing = image->backing_is_lent ? NULL : image->backing;
        if (image->ops) {
            int closed = image->ops->close(image, result ? NULL : err);
            result = result ? result : closed;
        }
        image_free(image);
        image = backing;
    }
    return result;
}

static int starts_with(const char *text, const char *prefix)
{
    return !strncmp(text, prefix, strlen(prefix));
}

static int join_path(const imgvm_image *image, const char *what, const char *name, char *out, size_t size,
                     imgvm_error *err)
{
    if (starts_with(name, "file:"))
        name += strlen("file:");
    else {
        /* A protocol is what stands before a colon that no slash precedes: nbd:..., json:{...}, https://... */
        const char *colon = strchr(name, ':'), *slash = strchr(name, '/');
        if (colon && (!slash || colon < slash)) {
            error_set(err, ENOTSUP, "%s: %s %.200s is not a local file", image->file.path, what, name);
            return error_hint(err, "`qemu-img convert` makes an image that needs no %s", what);
        }
    }
    int length;
    const char *slash = strrchr(image->file.path, '/');
    if (name[0] == '/' || !slash)
        length = snprintf(out, size, "%s", name);
    else
        length = snprintf(out, size, "%.*s/%s", (int)(slash - image->file.path), image->file.path, name);
    if (length < 0 || (size_t)length >= size)
        return error_set(err, ENAMETOOLONG, "%s: the name of its %s is too long", image->file.path, what);
    return 0;
}

/* An image from elsewhere could name any file here and show it to its guest. Symbolic links are followed first. */
static int refuse_outside(const imgvm_image *image, const char *what, const char *name, const char *path,
                          imgvm_error *err)
{
    char here[PATH_MAX], there[PATH_MAX];
    if (!image->keep_to_folder || !realpath(path, there)) /* opening says what is wrong */
        return 0;
    if (name[0] != '/' && realpath(image->file.path, here)) {
        size_t folder_bytes = (size_t)(strrchr(here, '/') + 1 - here);
        if (!strncmp(here, there, folder_bytes))
            return 0;
    }
    error_set(err, EPERM, "%.180s: its %s %.200s is not inside its folder", image->file.path, what, name);
    return error_hint(err, "`qemu-img convert` makes an image that needs no %s", what);
}

int image_resolve(const imgvm_image *image, const char *what, const char *name, char *out, size_t size,
                  imgvm_error *err)
{
    int result = join_path(image, what, name, out, size, err);
    return result ? result : refuse_outside(image, what, name, out, err);
}

static int open_backing(imgvm_image *image, const struct backing_name *backing, imgvm_error *err)
{
    char path[PATH_MAX];
    enum probe probe = PROBE_CONTENT;
    if (!strcmp(backing->format, "raw"))
        probe = PROBE_RAW; /* whatever a guest wrote into it */
    else if (!strcmp(backing->format, "qcow2"))
        probe = PROBE_QCOW2;
    else if (backing->format[0]) {
        error_set(err, ENOTSUP, "%s: its backing file has format %s; only raw and qcow2 are supported",
                  image->file.path, backing->format);
        return error_hint(err, "`qemu-img convert -O qcow2` converts the backing file");
    }
    int result = image_resolve(image, "backing file", backing->name, path, sizeof path, err);
    if (result)
        return result;
    if (image->depth + 1 >= BACKING_DEPTH_MAX)
        return error_set(err, ELOOP, "%s: more than %d backing files in a chain", image->file.path, BACKING_DEPTH_MAX);
    int mode = image->keep_to_folder ? IMGVM_IMAGE_KEEP_TO_FOLDER : 0;
    result = open_one(path, mode, probe, image, NULL, &image->backing, err);
    if (result && err && !starts_with(err->message, "backing file of ")) { /* the lowest link tells it */
        char message[sizeof err->message];
        memcpy(message, err->message, sizeof message);
        snprintf(err->message, sizeof err->message, "backing file of %.180s: %.270s", image->file.path, message);
    }
    return result;
}

/* Before opening: the lock of the upper handle would only say that the file is busy. */
static int refuse_loop(const char *path, const imgvm_image *overlay, imgvm_error *err)
{
    struct stat st;
    if (!overlay || stat(path, &st) < 0) /* opening says what is wrong */
        return 0;
    for (const imgvm_image *above = overlay; above; above = above->overlay)
        if (above->file.device == st.st_dev && above->file.inode == st.st_ino)
            return error_set(err, ELOOP, "%s is its own backing file", path);
    return 0;
}

/* `below`: takes the place of what the image names as its backing file. */
static int open_one(const char *path, int mode, enum probe probe, imgvm_image *overlay, imgvm_image *below,
                    imgvm_image **out, imgvm_error *err)
{
    bool writable = mode & (IMGVM_IMAGE_READ_WRITE | IMGVM_IMAGE_REPAIR);
    int result = refuse_loop(path, overlay, err);
    if (result)
        return result;
    imgvm_image *image;
    if ((result = image_new(NULL, &image, err)))
        return result;
    result = file_open(&image->file, path, writable, err);
    if (result) {
        image_free(image);
        return result;
    }
    image->writable = writable;
    image->repairing = mode & IMGVM_IMAGE_REPAIR;
    image->keep_to_folder = mode & IMGVM_IMAGE_KEEP_TO_FOLDER;
    image->overlay = overlay;
    image->depth = overlay ? overlay->depth + 1 : 0;
    struct backing_name backing = {0};
    uint8_t magic[4] = {0};
    if (probe == PROBE_CONTENT) {
        result = file_read(&image->file, 0, magic, sizeof magic, err);
        probe = load_be32(magic) == QCOW2_MAGIC ? PROBE_QCOW2 : PROBE_RAW;
    }
    if (!result) {
        if (probe == PROBE_RAW)
            raw_open(image);
        else
            result = qcow2_open(image, &backing, err);
    }
    if (below) {
        image->backing = below;
        image->backing_is_lent = true;
    } else if (!result && backing.name[0])
        result = open_backing(image, &backing, err);
    if (!result && image->qcow2)
        result = qcow2_open_finish(image, err);
    if (result) {
        image_close_chain(image, NULL);
        return result;
    }
    *out = image;
    return 0;
}

int imgvm_image_open(const char *path, int mode, imgvm_image **out, imgvm_error *err)
{
    *out = NULL;
    int result = open_one(path, mode, mode & IMGVM_IMAGE_RAW ? PROBE_RAW : PROBE_CONTENT, NULL, NULL, out, err);
    for (imgvm_image *image = result ? NULL : *out; image; image = image->backing)
        image->overlay = NULL;
    return result;
}

int imgvm_image_lay_over(imgvm_image *below, const char *path, imgvm_image **out, imgvm_error *err)
{
    const imgvm_image_options options = {.disk_bytes = below->disk_bytes};
    *out = NULL;
    int result = imgvm_image_create_with(path, &options, err);
    if (!result && (result = imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, out, err)))
        unlink(path);
    if (result)
        return result;
    (*out)->backing = below;
    (*out)->backing_is_lent = true;
    return 0;
}

int imgvm_image_open_over(imgvm_image *below, const char *path, int mode, imgvm_image **out, imgvm_error *err)
{
    *out = NULL;
    return open_one(path, mode, PROBE_QCOW2, NULL, below, out, err);
}

int imgvm_image_close(imgvm_image *image, imgvm_error *err)
{
    return image_close_chain(image, err);
}

static int check_range(const imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    if (offset <= image->disk_bytes && bytes <= image->disk_bytes - offset)
        return 0;
    return error_set(err, EINVAL, "%s: %" PRIu64 " bytes at %" PRIu64 " are beyond the end of the disk (%" PRIu64 ")",
                     image->file.path, bytes, offset, image->disk_bytes);
}

int image_refuse_read_only(const imgvm_image *image, imgvm_error *err)
{
    if (image->writable)
        return 0;
    return error_set(err, EROFS, "%s is open for reading only", image->file.path);
}

int image_check_change(const imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    int result = image_refuse_read_only(image, err);
    return result ? result : check_range(image, offset, bytes, err);
}

/* ---- turns ---- */

static void share(imgvm_image *image) { pthread_rwlock_rdlock(&image->turn); }
void image_exclude(imgvm_image *image) { pthread_rwlock_wrlock(&image->turn); }
void image_leave(imgvm_image *image) { pthread_rwlock_unlock(&image->turn); }

int image_read(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    int result = check_range(image, offset, bytes, err);
    if (result)
        return result;
    share(image);
    result = image->ops->read(image, offset, vec, bytes, err);
    image_leave(image);
    return result;
}

int image_write(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    uint64_t done;
    int result = image_check_change(image, offset, bytes, err);
    if (result)
        return result;
    share(image);
    result = image->ops->write_shared(image, offset, vec, bytes, &done, err);
    image_leave(image);
    if (result || done == bytes)
        return result;
    image_exclude(image);
    result = image->ops->write(image, offset + done, vec, bytes - done, err);
    image_leave(image);
    return result;
}

int image_extent(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero, imgvm_error *err)
{
    int result = check_range(image, offset, bytes, err);
    if (result)
        return result;
    share(image);
    result = image->ops->extent(image, offset, bytes, run, is_zero, err);
    image_leave(image);
    return result;
}

int imgvm_image_read(imgvm_image *image, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err)
{
    const struct iovec piece = {data, bytes};
    struct vec vec = {.piece = &piece};
    return image_read(image, offset, &vec, bytes, err);
}

int imgvm_image_write(imgvm_image *image, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err)
{
    const struct iovec piece = {(void *)data, bytes};
    struct vec vec = {.piece = &piece};
    return image_write(image, offset, &vec, bytes, err);
}

int imgvm_image_extent(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, imgvm_error *err)
{
    bool is_zero = false;
    *run = 0;
    int result = bytes ? image_extent(image, offset, bytes, run, &is_zero, err) : 0;
    return result ? result : is_zero;
}

int imgvm_image_zero(imgvm_image *image, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err)
{
    int result = image_check_change(image, offset, bytes, err);
    if (result)
        return result;
    image_exclude(image);
    result = image->ops->zero(image, offset, bytes, give_back, err);
    image_leave(image);
    return result;
}

int imgvm_image_discard(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    int result = image_check_change(image, offset, bytes, err);
    if (result)
        return result;
    image_exclude(image);
    result = image->ops->discard(image, offset, bytes, err);
    image_leave(image);
    return result;
}

int imgvm_image_flush(imgvm_image *image, imgvm_error *err)
{
    if (!image->writable)
        return 0;
    share(image);
    int result = image->ops->flush_data(image, err);
    image_leave(image);
    if (result)
        return MIN(result, 0);
    image_exclude(image);
    result = image->ops->flush(image, err);
    image_leave(image);
    return result;
}

void imgvm_image_write_out(imgvm_image *image)
{
    file_write_out(image->map ? &image->map->holder->file : &image->file);
}

int imgvm_image_resize(imgvm_image *image, uint64_t disk_bytes, imgvm_error *err)
{
    int result = image_refuse_read_only(image, err);
    if (result)
        return result;
    image_exclude(image);
    result = image->ops->resize(image, disk_bytes, err);
    image_leave(image);
    return result;
}

int imgvm_image_get_info(imgvm_image *image, imgvm_image_info *out)
{
    memset(out, 0, sizeof *out);
    image_exclude(image);
    out->disk_bytes = image->disk_bytes;
    out->file_bytes = file_bytes(&image->file);
    if (image_has_tables(image))
        qcow2_info(image->qcow2, out);
    else if (image->map)
        out->cluster_bytes = (uint32_t)image->qcow2->cluster_bytes;
    image_leave(image);
    return 0;
}
