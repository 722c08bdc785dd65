/* SPDX-License-Identifier: MIT */
/* A feature that a processor does not announce: each of its rows is #UD, and with it none is. Processor models. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch/cpu_model.h"
#include "base/bits.h"
#include "check.h"
#include "flat_state.h"
#include "quiet_world.h"
#include "world_translator.h"
#include "cpu/decode/isa.h"

#define CODE 0x10000u
#define STACK 0x8000u
#define TABLES 0x20000u
#define IDT 0x30000u
#define GDT 0x31000u
#define HANDLERS 0x32000u
#define DATA 0x40000u

static struct guest_mem mem;
static uint64_t now;

static void put64(uint64_t gpa, uint64_t value)
{
    CHECK(guest_mem_write(&mem, gpa, &value, 8));
}

/* 64-bit ring 0, 1 GiB mapped one to one, handler n at HANDLERS + 16 n. */
static void long_mode(struct x86_state *s)
{
    flat_long_mode(s, TABLES);
    put64(TABLES, (TABLES + 0x1000) | 7);
    put64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    for (uint64_t i = 0; i < 512; i++)
        put64(TABLES + 0x2000 + 8 * i, (i << 21) | 0x83);
    put64(GDT + 8, UINT64_C(0x00af9b000000ffff));
    put64(GDT + 16, UINT64_C(0x00cf93000000ffff));
    for (uint64_t v = 0; v < 256; v++) {
        uint64_t at = HANDLERS + 16 * v;
        put64(IDT + 16 * v, (at & 0xffff) | 8 << 16 | UINT64_C(0x8e00) << 32 | (at >> 16) << 48);
        put64(IDT + 16 * v + 8, 0);
        put64(at, 0xf4);
    }
    s->cr4 |= CR4_PKE | CR4_FSGSBASE | CR4_SMAP;
    s->gdtr = (struct x86_table){GDT, 0xff};
    s->idtr = (struct x86_table){IDT, 0xfff};
    s->gpr[RSP] = STACK;
    s->gpr[RBX] = DATA;
    s->gpr[RDI] = DATA;
    s->gpr[RAX] = 3;
    s->rip = CODE;
}

/* ---- one encoding of a row ---- */

static bool has_class(const struct isa_row *row, unsigned class)
{
    for (unsigned i = 0; i < 4; i++)
        if (operand_infos[row->operand[i]].class == class)
            return true;
    return false;
}

static unsigned encode(const struct isa_row *row, uint8_t *out, bool l, bool w)
{
    static const uint8_t prefixes[] = {0, 0, 0, 0x66, 0xf3, 0xf2}, vex_pp[] = {0, 0, 0, 1, 2, 3};
    bool vsib = has_class(row, CLASS_VSIB_X) || has_class(row, CLASS_VSIB_DQ);
    bool memory = has_class(row, CLASS_M) || vsib || (row->modrm & 0xf0) == MR_MEM;
    unsigned reg = 1, rm = memory ? vsib ? 4 : RBX : 2;
    unsigned vvvv = has_class(row, CLASS_B) || has_class(row, CLASS_H) || vsib ? 6 : 0;
    uint8_t *p = out;
    if (row->modrm & MR_HAS_DIGIT)
        reg = row->modrm & 7;
    if (row->modrm >= 0xc0) {
        memory = false;
        reg = row->modrm >> 3 & 7;
        rm = row->modrm & 7;
    }
    if (row->map >= MAP_V0F) {
        *p++ = 0xc4;
        *p++ = (uint8_t)(0xe0 | (row->map - MAP_V0F + 1));
        *p++ = (uint8_t)((w ? 0x80 : 0) | (~vvvv & 15) << 3 | (l ? 4 : 0) | vex_pp[row->pp]);
    } else {
        if (prefixes[row->pp])
            *p++ = prefixes[row->pp];
        if (w)
            *p++ = 0x48;
        if (row->map != MAP_1B)
            *p++ = 0x0f;
        if (row->map == MAP_38 || row->map == MAP_3A)
            *p++ = row->map == MAP_38 ? 0x38 : 0x3a;
    }
    *p++ = row->opcode;
    if (row->modrm != MR__)
        *p++ = (uint8_t)((memory ? 0 : 0xc0) | reg << 3 | rm);
    if (vsib)
        *p++ = 3 << 3 | RBX;
    memset(p, 0, 4); /* an immediate, where there is one */
    return (unsigned)(p - out) + 4;
}

/* ---- rows ---- */

/* Without the feature: something that older processors know (TZCNT, hints), or not a matter of one instruction. */
static bool stays(unsigned op)
{
    return op == OP_TZCNT || op == OP_LZCNT || op == OP_MOVSXD || op_infos[op].attributes & OPA_NO_MEM;
}

static bool undefined(struct cpu *cpu, const uint8_t *bytes, unsigned length)
{
    struct x86_state s;
    CHECK(guest_mem_write(&mem, CODE, bytes, length));
    static const uint8_t zeroes[4096];
    CHECK(guest_mem_write(&mem, DATA, zeroes, sizeof zeroes));
    long_mode(&s);
    cpu_set_state(cpu, &s);
    cpu_run_count(cpu, 2);
    cpu_get_state(cpu, &s);
    return s.rip - (HANDLERS + 16 * EXC_UD) <= 1;
}

static struct cpu *make(const struct feature_set *features)
{
    imgvm_error err;
    struct cpu_options options = {.count = 1, .features = features, .translator = WORLD_TRANSLATOR};
    struct cpu *cpu = cpu_create(&quiet_callbacks, &now, &mem, &options, &err);
    CHECK(cpu != NULL);
    return cpu;
}

/* The rows that need the feature and, where they are 256 bits wide, those that need AVX2 for that. */
static void check_rows(enum cpu_feature feature, struct cpu *with, struct cpu *without, bool offered, unsigned *rows)
{
    for (unsigned number = 0; number < isa_row_count; number++) {
        const struct isa_row *row = &isa_rows[number];
        bool wide = feature == FEATURE_AVX2 && row->attributes & A_AVX2;
        uint8_t bytes[20];
        struct insn in;
        if ((row->attributes & A_MODE) == MODE_I64 || (op_infos[row->op].feature != feature && !wide))
            continue;
        unsigned length = encode(row, bytes, row->attributes & A_L1 || wide, row->attributes & A_W1);
        if (insn_decode(&in, bytes, length, INSN_MODE_64) <= 0 || in.op != row->op || stays(row->op))
            continue;
        ++*rows;
        bool gone = undefined(without, bytes, length), there = !undefined(with, bytes, length);
        if (!gone || there != offered)
            printf("%s: %s is%s undefined without it, is%s with it\n", cpu_feature_rows[feature].name,
                   op_infos[row->op].mnemonic, gone ? "" : " not", there ? "" : " undefined");
        CHECK(gone);
        CHECK_EQ(there, offered);
    }
}

static void test_withdrawn_features_are_undefined(void)
{
    struct feature_set all;
    unsigned features = 0, rows = 0;
    cpu_offered_features(1, &all);
    struct cpu *with = make(NULL);
    for (unsigned feature = FEATURE_BASE + 1; feature < FEATURE_COUNT; feature++) {
        struct feature_set rest = all;
        unsigned before = rows;
        feature_set_remove(&rest, feature);
        struct cpu *without = make(&rest);
        check_rows(feature, with, without, feature_set_has(&all, feature), &rows);
        features += rows > before;
        cpu_destroy(without);
    }
    cpu_destroy(with);
    CHECK(features > 25);
    CHECK(rows > 500);
}

/* Compilers write `rep bsf` for both, where the operand is not zero. */
static void test_older_processors_count_zeroes_by_scanning(void)
{
    static const uint8_t tzcnt[] = {0xf3, 0x0f, 0xbc, 0xc8}, lzcnt[] = {0xf3, 0x0f, 0xbd, 0xc8}; /* ecx, eax */
    struct feature_set old;
    struct x86_state s;
    cpu_offered_features(1, &old);
    feature_set_remove(&old, FEATURE_BMI1);
    feature_set_remove(&old, FEATURE_LZCNT);
    struct cpu *cpu = make(&old);
    for (unsigned i = 0; i < 2; i++) {
        CHECK(guest_mem_write(&mem, CODE, i ? lzcnt : tzcnt, 4));
        long_mode(&s);
        s.gpr[RAX] = 0x50;
        cpu_set_state(cpu, &s);
        cpu_run_count(cpu, 2);
        cpu_get_state(cpu, &s);
        CHECK_EQ(s.gpr[RCX], i ? 6 : 4);
    }
    cpu_destroy(cpu);
}

static const uint8_t lahf[] = {0x9f};
static const uint8_t prefetchw[] = {0x0f, 0x0d, 0x0b};
static const uint8_t xgetbv[] = {0x0f, 0x01, 0xd0, 0xf4}; /* hlt */
static const uint8_t smep[] = {0x0f, 0x22, 0xe1};
static void test_what_is_more_than_a_row(void)
{
    struct feature_set old;
    struct x86_state s;
    cpu_offered_features(1, &old);
    struct cpu *cpu = make(&old);
    CHECK(!undefined(cpu, lahf, sizeof lahf));
    cpu_destroy(cpu);
    feature_set_remove(&old, FEATURE_LAHF64);
    feature_set_remove(&old, FEATURE_PREFETCHW);
    feature_set_remove(&old, FEATURE_SMEP);
    feature_set_remove(&old, FEATURE_XGETBV1);
    cpu = make(&old);
    CHECK(undefined(cpu, lahf, sizeof lahf));
    CHECK(!undefined(cpu, prefetchw, sizeof prefetchw));

    CHECK(guest_mem_write(&mem, CODE, xgetbv, sizeof xgetbv));
    for (unsigned i = 0; i < 2; i++) {
        long_mode(&s);
        s.gpr[RCX] = i;
        cpu_set_state(cpu, &s);
        cpu_run_count(cpu, 2);
        cpu_get_state(cpu, &s);
        CHECK_EQ(s.rip, i ? HANDLERS + 16 * EXC_GP + 1 : CODE + 4);
    }
    CHECK(guest_mem_write(&mem, CODE, smep, sizeof smep));
    long_mode(&s);
    s.gpr[RCX] = CR4_PAE | CR4_SMEP;
    cpu_set_state(cpu, &s);
    cpu_run_count(cpu, 2);
    cpu_get_state(cpu, &s);
    CHECK_EQ(s.rip, HANDLERS + 16 * EXC_GP + 1);
    cpu_destroy(cpu);
}

/* ---- models ---- */

static struct feature_set everything(void)
{
    struct feature_set set = {0};
    for (unsigned feature = FEATURE_BASE + 1; feature < FEATURE_COUNT; feature++)
        if (cpu_feature_rows[feature].class != FEATURE_CLASS_LIVE)
            feature_set_add(&set, feature);
    return set;
}

static struct feature_set granted(const char *model, const char *features)
{
    struct feature_set offered = everything(), set = {0};
    struct cpu_wish wish;
    imgvm_error err = {0};
    CHECK_EQ(cpu_wish_parse(&wish, model, features, NULL, &err), 0);
    CHECK_EQ(cpu_wish_grant(&wish, &offered, &set, &err), 0);
    return set;
}

static void test_models(void)
{
    struct feature_set all = everything(), host = granted(NULL, NULL), named = granted("host", "");
    CHECK(!memcmp(&host, &all, sizeof all) && !memcmp(&named, &all, sizeof all));

    struct feature_set v1 = granted("x86-64", NULL), v2 = granted("x86-64-v2", NULL), v3 = granted("x86-64-v3", NULL);
    struct feature_set portable = granted("portable", NULL);
    CHECK(feature_set_has(&v1, FEATURE_SSE2) && feature_set_has(&v1, FEATURE_LM) && !feature_set_has(&v1, FEATURE_SSE3));
    CHECK(feature_set_has(&v2, FEATURE_SSE42) && feature_set_has(&v2, FEATURE_POPCNT) && !feature_set_has(&v2, FEATURE_AVX));
    CHECK(feature_set_has(&v2, FEATURE_SMEP) && !feature_set_has(&v2, FEATURE_XSAVEOPT)); /* no XSAVE: no XSAVEOPT */
    CHECK(feature_set_has(&v3, FEATURE_AVX2) && feature_set_has(&v3, FEATURE_XSAVEOPT) && !feature_set_has(&v3, FEATURE_AES));
    CHECK(feature_set_has(&portable, FEATURE_SSE42) && !feature_set_has(&portable, FEATURE_SMEP));
    CHECK(!feature_set_has(&portable, FEATURE_RDRAND));

    struct feature_set set = granted("portable", "+aes  +avx2 -x2apic");
    CHECK(feature_set_has(&set, FEATURE_AES) && feature_set_has(&set, FEATURE_AVX) && feature_set_has(&set, FEATURE_XSAVE));
    CHECK(!feature_set_has(&set, FEATURE_X2APIC) && !feature_set_has(&set, FEATURE_FMA));
    set = granted("host", "-xsave");
    CHECK(!feature_set_has(&set, FEATURE_AVX2) && !feature_set_has(&set, FEATURE_PKU) && feature_set_has(&set, FEATURE_AES));
}

/* `portable` is the same wherever it can be had: on a host with all features and on one with just those. */
static void test_portable_is_the_same_everywhere(void)
{
    struct feature_set rich = granted("portable", NULL), poor = rich, set;
    struct cpu_wish wish;
    imgvm_error err = {0};
    CHECK_EQ(cpu_wish_parse(&wish, "portable", NULL, NULL, &err), 0);
    CHECK_EQ(cpu_wish_grant(&wish, &poor, &set, &err), 0);
    CHECK(!memcmp(&set, &rich, sizeof set));
    feature_set_remove(&poor, FEATURE_POPCNT);
    CHECK_EQ(cpu_wish_grant(&wish, &poor, &set, &err), -ENOTSUP);
    CHECK(strstr(err.message, "the processor model portable has popcnt") != NULL);
    /* and the software processor can give it on this host */
    cpu_offered_features(1, &poor);
    CHECK_EQ(cpu_wish_grant(&wish, &poor, &set, &err), 0);
}

static void test_vendors(void)
{
    struct cpu_wish wish;
    imgvm_error err = {0};
    CHECK_EQ(cpu_wish_vendor(NULL, CPU_VENDOR_AMD), CPU_VENDOR_AMD);
    CHECK_EQ(cpu_wish_parse(&wish, "host", NULL, NULL, &err), 0);
    CHECK_EQ(cpu_wish_vendor(&wish, CPU_VENDOR_AMD), CPU_VENDOR_AMD);
    CHECK_EQ(cpu_wish_vendor(&wish, CPU_VENDOR_INTEL), CPU_VENDOR_INTEL);
    CHECK_EQ(cpu_wish_parse(&wish, "host", NULL, "intel", &err), 0);
    CHECK_EQ(cpu_wish_vendor(&wish, CPU_VENDOR_AMD), CPU_VENDOR_INTEL);
    CHECK_EQ(cpu_wish_parse(&wish, "portable", NULL, "auto", &err), 0); /* the same on every host */
    CHECK_EQ(cpu_wish_vendor(&wish, CPU_VENDOR_AMD), CPU_VENDOR_INTEL);
    CHECK_EQ(cpu_wish_parse(&wish, "portable", NULL, "amd", &err), 0);
    CHECK_EQ(cpu_wish_vendor(&wish, CPU_VENDOR_INTEL), CPU_VENDOR_AMD);
}

static void test_wishes_that_cannot_be(void)
{
    struct feature_set none = granted("portable", NULL), set;
    struct cpu_wish wish;
    imgvm_error err = {0};
    CHECK_EQ(cpu_wish_parse(&wish, "host", NULL, "cyrix", &err), -EINVAL);
    CHECK_EQ(cpu_wish_parse(&wish, "pentium", NULL, NULL, &err), -EINVAL);
    CHECK(strstr(err.message, "pentium") && strstr(err.hint, "x86-64-v3"));
    CHECK_EQ(cpu_wish_parse(&wish, "host", "+aes -nonsense", NULL, &err), -EINVAL);
    CHECK(strstr(err.message, "-nonsense is not") != NULL);
    CHECK_EQ(cpu_wish_parse(&wish, "host", "aes", NULL, &err), -EINVAL);
    CHECK_EQ(cpu_wish_parse(&wish, "host", "+osxsave", NULL, &err), -EINVAL); /* the guest's own switch */

    CHECK_EQ(cpu_wish_parse(&wish, "portable", "+sha_ni", NULL, &err), 0);
    CHECK_EQ(cpu_wish_grant(&wish, &none, &set, &err), -ENOTSUP);
    CHECK(strstr(err.message, "cannot give the processor feature sha_ni") && *err.hint);
    none = everything();
    CHECK_EQ(cpu_wish_parse(&wish, "host", "+avx2 -avx", NULL, &err), 0);
    CHECK_EQ(cpu_wish_grant(&wish, &none, &set, &err), -EINVAL);
    CHECK(strstr(err.message, "avx2 is asked for, and avx is taken away") != NULL);
}

int main(void)
{
    imgvm_error err;
    CHECK_EQ(cpu_install_trap_handlers(&err), 0);
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, 1 << 20, false, &err), 0);
    test_withdrawn_features_are_undefined();
    test_older_processors_count_zeroes_by_scanning();
    test_what_is_more_than_a_row();
    test_models();
    test_portable_is_the_same_everywhere();
    test_vendors();
    test_wishes_that_cannot_be();
    guest_mem_destroy(&mem);
    return check_report();
}
