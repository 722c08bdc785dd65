/* SPDX-License-Identifier: MIT */
#include "inspect.h"

#include "../base/bits.h"

/* The next piece, within one page: its physical address; false when there is none. */
static bool next_piece(const struct inspect *inspect, uint64_t address, uint64_t left, uint64_t *gpa, uint64_t *size)
{
    *size = MIN(GUEST_PAGE_SIZE - address % GUEST_PAGE_SIZE, left);
    if (inspect->physical) {
        *gpa = address;
        return true;
    }
    return inspect->engine->ops->translate(inspect->engine, inspect->cpu, address, gpa);
}

uint64_t inspect_read(const struct inspect *inspect, uint64_t address, void *data, uint64_t size)
{
    uint64_t done = 0, gpa, piece;
    while (done < size && next_piece(inspect, address + done, size - done, &gpa, &piece)) {
        if (!guest_mem_read(inspect->mem, gpa, (uint8_t *)data + done, piece))
            break;
        done += piece;
    }
    return done;
}

uint64_t inspect_write(const struct inspect *inspect, uint64_t address, const void *data, uint64_t size)
{
    uint64_t done = 0, gpa, piece;
    while (done < size && next_piece(inspect, address + done, size - done, &gpa, &piece)) {
        if (!guest_mem_load(inspect->mem, gpa, (const uint8_t *)data + done, piece))
            break;
        done += piece;
    }
    return done;
}
