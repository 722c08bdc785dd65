/* SPDX-License-Identifier: MIT */
/* What one processor decodes while others write there: until nobody can write unseen any more, nothing of it counts. The
 * moments that matter are reached by callbacks, which come in their midst. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "mode_world.h"

#define RAM_END (4u << 20) /* of the world; then MMIO */
#define GRANULE 0x80u

static struct world first, second; /* share first's memory */
static void (*on_code_added)(struct world *w, uint64_t gpa, bool more);
static void (*on_mmio_read)(void);

GUEST(one, 32, "mov $1, %eax\n hlt");
GUEST(one_at_the_end, 32, "mov $1, %al\n hlt");
GUEST(add_across_the_end, 32, "addl $1, 0x3ffffd\n hlt"); /* to one_at_the_end's 1, with a byte of MMIO */

static void put_code(uint64_t gpa, const uint8_t *begin, const uint8_t *end)
{
    CHECK(guest_mem_write(&first.mem, gpa, begin, (uint64_t)(end - begin)));
}
#define PUT_CODE(gpa, name) put_code(gpa, name##_begin, name##_end)

static void run_at(struct world *w, uint64_t rip)
{
    struct x86_state s;
    protected_mode(&first, &s);
    s.rip = rip;
    cpu_set_state(w->cpu, &s);
    CHECK_EQ(cpu_run(w->cpu), CPU_EXIT_HALT);
}

static uint64_t result(struct world *w)
{
    struct x86_state s;
    cpu_get_state(w->cpu, &s);
    return s.gpr[RAX];
}

static void code_added(void *opaque, uint64_t gpa, bool more)
{
    if (on_code_added)
        on_code_added(opaque, gpa, more);
}

static uint64_t mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    if (on_mmio_read)
        on_mmio_read();
    return world_mmio_read(opaque, gpa, size);
}

static struct cpu *make(struct world *w, unsigned id)
{
    static const struct cpu_callbacks callbacks = {
        .port_read = world_port_read, .port_write = world_port_write, .mmio_read = mmio_read,
        .mmio_write = world_mmio_write, .interrupt_acknowledge = world_acknowledge, .msr_read = quiet_msr_read,
        .msr_write = quiet_msr_write, .cr8_read = quiet_cr8_read, .cr8_write = quiet_cr8_write, .time_ns = world_time_ns,
        .code_added = code_added};
    struct cpu_options options = {.id = id, .count = 2, .translator = WORLD_TRANSLATOR,
                                  .translate_after = WORLD_TRANSLATE_AFTER};
    imgvm_error err;
    return cpu_create(&callbacks, w, &first.mem, &options, &err);
}

static void begin(void)
{
    world_init(&first);
    cpu_destroy(first.cpu);
    second.vector = -1;
    first.cpu = make(&first, 0);
    second.cpu = make(&second, 1);
    CHECK(first.cpu && second.cpu);
    on_code_added = NULL;
    on_mmio_read = NULL;
}

static void end(void)
{
    cpu_destroy(second.cpu);
    world_destroy(&first);
}

/* ---- a page that becomes code ---- */

static unsigned asked;

/* The first processor is asking; meanwhile the second decodes from the same page, has to ask as well, and a third, which has
 * not answered the first one yet, writes by its old translation before it answers the second. */
static void two_decode(struct world *w, uint64_t gpa, bool more)
{
    (void)gpa;
    if (more)
        return;
    asked++;
    if (w == &first && asked == 1)
        run_at(&second, CODE + 0x100);
    else if (w == &second)
        first.mem.regions[0].host[CODE + 0x101] = 2; /* nobody is told */
}

static void test_page_becomes_code(void)
{
    begin();
    on_code_added = two_decode;
    PUT_CODE(CODE, one);
    PUT_CODE(CODE + 0x100, one);
    run_at(&first, CODE);
    CHECK_EQ(result(&first), 1);
    CHECK_EQ(asked, 2);
    CHECK_EQ(result(&second), 2);
    CHECK_EQ(atomic_load(&first.mem.code_settling), 0);

    /* with nobody asking, more code of a page that has some costs nothing */
    PUT_CODE(CODE + 0x200, one);
    run_at(&second, CODE + 0x200);
    CHECK_EQ(asked, 2);
    end();
}

/* ---- more of a page that has code ---- */

static atomic_bool about_to_store, may_store;

static void wait_for(atomic_bool *flag)
{
    while (!atomic_load(flag))
        sched_yield();
}

/* Between the look at what is code and the store: the operand's other half is read. */
static void stop_before_store(void)
{
    atomic_store(&about_to_store, true);
    wait_for(&may_store);
}

/* As the engine does it. */
static void wait_for_store(struct world *w, uint64_t gpa, bool more)
{
    if (w != &first || !cpu_may_store_to(second.cpu, gpa))
        return;
    CHECK(more && !cpu_may_store_to(second.cpu, CODE));
    asked++;
    cpu_request(second.cpu, CPU_REQUEST_FLUSH);
    atomic_store(&may_store, true);
    while (cpu_flush_pending(second.cpu))
        sched_yield();
}

static void *store_across_the_end(void *unused)
{
    run_at(&second, CODE);
    return unused;
}

static void test_more_becomes_code_before_a_store(void)
{
    begin();
    PUT_CODE(RAM_END - GUEST_PAGE_SIZE, one);
    PUT_CODE(RAM_END - 4, one_at_the_end);
    PUT_CODE(CODE, add_across_the_end);
    run_at(&first, RAM_END - GUEST_PAGE_SIZE); /* now the page has code, and the granule at its end has none */

    on_mmio_read = stop_before_store;
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, store_across_the_end, NULL), 0);
    wait_for(&about_to_store);
    on_code_added = wait_for_store;
    asked = 0;
    run_at(&first, RAM_END - 4);
    CHECK_EQ(asked, 1);
    CHECK_EQ(result(&first) & 0xff, 2);
    CHECK_EQ(get(&first, RAM_END - 3, 1), 2);
    atomic_store(&may_store, true); /* nobody waited */
    pthread_join(thread, NULL);
    run_at(&first, RAM_END - 4);
    CHECK_EQ(result(&first) & 0xff, 2);
    CHECK(!cpu_may_store_to(second.cpu, RAM_END - GUEST_PAGE_SIZE));
    end();
}

/* ---- written by a device as often as it is decoded ---- */

static void device_writes(struct world *w, uint64_t gpa, bool more)
{
    (void)w, (void)more;
    put(&first, gpa + 1, ++asked, 1);
}

static void test_written_again_and_again(void)
{
    begin();
    PUT_CODE(CODE, one);
    on_code_added = device_writes;
    asked = 1;
    run_at(&first, CODE);
    CHECK(result(&first) <= asked);
    on_code_added = NULL;
    run_at(&first, CODE);
    CHECK_EQ(result(&first), asked);
    put(&first, CODE + 1, 77, 1);
    run_at(&first, CODE);
    CHECK_EQ(result(&first), 77);
    end();
}

int main(void)
{
    world_main_begin();
    if (!WORLD_TRANSLATOR) /* one thread runs both processors, one inside of the other */
        test_page_becomes_code();
    test_more_becomes_code_before_a_store();
    test_written_again_and_again();
    return check_report();
}
