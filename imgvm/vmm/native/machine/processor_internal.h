/* SPDX-License-Identifier: MIT */
/* Shared by processor.c and processor_run.c. */
#ifndef IMGVM_MACHINE_PROCESSOR_INTERNAL_H
#define IMGVM_MACHINE_PROCESSOR_INTERNAL_H

#include <pthread.h>
#include <time.h>

#include "../backend/backend.h"
#include "../base/clock.h"
#include "../include/imgvm_api.h"
#include "registers.h"

#define ACCESSES_KEPT 1024u

struct imgvm_processor {
    struct guest_mem mem;
    struct engine *engine;
    struct clock clock;
    struct x86_state state; /* the engine's when `fresh`; to be given back to it when `changed` */
    bool fresh, changed;
    const struct register_row *rip;
    uint64_t cr8;
    struct engine_point *points;
    unsigned point_count;
    bool stopped_before; /* the last run ended, so that a breakpoint here has been seen */
    uint32_t *port_value; /* of all 65536, once one was set */
    imgvm_access access[ACCESSES_KEPT];
    uint64_t accesses;

    /* The watchdog, a thread that the first run starts, ends a run in time. It sleeps until the end of the time that
     * was the run's when it went to sleep: runs that are over before cost it nothing. */
    pthread_t watchdog;
    bool has_watchdog;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed_state;
    bool running, expired, asked, closing, idle; /* idle: the watchdog waits for a run */
    struct timespec until, wakes;
};

/* The engine's state into p->state, unless that is fresh; and back, if it was changed. */
int processor_fetch_state(struct imgvm_processor *p, imgvm_error *err);
int processor_return_state(struct imgvm_processor *p, imgvm_error *err);

/* The watchdog, of a processor's whole life. */
void processor_begin_watch(struct imgvm_processor *p);
void processor_end_watch(struct imgvm_processor *p);

#endif
