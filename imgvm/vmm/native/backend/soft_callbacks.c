/* SPDX-License-Identifier: MIT */
/* What a processor in software asks of the world, and how several of them agree: about code that one has found or changed,
 * and about one that must execute alone. */
#include <sched.h>
#include <stdio.h>

#include "soft.h"

#define YIELD_TURNS 1024u /* of a loop that waits for another thread */


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
    return soft_now_ns(opaque);
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
    trace_line(c->engine->host.trace, soft_now_ns(c), c->index, "%s", text);
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

void soft_code_changed(void *opaque)
{
    struct soft_engine *engine = opaque;
    for (unsigned i = 0; i < engine->count; i++)
        cpu_look_up(engine->cpus[i].cpu);
}

struct cpu_callbacks soft_callbacks(const struct engine_host *host, unsigned cpus)
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
    return callbacks;
}
