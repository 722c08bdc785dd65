/* SPDX-License-Identifier: MIT */
/* INT 11h, INT 12h and INT 15h: what memory there is, address line 20, copying above 1 MiB, waiting. */
#include "memory.h"

#include "bios.h"
#include "board_info.h"

#define SMAP 0x534d4150
#define ONE_MIB 0x100000u
#define SIXTEEN_MIB 0x1000000u
#define PORT_92 0x92
#define PORT_92_A20 0x02
#define PROBE 0x4f0 /* the BDA's area for programs to talk to each other */

static struct board_info_range ranges[BOARD_INFO_RANGES + 1];
static u16 range_count;

struct descriptor {
    u16 limit, base_low;
    u8 base_middle, rights, flags, base_high;
} __attribute__((packed));

/* For copy_extended (entry.S): nothing, from, to, and a segment that is as those of real mode. */
struct descriptor extended_gdt[4];
struct {
    u16 limit;
    u32 base;
} __attribute__((packed)) extended_gdt_pointer;

void memory_init(void)
{
    struct board_info_range range;
    u16 count = peek16(INFO_SEG, offsetof(struct board_info, range_count));
    const struct board_info_range ebda = {
        .base = EBDA_ADDRESS, .bytes = EBDA_BYTES, .type = 2 /* reserved */
    };
    for (u16 i = 0; i < count && i < BOARD_INFO_RANGES; i++) {
        copy_in(&range, INFO_SEG, (u16)(offsetof(struct board_info, range) + i * sizeof range), sizeof range);
        if (range.base == 0) { /* the low memory ends with the EBDA */
            range.bytes = ebda.base;
            ranges[range_count++] = range;
            range = ebda;
        }
        ranges[range_count++] = range;
    }
    extended_gdt_pointer.limit = sizeof extended_gdt - 1;
    extended_gdt_pointer.base = EBDA_ADDRESS + (u32)(uintptr_t)extended_gdt;
    extended_gdt[3] = (struct descriptor){.limit = 0xffff, .rights = 0x93};
}

void equipment_service(struct regs *r)
{
    r->ax = peek16(BDA_SEG, BDA_EQUIPMENT);
}

void memory_size_service(struct regs *r)
{
    r->ax = peek16(BDA_SEG, BDA_MEMORY_KIB);
}

/* RAM from 1 MiB to the first hole. */
static u32 extended_kib(void)
{
    for (u16 i = 0; i < range_count; i++)
        if (ranges[i].base == ONE_MIB)
            return (u32)(ranges[i].bytes >> 10);
    return 0;
}

/* ---- address line 20 ---- */

/* Whether FFFF:0500 is another byte than 0000:04F0. The caller has interrupts off. */
static bool a20_is_on(void)
{
    u32 before = peek32(0, PROBE);
    poke32(0, PROBE, ~peek32(0xffff, PROBE + 16));
    bool differs = peek32(0xffff, PROBE + 16) != peek32(0, PROBE);
    poke32(0, PROBE, before);
    return differs;
}

/* The keyboard controller may have moved the gate since: only a change at port 92h is heard. */
static bool set_a20(bool on)
{
    u8 others = in8(PORT_92) & (u8)~(PORT_92_A20 | 0x01);
    out8(PORT_92, others | (on ? 0 : PORT_92_A20));
    out8(PORT_92, others | (on ? PORT_92_A20 : 0));
    return a20_is_on() == on;
}

static void a20_service(struct regs *r)
{
    bool done = true;
    switch (r->al) {
    case 0x00:
    case 0x01:
        done = set_a20(r->al == 0x01);
        break;
    case 0x02:
        r->al = a20_is_on();
        break;
    case 0x03:
        r->bx = 0x0003; /* both the keyboard controller and port 92h have it */
        break;
    default:
        done = false;
    }
    r->ah = done ? 0 : 0x86;
    set_carry(r, !done);
}

/* ---- copying ---- */

/* 87h: the descriptors 10h and 18h of the caller's table say from where to where. Only their bases count: a wrong limit is
 * a fault in protected mode, for which there is no handler. */
static void copy_service(struct regs *r)
{
    struct descriptor from, to;
    if (r->cx > 0x8000) {
        r->ah = 0x02;
        set_carry(r, true);
        return;
    }
    copy_in(&from, r->es, (u16)(r->si + 0x10), sizeof from);
    copy_in(&to, r->es, (u16)(r->si + 0x18), sizeof to);
    from.limit = to.limit = 0xffff;
    from.rights = to.rights = 0x93;
    from.flags = to.flags = 0;
    extended_gdt[1] = from;
    extended_gdt[2] = to;
    bool a20 = a20_is_on();
    if (!a20)
        set_a20(true);
    copy_extended(r->cx);
    if (!a20)
        set_a20(false);
    r->ah = 0;
    set_carry(r, false);
}

/* ---- the map ---- */

static void map_service(struct regs *r)
{
    struct {
        u64 base, bytes;
        u32 type;
    } __attribute__((packed)) entry;
    if (r->edx != SMAP || r->ebx >= range_count || r->ecx < sizeof entry) {
        unsupported(r);
        return;
    }
    const struct board_info_range *range = &ranges[r->ebx];
    entry.base = range->base;
    entry.bytes = range->bytes;
    entry.type = range->type;
    copy_out(r->es, r->di, &entry, sizeof entry);
    r->eax = SMAP;
    r->ecx = sizeof entry;
    r->ebx = r->ebx + 1 < range_count ? r->ebx + 1 : 0;
    set_carry(r, false);
}

/* E801h: up to 16 MiB in KiB, and from there in units of 64 KiB. */
static void sizes_service(struct regs *r, bool wide)
{
    u32 kib = extended_kib(), most = (SIXTEEN_MIB - ONE_MIB) >> 10;
    u32 low = kib < most ? kib : most, high = (kib - low) >> 6;
    if (wide) {
        r->eax = r->ecx = low;
        r->ebx = r->edx = high;
    } else {
        r->ax = r->cx = (u16)low;
        r->bx = r->dx = (u16)high;
    }
    set_carry(r, false);
}

extern const u8 system_configuration[];

void system_service(struct regs *r)
{
    u32 kib;
    switch (r->ah) {
    case 0x24:
        a20_service(r);
        return;
    case 0x4f: /* a key: goes on as it is */
        set_carry(r, true);
        return;
    case 0x86:
        if (r->flags & FLAG_INTERRUPT)
            interrupts_on();
        delay_us((u32)r->cx << 16 | r->dx);
        break;
    case 0x87:
        copy_service(r);
        return;
    case 0x88:
        kib = extended_kib();
        r->ax = (u16)(kib > 0xffff ? 0xffff : kib);
        set_carry(r, false);
        return;
    case 0x90: /* a device is waited for, or is done: nobody else is to run */
    case 0x91:
        break;
    case 0xc0:
        r->es = BIOS_SEG;
        r->bx = (u16)(uintptr_t)system_configuration;
        break;
    case 0xc1:
        r->es = EBDA_SEG;
        break;
    case 0xe8:
        if (r->al == 0x20)
            map_service(r);
        else if (r->al == 0x01 || r->al == 0x81)
            sizes_service(r, r->al == 0x81);
        else
            unsupported(r);
        return;
    case 0xec: /* the processor's long mode will be used */
        break;
    default:
        unsupported(r);
        return;
    }
    r->ah = 0;
    set_carry(r, false);
}
