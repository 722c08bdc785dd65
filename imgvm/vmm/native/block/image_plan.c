/* SPDX-License-Identifier: MIT */
#include "image.h"

static bool try_turn(imgvm_image *image)
{
    if (pthread_rwlock_tryrdlock(&image->turn))
        return false;
    if (!image->ops->try_share || image->ops->try_share(image))
        return true;
    pthread_rwlock_unlock(&image->turn);
    return false;
}

static void leave_turn(imgvm_image *image)
{
    if (image->ops->unshare)
        image->ops->unshare(image);
    pthread_rwlock_unlock(&image->turn);
}

static bool plan(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out, unsigned max,
                 unsigned *count);

/* The images below are only read: what their maps say stays true after the turn. */
static bool plan_below(imgvm_image *image, uint64_t offset, uint64_t bytes, struct image_extent *out, unsigned max,
                       unsigned *count)
{
    if (!try_turn(image))
        return false;
    bool known = plan(image, false, offset, bytes, out, max, count);
    leave_turn(image);
    return known;
}

static bool plan(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out, unsigned max,
                 unsigned *count)
{
    for (uint64_t part; bytes; offset += part, bytes -= part) {
        if (*count == max)
            return false;
        struct image_extent *extent = &out[*count];
        uint64_t below = image->backing && offset < image->backing->disk_bytes ? image->backing->disk_bytes - offset : 0;
        enum image_place place = image->ops->place(image, write, offset, bytes, extent);
        if (place == PLACE_UNKNOWN)
            return false;
        part = extent->bytes;
        if (place == PLACE_BELOW && below) { /* what is found there takes this extent's place */
            part = MIN(part, below);
            if (!plan_below(image->backing, offset, part, out, max, count))
                return false;
            continue;
        }
        if (place != PLACE_FILE)
            extent->file = NULL;
        ++*count;
    }
    return true;
}

bool image_plan_begin(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out,
                      unsigned max, unsigned *count)
{
    *count = 0;
    if ((write && !image->writable) || offset > image->disk_bytes || bytes > image->disk_bytes - offset ||
        !try_turn(image))
        return false;
    if (plan(image, write, offset, bytes, out, max, count))
        return true;
    leave_turn(image);
    return false;
}

void image_plan_end(imgvm_image *image)
{
    leave_turn(image);
}
