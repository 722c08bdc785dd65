/* SPDX-License-Identifier: MIT */
/* Boot protocols: they place a kernel and what it needs in guest memory and say how the bootstrap processor
 * starts. They know the memory map and nothing of devices. */
#ifndef IMGVM_MACHINE_BOOT_H
#define IMGVM_MACHINE_BOOT_H

#include "../arch/state.h"
#include "../mem/guest_mem.h"
#include "memory_map.h"

struct boot_blob {
    const uint8_t *data;
    uint64_t size;
};

struct boot_module {
    struct boot_blob blob;
    const char *cmdline;
};

/* The 64-bit protocol of Linux (Documentation/arch/x86/boot.rst): the kernel is an ELF vmlinux or a bzImage. */
int boot_linux(struct guest_mem *mem, const struct memory_map *map, struct boot_blob kernel, struct boot_blob initrd,
               const char *cmdline, struct x86_state *state, imgvm_error *err);

/* Multiboot 0.6.96 ("Multiboot 1"): an ELF32 kernel, or any file whose header carries load addresses. */
int boot_multiboot(struct guest_mem *mem, const struct memory_map *map, struct boot_blob kernel, const char *cmdline,
                   const struct boot_module *modules, unsigned module_count, struct x86_state *state,
                   imgvm_error *err);

#define FIRMWARE_MAX 0x40000u
#define FIRMWARE_TOP UINT64_C(0x100000000)
#define FIRMWARE_LOW_END 0x100000u
#define FIRMWARE_LOW_MAX 0x20000u /* of a foreign one: what the AT had room for */
#define FIRMWARE_LOW_OWN 0x10000u

struct boot_order {
    uint8_t kind[4]; /* BOOT_* of firmware/board_info.h */
    uint8_t count;
};

/* A ROM of up to 256 KiB. `order` is for the built-in BIOS, and NULL with any other. */
int boot_firmware(struct guest_mem *mem, const struct memory_map *map, struct boot_blob rom, const struct boot_order *order,
                  struct x86_state *state, imgvm_error *err);

/* Where the flat GDT lies: low memory that no protocol uses. */
#define BOOT_GDT 0x500u
/* [base, base+size) lies in one usable range of the map. */
bool boot_range_usable(const struct memory_map *map, uint64_t base, uint64_t size);
/* The registers common to both: flat segments with the given selectors, and the table they came from. */
bool boot_flat_segments(struct guest_mem *mem, struct x86_state *state, uint16_t cs, uint16_t ds, bool code64);

#endif
