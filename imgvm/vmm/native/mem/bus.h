/* SPDX-License-Identifier: MIT */
/* An address space of devices: port I/O (64 Ki ports) or MMIO. A device sees offsets from its
 * own base, never absolute addresses; ranges may not overlap. Every access takes the board
 * lock, so a device's handlers run one at a time and may raise lines and arm timers freely. */
#ifndef IMGVM_MEM_BUS_H
#define IMGVM_MEM_BUS_H

#include <pthread.h>
#include <stdint.h>

#include "../base/count.h"
#include "../base/error.h"

struct bus_ops {
    /* size is 1, 2, 4 (or 8, MMIO only); the access lies wholly inside the range */
    uint64_t (*read)(void *device, uint64_t offset, unsigned size);
    void (*write)(void *device, uint64_t offset, unsigned size, uint64_t value);
};

struct bus_range {
    uint64_t base, size;
    const struct bus_ops *ops;
    void *device;
    const char *name;
    unsigned tally; /* of struct bus */
};

/* Accesses to ranges of one name, which may come and go. */
struct bus_tally {
    const char *name;
    uint64_t accesses;
};

struct bus {
    pthread_mutex_t *lock;
    void (*after)(void *opaque); /* of the write under way */
    void *after_opaque;
    struct bus_range *ranges; /* ordered by base */
    unsigned count, capacity;
    struct bus_tally *tallies;
    unsigned tally_count;
    uint64_t stray_accesses; /* to no device */
};

void bus_init(struct bus *bus, pthread_mutex_t *lock);
void bus_destroy(struct bus *bus);
/* -EEXIST when the range overlaps another (the message names both). Takes no lock: called while
 * the board is built, or from a handler (a PCI BAR being moved), which holds it already. */
int bus_add(struct bus *bus, uint64_t base, uint64_t size, const struct bus_ops *ops, void *device,
            const char *name, imgvm_error *err);
void bus_remove(struct bus *bus, uint64_t base, const void *device);
/* An access to nothing reads as all ones and is dropped on write. An access that crosses the end of a range
 * is split into bytes. The board lock is taken inside. */
uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size);
void bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value);
/* From a handler of a write, at most once: whoever writes calls it, too, when the lock is free again. Threads that need the
 * lock are better woken then. */
void bus_after(struct bus *bus, void (*call)(void *opaque), void *opaque);
/* Who is at the address; "none": nobody. */
const char *bus_name(struct bus *bus, uint64_t address);
/* How often each device was accessed. */
void bus_tell_counts(struct bus *bus, const char *group, const struct count_sink *sink);

#endif
