/* SPDX-License-Identifier: MIT */
/* The local APIC's timer: SDM vol. 3, "APIC Timer" and "TSC-Deadline Mode". Both its clocks count nanoseconds; the
 * current count is computed from the moment the count began. A periodic timer whose host was late interrupts once and
 * keeps its phase: the IRR has one bit a vector, so a processor with interrupts disabled loses the same ticks. */
#include "lapic_internal.h"

static bool deadline_mode(const struct lapic *lapic)
{
    return lapic->state.lvt[LAPIC_LVT_TIMER] & LVT_TIMER_DEADLINE;
}

static bool periodic(const struct lapic *lapic)
{
    return (lapic->state.lvt[LAPIC_LVT_TIMER] & LVT_TIMER_MODE) == LVT_TIMER_PERIODIC;
}

/* DCR bits 3, 1, 0: 000 divides by 2, 001 by 4, ... 110 by 128, 111 by 1. */
static uint64_t divisor(const struct lapic *lapic)
{
    uint32_t dcr = lapic->state.timer_divide;
    return UINT64_C(1) << (((dcr & 3) + (dcr >> 1 & 4) + 1) & 7);
}

static uint32_t current_at(const struct lapic *lapic, uint64_t now)
{
    const struct lapic_state *s = &lapic->state;
    if (s->timer_initial == 0 || deadline_mode(lapic))
        return 0;
    uint64_t elapsed = (now - s->timer_start_ns) / divisor(lapic);
    if (periodic(lapic))
        return (uint32_t)(s->timer_initial - elapsed % s->timer_initial);
    return elapsed < s->timer_initial ? (uint32_t)(s->timer_initial - elapsed) : 0;
}

uint32_t lapic_timer_current(const struct lapic *lapic)
{
    return current_at(lapic, timer_queue_now_ns(lapic->timers));
}

/* A count that ends at `now` has been fired for; one that begins there has not, however short it is. */
static void schedule(struct lapic *lapic, uint64_t now)
{
    const struct lapic_state *s = &lapic->state;
    uint64_t deadline = TIMER_NEVER;
    if (deadline_mode(lapic)) {
        uint64_t tsc = now + *lapic->tsc_offset;
        if (s->tsc_deadline > tsc && s->tsc_deadline - tsc < TIMER_NEVER - now)
            deadline = now + (s->tsc_deadline - tsc);
        else if (s->tsc_deadline && s->tsc_deadline <= tsc)
            deadline = now;
    } else if (s->timer_initial) {
        uint64_t period = s->timer_initial * divisor(lapic), elapsed = now - s->timer_start_ns;
        if (periodic(lapic))
            deadline = s->timer_start_ns + (elapsed / period + 1) * period;
        else if (elapsed < period)
            deadline = s->timer_start_ns + period;
    }
    if (deadline == TIMER_NEVER)
        timer_cancel(lapic->timers, &lapic->timer);
    else
        timer_arm(lapic->timers, &lapic->timer, deadline);
}

void lapic_timer_schedule(struct lapic *lapic)
{
    schedule(lapic, timer_queue_now_ns(lapic->timers));
}

static void fired(void *opaque, uint64_t now_ns)
{
    struct lapic *lapic = opaque;
    (void)now_ns;
    if (deadline_mode(lapic))
        lapic->state.tsc_deadline = 0; /* "the timer disarms itself" */
    lapic_raise_lvt(lapic, LAPIC_LVT_TIMER);
    lapic_timer_schedule(lapic);
}

/* What is due comes before the register that is about to change. Returns the time until which that is so. */
static uint64_t run_due(struct lapic *lapic)
{
    uint64_t now = timer_queue_now_ns(lapic->timers);
    if (lapic->timer.armed && lapic->timer.deadline_ns <= now) {
        timer_cancel(lapic->timers, &lapic->timer);
        fired(lapic, now);
    }
    return now;
}

void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value)
{
    struct lapic_state *s = &lapic->state;
    run_due(lapic);
    if ((value ^ s->lvt[LAPIC_LVT_TIMER]) & LVT_TIMER_DEADLINE) { /* changing to or from that mode disarms */
        s->timer_initial = 0;
        s->tsc_deadline = 0;
    }
    s->lvt[LAPIC_LVT_TIMER] = value;
    lapic_timer_schedule(lapic);
}

void lapic_timer_write_initial(struct lapic *lapic, uint32_t value)
{
    run_due(lapic);
    if (deadline_mode(lapic)) /* "writes to the initial-count register are ignored" */
        return;
    lapic->state.timer_initial = value;
    lapic->state.timer_start_ns = timer_queue_now_ns(lapic->timers);
    schedule(lapic, lapic->state.timer_start_ns);
}

void lapic_timer_write_divide(struct lapic *lapic, uint32_t value)
{
    struct lapic_state *s = &lapic->state;
    uint64_t now = run_due(lapic);
    uint32_t done = s->timer_initial - current_at(lapic, now); /* goes on from the count it has reached */
    s->timer_divide = value & 0xb;
    s->timer_start_ns = now - done * divisor(lapic);
    schedule(lapic, now);
}

uint64_t lapic_timer_read_deadline(const struct lapic *lapic)
{
    return lapic->state.tsc_deadline;
}

void lapic_timer_write_deadline(struct lapic *lapic, uint64_t value)
{
    if (!deadline_mode(lapic)) /* "ignored"; reads give zero */
        return;
    run_due(lapic);
    lapic->state.tsc_deadline = value;
    lapic_timer_schedule(lapic);
    run_due(lapic); /* a deadline in the past interrupts at once */
}

void lapic_tsc_moved(struct lapic *lapic)
{
    if (!deadline_mode(lapic))
        return;
    lapic_timer_schedule(lapic);
    run_due(lapic);
}

void lapic_timer_init(struct lapic *lapic)
{
    timer_init(&lapic->timer, fired, lapic);
}
