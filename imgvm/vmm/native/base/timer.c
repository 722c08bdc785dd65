/* SPDX-License-Identifier: MIT */
#include "timer.h"

#include <stddef.h>

void timer_queue_init(struct timer_queue *queue, struct clock *clock)
{
    queue->clock = clock;
    queue->head = NULL;
    queue->kick = NULL;
    queue->kick_opaque = NULL;
    atomic_store(&queue->next_ns, TIMER_NEVER);
}

uint64_t timer_queue_now_ns(const struct timer_queue *queue)
{
    return clock_now_ns(queue->clock);
}

uint64_t timer_queue_next_ns(const struct timer_queue *queue)
{
    return atomic_load_explicit(&queue->next_ns, memory_order_acquire);
}

static void publish_next(struct timer_queue *queue)
{
    uint64_t next = queue->head ? queue->head->deadline_ns : TIMER_NEVER;
    uint64_t previous = atomic_exchange(&queue->next_ns, next);
    if (next < previous && queue->kick)
        queue->kick(queue->kick_opaque);
}

static void unlink_timer(struct timer_queue *queue, struct timer *timer)
{
    struct timer **link = &queue->head;
    while (*link && *link != timer)
        link = &(*link)->next;
    if (*link)
        *link = timer->next;
    timer->armed = false;
}

void timer_init(struct timer *timer, void (*fire)(void *opaque, uint64_t now_ns), void *opaque)
{
    *timer = (struct timer){.fire = fire, .opaque = opaque};
}

void timer_arm(struct timer_queue *queue, struct timer *timer, uint64_t deadline_ns)
{
    if (timer->armed)
        unlink_timer(queue, timer);
    struct timer **link = &queue->head;
    while (*link && (*link)->deadline_ns <= deadline_ns)
        link = &(*link)->next;
    timer->deadline_ns = deadline_ns;
    timer->next = *link;
    timer->armed = true;
    *link = timer;
    publish_next(queue);
}

void timer_cancel(struct timer_queue *queue, struct timer *timer)
{
    if (!timer->armed)
        return;
    unlink_timer(queue, timer);
    publish_next(queue);
}

void timer_queue_run(struct timer_queue *queue)
{
    uint64_t now = clock_now_ns(queue->clock);
    while (queue->head && queue->head->deadline_ns <= now) {
        struct timer *timer = queue->head;
        unlink_timer(queue, timer);
        timer->fire(timer->opaque, now);
    }
    publish_next(queue);
}
