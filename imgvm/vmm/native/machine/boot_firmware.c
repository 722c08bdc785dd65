/* SPDX-License-Identifier: MIT */
/* A firmware in ROM: the processor begins at the reset vector, and finds the rest itself. */
#include <errno.h>
#include <string.h>

#include "../base/bits.h"
#include "../firmware/board_info.h"
#include "boot.h"

_Static_assert(BOARD_INFO_RANGES == ARRAY_LEN(((struct memory_map *)0)->range), "the BIOS has room for other maps");

static bool write_info(struct guest_mem *mem, const struct memory_map *map, const struct boot_order *order)
{
    struct board_info info = {.magic = BOARD_INFO_MAGIC, .range_count = (uint16_t)map->count, .boot_count = order->count};
    memcpy(info.boot, order->kind, sizeof info.boot);
    for (unsigned i = 0; i < map->count; i++)
        info.range[i] = (struct board_info_range){map->range[i].base, map->range[i].size, map->range[i].type, 0};
    return guest_mem_load(mem, BOARD_INFO_ADDRESS, &info, sizeof info);
}

int boot_firmware(struct guest_mem *mem, const struct memory_map *map, struct boot_blob rom, const struct boot_order *order,
                  struct x86_state *state, imgvm_error *err)
{
    if (!rom.size || rom.size > FIRMWARE_MAX || rom.size % GUEST_PAGE_SIZE) {
        error_set(err, ENOEXEC, "a firmware of %llu bytes", (unsigned long long)rom.size);
        return error_hint(err, "it has whole pages of 4096 bytes, at most 256 KiB of them");
    }
    /* Its end lies at 4 GiB, where the processor begins, and once more below 1 MiB, where real mode sees it. */
    uint64_t low = MIN(rom.size, (uint64_t)(order ? FIRMWARE_LOW_OWN : FIRMWARE_LOW_MAX));
    if (!guest_mem_load(mem, FIRMWARE_TOP - rom.size, rom.data, rom.size) ||
        !guest_mem_load(mem, FIRMWARE_LOW_END - low, rom.data + rom.size - low, low) || (order && !write_info(mem, map, order)))
        return error_set(err, EFAULT, "the firmware does not fit into its memory");
    x86_state_reset(state, true);
    return 0;
}
