/* SPDX-License-Identifier: MIT */
#include "boot.h"

#include "../base/bits.h"

bool boot_range_usable(const struct memory_map *map, uint64_t base, uint64_t size)
{
    for (unsigned i = 0; i < map->count; i++) {
        const struct memory_range *range = &map->range[i];
        if (range->type == MEMORY_USABLE && base >= range->base && size <= range->size &&
            base - range->base <= range->size - size)
            return true;
    }
    return false;
}

/* A descriptor from the attributes of struct x86_segment; base 0, limit 4 GiB (SDM vol. 3, figure 3-8). */
static uint64_t flat_descriptor(uint32_t attributes)
{
    return UINT64_C(0x0000000000ffff) | UINT64_C(0xf) << 48 | (uint64_t)(attributes & 0xf0ff) << 40;
}

bool boot_flat_segments(struct guest_mem *mem, struct x86_state *state, uint16_t cs, uint16_t ds, bool code64)
{
    uint32_t code = SEG_P | SEG_S | SEG_CODE | SEG_WRITE_READ | SEG_ACCESSED | SEG_G | (code64 ? SEG_L : SEG_DB);
    uint32_t data = SEG_P | SEG_S | SEG_WRITE_READ | SEG_ACCESSED | SEG_G | SEG_DB;
    uint64_t gdt[4] = {0};
    gdt[cs >> 3] = flat_descriptor(code);
    gdt[ds >> 3] = flat_descriptor(data);
    for (unsigned i = 0; i < 6; i++)
        state->segment[i] = (struct x86_segment){.selector = ds, .attributes = data, .limit = 0xffffffff};
    state->segment[CS] = (struct x86_segment){.selector = cs, .attributes = code, .limit = 0xffffffff};
    state->gdtr = (struct x86_table){BOOT_GDT, sizeof gdt - 1};
    state->idtr = (struct x86_table){0, 0};
    return guest_mem_write(mem, BOOT_GDT, gdt, sizeof gdt);
}
