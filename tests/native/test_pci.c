/* SPDX-License-Identifier: MIT */
/* needs: base/error.c mem/bus.c dev/pci/host.c dev/pci/msix.c dev/pci/assign.c */
#include "check.h"
#include "dev/pci/host.h"

#include <errno.h>
#include <string.h>

struct fixture {
    pthread_mutex_t lock;
    struct bus ports, mmio;
    struct pci_host host;
    struct pci_function a, b;
    bool lines[4];
    unsigned line_changes;
    unsigned messages;
    uint64_t message_address;
    uint32_t message_data;
    unsigned cf9_writes;
    unsigned moves, resets, destroys, msix_changes;
    uint64_t last_offset;
};

static void set_line(void *opaque, unsigned pin, bool level)
{
    struct fixture *f = opaque;
    f->lines[pin] = level;
    f->line_changes++;
}

static void send_message(void *opaque, uint64_t address, uint32_t data)
{
    struct fixture *f = opaque;
    f->messages++;
    f->message_address = address;
    f->message_data = data;
}

static uint64_t bar_read(void *device, uint64_t offset, unsigned size)
{
    (void)size;
    ((struct fixture *)device)->last_offset = offset;
    return 0x5500 + offset;
}
static void bar_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size, (void)value;
    ((struct fixture *)device)->last_offset = offset;
}
static const struct bus_ops bar_ops = {bar_read, bar_write};

static uint64_t cf9_read(void *device, uint64_t offset, unsigned size)
{
    (void)device, (void)offset, (void)size;
    return 0x42;
}
static void cf9_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset, (void)size, (void)value;
    ((struct fixture *)device)->cf9_writes++;
}
static const struct bus_ops cf9_ops = {cf9_read, cf9_write};

static void moved(struct pci_function *function, unsigned bar)
{
    (void)bar;
    ((struct fixture *)function->opaque)->moves++;
}
static void was_reset(struct pci_function *function) { ((struct fixture *)function->opaque)->resets++; }
static void was_destroyed(struct pci_function *function) { ((struct fixture *)function->opaque)->destroys++; }
static void msix_changed(struct pci_function *function, unsigned vector)
{
    (void)vector;
    ((struct fixture *)function->opaque)->msix_changes++;
}
static const struct pci_function_ops ops = {
    .bar_moved = moved, .reset = was_reset, .destroy = was_destroyed, .msix_changed = msix_changed};

static uint32_t address_of(unsigned slot, unsigned reg) { return 0x80000000u | slot << 11 | (reg & 0xfc); }

static uint32_t cfg_read(struct fixture *f, unsigned slot, unsigned reg, unsigned size)
{
    bus_write(&f->ports, 0xcf8, 4, address_of(slot, reg));
    return (uint32_t)bus_read(&f->ports, 0xcfc + (reg & 3), size);
}

static void cfg_write(struct fixture *f, unsigned slot, unsigned reg, unsigned size, uint32_t value)
{
    bus_write(&f->ports, 0xcf8, 4, address_of(slot, reg));
    bus_write(&f->ports, 0xcfc + (reg & 3), size, value);
}

/* Slot 1 (a): BAR0 4 KiB of 32-bit memory, BAR1 MSI-X, BAR2 64 I/O ports. Slot 5 (b), on the same PIRQ: BAR0 1 MiB of
 * 64-bit prefetchable memory. */
static void fixture_init(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->lock, NULL);
    bus_init(&f->ports, &f->lock);
    bus_init(&f->mmio, &f->lock);
    struct pci_host_config config = {.ports = &f->ports, .mmio = &f->mmio, .msi = {send_message, f},
                                     .cf9_ops = &cf9_ops, .cf9_device = f};
    for (unsigned i = 0; i < 4; i++) {
        config.pirq[i] = (struct irq_line){set_line, f, i};
        config.pirq_interrupt[i] = (uint8_t)(16 + i);
    }
    imgvm_error err;
    CHECK_EQ(pci_host_init(&f->host, &config, &err), 0);
    const struct pci_identity a = {.vendor = 0x1234, .device = 0x5678, .subsystem_vendor = 0x1af4, .subsystem = 7,
                                   .class_code = 0x010203, .revision = 9, .intx = true};
    pci_function_init(&f->a, "a", &a, &ops, f);
    CHECK_EQ(pci_add_bar(&f->a, 0, PCI_BAR_MEM32, false, 4096, &bar_ops, f, &err), 0);
    CHECK_EQ(pci_add_capability(&f->a, PCI_CAP_ID_VENDOR, "\x06hey", 6, &err), 0x40);
    CHECK_EQ(pci_add_msix(&f->a, 1, 3, &err), 0);
    CHECK_EQ(pci_add_bar(&f->a, 2, PCI_BAR_IO, false, 64, &bar_ops, f, &err), 0);
    CHECK_EQ(pci_host_add(&f->host, &f->a, -1, &err), 1);
    const struct pci_identity b = {.vendor = 0x1234, .device = 0x9999, .class_code = 0xff0000, .intx = true};
    pci_function_init(&f->b, "b", &b, &ops, f);
    CHECK_EQ(pci_add_bar(&f->b, 0, PCI_BAR_MEM64, true, 1 << 20, &bar_ops, f, &err), 0);
    CHECK_EQ(pci_host_add(&f->host, &f->b, 5, &err), 5);
}

static void fixture_destroy(struct fixture *f)
{
    pci_host_destroy(&f->host);
    CHECK_EQ(f->destroys, 2);
    CHECK_EQ(f->ports.count, 0);
    CHECK_EQ(f->mmio.count, 0);
    bus_destroy(&f->ports);
    bus_destroy(&f->mmio);
}

static void test_mechanism_one(void)
{
    struct fixture f;
    fixture_init(&f);
    CHECK_EQ(cfg_read(&f, 0, 0, 4), 0x12378086);
    CHECK_EQ(cfg_read(&f, 0, 0x08, 4) >> 8, 0x060000);
    CHECK_EQ(cfg_read(&f, 1, 0, 4), 0x56781234);
    CHECK_EQ(cfg_read(&f, 1, 2, 2), 0x5678);
    CHECK_EQ(cfg_read(&f, 1, 1, 1), 0x12);
    CHECK_EQ(cfg_read(&f, 1, 0x08, 4), 0x01020309);
    CHECK_EQ(cfg_read(&f, 1, 0x2c, 4), 0x00071af4);
    CHECK_EQ(cfg_read(&f, 1, 0x0e, 1), 0);
    CHECK_EQ(cfg_read(&f, 1, 0x3d, 1), 1);
    CHECK_EQ(cfg_read(&f, 2, 0, 4), 0xffffffff);
    CHECK_EQ(cfg_read(&f, 2, 0, 2), 0xffff);
    cfg_write(&f, 2, 4, 2, 7); /* nobody: no effect */
    bus_write(&f.ports, 0xcf8, 4, address_of(1, 0) | 1 << 8); /* function 1 */
    CHECK_EQ(bus_read(&f.ports, 0xcfc, 4), 0xffffffff);
    bus_write(&f.ports, 0xcf8, 4, address_of(1, 0) | 1 << 16); /* bus 1 */
    CHECK_EQ(bus_read(&f.ports, 0xcfc, 4), 0xffffffff);
    bus_write(&f.ports, 0xcf8, 4, address_of(1, 0) & 0x7fffffff); /* disabled */
    CHECK_EQ(bus_read(&f.ports, 0xcfc, 4), 0xffffffff);
    bus_write(&f.ports, 0xcf8, 4, 0xffffffff);
    CHECK_EQ(bus_read(&f.ports, 0xcf8, 4), 0x80fffffc);
    /* What Linux tries to tell the mechanisms apart: byte writes do not reach the address register. */
    bus_write(&f.ports, 0xcfb, 1, 0x01);
    CHECK_EQ(bus_read(&f.ports, 0xcf8, 4), 0x80fffffc);
    bus_write(&f.ports, 0xcf9, 1, 6);
    CHECK_EQ(f.cf9_writes, 1);
    CHECK_EQ(bus_read(&f.ports, 0xcf9, 1), 0x42);
    CHECK_EQ(bus_read(&f.ports, 0xcf8, 4), 0x80fffffc);
    /* Read-only fields stay; scratch ones hold bytes. */
    cfg_write(&f, 1, 0, 4, 0);
    CHECK_EQ(cfg_read(&f, 1, 0, 4), 0x56781234);
    cfg_write(&f, 1, 0x3c, 1, 11);
    CHECK_EQ(cfg_read(&f, 1, 0x3c, 4), 0x10b);
    fixture_destroy(&f);
}

static void test_bar_sizing_and_moving(void)
{
    struct fixture f;
    fixture_init(&f);
    cfg_write(&f, 1, 0x10, 4, 0xffffffff);
    CHECK_EQ(cfg_read(&f, 1, 0x10, 4), 0xfffff000);
    cfg_write(&f, 1, 0x18, 4, 0xffffffff);
    CHECK_EQ(cfg_read(&f, 1, 0x18, 4), 0xffffffc1);
    cfg_write(&f, 1, 0x1c, 4, 0xffffffff);
    CHECK_EQ(cfg_read(&f, 1, 0x1c, 4), 0);
    cfg_write(&f, 1, 0x30, 4, 0xffffffff); /* no expansion ROM */
    CHECK_EQ(cfg_read(&f, 1, 0x30, 4), 0);
    cfg_write(&f, 5, 0x10, 4, 0xffffffff);
    cfg_write(&f, 5, 0x14, 4, 0xffffffff);
    CHECK_EQ(cfg_read(&f, 5, 0x10, 4), 0xfff0000c);
    CHECK_EQ(cfg_read(&f, 5, 0x14, 4), 0xffffffff);

    cfg_write(&f, 1, 0x10, 4, 0xe0000abc);
    CHECK_EQ(cfg_read(&f, 1, 0x10, 4), 0xe0000000);
    CHECK_EQ(bus_read(&f.mmio, 0xe0000010, 4), 0xffffffff); /* decoding is off */
    cfg_write(&f, 1, 4, 2, 2);
    CHECK_EQ(bus_read(&f.mmio, 0xe0000010, 4), 0x5510);
    CHECK_EQ(f.last_offset, 0x10);
    cfg_write(&f, 1, 0x10, 4, 0xffffffff); /* sizing with decoding on unmaps for a moment */
    CHECK_EQ(bus_read(&f.mmio, 0xe0000010, 4), 0xffffffff);
    cfg_write(&f, 1, 0x10, 4, 0xe0004000);
    CHECK_EQ(bus_read(&f.mmio, 0xe0004020, 4), 0x5520);
    CHECK_EQ(bus_read(&f.mmio, 0xe0000010, 4), 0xffffffff);
    cfg_write(&f, 1, 4, 2, 0);
    CHECK_EQ(bus_read(&f.mmio, 0xe0004020, 4), 0xffffffff);

    cfg_write(&f, 1, 0x18, 4, 0xc000);
    cfg_write(&f, 1, 4, 2, 1);
    CHECK_EQ(bus_read(&f.ports, 0xc03f, 1), 0x3f);
    CHECK_EQ(bus_read(&f.ports, 0xc040, 1), 0xff);

    cfg_write(&f, 5, 0x10, 4, 0);
    cfg_write(&f, 5, 0x14, 4, 0x20);
    cfg_write(&f, 5, 4, 2, 2);
    CHECK_EQ(bus_read(&f.mmio, 0x2000000044, 4), 0x5544);
    fixture_destroy(&f);
}

/* Two BARs over one another: the later one waits, and appears when the first goes. */
static void test_overlap_waits(void)
{
    struct fixture f;
    fixture_init(&f);
    cfg_write(&f, 1, 0x10, 4, 0xe0000000);
    cfg_write(&f, 1, 4, 2, 2);
    cfg_write(&f, 5, 0x10, 4, 0xe0000000);
    cfg_write(&f, 5, 0x14, 4, 0);
    unsigned before = f.moves;
    cfg_write(&f, 5, 4, 2, 2);
    CHECK(!f.b.bars[0].mapped);
    CHECK_EQ(f.moves, before);
    cfg_write(&f, 1, 0x10, 4, 0xd0000000);
    CHECK(f.b.bars[0].mapped);
    CHECK_EQ(f.moves, before + 2);
    CHECK_EQ(bus_read(&f.mmio, 0xe00f0000, 4), 0xf5500);
    CHECK_EQ(bus_read(&f.mmio, 0xd0000000, 4), 0x5500);
    fixture_destroy(&f);
}

static void test_capabilities(void)
{
    struct fixture f;
    fixture_init(&f);
    CHECK(cfg_read(&f, 1, 6, 2) & 0x10);
    CHECK(!(cfg_read(&f, 5, 6, 2) & 0x10));
    unsigned at = cfg_read(&f, 1, 0x34, 1);
    CHECK_EQ(at, 0x40);
    CHECK_EQ(cfg_read(&f, 1, at, 1), 9);
    CHECK_EQ(cfg_read(&f, 1, at + 2, 1), 6);
    CHECK_EQ(cfg_read(&f, 1, at + 3, 1), 'h');
    at = cfg_read(&f, 1, at + 1, 1);
    CHECK_EQ(at, 0x48);
    CHECK_EQ(cfg_read(&f, 1, at, 1), 0x11);
    CHECK_EQ(cfg_read(&f, 1, at + 1, 1), 0);
    CHECK_EQ(cfg_read(&f, 1, at + 2, 2), 2); /* three vectors */
    CHECK_EQ(cfg_read(&f, 1, at + 4, 4), 1);
    CHECK_EQ(cfg_read(&f, 1, at + 8, 4), 0x801);
    imgvm_error err;
    char body[250] = {0};
    CHECK_EQ(pci_add_capability(&f.b, PCI_CAP_ID_VENDOR, body, 192, &err), 0x40);
    CHECK_EQ(pci_add_capability(&f.b, PCI_CAP_ID_VENDOR, body, 2, &err), -ENOSPC);
    CHECK_EQ(pci_add_bar(&f.b, 1, PCI_BAR_MEM32, false, 4096, &bar_ops, &f, &err), -EINVAL); /* upper half of BAR 0 */
    CHECK_EQ(pci_add_bar(&f.b, 2, PCI_BAR_MEM32, false, 4095, &bar_ops, &f, &err), -EINVAL);
    CHECK_EQ(pci_add_bar(&f.b, 5, PCI_BAR_MEM64, false, 4096, &bar_ops, &f, &err), -EINVAL);
    CHECK_EQ(pci_host_add(&f.host, &f.b, 1, &err), -EEXIST);
    CHECK(strstr(err.message, "holds a"));
    fixture_destroy(&f);
}

static void test_msix(void)
{
    struct fixture f;
    fixture_init(&f);
    cfg_write(&f, 1, 0x14, 4, 0xe0010000);
    cfg_write(&f, 1, 4, 2, 2 | 4);
    CHECK_EQ(bus_read(&f.mmio, 0xe001001c, 4), 1); /* masked after reset */
    bus_write(&f.mmio, 0xe0010010, 8, 0x00000001fee01003);
    bus_write(&f.mmio, 0xe0010018, 4, 0x4041);
    bus_write(&f.mmio, 0xe0010018, 2, 0xdead); /* narrow: dropped */
    CHECK_EQ(bus_read(&f.mmio, 0xe0010010, 8), 0x00000001fee01000);
    CHECK_EQ(bus_read(&f.mmio, 0xe0010018, 8), 0x100004041);
    pci_msix_notify(&f.a, 1); /* MSI-X is off: nothing, not even pending */
    CHECK_EQ(f.messages, 0);
    cfg_write(&f, 1, 0x4a, 2, 0x8000);
    CHECK_EQ(f.messages, 0);
    pci_msix_notify(&f.a, 1); /* masked: pending */
    CHECK_EQ(bus_read(&f.mmio, 0xe0010800, 8), 2);
    uint64_t address;
    uint32_t data;
    CHECK(!pci_msix_message(&f.a, 1, &address, &data));
    unsigned changes = f.msix_changes;
    bus_write(&f.mmio, 0xe001001c, 4, 0xfffffffe); /* unmask: sent; only bit 0 is there */
    CHECK_EQ(f.msix_changes, changes + 1);
    CHECK_EQ(f.messages, 1);
    CHECK_EQ(f.message_address, 0x1fee01000);
    CHECK_EQ(f.message_data, 0x4041);
    CHECK_EQ(bus_read(&f.mmio, 0xe0010800, 8), 0);
    CHECK_EQ(bus_read(&f.mmio, 0xe001001c, 4), 0);
    CHECK(pci_msix_message(&f.a, 1, &address, &data) && address == 0x1fee01000 && data == 0x4041);
    pci_msix_notify(&f.a, 1);
    CHECK_EQ(f.messages, 2);
    cfg_write(&f, 1, 0x4a, 2, 0xc000); /* function mask */
    pci_msix_notify(&f.a, 1);
    pci_msix_notify(&f.a, 1);
    CHECK_EQ(f.messages, 2);
    cfg_write(&f, 1, 0x4a, 2, 0x8000);
    CHECK_EQ(f.messages, 3);
    cfg_write(&f, 1, 4, 2, 2); /* no bus mastering: the write waits */
    pci_msix_notify(&f.a, 1);
    CHECK_EQ(f.messages, 3);
    cfg_write(&f, 1, 4, 2, 6);
    CHECK_EQ(f.messages, 4);
    pci_msix_notify(&f.a, 3); /* no such vector */
    pci_msix_notify(&f.a, 0xffff);
    CHECK_EQ(f.messages, 4);
    CHECK_EQ(bus_read(&f.mmio, 0xe0010030, 4), 0); /* behind the table */
    bus_write(&f.mmio, 0xe0010030, 4, ~0u);
    bus_write(&f.mmio, 0xe0010800, 4, ~0u);
    CHECK_EQ(bus_read(&f.mmio, 0xe0010800, 4), 0);
    fixture_destroy(&f);
}

static void test_shared_pin(void)
{
    struct fixture f;
    fixture_init(&f);
    CHECK_EQ(pci_pirq_of(1, 0), pci_pirq_of(5, 0));
    pci_set_intx(&f.a, true);
    CHECK(f.lines[1]);
    CHECK(cfg_read(&f, 1, 6, 2) & 8);
    pci_set_intx(&f.b, true);
    pci_set_intx(&f.a, false);
    CHECK(f.lines[1]);
    CHECK(!(cfg_read(&f, 1, 6, 2) & 8));
    CHECK_EQ(f.line_changes, 1);
    cfg_write(&f, 5, 4, 2, 0x400); /* interrupt disable: the status bit still shows it */
    CHECK(!f.lines[1]);
    CHECK(cfg_read(&f, 5, 6, 2) & 8);
    cfg_write(&f, 5, 4, 2, 0);
    CHECK(f.lines[1]);
    pci_set_intx(&f.b, false);
    CHECK(!f.lines[1]);
    pci_set_intx(&f.a, true);
    cfg_write(&f, 1, 0x4a, 2, 0x8000); /* MSI-X on: the pin is silent */
    CHECK(!f.lines[1]);
    fixture_destroy(&f);
}

static void test_assign_and_reset(void)
{
    struct fixture f;
    fixture_init(&f);
    imgvm_error err;
    const struct pci_windows windows = {.mmio_base = 0xe0000800, .mmio_limit = 0xe0010000,
                                        .mmio64_base = 0x800000000, .mmio64_limit = 0x900000000,
                                        .io_base = 0xc000, .io_limit = 0xd000};
    CHECK_EQ(pci_assign_resources(&f.host, &windows, &err), 0);
    CHECK_EQ(f.b.bars[0].address, 0x800000000);
    CHECK_EQ(f.a.bars[0].address, 0xe0001000);
    CHECK_EQ(f.a.bars[1].address, 0xe0002000);
    CHECK_EQ(f.a.bars[2].address, 0xc000);
    CHECK_EQ(cfg_read(&f, 1, 0x3c, 1), 17);
    CHECK_EQ(cfg_read(&f, 1, 4, 2), 7);
    CHECK_EQ(cfg_read(&f, 5, 4, 2), 6);
    CHECK_EQ(bus_read(&f.mmio, 0x8000fff00, 4), 0x5500 + 0xfff00);

    cfg_write(&f, 1, 0x4a, 2, 0x8000);
    pci_set_intx(&f.b, true);
    pthread_mutex_lock(&f.lock);
    pci_host_reset(&f.host);
    pthread_mutex_unlock(&f.lock);
    CHECK_EQ(f.resets, 2);
    CHECK(!f.a.bars[0].mapped && !f.a.bars[2].mapped && !f.b.bars[0].mapped);
    CHECK_EQ(f.mmio.count, 0);
    CHECK(!f.lines[1]);
    CHECK_EQ(cfg_read(&f, 1, 4, 2), 0);
    CHECK_EQ(cfg_read(&f, 1, 0x10, 4), 0);
    CHECK_EQ(cfg_read(&f, 1, 0x4a, 2), 2);
    CHECK_EQ(cfg_read(&f, 1, 0x40, 1), 9);

    const struct pci_windows low_only = {.mmio_base = 0xe0000000, .mmio_limit = 0xf0000000, .io_base = 0xc000,
                                         .io_limit = 0xd000};
    CHECK_EQ(pci_assign_resources(&f.host, &low_only, &err), 0);
    CHECK_EQ(f.b.bars[0].address, 0xe0000000); /* the large one first */
    CHECK_EQ(f.a.bars[0].address, 0xe0100000);
    const struct pci_windows small = {.mmio_base = 0xe0000000, .mmio_limit = 0xe0001000};
    CHECK_EQ(pci_assign_resources(&f.host, &small, &err), -ENOSPC);
    CHECK(strstr(err.message, "b: no room for PCI BAR 0"));
    fixture_destroy(&f);
}

/* Small memory BARs do not share a page; the slots run out in time. */
static void test_small_and_many(void)
{
    struct fixture f;
    fixture_init(&f);
    imgvm_error err;
    static struct pci_function many[29];
    const struct pci_identity small = {.vendor = 0x1234, .device = 1};
    for (unsigned i = 0; i < 29; i++) {
        pci_function_init(&many[i], "small", &small, NULL, &f);
        CHECK_EQ(pci_add_bar(&many[i], 0, PCI_BAR_MEM32, false, 16, &bar_ops, &f, &err), 0);
        CHECK_EQ(pci_host_add(&f.host, &many[i], -1, &err), (int)(i < 3 ? 2 + i : 3 + i));
    }
    struct pci_function last = many[0];
    CHECK_EQ(pci_host_add(&f.host, &last, -1, &err), -ENOSPC);
    CHECK(strstr(err.message, "full"));
    const struct pci_windows windows = {.mmio_base = 0xe0000000, .mmio_limit = 0xf0000000, .io_base = 0xc000,
                                        .io_limit = 0xd000};
    CHECK_EQ(pci_assign_resources(&f.host, &windows, &err), 0);
    CHECK_EQ(many[1].bars[0].address - many[0].bars[0].address, 4096);
    CHECK_EQ(f.mmio.count, 29 + 3);
    fixture_destroy(&f);
}

/* Registers carried to another machine of the same make bring BARs, pin and messages along. */
static void test_loaded(void)
{
    struct fixture f, to;
    fixture_init(&f);
    fixture_init(&to);
    cfg_write(&f, 1, 0x10, 4, 0xe0000000);
    cfg_write(&f, 1, 0x14, 4, 0xe0010000);
    cfg_write(&f, 1, 4, 2, 6);
    pci_set_intx(&f.a, true);
    memcpy(to.a.config, f.a.config, sizeof to.a.config);
    to.a.msix = f.a.msix;
    to.a.intx_level = f.a.intx_level;
    pci_function_loaded(&to.a);
    CHECK_EQ(bus_read(&to.mmio, 0xe0000010, 4), 0x5510);
    CHECK(to.lines[1]);
    cfg_write(&f, 1, 0x4a, 2, 0x8000);
    pci_msix_notify(&f.a, 2);
    f.a.msix.table[2].control = 0; /* as if it had been saved just before the message went out */
    memcpy(to.a.config, f.a.config, sizeof to.a.config);
    to.a.msix = f.a.msix;
    pci_function_loaded(&to.a);
    CHECK_EQ(to.messages, 1);
    CHECK(!to.lines[1]);
    fixture_destroy(&f);
    fixture_destroy(&to);
}

static void test_ecam(void)
{
    struct fixture f;
    fixture_init(&f);
    imgvm_error err;
    CHECK_EQ(pci_host_map_ecam(&f.host, 0xb0001000, &err), -EINVAL);
    CHECK_EQ(pci_host_map_ecam(&f.host, 0xb0000000, &err), 0);
    CHECK_EQ(bus_read(&f.mmio, 0xb0000000 + (1 << 15), 4), 0x56781234);
    CHECK_EQ(bus_read(&f.mmio, 0xb0000000 + (1 << 15) + 3, 1), 0x56);
    CHECK_EQ(bus_read(&f.mmio, 0xb0000000 + (1 << 15) + 0x28, 8), 0x00071af400000000);
    CHECK_EQ(bus_read(&f.mmio, 0xb0000000 + (1 << 15) + 0x100, 4), 0xffffffff); /* no extended space */
    CHECK_EQ(bus_read(&f.mmio, 0xb0000000 + (1 << 15) + (1 << 12), 4), 0xffffffff);
    CHECK_EQ(bus_read(&f.mmio, 0xb0000000 + (2 << 15), 4), 0xffffffff);
    bus_write(&f.mmio, 0xb0000000 + (5 << 15) + 0x10, 8, 0x2000000000);
    bus_write(&f.mmio, 0xb0000000 + (5 << 15) + 4, 2, 2);
    CHECK_EQ(bus_read(&f.mmio, 0x2000000008, 4), 0x5508);
    bus_write(&f.mmio, 0xb0000000 + (5 << 15) + 0xffc, 8, 0);
    fixture_destroy(&f);
}

int main(void)
{
    test_mechanism_one();
    test_bar_sizing_and_moving();
    test_overlap_waits();
    test_capabilities();
    test_msix();
    test_shared_pin();
    test_assign_and_reset();
    test_small_and_many();
    test_loaded();
    test_ecam();
    return check_report();
}
