/* SPDX-License-Identifier: MIT */
/* Raw images: the file is the disk. */
#include "image.h"

static int raw_read(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    return file_readv(&image->file, offset, vec, bytes, err);
}

static int raw_write_shared(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, uint64_t *done,
                              imgvm_error *err)
{
    *done = bytes;
    return file_writev(&image->file, offset, vec, bytes, err);
}

static int raw_write(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    return file_writev(&image->file, offset, vec, bytes, err);
}

static int raw_extent(imgvm_image *image, uint64_t offset, uint64_t bytes, uint64_t *run, bool *is_zero,
                      imgvm_error *err)
{
    (void)err;
    *is_zero = !file_is_data(&image->file, offset, bytes, run);
    return 0;
}

static enum image_place raw_place(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes,
                                  struct image_extent *out)
{
    (void)write;
    *out = (struct image_extent){&image->file, offset, bytes};
    return PLACE_FILE;
}

static int raw_zero(imgvm_image *image, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err)
{
    return file_zero(&image->file, offset, bytes, give_back, err);
}

static int raw_discard(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    (void)err;
    file_punch(&image->file, offset, bytes);
    return 0;
}

static int raw_flush(imgvm_image *image, imgvm_error *err)
{
    return file_sync(&image->file, err);
}

static int raw_flush_data(imgvm_image *image, imgvm_error *err)
{
    int result = raw_flush(image, err);
    return result ? result : 1;
}

static int raw_resize(imgvm_image *image, uint64_t disk_bytes, imgvm_error *err)
{
    int result = file_set_size(&image->file, disk_bytes, err);
    if (!result)
        image->disk_bytes = disk_bytes;
    return result;
}

static int raw_close(imgvm_image *image, imgvm_error *err)
{
    return image->writable ? raw_flush(image, err) : 0;
}

const struct image_ops raw_ops = {
    .read = raw_read, .write_shared = raw_write_shared, .extent = raw_extent, .place = raw_place,
    .flush_data = raw_flush_data, .write = raw_write, .zero = raw_zero, .discard = raw_discard, .flush = raw_flush, .resize = raw_resize,
    .close = raw_close,
};

void raw_open(imgvm_image *image)
{
    image->ops = &raw_ops;
    image->disk_bytes = image->file.bytes;
}
