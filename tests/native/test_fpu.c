/* SPDX-License-Identifier: MIT */
/* needs: cpu/exec/fpu.c */
/* The images of x87 and vector state in memory, made in C, against the host's own instructions on the same state. */
#include "arch/x86.h"
#include "base/bits.h"
#include "check.h"
#include "cpu/exec/fpu.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 300

typedef uint8_t area_bytes[4096];

static uint64_t rnd(void)
{
    return (uint64_t)random() << 42 ^ (uint64_t)random() << 21 ^ (uint64_t)random();
}

static void noise(uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        p[i] = rnd();
}

/* A state that the host accepts as it is. */
static void random_area(uint8_t *area)
{
    memset(area, 0, sizeof(area_bytes));
    noise(area + 32, 384);
    noise(area + 576, 256);
    for (unsigned i = 0; i < 8; i++) {
        static const uint16_t exponents[] = {0, 0x3fff, 0x7fff, 0xc000};
        uint8_t *st = area + 32 + 16 * i;
        store_le16(st + 8, exponents[rnd() & 3]);
        if (rnd() & 1)
            store_le64(st, rnd() & 1 ? 0 : UINT64_C(1) << 63);
        memset(st + 10, 0, 6);
    }
    store_le16(area, 0x0340 | (rnd() & 0xc3f));
    store_le16(area + 2, rnd() & 0x7f7f);
    if (load_le16(area + 2) & ~load_le16(area) & 0x3f)
        store_le16(area + 2, load_le16(area + 2) | 0x8080);
    area[4] = rnd();
    store_le32(area + 24, rnd() & 0xffff);
    store_le64(area + 512, 7);
}

static bool same_state(const uint8_t *a, const uint8_t *b)
{
    return !memcmp(a, b, 5) && !memcmp(a + 24, b + 24, 4) && !memcmp(a + 32, b + 32, 384) &&
           !memcmp(a + 576, b + 576, 256);
}

/* The host does `instruction` on `memory` with the registers as in `area`, which afterwards says what they are. */
#define ON_HOST(area, instruction, memory)                                                                   \
    do {                                                                                                     \
        fpu_enter(area);                                                                                     \
        __asm__ volatile(instruction : "+m"(*(area_bytes *)(memory)) : "a"(mask), "d"(0) : "memory");        \
        fpu_leave(area);                                                                                     \
    } while (0)

static _Alignas(64) area_bytes mine, hosts, image, expected;

static void random_areas(void)
{
    random_area(mine);
    memcpy(hosts, mine, sizeof mine);
}

/* No exception that FLDENV and FRSTOR would raise first. */
static void random_quiet_areas(void)
{
    random_area(mine);
    store_le16(mine, load_le16(mine) | 0x3f);
    store_le16(mine + 2, load_le16(mine + 2) & 0x7f7f);
    memcpy(hosts, mine, sizeof mine);
}

/* Words of an environment that are not pointers. */
static bool same_environment(const uint8_t *a, const uint8_t *b, bool size32)
{
    for (unsigned i = 0; i < 3; i++)
        if (load_le16(a + i * (size32 ? 4 : 2)) != load_le16(b + i * (size32 ? 4 : 2)))
            return false;
    return true;
}

static void test_environment(bool size32)
{
    const uint32_t mask = 0;
    unsigned bytes = size32 ? 28 : 14;
    for (unsigned i = 0; i < ROUNDS; i++) {
        random_areas();
        memset(image, 0x5a, 32);
        CHECK_EQ(fpu_fnstenv(mine, image, size32), bytes);
        if (size32)
            ON_HOST(hosts, "fnstenv %0", expected);
        else
            ON_HOST(hosts, "data16 fnstenv %0", expected);
        CHECK(same_environment(image, expected, size32));
        CHECK(same_state(mine, hosts));
        for (unsigned p = size32 ? 12 : 6; p < (size32 ? 26 : 14); p++)
            CHECK(image[p] == 0); /* no address of the host */

        random_quiet_areas();
        noise(expected, 28);
        if (size32)
            ON_HOST(hosts, "fldenv %0", expected);
        else
            ON_HOST(hosts, "data16 fldenv %0", expected);
        fpu_fldenv(mine, expected, size32);
        CHECK(same_state(mine, hosts));
    }
}

static void test_save_restore(bool size32)
{
    const uint32_t mask = 0;
    unsigned offset = size32 ? 28 : 14;
    for (unsigned i = 0; i < ROUNDS; i++) {
        random_areas();
        CHECK_EQ(fpu_fnsave(mine, image, size32), offset + 80);
        if (size32)
            ON_HOST(hosts, "fnsave %0", expected);
        else
            ON_HOST(hosts, "data16 fnsave %0", expected);
        CHECK(same_environment(image, expected, size32));
        CHECK(!memcmp(image + offset, expected + offset, 80));
        CHECK(!memcmp(mine, hosts, 5)); /* as FNINIT leaves it; register contents are not defined */
        CHECK(!memcmp(mine + 160, hosts + 160, 256));

        random_quiet_areas();
        noise(expected, 108);
        if (size32)
            ON_HOST(hosts, "frstor %0", expected);
        else
            ON_HOST(hosts, "data16 frstor %0", expected);
        fpu_frstor(mine, expected, size32);
        CHECK(same_state(mine, hosts));
    }
}

static void test_fxsave(void)
{
    const uint32_t mask = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        random_areas();
        memset(image, 0x5a, 512);
        CHECK_EQ(fpu_fxsave(mine, image, true), 416);
        ON_HOST(hosts, "fxsave64 %0", expected);
        CHECK(!memcmp(image, expected, 6) && !memcmp(image + 24, expected + 24, 4));
        CHECK(!memcmp(image + 32, expected + 32, 384));
        for (unsigned p = 6; p < 24; p++)
            CHECK(image[p] == 0);

        random_areas();
        random_area(image);
        image[6] = 0x77; /* pointers are not taken over */
        ON_HOST(hosts, "fxrstor64 %0", image);
        CHECK(fpu_fxrstor(mine, image, true));
        CHECK(same_state(mine, hosts));
        CHECK(mine[6] == 0);
    }
    /* outside 64-bit mode XMM8-15 stay */
    random_areas();
    random_area(image);
    CHECK(fpu_fxrstor(mine, image, false));
    CHECK(!memcmp(mine + 160, image + 160, 128) && !memcmp(mine + 288, hosts + 288, 128));
    CHECK_EQ(fpu_fxsave(mine, image, false), 288);
    store_le32(image + 24, 0x10000);
    memcpy(hosts, mine, sizeof mine);
    CHECK(!fpu_fxrstor(mine, image, true) && !memcmp(mine, hosts, sizeof mine));
}

static void test_xsave(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        const uint32_t mask = rnd() & 7;
        random_areas();
        store_le32(mine + 24, 0x1f80 ^ 0x6000);
        memcpy(hosts, mine, sizeof mine);
        noise(image, sizeof image);
        memset(image + 512, 0, 64);
        store_le64(image + 512, rnd() & 7);
        memcpy(expected, image, sizeof image);
        bool compact = rnd() & 1;
        if (compact)
            ON_HOST(hosts, "xsavec64 %0", expected);
        else
            ON_HOST(hosts, "xsave64 %0", expected);
        fpu_xsave(mine, image, mask, compact ? FPU_XSAVEC : FPU_XSAVE, true);
        CHECK_EQ(load_le64(image + 512), load_le64(expected + 512));
        CHECK_EQ(load_le64(image + 520), load_le64(expected + 520));
        if (mask & 1) {
            memset(expected + 6, 0, 18);
            for (unsigned st = 0; st < 8; st++) /* reserved bytes: processors differ */
                memcpy(expected + 42 + 16 * st, image + 42 + 16 * st, 6);
        }
        if (load_le32(image + 24) == load_le32(expected + 24))
            store_le32(expected + 28, load_le32(image + 28)); /* MXCSR_MASK is the processor's own */
        CHECK(!memcmp(image, expected, sizeof image));
    }
    /* what is initial XSAVEC leaves alone, and XSAVE writes */
    random_area(mine);
    store_le64(mine + 512, 2);
    memset(image, 0x5a, sizeof image);
    memset(image + 512, 0, 64);
    fpu_xsave(mine, image, 7, FPU_XSAVEC, true);
    CHECK(image[0] == 0x5a && image[576] == 0x5a && load_le64(image + 512) == 2);
    CHECK_EQ(load_le64(image + 520), BIT(63) | 7);
    fpu_xsave(mine, image, 7, FPU_XSAVE, true);
    CHECK(load_le16(image) == 0x37f && image[576] == 0 && load_le64(image + 512) == 2);
    CHECK_EQ(fpu_in_use(mine, 7), 2);
}

static void test_xrstor(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        const uint32_t mask = rnd() & 7;
        random_areas();
        random_area(image);
        store_le64(image + 512, rnd() & 7);
        if (rnd() & 1)
            store_le64(image + 520, BIT(63) | load_le64(image + 512) | (rnd() & 7));
        CHECK_EQ(fpu_xrstor_bytes(image, mask, 7), load_le64(image + 512) & mask & 4 ? 832 : 576);
        ON_HOST(hosts, "xrstor64 %0", image);
        CHECK(fpu_xrstor(mine, image, mask, true));
        /* the host's own store may report initial components as such: compare what they hold */
        fpu_enter(mine);
        fpu_leave(mine);
        CHECK(same_state(mine, hosts));
    }
}

static void test_xrstor_faults(void)
{
    random_areas();
    random_area(image);
    store_le64(image + 512, 8);
    CHECK_EQ(fpu_xrstor_bytes(image, 7, 7), 0); /* not in XCR0 */
    store_le64(image + 512, 4);
    CHECK_EQ(fpu_xrstor_bytes(image, 7, 3), 0);
    store_le64(image + 520, 1);
    CHECK_EQ(fpu_xrstor_bytes(image, 7, 7), 0); /* XCOMP_BV without bit 63 */
    store_le64(image + 520, BIT(63) | 3);
    CHECK_EQ(fpu_xrstor_bytes(image, 7, 7), 0); /* in use, but not in the format */
    store_le64(image + 520, BIT(63) | 15);
    CHECK_EQ(fpu_xrstor_bytes(image, 7, 7), 0);
    store_le64(image + 520, BIT(63) | 7);
    CHECK_EQ(fpu_xrstor_bytes(image, 7, 7), 832);
    image[570] = 1;
    CHECK_EQ(fpu_xrstor_bytes(image, 7, 7), 0); /* reserved header bytes */
    image[570] = 0;
    store_le64(image + 520, 0);
    store_le32(image + 24, 0x80000000);
    CHECK(!fpu_xrstor(mine, image, 4, true) && !memcmp(mine, hosts, sizeof mine)); /* MXCSR comes with AVX as well */
    CHECK(fpu_xrstor(mine, image, 1, true));
}

static void test_any_area_can_be_entered(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        noise(mine, sizeof mine);
        fpu_enter(mine);
        fpu_leave(mine);
        CHECK_EQ(load_le64(mine + 512) & ~UINT64_C(7), 0);
        uint32_t mxcsr;
        uint16_t fcw;
        __asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(mxcsr), "=m"(fcw));
        CHECK_EQ(mxcsr, 0x1f80);
        CHECK_EQ(fcw, 0x37f);
    }
    /* a reset state (FCW 0040h, MXCSR 1F80h, XSTATE_BV 3) comes back as itself */
    memset(mine, 0, sizeof mine);
    store_le16(mine, 0x40);
    store_le32(mine + 24, 0x1f80);
    store_le64(mine + 512, 3);
    memcpy(hosts, mine, sizeof mine);
    fpu_enter(mine);
    fpu_leave(mine);
    CHECK(same_state(mine, hosts));
}

int main(void)
{
    if (!__builtin_cpu_supports("avx"))
        return printf("1 checks, 0 failed\n"), 0; /* no XSAVE to compare with */
    for (unsigned size32 = 0; size32 < 2; size32++) {
        test_environment(size32);
        test_save_restore(size32);
    }
    test_fxsave();
    test_xsave();
    test_xrstor();
    test_xrstor_faults();
    test_any_area_can_be_entered();
    return check_report();
}
