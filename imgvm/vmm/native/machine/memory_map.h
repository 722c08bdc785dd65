/* SPDX-License-Identifier: MIT */
/* What the firmware would say of the memory: the e820 list that boot protocols hand to the guest. */
#ifndef IMGVM_MACHINE_MEMORY_MAP_H
#define IMGVM_MACHINE_MEMORY_MAP_H

#include <stdint.h>

/* Types of ACPI's system address map interfaces; Multiboot uses the same numbers. */
#define MEMORY_USABLE 1
#define MEMORY_RESERVED 2
#define MEMORY_ACPI_TABLES 3
#define MEMORY_ACPI_NVS 4

struct memory_range {
    uint64_t base, size;
    uint32_t type;
};

struct memory_map {
    struct memory_range range[12]; /* ascending, disjoint */
    unsigned count;
    uint64_t low_top;   /* end of the usable memory that begins at 1 MiB */
    uint64_t rsdp;      /* where the ACPI root pointer lies; 0: nowhere */
};

#endif
