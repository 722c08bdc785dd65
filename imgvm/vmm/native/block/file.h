/* SPDX-License-Identifier: MIT */
/* The host file (or block device) under an image: whole reads and writes with one message each,
 * and the locks by which imgvm and QEMU keep out of each other's images. */
#ifndef IMGVM_BLOCK_FILE_H
#define IMGVM_BLOCK_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../base/error.h"
#include "vec.h"

struct block_file {
    int fd;
    bool writable, is_device;
    bool made; /* by file_create, which takes it away again when it fails */
    bool waits; /* its file system knows no RWF_NOWAIT */
    bool reserved; /* space behind the file's end, given back when it is closed */
    uint64_t bytes; /* grows with writes past the end */
    dev_t device;   /* with inode: tells two names of one file */
    ino_t inode;
    char *path;
};

/* Only regular files and block devices open: a FIFO or a socket would hang. Takes the locks. */
int file_open(struct block_file *file, const char *path, bool writable, imgvm_error *err);
/* A new file; -EEXIST rather than overwrite. */
int file_create(struct block_file *file, const char *path, imgvm_error *err);
void file_close(struct block_file *file);

/* The file's length; other threads may be writing beyond it. */
static inline uint64_t file_bytes(const struct block_file *file)
{
    return __atomic_load_n(&file->bytes, __ATOMIC_RELAXED);
}

/* Bytes past the end of the file read as zero. */
int file_read(struct block_file *file, uint64_t offset, void *data, uint64_t bytes, imgvm_error *err);
int file_write(struct block_file *file, uint64_t offset, const void *data, uint64_t bytes, imgvm_error *err);
int file_readv(struct block_file *file, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
int file_writev(struct block_file *file, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err);
int file_write_zeros(struct block_file *file, uint64_t offset, uint64_t bytes, imgvm_error *err);
/* Makes the range read as zeros; with `give_back` the file system takes the space where it can. */
int file_zero(struct block_file *file, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err);
/* Gives the space of a range back whose contents nobody needs; where that is impossible nothing happens. */
void file_punch(struct block_file *file, uint64_t offset, uint64_t bytes);
/* Takes space for what will be written there, also behind the file's end, which stays where it is. */
void file_reserve(struct block_file *file, uint64_t offset, uint64_t bytes);
/* Gives back what lies behind the file's end. Only while nobody writes to it. */
void file_unreserve(struct block_file *file);
/* Regular files only: cuts the file, or lengthens it with a hole. */
int file_set_size(struct block_file *file, uint64_t bytes, imgvm_error *err);
/* From `offset` on, at most `bytes`: is it data (true) or a hole, and how far does that reach? Where the file system
 * does not say, all is data. */
bool file_is_data(struct block_file *file, uint64_t offset, uint64_t bytes, uint64_t *run);
void file_write_out(const struct block_file *file); /* begins to; waits for nothing */
/* What file_sync would have to write; waits for it, and promises nothing. A failure may be told here and not again. */
int file_write_dirty(struct block_file *file, imgvm_error *err);
int file_sync(struct block_file *file, imgvm_error *err);

/* file_lock.c: -EBUSY when another process (or handle) uses the image in a way that excludes ours. */
int file_lock(struct block_file *file, imgvm_error *err);

#endif
