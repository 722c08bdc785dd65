/* SPDX-License-Identifier: MIT */
/* What a qcow2 file holds besides its first disk: snapshots, the configuration, further disks; and its examination. */
#include "image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

int imgvm_image_snapshot(imgvm_image *image, uint32_t index, imgvm_snapshot_info *out, imgvm_error *err)
{
    memset(out, 0, sizeof *out);
    image_exclude(image);
    int result = -ENOENT;
    if (image_has_tables(image))
        result = qcow2_snapshot_info(image->qcow2, index, out);
    image_leave(image);
    return result ? error_set(err, ENOENT, "%s has no snapshot number %u", image->file.path, index) : 0;
}

static int refuse_raw(const imgvm_image *image, const char *what, imgvm_error *err)
{
    if (image_has_tables(image))
        return 0;
    if (image->map)
        return error_set(err, ENOTSUP, "%s is a further disk of an image and cannot %s", image->file.path, what);
    error_set(err, ENOTSUP, "%s is a raw image and cannot %s", image->file.path, what);
    return error_hint(err, "`imgvm convert` makes one that can");
}

static int check_snapshot(const imgvm_image *image, uint32_t index, bool change, imgvm_error *err)
{
    imgvm_snapshot_info info;
    int result = change ? image_refuse_read_only(image, err) : 0;
    if (!result)
        result = image->map ? 0 : refuse_raw(image, "have snapshots", err);
    if (result)
        return result;
    if (qcow2_snapshot_info(image->qcow2, index, &info))
        return error_set(err, ENOENT, "%s has no snapshot number %u", image->file.path, index);
    if (change && disk_is_record(image->qcow2, index))
        return error_set(err, EBUSY, "%s: %s is no snapshot but a disk of the machine", image->file.path, info.name);
    return 0;
}

/* A further disk's map must be in its place while its snapshots are made and applied, or it is compressed. */
static void take_turn(imgvm_image *image)
{
    image_exclude(image);
    if (image->map)
        disk_enter(image);
}

static void end_turn(imgvm_image *image)
{
    if (image->map)
        disk_leave(image);
    image_leave(image);
}

int imgvm_image_snapshot_create(imgvm_image *image, const char *name, const imgvm_snapshot_state *state,
                                imgvm_error *err)
{
    int result = image_refuse_read_only(image, err);
    if (!result && !image->map)
        result = refuse_raw(image, "have snapshots", err);
    if (result)
        return result;
    take_turn(image);
    result = snapshot_create(image->qcow2, name, state, err);
    end_turn(image);
    return result;
}

int imgvm_image_snapshot_apply(imgvm_image *image, uint32_t index, imgvm_error *err)
{
    take_turn(image);
    int result = check_snapshot(image, index, true, err);
    if (!result)
        result = snapshot_apply(image->qcow2, index, err);
    end_turn(image);
    return result;
}

int imgvm_image_snapshot_delete(imgvm_image *image, uint32_t index, imgvm_error *err)
{
    image_exclude(image);
    int result = refuse_raw(image, "have snapshots", err);
    if (!result)
        result = check_snapshot(image, index, true, err);
    if (!result)
        result = snapshot_delete(image->qcow2, index, err);
    image_leave(image);
    return result;
}

int imgvm_image_snapshot_extent(imgvm_image *image, uint32_t index, uint64_t offset, uint64_t bytes, uint64_t *run,
                                imgvm_error *err)
{
    bool is_zero = false;
    *run = 0;
    image_exclude(image);
    int result = refuse_raw(image, "have snapshots", err);
    if (!result)
        result = check_snapshot(image, index, false, err);
    if (!result && bytes)
        result = snapshot_extent(image->qcow2, index, offset, bytes, run, &is_zero, err);
    image_leave(image);
    return result ? result : is_zero;
}

int imgvm_image_snapshot_read(imgvm_image *image, uint32_t index, bool state, uint64_t offset, void *data,
                              uint64_t bytes, imgvm_error *err)
{
    image_exclude(image);
    int result = refuse_raw(image, "have snapshots", err);
    if (!result)
        result = check_snapshot(image, index, false, err);
    if (!result)
        result = snapshot_read(image->qcow2, index, state, offset, data, bytes, err);
    image_leave(image);
    return result;
}

int imgvm_image_write_compressed(imgvm_image *image, uint64_t offset, const void *data, uint64_t bytes,
                                 uint32_t threads, imgvm_error *err)
{
    int result = image_check_change(image, offset, bytes, err);
    if (!result && !image->map)
        result = refuse_raw(image, "be compressed", err);
    if (result)
        return result;
    take_turn(image);
    result = qcow2_write_compressed(image, offset, data, bytes, threads, err);
    end_turn(image);
    return result;
}

int imgvm_image_repair(imgvm_image *image, bool all, imgvm_error *err)
{
    int result = image_refuse_read_only(image, err);
    if (result || !image_has_tables(image))
        return result;
    if (image->qcow2->further)
        return error_set(err, EBUSY, "%s has further disks that are open", image->file.path);
    image_exclude(image);
    result = qcow2_repair(image->qcow2, all, err);
    image_leave(image);
    return result;
}

int imgvm_image_check(imgvm_image *image, uint64_t *leaks, uint64_t *corruptions, imgvm_error *err)
{
    *leaks = *corruptions = 0;
    if (!image_has_tables(image))
        return 0; /* a raw image cannot be inconsistent */
    image_exclude(image);
    int result = image->writable ? image->ops->flush(image, err) : 0;
    if (!result)
        result = qcow2_check(image->qcow2, leaks, corruptions, err);
    image_leave(image);
    if (result < 0)
        return result;
    return (*leaks ? IMGVM_CHECK_LEAKS : 0) | (*corruptions ? IMGVM_CHECK_CORRUPT : 0);
}

/* An overlay has no config of its own as a rule: the nearest image of the chain that has one answers. */
static int with_config(imgvm_image *image, imgvm_error *err, imgvm_image **out)
{
    for (imgvm_image *at = image; at; at = at->backing) {
        if (!image_has_tables(at))
            continue;
        image_exclude(at);
        int result = config_load(at->qcow2, err);
        if (!result) {
            *out = at; /* in its exclusive turn */
            return 0;
        }
        image_leave(at);
        if (result != -ENOENT)
            return result;
    }
    error_set(err, ENOENT, "%s has no imgvm configuration in it", image->file.path);
    return error_hint(err, "`imgvm pack` makes images that run by themselves");
}

int imgvm_image_config_count(imgvm_image *image, uint32_t *count, imgvm_error *err)
{
    imgvm_image *holder;
    int result = with_config(image, err, &holder);
    if (result)
        return result;
    *count = config_count(holder->qcow2);
    image_leave(holder);
    return 0;
}

int imgvm_image_config_info(imgvm_image *image, uint32_t index, imgvm_blob_info *out, imgvm_error *err)
{
    imgvm_image *holder;
    int result = with_config(image, err, &holder);
    if (result)
        return result;
    result = config_info(holder->qcow2, index, out, err);
    image_leave(holder);
    return result;
}

int imgvm_image_config_read(imgvm_image *image, uint32_t index, void *data, uint64_t bytes, imgvm_error *err)
{
    imgvm_image *holder;
    int result = with_config(image, err, &holder);
    if (result)
        return result;
    result = config_read(holder->qcow2, index, data, bytes, err);
    image_leave(holder);
    return result;
}

int imgvm_image_set_config(imgvm_image *image, const imgvm_payload *payload, uint32_t date_sec, imgvm_error *err)
{
    int result = image_refuse_read_only(image, err);
    if (result)
        return result;
    if ((result = refuse_raw(image, "hold a configuration", err)))
        return result;
    image_exclude(image);
    result = config_set(image->qcow2, payload, date_sec, err);
    image_leave(image);
    return result;
}

/* ---- further disks ---- */

int imgvm_image_add_disk(imgvm_image *image, const char *name, uint64_t disk_bytes, uint32_t date_sec, imgvm_error *err)
{
    int result = image_refuse_read_only(image, err);
    if (!result)
        result = refuse_raw(image, "hold further disks", err);
    if (result)
        return result;
    image_exclude(image);
    result = disk_add(image->qcow2, name, disk_bytes, date_sec, err);
    image_leave(image);
    return result;
}

/* Is there a disk of that name between `image` and `below`? */
static bool is_hidden(imgvm_image *image, const imgvm_image *below, const char *name)
{
    bool found = false;
    for (imgvm_image *at = image; at != below && !found; at = at->backing) {
        image_exclude(at);
        found = image_has_tables(at) && disk_is_there(at->qcow2, name);
        image_leave(at);
    }
    return found;
}

int imgvm_image_disk_name(imgvm_image *image, uint32_t index, char *name, uint32_t name_size, imgvm_error *err)
{
    for (imgvm_image *at = image; at; at = at->backing) {
        int result = 0;
        for (uint32_t i = 0; image_has_tables(at) && !result; i++) {
            image_exclude(at);
            result = disk_name(at->qcow2, i, name, name_size);
            image_leave(at);
            if (!result && !is_hidden(image, at, name) && !index--)
                return 0;
        }
    }
    return error_set(err, ENOENT, "%s has no further disk", image->file.path);
}

/* The nearest disk of that name, in this image or in one below it. */
static int open_disk(imgvm_image *holder, const char *name, imgvm_image **out, imgvm_error *err)
{
    imgvm_image *disk;
    int result = image_new(holder->file.path, &disk, err);
    if (result)
        return result;
    image_exclude(holder);
    result = image_has_tables(holder) ? disk_open(holder, name, disk, err) : -ENOENT;
    image_leave(holder);
    if (result) {
        image_free(disk);
        return result == -ENOENT && holder->backing ? open_disk(holder->backing, name, out, err) : result;
    }
    result = holder->backing ? open_disk(holder->backing, name, &disk->backing, err) : 0;
    if (result && result != -ENOENT) {
        image_close_chain(disk, NULL);
        return result;
    }
    *out = disk;
    return 0;
}

int imgvm_image_open_disk(imgvm_image *image, const char *name, imgvm_image **out, imgvm_error *err)
{
    imgvm_image *found;
    *out = NULL;
    int result = open_disk(image, name, &found, err);
    if (result == -ENOENT) {
        error_set(err, ENOENT, "%s has no disk %s in it", image->file.path, name);
        return error_hint(err, "`imgvm pack` puts it there; other programs' copies leave it out");
    }
    if (!result && image->writable && !found->writable) {
        /* An overlay gets one of its own above it. */
        uint64_t bytes = found->disk_bytes;
        image_close_chain(found, NULL);
        if ((result = imgvm_image_add_disk(image, name, bytes, 0, err)))
            return result;
        result = open_disk(image, name, &found, err);
    }
    if (!result)
        *out = found;
    return result;
}
