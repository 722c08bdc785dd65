/* SPDX-License-Identifier: MIT */
/* The ACPI tables of the board (ACPI specification 6.3): RSDP, XSDT and RSDT, FADT, FACS, MADT, MCFG, DSDT. This file knows
 * the formats; the board says where its hardware is. */
#ifndef IMGVM_MACHINE_ACPI_H
#define IMGVM_MACHINE_ACPI_H

#include <stddef.h>
#include <stdint.h>

#include "../base/error.h"

#define ACPI_TABLES_BYTES 0x8000 /* room for everything but the RSDP */
#define ACPI_RSDP_BYTES 36
#define ACPI_SLEEP_TYPE_OFF 5 /* SLP_TYP of S5 */

struct acpi_config {
    unsigned cpus; /* APIC IDs 0..cpus-1 */
    uint32_t lapic_address, ioapic_address;
    uint8_t ioapic_id;
    uint8_t sci_irq;        /* level-triggered */
    uint8_t pit_gsi;        /* where ISA IRQ 0 arrives */
    uint16_t pm_base;       /* dev/acpi_pm.h's block */
    uint16_t smi_port;
    uint8_t smi_enable, smi_disable;
    uint16_t reset_port;
    uint8_t reset_value;
    uint16_t serial_base;
    uint8_t serial_irq;
    uint16_t panic_port;    /* pvpanic */
    uint8_t pirq_gsi;       /* the first of the four */
    uint32_t pci_memory_first, pci_memory_last;
    uint32_t ecam_base, ecam_bytes;
    uint8_t century_index;  /* of the CMOS clock */
};

/* Fills tables (ACPI_TABLES_BYTES, which will lie at tables_gpa) and rsdp. */
int acpi_build(const struct acpi_config *config, uint32_t tables_gpa, uint8_t *tables, uint8_t *rsdp, imgvm_error *err);

#endif
