/* SPDX-License-Identifier: MIT */
/* What a transfer is in the files of a chain, for who moves data by other means than image_read and image_write. */
#ifndef IMGVM_BLOCK_IMAGE_PLAN_H
#define IMGVM_BLOCK_IMAGE_PLAN_H

#include "file.h"

/* A stretch of a disk, in a file; file NULL: zeros. */
struct image_extent {
    struct block_file *file;
    uint64_t offset, bytes;
};

/* Its extents, at most `max`. true: the shared turn is taken (image.h), and the caller's until image_plan_end, on the same
 * thread. false: image_read or image_write must do it, which may wait. */
bool image_plan_begin(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out,
                      unsigned max, unsigned *count);
void image_plan_end(imgvm_image *image);

#endif
