/* SPDX-License-Identifier: MIT */
/* libFuzzer target: an image may say anything. Whatever the bytes are, opening, reading, checking, writing and repairing it
 * end, with an answer or with an error that has words, within bounded memory; and a repair that says it is done leaves an
 * image without damage. The first byte chooses what is done, the rest is the file. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "include/imgvm_api.h"

/* Only in a fuzzer: a broken promise ends the process, so that the input is kept. */
#define PROMISE(condition)                                                          \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (0)

#define PART 70000u
#define SNAPSHOTS_READ 4u

/* The host's disk is not what is tested. */
int fdatasync(int fd)
{
    (void)fd;
    return 0;
}

static uint8_t data[PART];

static int told(int result, const imgvm_error *err)
{
    PROMISE(result >= 0 || (err->code == result && err->message[0]));
    return result;
}

static uint64_t clamp(uint64_t bytes)
{
    return bytes < PART ? bytes : PART;
}

static void read_all(imgvm_image *image, const imgvm_image_info *info)
{
    imgvm_error err = {0};
    uint64_t part = clamp(info->disk_bytes), run = 0;
    told(imgvm_image_read(image, 0, data, part, &err), &err);
    told(imgvm_image_read(image, info->disk_bytes / 2 & ~511ull, data, clamp(info->disk_bytes / 2), &err), &err);
    told(imgvm_image_read(image, info->disk_bytes - part, data, part, &err), &err);
    for (uint64_t at = 0, i = 0; at < info->disk_bytes && i < 64; at += run, i++) {
        if (told(imgvm_image_extent(image, at, info->disk_bytes - at, &run, &err), &err) < 0)
            break;
        PROMISE(run && run <= info->disk_bytes - at);
    }
    for (uint32_t i = 0; i < info->snapshots && i < SNAPSHOTS_READ; i++) {
        imgvm_snapshot_info snapshot;
        if (imgvm_image_snapshot(image, i, &snapshot, &err))
            continue;
        for (uint64_t at = 0, j = 0; at < snapshot.disk_bytes && j < 64; at += run, j++) {
            if (told(imgvm_image_snapshot_extent(image, i, at, snapshot.disk_bytes - at, &run, &err), &err) < 0)
                break;
            PROMISE(run && run <= snapshot.disk_bytes - at);
        }
        told(imgvm_image_snapshot_read(image, i, false, 0, data, clamp(snapshot.disk_bytes), &err), &err);
        told(imgvm_image_snapshot_read(image, i, true, 0, data, clamp(snapshot.vm_state_bytes), &err), &err);
    }
}

static void read_config(imgvm_image *image)
{
    imgvm_error err = {0};
    uint32_t count = 0;
    if (told(imgvm_image_config_count(image, &count, &err), &err))
        return;
    for (uint32_t i = 0; i < count; i++) {
        imgvm_blob_info info;
        if (!told(imgvm_image_config_info(image, i, &info, &err), &err) && info.bytes <= PART)
            told(imgvm_image_config_read(image, i, data, info.bytes, &err), &err);
    }
}

static void use_disks(imgvm_image *image, const imgvm_image_info *info, bool write)
{
    imgvm_error err = {0};
    imgvm_image *disk;
    for (uint32_t i = 0; i < info->snapshots && i < SNAPSHOTS_READ; i++) {
        imgvm_snapshot_info snapshot;
        imgvm_image_info disk_info;
        if (imgvm_image_snapshot(image, i, &snapshot, &err) || strncmp(snapshot.name, "imgvm.disk.", 11) ||
            told(imgvm_image_open_disk(image, snapshot.name + 11, &disk, &err), &err))
            continue;
        imgvm_image_get_info(disk, &disk_info);
        read_all(disk, &disk_info);
        if (write)
            told(imgvm_image_write(disk, 0, data, clamp(disk_info.disk_bytes), &err), &err);
        told(imgvm_image_close(disk, &err), &err);
    }
}

static void change(imgvm_image *image, const imgvm_image_info *info, uint8_t choice)
{
    const imgvm_snapshot_state state = {.data = data, .bytes = 1000};
    uint64_t leaks, corruptions, part = clamp(info->disk_bytes);
    imgvm_error err = {0};
    imgvm_payload *payload;
    told(imgvm_image_write(image, 0, data, part, &err), &err);
    told(imgvm_image_write(image, info->disk_bytes - part, data, part, &err), &err);
    told(imgvm_image_zero(image, 0, part, choice & 4, &err), &err);
    told(imgvm_image_discard(image, 0, info->disk_bytes / 2, &err), &err);
    if (choice & 8)
        told(imgvm_image_snapshot_create(image, "fuzz", &state, &err), &err);
    if (choice & 16)
        told(imgvm_image_snapshot_apply(image, 0, &err), &err);
    if (choice & 32)
        told(imgvm_image_snapshot_delete(image, 0, &err), &err);
    if (choice & 64)
        told(imgvm_image_resize(image, (choice & 128 ? info->disk_bytes / 2 : info->disk_bytes + 1000000) & ~511ull, &err),
             &err);
    if (!imgvm_payload_new(&payload, &err)) {
        told(imgvm_payload_add(payload, "blob", data, 5000, &err), &err);
        told(imgvm_image_set_config(image, payload, 1, &err), &err);
        imgvm_payload_free(payload);
    }
    told(imgvm_image_check(image, &leaks, &corruptions, &err), &err);
}

static void use(const char *path, int mode, uint8_t choice)
{
    imgvm_image *image = NULL;
    imgvm_image_info info;
    imgvm_error err = {0};
    uint64_t leaks, corruptions;
    if (told(imgvm_image_open(path, mode, &image, &err), &err))
        return;
    imgvm_image_get_info(image, &info);
    if (mode & IMGVM_IMAGE_REPAIR) {
        if (!told(imgvm_image_repair(image, choice & 4, &err), &err) && choice & 4)
            told(imgvm_image_check(image, &leaks, &corruptions, &err), &err);
    } else {
        read_all(image, &info);
        read_config(image);
        use_disks(image, &info, mode & IMGVM_IMAGE_READ_WRITE);
        told(imgvm_image_check(image, &leaks, &corruptions, &err), &err);
        if (mode & IMGVM_IMAGE_READ_WRITE)
            change(image, &info, choice);
    }
    told(imgvm_image_close(image, &err), &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static int fd = -1;
    static char path[64];
    static const int modes[] = {IMGVM_IMAGE_READ_ONLY, IMGVM_IMAGE_READ_WRITE, IMGVM_IMAGE_REPAIR, IMGVM_IMAGE_READ_WRITE};
    if (size < 2)
        return 0;
    if (fd < 0) {
        fd = memfd_create("image", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (ftruncate(fd, 0) || pwrite(fd, input + 1, size - 1, 0) != (ssize_t)(size - 1))
        return 0;
    use(path, modes[input[0] & 3] | IMGVM_IMAGE_KEEP_TO_FOLDER, input[0]);
    return 0;
}
