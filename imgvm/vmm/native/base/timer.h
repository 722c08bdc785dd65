/* SPDX-License-Identifier: MIT */
/* One-shot timers ordered by deadline. A queue has one owner thread that runs it;
 * arming, cancelling and running happen under the lock of whoever owns the queue
 * (board.lock, or that of the processor whose local APIC it serves). Only timer_queue_next_ns may be called without it. */
#ifndef IMGVM_BASE_TIMER_H
#define IMGVM_BASE_TIMER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "clock.h"

#define TIMER_NEVER UINT64_MAX

struct timer {
    uint64_t deadline_ns;
    bool armed;
    void (*fire)(void *opaque, uint64_t now_ns);
    void *opaque;
    struct timer *next;
};

struct timer_queue {
    struct clock *clock;
    struct timer *head;
    _Atomic uint64_t next_ns;
    void (*kick)(void *opaque); /* called when the earliest deadline moved nearer; may be NULL */
    void *kick_opaque;
};

void timer_queue_init(struct timer_queue *queue, struct clock *clock);
uint64_t timer_queue_now_ns(const struct timer_queue *queue);
uint64_t timer_queue_next_ns(const struct timer_queue *queue); /* TIMER_NEVER when empty */
void timer_queue_run(struct timer_queue *queue); /* fires all that is due, earliest first */

void timer_init(struct timer *timer, void (*fire)(void *opaque, uint64_t now_ns), void *opaque);
void timer_arm(struct timer_queue *queue, struct timer *timer, uint64_t deadline_ns);
void timer_cancel(struct timer_queue *queue, struct timer *timer);

#endif
