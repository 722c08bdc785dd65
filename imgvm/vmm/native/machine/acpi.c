/* SPDX-License-Identifier: MIT */
#include "acpi.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "../base/bits.h"
#include "../dev/acpi_pm.h"
#include "../dev/pci/host.h"
#include "aml.h"

#define HEADER_BYTES 36
#define FADT_BYTES 276

/* FADT fixed feature flags (table 5-10). */
#define FADT_WBINVD BIT(0)
#define FADT_PROC_C1 BIT(2)
#define FADT_SLP_BUTTON BIT(5)  /* no sleep button among the fixed hardware */
#define FADT_FIX_RTC BIT(6)     /* the RTC wakes nobody */
#define FADT_TMR_VAL_EXT BIT(8) /* the PM timer has 32 bits */
#define FADT_RESET_REG_SUP BIT(10)
/* IA-PC boot architecture flags (table 5-11). */
#define BOOT_ARCH_LEGACY_DEVICES BIT(0)
#define BOOT_ARCH_8042 BIT(1)
#define BOOT_ARCH_NO_VGA BIT(2)

static uint8_t checksum(const uint8_t *data, size_t size)
{
    uint8_t sum = 0;
    while (size--)
        sum += *data++;
    return (uint8_t)-sum;
}

/* Tables are written one behind the other, each at a multiple of 64 (the FACS needs that). */
struct writer {
    uint8_t *base;
    uint32_t gpa;
    size_t used;
};

static uint8_t *begin_table(struct writer *w, uint32_t *gpa)
{
    w->used = align_up(w->used, 64);
    *gpa = w->gpa + (uint32_t)w->used;
    return w->base + w->used;
}

/* 5.2.6: the common header. */
static void end_table(struct writer *w, uint8_t *table, const char *signature, uint8_t revision, size_t bytes)
{
    memcpy(table, signature, 4);
    store_le32(table + 4, (uint32_t)bytes);
    table[8] = revision;
    memcpy(table + 10, "IMGVM ", 6);
    memcpy(table + 16, "IMGVMBRD", 8);
    store_le32(table + 24, 1);
    memcpy(table + 28, "IMGV", 4);
    store_le32(table + 32, 1);
    table[9] = 0;
    table[9] = checksum(table, bytes);
    w->used += bytes;
}

/* Generic address structure (5.2.3.2) of an I/O port. */
static void io_address(uint8_t *at, uint16_t port, unsigned bits, unsigned access)
{
    at[0] = 1;
    at[1] = (uint8_t)bits;
    at[2] = 0;
    at[3] = (uint8_t)access;
    store_le64(at + 4, port);
}

static void write_fadt(struct writer *w, const struct acpi_config *c, uint32_t facs, uint32_t dsdt, uint32_t *gpa)
{
    uint8_t *t = begin_table(w, gpa);
    store_le32(t + 36, facs);
    store_le32(t + 40, dsdt);
    t[45] = 4; /* preferred profile: enterprise server */
    store_le16(t + 46, c->sci_irq);
    store_le32(t + 48, c->smi_port);
    t[52] = c->smi_enable;
    t[53] = c->smi_disable;
    store_le32(t + 56, c->pm_base + ACPI_PM_EVT);
    store_le32(t + 64, c->pm_base + ACPI_PM_CNT);
    store_le32(t + 76, c->pm_base + ACPI_PM_TMR);
    store_le32(t + 80, c->pm_base + ACPI_PM_GPE);
    t[88] = 4; /* lengths: PM1 event, PM1 control, (PM2), timer, GPE0 */
    t[89] = 2;
    t[91] = 4;
    t[92] = 4;
    store_le16(t + 96, 0xfff);  /* C2 and C3 are not supported */
    store_le16(t + 98, 0xfff);
    t[108] = c->century_index;
    store_le16(t + 109, BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_8042 | BOOT_ARCH_NO_VGA);
    store_le32(t + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_TMR_VAL_EXT | FADT_RESET_REG_SUP);
    io_address(t + 116, c->reset_port, 8, 1);
    t[128] = c->reset_value;
    t[131] = 3; /* minor version: 6.3 */
    store_le64(t + 140, dsdt);
    io_address(t + 148, c->pm_base + ACPI_PM_EVT, 32, 2);
    io_address(t + 172, c->pm_base + ACPI_PM_CNT, 16, 2);
    io_address(t + 208, c->pm_base + ACPI_PM_TMR, 32, 3);
    io_address(t + 220, c->pm_base + ACPI_PM_GPE, 32, 1);
    end_table(w, t, "FACP", 6, FADT_BYTES);
}

static void write_facs(struct writer *w, uint32_t *gpa)
{
    uint8_t *t = begin_table(w, gpa);
    memcpy(t, "FACS", 4);
    store_le32(t + 4, 64);
    t[32] = 2;
    w->used += 64;
}

/* 5.2.12 */
static void write_madt(struct writer *w, const struct acpi_config *c, uint32_t *gpa)
{
    uint8_t *t = begin_table(w, gpa), *p = t + 44;
    store_le32(t + 36, c->lapic_address);
    store_le32(t + 40, 1); /* there are 8259s too */
    for (unsigned i = 0; i < c->cpus; i++, p += 8) {
        memcpy(p, "\x00\x08", 2);
        p[2] = p[3] = (uint8_t)i;
        store_le32(p + 4, 1); /* enabled */
    }
    memcpy(p, "\x01\x0c", 2);
    p[2] = c->ioapic_id;
    store_le32(p + 4, c->ioapic_address);
    store_le32(p + 8, 0);
    p += 12;
    memcpy(p, "\x02\x0a\x00\x00", 4); /* ISA IRQ 0 */
    store_le32(p + 4, c->pit_gsi);
    store_le16(p + 8, 0);
    p += 10;
    memcpy(p, "\x02\x0a\x00", 3);
    p[3] = c->sci_irq;
    store_le32(p + 4, c->sci_irq);
    store_le16(p + 8, 0xd); /* active high, level-triggered */
    p += 10;
    memcpy(p, "\x04\x06\xff\x00\x00\x01", 6); /* NMI at every processor's LINT1 */
    p += 6;
    end_table(w, t, "APIC", 5, (size_t)(p - t));
}

static void write_mcfg(struct writer *w, const struct acpi_config *c, uint32_t *gpa)
{
    uint8_t *t = begin_table(w, gpa);
    store_le64(t + 44, c->ecam_base);
    t[55] = (uint8_t)(c->ecam_bytes / 0x100000 - 1); /* last bus */
    end_table(w, t, "MCFG", 1, 60);
}

static void add_pci(struct aml *aml, const struct acpi_config *c)
{
    size_t device = aml_begin_device(aml, "PCI0");
    aml_name(aml, "_HID");
    aml_eisa_id(aml, "PNP0A03");
    aml_name_integer(aml, "_UID", 0);
    aml_name_integer(aml, "_BBN", 0);
    aml_name(aml, "_CRS");
    struct aml_resources crs = aml_begin_resources(aml);
    aml_bus_window(aml, 0, (uint16_t)(c->ecam_bytes / 0x100000 - 1));
    aml_io(aml, PCI_CONFIG_ADDRESS_PORT, PCI_CONFIG_PORTS);
    aml_io_window(aml, 0, PCI_CONFIG_ADDRESS_PORT - 1);
    aml_io_window(aml, PCI_CONFIG_ADDRESS_PORT + PCI_CONFIG_PORTS, 0xffff);
    aml_memory_window(aml, c->pci_memory_first, c->pci_memory_last);
    aml_end_resources(aml, crs);
    /* 6.2.13: {address, pin, source 0, GSI} for each pin of each slot but the bridge's own. */
    aml_name(aml, "_PRT");
    size_t prt = aml_begin_package(aml, (PCI_DEVICES - 1) * 4);
    for (unsigned slot = 1; slot < PCI_DEVICES; slot++)
        for (unsigned pin = 0; pin < 4; pin++) {
            size_t row = aml_begin_package(aml, 4);
            aml_integer(aml, slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0);
            aml_integer(aml, c->pirq_gsi + pci_pirq_of(slot, pin));
            aml_end(aml, row);
        }
    aml_end(aml, prt);
    aml_end(aml, device);
}

/* A device of the ISA kind: an identity, ports, perhaps an interrupt (0: none). */
static void add_legacy(struct aml *aml, const char *name, const char *id, const uint16_t (*io)[2], unsigned io_count,
                       unsigned irq)
{
    size_t device = aml_begin_device(aml, name);
    aml_name(aml, "_HID");
    aml_eisa_id(aml, id);
    aml_name(aml, "_CRS");
    struct aml_resources crs = aml_begin_resources(aml);
    for (unsigned i = 0; i < io_count; i++)
        aml_io(aml, io[i][0], (uint8_t)io[i][1]);
    if (irq)
        aml_irq(aml, irq);
    aml_end_resources(aml, crs);
    aml_end(aml, device);
}

static void add_panic(struct aml *aml, const struct acpi_config *c)
{
    size_t device = aml_begin_device(aml, "PVPN");
    aml_name(aml, "_HID");
    aml_string(aml, "QEMU0001"); /* the identity that Linux's pvpanic driver looks for */
    aml_name_integer(aml, "_STA", 0xf);
    aml_name(aml, "_CRS");
    struct aml_resources crs = aml_begin_resources(aml);
    aml_io(aml, c->panic_port, 1);
    aml_end_resources(aml, crs);
    aml_end(aml, device);
}

/* What the operating system must not give to anybody: the ECAM window, the ports of the power management. */
static void add_motherboard(struct aml *aml, const struct acpi_config *c)
{
    size_t device = aml_begin_device(aml, "MBRD");
    aml_name(aml, "_HID");
    aml_eisa_id(aml, "PNP0C02");
    aml_name_integer(aml, "_UID", 0);
    aml_name(aml, "_CRS");
    struct aml_resources crs = aml_begin_resources(aml);
    aml_io(aml, c->pm_base, ACPI_PM_BYTES);
    aml_io(aml, c->smi_port, 2);
    aml_memory_fixed(aml, c->ecam_base, c->ecam_bytes);
    aml_memory_fixed(aml, c->ioapic_address, 0x1000);
    aml_memory_fixed(aml, c->lapic_address, 0x1000);
    aml_end_resources(aml, crs);
    aml_end(aml, device);
}

static bool write_dsdt(struct writer *w, const struct acpi_config *c, uint32_t *gpa)
{
    uint8_t *t = begin_table(w, gpa);
    struct aml aml = {.data = t, .used = HEADER_BYTES, .capacity = ACPI_TABLES_BYTES - w->used};
    aml_name(&aml, "\\_S5_");
    size_t s5 = aml_begin_package(&aml, 4);
    aml_integer(&aml, ACPI_SLEEP_TYPE_OFF);
    aml_integer(&aml, ACPI_SLEEP_TYPE_OFF);
    aml_integer(&aml, 0);
    aml_integer(&aml, 0);
    aml_end(&aml, s5);

    size_t scope = aml_begin_scope(&aml, "\\_SB_");
    for (unsigned i = 0; i < c->cpus; i++) {
        static const char digit[] = "0123456789ABCDEF";
        char name[5] = {'C', '0', digit[i >> 4 & 15], digit[i & 15], 0};
        size_t device = aml_begin_device(&aml, name);
        aml_name(&aml, "_HID");
        aml_string(&aml, "ACPI0007");
        aml_name_integer(&aml, "_UID", i);
        aml_end(&aml, device);
    }
    add_pci(&aml, c);
    const uint16_t com[][2] = {{c->serial_base, 8}};
    static const uint16_t rtc[][2] = {{0x70, 2}}, keyboard[][2] = {{0x60, 1}, {0x64, 1}};
    add_legacy(&aml, "COM1", "PNP0501", com, 1, c->serial_irq);
    add_legacy(&aml, "RTC0", "PNP0B00", rtc, 1, 8);
    add_legacy(&aml, "KBD0", "PNP0303", keyboard, 2, 1);
    add_panic(&aml, c);
    add_motherboard(&aml, c);
    aml_end(&aml, scope);
    end_table(w, t, "DSDT", 2, aml.used);
    return !aml.overflow;
}

int acpi_build(const struct acpi_config *config, uint32_t tables_gpa, uint8_t *tables, uint8_t *rsdp, imgvm_error *err)
{
    struct writer w = {.base = tables, .gpa = tables_gpa};
    uint32_t facs, dsdt, entries[3], xsdt, rsdt;
    memset(tables, 0, ACPI_TABLES_BYTES);
    memset(rsdp, 0, ACPI_RSDP_BYTES);
    write_facs(&w, &facs);
    write_fadt(&w, config, facs, 0, &entries[0]);
    write_madt(&w, config, &entries[1]);
    write_mcfg(&w, config, &entries[2]);
    uint8_t *t = begin_table(&w, &xsdt);
    for (unsigned i = 0; i < ARRAY_LEN(entries); i++)
        store_le64(t + HEADER_BYTES + 8 * i, entries[i]);
    end_table(&w, t, "XSDT", 1, HEADER_BYTES + 8 * ARRAY_LEN(entries));
    t = begin_table(&w, &rsdt); /* the same for systems of 1999, and GRUB */
    for (unsigned i = 0; i < ARRAY_LEN(entries); i++)
        store_le32(t + HEADER_BYTES + 4 * i, entries[i]);
    end_table(&w, t, "RSDT", 1, HEADER_BYTES + 4 * ARRAY_LEN(entries));
    /* The DSDT comes last: its size is known only when it is written. The FADT learns its place afterwards. */
    if (!write_dsdt(&w, config, &dsdt))
        return error_set(err, ENOSPC, "the ACPI tables of %u processors need more than %u bytes", config->cpus, ACPI_TABLES_BYTES);
    uint8_t *fadt = tables + (entries[0] - tables_gpa);
    store_le32(fadt + 40, dsdt);
    store_le64(fadt + 140, dsdt);
    fadt[9] = 0;
    fadt[9] = checksum(fadt, FADT_BYTES);

    memcpy(rsdp, "RSD PTR ", 8); /* 5.2.5.3 */
    memcpy(rsdp + 9, "IMGVM ", 6);
    rsdp[15] = 2;
    store_le32(rsdp + 16, rsdt);
    store_le32(rsdp + 20, ACPI_RSDP_BYTES);
    store_le64(rsdp + 24, xsdt);
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, ACPI_RSDP_BYTES);
    return 0;
}
