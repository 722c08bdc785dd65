/* SPDX-License-Identifier: MIT */
/* needs: machine/smbios.c base/error.c */
/* The SMBIOS tables: both entry points, structures that hang together, and that dmidecode (when it is installed) reads what
 * was meant without a complaint. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "check.h"
#include "machine/smbios.h"

#define AT 0xe1000u

static const char *const oem[] = {"io.systemd.credential:motd=hello", "second"};
static const imgvm_smbios texts = {
    .manufacturer = "Example", .product = "Box", .version = "2.0", .serial = "ds=nocloud;h=web", .sku = "S-1",
    .family = "boxes", .asset_tag = "A-7", .oem_strings = oem, .oem_count = 2,
    .uuid = {0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8},
};
static const imgvm_smbios nothing;

static struct smbios_tables tables;
static uint8_t entry[SMBIOS_ENTRY_BYTES];
static imgvm_error err;

static void build(const imgvm_smbios *t, unsigned cpus, uint64_t low, uint64_t high)
{
    const struct smbios_config config = {t, cpus, low, UINT64_C(1) << 32, high};
    CHECK_EQ(smbios_build(&config, &tables, &err), 0);
    smbios_entry(&tables, AT, entry);
}

static uint8_t sum(const uint8_t *data, size_t bytes)
{
    uint8_t total = 0;
    while (bytes--)
        total += *data++;
    return total;
}

/* The structure after the one at `at`; NULL at the end. */
static const uint8_t *next_of(const uint8_t *at)
{
    const uint8_t *limit = tables.data + tables.bytes, *p = at + at[1];
    while (p + 1 < limit && (p[0] || p[1]))
        p++;
    return p + 2 < limit ? p + 2 : NULL;
}

static const uint8_t *find(uint8_t type, unsigned index)
{
    for (const uint8_t *at = tables.data; at; at = next_of(at))
        if (at[0] == type && !index--)
            return at;
    return NULL;
}

static const char *text_of(const uint8_t *structure, unsigned offset)
{
    const char *text = (const char *)structure + structure[1];
    for (unsigned number = structure[offset]; number > 1; number--)
        text += strlen(text) + 1;
    return structure[offset] ? text : "";
}

static void test_entry_points(void)
{
    build(&texts, 4, 512 << 20, 0);
    CHECK(!memcmp(entry, "_SM3_", 5));
    CHECK_EQ(sum(entry, entry[6]), 0);
    CHECK_EQ(entry[7], 3);
    CHECK_EQ(load_le32(entry + 0xc), tables.bytes);
    CHECK_EQ(load_le64(entry + 0x10), AT);
    const uint8_t *old = entry + SMBIOS_ENTRY_32;
    CHECK(!memcmp(old, "_SM_", 4) && !memcmp(old + 0x10, "_DMI_", 5));
    CHECK_EQ(sum(old, old[5]), 0);
    CHECK_EQ(sum(old + 0x10, 0xf), 0);
    CHECK_EQ(load_le16(old + 0x16), tables.bytes);
    CHECK_EQ(load_le32(old + 0x18), AT);
    unsigned count = 0, largest = 0;
    for (const uint8_t *at = tables.data, *next; at; at = next, count++) {
        next = next_of(at);
        unsigned bytes = (unsigned)((next ? next : tables.data + tables.bytes) - at);
        largest = bytes > largest ? bytes : largest;
        CHECK(next || at[0] == 127);
        for (const uint8_t *other = tables.data; other != at; other = next_of(other))
            CHECK(load_le16(other + 2) != load_le16(at + 2));
    }
    CHECK_EQ(load_le16(old + 0x1c), count);
    CHECK_EQ(load_le16(old + 8), largest);
}

static void test_texts(void)
{
    build(&texts, 4, 512 << 20, 0);
    const uint8_t *system = find(1, 0);
    const struct {
        unsigned offset;
        const char *text;
    } rows[] = {{4, "Example"}, {5, "Box"}, {6, "2.0"}, {7, "ds=nocloud;h=web"}, {0x19, "S-1"}, {0x1a, "boxes"}};
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++)
        CHECK(!strcmp(text_of(system, rows[i].offset), rows[i].text));
    CHECK(!memcmp(system + 8, "\x78\x56\x34\x12\xbc\x9a\xf0\xde\1\2\3\4\5\6\7\x08", 16));
    CHECK(!strcmp(text_of(find(3, 0), 8), "A-7"));
    CHECK_EQ(find(11, 0)[4], 2);
    CHECK(!strcmp(text_of(find(11, 0), 4), "second"));
    CHECK_EQ(load_le16(find(4, 0) + 0x2a), 4);

    build(&nothing, 64, 512 << 20, 0);
    CHECK(!strcmp(text_of(find(1, 0), 4), "imgvm"));
    CHECK(!strcmp(text_of(find(1, 0), 7), ""));
    CHECK(!find(11, 0));
    CHECK_EQ(find(4, 0)[0x23], 64);
}

static void test_memory(void)
{
    build(&nothing, 1, 16 << 20, 0);
    CHECK_EQ(load_le16(find(17, 0) + 0xc), 16);
    CHECK_EQ(load_le32(find(19, 0) + 8), (16 << 10) - 1);
    CHECK(!find(19, 1));
    build(&nothing, 1, (2 << 20) + 4096, 0);
    CHECK_EQ(load_le16(find(17, 0) + 0xc), 0x8000 | 2052);
    build(&nothing, 1, 3 * UINT64_C(1) << 30, UINT64_C(61) << 30);
    CHECK_EQ(load_le16(find(17, 0) + 0xc), 0x7fff);
    CHECK_EQ(load_le32(find(17, 0) + 0x1c), 64 << 10);
    CHECK_EQ(load_le32(find(19, 1) + 4), 4 << 20);
    CHECK_EQ(load_le32(find(19, 1) + 8), (65u << 20) - 1);
    build(&nothing, 1, 3 * UINT64_C(1) << 30, UINT64_C(4) << 40);
    CHECK_EQ(load_le32(find(16, 0) + 7), 0x80000000u);
    CHECK_EQ(load_le64(find(16, 0) + 0xf), (UINT64_C(4) << 40) + (UINT64_C(3) << 30));
}

static void test_too_much(void)
{
    static char large[SMBIOS_TABLES_MAX + 1];
    memset(large, 'x', sizeof large - 1);
    const char *one[] = {large, "y"};
    const imgvm_smbios wish = {.oem_strings = one, .oem_count = 2};
    const struct smbios_config config = {&wish, 1, 1 << 20, 0, 0};
    for (size_t bytes = sizeof large - 1; bytes > sizeof large - 900; bytes--) {
        large[bytes] = 0;
        int result = smbios_build(&config, &tables, &err);
        CHECK(result == -ENOSPC || (!result && tables.bytes <= SMBIOS_TABLES_MAX));
    }
    CHECK_EQ(smbios_build(&config, &tables, &err), 0);
    static const char *many[256];
    const imgvm_smbios more = {.oem_strings = many, .oem_count = 256};
    CHECK_EQ(smbios_build(&(struct smbios_config){&more, 1, 1 << 20, 0, 0}, &tables, &err), -EINVAL);
}

/* A dump as dmidecode writes it: an entry point whose table follows at 32. */
static void read_by_dmidecode(const uint8_t *point, size_t bytes, size_t address_at)
{
    char name[] = "/tmp/imgvm-smbios-XXXXXX", line[256], said[16384] = "";
    uint8_t head[32] = {0};
    memcpy(head, point, bytes);
    store_le32(head + address_at, sizeof head);
    if (address_at == 0x18) {
        head[0x15] = (uint8_t)(head[0x15] + AT + (AT >> 8) + (AT >> 16) - sizeof head);
        head[0x04] = 0;
        head[0x04] = (uint8_t)-sum(head, 0x1f);
    } else {
        head[0x05] = 0;
        head[0x05] = (uint8_t)-sum(head, 0x18);
    }
    int fd = mkstemp(name);
    CHECK(fd >= 0 && write(fd, head, sizeof head) == sizeof head && write(fd, tables.data, tables.bytes) == (ssize_t)tables.bytes);
    close(fd);
    snprintf(line, sizeof line, "dmidecode --from-dump %s 2>&1", name);
    FILE *pipe = popen(line, "r");
    said[fread(said, 1, sizeof said - 1, pipe)] = 0;
    CHECK_EQ(pclose(pipe), 0);
    unlink(name);
    static const char *const lines[] = {
        "Manufacturer: Example\n", "Product Name: Box\n", "Serial Number: ds=nocloud;h=web\n",
        "UUID: 12345678-9abc-def0-0102-030405060708\n", "SKU Number: S-1\n", "Asset Tag: A-7\n", "Core Count: 4\n",
        "String 1: io.systemd.credential:motd=hello\n", "Maximum Capacity: 4 GB\n", "Size: 4 GB\n", "ACPI is supported\n",
        "System is a virtual machine\n", "Range Size: 3 GB\n", "Ending Address: 0x0013FFFFFFF\n", "End Of Table\n",
    };
    for (unsigned i = 0; i < ARRAY_LEN(lines); i++)
        if (!strstr(said, lines[i])) {
            printf("%s%s", said, lines[i]);
            CHECK(!"dmidecode says this line");
        }
    CHECK(!strstr(said, "BAD INDEX") && !strstr(said, "truncated") && !strstr(said, "Wrong") && !strstr(said, "OUT OF SPEC"));
}

static void test_dmidecode(void)
{
    if (system("command -v dmidecode >/dev/null")) {
        printf("skipped: test_dmidecode (dmidecode is not installed)\n");
        return;
    }
    build(&texts, 4, UINT64_C(3) << 30, UINT64_C(1) << 30);
    read_by_dmidecode(entry, 0x18, 0x10);
    read_by_dmidecode(entry + SMBIOS_ENTRY_32, 0x1f, 0x18);
}

int main(void)
{
    test_entry_points();
    test_texts();
    test_memory();
    test_too_much();
    test_dmidecode();
    return check_report();
}
