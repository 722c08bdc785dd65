/* SPDX-License-Identifier: MIT */
/* The 82093AA I/O APIC, with version 20h's EOI register. 24 pins.
 *
 * The board registers ioapic_ops (4 KiB of MMIO, usually at FEC00000h), connects lines to ioapic_set_irq, delivers
 * what arrives in the msi sink as it would a device's message, and calls ioapic_eoi for the local APICs' EOI
 * broadcasts. A pin's level is "asserted or not": polarity is kept for the guest to read, and means nothing here.
 * Everything runs under the board lock. */
#ifndef IMGVM_DEV_IOAPIC_H
#define IMGVM_DEV_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "../mem/bus.h"
#include "../mem/irq.h"

#define IOAPIC_PINS 24

struct ioapic_state {
    uint64_t redirection[IOAPIC_PINS];
    uint32_t lines; /* the pins as they stand */
    uint32_t select;
    uint32_t id;
    uint32_t pad;
};

struct ioapic {
    struct ioapic_state state;
    struct msi_sink msi;
    uint8_t reset_id;
};

extern const struct bus_ops ioapic_ops;

void ioapic_init(struct ioapic *ioapic, uint8_t id, struct msi_sink msi);
void ioapic_reset(struct ioapic *ioapic);
/* Fits irq_line.set: `opaque` is the struct ioapic, pin is 0..23. */
void ioapic_set_irq(void *opaque, unsigned pin, bool level);
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);

#endif
