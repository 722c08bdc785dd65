/* SPDX-License-Identifier: MIT */
/* Raw images: the file is the disk. */
#include "image.h"

static int raw_read(imgvm_image *image, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err)
{
    return file_read(&image->file, offset, data, bytes, err);
}

static int raw_write(imgvm_image *image, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err)
{
    return file_write(&image->file, offset, data, bytes, err);
}

static int raw_flush(imgvm_image *image, imgvm_error *err)
{
    return file_sync(&image->file, err);
}

static int raw_close(imgvm_image *image, imgvm_error *err)
{
    return image->writable ? raw_flush(image, err) : 0;
}

const struct image_ops raw_ops = {raw_read, raw_write, raw_flush, raw_close};

void raw_open(imgvm_image *image)
{
    image->ops = &raw_ops;
    image->disk_bytes = image->file.bytes;
}
