/* SPDX-License-Identifier: MIT */
/* One processor and RAM from address 0, without a board: for tests and for looking at how instructions behave. What
 * it does to ports and to addresses beyond its memory is written down; a port answers with what it was told to. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../base/bits.h"
#include "inspect.h"
#include "processor_internal.h"

#define APIC_BASE 0x1bu

/* ---- the world around it ---- */

static void note(struct imgvm_processor *p, bool port, bool write, uint64_t address, unsigned size, uint64_t value)
{
    p->access[p->accesses++ % ACCESSES_KEPT] =
        (imgvm_access){.address = address, .value = value, .size = size, .is_port = port, .is_write = write};
}

static uint32_t port_read(void *opaque, unsigned cpu, uint16_t port, unsigned size)
{
    (void)cpu;
    struct imgvm_processor *p = opaque;
    uint32_t value = (p->port_value ? p->port_value[port] : ~0u) & (uint32_t)bits_mask_bytes(size);
    note(p, true, false, port, size, value);
    return value;
}

static void port_write(void *opaque, unsigned cpu, uint16_t port, unsigned size, uint32_t value)
{
    (void)cpu;
    note(opaque, true, true, port, size, value & bits_mask_bytes(size));
}

static uint64_t mmio_read(void *opaque, unsigned cpu, uint64_t gpa, unsigned size)
{
    (void)cpu;
    note(opaque, false, false, gpa, size, bits_mask_bytes(size));
    return ~UINT64_C(0);
}

static void mmio_write(void *opaque, unsigned cpu, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)cpu;
    note(opaque, false, true, gpa, size, value & bits_mask_bytes(size));
}

static uint64_t time_ns(void *opaque)
{
    return clock_now_ns(&((struct imgvm_processor *)opaque)->clock);
}

static int no_interrupt(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
    return -1;
}

static bool apic_msr_read(void *opaque, unsigned cpu, uint32_t index, uint64_t *value)
{
    (void)opaque, (void)cpu;
    *value = 0xfee00100; /* the bootstrap processor, its APIC off */
    return index == APIC_BASE;
}

static bool apic_msr_write(void *opaque, unsigned cpu, uint32_t index, uint64_t value)
{
    (void)opaque, (void)cpu, (void)value;
    return index == APIC_BASE;
}

static uint64_t cr8_read(void *opaque, unsigned cpu)
{
    (void)cpu;
    return ((struct imgvm_processor *)opaque)->cr8;
}

static void cr8_write(void *opaque, unsigned cpu, uint64_t value)
{
    (void)cpu;
    ((struct imgvm_processor *)opaque)->cr8 = value;
}

static uint64_t timer_next_ns(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
    return UINT64_MAX;
}

static void timer_run(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
}

/* ---- life ---- */

void imgvm_processor_destroy(imgvm_processor *p)
{
    if (!p)
        return;
    processor_end_watch(p);
    if (p->engine)
        p->engine->ops->destroy(p->engine);
    guest_mem_destroy(&p->mem);
    free(p->points);
    free(p->port_value);
    free(p);
}

int imgvm_processor_create(const imgvm_processor_config *config, imgvm_processor **out, imgvm_error *err)
{
    if (config->abi != IMGVM_ABI)
        return error_set(err, EINVAL, "the caller speaks version %u of the native interface, this is %d", config->abi, IMGVM_ABI);
    const struct engine_ops *ops = engine_find(config->engine);
    if (!ops)
        return error_set(err, EINVAL, "there is no engine %u", config->engine);
    if (!config->memory_bytes || config->memory_bytes % GUEST_PAGE_SIZE)
        return error_set(err, EINVAL, "memory of %" PRIu64 " bytes is no multiple of 4096", config->memory_bytes);
    struct cpu_wish wish;
    int result = cpu_wish_parse(&wish, config->cpu_model, config->cpu_features, config->cpu_vendor, err);
    if (result < 0)
        return result;
    struct imgvm_processor *p = calloc(1, sizeof *p);
    if (!p)
        return error_set(err, ENOMEM, "out of memory for a processor");
    processor_begin_watch(p);
    p->rip = register_find("rip");
    clock_init_real(&p->clock);
    const struct engine_host host = {
        .opaque = p, .mem = &p->mem, .wish = &wish, .port_read = port_read, .port_write = port_write, .mmio_read = mmio_read,
        .mmio_write = mmio_write, .time_ns = time_ns, .interrupt_acknowledge = no_interrupt,
        .apic_msr_read = apic_msr_read, .apic_msr_write = apic_msr_write, .cr8_read = cr8_read, .cr8_write = cr8_write,
        .timer_next_ns = timer_next_ns, .timer_run = timer_run,
    };
    result = guest_mem_init(&p->mem, err);
    if (!result)
        result = guest_mem_add(&p->mem, 0, config->memory_bytes, false, err);
    if (!result)
        result = ops->create(&host, 1, &p->engine, err);
    if (!result)
        result = imgvm_processor_reset(p, err);
    if (result < 0) {
        imgvm_processor_destroy(p);
        return result;
    }
    *out = p;
    return 0;
}

int imgvm_processor_reset(imgvm_processor *p, imgvm_error *err)
{
    x86_state_reset(&p->state, true);
    p->fresh = p->changed = true;
    p->stopped_before = false;
    p->accesses = 0;
    return p->engine->ops->irqchip ? p->engine->ops->reset_irqchip(p->engine, err) : 0;
}

/* ---- registers and memory ---- */

int processor_fetch_state(struct imgvm_processor *p, imgvm_error *err)
{
    if (p->fresh)
        return 0;
    int result = p->engine->ops->get_state(p->engine, 0, &p->state, err);
    p->fresh = !result;
    return result;
}

int processor_return_state(struct imgvm_processor *p, imgvm_error *err)
{
    if (!p->changed)
        return 0;
    int result = p->engine->ops->set_state(p->engine, 0, &p->state, err);
    p->changed = result < 0;
    return result;
}

static const struct register_row *find(const char *name, imgvm_error *err)
{
    const struct register_row *row = register_find(name);
    if (!row)
        error_set(err, ENOENT, "there is no register %s", name);
    return row;
}

int imgvm_processor_register(uint32_t index, const char **name)
{
    const struct register_row *row = register_at(index);
    if (!row)
        return -ENOENT;
    *name = row->name;
    return row->bytes;
}

int imgvm_processor_get(imgvm_processor *p, const char *name, uint8_t value[16], imgvm_error *err)
{
    const struct register_row *row = find(name, err);
    if (!row)
        return -ENOENT;
    int result = processor_fetch_state(p, err);
    if (result < 0)
        return result;
    memset(value, 0, REGISTER_BYTES_MAX);
    register_read(&p->state, row, value);
    return row->bytes;
}

/* A register has been written. Whoever says where to go on wakes a processor that halted or shut down, and what the
 * instruction before held back (interrupts, after STI and MOV SS) belongs to the past. */
static void written(struct imgvm_processor *p, const struct register_row *row)
{
    p->changed = true;
    p->stopped_before = false;
    if (row == p->rip) {
        p->state.activity = X86_RUNNING;
        p->state.interrupt_shadow = false;
    }
}

int imgvm_processor_set(imgvm_processor *p, const char *name, const uint8_t value[16], imgvm_error *err)
{
    const struct register_row *row = find(name, err);
    if (!row)
        return -ENOENT;
    int result = processor_fetch_state(p, err);
    if (result < 0)
        return result;
    for (unsigned i = row->bytes; i < REGISTER_BYTES_MAX; i++)
        if (value[i])
            return error_set(err, ERANGE, "the value is too large for %s, which has %u bits", name, row->bytes * 8);
    register_write(&p->state, row, value);
    written(p, row);
    return row->bytes;
}

static const struct register_row *row_of(const imgvm_register_part *part, imgvm_error *err)
{
    const struct register_row *row = register_at(part->index);
    if (row && part->first + part->bytes <= row->bytes)
        return row;
    error_set(err, EINVAL, "register %u has no bytes %u to %u", part->index, part->first, part->first + part->bytes);
    return NULL;
}

/* From `values` into the registers, or the other way round. */
static int move_parts(struct imgvm_processor *p, const imgvm_register_part *parts, uint32_t count, uint8_t *values, bool write,
                      imgvm_error *err)
{
    int result = processor_fetch_state(p, err);
    for (const imgvm_register_part *part = parts; part < parts + count && result == 0; values += part->bytes, part++) {
        uint8_t value[REGISTER_BYTES_MAX] = {0};
        const struct register_row *row = row_of(part, err);
        if (!row)
            return -EINVAL;
        if (!write || (part->bytes != row->bytes && !part->clears))
            register_read(&p->state, row, value);
        if (!write) {
            memcpy(values, value + part->first, part->bytes);
            continue;
        }
        memcpy(value + part->first, values, part->bytes);
        register_write(&p->state, row, value);
        written(p, row);
    }
    return result;
}

int imgvm_processor_get_parts(imgvm_processor *p, const imgvm_register_part *parts, uint32_t count, uint8_t *values,
                              imgvm_error *err)
{
    return move_parts(p, parts, count, values, false, err);
}

int imgvm_processor_set_parts(imgvm_processor *p, const imgvm_register_part *parts, uint32_t count, const uint8_t *values,
                              imgvm_error *err)
{
    return move_parts(p, parts, count, (uint8_t *)values, true, err);
}

int imgvm_processor_code_bits(imgvm_processor *p, uint64_t *linear_pc, imgvm_error *err)
{
    int result = processor_fetch_state(p, err);
    if (result < 0)
        return result;
    *linear_pc = register_linear_pc(&p->state);
    return (int)register_code_bits(&p->state);
}

static int transfer(struct imgvm_processor *p, uint64_t address, void *data, uint64_t size, bool physical, bool write,
                    imgvm_error *err)
{
    int result = physical ? 0 : processor_return_state(p, err); /* the page tables are the engine's to walk */
    if (result < 0)
        return result;
    const struct inspect inspect = {p->engine, &p->mem, 0, physical};
    uint64_t done = write ? inspect_write(&inspect, address, data, size) : inspect_read(&inspect, address, data, size);
    if (done == size)
        return 0;
    return error_set(err, EFAULT, "there is no memory at %s address %#" PRIx64, physical ? "physical" : "linear",
                     address + done);
}

int imgvm_processor_read(imgvm_processor *p, uint64_t address, void *data, uint64_t size, bool physical, imgvm_error *err)
{
    return transfer(p, address, data, size, physical, false, err);
}

int imgvm_processor_write(imgvm_processor *p, uint64_t address, const void *data, uint64_t size, bool physical,
                          imgvm_error *err)
{
    return transfer(p, address, (void *)data, size, physical, true, err);
}

int imgvm_processor_peek(imgvm_processor *p, const uint64_t *addresses, uint8_t *values, uint64_t count, bool physical,
                         imgvm_error *err)
{
    int result = 0;
    for (uint64_t i = 0; i < count && result == 0; i++)
        result = transfer(p, addresses[i], &values[i], 1, physical, false, err);
    return result;
}

int imgvm_processor_poke(imgvm_processor *p, const uint64_t *addresses, const uint8_t *values, uint64_t count, bool physical,
                         imgvm_error *err)
{
    int result = 0;
    for (uint64_t i = 0; i < count && result == 0; i++)
        result = transfer(p, addresses[i], (void *)&values[i], 1, physical, true, err);
    return result;
}

int imgvm_processor_report_exceptions(imgvm_processor *p, bool report, imgvm_error *err)
{
    if (!p->engine->ops->report_exceptions)
        return error_set(err, ENOTSUP, "the engine %s delivers exceptions itself", p->engine->ops->name);
    p->engine->ops->report_exceptions(p->engine, 0, report);
    return 0;
}

int imgvm_processor_set_port(imgvm_processor *p, uint16_t port, uint32_t value, imgvm_error *err)
{
    if (!p->port_value) {
        p->port_value = malloc(65536 * sizeof *p->port_value);
        if (!p->port_value)
            return error_set(err, ENOMEM, "out of memory for the ports");
        memset(p->port_value, 0xff, 65536 * sizeof *p->port_value);
    }
    p->port_value[port] = value;
    return 0;
}

void imgvm_processor_set_a20(imgvm_processor *p, bool enabled)
{
    p->engine->ops->set_a20(p->engine, enabled);
}

uint32_t imgvm_processor_accesses(imgvm_processor *p, imgvm_access *out, uint32_t room)
{
    uint64_t count = MIN(MIN(p->accesses, (uint64_t)ACCESSES_KEPT), (uint64_t)room);
    for (uint64_t i = 0; i < count; i++)
        out[i] = p->access[(p->accesses - count + i) % ACCESSES_KEPT];
    p->accesses = 0;
    return (uint32_t)count;
}

/* ---- break- and watchpoints ---- */

int imgvm_processor_add_point(imgvm_processor *p, uint64_t address, uint64_t size, uint32_t kinds, imgvm_error *err)
{
    if (!size || !kinds || (kinds & ~(IMGVM_POINT_EXECUTE | IMGVM_POINT_WRITE | IMGVM_POINT_READ)) || address + size - 1 < address)
        return error_set(err, EINVAL, "no such break- or watchpoint");
    struct engine_point *grown = realloc(p->points, (p->point_count + 1) * sizeof *grown);
    if (!grown)
        return error_set(err, ENOMEM, "out of memory for a breakpoint");
    p->points = grown;
    p->points[p->point_count] = (struct engine_point){address, size, kinds};
    int result = p->engine->ops->set_points(p->engine, p->points, p->point_count + 1, err);
    if (!result)
        p->point_count++;
    else
        p->engine->ops->set_points(p->engine, p->points, p->point_count, NULL);
    return result;
}

int imgvm_processor_remove_point(imgvm_processor *p, uint64_t address, uint64_t size, uint32_t kinds, imgvm_error *err)
{
    for (unsigned i = 0; i < p->point_count; i++) {
        const struct engine_point *point = &p->points[i];
        if (point->linear != address || point->size != size || point->kinds != kinds)
            continue;
        memmove(&p->points[i], &p->points[i + 1], (p->point_count - i - 1) * sizeof *point);
        return p->engine->ops->set_points(p->engine, p->points, --p->point_count, err);
    }
    return error_set(err, ENOENT, "there is no such point at %#" PRIx64, address);
}
