/* SPDX-License-Identifier: MIT */
/* The callbacks of a processor around which nothing happens. Theirs is a uint64_t: the time, 10 ns on at each look. */
#ifndef IMGVM_TEST_QUIET_WORLD_H
#define IMGVM_TEST_QUIET_WORLD_H

#include "cpu/cpu.h"

static inline uint32_t quiet_port_read(void *opaque, uint16_t port, unsigned size)
{
    return (void)opaque, (void)port, (void)size, 0;
}
static inline void quiet_port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)opaque, (void)port, (void)size, (void)value;
}
static inline uint64_t quiet_mmio_read(void *opaque, uint64_t gpa, unsigned size) { return (void)opaque, (void)gpa, (void)size, 0; }
static inline void quiet_mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)opaque, (void)gpa, (void)size, (void)value;
}
static inline int quiet_acknowledge(void *opaque) { return (void)opaque, -1; }
static inline bool quiet_msr_read(void *opaque, uint32_t index, uint64_t *value)
{
    return (void)opaque, (void)index, *value = 0, true;
}
static inline bool quiet_msr_write(void *opaque, uint32_t index, uint64_t value)
{
    return (void)opaque, (void)index, (void)value, true;
}
static inline uint64_t quiet_cr8_read(void *opaque) { return (void)opaque, 0; }
static inline void quiet_cr8_write(void *opaque, uint64_t value) { (void)opaque, (void)value; }
static inline uint64_t quiet_time_ns(void *opaque) { return *(uint64_t *)opaque += 10; }
static const struct cpu_callbacks quiet_callbacks = {
    .port_read = quiet_port_read, .port_write = quiet_port_write, .mmio_read = quiet_mmio_read,
    .mmio_write = quiet_mmio_write, .interrupt_acknowledge = quiet_acknowledge, .msr_read = quiet_msr_read,
    .msr_write = quiet_msr_write, .cr8_read = quiet_cr8_read, .cr8_write = quiet_cr8_write, .time_ns = quiet_time_ns,
};

#endif
