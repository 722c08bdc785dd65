/* SPDX-License-Identifier: MIT */
/* The engine of the software processor: a cpu (cpu/cpu.h) a thread, timers on that thread, sleep when halted. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../base/bits.h"
#include "../base/futex.h"
#include "../cpu/cpu.h"
#include "../cpu/jit/jit.h"
#include "../cpu/jit/lockstep.h"
#include "alarm.h"
#include "backend.h"

/* How long a halted processor watches for work before it sleeps: between nothing and the first, by what came of it. */
#define WATCH_MAX_NS 200000u
#define WATCH_MIN_NS 10000u
#define YIELD_TURNS 1024u /* of a loop that waits for another thread */

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

static struct soft_engine *soft_of(struct engine *engine)
{
    return container_of(engine, struct soft_engine, base);
}

/* ---- the processor's callbacks ---- */

static uint32_t on_port_read(void *opaque, uint16_t port, unsigned size)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.port_read(c->engine->host.opaque, c->index, port, size);
}

static void on_port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct soft_cpu *c = opaque;
    c->engine->host.port_write(c->engine->host.opaque, c->index, port, size, value);
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

static uint64_t on_time_piece(void *opaque, struct clock_piece *out)
{
    struct soft_cpu *c = opaque;
    return c->engine->host.time_piece(c->engine->host.opaque, out);
}

static void on_tsc_offset_changed(void *opaque, uint64_t offset)
{
    struct soft_cpu *c = opaque;
    c->engine->host.tsc_offset_changed(c->engine->host.opaque, c->index, offset);
}

static void on_trace(void *opaque, const char *text)
{
    struct soft_cpu *c = opaque;
    trace_line(c->engine->host.trace, on_time_ns(c), c->index, "%s", text);
}

static void on_name_code(void *opaque, const void *start, size_t bytes, const char *name)
{
    struct soft_cpu *c = opaque;
    dprintf(c->engine->perf_map_fd, "%llx %zx %s\n", (unsigned long long)(uintptr_t)start, bytes, name);
}

/* A turn of a loop that waits for other processors; the host may have to run them first. */
static void wait_a_turn(struct soft_cpu *c, unsigned turn)
{
    cpu_flush_now(c->cpu); /* they may wait for that */
    if (turn % YIELD_TURNS)
        __builtin_ia32_pause();
    else
        sched_yield();
}

/* Two processors may wait for each other here: each honours the other's request meanwhile. */
static void on_code_added(void *opaque, uint64_t gpa, bool more)
{
    struct soft_cpu *c = opaque;
    struct soft_engine *engine = c->engine;
    bool asked = false;
    for (unsigned i = 0; i < engine->count; i++) {
        struct cpu *cpu = engine->cpus[i].cpu;
        if (i == c->index || (more && likely(!cpu_may_store_to(cpu, gpa))))
            continue;
        cpu_request(cpu, CPU_REQUEST_FLUSH);
        asked = true;
    }
    for (unsigned i = 0; asked && i < engine->count; i++)
        for (unsigned turn = 1; i != c->index && cpu_flush_pending(engine->cpus[i].cpu); turn++)
            wait_a_turn(c, turn);
}

/* Says first that it is parked, or no longer, and looks then who is exclusive; one that becomes exclusive does it the
 * other way round. So one of the two sees the other. */
static void on_park(void *opaque)
{
    struct soft_cpu *c = opaque;
    do {
        atomic_store(&c->parked, true);
        for (unsigned turn = 1; atomic_load(&c->engine->exclusive); turn++)
            wait_a_turn(c, turn);
        atomic_store(&c->parked, false);
    } while (atomic_load(&c->engine->exclusive));
}

static void on_exclusive(void *opaque, bool begin)
{
    struct soft_cpu *c = opaque;
    struct soft_engine *engine = c->engine;
    if (!begin) {
        atomic_store(&engine->exclusive, 0);
        return;
    }
    unsigned nobody = 0;
    while (!atomic_compare_exchange_strong(&engine->exclusive, &nobody, c->index + 1)) {
        nobody = 0;
        on_park(c);
    }
    for (unsigned i = 0; i < engine->count; i++)
        if (i != c->index)
            cpu_request(engine->cpus[i].cpu, CPU_REQUEST_PARK);
    for (unsigned i = 0; i < engine->count; i++) {
        struct soft_cpu *other = &engine->cpus[i];
        for (unsigned turn = 1; other != c && cpu_executes(other->cpu) && !atomic_load(&other->parked); turn++)
            wait_a_turn(c, turn);
    }
}

/* Perhaps whoever is waited for has no host processor to run on. */
static void on_pause(void *opaque)
{
    struct soft_cpu *c = opaque;
    if (atomic_load_explicit(&c->engine->awake, memory_order_relaxed) > c->engine->host_cpus)
        sched_yield();
}

static void on_code_changed(void *opaque)
{
    struct soft_engine *engine = opaque;
    for (unsigned i = 0; i < engine->count; i++)
        cpu_look_up(engine->cpus[i].cpu);
}

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
    struct cpu_callbacks callbacks = {
        on_port_read, on_port_write, on_mmio_read, on_mmio_write, on_interrupt_acknowledge, on_msr_read, on_msr_write,
        on_cr8_read, on_cr8_write, on_time_ns,
        .tsc_offset_changed = on_tsc_offset_changed, .trace = on_trace,
    };
    if (host->time_piece)
        callbacks.time_piece = on_time_piece;
    if (host->perf_map_fd)
        callbacks.name_code = on_name_code;
    if (cpus > 1) {
        callbacks.code_added = on_code_added;
        callbacks.exclusive = on_exclusive;
        callbacks.park = on_park;
        callbacks.pause = on_pause;
    }
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
    host->mem->code_changed = translator ? on_code_changed : NULL;
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
            uint64_t now = on_time_ns(c);
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
        uint64_t now = on_time_ns(c);
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
    uint64_t begin = on_time_ns(c);
    if (c->watch_ns && watch(c, begin + c->watch_ns, deadline_ns))
        return;
    sleep_until(c, deadline_ns);
    if (on_time_ns(c) - begin > WATCH_MAX_NS)
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

static void soft_report_exceptions(struct engine *base, unsigned index, bool report)
{
    cpu_report_exceptions(soft_of(base)->cpus[index].cpu, report);
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
        c->stop = (struct engine_stop){.reason = ENGINE_STOP_POINT, .point = point, .linear = hit.linear, .kinds = hit.kinds};
        return true;
    }
    struct cpu_exception exception;
    if (cpu_take_exception(c->cpu, &exception)) {
        c->stop = (struct engine_stop){.reason = ENGINE_STOP_EXCEPTION, .vector = exception.vector,
                                       .has_error_code = exception.has_error_code, .error_code = exception.error_code};
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

/* The next of the processor's own timers. */
static void expect(struct soft_cpu *c, uint64_t deadline_ns)
{
    cpu_set_deadline_ns(c->cpu, deadline_ns);
    alarm_set(&c->alarm, deadline_ns, on_time_ns(c));
}

static enum engine_exit soft_run(struct engine *base, unsigned index)
{
    struct soft_cpu *c = &soft_of(base)->cpus[index];
    c->thread = pthread_self();
    atomic_store(&c->in_run, true);
    atomic_fetch_add(&c->engine->awake, 1);
    prctl(PR_SET_TIMERSLACK, 1); /* a halted processor's next timer is not to come 50 us late */
    if (c->engine->base.ops == &engine_jit_ops)
        alarm_start(&c->alarm, c->cpu);
    enum engine_exit result;
    for (;;) {
        uint64_t next = run_timers(c);
        if (atomic_exchange(&c->kicked, false)) {
            result = ENGINE_EXIT_KICKED;
            break;
        }
        expect(c, next);
        uint64_t before = cpu_instructions(c->cpu);
        enum cpu_exit exit = cpu_run_count(c->cpu, c->steps ? c->steps : UINT64_MAX);
        if (debugger_stops(c, exit, cpu_instructions(c->cpu) - before)) {
            result = ENGINE_EXIT_DEBUG;
            break;
        }
        if (exit == CPU_EXIT_HALT) {
            wait_for_work(c, run_timers(c));
        } else if (exit == CPU_EXIT_SHUTDOWN) {
            result = ENGINE_EXIT_SHUTDOWN;
            break;
        } else if (exit == CPU_EXIT_INTERNAL) {
            result = ENGINE_EXIT_INTERNAL;
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
    return cpu_message(soft_of(base)->cpus[index].cpu);
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
