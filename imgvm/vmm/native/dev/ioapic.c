/* SPDX-License-Identifier: MIT */
/* Intel 82093AA I/O APIC (datasheet 290566), reporting version 20h for the EOI register of its successors (ICH
 * datasheets, "EOI Register").
 *
 * A redirection entry:
 *    63      56 55        17 16 15 14 13 12 11 10   8 7      0
 *   | dest     | reserved   | M| T| R| P| S| D| mode | vector |
 *   M mask, T trigger (1: level), R remote IRR, P polarity, S delivery status, D destination mode (1: logical)
 *
 * A message to the local APICs takes no time, so delivery status always reads idle. Not emulated: the ARB bus. */
#include "ioapic.h"

#include <string.h>

#include "../base/bits.h"

#define OFFSET_SELECT 0x00
#define OFFSET_WINDOW 0x10
#define OFFSET_EOI 0x40

#define REG_ID 0x00
#define REG_VERSION 0x01
#define REG_ARBITRATION 0x02
#define REG_REDIRECTION 0x10

#define VERSION (0x20u | (IOAPIC_PINS - 1) << 16)
#define ID_MASK 0xff000000u

#define ENTRY_MODE(e) ((unsigned)((e) >> 8) & 7)
#define ENTRY_LOGICAL BIT(11)
#define ENTRY_STATUS BIT(12)
#define ENTRY_REMOTE_IRR BIT(14)
#define ENTRY_LEVEL BIT(15)
#define ENTRY_MASKED BIT(16)
#define ENTRY_READ_ONLY (ENTRY_STATUS | ENTRY_REMOTE_IRR)
#define ENTRY_WRITABLE (UINT64_C(0xff0000000001ffff) & ~ENTRY_READ_ONLY)
#define ENTRY_DESTINATION(e) ((e) >> 56)

#define MODE_LOWEST 1 /* and 0, fixed: the modes that are answered with an EOI */

#define MSI_ADDRESS 0xfee00000u
#define MSI_LOGICAL BIT(2)
#define MSI_REDIRECTION_HINT BIT(3)
#define MSI_ASSERT BIT(14)

/* SDM vol. 3, "Message Signalled Interrupts": the entry's low bits are laid out as the data register's. */
static void send(struct ioapic *ioapic, uint64_t entry)
{
    bool lowest = ENTRY_MODE(entry) == MODE_LOWEST;
    uint64_t address = MSI_ADDRESS | ENTRY_DESTINATION(entry) << 12 | (entry & ENTRY_LOGICAL ? MSI_LOGICAL : 0) |
                       (lowest ? MSI_REDIRECTION_HINT : 0);
    ioapic->msi.send(ioapic->msi.opaque, address, (uint32_t)((entry & 0x87ff & ~ENTRY_LOGICAL) | MSI_ASSERT));
}

/* A level-triggered pin that stands, is not masked and has had its last interrupt ended interrupts (again). */
static void service_level(struct ioapic *ioapic, unsigned pin)
{
    uint64_t *entry = &ioapic->state.redirection[pin];
    if (!(*entry & ENTRY_LEVEL) || (*entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR)) ||
        !(ioapic->state.lines & BIT(pin)))
        return;
    if (ENTRY_MODE(*entry) <= MODE_LOWEST)
        *entry |= ENTRY_REMOTE_IRR;
    send(ioapic, *entry);
}

void ioapic_set_irq(void *opaque, unsigned pin, bool level)
{
    struct ioapic *ioapic = opaque;
    if (pin >= IOAPIC_PINS)
        return;
    bool was = ioapic->state.lines & BIT(pin);
    ioapic->state.lines = (uint32_t)(level ? ioapic->state.lines | BIT(pin) : ioapic->state.lines & ~BIT(pin));
    if (was || !level)
        return;
    uint64_t entry = ioapic->state.redirection[pin];
    if (entry & ENTRY_LEVEL)
        service_level(ioapic, pin);
    else if (!(entry & ENTRY_MASKED)) /* "edges signaled on a masked pin are ignored" */
        send(ioapic, entry);
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t *entry = &ioapic->state.redirection[pin];
        if (!(*entry & ENTRY_REMOTE_IRR) || (uint8_t)*entry != vector)
            continue;
        *entry &= ~ENTRY_REMOTE_IRR;
        service_level(ioapic, pin);
    }
}

/* ---- registers ---- */

static uint32_t read_window(const struct ioapic *ioapic)
{
    uint32_t select = ioapic->state.select, pin = (select - REG_REDIRECTION) / 2;
    switch (select) {
    case REG_ID:
    case REG_ARBITRATION:
        return ioapic->state.id;
    case REG_VERSION:
        return VERSION;
    }
    if (select < REG_REDIRECTION || pin >= IOAPIC_PINS)
        return 0;
    return (uint32_t)(ioapic->state.redirection[pin] >> (select & 1 ? 32 : 0));
}

static void write_window(struct ioapic *ioapic, uint32_t value)
{
    uint32_t select = ioapic->state.select, pin = (select - REG_REDIRECTION) / 2;
    if (select == REG_ID)
        ioapic->state.id = value & ID_MASK;
    if (select < REG_REDIRECTION || pin >= IOAPIC_PINS)
        return;
    uint64_t *entry = &ioapic->state.redirection[pin];
    uint64_t written = select & 1 ? (uint64_t)value << 32 : value, half = select & 1 ? ~UINT64_C(0) << 32 : UINT32_MAX;
    *entry = (*entry & ~(half & ENTRY_WRITABLE)) | (written & ENTRY_WRITABLE);
    if (!(*entry & ENTRY_LEVEL)) /* the old way of ending an interrupt without EOI: to edge and back */
        *entry &= ~ENTRY_REMOTE_IRR;
    service_level(ioapic, pin);
}

static uint64_t ioapic_read(void *device, uint64_t offset, unsigned size)
{
    const struct ioapic *ioapic = device;
    uint32_t value = 0;
    if ((offset & ~UINT64_C(3)) == OFFSET_SELECT)
        value = ioapic->state.select;
    else if ((offset & ~UINT64_C(3)) == OFFSET_WINDOW)
        value = read_window(ioapic);
    return value >> (8 * (offset & 3)) & bits_mask_bytes(size);
}

static void ioapic_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *ioapic = device;
    if (offset == OFFSET_SELECT)
        ioapic->state.select = value & 0xff;
    else if (offset == OFFSET_WINDOW && size >= 4) /* "IOWIN must be accessed with 32-bit loads and stores" */
        write_window(ioapic, (uint32_t)value);
    else if (offset == OFFSET_EOI)
        ioapic_eoi(ioapic, (uint8_t)value);
}

void ioapic_reset(struct ioapic *ioapic)
{
    uint32_t lines = ioapic->state.lines; /* their owners drive them, not we */
    memset(&ioapic->state, 0, sizeof(ioapic->state));
    ioapic->state.lines = lines;
    ioapic->state.id = (uint32_t)ioapic->reset_id << 24;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        ioapic->state.redirection[pin] = ENTRY_MASKED;
}

void ioapic_init(struct ioapic *ioapic, uint8_t id, struct msi_sink msi)
{
    memset(ioapic, 0, sizeof(*ioapic));
    ioapic->msi = msi;
    ioapic->reset_id = id;
    ioapic_reset(ioapic);
}

const struct bus_ops ioapic_ops = {ioapic_read, ioapic_write};
