/* SPDX-License-Identifier: MIT */
/* Intel 8254 (datasheet 231164), counters 0 (IRQ 0), 1 (refresh, historical) and 2 (speaker), and port 61h.
 *
 * Time is kept in ticks of the 1.193182 MHz clock, computed from the nanosecond clock; nothing counts. A count
 * written at tick t is loaded with the next clock pulse, t + 1 (section "Write Operations").
 *
 * When the host was late and several edges of counter 0 have passed, one is delivered at once and the others,
 * at most a second's worth, follow at up to four times the programmed rate: a guest that counts ticks keeps the
 * time, and none is buried under a storm.
 *
 * Not emulated: sound; the NMI sources that port 61h reports. */
#include "pit.h"

#include <string.h>

#define NS_PER_SEC 1000000000u
#define REFRESH_HALF_NS 15085 /* bit 4 of port 61h toggles with each refresh request */
#define CATCH_UP_MIN_NS 100000

#define PORT61_GATE2 0x01
#define PORT61_WRITABLE 0x0f
#define PORT61_REFRESH 0x10
#define PORT61_OUT2 0x20

/* Control word: SC1 SC0 RW1 RW0 M2 M1 M0 BCD */
#define CONTROL_SELECT(v) ((v) >> 6)
#define CONTROL_ACCESS(v) (((v) >> 4) & 3)
#define CONTROL_MODE(v) (((v) >> 1) & 7)
#define SELECT_READ_BACK 3
#define READ_BACK_NO_COUNT 0x20
#define READ_BACK_NO_STATUS 0x10
#define STATUS_OUT 0x80
#define STATUS_NULL_COUNT 0x40

static uint64_t ticks_from_ns(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * PIT_HZ / NS_PER_SEC);
}

static uint64_t ns_from_ticks(uint64_t ticks) /* the first nanosecond of that tick */
{
    return (uint64_t)(((unsigned __int128)ticks * NS_PER_SEC + PIT_HZ - 1) / PIT_HZ);
}

static uint64_t now_tick(const struct pit *pit)
{
    return ticks_from_ns(timer_queue_now_ns(pit->timers));
}

/* ---- one counter ---- */

static bool periodic(const struct pit_counter *c) { return c->mode == 2 || c->mode == 3; }
static bool triggered(const struct pit_counter *c) { return c->mode == 1 || c->mode == 5; }

/* Ticks for which mode 3 keeps OUT high: "(N + 1) / 2 counts". */
static uint32_t high_half(uint32_t count)
{
    return (count + 1) / 2;
}

/* Modes 2 and 3: next_count replaces count at switch_tick. */
static void adopt_next(struct pit_counter *c)
{
    /* At the end of mode 3's high half the new count begins with its own low half. */
    bool at_low_half = c->mode == 3 && (c->switch_tick - c->start_tick) % c->count != 0;
    c->count = c->next_count;
    c->start_tick = c->switch_tick - (at_low_half ? high_half(c->count) : 0);
    c->next_pending = 0;
}

static void settle(struct pit_counter *c, uint64_t tick)
{
    if (periodic(c) && c->next_pending && c->counting && !c->paused && tick >= c->switch_tick)
        adopt_next(c);
}

static uint64_t elapsed(const struct pit_counter *c, uint64_t tick)
{
    if (c->paused)
        return c->paused_ticks;
    return tick > c->start_tick ? tick - c->start_tick : 0;
}

static bool out_level(const struct pit_counter *c, uint64_t tick)
{
    if (!c->counting)
        return c->mode != 0;
    uint64_t e = elapsed(c, tick);
    switch (c->mode) {
    case 0:
    case 1:
        return e >= c->count;
    case 2:
        return c->paused || e % c->count != c->count - 1;
    case 3:
        return c->paused || e % c->count < high_half(c->count);
    default:
        return e != c->count;
    }
}

static uint16_t to_bcd(uint32_t v)
{
    return (uint16_t)(v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12);
}

static uint16_t current_value(const struct pit_counter *c, uint64_t tick)
{
    uint64_t e = elapsed(c, tick);
    uint32_t modulus = c->bcd ? 10000 : 0x10000, value = c->count;
    if (c->counting && c->mode == 2) {
        value = c->count - (uint32_t)(e % c->count);
    } else if (c->counting && c->mode == 3) { /* counts down by two, twice a period; an odd count loads N - 1 */
        uint32_t phase = (uint32_t)(e % c->count), half = high_half(c->count);
        value = (c->count & ~1u) - 2 * (phase < half ? phase : phase - half);
    } else if (c->counting) { /* "the counter does not stop when it reaches zero" */
        value = (uint32_t)((c->count + modulus - e % modulus) % modulus);
    }
    value %= modulus;
    return c->bcd ? to_bcd(value) : (uint16_t)value;
}

/* The first rising edge of OUT after `tick`. */
static uint64_t next_rising_edge(const struct pit_counter *c, uint64_t tick)
{
    if (!c->counting || c->paused)
        return TIMER_NEVER;
    if (!periodic(c)) {
        uint64_t edge = c->start_tick + c->count + (c->mode >= 4); /* modes 4 and 5: after a low strobe of one tick */
        return edge > tick ? edge : TIMER_NEVER;
    }
    uint64_t periods = tick > c->start_tick ? (tick - c->start_tick) / c->count : 0;
    uint64_t edge = c->start_tick + (periods + 1) * c->count;
    if (!c->next_pending || edge <= c->switch_tick)
        return edge;
    struct pit_counter after = *c;
    adopt_next(&after);
    return next_rising_edge(&after, c->switch_tick);
}

static void start(struct pit_counter *c, uint32_t count, uint64_t tick)
{
    c->count = count;
    c->start_tick = tick + 1;
    c->counting = 1;
    c->next_pending = 0;
    c->paused = !c->gate && !triggered(c);
    c->paused_ticks = 0;
}

static void write_count(struct pit_counter *c, uint16_t raw, uint64_t tick)
{
    uint32_t count = raw;
    if (c->bcd)
        count = (raw & 15u) + (raw >> 4 & 15u) * 10 + (raw >> 8 & 15u) * 100 + (raw >> 12 & 15u) * 1000;
    if (count == 0)
        count = c->bcd ? 10000 : 0x10000;
    if (triggered(c) || (periodic(c) && c->counting)) {
        if (!c->next_pending && periodic(c) && !c->paused) { /* the end of the period, or of mode 3's half-cycle */
            uint64_t e = elapsed(c, tick), phase = e % c->count;
            uint32_t end = c->mode == 3 && phase < high_half(c->count) ? high_half(c->count) : c->count;
            c->switch_tick = c->start_tick + e - phase + end;
        }
        c->next_count = count;
        c->next_pending = 1;
    } else {
        start(c, count, tick);
    }
}

static void set_gate(struct pit_counter *c, bool gate, uint64_t tick)
{
    if (gate == !!c->gate)
        return;
    settle(c, tick);
    c->gate = gate;
    if (triggered(c)) {
        if (gate && (c->next_pending || c->counting))
            start(c, c->next_pending ? c->next_count : c->count, tick);
    } else if (c->counting && !gate) {
        c->paused_ticks = elapsed(c, tick);
        c->paused = 1;
    } else if (c->counting && periodic(c)) { /* "the rising edge of GATE reloads the counter" */
        start(c, c->next_pending ? c->next_count : c->count, tick);
    } else if (c->counting) {
        c->paused = 0;
        c->start_tick = tick - c->paused_ticks;
    }
}

static void write_control(struct pit_counter *c, uint8_t value, uint64_t tick)
{
    c->count = current_value(c, tick); /* what a read shows until a count is written */
    c->mode = CONTROL_MODE(value) >= 6 ? CONTROL_MODE(value) - 4 : CONTROL_MODE(value); /* M2 is don't care in 2, 3 */
    c->access = CONTROL_ACCESS(value);
    c->bcd = value & 1;
    c->counting = c->paused = c->next_pending = 0;
    c->write_high = c->read_high = c->count_latched = c->status_latched = 0;
}

static void write_data(struct pit_counter *c, uint8_t value, uint64_t tick)
{
    if (c->access == 1) {
        write_count(c, value, tick);
    } else if (c->access == 2) {
        write_count(c, (uint16_t)(value << 8), tick);
    } else if (!c->write_high) {
        c->low_byte = value;
        c->write_high = 1;
        if (c->mode == 0) /* "writing the first byte disables counting; OUT is set low" */
            c->counting = 0;
    } else {
        c->write_high = 0;
        write_count(c, (uint16_t)(value << 8 | c->low_byte), tick);
    }
}

static void latch_count(struct pit_counter *c, uint64_t tick)
{
    if (c->count_latched)
        return;
    c->latched = current_value(c, tick);
    c->count_latched = 1;
}

static void latch_status(struct pit_counter *c, uint64_t tick)
{
    if (c->status_latched)
        return;
    c->status = (uint8_t)((out_level(c, tick) ? STATUS_OUT : 0) |
                          (c->next_pending || !c->counting ? STATUS_NULL_COUNT : 0) | c->access << 4 | c->mode << 1 |
                          c->bcd);
    c->status_latched = 1;
}

static uint8_t read_data(struct pit_counter *c, uint64_t tick)
{
    if (c->status_latched) {
        c->status_latched = 0;
        return c->status;
    }
    uint16_t value = c->count_latched ? c->latched : current_value(c, tick);
    bool high = c->access == 2 || (c->access == 3 && c->read_high);
    if (c->access == 3)
        c->read_high = !c->read_high;
    if (c->access != 3 || high)
        c->count_latched = 0;
    return (uint8_t)(high ? value >> 8 : value);
}

/* ---- counter 0's interrupt ---- */

static void drive(struct pit *pit, bool level)
{
    pit->state.line = level;
    irq_set(&pit->irq0, level);
}

static void schedule(struct pit *pit, uint64_t now_ns)
{
    struct pit_state *s = &pit->state;
    s->edge_tick = next_rising_edge(&s->counter[0], ticks_from_ns(now_ns));
    if (s->edge_tick == TIMER_NEVER) {
        timer_cancel(pit->timers, &pit->timer);
        return;
    }
    uint64_t deadline = ns_from_ticks(s->edge_tick);
    if (s->owed) {
        uint64_t quarter = ns_from_ticks(s->counter[0].count) / 4;
        uint64_t soon = now_ns + (quarter > CATCH_UP_MIN_NS ? quarter : CATCH_UP_MIN_NS);
        deadline = soon < deadline ? soon : deadline;
    }
    timer_arm(pit->timers, &pit->timer, deadline);
}

static void timer_fired(void *opaque, uint64_t now_ns)
{
    struct pit *pit = opaque;
    struct pit_state *s = &pit->state;
    struct pit_counter *c = &s->counter[0];
    uint64_t tick = ticks_from_ns(now_ns);
    if (s->edge_tick <= tick) {
        uint64_t edge = s->edge_tick;
        settle(c, tick);
        if (periodic(c)) {
            uint64_t limit = PIT_HZ / c->count, owed = s->owed + (tick - edge) / c->count;
            s->owed = (uint32_t)(owed < limit ? owed : limit);
        }
    } else if (s->owed) {
        s->owed--;
    }
    /* OUT fell somewhere before this edge (mode 2: one tick before); nobody needed to be told until now. */
    drive(pit, false);
    drive(pit, true);
    schedule(pit, now_ns);
}

/* An edge that is due comes before whatever the guest is about to program. */
static void run_due(struct pit *pit, uint64_t now_ns)
{
    if (!pit->timer.armed || pit->timer.deadline_ns > now_ns)
        return;
    timer_cancel(pit->timers, &pit->timer);
    timer_fired(pit, now_ns);
}

/* Counter 0 was programmed: OUT may have changed at once. */
static void counter0_changed(struct pit *pit, uint64_t now_ns)
{
    struct pit_counter *c = &pit->state.counter[0];
    bool out = out_level(c, ticks_from_ns(now_ns));
    if (out != !!pit->state.line)
        drive(pit, out);
    schedule(pit, now_ns);
}

/* ---- ports ---- */

static void write_read_back(struct pit *pit, uint8_t value, uint64_t tick)
{
    for (unsigned i = 0; i < 3; i++) {
        if (!(value & (2u << i)))
            continue;
        settle(&pit->state.counter[i], tick);
        if (!(value & READ_BACK_NO_COUNT))
            latch_count(&pit->state.counter[i], tick);
        if (!(value & READ_BACK_NO_STATUS))
            latch_status(&pit->state.counter[i], tick);
    }
}

static void write_port(struct pit *pit, unsigned port, uint8_t value)
{
    uint64_t now_ns = timer_queue_now_ns(pit->timers), tick = ticks_from_ns(now_ns);
    unsigned which = port == 3 ? CONTROL_SELECT(value) : port;
    if (port == 3 && which == SELECT_READ_BACK) {
        write_read_back(pit, value, tick);
        return;
    }
    struct pit_counter *c = &pit->state.counter[which];
    if (which == 0)
        run_due(pit, now_ns);
    settle(c, tick);
    if (port == 3 && CONTROL_ACCESS(value) == 0) {
        latch_count(c, tick);
        return;
    }
    if (port == 3) {
        write_control(c, value, tick);
        if (which == 0)
            pit->state.owed = 0;
    } else {
        write_data(c, value, tick);
    }
    if (which == 0)
        counter0_changed(pit, now_ns);
}

static uint64_t pit_read(void *device, uint64_t offset, unsigned size)
{
    struct pit *pit = device;
    uint64_t tick = now_tick(pit), value = 0;
    for (unsigned i = 0; i < size; i++) {
        unsigned port = (unsigned)(offset + i) & 3;
        uint8_t byte = 0xff; /* the control word register cannot be read */
        if (port != 3) {
            settle(&pit->state.counter[port], tick);
            byte = read_data(&pit->state.counter[port], tick);
        }
        value |= (uint64_t)byte << (8 * i);
    }
    return value;
}

static void pit_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        write_port(device, (unsigned)(offset + i) & 3, (uint8_t)(value >> (8 * i)));
}

static uint64_t port61_read(void *device, uint64_t offset, unsigned size)
{
    struct pit *pit = device;
    uint64_t now_ns = timer_queue_now_ns(pit->timers), tick = ticks_from_ns(now_ns);
    struct pit_counter *c = &pit->state.counter[2];
    (void)offset, (void)size;
    settle(c, tick);
    return pit->state.port61 | (now_ns / REFRESH_HALF_NS % 2 ? PORT61_REFRESH : 0u) |
           (out_level(c, tick) ? PORT61_OUT2 : 0u);
}

static void port61_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *pit = device;
    (void)offset, (void)size;
    pit->state.port61 = value & PORT61_WRITABLE;
    set_gate(&pit->state.counter[2], value & PORT61_GATE2, now_tick(pit));
}

static void power_on(struct pit *pit)
{
    memset(&pit->state, 0, sizeof(pit->state));
    for (unsigned i = 0; i < 3; i++) {
        pit->state.counter[i].access = 3;
        pit->state.counter[i].gate = i != 2; /* gates 0 and 1 are tied high */
    }
    pit->state.edge_tick = TIMER_NEVER;
}

void pit_reset(struct pit *pit)
{
    power_on(pit);
    timer_cancel(pit->timers, &pit->timer);
    irq_set(&pit->irq0, false);
}

void pit_loaded(struct pit *pit)
{
    timer_cancel(pit->timers, &pit->timer);
    if (pit->state.edge_tick != TIMER_NEVER)
        timer_arm(pit->timers, &pit->timer, ns_from_ticks(pit->state.edge_tick));
}

void pit_init(struct pit *pit, struct timer_queue *timers, struct irq_line irq0)
{
    pit->timers = timers;
    pit->irq0 = irq0;
    timer_init(&pit->timer, timer_fired, pit);
    power_on(pit);
}

const struct bus_ops pit_ops = {pit_read, pit_write};
const struct bus_ops pit_port61_ops = {port61_read, port61_write};
