/* SPDX-License-Identifier: MIT */
/* MSI-X (PCI 3.0, 6.8.2): a table of messages and an array of pending bits in a memory BAR. */
#include "host.h"

#include <errno.h>
#include <string.h>

#define PBA_OFFSET 0x800
#define BAR_BYTES 0x1000

/* Message control, capability offset 2: bit 15 enable, bit 14 function mask, bits 10:0 table size - 1. */
#define CONTROL_ENABLE BIT(15)
#define CONTROL_MASK BIT(14)
#define ENTRY_MASKED BIT(0)

_Static_assert(sizeof(struct pci_msix_entry) == 16, "a table row is 16 bytes");
_Static_assert(PCI_MSIX_VECTORS * 16 <= PBA_OFFSET, "the table lies below the pending bits");
_Static_assert(PCI_MSIX_VECTORS <= 64, "the pending bits are one word");

static uint16_t control(const struct pci_function *function)
{
    return load_le16(function->config + function->msix.capability + 2);
}

bool pci_msix_enabled(const struct pci_function *function)
{
    return function->msix.count && control(function) & CONTROL_ENABLE;
}

/* Can this vector be sent now? A message is a memory write: it needs bus mastering. */
static bool open_now(const struct pci_function *function, unsigned vector)
{
    return pci_msix_enabled(function) && !(control(function) & CONTROL_MASK) && pci_bus_master(function) &&
           !(function->msix.table[vector].control & ENTRY_MASKED);
}

static void send(struct pci_function *function, unsigned vector)
{
    const struct pci_msix_entry *entry = &function->msix.table[vector];
    const struct msi_sink *sink = &function->host->msi;
    function->msix.pending &= ~BIT(vector);
    if (sink->send)
        sink->send(sink->opaque, (uint64_t)entry->address_high << 32 | entry->address_low, entry->data);
}

/* The vector's row or what governs it changed: what was held back may go now. */
static void update_vector(struct pci_function *function, unsigned vector)
{
    if (function->msix.pending & BIT(vector) && open_now(function, vector))
        send(function, vector);
    if (function->ops && function->ops->msix_changed)
        function->ops->msix_changed(function, vector);
}

void pci_msix_update(struct pci_function *function)
{
    if (!pci_msix_enabled(function))
        function->msix.pending = 0;
    for (unsigned vector = 0; vector < function->msix.count; vector++)
        update_vector(function, vector);
}

void pci_msix_reset(struct pci_function *function)
{
    function->msix.pending = 0;
    for (unsigned vector = 0; vector < function->msix.count; vector++)
        function->msix.table[vector] = (struct pci_msix_entry){.control = ENTRY_MASKED};
    pci_msix_update(function);
}

void pci_msix_notify(struct pci_function *function, unsigned vector)
{
    if (vector >= function->msix.count || !pci_msix_enabled(function))
        return;
    if (open_now(function, vector))
        send(function, vector);
    else
        function->msix.pending |= BIT(vector);
}

bool pci_msix_message(const struct pci_function *function, unsigned vector, uint64_t *address, uint32_t *data)
{
    if (vector >= function->msix.count || !open_now(function, vector))
        return false;
    const struct pci_msix_entry *entry = &function->msix.table[vector];
    *address = (uint64_t)entry->address_high << 32 | entry->address_low;
    *data = entry->data;
    return true;
}

static uint64_t bar_read(void *device, uint64_t offset, unsigned size)
{
    const struct pci_msix *msix = &((struct pci_function *)device)->msix;
    uint64_t value = 0;
    if (offset + size <= msix->count * 16u)
        memcpy(&value, (const uint8_t *)msix->table + offset, size);
    else if (offset >= PBA_OFFSET && offset + size <= PBA_OFFSET + sizeof msix->pending)
        memcpy(&value, (const uint8_t *)&msix->pending + (offset - PBA_OFFSET), size);
    return value;
}

/* Only whole, aligned doublewords and quadwords write (6.8.2); the pending bits are read-only. */
static void bar_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_function *function = device;
    if (size < 4 || offset % size || offset + size > function->msix.count * 16u)
        return;
    unsigned vector = (unsigned)(offset / 16);
    uint32_t *words = &function->msix.table[vector].address_low;
    for (unsigned i = 0; i < size / 4; i++) {
        unsigned word = (unsigned)(offset % 16 / 4) + i;
        uint32_t part = (uint32_t)(value >> (32 * i));
        words[word] = word == 3 ? part & ENTRY_MASKED : word == 0 ? part & ~3u : part;
    }
    update_vector(function, vector);
}

static const struct bus_ops bar_ops = {bar_read, bar_write};

int pci_add_msix(struct pci_function *function, unsigned bar, unsigned vectors, imgvm_error *err)
{
    if (!vectors || vectors > PCI_MSIX_VECTORS)
        return error_set(err, EINVAL, "%s: %u MSI-X vectors", function->name, vectors);
    int rc = pci_add_bar(function, bar, PCI_BAR_MEM32, false, BAR_BYTES, &bar_ops, function, err);
    if (rc < 0)
        return rc;
    uint8_t body[10];
    store_le16(body, (uint16_t)(vectors - 1));
    store_le32(body + 2, bar);
    store_le32(body + 6, PBA_OFFSET | bar);
    rc = pci_add_capability(function, PCI_CAP_ID_MSIX, body, 2 + sizeof body, err);
    if (rc < 0)
        return rc;
    function->msix.capability = (uint8_t)rc;
    function->msix.count = (uint16_t)vectors;
    store_le16(function->writable + rc + 2, CONTROL_ENABLE | CONTROL_MASK);
    pci_msix_reset(function);
    return 0;
}
