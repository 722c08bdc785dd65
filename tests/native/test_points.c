/* SPDX-License-Identifier: MIT */
/* A debugger's break- and watchpoints and steps on the software processor, through the engine's seam. */
// needs: base/error.c base/futex.c base/trace.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c backend/soft*.c backend/alarm.c
#include <errno.h>
#include <string.h>

#include "backend/backend.h"
#include "check.h"
#include "cpu/exec/points.h"

#define CODE 0x1000u

struct world {
    struct guest_mem mem;
    struct engine *engine;
    bool asked; /* timer_run ends endless runs */
};

static uint32_t port_read(void *opaque, unsigned cpu, uint16_t port, unsigned size)
{
    (void)opaque, (void)cpu, (void)port, (void)size;
    return 0;
}
static void port_write(void *opaque, unsigned cpu, uint16_t port, unsigned size, uint32_t value)
{
    struct world *w = opaque;
    (void)cpu, (void)port, (void)size, (void)value;
    w->engine->ops->kick(w->engine, 0);
}
static uint64_t mmio_read(void *opaque, unsigned cpu, uint64_t gpa, unsigned size)
{
    (void)opaque, (void)cpu, (void)gpa, (void)size;
    return 0;
}
static void mmio_write(void *opaque, unsigned cpu, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)opaque, (void)cpu, (void)gpa, (void)size, (void)value;
}
static uint64_t zero(void *opaque)
{
    (void)opaque;
    return 0;
}
static uint64_t zero_of(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
    return 0;
}
static uint64_t never(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
    return UINT64_MAX;
}
static int vector_0x40(void *opaque, unsigned cpu)
{
    (void)opaque, (void)cpu;
    return 0x40;
}

static void world_init(struct world *w, const uint8_t *code, size_t size)
{
    imgvm_error err = {0};
    memset(w, 0, sizeof *w);
    CHECK_EQ(guest_mem_init(&w->mem, &err), 0);
    CHECK_EQ(guest_mem_add(&w->mem, 0, 1 << 20, false, &err), 0);
    CHECK(guest_mem_write(&w->mem, CODE, code, size));
    struct engine_host host = {.opaque = w, .mem = &w->mem, .port_read = port_read, .port_write = port_write,
                               .mmio_read = mmio_read, .mmio_write = mmio_write, .time_ns = zero,
                               .interrupt_acknowledge = vector_0x40, .cr8_read = zero_of, .timer_next_ns = never};
    CHECK_EQ(engine_soft_ops.create(&host, 1, &w->engine, &err), 0);
    /* flat 32-bit protected mode */
    struct x86_state s;
    x86_state_reset(&s, true);
    s.cr0 |= CR0_PE;
    for (unsigned i = 0; i < 6; i++)
        s.segment[i] = (struct x86_segment){16, SEG_P | SEG_S | SEG_DB | SEG_G | 3, 0xffffffff, 0};
    s.segment[CS] = (struct x86_segment){8, SEG_P | SEG_S | SEG_DB | SEG_G | 11, 0xffffffff, 0};
    s.gpr[RSP] = 0x8000;
    s.rip = CODE;
    CHECK_EQ(w->engine->ops->set_state(w->engine, 0, &s, &err), 0);
}

static void world_destroy(struct world *w)
{
    w->engine->ops->destroy(w->engine);
    guest_mem_destroy(&w->mem);
}

static struct x86_state state_of(struct world *w)
{
    imgvm_error err;
    struct x86_state s;
    CHECK_EQ(w->engine->ops->get_state(w->engine, 0, &s, &err), 0);
    return s;
}

static enum engine_exit go(struct world *w, uint64_t steps, uint32_t how)
{
    w->engine->ops->set_steps(w->engine, 0, steps, how);
    return w->engine->ops->run(w->engine, 0);
}

static void set(struct world *w, const struct engine_point *points, unsigned count)
{
    imgvm_error err;
    CHECK_EQ(w->engine->ops->set_points(w->engine, points, count, &err), 0);
}

/* mov ecx, 5; 1: inc dword [0x3000]; add eax, [0x3ffe]; dec ecx; jnz 1b; out 0x80, al; jmp $ */
static const uint8_t loop[] = {0xb9, 5, 0, 0, 0, 0xff, 0x05, 0, 0x30, 0, 0, 0x03, 0x05, 0xfe, 0x3f, 0, 0,
                               0x49, 0x75, 0xf1, 0xe6, 0x80, 0xeb, 0xfe};
#define LOOP (CODE + 5)
#define ADD (CODE + 11)
#define DEC (CODE + 17)

static void test_breakpoints(void)
{
    struct world w;
    world_init(&w, loop, sizeof loop);
    struct engine *e = w.engine;
    /* cached code from before must notice them */
    CHECK_EQ(go(&w, 3, 0), ENGINE_EXIT_DEBUG);
    CHECK_EQ(e->ops->stop_of(e, 0).reason, ENGINE_STOP_STEPS);
    CHECK_EQ(state_of(&w).rip, DEC);
    const struct engine_point points[] = {{DEC, 1, ENGINE_POINT_EXECUTE}, {ADD, 1, ENGINE_POINT_EXECUTE}};
    set(&w, points, 2);
    CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_DEBUG); /* not passed: it stands on one */
    CHECK_EQ(state_of(&w).rip, DEC);
    CHECK_EQ(go(&w, 0, ENGINE_GO_PASS), ENGINE_EXIT_DEBUG);
    CHECK_EQ(state_of(&w).rip, ADD);
    CHECK_EQ(state_of(&w).gpr[RCX], 4);
    struct engine_stop stop = e->ops->stop_of(e, 0);
    CHECK_EQ(stop.reason, ENGINE_STOP_POINT);
    CHECK_EQ(stop.linear, ADD);
    CHECK_EQ(stop.kinds, ENGINE_POINT_EXECUTE);
    CHECK_EQ(go(&w, 100, ENGINE_GO_PASS), ENGINE_EXIT_DEBUG);
    CHECK_EQ(state_of(&w).rip, DEC);
    CHECK_EQ(go(&w, 1, ENGINE_GO_PASS), ENGINE_EXIT_DEBUG);
    CHECK_EQ(e->ops->stop_of(e, 0).reason, ENGINE_STOP_STEPS);
    CHECK_EQ(state_of(&w).rip, DEC + 1);
    set(&w, NULL, 0);
    CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_KICKED); /* by the port */
    CHECK_EQ(state_of(&w).gpr[RCX], 0);
    world_destroy(&w);
}

static void test_watchpoints(void)
{
    struct world w;
    world_init(&w, loop, sizeof loop);
    struct engine *e = w.engine;
    struct engine_point point = {0x3001, 1, ENGINE_POINT_WRITE};
    set(&w, &point, 1);
    uint32_t value = 0;
    for (unsigned i = 1; i <= 3; i++) {
        CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_DEBUG);
        CHECK_EQ(state_of(&w).rip, ADD); /* behind the writer */
        CHECK(guest_mem_read(&w.mem, 0x3000, &value, 4));
        CHECK_EQ(value, i);
        struct engine_stop stop = e->ops->stop_of(e, 0);
        CHECK_EQ(stop.reason, ENGINE_STOP_POINT);
        CHECK_EQ(stop.linear, 0x3001);
        CHECK_EQ(stop.kinds, ENGINE_POINT_WRITE);
    }
    /* a read that straddles two pages, seen on the second; the read of an increment counts as one too */
    const struct engine_point reads[] = {{0x4001, 100, ENGINE_POINT_READ}, {0x3000, 1, ENGINE_POINT_READ}};
    set(&w, reads, 2);
    CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_DEBUG);
    CHECK_EQ(state_of(&w).rip, DEC);
    CHECK_EQ(e->ops->stop_of(e, 0).linear, 0x4001);
    CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_DEBUG);
    CHECK_EQ(state_of(&w).rip, ADD);
    /* beside it nothing happens */
    point = (struct engine_point){0x3004, 8, ENGINE_POINT_WRITE | ENGINE_POINT_READ};
    set(&w, &point, 1);
    CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_KICKED);
    CHECK(guest_mem_read(&w.mem, 0x3000, &value, 4));
    CHECK_EQ(value, 5);
    world_destroy(&w);
}

/* What cannot be watched is refused, and what was watched before still is. */
static void test_bounds(void)
{
    struct world w;
    world_init(&w, loop, sizeof loop);
    const struct engine_ops *ops = w.engine->ops;
    const struct engine_point good = {0x3000, 4, ENGINE_POINT_WRITE};
    set(&w, &good, 1);
    imgvm_error err;
    const uint64_t large[] = {UINT64_C(1) << 29, UINT64_C(1) << 44, UINT64_C(1) << 63, UINT64_MAX};
    for (unsigned i = 0; i < ARRAY_LEN(large); i++) {
        struct engine_point points[] = {good, {0, large[i], ENGINE_POINT_READ}};
        CHECK_EQ(ops->set_points(w.engine, points, 2, &err), -ENOSPC);
        points[1].linear = 0x5000;
        CHECK_EQ(ops->set_points(w.engine, points, 2, &err), large[i] == UINT64_MAX ? -EINVAL : -ENOSPC);
    }
    CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_DEBUG);
    CHECK_EQ(state_of(&w).rip, ADD);
    struct engine_point many[5];
    for (unsigned i = 0; i < 5; i++)
        many[i] = (struct engine_point){i << 26, 1 << 26, ENGINE_POINT_WRITE};
    CHECK_EQ(ops->set_points(w.engine, many, 5, &err), -ENOSPC);
    set(&w, many, 3);
    const struct points last = {&(struct cpu_point){UINT64_MAX - 1, 2, CPU_POINT_WRITE}, .count = 1};
    CHECK(points_watch(&last, UINT64_MAX, 1));
    CHECK(!points_watch(&last, UINT64_MAX - 9, 8));
    world_destroy(&w);
}

/* mov ax, ss; sti; mov ss, ax; 1: nop; jmp 1b */
static const uint8_t shadow[] = {0x66, 0x8c, 0xd0, 0xfb, 0x90, 0x90, 0xeb, 0xfd, 0xf4};

static void test_interrupts_wait_for_the_debugger(void)
{
    struct world w;
    world_init(&w, shadow, sizeof shadow);
    struct engine *e = w.engine;
    const struct engine_point point = {CODE + 4, 1, ENGINE_POINT_EXECUTE}; /* in STI's shadow */
    set(&w, &point, 1);
    e->ops->signal(e, 0, ENGINE_SIGNAL_INTR, 0);
    CHECK_EQ(go(&w, 0, ENGINE_GO_QUIET), ENGINE_EXIT_DEBUG);
    CHECK_EQ(state_of(&w).rip, CODE + 4);
    CHECK_EQ(go(&w, 3, ENGINE_GO_QUIET | ENGINE_GO_PASS), ENGINE_EXIT_DEBUG);
    CHECK_EQ(state_of(&w).rip, CODE + 5);
    set(&w, NULL, 0);
    CHECK_EQ(go(&w, 0, 0), ENGINE_EXIT_SHUTDOWN); /* there is no IDT to take it */
    world_destroy(&w);
}

static void test_a_halt_ends_steps(void)
{
    struct world w;
    world_init(&w, (const uint8_t[]){0x90, 0xf4, 0x90}, 3);
    CHECK_EQ(go(&w, 10, 0), ENGINE_EXIT_DEBUG);
    CHECK_EQ(w.engine->ops->stop_of(w.engine, 0).reason, ENGINE_STOP_HALT);
    CHECK_EQ(state_of(&w).rip, CODE + 2);
    world_destroy(&w);
}

static void test_translation(void)
{
    struct world w;
    world_init(&w, loop, sizeof loop);
    uint64_t gpa = 0;
    CHECK(w.engine->ops->translate(w.engine, 0, 0x12345, &gpa));
    CHECK_EQ(gpa, 0x12345);
    struct x86_state s = state_of(&w);
    imgvm_error err;
    uint32_t entry = 0x6000 | PTE_P, leaf = 0x7000 | PTE_P;
    CHECK(guest_mem_write(&w.mem, 0x5000, &entry, 4));
    CHECK(guest_mem_write(&w.mem, 0x6000 + 4 * 2, &leaf, 4));
    s.cr3 = 0x5000;
    s.cr0 |= CR0_PG;
    CHECK_EQ(w.engine->ops->set_state(w.engine, 0, &s, &err), 0);
    CHECK(w.engine->ops->translate(w.engine, 0, 0x2abc, &gpa));
    CHECK_EQ(gpa, 0x7abc);
    CHECK(!w.engine->ops->translate(w.engine, 0, 0x3abc, &gpa));
    CHECK(guest_mem_read(&w.mem, 0x6000 + 4 * 2, &leaf, 4));
    CHECK_EQ(leaf, 0x7000 | PTE_P); /* a look leaves no mark */
    world_destroy(&w);
}

int main(void)
{
    test_breakpoints();
    test_watchpoints();
    test_bounds();
    test_interrupts_wait_for_the_debugger();
    test_a_halt_ends_steps();
    test_translation();
    return check_report();
}
