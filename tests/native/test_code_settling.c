/* SPDX-License-Identifier: MIT */
/* A page becomes code while another processor decodes from it: until every processor has dropped its write translations, none
 * may count on being told of writes. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

static struct world first, second; /* share first's memory */
static unsigned asked;

GUEST(one, 32, "mov $1, %eax\n hlt");

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

/* The first processor is asking; meanwhile the second decodes from the same page, has to ask as well, and a third, which has
 * not answered the first one yet, writes by its old translation before it answers the second. */
static void code_page_added(void *opaque)
{
    struct world *w = opaque;
    asked++;
    if (w == &first && asked == 1)
        run_at(&second, CODE + 0x100);
    else if (w == &second)
        first.mem.regions[0].host[CODE + 0x101] = 2; /* nobody is told */
}

static struct cpu *make(struct world *w, unsigned id)
{
    static const struct cpu_callbacks callbacks = {
        .port_read = world_port_read, .port_write = world_port_write, .mmio_read = world_mmio_read,
        .mmio_write = world_mmio_write, .interrupt_acknowledge = world_acknowledge, .msr_read = world_msr_read,
        .msr_write = world_msr_write, .cr8_read = world_cr8_read, .cr8_write = world_cr8_write, .time_ns = world_time_ns,
        .code_page_added = code_page_added};
    struct cpu_options options = {.id = id, .count = 2};
    imgvm_error err;
    return cpu_create(&callbacks, w, &first.mem, &options, &err);
}

int main(void)
{
    world_main_begin();
    world_init(&first);
    cpu_destroy(first.cpu);
    second.vector = -1;
    first.cpu = make(&first, 0);
    second.cpu = make(&second, 1);
    CHECK(first.cpu && second.cpu);
    CHECK(guest_mem_write(&first.mem, CODE, one_begin, (uint64_t)(one_end - one_begin)));
    CHECK(guest_mem_write(&first.mem, CODE + 0x100, one_begin, (uint64_t)(one_end - one_begin)));
    run_at(&first, CODE);
    CHECK_EQ(result(&first), 1);
    CHECK_EQ(asked, 2);
    CHECK_EQ(result(&second), 2);
    CHECK_EQ(atomic_load(&first.mem.code_settling), 0);

    /* with nobody asking, more code of a page that has some costs nothing */
    CHECK(guest_mem_write(&first.mem, CODE + 0x200, one_begin, (uint64_t)(one_end - one_begin)));
    run_at(&second, CODE + 0x200);
    CHECK_EQ(asked, 2);
    cpu_destroy(second.cpu);
    world_destroy(&first);
    return check_report();
}
