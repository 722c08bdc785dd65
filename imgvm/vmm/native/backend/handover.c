/* SPDX-License-Identifier: MIT */
#include "handover.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../base/bits.h"
#include "../cpu/cpu.h"

#define MOST_INSTRUCTIONS 65536u
#define NEAR_BYTES 4096u /* a failure this close to the last one is the same stretch of code */

struct handover {
    struct handover_host host;
    unsigned index;
    struct cpu *cpu;
    uint64_t count;    /* instructions of the next turn */
    uint64_t last_rip; /* where the last turn ended */
    char message[480];
};

/* ---- the processor's callbacks: ports and memory as KVM's exits serve them ---- */

static uint32_t on_port_read(void *opaque, uint16_t port, unsigned size)
{
    struct handover *h = opaque;
    return h->host.engine->port_read(h->host.engine->opaque, h->index, port, size);
}

static void on_port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct handover *h = opaque;
    h->host.engine->port_write(h->host.engine->opaque, h->index, port, size, value);
}

static uint64_t on_mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    struct handover *h = opaque;
    return h->host.engine->mmio_read(h->host.engine->opaque, h->index, gpa, size);
}

static void on_mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    struct handover *h = opaque;
    h->host.engine->mmio_write(h->host.engine->opaque, h->index, gpa, size, value);
}

/* Interrupts wait for KVM, whose local APIC has them. */
static int on_interrupt_acknowledge(void *opaque)
{
    (void)opaque;
    return -1;
}

static bool on_msr_read(void *opaque, uint32_t index, uint64_t *value)
{
    (void)opaque, (void)index, (void)value;
    return false;
}

static bool on_msr_write(void *opaque, uint32_t index, uint64_t value)
{
    (void)opaque, (void)index, (void)value;
    return false;
}

static uint64_t on_cr8_read(void *opaque)
{
    (void)opaque;
    return 0;
}

static void on_cr8_write(void *opaque, uint64_t value)
{
    (void)opaque, (void)value;
}

static uint64_t on_time_ns(void *opaque)
{
    const struct engine_host *host = ((struct handover *)opaque)->host.engine;
    return host->time_ns(host->opaque);
}

/* The chips in the kernel: an instruction that touches them is KVM's to execute. */
static bool on_may_access(void *opaque, bool port, uint64_t address)
{
    (void)opaque;
    if (port)
        return !((address & ~UINT64_C(0x81)) == 0x20 || (address >= 0x40 && address <= 0x43) || address == 0x61 ||
                 address == 0x4d0 || address == 0x4d1);
    return address >> 12 != 0xfec00 && address >> 12 != 0xfee00;
}

static void on_cpuid(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    struct handover *h = opaque;
    h->host.cpuid(h->host.opaque, leaf, subleaf, out);
}

int handover_create(const struct handover_host *host, unsigned index, struct handover **out, imgvm_error *err)
{
    static const struct cpu_callbacks callbacks = {
        .port_read = on_port_read, .port_write = on_port_write, .mmio_read = on_mmio_read, .mmio_write = on_mmio_write,
        .interrupt_acknowledge = on_interrupt_acknowledge, .msr_read = on_msr_read, .msr_write = on_msr_write,
        .cr8_read = on_cr8_read, .cr8_write = on_cr8_write, .time_ns = on_time_ns, .may_access = on_may_access,
        .cpuid = on_cpuid,
    };
    int r = cpu_install_trap_handlers(err);
    if (r < 0)
        return r;
    struct handover *handover = calloc(1, sizeof *handover);
    if (!handover)
        return error_set(err, ENOMEM, "out of memory");
    handover->host = *host;
    handover->index = index;
    handover->count = 1;
    struct feature_set features;
    cpu_offered_features(1, &features);
    for (size_t i = 0; host->features && i < ARRAY_LEN(features.bits); i++)
        features.bits[i] &= host->features->bits[i];
    struct cpu_options options = {.id = index, .count = 1, .features = &features, .vendor = host->vendor};
    handover->cpu = cpu_create(&callbacks, handover, host->engine->mem, &options, err);
    if (!handover->cpu) {
        free(handover);
        return -ENOMEM;
    }
    *out = handover;
    return 0;
}

void handover_destroy(struct handover *handover)
{
    if (!handover)
        return;
    cpu_destroy(handover->cpu);
    free(handover);
}

enum handover_result handover_run(struct handover *h, struct x86_state *state)
{
    bool near = state->rip - h->last_rip + NEAR_BYTES < 2 * NEAR_BYTES;
    h->count = near ? MIN(h->count * 2, MOST_INSTRUCTIONS) : 1;
    state->tsc_offset = h->host.tsc(h->host.opaque) - on_time_ns(h);
    /* What KVM's guest wrote in the meantime is not known here: cached code may be stale. */
    guest_mem_forget_code(h->host.engine->mem);
    cpu_set_state(h->cpu, state);
    uint64_t before = cpu_instructions(h->cpu);
    enum cpu_exit exit = cpu_run_count(h->cpu, h->count);
    cpu_get_state(h->cpu, state);
    h->last_rip = state->rip;
    switch (exit) {
    case CPU_EXIT_SHUTDOWN:
        return HANDOVER_SHUTDOWN;
    case CPU_EXIT_INTERNAL:
        snprintf(h->message, sizeof h->message, "%s", cpu_message(h->cpu));
        return HANDOVER_FAILED;
    case CPU_EXIT_REFUSED:
        if (cpu_instructions(h->cpu) == before) {
            snprintf(h->message, sizeof h->message,
                     "neither KVM nor the software processor can execute the instruction at %04x:%#llx",
                     state->segment[CS].selector, (unsigned long long)state->rip);
            return HANDOVER_FAILED;
        }
        return HANDOVER_DONE;
    default:
        return HANDOVER_DONE;
    }
}

const char *handover_message(const struct handover *handover)
{
    return handover->message;
}

uint64_t handover_instructions(const struct handover *handover)
{
    return cpu_instructions(handover->cpu);
}
