/* SPDX-License-Identifier: MIT */
#include "smbios.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "../base/bits.h"

/* Types of structures (DSP0134, chapter 7). */
enum {
    TYPE_BIOS = 0,
    TYPE_SYSTEM = 1,
    TYPE_CHASSIS = 3,
    TYPE_PROCESSOR = 4,
    TYPE_OEM_STRINGS = 11,
    TYPE_MEMORY_ARRAY = 16,
    TYPE_MEMORY_DEVICE = 17,
    TYPE_MEMORY_RANGE = 19,
    TYPE_BOOT = 32,
    TYPE_END = 127,
};

#define OEM_STRINGS_MAX 255
#define FORMATTED_MAX 0x30 /* the longest of our formatted areas, the processor's */
#define BIOS_DATE "01/01/2026" /* Linux takes machines of the last century for less than they are */
#define NO_HANDLE 0xfffe

struct writer {
    struct smbios_tables *out;
    uint8_t formatted[FORMATTED_MAX];
    size_t start;     /* of the structure in out->data */
    uint8_t strings;  /* that it has */
    bool full;
};

static uint8_t *begin(struct writer *w, uint8_t type, uint8_t index, uint8_t bytes)
{
    memset(w->formatted, 0, sizeof w->formatted);
    w->formatted[0] = type;
    w->formatted[1] = bytes;
    store_le16(w->formatted + 2, (uint16_t)(type << 8 | index)); /* the handle */
    w->start = w->out->bytes;
    w->out->bytes += bytes;
    w->strings = 0;
    return w->formatted;
}

static void put(struct writer *w, const void *data, size_t bytes)
{
    struct smbios_tables *out = w->out;
    if (out->bytes > sizeof out->data || bytes > sizeof out->data - out->bytes)
        w->full = true;
    else
        memcpy(out->data + out->bytes, data, bytes);
    out->bytes = w->full ? sizeof out->data + 1 : out->bytes + bytes;
}

/* The number by which the formatted area names a string; 0: there is none. */
static uint8_t add_string(struct writer *w, const char *text)
{
    if (!text || !*text)
        return 0;
    put(w, text, strlen(text) + 1);
    return ++w->strings;
}

static void end(struct writer *w)
{
    struct smbios_tables *out = w->out;
    put(w, "\0", w->strings ? 1 : 2); /* 6.1.3: the strings end with an empty one */
    if (w->full)
        return;
    memcpy(out->data + w->start, w->formatted, w->formatted[1]);
    out->count++;
    out->largest = MAX(out->largest, out->bytes - w->start);
}

static const char *or_else(const char *text, const char *otherwise)
{
    return text && *text ? text : otherwise;
}

static void put_bios(struct writer *w)
{
    uint8_t *s = begin(w, TYPE_BIOS, 0, 0x18);
    s[0x04] = add_string(w, "imgvm");
    s[0x05] = add_string(w, "1");
    store_le16(s + 0x06, 0xf000); /* its segment; its size of 64 KiB is 0 in s[9] */
    s[0x08] = add_string(w, BIOS_DATE);
    store_le64(s + 0x0a, BIT(3)); /* nothing is said of what it can do */
    s[0x12] = BIT(0);             /* but that there is ACPI, */
    s[0x13] = BIT(4);             /* and that this is a virtual machine */
    s[0x14] = 1;
    s[0x16] = s[0x17] = 0xff; /* no embedded controller */
    end(w);
}

static void put_system(struct writer *w, const imgvm_smbios *t)
{
    uint8_t *s = begin(w, TYPE_SYSTEM, 0, 0x1b);
    s[0x04] = add_string(w, or_else(t->manufacturer, "imgvm"));
    s[0x05] = add_string(w, or_else(t->product, "PC"));
    s[0x06] = add_string(w, t->version);
    s[0x07] = add_string(w, t->serial);
    /* 7.2.1: its first three fields are little-endian. */
    static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    for (unsigned i = 0; i < 16; i++)
        s[0x08 + i] = t->uuid[order[i]];
    s[0x18] = 6; /* woken by the power switch */
    s[0x19] = add_string(w, t->sku);
    s[0x1a] = add_string(w, t->family);
    end(w);
}

static void put_chassis(struct writer *w, const imgvm_smbios *t)
{
    uint8_t *s = begin(w, TYPE_CHASSIS, 0, 0x16);
    s[0x04] = add_string(w, or_else(t->manufacturer, "imgvm"));
    s[0x05] = 1; /* of another kind */
    s[0x08] = add_string(w, t->asset_tag);
    s[0x09] = s[0x0a] = s[0x0b] = 3; /* states: safe */
    s[0x0c] = 2;                     /* its security is not known */
    end(w);
}

static void put_processor(struct writer *w, unsigned cores)
{
    uint8_t *s = begin(w, TYPE_PROCESSOR, 0, 0x30);
    s[0x04] = add_string(w, "CPU 0");
    s[0x05] = 3;    /* a central processor */
    s[0x06] = 1;    /* of another family */
    s[0x18] = 0x41; /* there, and enabled */
    s[0x19] = 1;
    memset(s + 0x1a, 0xff, 6); /* no structures for caches */
    s[0x23] = s[0x24] = s[0x25] = (uint8_t)MIN(cores, 0xffu);
    store_le16(s + 0x26, BIT(2)); /* 64-bit capable */
    store_le16(s + 0x28, 1);
    for (unsigned at = 0x2a; at < 0x30; at += 2)
        store_le16(s + at, (uint16_t)cores);
    end(w);
}

static void put_oem_strings(struct writer *w, const imgvm_smbios *t)
{
    if (!t->oem_count)
        return;
    uint8_t *s = begin(w, TYPE_OEM_STRINGS, 0, 5);
    for (uint32_t i = 0; i < t->oem_count; i++)
        s[4] = add_string(w, or_else(t->oem_strings[i], " "));
    end(w);
}

static void put_memory(struct writer *w, const struct smbios_config *c)
{
    uint64_t bytes = c->low_bytes + c->high_bytes, kib = bytes >> 10, mib = bytes >> 20;
    uint8_t *s = begin(w, TYPE_MEMORY_ARRAY, 0, 0x17);
    s[0x04] = 1; /* somewhere else than on a board */
    s[0x05] = 3; /* the system's memory */
    s[0x06] = 3; /* without error correction */
    bool large = kib >= 0x80000000u;
    store_le32(s + 0x07, large ? 0x80000000u : (uint32_t)kib);
    store_le16(s + 0x0b, NO_HANDLE);
    store_le16(s + 0x0d, 1);
    store_le64(s + 0x0f, large ? bytes : 0);
    end(w);

    s = begin(w, TYPE_MEMORY_DEVICE, 0, 0x28);
    store_le16(s + 0x04, TYPE_MEMORY_ARRAY << 8);
    store_le16(s + 0x06, NO_HANDLE);
    memset(s + 0x08, 0xff, 4); /* widths are not known */
    bool in_kib = mib << 20 != bytes && kib < 0x7fff; /* 7.18: bit 15 says so */
    store_le16(s + 0x0c, in_kib ? (uint16_t)(0x8000 | kib) : (uint16_t)MIN(mib, UINT64_C(0x7fff)));
    s[0x0e] = 9; /* DIMM */
    s[0x10] = add_string(w, "DIMM 0");
    s[0x12] = 7; /* RAM */
    store_le16(s + 0x13, BIT(1));
    store_le32(s + 0x1c, mib >= 0x7fff ? (uint32_t)mib : 0);
    end(w);

    const uint64_t ranges[][2] = {{0, c->low_bytes}, {c->high_base, c->high_bytes}};
    for (uint8_t i = 0; i < ARRAY_LEN(ranges); i++)
        if (ranges[i][1]) {
            s = begin(w, TYPE_MEMORY_RANGE, i, 0x1f);
            store_le32(s + 0x04, (uint32_t)(ranges[i][0] >> 10));
            store_le32(s + 0x08, (uint32_t)((ranges[i][0] + ranges[i][1]) >> 10) - 1);
            store_le16(s + 0x0c, TYPE_MEMORY_ARRAY << 8);
            s[0x0e] = 1;
            end(w);
        }
}

int smbios_build(const struct smbios_config *config, struct smbios_tables *out, imgvm_error *err)
{
    struct writer w = {.out = out};
    memset(out, 0, sizeof *out);
    if (config->texts->oem_count > OEM_STRINGS_MAX)
        return error_set(err, EINVAL, "SMBIOS has room for %d OEM strings", OEM_STRINGS_MAX);
    put_bios(&w);
    put_system(&w, config->texts);
    put_chassis(&w, config->texts);
    put_processor(&w, config->cpus);
    put_oem_strings(&w, config->texts);
    put_memory(&w, config);
    begin(&w, TYPE_BOOT, 0, 0x0b); /* status 0: no errors */
    end(&w);
    begin(&w, TYPE_END, 0, 4);
    end(&w);
    if (!w.full)
        return 0;
    error_set(err, ENOSPC, "what SMBIOS is to say has more than %d bytes", SMBIOS_TABLES_MAX);
    return error_hint(err, "make machine.smbios.oem_strings shorter");
}

static uint8_t checksum(const uint8_t *data, size_t bytes)
{
    uint8_t sum = 0;
    while (bytes--)
        sum += *data++;
    return (uint8_t)-sum;
}

void smbios_entry(const struct smbios_tables *tables, uint32_t address, uint8_t entry[SMBIOS_ENTRY_BYTES])
{
    memset(entry, 0, SMBIOS_ENTRY_BYTES);
    memcpy(entry, "_SM3_", 5); /* 5.2.2 */
    entry[0x06] = 0x18;
    entry[0x07] = 3;
    entry[0x0a] = 1;
    store_le32(entry + 0x0c, (uint32_t)tables->bytes);
    store_le64(entry + 0x10, address);
    entry[0x05] = checksum(entry, 0x18);

    uint8_t *old = entry + SMBIOS_ENTRY_32; /* 5.2.1 */
    memcpy(old, "_SM_", 4);
    old[0x05] = 0x1f;
    old[0x06] = 2;
    old[0x07] = 8;
    store_le16(old + 0x08, (uint16_t)tables->largest);
    memcpy(old + 0x10, "_DMI_", 5);
    store_le16(old + 0x16, (uint16_t)tables->bytes);
    store_le32(old + 0x18, address);
    store_le16(old + 0x1c, (uint16_t)tables->count);
    old[0x1e] = 0x28;
    old[0x15] = checksum(old + 0x10, 0x0f);
    old[0x04] = checksum(old, 0x1f);
}
