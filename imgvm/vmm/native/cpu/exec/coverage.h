/* SPDX-License-Identifier: MIT */
/* Which rows of isa.def were executed: in a build with -DIMGVM_COVERAGE, and nothing at all in others. Each row has a byte
 * in the file that the environment's IMGVM_COVERAGE_FILE names, which all processes that run at a time share;
 * tests/isa/coverage.py reads it. Blocks are single instructions then, so that what is decoded is executed next. */
#ifndef IMGVM_CPU_EXEC_COVERAGE_H
#define IMGVM_CPU_EXEC_COVERAGE_H

#include <stdbool.h>
#include <stdint.h>

#define COVERAGE_EXECUTED 1
#define COVERAGE_UNDEFINED 2 /* #UD: a feature that is not announced, or no executor */

#ifdef IMGVM_COVERAGE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../decode/insn.h"

#define COVERAGE_MOST_INSNS 1

static inline uint8_t *coverage_open(void)
{
    const char *name = getenv("IMGVM_COVERAGE_FILE");
    int fd = name ? open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (fd < 0)
        return NULL;
    void *rows = MAP_FAILED;
    if (ftruncate(fd, isa_row_count) == 0)
        rows = mmap(NULL, isa_row_count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return rows == MAP_FAILED ? NULL : rows;
}

static inline void coverage_close(uint8_t *rows)
{
    if (rows)
        munmap(rows, isa_row_count);
}

static inline void coverage_note(uint8_t *rows, unsigned row, bool undefined)
{
    if (rows)
        rows[row] |= undefined ? COVERAGE_UNDEFINED : COVERAGE_EXECUTED;
}
#else
#define COVERAGE_MOST_INSNS BLOCK_MAX_INSNS

static inline uint8_t *coverage_open(void)
{
    return NULL;
}

static inline void coverage_close(uint8_t *rows)
{
    (void)rows;
}

static inline void coverage_note(uint8_t *rows, unsigned row, bool undefined)
{
    (void)rows, (void)row, (void)undefined;
}
#endif

#endif
