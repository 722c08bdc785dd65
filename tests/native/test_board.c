/* SPDX-License-Identifier: MIT */
/* needs: machine/board.c machine/interrupts.c machine/doorbell.c machine/report.c machine/acpi.c machine/aml.c machine/smbios.c */
/* needs: base/*.c mem/*.c dev/*.c dev/pci/*.c dev/virtio/*.c block/*.c */
/* libs: z zstd */
/* The board under an engine that only takes notes: memory, ports, and how interrupts travel. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "machine/board.h"

/* ---- an engine that executes nothing ---- */

struct notes {
    struct engine engine;
    uint32_t signals[ENGINE_CPUS_MAX];
    uint8_t sipi_vector[ENGINE_CPUS_MAX];
    bool a20;
} notes;

static int note_create(const struct engine_host *host, unsigned cpus, struct engine **out, imgvm_error *err)
{
    (void)host;
    (void)cpus;
    (void)err;
    *out = &notes.engine;
    return 0;
}
static void note_destroy(struct engine *engine) { (void)engine; }
static void note_a20(struct engine *engine, bool enabled) { (void)engine, notes.a20 = enabled; }
static void note_signal(struct engine *engine, unsigned cpu, uint32_t signals, uint8_t sipi_vector)
{
    (void)engine;
    if (signals & ENGINE_SIGNAL_NO_INTR)
        notes.signals[cpu] &= ~ENGINE_SIGNAL_INTR;
    notes.signals[cpu] |= signals;
    if (signals & ENGINE_SIGNAL_SIPI)
        notes.sipi_vector[cpu] = sipi_vector;
}

static const struct engine_ops note_ops = {
    .name = "notes", .create = note_create, .destroy = note_destroy, .set_a20 = note_a20, .signal = note_signal,
};

/* ---- what leaves the board ---- */

static char heard[256];
static uint32_t heard_status;
static void hear(const char *what) { strncat(heard, what, sizeof heard - strlen(heard) - 1); }
static void on_power_off(void *o) { (void)o, hear("off "); }
static void on_reset(void *o) { (void)o, hear("reset "); }
static void on_debug_exit(void *o, uint32_t status) { (void)o, heard_status = status, hear("debug "); }
static void on_exec(void *o, uint32_t status) { (void)o, heard_status = status, hear("exec "); }
static void on_panic(void *o) { (void)o, hear("panic "); }
static void on_output(void *o, const uint8_t *data, size_t size) { (void)o, (void)data, (void)size; }
static void on_ready(void *o) { (void)o; }

static struct board board;
static struct engine_host host;
static imgvm_error err;

static struct board_config config(unsigned cpus, uint64_t memory)
{
    return (struct board_config){.engine = &note_ops, .cpus = cpus, .memory_bytes = memory,
                                 .debug_exit = IMGVM_DEBUG_EXIT_RAW, .debug_exit_port = 0xf4, .entropy = true,
                                 .host = {on_power_off, on_reset, on_debug_exit, on_exec, on_panic, on_output, on_ready,
                                          on_ready, NULL}};
}

static void power_on(unsigned cpus, uint64_t memory)
{
    struct board_config c = config(cpus, memory);
    memset(&board, 0, sizeof board);
    memset(&notes, 0, sizeof notes);
    notes.engine.ops = &note_ops;
    heard[0] = 0;
    CHECK_EQ(board_init(&board, &c, &err), 0);
    CHECK_EQ(board_power_on(&board, &err), 0);
    host = interrupts_engine_host(&board);
    memset(notes.signals, 0, sizeof notes.signals);
}

static void out8(uint16_t port, uint8_t value) { host.port_write(&board, 0, port, 1, value); }
static void apic(unsigned cpu, uint32_t offset, uint32_t value) { host.mmio_write(&board, cpu, 0xfee00000u + offset, 4, value); }

static void enable_apics(void)
{
    for (unsigned i = 0; i < board.cpus; i++)
        apic(i, 0xf0, 0x1ff);
}

static bool interrupted(unsigned cpu) { return notes.signals[cpu] & ENGINE_SIGNAL_INTR; }

static void send_msi(uint64_t address, uint32_t data)
{
    pthread_mutex_lock(&board.lock);
    interrupts_send_msi(&board, address, data);
    pthread_mutex_unlock(&board.lock);
}

/* ---- memory ---- */

static const struct memory_range *range_at(uint64_t base)
{
    for (unsigned i = 0; i < board.map.count; i++)
        if (board.map.range[i].base == base)
            return &board.map.range[i];
    return NULL;
}

static void test_memory_map(void)
{
    power_on(1, UINT64_C(5) << 30);
    for (unsigned i = 1; i < board.map.count; i++)
        CHECK(board.map.range[i].base >= board.map.range[i - 1].base + board.map.range[i - 1].size);
    CHECK_EQ(range_at(0)->size, 0xa0000);
    CHECK_EQ(range_at(0x100000)->base + range_at(0x100000)->size, board.map.low_top);
    CHECK_EQ(range_at(board.map.low_top)->type, MEMORY_ACPI_NVS);
    CHECK_EQ(board.map.low_top + range_at(board.map.low_top)->size, UINT64_C(3) << 30);
    CHECK_EQ(range_at(UINT64_C(1) << 32)->size, UINT64_C(2) << 30);
    char signature[8];
    CHECK(guest_mem_read(&board.mem, board.map.rsdp, signature, 8) && !memcmp(signature, "RSD PTR ", 8));
    CHECK(guest_mem_ptr(&board.mem, 0xf0000, 16, true) == NULL);
    CHECK(notes.a20);
    board_destroy(&board);
    power_on(1, 2 << 20);
    CHECK(range_at(UINT64_C(1) << 32) == NULL);
    board_destroy(&board);
}

static void refuse(struct board_config c, int code, const char *words)
{
    memset(&board, 0, sizeof board);
    CHECK_EQ(board_init(&board, &c, &err), code);
    CHECK(strstr(err.message, words));
    board_destroy(&board);
}

static void test_bad_configurations(void)
{
    refuse(config(0, 64 << 20), -EINVAL, "processors");
    refuse(config(ENGINE_CPUS_MAX + 1, 64 << 20), -EINVAL, "processors");
    refuse(config(1, 1 << 20), -EINVAL, "2 MiB");
    refuse(config(1, (64 << 20) + 5), -EINVAL, "4096");
    refuse(config(1, UINT64_C(1) << 50), -EINVAL, "1 TiB");
    struct board_config c = config(1, 64 << 20);
    c.debug_exit_port = 0x3f8;
    refuse(c, -EEXIST, "serial port");
    CHECK(err.hint[0]);
}

/* ---- ways out ---- */

static void test_ways_out(void)
{
    power_on(1, 16 << 20);
    out8(0xf4, 9);
    CHECK_EQ(heard_status, 9);
    out8(0xcf9, 6);
    out8(0x64, 0xfe);
    out8(0x92, 3);
    host.port_write(&board, 0, 0x604, 2, 4 << 10 | 1 << 13); /* a sleep type that is not S5's */
    host.port_write(&board, 0, 0x604, 2, 5 << 10 | 1 << 13);
    out8(0x5f4, 3);
    CHECK_EQ(heard_status, 3);
    out8(0x505, 2);
    out8(0x505, 1);
    CHECK(!strcmp(heard, "debug reset reset reset off exec panic "));
    board_destroy(&board);
}

static void say(const char *text)
{
    while (*text)
        out8(0x3f8, (uint8_t)*text++);
}

static void test_panic_watch(void)
{
    power_on(1, 16 << 20);
    say("he said: Kernel panic - not syncing\n[ x] Kernel panic - not syncing: a\n");
    CHECK_EQ(board.report.panic_line[0], 0);
    say("---[ end Kernel panic - not syncing: nobody ]---\n");
    CHECK_EQ(heard[0], 0);
    say("\r\n[  12.345678] Kernel panic - not syncing: VFS: no root\r\nKernel panic - not syncing: another\n");
    CHECK(!strcmp(board.report.panic_line, "Kernel panic - not syncing: VFS: no root"));
    CHECK_EQ(heard[0], 0);
    for (unsigned i = 0; i < 5000; i++)
        say("x"); /* a line longer than is kept */
    say("\n---[ end Kernel panic - not syncing: VFS: no root ]---\r\n");
    CHECK(!strcmp(heard, "panic "));
    board_destroy(&board);
}

static void test_a20(void)
{
    power_on(1, 16 << 20);
    out8(0x92, 0);
    out8(0x64, 0xd1);
    out8(0x60, 0xdd); /* the keyboard controller's output port, bit 1 clear */
    CHECK(!notes.a20);
    out8(0x92, 2);
    CHECK(notes.a20);
    out8(0x92, 0);
    CHECK(!notes.a20);
    out8(0x64, 0xd1);
    out8(0x60, 0xdf);
    CHECK(notes.a20);
    board_destroy(&board);
}

/* ---- interrupts ---- */

static void test_pic_reaches_the_first_processor(void)
{
    static const uint8_t words[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1},
                                       {0xa0, 0x11}, {0xa1, 0x28}, {0xa1, 2}, {0xa1, 1}, {0x21, 0}, {0xa1, 0}};
    power_on(2, 16 << 20);
    for (unsigned i = 0; i < ARRAY_LEN(words); i++)
        out8(words[i][0], words[i][1]);
    pthread_mutex_lock(&board.lock);
    interrupts_set_pirq(&board, 0, true);
    pthread_mutex_unlock(&board.lock);
    CHECK(interrupted(0));
    CHECK(!interrupted(1));
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), 0x28 + board_pirq_isa[0] - 8);
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), -1);
    board_destroy(&board);
}

static void test_messages(void)
{
    power_on(4, 16 << 20);
    enable_apics();
    send_msi(0xfee00000u | 2 << 12, 0x55); /* fixed, physical: processor 2 */
    CHECK(interrupted(2) && !interrupted(0) && !interrupted(1) && !interrupted(3));
    CHECK_EQ(host.interrupt_acknowledge(&board, 2), 0x55);
    send_msi(0xfee00000u | 0xffu << 12, 0x66); /* everybody */
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(host.interrupt_acknowledge(&board, i), 0x66);
    for (unsigned i = 0; i < 4; i++) {
        apic(i, 0xb0, 0);
        apic(i, 0xb0, 0);
        apic(i, 0xd0, 1u << (24 + i)); /* logical addresses, flat */
        apic(i, 0x80, i == 1 ? 0x10 : 0x80);
    }
    send_msi(0xfee00000u | 0xfu << 12 | 0xc, 0x100 | 0x91); /* lowest priority among all four: processor 1 */
    CHECK_EQ(host.interrupt_acknowledge(&board, 1), 0x91);
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), -1);
    send_msi(0xfee00000u | 9u << 12 | 0x4, 0x92); /* logical 1001b: 0 and 3 */
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), 0x92);
    CHECK_EQ(host.interrupt_acknowledge(&board, 3), 0x92);
    CHECK_EQ(host.interrupt_acknowledge(&board, 2), -1);
    send_msi(0xfed00000u, 0x93); /* no message */
    send_msi(0xfee00000u | 1 << 12, 0x400); /* NMI */
    CHECK(notes.signals[1] & ENGINE_SIGNAL_NMI);
    board_destroy(&board);
}

static void test_processors_start(void)
{
    power_on(3, 16 << 20);
    apic(0, 0x300, 0xc4500);
    CHECK(!(notes.signals[0] & ENGINE_SIGNAL_INIT));
    CHECK((notes.signals[1] & notes.signals[2]) & ENGINE_SIGNAL_INIT);
    apic(0, 0x310, 2u << 24);
    apic(0, 0x300, 0x4608);
    CHECK(!(notes.signals[1] & ENGINE_SIGNAL_SIPI));
    CHECK(notes.signals[2] & ENGINE_SIGNAL_SIPI);
    CHECK_EQ(notes.sipi_vector[2], 8);
    memset(notes.signals, 0, sizeof notes.signals);
    apic(0, 0x300, 0x8500); /* INIT level de-assert */
    CHECK_EQ(notes.signals[2] & ENGINE_SIGNAL_INIT, 0);
    board_destroy(&board);
}

/* A level-triggered pin fires again after its end of interrupt while it stands. */
static void test_level_triggered_line(void)
{
    power_on(1, 16 << 20);
    enable_apics();
    host.mmio_write(&board, 0, 0xfec00000u, 4, 0x10 + 2 * 17);
    host.mmio_write(&board, 0, 0xfec00010u, 4, 0x8000 | 0x71);
    pthread_mutex_lock(&board.lock);
    interrupts_set_pirq(&board, 1, true);
    pthread_mutex_unlock(&board.lock);
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), 0x71);
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), -1);
    apic(0, 0xb0, 0);
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), 0x71);
    pthread_mutex_lock(&board.lock);
    interrupts_set_pirq(&board, 1, false);
    pthread_mutex_unlock(&board.lock);
    apic(0, 0xb0, 0);
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), -1);
    board_destroy(&board);
}

/* A bus access of another processor lasts as long as it likes: meanwhile a processor uses its own local APIC, sends and
 * takes interrupts and runs its timer. board.lock is no recursive mutex: one that took it here would wait for ever. */
static void test_local_apics_do_without_the_boards_lock(void)
{
    uint64_t value;
    power_on(3, 64 << 20);
    enable_apics();
    alarm(20);
    pthread_mutex_lock(&board.lock);
    apic(0, 0x310, 2u << 24);
    apic(0, 0x300, 0x51);
    CHECK(interrupted(2) && !interrupted(1));
    CHECK_EQ(host.interrupt_acknowledge(&board, 2), 0x51);
    apic(2, 0xb0, 0);
    CHECK_EQ(host.mmio_read(&board, 2, 0xfee00120, 4), 0);
    apic(0, 0x300, 3 << 18 | 0x61); /* all but itself */
    CHECK_EQ(host.interrupt_acknowledge(&board, 1), 0x61);
    CHECK_EQ(host.interrupt_acknowledge(&board, 2), 0x61);
    CHECK_EQ(host.interrupt_acknowledge(&board, 0), -1);
    apic(1, 0x320, 0x71);
    apic(1, 0x380, 1);
    while (host.time_ns(&board) <= host.timer_next_ns(&board, 1))
        ;
    host.timer_run(&board, 1);
    CHECK_EQ(host.timer_next_ns(&board, 1), TIMER_NEVER);
    host.cr8_write(&board, 1, 5);
    CHECK_EQ(host.cr8_read(&board, 1), 5);
    CHECK(host.apic_msr_read(&board, 1, 0x1b, &value) && value == 0xfee00800);
    host.cr8_write(&board, 1, 0);
    apic(1, 0xb0, 0);
    CHECK_EQ(host.interrupt_acknowledge(&board, 1), 0x71);
    pthread_mutex_unlock(&board.lock);
    alarm(0);
}

int main(void)
{
    test_memory_map();
    test_bad_configurations();
    test_ways_out();
    test_panic_watch();
    test_a20();
    test_pic_reaches_the_first_processor();
    test_messages();
    test_processors_start();
    test_level_triggered_line();
    test_local_apics_do_without_the_boards_lock();
    return check_report();
}
