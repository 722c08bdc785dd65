/* SPDX-License-Identifier: MIT */
/* A case in the software processor; and what is outside, for both. */
#include <stdlib.h>

#include "callbacks.h"
#include "versus.h"

struct ours {
    struct guest_mem mem;
    struct cpu *cpu;
    struct feature_set features;
    struct result *result;
    uint64_t now, cr8;
};

static void note(struct result *r, uint32_t kind, uint64_t address, unsigned size, uint64_t value)
{
    if (r->accesses < LOG)
        r->access[r->accesses] = (struct access){kind, size, address, value};
    r->accesses++;
}

uint64_t outside_read(struct result *r, uint32_t kind, uint64_t address, unsigned size)
{
    uint64_t value = 0;
    if (kind == 'i') {
        value = (address * 0x01010101 + 0x12345678) & (size == 4 ? 0xffffffff : (1u << (8 * size)) - 1);
        note(r, kind, address, size, value);
        return value;
    }
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)((address + i) * 37 >> 2);
        value |= (uint64_t)byte << (8 * i);
        note(r, kind, address + i, 1, byte);
    }
    return value;
}

void outside_write(struct result *r, uint32_t kind, uint64_t address, unsigned size, uint64_t value)
{
    if (kind == 'o') {
        note(r, kind, address, size, value & (size == 4 ? 0xffffffff : (1u << (8 * size)) - 1));
        return;
    }
    for (unsigned i = 0; i < size; i++)
        note(r, kind, address + i, 1, value >> (8 * i) & 0xff);
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    return (uint32_t)outside_read(((struct ours *)opaque)->result, 'i', port, size);
}
static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    outside_write(((struct ours *)opaque)->result, 'o', port, size, value);
}
static uint64_t mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    return outside_read(((struct ours *)opaque)->result, 'r', gpa, size);
}
static void mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    outside_write(((struct ours *)opaque)->result, 'w', gpa, size, value);
}
static int acknowledge(void *opaque)
{
    (void)opaque;
    return -1;
}
static uint64_t cr8_read(void *opaque)
{
    return ((struct ours *)opaque)->cr8;
}
static void cr8_write(void *opaque, uint64_t value)
{
    ((struct ours *)opaque)->cr8 = value;
}
static uint64_t time_ns(void *opaque)
{
    return ((struct ours *)opaque)->now += 10;
}

struct ours *ours_start(const struct feature_set *theirs)
{
    static const struct cpu_callbacks callbacks = CALLBACKS;
    imgvm_error err;
    struct ours *ours = calloc(1, sizeof *ours);
    if (!ours || cpu_install_trap_handlers(&err) < 0 || guest_mem_init(&ours->mem, &err) < 0 ||
        guest_mem_add(&ours->mem, 0, MEMORY_BYTES, false, &err) < 0)
        return NULL;
    cpu_offered_features(1, &ours->features);
    for (unsigned f = 1; f < FEATURE_COUNT; f++)
        if (!feature_set_has(theirs, f))
            feature_set_remove(&ours->features, f);
    struct cpu_options options = {.id = 0, .count = 1, .features = &ours->features};
    ours->cpu = cpu_create(&callbacks, ours, &ours->mem, &options, &err);
    return ours->cpu ? ours : NULL;
}

bool ours_has(const struct ours *ours, unsigned feature)
{
    return feature == FEATURE_BASE || feature_set_has(&ours->features, feature);
}

uint8_t *ours_memory(struct ours *ours)
{
    return ours->mem.regions[0].host;
}

void ours_run(struct ours *ours, const struct x86_state *state, struct result *r)
{
    guest_mem_forget_code(&ours->mem);
    ours->result = r;
    r->accesses = 0;
    ours->cr8 = state->cr8;
    cpu_set_state(ours->cpu, state);
    cpu_run_count(ours->cpu, 0); /* a new run: nothing is left of the last one */
    uint64_t before = cpu_instructions(ours->cpu);
    enum cpu_exit exit = cpu_run_count(ours->cpu, 1);
    if (exit == CPU_EXIT_REQUEST) {
        cpu_get_state(ours->cpu, &r->state);
        uint64_t at = r->state.segment[CS].base + r->state.rip;
        bool outside = at >= MEMORY_BYTES && !(r->state.cr0 & CR0_PG);
        if (r->state.rip != state->rip && (outside || (at < MEMORY_BYTES && ours_memory(ours)[at] != 0xf4))) {
            r->outcome = RUNS_ON; /* it has jumped to where no HLT is: what stands there is not the case */
            return;
        }
        exit = cpu_run_count(ours->cpu, 48);
    }
    r->instructions = (unsigned)(cpu_instructions(ours->cpu) - before);
    cpu_get_state(ours->cpu, &r->state);
    r->state.cr8 = ours->cr8;
    r->outcome = exit == CPU_EXIT_HALT       ? HALTED
                 : exit == CPU_EXIT_SHUTDOWN ? SHUTDOWN
                 : exit == CPU_EXIT_REQUEST  ? RUNS_ON
                                             : CANNOT;
    if (r->outcome == CANNOT)
        printf("the software processor stopped: %s\n", cpu_message(ours->cpu));
}

void ours_stop(struct ours *ours)
{
    cpu_destroy(ours->cpu);
    guest_mem_destroy(&ours->mem);
    free(ours);
}
