/* SPDX-License-Identifier: MIT */
/* needs: machine/boot_firmware.c arch/state.c mem/guest_mem.c base/error.c */
/* A firmware in ROM: where its parts lie, what the built-in one is told, and ROMs that are none. */
#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "check.h"
#include "firmware/board_info.h"
#include "machine/boot.h"

#define ROM_TOP UINT64_C(0xfffc0000)

static struct guest_mem mem;
static struct x86_state state;
static imgvm_error err;
static uint8_t rom[FIRMWARE_MAX + GUEST_PAGE_SIZE];

static const struct memory_map map = {
    .range = {{0, 0xa0000, MEMORY_USABLE}, {0x100000, 0x700000, MEMORY_USABLE}, {0xfffc0000, 0x40000, MEMORY_RESERVED}},
    .count = 3, .low_top = 0x800000, .rsdp = 0xe0000,
};
static const struct boot_order order = {{BOOT_CDROM, BOOT_DISK}, 2};

static void setup(void)
{
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, 0xa0000, false, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0xc0000, 0x40000, true, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, ROM_TOP, 0x40000, true, &err), 0);
    for (size_t i = 0; i < sizeof rom; i++)
        rom[i] = (uint8_t)(i * 13 + (i >> 8) * 7 + (i >> 16));
}

static bool lies_at(uint64_t gpa, const uint8_t *data, size_t bytes)
{
    const void *there = guest_mem_ptr(&mem, gpa, bytes, false);
    return there && !memcmp(there, data, bytes);
}

static void test_the_built_in_one(void)
{
    CHECK_EQ(boot_firmware(&mem, &map, (struct boot_blob){rom, 0x10000}, &order, &state, &err), 0);
    CHECK(lies_at(0xffff0000, rom, 0x10000));
    CHECK(lies_at(0xf0000, rom, 0x10000));
    CHECK_EQ(state.segment[CS].selector, 0xf000);
    CHECK_EQ(state.segment[CS].base + state.rip, 0xfffffff0);
    CHECK_EQ(state.activity, X86_RUNNING);
    struct board_info info;
    CHECK(guest_mem_read(&mem, BOARD_INFO_ADDRESS, &info, sizeof info));
    CHECK_EQ(info.magic, BOARD_INFO_MAGIC);
    CHECK_EQ(info.boot_count, 2);
    CHECK_EQ(info.boot[0], BOOT_CDROM);
    CHECK_EQ(info.boot[1], BOOT_DISK);
    CHECK_EQ(info.range_count, 3);
    CHECK_EQ(info.range[1].base, 0x100000);
    CHECK_EQ(info.range[1].bytes, 0x700000);
    CHECK_EQ(info.range[2].type, MEMORY_RESERVED);
}

static void test_another_has_all_of_it(void)
{
    static const uint8_t nothing[sizeof(struct board_info)];
    CHECK(guest_mem_load(&mem, BOARD_INFO_ADDRESS, nothing, sizeof nothing));
    CHECK_EQ(boot_firmware(&mem, &map, (struct boot_blob){rom, FIRMWARE_MAX}, NULL, &state, &err), 0);
    CHECK(lies_at(ROM_TOP, rom, FIRMWARE_MAX));
    CHECK(lies_at(0xe0000, rom + FIRMWARE_MAX - FIRMWARE_LOW_MAX, FIRMWARE_LOW_MAX));
    CHECK_EQ(boot_firmware(&mem, &map, (struct boot_blob){rom, GUEST_PAGE_SIZE}, NULL, &state, &err), 0);
    CHECK(lies_at(0xfffff000, rom, GUEST_PAGE_SIZE));
    CHECK(lies_at(0xff000, rom, GUEST_PAGE_SIZE));
}

static void test_what_is_none(void)
{
    const uint64_t sizes[] = {0, 1, GUEST_PAGE_SIZE + 1, FIRMWARE_MAX + GUEST_PAGE_SIZE};
    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        CHECK_EQ(-boot_firmware(&mem, &map, (struct boot_blob){rom, sizes[i]}, NULL, &state, &err), ENOEXEC);
        CHECK(strstr(err.message, "a firmware of"));
        CHECK(strstr(err.hint, "256 KiB"));
    }
}

int main(void)
{
    setup();
    test_the_built_in_one();
    test_another_has_all_of_it();
    test_what_is_none();
    guest_mem_destroy(&mem);
    return check_report();
}
