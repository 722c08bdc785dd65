/* SPDX-License-Identifier: MIT */
/* What the board tells the built-in BIOS, in read-only memory behind the ACPI root pointer. The two are built together:
 * no version keeps them apart. */
#ifndef IMGVM_FIRMWARE_BOARD_INFO_H
#define IMGVM_FIRMWARE_BOARD_INFO_H

#include <stdint.h>

#define BOARD_INFO_ADDRESS 0xe0040
#define BOARD_INFO_MAGIC 0x56474d49 /* "IMGV" */
#define BOARD_INFO_RANGES 12
#define BOARD_INFO_BOOT_MAX 4

/* The entry points of SMBIOS must lie in the BIOS's own segment: it leaves this room (bios.ld), the board fills it. */
#define BOARD_SMBIOS_ENTRY 0xfff80
#define BOARD_SMBIOS_ENTRY_BYTES 0x40

#define BOOT_DISK 1
#define BOOT_CDROM 2

struct board_info_range {
    uint64_t base, bytes;
    uint32_t type; /* as INT 15h, E820h has it */
    uint32_t reserved;
};

struct board_info {
    uint32_t magic;
    uint16_t range_count;
    uint8_t boot_count;
    uint8_t boot[BOARD_INFO_BOOT_MAX]; /* BOOT_*: which kinds are tried, in this order */
    uint8_t reserved[5];
    struct board_info_range range[BOARD_INFO_RANGES];
};

_Static_assert(sizeof(struct board_info_range) == 24 && sizeof(struct board_info) == 16 + 24 * BOARD_INFO_RANGES,
               "the board and the BIOS are compiled for different modes");

#endif
