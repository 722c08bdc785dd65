/* SPDX-License-Identifier: MIT */
/* The tables of SMBIOS 3.0 (DMTF DSP0134), which tell an operating system what machine it is on. This file knows the formats;
 * the board says where they lie and what it has. */
#ifndef IMGVM_MACHINE_SMBIOS_H
#define IMGVM_MACHINE_SMBIOS_H

#include <stddef.h>
#include <stdint.h>

#include "../base/error.h"

#define SMBIOS_TABLES_MAX 0xe000
#define SMBIOS_ENTRY_BYTES 0x40 /* the 64-bit entry point, and at 20h the 32-bit one */
#define SMBIOS_ENTRY_32 0x20

struct smbios_config {
    const imgvm_smbios *texts;
    unsigned cpus; /* cores of one processor */
    uint64_t low_bytes; /* RAM from address 0 */
    uint64_t high_base, high_bytes;
};

struct smbios_tables {
    uint8_t data[SMBIOS_TABLES_MAX];
    size_t bytes;
    unsigned count;  /* of structures */
    size_t largest;
};

int smbios_build(const struct smbios_config *config, struct smbios_tables *out, imgvm_error *err);
/* For tables that lie at `address`. */
void smbios_entry(const struct smbios_tables *tables, uint32_t address, uint8_t entry[SMBIOS_ENTRY_BYTES]);

#endif
