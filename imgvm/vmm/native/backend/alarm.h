/* SPDX-License-Identifier: MIT */
/* Translated code does not look at the clock: a timer of the thread, whose signal sets one word, tells it. */
#ifndef IMGVM_BACKEND_ALARM_H
#define IMGVM_BACKEND_ALARM_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct cpu;

struct alarm {
    timer_t timer; /* of the thread between alarm_start and alarm_stop */
    bool started;
    uint64_t due_ns; /* the machine's time it is set for; UINT64_MAX: none */
};

/* cpu_clock_due(cpu) will be called on the calling thread, in a signal handler. 0 or -errno: a process has as many timers as
 * RLIMIT_SIGPENDING says. */
int alarm_start(struct alarm *alarm, struct cpu *cpu);
void alarm_stop(struct alarm *alarm);
/* At deadline_ns (UINT64_MAX: never), or earlier; then it is asked for again. `now_ns` is the same clock's. */
void alarm_set(struct alarm *alarm, uint64_t deadline_ns, uint64_t now_ns);

#endif
