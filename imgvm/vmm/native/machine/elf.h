/* SPDX-License-Identifier: MIT */
/* Executable ELF files of x86, both classes, as boot loaders need them: load segments by physical address. */
#ifndef IMGVM_MACHINE_ELF_H
#define IMGVM_MACHINE_ELF_H

#include "boot.h"

struct elf_image {
    bool is64;
    uint16_t machine; /* 3: i386, 62: x86-64 */
    uint64_t entry;   /* physical: an entry given as a virtual address is translated by its segment */
    uint64_t low, high; /* the physical memory it occupies, page-rounded outward */
};

bool elf_is(struct boot_blob file);
/* Check the headers and fill *image; loads nothing. */
int elf_parse(struct boot_blob file, struct elf_image *image, imgvm_error *err);
/* Copy the segments; every one must lie in usable memory. */
int elf_load(struct guest_mem *mem, const struct memory_map *map, struct boot_blob file, imgvm_error *err);

#endif
