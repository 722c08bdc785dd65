/* SPDX-License-Identifier: MIT */
#include "lockstep_io.h"

#include "../exec/undo.h"

/* The block goes no further. */
static _Noreturn void not_the_same(struct lockstep_io *io)
{
    io->differs = true;
    __builtin_longjmp(io->cpu->landing, 1);
}

/* The next event of the record if it is this one; NULL: it is to happen now. Does not return when
 * the record says otherwise. */
static struct lockstep_event *played(struct lockstep_io *io, struct lockstep_event want, bool compare_value)
{
    if (io->phase == IO_REAL)
        return NULL;
    if (io->next == io->count) {
        if (io->phase != IO_REPLAY)
            return NULL;
        not_the_same(io);
    }
    struct lockstep_event *event = &io->event[io->next++];
    if (event->kind != want.kind || event->size != want.size || event->address != want.address ||
        (compare_value && event->value != want.value))
        not_the_same(io);
    return event;
}

/* Before something happens for the first time: is there room to remember it? */
static void make_room(struct lockstep_io *io)
{
    if (io->phase == IO_RECORD && io->count == LOCKSTEP_EVENTS)
        undo_abandon(io->cpu);
}

static void enter(struct lockstep_io *io, struct lockstep_event event)
{
    if (io->phase != IO_RECORD)
        return;
    io->event[io->count++] = event;
    io->next = io->count;
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    struct lockstep_io *io = opaque;
    struct lockstep_event event = {.kind = PORT_READ, .size = (uint8_t)size, .address = port}, *old = played(io, event, false);
    if (old)
        return (uint32_t)old->value;
    make_room(io);
    event.value = io->real.port_read(io->opaque, port, size);
    enter(io, event);
    return (uint32_t)event.value;
}

static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct lockstep_io *io = opaque;
    const struct lockstep_event event = {.kind = PORT_WRITE, .size = (uint8_t)size, .address = port, .value = value};
    if (played(io, event, true))
        return;
    make_room(io);
    io->real.port_write(io->opaque, port, size, value);
    enter(io, event);
}

static uint64_t mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    struct lockstep_io *io = opaque;
    struct lockstep_event event = {.kind = MMIO_READ, .size = (uint8_t)size, .address = gpa}, *old = played(io, event, false);
    if (old)
        return old->value;
    make_room(io);
    event.value = io->real.mmio_read(io->opaque, gpa, size);
    enter(io, event);
    return event.value;
}

static void mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    struct lockstep_io *io = opaque;
    const struct lockstep_event event = {.kind = MMIO_WRITE, .size = (uint8_t)size, .address = gpa, .value = value};
    if (played(io, event, true))
        return;
    make_room(io);
    io->real.mmio_write(io->opaque, gpa, size, value);
    enter(io, event);
}

static bool msr_read(void *opaque, uint32_t index, uint64_t *value)
{
    struct lockstep_io *io = opaque;
    struct lockstep_event event = {.kind = MSR_READ, .address = index}, *old = played(io, event, false);
    if (old) {
        *value = old->value;
        return old->ok;
    }
    make_room(io);
    event.ok = io->real.msr_read(io->opaque, index, value);
    event.value = *value;
    enter(io, event);
    return event.ok;
}

static bool msr_write(void *opaque, uint32_t index, uint64_t value)
{
    struct lockstep_io *io = opaque;
    struct lockstep_event event = {.kind = MSR_WRITE, .address = index, .value = value}, *old = played(io, event, true);
    if (old)
        return old->ok;
    make_room(io);
    event.ok = io->real.msr_write(io->opaque, index, value);
    enter(io, event);
    return event.ok;
}

static uint64_t cr8_read(void *opaque)
{
    struct lockstep_io *io = opaque;
    struct lockstep_event event = {.kind = CR8_READ}, *old = played(io, event, false);
    if (old)
        return old->value;
    make_room(io);
    event.value = io->real.cr8_read(io->opaque);
    enter(io, event);
    return event.value;
}

static void cr8_write(void *opaque, uint64_t value)
{
    struct lockstep_io *io = opaque;
    const struct lockstep_event event = {.kind = CR8_WRITE, .value = value};
    if (played(io, event, true))
        return;
    make_room(io);
    io->real.cr8_write(io->opaque, value);
    enter(io, event);
}

static uint64_t time_ns(void *opaque)
{
    struct lockstep_io *io = opaque;
    struct lockstep_event event = {.kind = TIME}, *old = played(io, event, false);
    if (old)
        return old->value;
    make_room(io);
    event.value = io->real.time_ns(io->opaque);
    enter(io, event);
    return event.value;
}

static void tsc_offset_changed(void *opaque, uint64_t offset)
{
    struct lockstep_io *io = opaque;
    const struct lockstep_event event = {.kind = TSC_MOVED, .value = offset};
    if (played(io, event, true))
        return;
    make_room(io);
    io->real.tsc_offset_changed(io->opaque, offset);
    enter(io, event);
}

/* What no block calls, or what may be answered twice. */
static int interrupt_acknowledge(void *opaque)
{
    struct lockstep_io *io = opaque;
    return io->real.interrupt_acknowledge(io->opaque);
}

static bool may_access(void *opaque, bool port, uint64_t address)
{
    struct lockstep_io *io = opaque;
    return io->real.may_access(io->opaque, port, address);
}

static void answer_cpuid(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    struct lockstep_io *io = opaque;
    io->real.cpuid(io->opaque, leaf, subleaf, out);
}

static void code_added(void *opaque, uint64_t gpa, bool more)
{
    struct lockstep_io *io = opaque;
    io->real.code_added(io->opaque, gpa, more);
}

static void trace(void *opaque, const char *text)
{
    struct lockstep_io *io = opaque;
    if (io->phase != IO_REPLAY)
        io->real.trace(io->opaque, text);
}

static void name_code(void *opaque, const void *start, size_t bytes, const char *name)
{
    struct lockstep_io *io = opaque;
    io->real.name_code(io->opaque, start, bytes, name);
}

void lockstep_io_attach(struct lockstep_io *io, struct cpu *cpu)
{
    io->cpu = cpu;
    io->real = cpu->callbacks;
    io->opaque = cpu->opaque;
    io->phase = IO_REAL;
    cpu->opaque = io;
    cpu->callbacks = (struct cpu_callbacks){
        port_read, port_write, mmio_read, mmio_write, interrupt_acknowledge, msr_read, msr_write, cr8_read, cr8_write, time_ns,
        .code_added = io->real.code_added ? code_added : NULL,
        .may_access = io->real.may_access ? may_access : NULL,
        .cpuid = io->real.cpuid ? answer_cpuid : NULL,
        .trace = trace,
        .name_code = io->real.name_code ? name_code : NULL,
        .tsc_offset_changed = io->real.tsc_offset_changed ? tsc_offset_changed : NULL,
    };
}
