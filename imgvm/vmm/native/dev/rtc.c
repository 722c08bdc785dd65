/* SPDX-License-Identifier: MIT */
/* Motorola MC146818A real-time clock (datasheet ADI1020), as wired in a PC: ports 70h/71h, IRQ 8, NMI mask in bit 7
 * of the index, century in CMOS byte 32h.
 *
 * Nothing ticks: the time is the clock plus a base, flags are brought up to date when somebody looks, and a timer
 * runs only while an enabled interrupt waits for its flag. So a guest that is slow to read register C gets one
 * interrupt for what it missed, as from the real chip.
 *
 * Not emulated: daylight saving (DSE), the square wave output, other time bases than 32.768 kHz. */
#include "rtc.h"

#include <string.h>

#define NS_PER_SEC 1000000000
#define SECONDS_PER_DAY 86400
#define CRYSTAL_HZ 32768
#define YEAR_FIRST 1700 /* what 64 bits of nanoseconds around 1970 hold, and time to run on */
#define YEAR_LAST 2250

enum { SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, DAY_OF_WEEK, DAY, MONTH, YEAR,
       REG_A, REG_B, REG_C, REG_D };

#define A_UIP 0x80
#define A_DIVIDER 0x70
#define A_DIVIDER_RESET 0x60 /* 110 and 111 */
#define A_RATE 0x0f
#define B_SET 0x80
#define B_PIE 0x40 /* the enables sit where their flags are in register C */
#define B_AIE 0x20
#define B_UIE 0x10
#define B_SQWE 0x08
#define B_DM 0x04 /* binary, not BCD */
#define B_24H 0x02
#define C_IRQF 0x80
#define C_PF 0x40
#define C_AF 0x20
#define C_UF 0x10
#define D_VRT 0x80

#define HOUR_PM 0x80
#define ALARM_ANY 0xc0 /* both top bits set: "don't care" */

/* UIP is up from 244 us before an update until its end, 1984 us long (datasheet, "Update Cycle"). */
#define UIP_NS 2228000
/* "the first update cycle is one half second later" than the divider's release. */
#define DIVIDER_START_NS (NS_PER_SEC / 2)

struct rtc_time {
    int year, month, day, weekday, hour, minute, second; /* weekday: Sunday is 1 */
};

/* ---- the calendar ---- */

/* Days since 1970 of a date in the proleptic Gregorian calendar, with years that begin in March. */
static int64_t days_from_date(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = y / 400, year_of_era = y % 400; /* years are never negative here */
    int64_t day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719468;
}

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

static struct rtc_time time_from_utc(int64_t seconds)
{
    struct rtc_time t;
    int64_t days = floor_div(seconds, SECONDS_PER_DAY), rest = seconds - days * SECONDS_PER_DAY;
    int64_t z = days + 719468, era = floor_div(z, 146097), doe = z - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), march_month = (5 * doy + 2) / 153;
    t.day = (int)(doy - (153 * march_month + 2) / 5 + 1);
    t.month = (int)(march_month < 10 ? march_month + 3 : march_month - 9);
    t.year = (int)(yoe + era * 400 + (t.month <= 2));
    t.weekday = (int)(((days + 4) % 7 + 7) % 7) + 1; /* 1 January 1970 was a Thursday */
    t.hour = (int)(rest / 3600);
    t.minute = (int)(rest / 60 % 60);
    t.second = (int)(rest % 60);
    return t;
}

static uint8_t encode(const struct rtc *rtc, int value)
{
    return (uint8_t)(rtc->state.cmos[REG_B] & B_DM ? value : value / 10 << 4 | value % 10);
}

static int decode(const struct rtc *rtc, uint8_t raw)
{
    return rtc->state.cmos[REG_B] & B_DM ? raw : (raw >> 4) * 10 + (raw & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour)
{
    if (rtc->state.cmos[REG_B] & B_24H)
        return encode(rtc, hour);
    return (uint8_t)(encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0));
}

static int decode_hour(const struct rtc *rtc, uint8_t raw)
{
    if (rtc->state.cmos[REG_B] & B_24H)
        return decode(rtc, raw);
    return decode(rtc, raw & (uint8_t)~HOUR_PM) % 12 + (raw & HOUR_PM ? 12 : 0);
}

/* ---- time in registers ---- */

static bool held(const struct rtc *rtc)
{
    return (rtc->state.cmos[REG_B] & B_SET) || (rtc->state.cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
}

static int64_t utc_at(const struct rtc *rtc, uint64_t now_ns)
{
    return rtc->state.utc_base_ns + (int64_t)now_ns;
}

static void store_time(struct rtc *rtc, uint64_t now_ns)
{
    uint8_t *cmos = rtc->state.cmos;
    struct rtc_time t = time_from_utc(floor_div(utc_at(rtc, now_ns), NS_PER_SEC));
    cmos[SECONDS] = encode(rtc, t.second);
    cmos[MINUTES] = encode(rtc, t.minute);
    cmos[HOURS] = encode_hour(rtc, t.hour);
    cmos[DAY_OF_WEEK] = encode(rtc, t.weekday);
    cmos[DAY] = encode(rtc, t.day);
    cmos[MONTH] = encode(rtc, t.month);
    cmos[YEAR] = encode(rtc, t.year % 100);
    cmos[RTC_CENTURY] = encode(rtc, t.year / 100);
}

static int clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

/* The registers become the time; the fraction of the second is `fraction_ns`. */
static void load_time(struct rtc *rtc, uint64_t now_ns, int64_t fraction_ns)
{
    const uint8_t *cmos = rtc->state.cmos;
    int year = clamp(decode(rtc, cmos[RTC_CENTURY]), 0, 99) * 100 + clamp(decode(rtc, cmos[YEAR]), 0, 99);
    year = clamp(year, YEAR_FIRST, YEAR_LAST);
    int64_t days = days_from_date(year, clamp(decode(rtc, cmos[MONTH]), 1, 12), clamp(decode(rtc, cmos[DAY]), 1, 31));
    int64_t seconds = days * SECONDS_PER_DAY + clamp(decode_hour(rtc, cmos[HOURS]), 0, 23) * 3600 +
                      clamp(decode(rtc, cmos[MINUTES]), 0, 59) * 60 + clamp(decode(rtc, cmos[SECONDS]), 0, 59);
    rtc->state.utc_base_ns = seconds * NS_PER_SEC + fraction_ns - (int64_t)now_ns;
    rtc->state.last_second = seconds;
}

static int64_t fraction(const struct rtc *rtc, uint64_t now_ns)
{
    int64_t utc = utc_at(rtc, now_ns);
    return utc - floor_div(utc, NS_PER_SEC) * NS_PER_SEC;
}

static bool is_time_register(uint8_t index)
{
    return index == SECONDS || index == MINUTES || index == HOURS || (index >= DAY_OF_WEEK && index <= YEAR) ||
           index == RTC_CENTURY;
}

/* ---- flags and the interrupt ---- */

/* 32.768 kHz ticks between periodic flags; 0: off. Rates 1 and 2 repeat 8 and 9 (datasheet, table 5). */
static uint32_t period_ticks(const struct rtc *rtc)
{
    unsigned rate = rtc->state.cmos[REG_A] & A_RATE;
    if (rate == 0 || (rtc->state.cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET)
        return 0;
    return 1u << ((rate <= 2 ? rate + 7 : rate) - 1);
}

static uint64_t periods_at(const struct rtc *rtc, uint64_t now_ns)
{
    uint32_t ticks = period_ticks(rtc);
    return ticks ? (uint64_t)((unsigned __int128)now_ns * CRYSTAL_HZ / NS_PER_SEC) / ticks : 0;
}

static bool alarm_field(uint8_t alarm, uint8_t now)
{
    return (alarm & ALARM_ANY) == ALARM_ANY || alarm == now;
}

static bool alarm_matches(const struct rtc *rtc, int64_t second)
{
    const uint8_t *cmos = rtc->state.cmos;
    int of_day = (int)(second - floor_div(second, SECONDS_PER_DAY) * SECONDS_PER_DAY);
    return alarm_field(cmos[SECONDS_ALARM], encode(rtc, of_day % 60)) &&
           alarm_field(cmos[MINUTES_ALARM], encode(rtc, of_day / 60 % 60)) &&
           alarm_field(cmos[HOURS_ALARM], encode_hour(rtc, of_day / 3600));
}

static void update_irq(struct rtc *rtc)
{
    uint8_t *cmos = rtc->state.cmos;
    bool level = cmos[REG_C] & cmos[REG_B] & (C_PF | C_AF | C_UF);
    cmos[REG_C] = (uint8_t)((cmos[REG_C] & ~C_IRQF) | (level ? C_IRQF : 0));
    irq_set(&rtc->irq8, level);
}

/* Bring the flags of register C up to now. */
static void settle(struct rtc *rtc, uint64_t now_ns)
{
    struct rtc_state *s = &rtc->state;
    uint8_t before = s->cmos[REG_C];
    uint64_t periods = periods_at(rtc, now_ns);
    if (periods > s->last_period)
        s->cmos[REG_C] |= C_PF;
    s->last_period = periods;
    int64_t second = floor_div(utc_at(rtc, now_ns), NS_PER_SEC);
    if (!held(rtc) && second > s->last_second) {
        s->cmos[REG_C] |= C_UF;
        int64_t from = second - s->last_second > SECONDS_PER_DAY ? second - SECONDS_PER_DAY : s->last_second;
        for (int64_t t = from + 1; t <= second && !(s->cmos[REG_C] & C_AF); t++)
            if (alarm_matches(rtc, t))
                s->cmos[REG_C] |= C_AF;
    }
    s->last_second = second;
    if (s->cmos[REG_C] != before)
        update_irq(rtc);
}

static void schedule(struct rtc *rtc, uint64_t now_ns)
{
    const uint8_t *cmos = rtc->state.cmos;
    uint8_t awaited = cmos[REG_B] & (uint8_t)~cmos[REG_C] & (B_PIE | B_AIE | B_UIE);
    uint64_t deadline = TIMER_NEVER;
    uint32_t ticks = period_ticks(rtc);
    if ((awaited & B_PIE) && ticks) {
        unsigned __int128 next = (unsigned __int128)(periods_at(rtc, now_ns) + 1) * ticks * NS_PER_SEC;
        deadline = (uint64_t)((next + CRYSTAL_HZ - 1) / CRYSTAL_HZ);
    }
    if ((awaited & (B_AIE | B_UIE)) && !held(rtc)) {
        uint64_t second = now_ns + (uint64_t)(NS_PER_SEC - fraction(rtc, now_ns));
        deadline = second < deadline ? second : deadline;
    }
    if (deadline == TIMER_NEVER)
        timer_cancel(rtc->timers, &rtc->timer);
    else
        timer_arm(rtc->timers, &rtc->timer, deadline);
}

static void timer_fired(void *opaque, uint64_t now_ns)
{
    settle(opaque, now_ns);
    schedule(opaque, now_ns);
}

/* ---- ports ---- */

static uint8_t read_register(struct rtc *rtc, uint64_t now_ns)
{
    struct rtc_state *s = &rtc->state;
    uint8_t value;
    settle(rtc, now_ns);
    switch (s->index) {
    case REG_A:
        value = s->cmos[REG_A];
        if (!held(rtc) && NS_PER_SEC - fraction(rtc, now_ns) <= UIP_NS)
            value |= A_UIP;
        return value;
    case REG_C: /* "all flag bits are cleared when register C is read" */
        value = s->cmos[REG_C];
        s->cmos[REG_C] = 0;
        update_irq(rtc);
        schedule(rtc, now_ns);
        return value;
    case REG_D:
        return D_VRT;
    default:
        if (is_time_register(s->index) && !held(rtc))
            store_time(rtc, now_ns);
        return s->cmos[s->index];
    }
}

static void write_register(struct rtc *rtc, uint8_t value, uint64_t now_ns)
{
    struct rtc_state *s = &rtc->state;
    settle(rtc, now_ns);
    bool was_held = held(rtc);
    bool divider_was_reset = (s->cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
    if (!was_held)
        store_time(rtc, now_ns); /* in the format of before */
    switch (s->index) {
    case REG_A:
        s->cmos[REG_A] = value & (uint8_t)~A_UIP;
        s->last_period = periods_at(rtc, now_ns);
        break;
    case REG_B:
        if (value & B_SET)
            value &= (uint8_t)~B_UIE; /* "the SET bit going high clears UIE" */
        s->cmos[REG_B] = value;
        if (!was_held && !held(rtc))
            store_time(rtc, now_ns); /* in the format of now: a running clock keeps its time */
        break;
    case REG_C:
    case REG_D:
        return;
    default:
        s->cmos[s->index] = value;
        if (is_time_register(s->index) && !was_held)
            load_time(rtc, now_ns, fraction(rtc, now_ns));
    }
    if (was_held && !held(rtc))
        load_time(rtc, now_ns, divider_was_reset ? DIVIDER_START_NS : fraction(rtc, now_ns));
    update_irq(rtc);
    schedule(rtc, now_ns);
}

static uint64_t rtc_read(void *device, uint64_t offset, unsigned size)
{
    struct rtc *rtc = device;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++) { /* the index port is write-only */
        uint8_t byte = (offset + i) & 1 ? read_register(rtc, timer_queue_now_ns(rtc->timers)) : 0xff;
        value |= (uint64_t)byte << (8 * i);
    }
    return value;
}

static void rtc_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct rtc *rtc = device;
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        if ((offset + i) & 1) {
            write_register(rtc, byte, timer_queue_now_ns(rtc->timers));
        } else {
            rtc->state.index = byte & 0x7f;
            rtc->state.nmi_masked = byte >> 7;
        }
    }
}

/* ---- the board's side ---- */

void rtc_set_cmos(struct rtc *rtc, uint8_t index, uint8_t value)
{
    if (index > REG_D && index < sizeof(rtc->state.cmos) && index != RTC_CENTURY)
        rtc->state.cmos[index] = value;
}

uint8_t rtc_get_cmos(const struct rtc *rtc, uint8_t index)
{
    return rtc->state.cmos[index & 0x7f];
}

int64_t rtc_utc_ns(const struct rtc *rtc)
{
    return utc_at(rtc, timer_queue_now_ns(rtc->timers));
}

bool rtc_nmi_masked(const struct rtc *rtc)
{
    return rtc->state.nmi_masked;
}

void rtc_reset(struct rtc *rtc)
{
    struct rtc_state *s = &rtc->state;
    settle(rtc, timer_queue_now_ns(rtc->timers)); /* what was due until now is among what is cleared */
    s->index = 0;
    s->nmi_masked = 0;
    s->cmos[REG_B] &= (uint8_t)~(B_PIE | B_AIE | B_UIE | B_SQWE);
    s->cmos[REG_C] = 0;
    timer_cancel(rtc->timers, &rtc->timer);
    irq_set(&rtc->irq8, false);
}

void rtc_loaded(struct rtc *rtc)
{
    schedule(rtc, timer_queue_now_ns(rtc->timers));
}

void rtc_init(struct rtc *rtc, struct timer_queue *timers, int64_t utc_base_ns, struct irq_line irq8)
{
    memset(rtc, 0, sizeof(*rtc));
    rtc->timers = timers;
    rtc->irq8 = irq8;
    timer_init(&rtc->timer, timer_fired, rtc);
    uint64_t now_ns = timer_queue_now_ns(timers);
    rtc->state.utc_base_ns = utc_base_ns;
    rtc->state.cmos[REG_A] = 0x26; /* 32.768 kHz, 1024 Hz: what firmware leaves behind */
    rtc->state.cmos[REG_B] = B_24H;
    rtc->state.last_second = floor_div(utc_at(rtc, now_ns), NS_PER_SEC);
    rtc->state.last_period = periods_at(rtc, now_ns);
}

const struct bus_ops rtc_ops = {rtc_read, rtc_write};
