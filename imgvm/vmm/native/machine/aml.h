/* SPDX-License-Identifier: MIT */
/* A small writer of ACPI Machine Language (ACPI specification, chapter 20 "AML Grammar" and 6.4 "Resource Data
 * Types"). It appends to a caller's buffer; when that is too small, `overflow` is set and nothing is written past
 * its end. Names are given as in ASL with segments of four characters: "\\_SB_", "COM1", "\\_SB_.PCI0". */
#ifndef IMGVM_MACHINE_AML_H
#define IMGVM_MACHINE_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
    uint8_t *data;
    size_t used, capacity;
    bool overflow;
};

void aml_bytes(struct aml *aml, const void *data, size_t size);
void aml_byte(struct aml *aml, uint8_t value);
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
void aml_eisa_id(struct aml *aml, const char *id); /* "PNP0A03" */

/* Name(name, <the object that is written next>) */
void aml_name(struct aml *aml, const char *name);
void aml_name_integer(struct aml *aml, const char *name, uint64_t value);

/* Blocks: each begin returns a mark for its aml_end. */
size_t aml_begin_scope(struct aml *aml, const char *name);
size_t aml_begin_device(struct aml *aml, const char *name);
size_t aml_begin_package(struct aml *aml, uint8_t elements);
void aml_end(struct aml *aml, size_t mark);

/* ResourceTemplate() { ... } */
struct aml_resources {
    size_t package, size_at, start;
};
struct aml_resources aml_begin_resources(struct aml *aml);
void aml_end_resources(struct aml *aml, struct aml_resources resources);
void aml_io(struct aml *aml, uint16_t base, uint8_t size);
void aml_irq(struct aml *aml, unsigned irq); /* edge-triggered, active high, exclusive */
void aml_memory_fixed(struct aml *aml, uint32_t base, uint32_t size);
/* What a bridge passes on (address space descriptors, producer). */
void aml_bus_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_io_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_memory_window(struct aml *aml, uint32_t first, uint32_t last);

#endif
