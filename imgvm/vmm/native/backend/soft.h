/* SPDX-License-Identifier: MIT */
/* Shared by the files soft*.c. */
#ifndef IMGVM_BACKEND_SOFT_H
#define IMGVM_BACKEND_SOFT_H

#include <pthread.h>
#include <stdatomic.h>

#include "../base/bits.h"
#include "../cpu/cpu.h"
#include "alarm.h"
#include "backend.h"

struct soft_engine;

struct soft_cpu {
    struct soft_engine *engine;
    unsigned index;
    struct cpu *cpu;
    pthread_t thread; /* valid while in_run */
    _Atomic bool in_run, kicked;
    uint64_t steps; /* a debugger's: instructions left; 0: no limit */
    bool wait;      /* a halt does not end them */
    struct engine_stop stop;
    struct alarm alarm;
    char message[160]; /* why the engine could not run it; else the processor's own counts */
    _Atomic bool parked;      /* executes nothing while another processor is exclusive */
    uint64_t watch_ns;        /* how long its next halt watches */
    _Atomic uint32_t asleep;  /* futex: whoever has work for a halted processor makes it 0 and wakes it */
};

struct soft_engine {
    struct engine base;
    struct engine_host host;
    int perf_map_fd; /* ours; -1: none */
    unsigned count;
    unsigned host_cpus;      /* that we may use */
    _Atomic unsigned awake;  /* processors in `run` that do not sleep */
    _Atomic unsigned exclusive; /* 1 + the processor that executes alone; 0: none */
    struct soft_cpu cpus[];
};

static inline struct soft_engine *soft_of(struct engine *engine)
{
    return container_of(engine, struct soft_engine, base);
}

static inline uint64_t soft_now_ns(const struct soft_cpu *c)
{
    return c->engine->host.time_ns(c->engine->host.opaque);
}

/* soft_callbacks.c: what a processor asks of the world, and of the other processors. */
struct cpu_callbacks soft_callbacks(const struct engine_host *host, unsigned cpus);
/* guest_mem's code_changed */
void soft_code_changed(void *opaque);

/* soft_debug.c */
int soft_set_points(struct engine *base, const struct engine_point *points, unsigned count, imgvm_error *err);
void soft_set_steps(struct engine *base, unsigned index, uint64_t steps, uint32_t go);
struct engine_stop soft_stop_of(struct engine *base, unsigned index);
void soft_report_exceptions(struct engine *base, unsigned index, bool report);
bool soft_translate(struct engine *base, unsigned index, uint64_t linear, uint64_t *gpa);
/* After a piece of running: has the debugger's turn come? */
bool soft_debugger_stops(struct soft_cpu *c, enum cpu_exit exit, uint64_t done);

#endif
