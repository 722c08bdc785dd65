/* SPDX-License-Identifier: MIT */
/* Image locks that QEMU understands. A user of an image has permissions (what it does) and shares
 * permissions (what it lets others do). Each permission has a number; a user holds a shared OFD lock on byte
 * 100 + number for each permission that it uses and on byte 200 + number for each that it does not share:
 *
 *      byte   100   101   102   103        200   201   202   203
 *             read  write unch. resize     read  write unch. resize
 *             ---- "I do this" ----        -- "nobody else may" --
 *
 * Having locked, it looks whether somebody else forbids what it does or does what it forbids. Open file
 * description locks belong to the handle, so two handles of one process exclude each other as well. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "file.h"

#define LOCK_USED_BASE 100
#define LOCK_UNSHARED_BASE 200

#define PERMISSION_READ 0
#define PERMISSION_WRITE 1
#define PERMISSION_WRITE_UNCHANGED 2
#define PERMISSION_RESIZE 3
#define PERMISSIONS 4

static int lock_byte(struct block_file *file, off_t byte)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(file->fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* Does another open file hold a lock on this byte? */
static int byte_is_held(struct block_file *file, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(file->fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

/* A file system without locks (some network ones) leaves images unguarded, as it does for QEMU. */
static bool means_no_locks(int result)
{
    return result == -EINVAL || result == -ENOLCK || result == -ENOSYS || result == -EOPNOTSUPP;
}

static int busy(struct block_file *file, unsigned permission, imgvm_error *err)
{
    static const char *const doing[PERMISSIONS] = {"reading", "writing", "rewriting", "resizing"};
    error_set(err, EBUSY, "%s is in use by another process (conflict over %s it)", file->path, doing[permission]);
    return error_hint(err, "stop the machine or tool that has it open, or copy the image");
}

int file_lock(struct block_file *file, imgvm_error *err)
{
    /* What QEMU asks of a qcow2 file: a reader, too, cannot bear that somebody changes it meanwhile. */
    const unsigned unshared = 1u << PERMISSION_WRITE | 1u << PERMISSION_RESIZE;
    const unsigned used = 1u << PERMISSION_READ | (file->writable ? unshared : 0);
    for (unsigned i = 0; i < PERMISSIONS; i++) {
        int result = 0;
        if (used >> i & 1)
            result = lock_byte(file, LOCK_USED_BASE + i);
        if (!result && (unshared >> i & 1))
            result = lock_byte(file, LOCK_UNSHARED_BASE + i);
        if (means_no_locks(result))
            return 0;
        if (result == -EAGAIN || result == -EACCES) /* somebody holds it exclusively: not QEMU, but honour it */
            return busy(file, i, err);
        if (result)
            return error_set(err, -result, "cannot lock %s: %s", file->path, strerror(-result));
    }
    for (unsigned i = 0; i < PERMISSIONS; i++) {
        int held = 0;
        if (used >> i & 1)
            held = byte_is_held(file, LOCK_UNSHARED_BASE + i);
        if (!held && (unshared >> i & 1))
            held = byte_is_held(file, LOCK_USED_BASE + i);
        if (held > 0)
            return busy(file, i, err);
        if (held < 0 && !means_no_locks(held))
            return error_set(err, -held, "cannot lock %s: %s", file->path, strerror(-held));
    }
    return 0;
}
