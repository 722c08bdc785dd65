/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
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

void file_unreserve(struct block_file *file)
{
    struct stat st;
    if (!file->reserved)
        return;
    if (!fstat(file->fd, &st) && ftruncate(file->fd, st.st_size) < 0)
        return; /* it is the file's until it is cut the next time */
    file->reserved = false;
}

void file_close(struct block_file *file)
{
    if (file->fd >= 0) {
        file_unreserve(file);
        close(file->fd);
    }
    free(file->path);
    file->fd = -1;
    file->path = NULL;
}

static int beyond_any_file(const struct block_file *file, uint64_t offset, int number, imgvm_error *err)
{
    return error_set(err, number, "%s: offset %llu is beyond any file", file->path, (unsigned long long)offset);
}

static bool fits(uint64_t offset, uint64_t bytes)
{
    return offset <= INT64_MAX && bytes <= INT64_MAX - offset;
}

int file_readv(struct block_file *file, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    if (!fits(offset, bytes))
        return beyond_any_file(file, offset, EIO, err);
    while (bytes) {
        struct vec start = *vec;
        struct iovec pieces[VEC_PIECES_MAX];
        uint64_t taken;
        if (offset >= file_bytes(file)) {
            vec_zero(vec, bytes);
            return 0;
        }
        int count = vec_take(vec, MIN(bytes, TRANSFER_BYTES_MAX), pieces, &taken);
        ssize_t got = preadv(file->fd, pieces, count, (off_t)offset);
        if (got < 0 && errno != EINTR)
            return error_set(err, errno, "cannot read %s at %llu: %s", file->path, (unsigned long long)offset,
                             strerror(errno));
        if ((uint64_t)MAX(got, 0) != taken) { /* interrupted, or at the end */
            *vec = start;
            vec_skip(vec, (uint64_t)MAX(got, 0));
        }
        if (!got) { /* shorter than it was when opened */
            vec_zero(vec, bytes);
            return 0;
        }
        offset += (uint64_t)MAX(got, 0);
        bytes -= (uint64_t)MAX(got, 0);
    }
    return 0;
}

int file_read(struct block_file *file, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err)
{
    const struct iovec piece = {data, bytes};
    struct vec vec = {.piece = &piece};
    return file_readv(file, offset, &vec, bytes, err);
}

static int write_failed(const struct block_file *file, uint64_t offset, int number, imgvm_error *err)
{
    error_set(err, number, "cannot write %s at %llu: %s", file->path, (unsigned long long)offset, strerror(number));
    if (number == ENOSPC || number == EDQUOT)
        error_hint(err, "free some space on the host; the image is still consistent");
    else if (number == EFBIG)
        error_hint(err, "the file system or `ulimit -f` allows no larger file; the image is still consistent");
    return -number;
}

static void reached(struct block_file *file, uint64_t end)
{
    uint64_t bytes = file_bytes(file);
    while (end > bytes && !__atomic_compare_exchange_n(&file->bytes, &bytes, end, true, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED))
        ;
}

int file_writev(struct block_file *file, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    if (!fits(offset, bytes))
        return beyond_any_file(file, offset, EFBIG, err);
    while (bytes) {
        struct vec start = *vec;
        struct iovec pieces[VEC_PIECES_MAX];
        uint64_t taken;
        int count = vec_take(vec, MIN(bytes, TRANSFER_BYTES_MAX), pieces, &taken);
        ssize_t put = pwritev(file->fd, pieces, count, (off_t)offset);
        if (put <= 0 && !(put < 0 && errno == EINTR))
            return write_failed(file, offset, put < 0 ? errno : EIO, err);
        if ((uint64_t)MAX(put, 0) != taken) {
            *vec = start;
            vec_skip(vec, (uint64_t)MAX(put, 0));
        }
        offset += (uint64_t)MAX(put, 0);
        bytes -= (uint64_t)MAX(put, 0);
        reached(file, offset);
    }
    return 0;
}

int file_write(struct block_file *file, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err)
{
    const struct iovec piece = {(void *)data, bytes};
    struct vec vec = {.piece = &piece};
    return file_writev(file, offset, &vec, bytes, err);
}

int file_write_zeros(struct block_file *file, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    static const uint8_t zeros[65536];
    for (uint64_t part; bytes; offset += part, bytes -= part) {
        part = MIN(bytes, sizeof zeros);
        int result = file_write(file, offset, zeros, part, err);
        if (result)
            return result;
    }
    return 0;
}

static bool allocate(struct block_file *file, int mode, uint64_t offset, uint64_t bytes)
{
    int result;
    do
        result = fallocate(file->fd, mode, (off_t)offset, (off_t)bytes);
    while (result < 0 && errno == EINTR);
    return !result;
}

int file_zero(struct block_file *file, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err)
{
    if (!fits(offset, bytes))
        return beyond_any_file(file, offset, EFBIG, err);
    int mode = give_back ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    uint64_t inside = offset < file_bytes(file) ? MIN(bytes, file_bytes(file) - offset) : 0;
    if (!inside) /* beyond the end all is zero */
        return 0;
    return allocate(file, mode, offset, inside) ? 0 : file_write_zeros(file, offset, inside, err);
}

void file_punch(struct block_file *file, uint64_t offset, uint64_t bytes)
{
    if (bytes && fits(offset, bytes))
        allocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

void file_reserve(struct block_file *file, uint64_t offset, uint64_t bytes)
{
    if (!file->is_device && fits(offset, bytes) && allocate(file, FALLOC_FL_KEEP_SIZE, offset, bytes))
        __atomic_store_n(&file->reserved, true, __ATOMIC_RELAXED);
}

int file_set_size(struct block_file *file, uint64_t bytes, imgvm_error *err)
{
    if (file->is_device) {
        error_set(err, ENOTSUP, "%s is a device, whose size is given", file->path);
        return error_hint(err, "resize what holds it");
    }
    if (bytes > INT64_MAX)
        return beyond_any_file(file, bytes, EFBIG, err);
    int result;
    do
        result = ftruncate(file->fd, (off_t)bytes);
    while (result < 0 && errno == EINTR);
    if (result < 0)
        return error_set(err, errno, "cannot resize %s: %s", file->path, strerror(errno));
    __atomic_store_n(&file->bytes, bytes, __ATOMIC_RELAXED);
    return 0;
}

bool file_is_data(struct block_file *file, uint64_t offset, uint64_t bytes, uint64_t *run)
{
    *run = bytes;
    if (file->is_device || !fits(offset, bytes))
        return true;
    off_t data = lseek(file->fd, (off_t)offset, SEEK_DATA);
    if (data < 0)
        return errno != ENXIO; /* ENXIO: no data from here to the end */
    if ((uint64_t)data > offset) {
        *run = MIN(bytes, (uint64_t)data - offset);
        return false;
    }
    off_t hole = lseek(file->fd, (off_t)offset, SEEK_HOLE);
    if (hole > data)
        *run = MIN(bytes, (uint64_t)(hole - data));
    return true;
}

void file_write_out(const struct block_file *file)
{
    sync_file_range(file->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

int file_write_dirty(struct block_file *file, imgvm_error *err)
{
    const unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    while (sync_file_range(file->fd, 0, 0, all) < 0)
        if (errno == ENOSYS || errno == ESPIPE) /* file_sync has more to do */
            return 0;
        else if (errno != EINTR)
            return error_set(err, errno, "cannot flush %s: %s", file->path, strerror(errno));
    return 0;
}

int file_sync(struct block_file *file, imgvm_error *err)
{
    while (fdatasync(file->fd) < 0)
        if (errno != EINTR)
            return error_set(err, errno, "cannot flush %s: %s", file->path, strerror(errno));
    return 0;
}
