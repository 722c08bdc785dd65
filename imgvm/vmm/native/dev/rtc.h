/* SPDX-License-Identifier: MIT */
/* The MC146818A real-time clock with 128 bytes of CMOS RAM.
 *
 * The board registers rtc_ops (2 ports at 70h), connects irq8, and stores what the firmware expects in the RAM
 * (memory sizes, boot order) with rtc_set_cmos. The time of day is utc_base_ns + the queue's clock until the
 * guest sets it. Everything runs under the board lock. */
#ifndef IMGVM_DEV_RTC_H
#define IMGVM_DEV_RTC_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/timer.h"
#include "../mem/bus.h"
#include "../mem/irq.h"

#define RTC_CENTURY 0x32

struct rtc_state { /* saved as it is */
    uint8_t cmos[128];   /* 0-9 and the century: valid while updates are stopped (B's SET, divider in reset) */
    uint8_t index;
    uint8_t nmi_masked;  /* bit 7 of port 70h */
    uint8_t pad[6];
    int64_t utc_base_ns; /* UTC (since 1970) at the clock's zero; moved when the guest sets the time */
    int64_t last_second; /* the update cycle whose flags (UF, AF) were raised last, in UTC seconds */
    uint64_t last_period; /* the same for PF, in periods since the clock's zero */
};

struct rtc {
    struct rtc_state state;
    struct timer_queue *timers;
    struct timer timer; /* runs only while an interrupt is enabled and its flag is clear */
    struct irq_line irq8;
};

extern const struct bus_ops rtc_ops;

void rtc_init(struct rtc *rtc, struct timer_queue *timers, int64_t utc_base_ns, struct irq_line irq8);
void rtc_reset(struct rtc *rtc); /* the RESET pin: RAM and time survive it */
void rtc_loaded(struct rtc *rtc);
/* A byte of RAM (index 0Eh..7Fh but the century); registers are left alone. */
void rtc_set_cmos(struct rtc *rtc, uint8_t index, uint8_t value);
uint8_t rtc_get_cmos(const struct rtc *rtc, uint8_t index);
int64_t rtc_utc_ns(const struct rtc *rtc);
bool rtc_nmi_masked(const struct rtc *rtc);

#endif
