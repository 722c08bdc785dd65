/* SPDX-License-Identifier: MIT */
#include "aml.h"

#include <string.h>

#include "../base/bits.h"

/* 20.2 and 20.3: opcodes. */
#define NAME_OP 0x08
#define BYTE_PREFIX 0x0a
#define WORD_PREFIX 0x0b
#define DWORD_PREFIX 0x0c
#define STRING_PREFIX 0x0d
#define QWORD_PREFIX 0x0e
#define SCOPE_OP 0x10
#define BUFFER_OP 0x11
#define PACKAGE_OP 0x12
#define DUAL_NAME_PREFIX 0x2e
#define EXT_OP 0x5b
#define DEVICE_OP 0x82

#define LENGTH_BYTES 3 /* PkgLength is always written in its three-byte form: up to 1 MiB */

void aml_bytes(struct aml *aml, const void *data, size_t size)
{
    if (aml->overflow || size > aml->capacity - aml->used) {
        aml->overflow = true;
        return;
    }
    memcpy(aml->data + aml->used, data, size);
    aml->used += size;
}

void aml_byte(struct aml *aml, uint8_t value)
{
    aml_bytes(aml, &value, 1);
}

static void word(struct aml *aml, uint16_t value) { aml_bytes(aml, &value, 2); }
static void dword(struct aml *aml, uint32_t value) { aml_bytes(aml, &value, 4); }
static void qword(struct aml *aml, uint64_t value) { aml_bytes(aml, &value, 8); }

void aml_integer(struct aml *aml, uint64_t value)
{
    if (value <= 1) { /* ZeroOp, OneOp */
        aml_byte(aml, (uint8_t)value);
    } else if (value <= 0xff) {
        aml_byte(aml, BYTE_PREFIX);
        aml_byte(aml, (uint8_t)value);
    } else if (value <= 0xffff) {
        aml_byte(aml, WORD_PREFIX);
        word(aml, (uint16_t)value);
    } else if (value <= 0xffffffff) {
        aml_byte(aml, DWORD_PREFIX);
        dword(aml, (uint32_t)value);
    } else {
        aml_byte(aml, QWORD_PREFIX);
        qword(aml, value);
    }
}

void aml_string(struct aml *aml, const char *text)
{
    aml_byte(aml, STRING_PREFIX);
    aml_bytes(aml, text, strlen(text) + 1);
}

/* 19.3.4: three letters of five bits, four hexadecimal digits, stored with the high byte first. */
void aml_eisa_id(struct aml *aml, const char *id)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < 3; i++)
        value = value << 5 | ((uint32_t)(id[i] - '@') & 0x1f);
    for (unsigned i = 3; i < 7; i++)
        value = value << 4 | (uint32_t)(id[i] <= '9' ? id[i] - '0' : id[i] - 'A' + 10);
    aml_byte(aml, DWORD_PREFIX);
    dword(aml, __builtin_bswap32(value));
}

static void name_string(struct aml *aml, const char *name)
{
    if (*name == '\\')
        aml_byte(aml, (uint8_t)*name++);
    if (strlen(name) == 9) { /* two segments and the dot between */
        aml_byte(aml, DUAL_NAME_PREFIX);
        aml_bytes(aml, name, 4);
        name += 5;
    }
    aml_bytes(aml, name, 4);
}

void aml_name(struct aml *aml, const char *name)
{
    aml_byte(aml, NAME_OP);
    name_string(aml, name);
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value)
{
    aml_name(aml, name);
    aml_integer(aml, value);
}

static size_t begin_length(struct aml *aml)
{
    size_t mark = aml->used;
    aml_bytes(aml, "\0\0", LENGTH_BYTES);
    return mark;
}

size_t aml_begin_scope(struct aml *aml, const char *name)
{
    aml_byte(aml, SCOPE_OP);
    size_t mark = begin_length(aml);
    name_string(aml, name);
    return mark;
}

size_t aml_begin_device(struct aml *aml, const char *name)
{
    aml_byte(aml, EXT_OP);
    aml_byte(aml, DEVICE_OP);
    size_t mark = begin_length(aml);
    name_string(aml, name);
    return mark;
}

size_t aml_begin_package(struct aml *aml, uint8_t elements)
{
    aml_byte(aml, PACKAGE_OP);
    size_t mark = begin_length(aml);
    aml_byte(aml, elements);
    return mark;
}

/* 20.2.4: the length counts its own bytes; four bits in the first, eight in each that follows. */
void aml_end(struct aml *aml, size_t mark)
{
    if (aml->overflow)
        return;
    size_t length = aml->used - mark;
    aml->data[mark] = (uint8_t)((LENGTH_BYTES - 1) << 6 | (length & 0xf));
    aml->data[mark + 1] = (uint8_t)(length >> 4);
    aml->data[mark + 2] = (uint8_t)(length >> 12);
}

struct aml_resources aml_begin_resources(struct aml *aml)
{
    struct aml_resources resources;
    aml_byte(aml, BUFFER_OP);
    resources.package = begin_length(aml);
    aml_byte(aml, WORD_PREFIX);
    resources.size_at = aml->used;
    word(aml, 0);
    resources.start = aml->used;
    return resources;
}

void aml_end_resources(struct aml *aml, struct aml_resources resources)
{
    aml_bytes(aml, "\x79", 2); /* end tag; checksum 0: not checked */
    if (!aml->overflow)
        store_le16(aml->data + resources.size_at, (uint16_t)(aml->used - resources.start));
    aml_end(aml, resources.package);
}

/* 6.4.2.5 */
void aml_io(struct aml *aml, uint16_t base, uint8_t size)
{
    aml_bytes(aml, "\x47\x01", 2); /* decodes 16 bits */
    word(aml, base);
    word(aml, base);
    aml_byte(aml, 1);
    aml_byte(aml, size);
}

/* 6.4.2.1, the two-byte form */
void aml_irq(struct aml *aml, unsigned irq)
{
    aml_byte(aml, 0x22);
    word(aml, (uint16_t)(1u << irq));
}

/* 6.4.3.4 */
void aml_memory_fixed(struct aml *aml, uint32_t base, uint32_t size)
{
    aml_bytes(aml, "\x86\x09\x00\x01", 4); /* read-write */
    dword(aml, base);
    dword(aml, size);
}

/* 6.4.3.5: type 0 memory, 1 I/O, 2 bus numbers; general flags: minimum and maximum are fixed. */
static void window_head(struct aml *aml, uint8_t tag, uint16_t length, uint8_t type, uint8_t type_flags)
{
    aml_byte(aml, tag);
    word(aml, length);
    aml_byte(aml, type);
    aml_byte(aml, 0x0c);
    aml_byte(aml, type_flags);
}

static void word_window(struct aml *aml, uint8_t type, uint8_t type_flags, uint16_t first, uint16_t last)
{
    window_head(aml, 0x88, 13, type, type_flags);
    word(aml, 0);
    word(aml, first);
    word(aml, last);
    word(aml, 0);
    word(aml, (uint16_t)(last - first + 1));
}

void aml_bus_window(struct aml *aml, uint16_t first, uint16_t last)
{
    word_window(aml, 2, 0, first, last);
}

void aml_io_window(struct aml *aml, uint16_t first, uint16_t last)
{
    word_window(aml, 1, 3, first, last); /* entire range */
}

void aml_memory_window(struct aml *aml, uint32_t first, uint32_t last)
{
    window_head(aml, 0x87, 23, 0, 1); /* read-write, not cacheable */
    dword(aml, 0);
    dword(aml, first);
    dword(aml, last);
    dword(aml, 0);
    dword(aml, last - first + 1);
}
