/* SPDX-License-Identifier: MIT */
#include "bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/bits.h"

void bus_init(struct bus *bus, pthread_mutex_t *lock)
{
    *bus = (struct bus){.lock = lock};
}

void bus_destroy(struct bus *bus)
{
    free(bus->ranges);
    free(bus->tallies);
    bus_init(bus, bus->lock);
}

/* Index of the first range whose base is above address. */
static unsigned upper_bound(const struct bus *bus, uint64_t address)
{
    unsigned low = 0, high = bus->count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (bus->ranges[middle].base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const struct bus_range *find(const struct bus *bus, uint64_t address)
{
    unsigned i = upper_bound(bus, address);
    if (i == 0)
        return NULL;
    const struct bus_range *range = &bus->ranges[i - 1];
    return address - range->base < range->size ? range : NULL;
}

/* The index of this name's tally, made if need be; -1: out of memory. */
static int tally_of(struct bus *bus, const char *name)
{
    for (unsigned i = 0; i < bus->tally_count; i++)
        if (!strcmp(bus->tallies[i].name, name))
            return (int)i;
    struct bus_tally *tallies = realloc(bus->tallies, (bus->tally_count + 1) * sizeof *tallies);
    if (!tallies)
        return -1;
    bus->tallies = tallies;
    bus->tallies[bus->tally_count] = (struct bus_tally){name, 0};
    return (int)bus->tally_count++;
}

int bus_add(struct bus *bus, uint64_t base, uint64_t size, const struct bus_ops *ops, void *device,
            const char *name, imgvm_error *err)
{
    if (size == 0 || base + size - 1 < base)
        return error_set(err, EINVAL, "%s: empty or wrapping range", name);
    unsigned i = upper_bound(bus, base);
    const struct bus_range *before = i > 0 ? &bus->ranges[i - 1] : NULL;
    const struct bus_range *after = i < bus->count ? &bus->ranges[i] : NULL;
    if (before && base - before->base < before->size)
        return error_set(err, EEXIST, "%s at %#llx overlaps %s", name, (unsigned long long)base, before->name);
    if (after && after->base - base < size)
        return error_set(err, EEXIST, "%s at %#llx overlaps %s", name, (unsigned long long)base, after->name);
    if (bus->count == bus->capacity) {
        unsigned capacity = bus->capacity ? bus->capacity * 2 : 16;
        struct bus_range *ranges = realloc(bus->ranges, capacity * sizeof *ranges);
        if (!ranges)
            return error_set(err, ENOMEM, "%s: out of memory", name);
        bus->ranges = ranges;
        bus->capacity = capacity;
    }
    int tally = tally_of(bus, name);
    if (tally < 0)
        return error_set(err, ENOMEM, "%s: out of memory", name);
    memmove(&bus->ranges[i + 1], &bus->ranges[i], (bus->count - i) * sizeof *bus->ranges);
    bus->ranges[i] = (struct bus_range){base, size, ops, device, name, (unsigned)tally};
    bus->count++;
    return 0;
}

void bus_remove(struct bus *bus, uint64_t base, const void *device)
{
    for (unsigned i = 0; i < bus->count; i++) {
        if (bus->ranges[i].base == base && bus->ranges[i].device == device) {
            memmove(&bus->ranges[i], &bus->ranges[i + 1], (bus->count - i - 1) * sizeof *bus->ranges);
            bus->count--;
            return;
        }
    }
}

static uint64_t read_locked(struct bus *bus, uint64_t address, unsigned size)
{
    const struct bus_range *range = find(bus, address);
    if (range && address - range->base + size <= range->size)
        return range->ops->read(range->device, address - range->base, size) & bits_mask_bytes(size);
    if (size == 1)
        return 0xff;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= read_locked(bus, address + i, 1) << (8 * i);
    return value;
}

static void write_locked(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    const struct bus_range *range = find(bus, address);
    if (range && address - range->base + size <= range->size) {
        range->ops->write(range->device, address - range->base, size, value & bits_mask_bytes(size));
        return;
    }
    if (size == 1)
        return;
    for (unsigned i = 0; i < size; i++)
        write_locked(bus, address + i, 1, (value >> (8 * i)) & 0xff);
}

static void count_access(struct bus *bus, uint64_t address)
{
    const struct bus_range *range = find(bus, address);
    if (range)
        bus->tallies[range->tally].accesses++;
    else
        bus->stray_accesses++;
}

uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size)
{
    pthread_mutex_lock(bus->lock);
    count_access(bus, address);
    uint64_t value = read_locked(bus, address, size);
    pthread_mutex_unlock(bus->lock);
    return value;
}

void bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    pthread_mutex_lock(bus->lock);
    count_access(bus, address);
    write_locked(bus, address, size, value);
    void (*after)(void *opaque) = bus->after, *opaque = bus->after_opaque;
    bus->after = NULL;
    pthread_mutex_unlock(bus->lock);
    if (after)
        after(opaque);
}

void bus_after(struct bus *bus, void (*call)(void *opaque), void *opaque)
{
    bus->after = call;
    bus->after_opaque = opaque;
}

const char *bus_name(struct bus *bus, uint64_t address)
{
    pthread_mutex_lock(bus->lock);
    const struct bus_range *range = find(bus, address);
    const char *name = range ? range->name : "none";
    pthread_mutex_unlock(bus->lock);
    return name;
}

void bus_tell_counts(struct bus *bus, const char *group, const struct count_sink *sink)
{
    pthread_mutex_lock(bus->lock);
    for (unsigned i = 0; i < bus->tally_count; i++)
        if (bus->tallies[i].accesses)
            count_tell(sink, group, bus->tallies[i].name, bus->tallies[i].accesses);
    if (bus->stray_accesses)
        count_tell(sink, group, "none", bus->stray_accesses);
    pthread_mutex_unlock(bus->lock);
}
