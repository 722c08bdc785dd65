/* SPDX-License-Identifier: MIT */
/* The engine of the software processor: a cpu (cpu/cpu.h) a thread, timers on that thread, sleep when halted. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "../base/bits.h"
#include "../cpu/cpu.h"
#include "../cpu/jit/jit.h"
#include "../cpu/jit/lockstep.h"
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
    /* a halted processor waits here */
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    bool woken;
};

struct soft_engine {
    struct engine base;
    struct engine_host host;
    unsigned count;
    struct soft_cpu cpus[];
};

static struct soft_engine *soft_of(struct engine *engine)
{
    return container_of(engine, struct soft_engine, base);
}

/* ---- the processor's callbacks ---- */

static uint32_t on_port_read(void *opaque, uint16_t port, unsigned size)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.port_read(c->engine->host.opaque, port, size);
}

static void on_port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct soft_cpu *c = opaque;
    c->engine->host.port_write(c->engine->host.opaque, port, size, value);
}

static uint64_t on_mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.mmio_read(c->engine->host.opaque, c->index, gpa, size);
}

static void on_mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    struct soft_cpu *c = opaque;
    c->engine->host.mmio_write(c->engine->host.opaque, c->index, gpa, size, value);
}

static int on_interrupt_acknowledge(void *opaque)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.interrupt_acknowledge(c->engine->host.opaque, c->index);
}

static bool on_msr_read(void *opaque, uint32_t index, uint64_t *value)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.apic_msr_read(c->engine->host.opaque, c->index, index, value);
}

static bool on_msr_write(void *opaque, uint32_t index, uint64_t value)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.apic_msr_write(c->engine->host.opaque, c->index, index, value);
}

static uint64_t on_cr8_read(void *opaque)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.cr8_read(c->engine->host.opaque, c->index);
}

static void on_cr8_write(void *opaque, uint64_t value)
{
    struct soft_cpu *c = opaque;
    c->engine->host.cr8_write(c->engine->host.opaque, c->index, value);
}

static uint64_t on_time_ns(void *opaque)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.time_ns(c->engine->host.opaque);
}

static void on_tsc_offset_changed(void *opaque, uint64_t offset)
{
    struct soft_cpu *c = opaque;
    c->engine->host.tsc_offset_changed(c->engine->host.opaque, c->index, offset);
}

/* Two processors may wait for each other here: each honours the other's request meanwhile. */
static void on_code_page_added(void *opaque)
{
    struct soft_cpu *c = opaque;
    struct soft_engine *engine = c->engine;
    for (unsigned i = 0; i < engine->count; i++)
        if (i != c->index)
            cpu_request(engine->cpus[i].cpu, CPU_REQUEST_FLUSH);
    for (unsigned i = 0; i < engine->count; i++)
        while (i != c->index && cpu_flush_pending(engine->cpus[i].cpu)) {
            cpu_flush_now(c->cpu);
            __builtin_ia32_pause();
        }
}

/* ---- life ---- */

static void soft_destroy(struct engine *base)
{
    struct soft_engine *engine = soft_of(base);
    for (unsigned i = 0; i < engine->count; i++) {
        struct soft_cpu *c = &engine->cpus[i];
        cpu_destroy(c->cpu);
        pthread_cond_destroy(&c->wake);
        pthread_mutex_destroy(&c->sleep_lock);
    }
    free(engine);
}

static int soft_probe(imgvm_error *err)
{
    (void)err; /* it needs nothing but an x86-64 host, without which this would not have been compiled */
    return 0;
}

static int create(const struct engine_host *host, unsigned cpus, const struct engine_ops *ops,
                  const struct translator_ops *translator, struct engine **out, imgvm_error *err)
{
    struct cpu_callbacks callbacks = {
        on_port_read, on_port_write, on_mmio_read, on_mmio_write, on_interrupt_acknowledge, on_msr_read, on_msr_write,
        on_cr8_read, on_cr8_write, on_time_ns, cpus > 1 ? on_code_page_added : NULL,
        .tsc_offset_changed = on_tsc_offset_changed,
    };
    struct feature_set features;
    cpu_offered_features(cpus, &features);
    int r = host->wish ? cpu_wish_grant(host->wish, &features, &features, err) : 0;
    if (r < 0 || (r = cpu_install_trap_handlers(err)) < 0)
        return r;
    struct soft_engine *engine = calloc(1, sizeof *engine + cpus * sizeof engine->cpus[0]);
    if (!engine)
        return error_set(err, ENOMEM, "out of memory");
    engine->base.ops = ops;
    engine->host = *host;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (unsigned i = 0; i < cpus && r == 0; i++) {
        struct soft_cpu *c = &engine->cpus[i];
        struct cpu_options options = {.id = i, .count = cpus, .features = &features, .translator = translator,
                                      .translate_after = host->lockstep ? 0 : JIT_TRANSLATE_AFTER};
        c->engine = engine;
        c->index = i;
        pthread_mutex_init(&c->sleep_lock, NULL);
        pthread_cond_init(&c->wake, &monotonic);
        engine->count++;
        c->cpu = cpu_create(&callbacks, c, host->mem, &options, err);
        if (!c->cpu)
            r = -ENOMEM;
    }
    pthread_condattr_destroy(&monotonic);
    if (r < 0) {
        soft_destroy(&engine->base);
        return r;
    }
    *out = &engine->base;
    return 0;
}

static int interp_create(const struct engine_host *host, unsigned cpus, struct engine **out, imgvm_error *err)
{
    return create(host, cpus, &engine_soft_ops, NULL, out, err);
}

static int jit_create(const struct engine_host *host, unsigned cpus, struct engine **out, imgvm_error *err)
{
    return create(host, cpus, &engine_jit_ops, host->lockstep ? &lockstep_translator : &jit_translator, out, err);
}

/* ---- running ---- */

static void wake(struct soft_cpu *c)
{
    pthread_mutex_lock(&c->sleep_lock);
    c->woken = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->sleep_lock);
}

/* Sleeps until woken or until the machine's clock reaches deadline_ns. */
static void sleep_until(struct soft_cpu *c, uint64_t deadline_ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t now = on_time_ns(c);
    if (deadline_ns != UINT64_MAX) {
        uint64_t delta = deadline_ns > now ? deadline_ns - now : 0;
        uint64_t ns = (uint64_t)until.tv_nsec + delta % 1000000000u;
        until.tv_sec += (time_t)(delta / 1000000000u + ns / 1000000000u);
        until.tv_nsec = (long)(ns % 1000000000u);
    }
    pthread_mutex_lock(&c->sleep_lock);
    while (!c->woken && !cpu_has_work(c->cpu) && !atomic_load(&c->kicked)) {
        if (deadline_ns == UINT64_MAX)
            pthread_cond_wait(&c->wake, &c->sleep_lock);
        else if (pthread_cond_timedwait(&c->wake, &c->sleep_lock, &until) == ETIMEDOUT)
            break;
    }
    c->woken = false;
    pthread_mutex_unlock(&c->sleep_lock);
}

static uint64_t run_timers(struct soft_cpu *c)
{
    const struct engine_host *host = &c->engine->host;
    uint64_t next = host->timer_next_ns(host->opaque, c->index);
    if (next != UINT64_MAX && host->time_ns(host->opaque) >= next) {
        host->timer_run(host->opaque, c->index);
        next = host->timer_next_ns(host->opaque, c->index);
    }
    return next;
}

/* ---- debuggers ---- */

static int soft_set_points(struct engine *base, const struct engine_point *points, unsigned count, imgvm_error *err)
{
    struct soft_engine *engine = soft_of(base);
    _Static_assert(ENGINE_POINT_EXECUTE == CPU_POINT_EXECUTE && ENGINE_POINT_WRITE == CPU_POINT_WRITE &&
                       ENGINE_POINT_READ == CPU_POINT_READ, "kinds of points");
    struct cpu_point *list = calloc(count ? count : 1, sizeof *list);
    if (!list)
        return error_set(err, ENOMEM, "out of memory for %u breakpoints", count);
    for (unsigned i = 0; i < count; i++)
        list[i] = (struct cpu_point){points[i].linear, points[i].size, points[i].kinds};
    int result = 0;
    for (unsigned i = 0; i < engine->count && !result; i++)
        result = cpu_set_points(engine->cpus[i].cpu, list, count, err);
    free(list);
    return result;
}

static void soft_set_steps(struct engine *base, unsigned index, uint64_t steps, uint32_t go)
{
    struct soft_cpu *c = &soft_of(base)->cpus[index];
    c->steps = steps;
    c->wait = go & ENGINE_GO_WAIT;
    cpu_hold_interrupts(c->cpu, go & ENGINE_GO_QUIET);
    if (go & ENGINE_GO_PASS)
        cpu_pass_point(c->cpu);
}

static struct engine_stop soft_stop_of(struct engine *base, unsigned index)
{
    return soft_of(base)->cpus[index].stop;
}

static bool soft_translate(struct engine *base, unsigned index, uint64_t linear, uint64_t *gpa)
{
    return cpu_probe(soft_of(base)->cpus[index].cpu, linear, gpa);
}

/* After a piece of running: has the debugger's turn come? */
static bool debugger_stops(struct soft_cpu *c, enum cpu_exit exit, uint64_t done)
{
    struct cpu_hit hit;
    if (cpu_take_hit(c->cpu, &hit)) {
        const struct engine_point point = {hit.point.linear, hit.point.size, hit.point.kinds};
        c->stop = (struct engine_stop){ENGINE_STOP_POINT, point, hit.linear, hit.kinds};
        return true;
    }
    if (!c->steps)
        return false;
    if (done >= c->steps || (exit == CPU_EXIT_HALT && !c->wait)) {
        c->stop = (struct engine_stop){.reason = done >= c->steps ? ENGINE_STOP_STEPS : ENGINE_STOP_HALT};
        return true;
    }
    c->steps -= done;
    return false;
}

static enum engine_exit soft_run(struct engine *base, unsigned index)
{
    struct soft_cpu *c = &soft_of(base)->cpus[index];
    c->thread = pthread_self();
    atomic_store(&c->in_run, true);
    enum engine_exit result;
    for (;;) {
        uint64_t next = run_timers(c);
        if (atomic_exchange(&c->kicked, false)) {
            result = ENGINE_EXIT_KICKED;
            break;
        }
        cpu_set_deadline_ns(c->cpu, next);
        uint64_t before = cpu_instructions(c->cpu);
        enum cpu_exit exit = cpu_run_count(c->cpu, c->steps ? c->steps : UINT64_MAX);
        if (debugger_stops(c, exit, cpu_instructions(c->cpu) - before)) {
            result = ENGINE_EXIT_DEBUG;
            break;
        }
        if (exit == CPU_EXIT_HALT) {
            sleep_until(c, run_timers(c));
        } else if (exit == CPU_EXIT_SHUTDOWN) {
            result = ENGINE_EXIT_SHUTDOWN;
            break;
        } else if (exit == CPU_EXIT_INTERNAL) {
            result = ENGINE_EXIT_INTERNAL;
            break;
        }
    }
    atomic_store(&c->in_run, false);
    return result;
}

static void soft_kick(struct engine *base, unsigned index)
{
    struct soft_cpu *c = &soft_of(base)->cpus[index];
    atomic_store(&c->kicked, true);
    cpu_request(c->cpu, CPU_REQUEST_EXIT);
    wake(c);
}

static void soft_signal(struct engine *base, unsigned index, uint32_t signals, uint8_t sipi_vector)
{
    struct soft_cpu *c = &soft_of(base)->cpus[index];
    uint32_t requests = 0;
    if (signals & ENGINE_SIGNAL_NO_INTR)
        cpu_withdraw(c->cpu, CPU_REQUEST_INTR);
    if (signals & ENGINE_SIGNAL_INTR)
        requests |= CPU_REQUEST_INTR;
    if (signals & ENGINE_SIGNAL_NMI)
        requests |= CPU_REQUEST_NMI;
    if (signals & ENGINE_SIGNAL_INIT)
        requests |= CPU_REQUEST_INIT;
    if (signals & ENGINE_SIGNAL_SIPI) {
        cpu_set_sipi_vector(c->cpu, sipi_vector);
        requests |= CPU_REQUEST_SIPI;
    }
    if (signals & ENGINE_SIGNAL_TIMER)
        requests |= CPU_REQUEST_EXIT; /* to look at the timers anew */
    if (!requests)
        return;
    cpu_request(c->cpu, requests);
    if (!atomic_load(&c->in_run) || !pthread_equal(c->thread, pthread_self()))
        wake(c);
}

static const char *soft_message(struct engine *base, unsigned index)
{
    return cpu_message(soft_of(base)->cpus[index].cpu);
}

static uint64_t soft_instructions(struct engine *base)
{
    struct soft_engine *engine = soft_of(base);
    uint64_t sum = 0;
    for (unsigned i = 0; i < engine->count; i++)
        sum += cpu_instructions(engine->cpus[i].cpu);
    return sum;
}

static int soft_get_state(struct engine *base, unsigned index, struct x86_state *state, imgvm_error *err)
{
    (void)err;
    cpu_get_state(soft_of(base)->cpus[index].cpu, state);
    return 0;
}

static int soft_set_state(struct engine *base, unsigned index, const struct x86_state *state, imgvm_error *err)
{
    (void)err;
    cpu_set_state(soft_of(base)->cpus[index].cpu, state);
    return 0;
}

static void soft_set_a20(struct engine *base, bool enabled)
{
    struct soft_engine *engine = soft_of(base);
    for (unsigned i = 0; i < engine->count; i++)
        cpu_set_a20(engine->cpus[i].cpu, enabled);
}

#define SOFTWARE \
    .probe = soft_probe, \
    .destroy = soft_destroy, \
    .run = soft_run, \
    .kick = soft_kick, \
    .message = soft_message, \
    .instructions = soft_instructions, \
    .get_state = soft_get_state, \
    .set_state = soft_set_state, \
    .set_a20 = soft_set_a20, \
    .set_points = soft_set_points, \
    .set_steps = soft_set_steps, \
    .stop_of = soft_stop_of, \
    .translate = soft_translate, \
    .signal = soft_signal,

const struct engine_ops engine_soft_ops = {.name = "interp", .create = interp_create, SOFTWARE};
const struct engine_ops engine_jit_ops = {.name = "jit", .create = jit_create, SOFTWARE};
