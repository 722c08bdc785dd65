/* SPDX-License-Identifier: MIT */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* One system call moves at most this much (Linux's own limit is 2 GiB - 4 KiB). */
#define TRANSFER_BYTES_MAX (UINT64_C(1) << 30)

static int open_failed(const char *path, bool writable, int number, imgvm_error *err)
{
    error_set(err, number, "cannot open %s: %s", path, strerror(number));
    if (number == ENOENT)
        error_hint(err, "check the name; `imgvm pack` makes an image");
    else if (writable && (number == EACCES || number == EPERM || number == EROFS))
        error_hint(err, "the image must be writable; copy it to a place of your own");
    return -number;
}

static int describe(struct block_file *file, imgvm_error *err)
{
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return error_set(err, errno, "cannot examine %s: %s", file->path, strerror(errno));
    file->device = st.st_dev;
    file->inode = st.st_ino;
    if (S_ISREG(st.st_mode)) {
        file->bytes = (uint64_t)st.st_size;
        return 0;
    }
    if (S_ISBLK(st.st_mode)) {
        file->is_device = true;
        if (ioctl(file->fd, BLKGETSIZE64, &file->bytes) < 0)
            return error_set(err, errno, "cannot size %s: %s", file->path, strerror(errno));
        return 0;
    }
    return error_set(err, EINVAL, "%s is neither a file nor a block device", file->path);
}

static int attach(struct block_file *file, const char *path, int flags, imgvm_error *err)
{
    *file = (struct block_file){.fd = -1, .writable = (flags & O_ACCMODE) == O_RDWR};
    file->path = strdup(path);
    if (!file->path)
        return error_set(err, ENOMEM, "out of memory");
    do
        file->fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
    while (file->fd < 0 && errno == EINTR);
    int result = 0;
    file->made = file->fd >= 0 && flags & O_EXCL;
    if (file->fd < 0) {
        /* Directories refuse writing; both ways deserve the same words. */
        if (errno == EISDIR)
            result = error_set(err, EINVAL, "%s is neither a file nor a block device", path);
        else if (errno == EEXIST) {
            result = error_set(err, EEXIST, "%s exists already", path);
            error_hint(err, "choose another name or remove it");
        } else
            result = open_failed(path, file->writable, errno, err);
    }
    if (!result)
        result = describe(file, err);
    if (!result)
        result = file_lock(file, err);
    if (result)
        file_close(file);
    return result;
}

int file_open(struct block_file *file, const char *path, bool writable, imgvm_error *err)
{
    return attach(file, path, writable ? O_RDWR : O_RDONLY, err);
}

int file_create(struct block_file *file, const char *path, imgvm_error *err)
{
    int result = attach(file, path, O_RDWR | O_CREAT | O_EXCL, err);
    if (result && file->made)
        unlink(path);
    return result;
}

void file_close(struct block_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    file->fd = -1;
    file->path = NULL;
}

int file_read(struct block_file *file, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err)
{
    uint8_t *out = data;
    if (offset > INT64_MAX || bytes > INT64_MAX - offset)
        return error_set(err, EIO, "%s: offset %llu is beyond any file", file->path, (unsigned long long)offset);
    while (bytes) {
        if (offset >= file->bytes) {
            memset(out, 0, bytes);
            return 0;
        }
        uint64_t part = bytes < TRANSFER_BYTES_MAX ? bytes : TRANSFER_BYTES_MAX;
        ssize_t got = pread(file->fd, out, part, (off_t)offset);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return error_set(err, errno, "cannot read %s at %llu: %s", file->path, (unsigned long long)offset,
                             strerror(errno));
        }
        if (!got) { /* shorter than it was when opened */
            memset(out, 0, bytes);
            return 0;
        }
        out += got;
        offset += (uint64_t)got;
        bytes -= (uint64_t)got;
    }
    return 0;
}

int file_write(struct block_file *file, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err)
{
    const uint8_t *in = data;
    if (offset > INT64_MAX || bytes > INT64_MAX - offset)
        return error_set(err, EFBIG, "%s: offset %llu is beyond any file", file->path, (unsigned long long)offset);
    while (bytes) {
        uint64_t part = bytes < TRANSFER_BYTES_MAX ? bytes : TRANSFER_BYTES_MAX;
        ssize_t put = pwrite(file->fd, in, part, (off_t)offset);
        if (put <= 0) {
            int number = put < 0 ? errno : EIO;
            if (number == EINTR)
                continue;
            error_set(err, number, "cannot write %s at %llu: %s", file->path, (unsigned long long)offset,
                      strerror(number));
            if (number == ENOSPC || number == EDQUOT)
                error_hint(err, "free some space on the host; the image is still consistent");
            else if (number == EFBIG)
                error_hint(err, "the file system or `ulimit -f` allows no larger file; the image is still consistent");
            return -number;
        }
        in += put;
        offset += (uint64_t)put;
        bytes -= (uint64_t)put;
        if (offset > file->bytes)
            file->bytes = offset;
    }
    return 0;
}

int file_sync(struct block_file *file, imgvm_error *err)
{
    while (fdatasync(file->fd) < 0)
        if (errno != EINTR)
            return error_set(err, errno, "cannot flush %s: %s", file->path, strerror(errno));
    return 0;
}
