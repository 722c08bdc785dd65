/* SPDX-License-Identifier: MIT */
/* needs: machine/acpi.c machine/aml.c base/error.c */
/* The ACPI tables: their checksums, how they hang together, and that iasl (when it is installed) takes each apart and
 * puts it together again without a warning. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "check.h"
#include "machine/acpi.h"

#define GPA 0x3ff0000u

static const struct acpi_config board = {
    .cpus = 4, .lapic_address = 0xfee00000, .ioapic_address = 0xfec00000, .ioapic_id = 4, .sci_irq = 9, .pit_gsi = 2,
    .pm_base = 0x600, .smi_port = 0xb2, .smi_enable = 0xf1, .smi_disable = 0xf0, .reset_port = 0xcf9, .reset_value = 6,
    .serial_base = 0x3f8, .serial_irq = 4, .panic_port = 0x505, .pirq_gsi = 16, .pci_memory_first = 0xc0000000,
    .pci_memory_last = 0xdfffffff, .ecam_base = 0xe0000000, .ecam_bytes = 0x100000, .century_index = 0x32,
};

static uint8_t tables[ACPI_TABLES_BYTES], rsdp[ACPI_RSDP_BYTES];

static uint8_t sum(const uint8_t *data, size_t size)
{
    uint8_t total = 0;
    while (size--)
        total += *data++;
    return total;
}

static const uint8_t *table_at(uint64_t gpa)
{
    CHECK(gpa >= GPA && gpa < GPA + sizeof tables - 64);
    return tables + (gpa - GPA);
}

static void test_chain(void)
{
    CHECK_EQ(sum(rsdp, 20), 0);
    CHECK_EQ(sum(rsdp, sizeof rsdp), 0);
    const uint8_t *xsdt = table_at(load_le64(rsdp + 24));
    CHECK(!memcmp(xsdt, "XSDT", 4));
    CHECK_EQ(sum(xsdt, load_le32(xsdt + 4)), 0);
    CHECK_EQ(load_le32(xsdt + 4), 36 + 3 * 8);
    const uint8_t *rsdt = table_at(load_le32(rsdp + 16));
    CHECK(!memcmp(rsdt, "RSDT", 4));
    CHECK_EQ(sum(rsdt, load_le32(rsdt + 4)), 0);
    CHECK_EQ(load_le32(rsdt + 4), 36 + 3 * 4);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(load_le32(rsdt + 36 + 4 * i), load_le64(xsdt + 36 + 8 * i));
    const char *names[] = {"FACP", "APIC", "MCFG"};
    for (unsigned i = 0; i < 3; i++) {
        const uint8_t *table = table_at(load_le64(xsdt + 36 + 8 * i));
        CHECK(!memcmp(table, names[i], 4));
        CHECK_EQ(sum(table, load_le32(table + 4)), 0);
    }
    const uint8_t *fadt = table_at(load_le64(xsdt + 36));
    const uint8_t *dsdt = table_at(load_le64(fadt + 140));
    CHECK(!memcmp(dsdt, "DSDT", 4));
    CHECK_EQ(sum(dsdt, load_le32(dsdt + 4)), 0);
    CHECK_EQ(load_le32(fadt + 40), load_le64(fadt + 140));
    CHECK_EQ(load_le32(fadt + 36) % 64, 0);
    CHECK(!memcmp(table_at(load_le32(fadt + 36)), "FACS", 4));
}

static void test_madt_names_every_processor(void)
{
    const uint8_t *xsdt = table_at(load_le64(rsdp + 24)), *madt = table_at(load_le64(xsdt + 44));
    unsigned found = 0;
    for (uint32_t at = 44; at < load_le32(madt + 4); at += madt[at + 1]) {
        CHECK(madt[at + 1] >= 6);
        if (madt[at] == 0 && (load_le32(madt + at + 4) & 1))
            CHECK_EQ(madt[at + 3], found++);
    }
    CHECK_EQ(found, board.cpus);
}

static void save(const char *folder, const uint8_t *table)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%.4s.aml", folder, (const char *)table);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    CHECK_EQ(fwrite(table, 1, load_le32(table + 4), file), load_le32(table + 4));
    fclose(file);
}

static void test_iasl(void)
{
    if (system("command -v iasl >/dev/null") != 0) {
        printf("skipped: test_iasl (iasl is not installed)\n");
        return;
    }
    char folder[] = "/tmp/imgvm-acpi-XXXXXX", command[512];
    CHECK(mkdtemp(folder) != NULL);
    const uint8_t *xsdt = table_at(load_le64(rsdp + 24)), *fadt = table_at(load_le64(xsdt + 36));
    save(folder, xsdt);
    save(folder, table_at(load_le32(rsdp + 16)));
    save(folder, table_at(load_le64(fadt + 140)));
    save(folder, table_at(load_le32(fadt + 36)));
    for (unsigned i = 0; i < 3; i++)
        save(folder, table_at(load_le64(xsdt + 36 + 8 * i)));
    const char *names[] = {"XSDT", "DSDT", "FACS", "FACP", "APIC", "MCFG"};
    for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(command, sizeof command, "cd %s && iasl -d %s.aml >d.log 2>&1 && ! grep -i -E 'warning|error|invalid' d.log",
                 folder, names[i]);
        CHECK_EQ(system(command), 0);
        snprintf(command, sizeof command,
                 "cd %s && iasl -we %s.dsl >c.log 2>&1 && ! grep -E '^(Warning|Error|Remark)' c.log || { cat c.log; false; }",
                 folder, names[i]);
        CHECK_EQ(system(command), 0);
    }
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK_EQ(system(command), 0);
}

static void test_the_largest_board_fits(void)
{
    static uint8_t scratch[ACPI_TABLES_BYTES], root[ACPI_RSDP_BYTES];
    struct acpi_config many = board;
    imgvm_error err;
    many.cpus = 64;
    CHECK_EQ(acpi_build(&many, GPA, scratch, root, &err), 0);
}

int main(void)
{
    imgvm_error err;
    CHECK_EQ(acpi_build(&board, GPA, tables, rsdp, &err), 0);
    test_chain();
    test_madt_names_every_processor();
    test_iasl();
    test_the_largest_board_fits();
    return check_report();
}
