/* SPDX-License-Identifier: MIT */
#include "host.h"

#include <errno.h>
#include <string.h>

#define FIRST_CAPABILITY 0x40

/* The address register of mechanism #1 (PCI 3.0, 3.2.2.3.2):
 *
 *   31 30    24 23  16 15    11 10   8 7      2 1 0
 *   E  reserved  bus    device  function  register 0 0
 */
#define ADDRESS_ENABLE BIT(31)
#define ADDRESS_WRITABLE 0x80fffffcu

/* ---- functions ---- */

void pci_function_init(struct pci_function *function, const char *name, const struct pci_identity *identity,
                       const struct pci_function_ops *ops, void *opaque)
{
    *function = (struct pci_function){.name = name, .ops = ops, .opaque = opaque, .capability_end = FIRST_CAPABILITY};
    uint8_t *config = function->config, *writable = function->writable;
    store_le16(config + PCI_VENDOR_ID, identity->vendor);
    store_le16(config + PCI_DEVICE_ID, identity->device);
    config[PCI_REVISION_ID] = identity->revision;
    config[PCI_CLASS_CODE] = (uint8_t)identity->class_code;
    store_le16(config + PCI_CLASS_CODE + 1, (uint16_t)(identity->class_code >> 8));
    store_le16(config + PCI_SUBSYSTEM_VENDOR_ID, identity->subsystem_vendor);
    store_le16(config + PCI_SUBSYSTEM_ID, identity->subsystem);
    config[PCI_INTERRUPT_PIN] = identity->intx ? 1 : 0;
    store_le16(writable + PCI_COMMAND, PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
    writable[PCI_CACHE_LINE_SIZE] = writable[PCI_LATENCY_TIMER] = 0xff;
    if (identity->intx)
        writable[PCI_INTERRUPT_LINE] = 0xff;
}

int pci_add_bar(struct pci_function *function, unsigned index, enum pci_bar_kind kind, bool prefetchable, uint64_t size,
                const struct bus_ops *ops, void *device, imgvm_error *err)
{
    bool wide = kind == PCI_BAR_MEM64, io = kind == PCI_BAR_IO;
    uint64_t least = io ? 4 : 16, most = wide ? BIT(40) : io ? 256 : BIT(31);
    if (index + wide >= PCI_BARS || function->bars[index].kind || (wide && function->bars[index + 1].kind) ||
        (index && function->bars[index - 1].kind == PCI_BAR_MEM64) || kind == PCI_BAR_NONE)
        return error_set(err, EINVAL, "%s: BAR %u cannot be used", function->name, index);
    if (size < least || size > most || (size & (size - 1)))
        return error_set(err, EINVAL, "%s: BAR %u cannot be %llu bytes", function->name, index,
                         (unsigned long long)size);
    function->bars[index] = (struct pci_bar){
        .kind = kind, .prefetchable = prefetchable, .size = size, .ops = ops, .device = device};
    /* The low bits of a base address register say what it is (6.2.5.1); the address bits below the size read zero. */
    uint8_t *config = function->config + PCI_BAR0 + 4 * index, *writable = function->writable + PCI_BAR0 + 4 * index;
    store_le32(config, io ? 1 : (wide ? 4u : 0) | (prefetchable ? 8u : 0));
    store_le32(writable, (uint32_t)~(size - 1));
    if (wide)
        store_le32(writable + 4, (uint32_t)(~(size - 1) >> 32));
    function->writable[PCI_COMMAND] |= io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    return 0;
}

int pci_add_capability(struct pci_function *function, uint8_t id, const void *body, unsigned bytes, imgvm_error *err)
{
    unsigned offset = function->capability_end;
    if (bytes < 2 || offset + bytes > PCI_CONFIG_BYTES)
        return error_set(err, ENOSPC, "%s: no room for PCI capability %#x", function->name, id);
    uint8_t *link = &function->config[PCI_CAPABILITIES];
    while (*link)
        link = &function->config[*link + 1];
    *link = (uint8_t)offset;
    function->config[offset] = id;
    function->config[offset + 1] = 0;
    memcpy(function->config + offset + 2, body, bytes - 2);
    function->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    function->capability_end = (uint8_t)MIN(align_up(offset + bytes, 4), PCI_CONFIG_BYTES - 1);
    return (int)offset;
}

static uint16_t command(const struct pci_function *function)
{
    return load_le16(function->config + PCI_COMMAND);
}

bool pci_bus_master(const struct pci_function *function)
{
    return command(function) & PCI_COMMAND_MASTER;
}

/* ---- interrupt pins ---- */

static bool drives_pin(const struct pci_function *function)
{
    return function->intx_level && !(command(function) & PCI_COMMAND_INTX_DISABLE) && !pci_msix_enabled(function);
}

static void update_pirq(struct pci_host *host, unsigned pirq)
{
    bool level = false;
    for (unsigned slot = 0; slot < PCI_DEVICES; slot++)
        if (host->functions[slot] && pci_pirq_of(slot, 0) == pirq)
            level |= drives_pin(host->functions[slot]);
    if (level == host->pirq_level[pirq])
        return;
    host->pirq_level[pirq] = level;
    irq_set(&host->pirq[pirq], level);
}

void pci_set_intx(struct pci_function *function, bool level)
{
    function->intx_level = level;
    uint8_t *status = &function->config[PCI_STATUS];
    *status = (uint8_t)(level ? *status | PCI_STATUS_INTERRUPT : *status & ~PCI_STATUS_INTERRUPT);
    if (function->host)
        update_pirq(function->host, pci_pirq_of(function->slot, 0));
}

/* ---- base addresses ---- */

/* Where the BAR belongs on its bus; 0 when it is not to be decoded. An address of zero, and one whose range ends with
 * the address space (what sizing leaves behind), count as not assigned. */
static uint64_t wanted_address(const struct pci_function *function, unsigned index)
{
    const struct pci_bar *bar = &function->bars[index];
    const uint8_t *config = function->config + PCI_BAR0 + 4 * index;
    uint64_t limit, address = load_le32(config) & ~(bar->size - 1);
    uint64_t enable = bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    if (bar->kind == PCI_BAR_NONE || !(command(function) & enable))
        return 0;
    if (bar->kind == PCI_BAR_MEM64) {
        address |= (uint64_t)load_le32(config + 4) << 32;
        limit = BIT(52);
    } else {
        limit = bar->kind == PCI_BAR_IO ? BIT(16) : BIT(32);
    }
    return address < limit && bar->size < limit - address ? address : 0;
}

/* Brings the buses in line with the registers. All that must go goes first: two BARs may have changed places. One
 * that overlaps somebody else stays unmapped until one of them moves again. */
static void update_bars(struct pci_host *host)
{
    uint8_t moved[PCI_DEVICES] = {0};
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned slot = 0; slot < PCI_DEVICES; slot++) {
            struct pci_function *function = host->functions[slot];
            for (unsigned i = 0; function && i < PCI_BARS; i++) {
                struct pci_bar *bar = &function->bars[i];
                struct bus *bus = bar->kind == PCI_BAR_IO ? host->ports : host->mmio;
                uint64_t address = wanted_address(function, i);
                if (pass == 0 && bar->mapped && address != bar->address) {
                    bus_remove(bus, bar->address, bar->device);
                    bar->mapped = false;
                    moved[slot] |= (uint8_t)(1 << i);
                } else if (pass == 1 && !bar->mapped && address &&
                           !bus_add(bus, address, bar->size, bar->ops, bar->device, function->name, NULL)) {
                    bar->mapped = true;
                    bar->address = address;
                    moved[slot] |= (uint8_t)(1 << i);
                }
            }
        }
    }
    for (unsigned slot = 0; slot < PCI_DEVICES; slot++)
        for (unsigned i = 0; i < PCI_BARS; i++)
            if (moved[slot] >> i & 1 && host->functions[slot]->ops && host->functions[slot]->ops->bar_moved)
                host->functions[slot]->ops->bar_moved(host->functions[slot], i);
}

/* ---- configuration space ---- */

uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size)
{
    if (offset + size > PCI_CONFIG_BYTES)
        return (uint32_t)bits_mask_bytes(size);
    if (function->ops && function->ops->config_read)
        function->ops->config_read(function, offset, size);
    uint32_t value = 0;
    memcpy(&value, function->config + offset, size);
    return value;
}

static bool touches(unsigned offset, unsigned size, unsigned first, unsigned last)
{
    return offset <= last && offset + size > first;
}

void pci_config_write(struct pci_function *function, unsigned offset, unsigned size, uint32_t value)
{
    if (offset + size > PCI_CONFIG_BYTES)
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = function->writable[offset + i], *byte = &function->config[offset + i];
        *byte = (uint8_t)((*byte & ~mask) | (value >> (8 * i) & mask));
    }
    struct pci_host *host = function->host;
    bool is_command = touches(offset, size, PCI_COMMAND, PCI_COMMAND + 1);
    if (host && (is_command || touches(offset, size, PCI_BAR0, PCI_BAR0 + 4 * PCI_BARS - 1)))
        update_bars(host);
    unsigned control = function->msix.capability + 2u;
    if (is_command || (function->msix.count && touches(offset, size, control, control + 1)))
        pci_msix_update(function);
    if (host)
        update_pirq(host, pci_pirq_of(function->slot, 0));
    if (function->ops && function->ops->config_write)
        function->ops->config_write(function, offset, size);
}

void pci_function_loaded(struct pci_function *function)
{
    update_bars(function->host);
    pci_set_intx(function, function->intx_level);
    pci_msix_update(function);
}

static uint64_t port_read(void *device, uint64_t offset, unsigned size)
{
    struct pci_host *host = device;
    if (offset == 0 && size == 4)
        return host->config_address;
    if (offset == 1 && size == 1 && host->cf9_ops)
        return host->cf9_ops->read(host->cf9_device, 0, 1);
    if (offset < 4 || !(host->config_address & ADDRESS_ENABLE) || bits_get(host->config_address, 23, 8) & 0xff07)
        return bits_mask_bytes(size);
    struct pci_function *function = host->functions[bits_get(host->config_address, 15, 11)];
    unsigned reg = (host->config_address & 0xfc) + (unsigned)(offset - 4);
    return function ? pci_config_read(function, reg, size) : bits_mask_bytes(size);
}

static void port_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = device;
    if (offset == 0 && size == 4) {
        host->config_address = (uint32_t)value & ADDRESS_WRITABLE;
        return;
    }
    if (offset == 1 && size == 1 && host->cf9_ops) {
        host->cf9_ops->write(host->cf9_device, 0, 1, value);
        return;
    }
    if (offset < 4 || !(host->config_address & ADDRESS_ENABLE) || bits_get(host->config_address, 23, 8) & 0xff07)
        return;
    struct pci_function *function = host->functions[bits_get(host->config_address, 15, 11)];
    if (function)
        pci_config_write(function, (host->config_address & 0xfc) + (unsigned)(offset - 4), size, (uint32_t)value);
}

/* ECAM: bits 19:15 device, 14:12 function, 11:0 register. 8-byte accesses are split, as a root complex may. */
static uint64_t ecam_read(void *device, uint64_t offset, unsigned size)
{
    struct pci_host *host = device;
    struct pci_function *function = host->functions[bits_get(offset, 19, 15)];
    if (!function || bits_get(offset, 14, 12))
        return bits_mask_bytes(size);
    unsigned reg = offset & 0xfff;
    if (size == 8)
        return pci_config_read(function, reg, 4) | (uint64_t)pci_config_read(function, reg + 4, 4) << 32;
    return pci_config_read(function, reg, size);
}

static void ecam_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = device;
    struct pci_function *function = host->functions[bits_get(offset, 19, 15)];
    if (!function || bits_get(offset, 14, 12))
        return;
    unsigned reg = offset & 0xfff;
    pci_config_write(function, reg, MIN(size, 4), (uint32_t)value);
    if (size == 8)
        pci_config_write(function, reg + 4, 4, (uint32_t)(value >> 32));
}

static const struct bus_ops port_ops = {port_read, port_write}, ecam_ops = {ecam_read, ecam_write};

/* ---- the host ---- */

int pci_host_init(struct pci_host *host, const struct pci_host_config *config, imgvm_error *err)
{
    *host = (struct pci_host){
        .ports = config->ports, .mmio = config->mmio, .msi = config->msi,
        .cf9_ops = config->cf9_ops, .cf9_device = config->cf9_device,
    };
    memcpy(host->pirq, config->pirq, sizeof host->pirq);
    memcpy(host->pirq_interrupt, config->pirq_interrupt, sizeof host->pirq_interrupt);
    /* The 440FX's name on a bridge with none of its registers: every guest knows that it needs no driver. */
    const struct pci_identity bridge = {.vendor = 0x8086, .device = 0x1237, .class_code = 0x060000, .revision = 2};
    pci_function_init(&host->bridge, "PCI host bridge", &bridge, NULL, host);
    int rc = pci_host_add(host, &host->bridge, 0, err);
    if (rc < 0)
        return rc;
    return bus_add(host->ports, PCI_CONFIG_ADDRESS_PORT, PCI_CONFIG_PORTS, &port_ops, host, "PCI configuration", err);
}

int pci_host_map_ecam(struct pci_host *host, uint64_t base, imgvm_error *err)
{
    if (!base || base % PCI_ECAM_BYTES)
        return error_set(err, EINVAL, "PCI ECAM cannot be at %#llx", (unsigned long long)base);
    int rc = bus_add(host->mmio, base, PCI_ECAM_BYTES, &ecam_ops, host, "PCI ECAM", err);
    if (!rc)
        host->ecam_base = base;
    return rc;
}

int pci_host_add(struct pci_host *host, struct pci_function *function, int slot, imgvm_error *err)
{
    if (slot < 0)
        for (slot = 1; slot < PCI_DEVICES && host->functions[slot];)
            slot++;
    if (slot >= PCI_DEVICES)
        return error_set(err, ENOSPC, "%s: the PCI bus is full (%d devices)", function->name, PCI_DEVICES - 1);
    if (host->functions[slot])
        return error_set(err, EEXIST, "%s: PCI slot %d holds %s", function->name, slot, host->functions[slot]->name);
    memcpy(function->initial, function->config, sizeof function->initial);
    function->host = host;
    function->slot = (uint8_t)slot;
    host->functions[slot] = function;
    return slot;
}

void pci_host_reset(struct pci_host *host)
{
    host->config_address = 0;
    for (unsigned slot = 0; slot < PCI_DEVICES; slot++) {
        struct pci_function *function = host->functions[slot];
        if (!function)
            continue;
        memcpy(function->config, function->initial, sizeof function->config);
        pci_msix_reset(function);
        pci_set_intx(function, false);
    }
    update_bars(host);
    for (unsigned slot = 0; slot < PCI_DEVICES; slot++)
        if (host->functions[slot] && host->functions[slot]->ops && host->functions[slot]->ops->reset)
            host->functions[slot]->ops->reset(host->functions[slot]);
}

void pci_host_destroy(struct pci_host *host)
{
    for (unsigned slot = 0; slot < PCI_DEVICES; slot++) {
        struct pci_function *function = host->functions[slot];
        if (!function)
            continue;
        pthread_mutex_lock(host->mmio->lock); /* another device's worker may be raising its interrupt */
        host->functions[slot] = NULL;
        for (unsigned i = 0; i < PCI_BARS; i++)
            if (function->bars[i].mapped)
                bus_remove(function->bars[i].kind == PCI_BAR_IO ? host->ports : host->mmio, function->bars[i].address,
                           function->bars[i].device);
        pthread_mutex_unlock(host->mmio->lock);
        if (function->ops && function->ops->destroy)
            function->ops->destroy(function);
    }
    if (host->ecam_base)
        bus_remove(host->mmio, host->ecam_base, host);
    bus_remove(host->ports, PCI_CONFIG_ADDRESS_PORT, host);
}
