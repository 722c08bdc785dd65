/* SPDX-License-Identifier: MIT */
/* needs: base/timer.c base/clock*.c base/host_tsc.c base/error.c mem/bus.c mem/guest_mem.c */
#include "base/timer.h"
#include "check.h"
#include "mem/bus.h"
#include "mem/guest_mem.h"

#include <errno.h>
#include <string.h>

static char order[8];
static void fire(void *opaque, uint64_t now_ns)
{
    (void)now_ns;
    strncat(order, opaque, 1);
}

static void test_timers_fire_in_order(void)
{
    struct clock clock;
    struct timer_queue queue;
    struct timer a, b, c;
    clock_init_virtual(&clock);
    timer_queue_init(&queue, &clock);
    timer_init(&a, fire, "a");
    timer_init(&b, fire, "b");
    timer_init(&c, fire, "c");
    timer_arm(&queue, &a, 300);
    timer_arm(&queue, &b, 100);
    timer_arm(&queue, &c, 200);
    CHECK_EQ(timer_queue_next_ns(&queue), 100);
    timer_cancel(&queue, &c);
    clock_advance(&clock, 150);
    timer_queue_run(&queue);
    CHECK(!strcmp(order, "b"));
    timer_arm(&queue, &b, 400);
    clock_advance(&clock, 1000);
    timer_queue_run(&queue);
    CHECK(!strcmp(order, "bab"));
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
}

static uint64_t last_offset, last_value;
static uint64_t dev_read(void *device, uint64_t offset, unsigned size)
{
    (void)size;
    return offset + (uintptr_t)device;
}
static void dev_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    (void)device;
    (void)size;
    last_offset = offset;
    last_value = value;
}

static void take_count(void *opaque, const char *group, const char *name, uint64_t value)
{
    static const char *const names[] = {"one", "two", "none"};
    unsigned i = 0;
    while (i < 3 && strcmp(name, names[i]))
        i++;
    ((uint64_t *)opaque)[strcmp(group, "ports") ? 3 : i] += value;
}

/* What a device asks for happens once, when the lock is free. */
static struct bus waking;
static unsigned woken;

static void wake(void *opaque)
{
    CHECK_EQ(pthread_mutex_trylock(waking.lock), 0);
    pthread_mutex_unlock(waking.lock);
    woken += *(unsigned *)opaque;
}

static void waking_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size, (void)value;
    CHECK(pthread_mutex_trylock(waking.lock) != 0);
    if (offset)
        bus_after(&waking, wake, device);
}

static void test_bus_after(void)
{
    static const struct bus_ops ops = {dev_read, waking_write};
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    unsigned step = 5;
    bus_init(&waking, &lock);
    CHECK_EQ(bus_add(&waking, 0x60, 4, &ops, &step, "one", NULL), 0);
    bus_write(&waking, 0x61, 1, 0);
    CHECK_EQ(woken, 5);
    bus_write(&waking, 0x60, 1, 0);
    CHECK_EQ(woken, 5);
    bus_write(&waking, 0x62, 2, 0);
    CHECK_EQ(woken, 10);
    bus_destroy(&waking);
}

static void test_bus(void)
{
    static const struct bus_ops ops = {dev_read, dev_write};
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct bus bus;
    imgvm_error err;
    bus_init(&bus, &lock);
    CHECK_EQ(bus_add(&bus, 0x60, 4, &ops, (void *)0x10, "one", &err), 0);
    CHECK_EQ(bus_add(&bus, 0x40, 4, &ops, (void *)0x20, "two", &err), 0);
    CHECK_EQ(bus_add(&bus, 0x42, 1, &ops, NULL, "three", &err), -EEXIST);
    CHECK(strstr(err.message, "two"));
    CHECK_EQ(bus_add(&bus, 0x3f, 2, &ops, NULL, "four", &err), -EEXIST);
    CHECK_EQ(bus_read(&bus, 0x61, 1), 0x11);
    CHECK_EQ(bus_read(&bus, 0x43, 1), 0x23);
    CHECK_EQ(bus_read(&bus, 0x44, 4), 0xffffffff);
    CHECK_EQ(bus_read(&bus, 0x43, 2), 0xff23);
    bus_write(&bus, 0x63, 2, 0xbbaa);
    CHECK_EQ(last_offset, 3);
    CHECK_EQ(last_value, 0xaa);
    CHECK(!strcmp(bus_name(&bus, 0x41), "two") && !strcmp(bus_name(&bus, 0x44), "none"));
    bus_remove(&bus, 0x60, (void *)0x10);
    CHECK_EQ(bus_read(&bus, 0x61, 1), 0xff);
    uint64_t found[4] = {0};
    bus_tell_counts(&bus, "ports", &(struct count_sink){take_count, found});
    CHECK_EQ(found[0], 2); /* one: also after it has gone */
    CHECK_EQ(found[1], 2); /* two: 43h, and 43h to 44h */
    CHECK_EQ(found[2], 2); /* none: 44h, and 61h */
    CHECK_EQ(found[3], 0);
    bus_destroy(&bus);
}

static void test_guest_memory(void)
{
    struct guest_mem mem;
    imgvm_error err;
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, 0x4000, false, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0x4000, 0x1000, true, &err), 0);
    CHECK(guest_mem_write(&mem, 0x3ffc, "abcd", 4));
    CHECK(!guest_mem_write(&mem, 0x3ffe, "abcd", 4));
    CHECK(guest_mem_load(&mem, 0x4000, "ROM", 4));
    char text[8];
    CHECK(guest_mem_read(&mem, 0x3ffd, text, 6));
    CHECK(!memcmp(text + 3, "ROM", 3));
    CHECK(!guest_mem_read(&mem, 0x4ffc, text, 8));
    CHECK(guest_mem_ptr(&mem, 0x4000, 4, true) == NULL);
    CHECK(guest_mem_ptr(&mem, 0x4000, 4, false) != NULL);

    const struct guest_region *region = guest_mem_find(&mem, 0x1000);
    guest_mem_mark_code(region, 0x1080, 0x80);
    guest_mem_write(&mem, 0x107f, "x", 1);
    CHECK_EQ(region->code_generation[1], 0);
    guest_mem_write(&mem, 0x107f, "xy", 2);
    CHECK_EQ(region->code_generation[1], 1);
    guest_mem_write(&mem, 0x1080, "z", 1);
    CHECK_EQ(region->code_generation[1], 1);
    guest_mem_destroy(&mem);
}

int main(void)
{
    test_timers_fire_in_order();
    test_bus();
    test_bus_after();
    test_guest_memory();
    return check_report();
}
