/* SPDX-License-Identifier: MIT */
#include "image.h"

/* The images below are only read: what their maps say stays true without a turn. */
static bool plan(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out, unsigned max,
                 unsigned *count)
{
    while (bytes) {
        if (*count == max)
            return false;
        struct image_extent *extent = &out[*count];
        uint64_t below = image->backing && offset < image->backing->disk_bytes ? image->backing->disk_bytes - offset : 0;
        enum image_place place = image->ops->place(image, write, offset, bytes, extent);
        if (place == PLACE_UNKNOWN)
            return false;
        if (place == PLACE_BELOW && below) {
            extent->bytes = MIN(extent->bytes, below);
            uint64_t part = extent->bytes; /* the plan for it takes this extent's place */
            if (!plan(image->backing, write, offset, part, out, max, count))
                return false;
            offset += part;
            bytes -= part;
            continue;
        }
        if (place != PLACE_FILE)
            extent->file = NULL;
        offset += extent->bytes;
        bytes -= extent->bytes;
        ++*count;
    }
    return true;
}

bool image_plan_begin(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out,
                      unsigned max, unsigned *count)
{
    *count = 0;
    if ((write && !image->writable) || offset > image->disk_bytes || bytes > image->disk_bytes - offset ||
        pthread_rwlock_tryrdlock(&image->turn))
        return false;
    if (plan(image, write, offset, bytes, out, max, count))
        return true;
    image_plan_end(image);
    return false;
}

void image_plan_end(imgvm_image *image)
{
    pthread_rwlock_unlock(&image->turn);
}
