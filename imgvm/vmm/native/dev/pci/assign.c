/* SPDX-License-Identifier: MIT */
/* Hands out addresses as firmware would: the largest BARs first, each at a multiple of its size. */
#include "host.h"

#include <errno.h>

struct window {
    uint64_t next, limit;
};

static bool take(struct window *window, uint64_t size, uint64_t *address)
{
    uint64_t at = align_up(window->next, size);
    if (at < window->next || at >= window->limit || size > window->limit - at)
        return false;
    *address = at;
    window->next = at + size;
    return true;
}

/* A memory BAR gets whole pages, so that an engine can map or trap each by itself. */
static uint64_t room(const struct pci_bar *bar)
{
    return bar->kind == PCI_BAR_IO ? bar->size : MAX(bar->size, 4096);
}

static struct pci_bar *largest(struct pci_host *host, const bool done[PCI_DEVICES][PCI_BARS], unsigned *slot_out,
                               unsigned *index_out)
{
    struct pci_bar *best = NULL;
    for (unsigned slot = 0; slot < PCI_DEVICES; slot++) {
        for (unsigned i = 0; host->functions[slot] && i < PCI_BARS; i++) {
            struct pci_bar *bar = &host->functions[slot]->bars[i];
            if (bar->kind == PCI_BAR_NONE || done[slot][i] || (best && room(bar) <= room(best)))
                continue;
            best = bar;
            *slot_out = slot;
            *index_out = i;
        }
    }
    return best;
}

int pci_assign_resources(struct pci_host *host, const struct pci_windows *windows, imgvm_error *err)
{
    struct window mmio = {windows->mmio_base, MIN(windows->mmio_limit, BIT(32))};
    struct window mmio64 = {windows->mmio64_base, windows->mmio64_limit};
    struct window io = {windows->io_base, MIN(windows->io_limit, BIT(16))};
    bool done[PCI_DEVICES][PCI_BARS] = {{false}};
    unsigned slot = 0, index = 0;
    for (struct pci_bar *bar; (bar = largest(host, done, &slot, &index)); done[slot][index] = true) {
        struct pci_function *function = host->functions[slot];
        uint64_t address = 0;
        bool found = bar->kind == PCI_BAR_IO ? take(&io, room(bar), &address)
                     : (bar->kind == PCI_BAR_MEM64 && bar->prefetchable && take(&mmio64, room(bar), &address)) ||
                           take(&mmio, room(bar), &address) ||
                           (bar->kind == PCI_BAR_MEM64 && take(&mmio64, room(bar), &address));
        if (!found)
            return error_set(err, ENOSPC, "%s: no room for PCI BAR %u (%llu bytes)", function->name, index,
                             (unsigned long long)bar->size);
        pci_config_write(function, PCI_BAR0 + 4 * index, 4, (uint32_t)address);
        if (bar->kind == PCI_BAR_MEM64)
            pci_config_write(function, PCI_BAR0 + 4 * index + 4, 4, (uint32_t)(address >> 32));
    }
    for (slot = 0; slot < PCI_DEVICES; slot++) {
        struct pci_function *function = host->functions[slot];
        if (!function)
            continue;
        uint8_t pin = function->config[PCI_INTERRUPT_PIN];
        if (pin)
            pci_config_write(function, PCI_INTERRUPT_LINE, 1, host->pirq_interrupt[pci_pirq_of(slot, pin - 1u)]);
        uint32_t command = load_le16(function->config + PCI_COMMAND);
        pci_config_write(function, PCI_COMMAND, 2, command | PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    }
    return 0;
}
