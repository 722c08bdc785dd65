/* SPDX-License-Identifier: MIT */
/* A debugger's view of memory: by linear address through a processor's page tables, or by physical address. Nothing is
 * marked as accessed, no device is touched: what is not RAM or ROM cannot be read. */
#ifndef IMGVM_MACHINE_INSPECT_H
#define IMGVM_MACHINE_INSPECT_H

#include "../backend/backend.h"

struct inspect {
    struct engine *engine;
    struct guest_mem *mem;
    unsigned cpu;
    bool physical;
};

/* How many bytes could be read or written before one could not. The processor does not run. Writes reach ROM too. */
uint64_t inspect_read(const struct inspect *inspect, uint64_t address, void *data, uint64_t size);
uint64_t inspect_write(const struct inspect *inspect, uint64_t address, const void *data, uint64_t size);

#endif
