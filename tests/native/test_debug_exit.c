/* SPDX-License-Identifier: MIT */
/* needs: dev/debug_exit.c mem/bus.c base/error.c */
#include "check.h"
#include "dev/debug_exit.h"

static uint32_t status;
static unsigned calls;

static void on_exit_port(void *opaque, uint32_t value)
{
    (void)opaque;
    status = value;
    calls++;
}

/* Through a bus: a test program writes with outb, outw or outl, as it likes. */
static void test_mapping(uint32_t mapping, uint32_t (*expected)(uint32_t))
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct debug_exit device;
    struct bus bus;
    imgvm_error err;
    bus_init(&bus, &lock);
    debug_exit_init(&device, mapping, on_exit_port, NULL);
    CHECK_EQ(bus_add(&bus, 0xf4, 4, &debug_exit_ops, &device, "debug exit", &err), 0);
    calls = 0;
    bus_write(&bus, 0xf4, 1, 0x10);
    CHECK_EQ(status, expected(0x10));
    bus_write(&bus, 0xf4, 1, 0xff);
    CHECK_EQ(status, expected(0xff));
    bus_write(&bus, 0xf4, 2, 0xabcd);
    CHECK_EQ(status, expected(0xabcd));
    bus_write(&bus, 0xf4, 4, 0x7fffffff);
    CHECK_EQ(status, expected(0x7fffffff));
    bus_write(&bus, 0xf4, 4, 0);
    CHECK_EQ(status, expected(0));
    CHECK_EQ(calls, 5);
    CHECK_EQ(bus_read(&bus, 0xf4, 1), 0);
    CHECK_EQ(calls, 5);
    bus_destroy(&bus);
}

static uint32_t raw(uint32_t value) { return value; }
static uint32_t qemu(uint32_t value) { return value * 2 + 1; }

int main(void)
{
    test_mapping(IMGVM_DEBUG_EXIT_RAW, raw);
    test_mapping(IMGVM_DEBUG_EXIT_QEMU, qemu);
    return check_report();
}
