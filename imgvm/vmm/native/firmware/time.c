/* SPDX-License-Identifier: MIT */
/* INT 1Ah: ticks since midnight, the clock of the CMOS RAM; and waiting. */
#include "bios.h"

#define PIT_HZ 1193182u
#define RTC_SECONDS 0x00
#define RTC_MINUTES 0x02
#define RTC_HOURS 0x04
#define RTC_DAY 0x07
#define RTC_MONTH 0x08
#define RTC_YEAR 0x09
#define RTC_A 0x0a
#define RTC_B 0x0b
#define RTC_CENTURY 0x32
#define A_UPDATING 0x80
#define B_SET 0x80

static u8 cmos_read(u8 index)
{
    out8(0x70, index);
    return in8(0x71);
}

static void cmos_write(u8 index, u8 value)
{
    out8(0x70, index);
    out8(0x71, value);
}

static u32 from_bcd(u8 value)
{
    return (value >> 4) * 10u + (value & 15);
}

/* Counts down from 65536 and begins again. Nobody may come between its two bytes. */
static u16 pit_count(void)
{
    u32 flags = interrupts_save();
    out8(0x43, 0x00);
    u8 low = in8(0x40);
    u16 count = (u16)(low | in8(0x40) << 8);
    interrupts_restore(flags);
    return count;
}

/* Programs set the counter to other periods: what is behind a reload is not counted, so that this rather waits longer. */
void delay_us(u32 us)
{
    u16 last = pit_count();
    for (u32 part; us; us -= part) {
        part = us < 50000 ? us : 50000;
        u32 wanted = part * (PIT_HZ >> 4) / 62500 + 1;
        for (u32 passed = 0; passed < wanted;) {
            u16 now = pit_count();
            passed += now <= last ? last - now : last;
            last = now;
            pause();
        }
    }
}

static void wait_for_update(void)
{
    for (unsigned i = 0; i < 1000 && (cmos_read(RTC_A) & A_UPDATING); i++)
        delay_us(10);
}

void time_init(void)
{
    out8(0x43, 0x34); /* counter 0, mode 2: a tick after 65536 counts */
    out8(0x40, 0);
    out8(0x40, 0);
    out8(0x43, 0x54); /* counter 1: memory refresh, as programs expect it */
    out8(0x41, 18);
    cmos_write(RTC_A, 0x26);
    cmos_write(RTC_B, 0x02); /* BCD, 24 hours */
    wait_for_update();
    u32 seconds = (from_bcd(cmos_read(RTC_HOURS)) * 60 + from_bcd(cmos_read(RTC_MINUTES))) * 60 + from_bcd(cmos_read(RTC_SECONDS));
    poke32(BDA_SEG, BDA_TICKS, seconds * 18 + seconds * 2065 / 10000); /* 18.2065 a second */
}

static void set_clock(const u8 (*pairs)[2], unsigned count)
{
    cmos_write(RTC_B, cmos_read(RTC_B) | B_SET);
    for (unsigned i = 0; i < count; i++)
        cmos_write(pairs[i][0], pairs[i][1]);
    cmos_write(RTC_B, cmos_read(RTC_B) & ~B_SET);
}

void time_service(struct regs *r)
{
    set_carry(r, false);
    switch (r->ah) {
    case 0x00:
        r->dx = peek16(BDA_SEG, BDA_TICKS);
        r->cx = peek16(BDA_SEG, BDA_TICKS + 2);
        r->al = peek8(BDA_SEG, BDA_MIDNIGHT);
        poke8(BDA_SEG, BDA_MIDNIGHT, 0);
        break;
    case 0x01:
        poke16(BDA_SEG, BDA_TICKS, r->dx);
        poke16(BDA_SEG, BDA_TICKS + 2, r->cx);
        poke8(BDA_SEG, BDA_MIDNIGHT, 0);
        break;
    case 0x02:
        wait_for_update();
        r->dh = cmos_read(RTC_SECONDS);
        r->cl = cmos_read(RTC_MINUTES);
        r->ch = cmos_read(RTC_HOURS);
        r->dl = cmos_read(RTC_B) & 1;
        break;
    case 0x03:
        set_clock((const u8[][2]){{RTC_SECONDS, r->dh}, {RTC_MINUTES, r->cl}, {RTC_HOURS, r->ch}}, 3);
        break;
    case 0x04:
        wait_for_update();
        r->dl = cmos_read(RTC_DAY);
        r->dh = cmos_read(RTC_MONTH);
        r->cl = cmos_read(RTC_YEAR);
        r->ch = cmos_read(RTC_CENTURY);
        break;
    case 0x05:
        set_clock((const u8[][2]){{RTC_DAY, r->dl}, {RTC_MONTH, r->dh}, {RTC_YEAR, r->cl}, {RTC_CENTURY, r->ch}}, 4);
        break;
    case 0xb1:
        pci_bios_service(r);
        break;
    default:
        set_carry(r, true);
    }
}
