/* SPDX-License-Identifier: MIT */
/* What gdb is told about the registers: the standard features of i386, in gdb's order, and one of ours. */
#include <stdio.h>
#include <string.h>

#include "../base/bits.h"
#include "gdb_internal.h"

#define CORE "org.gnu.gdb.i386.core"
#define SSE "org.gnu.gdb.i386.sse"
#define AVX "org.gnu.gdb.i386.avx"
#define SEGMENTS "org.gnu.gdb.i386.segments"
#define SYSTEM "org.imgvm.x86.system"

struct list {
    struct gdb_register *at;
    unsigned count;
};

static void add(struct list *list, const char *name, const char *row, unsigned bytes, const char *type, const char *feature)
{
    struct gdb_register *one = &list->at[list->count++];
    *one = (struct gdb_register){.type = type, .row = register_find(row), .bytes = (uint8_t)bytes, .feature = feature};
    snprintf(one->name, sizeof one->name, "%s", name);
}

static void add_numbered(struct list *list, const char *format, unsigned count, unsigned bytes, const char *type,
                         const char *feature)
{
    char name[12];
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof name, format, i);
        add(list, name, name, bytes, type, i ? NULL : feature);
    }
}

unsigned gdb_registers(unsigned bits, struct gdb_register *out)
{
    static const char *const gpr64[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"};
    static const char *const gpr32[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"};
    static const char *const segments[] = {"cs", "ss", "ds", "es", "fs", "gs"};
    static const char *const x87[] = {"fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"};
    static const char *const addresses[] = {"cs_base", "ss_base", "ds_base", "es_base", "gdtr_base", "idtr_base",
                                            "cr0", "cr2", "cr3", "cr4", "cr8"};
    struct list list = {out, 0};
    bool wide = bits == 64;
    unsigned word = wide ? 8 : 4;
    for (unsigned i = 0; i < 8; i++) {
        const char *name = wide ? gpr64[i] : gpr32[i];
        bool pointer = name[2] == 'p';
        char narrow[4] = {'e', name[1], name[2], 0};
        add(&list, wide ? name : narrow, name, word, pointer ? "data_ptr" : wide ? "int64" : "int32", i ? NULL : CORE);
    }
    for (unsigned i = 8; wide && i < 16; i++) {
        char name[4];
        snprintf(name, sizeof name, "r%u", i);
        add(&list, name, name, 8, "int64", NULL);
    }
    add(&list, wide ? "rip" : "eip", "rip", word, "code_ptr", NULL);
    add(&list, "eflags", "rflags", 4, "i386_eflags", NULL);
    for (unsigned i = 0; i < ARRAY_LEN(segments); i++)
        add(&list, segments[i], segments[i], 4, "int32", NULL);
    add_numbered(&list, "st%u", 8, 10, "i387_ext", NULL);
    for (unsigned i = 0; i < ARRAY_LEN(x87); i++)
        add(&list, x87[i], x87[i], 4, "int", NULL);
    add_numbered(&list, "xmm%u", wide ? 16 : 8, 16, "vec128", SSE);
    add(&list, "mxcsr", "mxcsr", 4, "i386_mxcsr", NULL);
    add_numbered(&list, "ymm%uh", wide ? 16 : 8, 16, "uint128", AVX);
    add(&list, "fs_base", "fs_base", word, wide ? "int" : "int32", wide ? SEGMENTS : SYSTEM);
    add(&list, "gs_base", "gs_base", word, wide ? "int" : "int32", NULL);
    for (unsigned i = 0; i < ARRAY_LEN(addresses); i++)
        add(&list, addresses[i], addresses[i], word, wide ? "uint64" : "uint32", i || !wide ? NULL : SYSTEM);
    add(&list, "efer", "efer", 8, "uint64", NULL);
    if (wide)
        add(&list, "k_gs_base", "k_gs_base", 8, "uint64", NULL);
    return list.count;
}

static const char eflags_type[] =
    "<flags id=\"i386_eflags\" size=\"4\">"
    "<field name=\"CF\" start=\"0\" end=\"0\"/><field name=\"\" start=\"1\" end=\"1\"/>"
    "<field name=\"PF\" start=\"2\" end=\"2\"/><field name=\"AF\" start=\"4\" end=\"4\"/>"
    "<field name=\"ZF\" start=\"6\" end=\"6\"/><field name=\"SF\" start=\"7\" end=\"7\"/>"
    "<field name=\"TF\" start=\"8\" end=\"8\"/><field name=\"IF\" start=\"9\" end=\"9\"/>"
    "<field name=\"DF\" start=\"10\" end=\"10\"/><field name=\"OF\" start=\"11\" end=\"11\"/>"
    "<field name=\"NT\" start=\"14\" end=\"14\"/><field name=\"RF\" start=\"16\" end=\"16\"/>"
    "<field name=\"VM\" start=\"17\" end=\"17\"/><field name=\"AC\" start=\"18\" end=\"18\"/>"
    "<field name=\"VIF\" start=\"19\" end=\"19\"/><field name=\"VIP\" start=\"20\" end=\"20\"/>"
    "<field name=\"ID\" start=\"21\" end=\"21\"/></flags>";
static const char vector_types[] =
    "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/><vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
    "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
    "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" count=\"2\"/>"
    "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>"
    "<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>"
    "<field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>"
    "<field name=\"uint128\" type=\"uint128\"/></union>"
    "<flags id=\"i386_mxcsr\" size=\"4\">"
    "<field name=\"IE\" start=\"0\" end=\"0\"/><field name=\"DE\" start=\"1\" end=\"1\"/>"
    "<field name=\"ZE\" start=\"2\" end=\"2\"/><field name=\"OE\" start=\"3\" end=\"3\"/>"
    "<field name=\"UE\" start=\"4\" end=\"4\"/><field name=\"PE\" start=\"5\" end=\"5\"/>"
    "<field name=\"DAZ\" start=\"6\" end=\"6\"/><field name=\"IM\" start=\"7\" end=\"7\"/>"
    "<field name=\"DM\" start=\"8\" end=\"8\"/><field name=\"ZM\" start=\"9\" end=\"9\"/>"
    "<field name=\"OM\" start=\"10\" end=\"10\"/><field name=\"UM\" start=\"11\" end=\"11\"/>"
    "<field name=\"PM\" start=\"12\" end=\"12\"/><field name=\"FZ\" start=\"15\" end=\"15\"/></flags>";

size_t gdb_describe(unsigned bits, char *text, size_t size)
{
    struct gdb_register registers[GDB_REGISTERS_MAX];
    unsigned count = gdb_registers(bits, registers);
    size_t at = 0;
#define SAY(...) at += (size_t)snprintf(text + MIN(at, size), size - MIN(at, size), __VA_ARGS__)
    SAY("<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target><architecture>%s</architecture>",
        bits == 64 ? "i386:x86-64" : bits == 32 ? "i386" : "i8086");
    for (unsigned i = 0; i < count; i++) {
        const char *feature = registers[i].feature;
        if (feature)
            SAY("%s<feature name=\"%s\">%s", i ? "</feature>" : "", feature,
                !strcmp(feature, CORE) ? eflags_type : !strcmp(feature, SSE) ? vector_types : "");
        SAY("<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"/>", registers[i].name, registers[i].bytes * 8,
            registers[i].type, i);
    }
    SAY("</feature></target>");
#undef SAY
    return at;
}
