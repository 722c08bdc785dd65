/* SPDX-License-Identifier: MIT */
/* The engine of the software processor: a cpu (cpu/cpu.h) a thread, timers on that thread, sleep when halted. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../base/futex.h"
#include "../cpu/jit/jit.h"
#include "../cpu/jit/lockstep.h"
#include "soft.h"

/* How long a halted processor watches for work before it sleeps: between nothing and the first, by what came of it. */
#define WATCH_MAX_NS 200000u
#define WATCH_MIN_NS 10000u

/* ---- life ---- */

static void soft_destroy(struct engine *base)
{
    struct soft_engine *engine = soft_of(base);
    engine->host.mem->code_changed = NULL;
    for (unsigned i = 0; i < engine->count; i++)
        cpu_destroy(engine->cpus[i].cpu);
    if (engine->perf_map_fd >= 0)
        close(engine->perf_map_fd);
    free(engine);
}

static int soft_probe(imgvm_error *err)
{
    (void)err; /* it needs nothing but an x86-64 host, without which this would not have been compiled */
    return 0;
}

static unsigned usable_host_cpus(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

static int create(const struct engine_host *host, unsigned cpus, const struct engine_ops *ops,
                  const struct translator_ops *translator, struct engine **out, imgvm_error *err)
{
    const struct cpu_callbacks callbacks = soft_callbacks(host, cpus);
    struct feature_set features;
    cpu_offered_features(cpus, &features);
    int r = host->wish ? cpu_wish_grant(host->wish, &features, &features, err) : 0;
    if (r < 0 || (r = cpu_install_trap_handlers(err)) < 0)
        return r;
    if (!host->wish || !feature_set_has(&host->wish->plus, FEATURE_LA57))
        feature_set_remove(&features, FEATURE_LA57); /* a fifth level to walk, for addresses that few guests want */
    struct soft_engine *engine = calloc(1, sizeof *engine + cpus * sizeof engine->cpus[0]);
    if (!engine)
        return error_set(err, ENOMEM, "out of memory");
    engine->base.ops = ops;
    engine->host = *host;
    engine->perf_map_fd = host->perf_map_fd ? fcntl(host->perf_map_fd, F_DUPFD_CLOEXEC, 0) : -1;
    engine->host_cpus = usable_host_cpus();
    for (unsigned i = 0; i < cpus && r == 0; i++) {
        struct soft_cpu *c = &engine->cpus[i];
        struct cpu_options options = {.id = i, .count = cpus, .features = &features,
                                      .vendor = cpu_wish_vendor(host->wish, cpu_host_vendor()), .translator = translator,
                                      .count_instructions = host->count, .traced = trace_kinds(host->trace),
                                      .translate_after = host->lockstep ? 0 : JIT_TRANSLATE_AFTER};
        c->engine = engine;
        c->index = i;
        engine->count++;
        c->cpu = cpu_create(&callbacks, c, host->mem, &options, err);
        if (!c->cpu)
            r = -ENOMEM;
    }
    if (r < 0) {
        soft_destroy(&engine->base);
        return r;
    }
    host->mem->code_changed_opaque = engine;
    host->mem->code_changed = translator ? soft_code_changed : NULL;
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
    if (atomic_load(&c->asleep) && atomic_exchange(&c->asleep, 0))
        futex_wake(&c->asleep, 1);
}

static bool has_work(struct soft_cpu *c)
{
    return cpu_has_work(c->cpu) || atomic_load(&c->kicked);
}

/* Looks for work, without sleeping, until end_ns or the deadline; true: there is some, or the deadline has come. A
 * processor that could run in this one's stead gets the host's: nothing is watched for then. */
static bool watch(struct soft_cpu *c, uint64_t end_ns, uint64_t deadline_ns)
{
    for (unsigned turn = 0; atomic_load_explicit(&c->engine->awake, memory_order_relaxed) <= c->engine->host_cpus; turn++) {
        if (has_work(c))
            return true;
        if (turn % 16 == 0) {
            uint64_t now = soft_now_ns(c);
            if (now >= deadline_ns)
                return true;
            if (now >= end_ns)
                return false;
        }
        __builtin_ia32_pause();
    }
    return false;
}

/* Sleeps until woken or until the machine's clock reaches deadline_ns. Whoever has work says so first and looks at
 * `asleep` then; here it is the other way round, so that one of the two sees the other. */
static void sleep_until(struct soft_cpu *c, uint64_t deadline_ns)
{
    atomic_store(&c->asleep, 1);
    if (!has_work(c)) {
        uint64_t now = soft_now_ns(c);
        atomic_fetch_sub(&c->engine->awake, 1);
        if (deadline_ns > now)
            futex_wait(&c->asleep, 1, deadline_ns == UINT64_MAX ? UINT64_MAX : deadline_ns - now);
        atomic_fetch_add(&c->engine->awake, 1);
    }
    atomic_store(&c->asleep, 0);
}

/* A halted processor watches for a while, as waking a thread takes tens of microseconds, and then sleeps. It watches
 * longer where that would have been enough, and not at all after a long sleep, so that an idle guest costs nothing. */
static void wait_for_work(struct soft_cpu *c, uint64_t deadline_ns)
{
    uint64_t begin = soft_now_ns(c);
    if (c->watch_ns && watch(c, begin + c->watch_ns, deadline_ns))
        return;
    sleep_until(c, deadline_ns);
    if (soft_now_ns(c) - begin > WATCH_MAX_NS)
        c->watch_ns = 0;
    else
        c->watch_ns = MIN(MAX(c->watch_ns * 2, (uint64_t)WATCH_MIN_NS), (uint64_t)WATCH_MAX_NS);
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

/* The next of the processor's own timers. */
static void expect(struct soft_cpu *c, uint64_t deadline_ns)
{
    cpu_set_deadline_ns(c->cpu, deadline_ns);
    alarm_set(&c->alarm, deadline_ns, soft_now_ns(c));
}

static bool start_alarm(struct soft_cpu *c)
{
    int failed = c->engine->base.ops == &engine_jit_ops ? alarm_start(&c->alarm, c->cpu) : 0;
    c->message[0] = 0;
    if (failed)
        snprintf(c->message, sizeof c->message, "processor %u cannot have a timer: %s (RLIMIT_SIGPENDING, `ulimit -i`)", c->index,
                 strerror(-failed));
    return !failed;
}

static enum engine_exit soft_run(struct engine *base, unsigned index)
{
    struct soft_cpu *c = &soft_of(base)->cpus[index];
    c->thread = pthread_self();
    atomic_store(&c->in_run, true);
    atomic_fetch_add(&c->engine->awake, 1);
    prctl(PR_SET_TIMERSLACK, 1); /* a halted processor's next timer is not to come 50 us late */
    enum engine_exit result = ENGINE_EXIT_INTERNAL;
    bool timed = start_alarm(c);
    while (timed) {
        uint64_t next = run_timers(c);
        if (atomic_exchange(&c->kicked, false)) {
            result = ENGINE_EXIT_KICKED;
            break;
        }
        expect(c, next);
        uint64_t before = cpu_instructions(c->cpu);
        enum cpu_exit exit = cpu_run_count(c->cpu, c->steps ? c->steps : UINT64_MAX);
        if (soft_debugger_stops(c, exit, cpu_instructions(c->cpu) - before)) {
            result = ENGINE_EXIT_DEBUG;
            break;
        }
        if (exit == CPU_EXIT_HALT) {
            wait_for_work(c, run_timers(c));
        } else if (exit == CPU_EXIT_SHUTDOWN) {
            result = ENGINE_EXIT_SHUTDOWN;
            break;
        } else if (exit == CPU_EXIT_INTERNAL) {
            break;
        }
    }
    alarm_stop(&c->alarm);
    atomic_fetch_sub(&c->engine->awake, 1);
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
    bool own = atomic_load(&c->in_run) && pthread_equal(c->thread, pthread_self());
    if (signals & ENGINE_SIGNAL_TIMER) {
        if (own)
            expect(c, c->engine->host.timer_next_ns(c->engine->host.opaque, index));
        else
            requests |= CPU_REQUEST_EXIT; /* to look at the timers anew */
    }
    if (!requests)
        return;
    cpu_request(c->cpu, requests);
    if (!own)
        wake(c);
}

static const char *soft_message(struct engine *base, unsigned index)
{
    const struct soft_cpu *c = &soft_of(base)->cpus[index];
    return c->message[0] ? c->message : cpu_message(c->cpu);
}

static uint64_t soft_instructions(struct engine *base)
{
    struct soft_engine *engine = soft_of(base);
    if (base->ops == &engine_jit_ops && !engine->host.count && !engine->host.lockstep)
        return IMGVM_UNCOUNTED;
    uint64_t sum = 0;
    for (unsigned i = 0; i < engine->count; i++)
        sum += cpu_instructions(engine->cpus[i].cpu);
    return sum;
}

static void soft_tell_counts(struct engine *base, const struct count_sink *sink)
{
    struct soft_engine *engine = soft_of(base);
    for (unsigned i = 0; i < engine->count; i++)
        cpu_tell_counts(engine->cpus[i].cpu, sink);
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
    .tell_counts = soft_tell_counts, \
    .get_state = soft_get_state, \
    .set_state = soft_set_state, \
    .set_a20 = soft_set_a20, \
    .set_points = soft_set_points, \
    .set_steps = soft_set_steps, \
    .stop_of = soft_stop_of, \
    .translate = soft_translate, \
    .report_exceptions = soft_report_exceptions, \
    .signal = soft_signal,

const struct engine_ops engine_soft_ops = {.name = "interp", .create = interp_create, SOFTWARE};
const struct engine_ops engine_jit_ops = {.name = "jit", .create = jit_create, SOFTWARE};
