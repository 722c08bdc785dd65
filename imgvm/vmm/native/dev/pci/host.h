/* SPDX-License-Identifier: MIT */
/* A conventional PCI bus: one host bridge, bus 0, up to 32 devices of one function each.
 *
 * PCI Local Bus Specification 3.0: configuration mechanism #1 (3.2.2.3.2), the type 00h header (6.1),
 * base address registers (6.2.5), MSI-X (6.8.2). The same configuration space can also be seen through
 * an ECAM window (PCI Express base specification, 7.2.2), 256 bytes of each function being present.
 * Not emulated: bridges, multifunction devices, MSI (every device of ours has MSI-X), parity and SERR.
 *
 * Everything here runs with the board lock held: bus handlers have it, the board takes it. */
#ifndef IMGVM_DEV_PCI_HOST_H
#define IMGVM_DEV_PCI_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "../../base/bits.h"
#include "../../mem/bus.h"
#include "../../mem/irq.h"

#define PCI_DEVICES 32
#define PCI_CONFIG_BYTES 256
#define PCI_BARS 6
#define PCI_MSIX_VECTORS 64 /* the most a function may have */
#define PCI_PIRQS 4
#define PCI_ECAM_BYTES 0x100000 /* bus 0 */

#define PCI_CONFIG_ADDRESS_PORT 0xcf8
#define PCI_CONFIG_PORTS 8

/* Type 00h header (PCI 3.0, figure 6-1). */
#define PCI_VENDOR_ID 0x00
#define PCI_DEVICE_ID 0x02
#define PCI_COMMAND 0x04
#define PCI_COMMAND_IO BIT(0)
#define PCI_COMMAND_MEMORY BIT(1)
#define PCI_COMMAND_MASTER BIT(2)
#define PCI_COMMAND_INTX_DISABLE BIT(10)
#define PCI_STATUS 0x06
#define PCI_STATUS_INTERRUPT BIT(3)
#define PCI_STATUS_CAPABILITIES BIT(4)
#define PCI_REVISION_ID 0x08
#define PCI_CLASS_CODE 0x09
#define PCI_CACHE_LINE_SIZE 0x0c
#define PCI_LATENCY_TIMER 0x0d
#define PCI_HEADER_TYPE 0x0e
#define PCI_BAR0 0x10
#define PCI_SUBSYSTEM_VENDOR_ID 0x2c
#define PCI_SUBSYSTEM_ID 0x2e
#define PCI_CAPABILITIES 0x34
#define PCI_INTERRUPT_LINE 0x3c
#define PCI_INTERRUPT_PIN 0x3d

#define PCI_CAP_ID_VENDOR 0x09
#define PCI_CAP_ID_MSIX 0x11

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_bar {
    enum pci_bar_kind kind;
    bool prefetchable;
    uint64_t size; /* a power of two: at least 16 (memory) or 4 (I/O) */
    const struct bus_ops *ops;
    void *device; /* the handlers' first argument */
    bool mapped;
    uint64_t address; /* where on the bus, while mapped */
};

/* One row of the MSI-X table (6.8.2.6 to 6.8.2.9). */
struct pci_msix_entry {
    uint32_t address_low, address_high, data, control; /* control bit 0: masked */
};

struct pci_msix {
    uint16_t count;     /* vectors; 0: no MSI-X */
    uint8_t capability; /* offset in configuration space */
    struct pci_msix_entry table[PCI_MSIX_VECTORS];
    uint64_t pending; /* the pending bit array */
};

struct pci_host;
struct pci_function;

struct pci_function_ops {
    /* All optional. config_read may refresh config[offset...] before it is read; config_write is told after
     * the masked write, with the bytes that were touched. */
    void (*config_read)(struct pci_function *function, unsigned offset, unsigned size);
    void (*config_write)(struct pci_function *function, unsigned offset, unsigned size);
    void (*bar_moved)(struct pci_function *function, unsigned bar); /* mapped, moved or unmapped */
    /* Vector's message, mask or the capability's enable bit changed (for those who route it elsewhere). */
    void (*msix_changed)(struct pci_function *function, unsigned vector);
    void (*reset)(struct pci_function *function); /* bus reset; the header and MSI-X are already reset */
    void (*destroy)(struct pci_function *function); /* optional: pci_host_destroy calls it */
};

struct pci_identity {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code; /* class << 16 | subclass << 8 | interface */
    uint8_t revision;
    bool intx; /* drives INTA# */
};

struct pci_function {
    const char *name;
    const struct pci_function_ops *ops;
    void *opaque; /* the owner's */
    struct pci_host *host;
    uint8_t slot;
    uint8_t config[PCI_CONFIG_BYTES];
    uint8_t writable[PCI_CONFIG_BYTES]; /* mask of bits the guest may change */
    uint8_t initial[PCI_CONFIG_BYTES];  /* what a bus reset restores */
    uint8_t capability_end;             /* first free byte after the last capability */
    struct pci_bar bars[PCI_BARS];
    struct pci_msix msix;
    bool intx_level;
};

struct pci_host {
    struct bus *ports, *mmio;
    struct irq_line pirq[PCI_PIRQS]; /* active-high here; shared lines are ORed before they reach the board */
    uint8_t pirq_interrupt[PCI_PIRQS]; /* what the Interrupt Line register says: the ISA IRQ or GSI */
    struct msi_sink msi;
    const struct bus_ops *cf9_ops; /* one port; may be NULL */
    void *cf9_device;
    uint32_t config_address;
    bool pirq_level[PCI_PIRQS];
    uint64_t ecam_base; /* 0: none */
    struct pci_function bridge;
    struct pci_function *functions[PCI_DEVICES];
};

struct pci_host_config {
    struct bus *ports, *mmio;
    struct irq_line pirq[PCI_PIRQS];
    uint8_t pirq_interrupt[PCI_PIRQS];
    struct msi_sink msi;
    /* Byte accesses to port CF9h (the chipset's reset control register) go here: reset_control_ops. May be NULL. */
    const struct bus_ops *cf9_ops;
    void *cf9_device;
};

/* Puts ports CF8h-CFFh on the bus (nobody else may claim CF9h: see cf9_ops) and the bridge at slot 0. */
int pci_host_init(struct pci_host *host, const struct pci_host_config *config, imgvm_error *err);
/* Also shows the configuration space as ECAM at base (a multiple of 1 MiB), for ACPI's MCFG: segment 0, bus 0 to 0. */
int pci_host_map_ecam(struct pci_host *host, uint64_t base, imgvm_error *err);
/* Every function as after RST#: BARs and command zero; then pci_assign_resources again. */
void pci_host_reset(struct pci_host *host);
/* Destroys the functions too (ops->destroy). The board lock is free and the vCPUs are gone. */
void pci_host_destroy(struct pci_host *host);

/* A function is prepared (init, BARs, capabilities) and then added. */
void pci_function_init(struct pci_function *function, const char *name, const struct pci_identity *identity,
                       const struct pci_function_ops *ops, void *opaque);
/* MEM64 takes `index` and index + 1. */
int pci_add_bar(struct pci_function *function, unsigned index, enum pci_bar_kind kind, bool prefetchable, uint64_t size,
                const struct bus_ops *ops, void *device, imgvm_error *err);
/* `bytes` counts the two header bytes (id, next), which body does not hold. Returns the offset or -ENOSPC. */
int pci_add_capability(struct pci_function *function, uint8_t id, const void *body, unsigned bytes, imgvm_error *err);
/* A whole memory BAR of 4 KiB for the table (offset 0) and the pending bits (offset 800h). */
int pci_add_msix(struct pci_function *function, unsigned bar, unsigned vectors, imgvm_error *err);
/* slot 1-31, or -1 for the first that is free. Returns the slot or -errno. */
int pci_host_add(struct pci_host *host, struct pci_function *function, int slot, imgvm_error *err);

/* What firmware does: gives every BAR an address, programs Interrupt Line, sets the command bits (bus master
 * included). Windows are [base, limit); a 64-bit prefetchable BAR prefers mmio64 and falls back to mmio. -ENOSPC when
 * one is full. */
struct pci_windows {
    uint64_t mmio_base, mmio_limit;     /* below 4 GiB */
    uint64_t mmio64_base, mmio64_limit; /* may be empty */
    uint32_t io_base, io_limit;         /* may be empty when nobody has an I/O BAR */
};
int pci_assign_resources(struct pci_host *host, const struct pci_windows *windows, imgvm_error *err);

/* Which PIRQ (0-3) a slot's INTA# is wired to: the board's ACPI _PRT must say the same. */
static inline unsigned pci_pirq_of(unsigned slot, unsigned pin /* 0 = INTA# */) { return (slot + pin) % PCI_PIRQS; }

/* Access to a function's configuration space as the guest does it (size 1, 2, 4; naturally aligned). */
uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size);
void pci_config_write(struct pci_function *function, unsigned offset, unsigned size, uint32_t value);

/* A device's registers were loaded from a snapshot: maps its BARs, drives its pin, as the new contents say. */
void pci_function_loaded(struct pci_function *function);

bool pci_bus_master(const struct pci_function *function);
void pci_set_intx(struct pci_function *function, bool level);
bool pci_msix_enabled(const struct pci_function *function);
/* Send the vector's message, or hold it in the pending bits while masked. No effect on a vector out of range. */
void pci_msix_notify(struct pci_function *function, unsigned vector);
/* The message of a vector, for an irqfd; false while it is masked or MSI-X is off (deliver by pci_msix_notify then). */
bool pci_msix_message(const struct pci_function *function, unsigned vector, uint64_t *address, uint32_t *data);

/* Between host.c and msix.c: message control or bus master changed; bus reset. */
void pci_msix_update(struct pci_function *function);
void pci_msix_reset(struct pci_function *function);

#endif
