/* SPDX-License-Identifier: MIT */
/* needs: cpu/exec/cpuid.c cpu/exec/fpu.c cpu/decode/isa.c base/error.c arch/*.c */
#include "arch/state.h"
#include "base/bits.h"
#include "check.h"
#include "cpu/decode/insn.h"
#include "cpu/exec/cpuid.h"

#include <string.h>

enum { EAX, EBX, ECX, EDX };

static uint32_t query(const struct cpuid_config *config, uint32_t leaf, uint32_t subleaf, unsigned reg)
{
    uint32_t out[4];
    cpuid_query(config, leaf, subleaf, out);
    return out[reg];
}

static void test_identity(void)
{
    struct cpuid_config config;
    uint32_t out[4];
    char text[49] = {0};
    struct x86_state reset;
    cpuid_init(&config, 0, 1);

    cpuid_query(&config, 0, 0, out);
    CHECK(out[EAX] >= 0x16);
    memcpy(text, &out[EBX], 4);
    memcpy(text + 4, &out[EDX], 4);
    memcpy(text + 8, &out[ECX], 4);
    CHECK(!strcmp(text, "GenuineIntel"));

    for (unsigned i = 0; i < 3; i++) {
        cpuid_query(&config, 0x80000002 + i, 0, out);
        memcpy(text + 16 * i, out, 16);
    }
    CHECK(!strcmp(text, "imgvm software processor"));

    x86_state_reset(&reset, true);
    CHECK_EQ(query(&config, 1, 0, EAX), CPUID_SIGNATURE);
    CHECK_EQ(reset.gpr[RDX], CPUID_SIGNATURE);
    CHECK_EQ(query(&config, 0x80000008, 0, EAX), 48 << 8 | 46);
    CHECK_EQ(query(&config, 0x80000000, 0, EAX), 0x80000008);

    /* hypervisor leaves only with the bit that announces them */
    CHECK_EQ(query(&config, 0x40000000, 0, EBX), 0);
    cpuid_announce(&config, FEATURE_HYPERVISOR);
    cpuid_query(&config, 0x40000000, 0, out);
    CHECK_EQ(out[EAX], 0x40000000);
    CHECK(!memcmp(&out[EBX], "imgvmimgvm\0\0", 12));
    /* unknown leaves repeat the last basic one; Linux's native_calibrate_tsc wants crystal * EBX / EAX */
    CHECK_EQ(query(&config, 0x123, 0, EAX), query(&config, 0x16, 0, EAX));
    cpuid_query(&config, 0x15, 0, out);
    CHECK_EQ((uint64_t)out[ECX] / 1000 * out[EBX] / out[EAX], 1000000);
}

static void test_amd(void)
{
    struct cpuid_config config;
    uint32_t out[4];
    cpuid_init(&config, 2, 4);
    config.vendor = CPU_VENDOR_AMD;
    for (unsigned i = 0; i < 2; i++) {
        cpuid_query(&config, i ? 0x80000000 : 0, 0, out);
        CHECK(!memcmp(&out[EBX], "Auth", 4) && !memcmp(&out[EDX], "enti", 4) && !memcmp(&out[ECX], "cAMD", 4));
    }
    CHECK_EQ(query(&config, 0, 0, EAX), 0xd);
    CHECK_EQ(query(&config, 1, 0, EAX) >> 20 & 0xff, 0x1a - 0xf); /* extended family */
    CHECK_EQ(query(&config, 1, 0, EAX), query(&config, 0x80000001, 0, EAX));
    CHECK_EQ(query(&config, 4, 0, EAX), 0); /* Intel's way to tell caches */
    CHECK_EQ(query(&config, 0x80000005, 0, ECX) >> 24, 32);
    CHECK_EQ(query(&config, 0x80000006, 0, ECX) >> 16, 1024);
    CHECK_EQ(query(&config, 0x80000008, 0, ECX), 2 << 12 | 3);
    CHECK_EQ(query(&config, 0x80000001, 0, EDX) & CPUID_REPEATED_BITS, query(&config, 1, 0, EDX) & CPUID_REPEATED_BITS);
    CHECK_EQ(query(&config, 0x80000001, 0, ECX) >> 1 & 1, 1);
}

/* A bit stands exactly for rows: NATIVE ones also need the host. */
static void test_features_follow_the_tables(void)
{
    struct cpuid_config config;
    cpuid_init(&config, 0, 1);
    for (unsigned op = 0; op < OP_COUNT; op++) {
        const struct op_info *info = &op_infos[op];
        if (info->kind == OPK_NATIVE && info->feature != FEATURE_BASE)
            CHECK_EQ(cpuid_has(&config, info->feature), cpuid_host_has(info->feature));
    }
    for (unsigned feature = 1; feature < FEATURE_COUNT; feature++) {
        bool rows = false;
        for (unsigned op = 0; op < OP_COUNT; op++)
            rows |= op_infos[op].feature == feature && op_infos[op].kind != OPK_SYS;
        bool of_images = feature == FEATURE_FCS_FDS_DEPRECATED || feature == FEATURE_FDP_EXCPTN_ONLY;
        if (!rows)
            CHECK_EQ(cpuid_has(&config, feature), of_images);
        CHECK_EQ(cpu_feature_named(cpu_feature_rows[feature].name, strlen(cpu_feature_rows[feature].name)), feature);
    }
    CHECK_EQ(cpu_feature_named("no such word", strlen("no such word")), FEATURE_BASE);
    CHECK_EQ(cpu_feature_named("avx", strlen("avx")), FEATURE_AVX);
    CHECK_EQ(cpu_feature_named("avx2", strlen("avx2")), FEATURE_AVX2);

    /* the host's own answer, for a bit that every x86-64 processor has */
    CHECK(cpuid_has(&config, FEATURE_SSE2) && query(&config, 1, 0, EDX) & 1);
    CHECK(!(query(&config, 1, 0, EDX) & 1 << 26)); /* but not without FXSR */
    cpuid_announce(&config, FEATURE_FXSR);
    CHECK(query(&config, 1, 0, EDX) & 1 << 26);
}

static void test_dependencies_and_live_bits(void)
{
    struct cpuid_config config;
    cpuid_init(&config, 0, 1);
    static const enum cpu_feature system[] = {FEATURE_FXSR, FEATURE_XSAVE, FEATURE_XSAVEC, FEATURE_APIC,
                                              FEATURE_X2APIC};
    for (unsigned i = 0; i < ARRAY_LEN(system); i++)
        cpuid_announce(&config, system[i]);

    cpuid_announce(&config, FEATURE_ARAT);
    CHECK_EQ(query(&config, 6, 0, EAX), 4);
    CHECK_EQ(query(&config, 6, 77, EAX), 4); /* no subleaves: ECX does not matter */
    CHECK_EQ(query(&config, 7, 2, EBX), 0);
    CHECK(!(query(&config, 1, 0, ECX) & 1 << 27));
    config.osxsave = true;
    CHECK(query(&config, 1, 0, ECX) & 1 << 27);
    CHECK(query(&config, 1, 0, EDX) & 1 << 9);
    config.apic_enabled = false;
    CHECK(!(query(&config, 1, 0, EDX) & 1 << 9));

    CHECK_EQ(query(&config, 0xd, 0, EBX), 576);
    if (cpuid_host_has(FEATURE_AVX)) {
        CHECK_EQ(query(&config, 0xd, 0, EAX), 7);
        CHECK_EQ(query(&config, 0xd, 0, ECX), 832);
        config.xcr0 = 7;
        CHECK_EQ(query(&config, 0xd, 0, EBX), 832);
        CHECK_EQ(query(&config, 0xd, 1, EBX), 832);
        CHECK_EQ(query(&config, 0xd, 2, EAX), 256);
        CHECK_EQ(query(&config, 0xd, 2, EBX), 576);
        CHECK(query(&config, 7, 0, EBX) & 1 << 5 || !cpuid_host_has(FEATURE_AVX2));
    }
    feature_set_remove(&config.announced, FEATURE_XSAVE);
    CHECK(!cpuid_has(&config, FEATURE_AVX) && !cpuid_has(&config, FEATURE_AVX2) && !cpuid_has(&config, FEATURE_FMA));
    CHECK(!(query(&config, 1, 0, ECX) & (1 << 26 | 1 << 27 | 1 << 28)));
    CHECK_EQ(query(&config, 0xd, 0, EAX), 0);
    CHECK_EQ(query(&config, 7, 0, EBX) & 1 << 5, 0);
}

static void test_topology(void)
{
    struct cpuid_config config;
    uint32_t out[4];
    cpuid_init(&config, 5, 6);
    cpuid_query(&config, 1, 0, out);
    CHECK_EQ(out[EBX] >> 24, 5);
    CHECK_EQ(out[EBX] >> 16 & 0xff, 8);
    CHECK_EQ(out[EBX] >> 8 & 0xff, 8);
    CHECK(out[EDX] & 1 << 28);
    cpuid_query(&config, 0xb, 0, out);
    CHECK(out[EAX] == 0 && out[EBX] == 1 && out[ECX] == 0x100 && out[EDX] == 5);
    cpuid_query(&config, 0xb, 1, out);
    CHECK(out[EAX] == 3 && out[EBX] == 6 && out[ECX] == 0x201 && out[EDX] == 5);
    cpuid_query(&config, 0xb, 2, out);
    CHECK(out[EAX] == 0 && out[EBX] == 0 && out[ECX] == 2);

    uint64_t sizes[4];
    for (unsigned i = 0; i < 4; i++) {
        cpuid_query(&config, 4, i, out);
        sizes[i] = (uint64_t)((out[EBX] >> 22) + 1) * ((out[EBX] & 0xfff) + 1) * (out[ECX] + 1);
        CHECK_EQ(out[EAX] >> 26, 7);
    }
    CHECK_EQ(sizes[0], 48 << 10);
    CHECK_EQ(sizes[1], 32 << 10);
    CHECK_EQ(sizes[2], 2 << 20);
    CHECK_EQ(sizes[3], 16 << 20);
    CHECK_EQ(query(&config, 4, 4, EAX), 0);
}

static void test_flaws_guests_need_not_work_around(void)
{
    /* bits that Linux's cpu_set_bug_bits reads (SDM vol. 4, IA32_ARCH_CAPABILITIES) */
    static const unsigned bits[] = {0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62};
    uint64_t expected = 0;
    for (unsigned i = 0; i < ARRAY_LEN(bits); i++)
        expected |= BIT(bits[i]);
    CHECK_EQ(CPUID_ARCH_CAPABILITIES, expected);
}

int main(void)
{
    test_identity();
    test_features_follow_the_tables();
    test_dependencies_and_live_bits();
    test_topology();
    test_flaws_guests_need_not_work_around();
    test_amd();
    return check_report();
}
