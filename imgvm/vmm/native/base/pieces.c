/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../include/imgvm_api.h"

static bool read_whole(int fd, const imgvm_piece *piece, uint8_t *out)
{
    struct stat st;
    if (piece->file_bytes != UINT64_MAX && (fstat(fd, &st) < 0 || (uint64_t)st.st_size != piece->file_bytes))
        return false;
    for (uint64_t done = 0; done < piece->bytes;) {
        ssize_t got = pread(fd, out + done, piece->bytes - done, (off_t)(piece->offset + done));
        if (!got || (got < 0 && errno != EINTR))
            return false;
        done += got < 0 ? 0 : (uint64_t)got;
    }
    return true;
}

static bool read_piece(const char *names, const imgvm_piece *piece, uint8_t *out)
{
    if (piece->name == UINT64_MAX)
        return read_whole((int)piece->fd, piece, out);
    int fd = open(names + piece->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool whole = read_whole(fd, piece, out);
    close(fd);
    return whole;
}

uint32_t imgvm_read_pieces(const char *names, const imgvm_piece *pieces, uint32_t count, void *out)
{
    uint8_t *at = out;
    for (uint32_t i = 0; i < count; at += pieces[i++].bytes)
        if (!read_piece(names, &pieces[i], at))
            return i;
    return count;
}
