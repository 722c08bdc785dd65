/* SPDX-License-Identifier: MIT */
/* The same guests on every engine: tests/guest/machine.c, one boot a case. */
#ifndef IMGVM_TEST_GUEST_CASES_H
#define IMGVM_TEST_GUEST_CASES_H

#include <poll.h>
#include <time.h>

#include "guest_run.h"

static struct guest_run run;
static void *machine_kernel, *hello_kernel;
static size_t machine_size, hello_size;

static inline void boot(const imgvm_vm_config *config, const char *test, void (*with)(imgvm_vm *))
{
    guest_run(config, machine_kernel, machine_size, test, with, &run);
}

static inline void expect(const imgvm_vm_config *config, const char *test, uint32_t reason, uint32_t status)
{
    boot(config, test, NULL);
    if (!run.ended || run.result.reason != reason || run.result.status != status)
        printf("guest %s: reason %u, status %u: %s\n", test, run.result.reason, run.result.status, run.result.message);
    CHECK(run.ended);
    CHECK_EQ(run.result.reason, reason);
    CHECK_EQ(run.result.status, status);
}

static inline void add_modules(imgvm_vm *vm)
{
    static char second[5000];
    imgvm_error err;
    memset(second, 'z', sizeof second);
    CHECK_EQ(imgvm_vm_add_module(vm, "abcde", 5, "first one", &err), 0);
    CHECK_EQ(imgvm_vm_add_module(vm, second, sizeof second, "", &err), 0);
}

static inline void case_hello(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    config.cpus = 2;
    guest_run(&config, hello_kernel, hello_size, "name=first status=7", NULL, &run);
    CHECK(run.ended);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    CHECK_EQ(run.result.status, 7);
    CHECK(strstr(run.console, "Hello from first!\r\n"));
    CHECK(strstr(run.console, "processors  2 ("));
    CHECK(strstr(run.console, "memory      64 MiB"));
}

static inline void case_devices(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    config.entropy = true;
    const char *tests[] = {"pit", "apic-timer", "ioapic", "self-ipi", "exceptions", "rom", "pci", "memory"};
    for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++)
        expect(&config, tests[i], IMGVM_REASON_DEBUG_EXIT, 0);
    boot(&config, "modules", add_modules);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    CHECK_EQ(run.result.status, 0);
    config.cpus = 4;
    expect(&config, "smp4", IMGVM_REASON_DEBUG_EXIT, 0);
}

static imgvm_image *disk;

static inline void add_disk(imgvm_vm *vm)
{
    imgvm_error err;
    CHECK_EQ(imgvm_vm_add_disk(vm, disk, false, "serial", IMGVM_CACHE_WRITEBACK, true, &err), 0);
}

/* The guest copies sector 0 about, one interrupt a request. */
static inline void case_disk(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    imgvm_error err = {0};
    uint8_t sector[512] = {'D', [511] = 'K'};
    char path[64];
    snprintf(path, sizeof path, "%s/disk", guest_folder);
    CHECK_EQ(imgvm_image_create(path, 1 << 20, 0, &err), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &disk, &err), 0);
    CHECK_EQ(imgvm_image_write(disk, 0, sector, sizeof sector, &err), 0);
    boot(&config, "disk", add_disk);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    CHECK_EQ(run.result.status, 0);
    for (unsigned i = 1; i <= 20; i++) {
        CHECK_EQ(imgvm_image_read(disk, i * 512, sector, sizeof sector, &err), 0);
        CHECK(sector[0] == i && sector[511] == 'K');
    }
    CHECK_EQ(imgvm_image_close(disk, &err), 0);
}

static inline void case_linux_protocol(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    size_t size;
    void *kernel = guest_build("tests/guest/long_mode.S", true, &size);
    guest_run_as(GUEST_LINUX, &config, kernel, size, "k", NULL, &run);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    CHECK_EQ(run.result.status, 0);
    CHECK(!strcmp(run.console, "64 bits\n"));
    if (run.result.reason != IMGVM_REASON_DEBUG_EXIT)
        printf("%s\n", run.result.message);
    free(kernel);
}

static inline void case_ends(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    expect(&config, "power-off", IMGVM_REASON_POWEROFF, 0);
    expect(&config, "exec", IMGVM_REASON_EXEC, 7);
    expect(&config, "reset", IMGVM_REASON_RESET, 0);
    expect(&config, "keyboard-reset", IMGVM_REASON_RESET, 0);
    expect(&config, "pvpanic", IMGVM_REASON_PANIC, 0);
    expect(&config, "panic-halt", IMGVM_REASON_PANIC, 0);
    expect(&config, "panic-reset", IMGVM_REASON_PANIC, 0);
    CHECK(!strcmp(run.result.message, "Kernel panic - not syncing: a test of panics"));
    expect(&config, "triple-fault", IMGVM_REASON_TRIPLE_FAULT, 0);
    CHECK(strstr(run.result.message, "triple fault on processor 0 at 0008:0x10"));
    config.debug_exit = IMGVM_DEBUG_EXIT_QEMU;
    expect(&config, "pit", IMGVM_REASON_DEBUG_EXIT, 1);
    config.debug_exit = IMGVM_DEBUG_EXIT_RAW;
    config.reset_is_exit = false;
    config.cpus = 2;
    expect(&config, "reset", IMGVM_REASON_DEBUG_EXIT, 42);
}

/* Input from a pipe, output to a pipe that is read slowly. */
struct talk {
    imgvm_vm *vm;
    int to_guest, from_guest, guest_in, guest_out;
};

static inline void talk_begin(struct talk *talk, const imgvm_vm_config *config, const char *test, uint8_t escape)
{
    int in[2] = {-1, -1}, out[2] = {-1, -1};
    imgvm_error err = {0};
    CHECK_EQ(pipe(in), 0);
    CHECK_EQ(pipe(out), 0);
    CHECK_EQ(imgvm_vm_create(config, &talk->vm, &err), 0);
    CHECK_EQ(imgvm_vm_set_console(talk->vm, in[0], out[1], escape, &err), 0);
    CHECK_EQ(imgvm_vm_load_multiboot(talk->vm, machine_kernel, machine_size, test, &err), 0);
    CHECK_EQ(imgvm_vm_start(talk->vm, &err), 0);
    talk->to_guest = in[1];
    talk->from_guest = out[0];
    talk->guest_in = in[0];
    talk->guest_out = out[1];
}

/* What has come from the guest; 0 when nothing comes for a long while. */
static inline size_t talk_read(struct talk *talk, char *data, size_t size)
{
    struct pollfd fd = {.fd = talk->from_guest, .events = POLLIN};
    if (poll(&fd, 1, GUEST_TIMEOUT_MS) != 1)
        return 0;
    ssize_t n = read(talk->from_guest, data, size);
    return n > 0 ? (size_t)n : 0;
}

static inline void talk_end(struct talk *talk)
{
    close(talk->from_guest); /* before the end, so that it need not wait for us */
    imgvm_vm_destroy(talk->vm);
    close(talk->to_guest);
    close(talk->guest_in);
    close(talk->guest_out);
}

static inline void case_console(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    struct talk talk;
    char answer[64] = {0};
    size_t used = 0;
    talk_begin(&talk, &config, "echo", 1);
    const char *said = "hello \x01\x01 there, a line longer than the fifo";
    CHECK_EQ(write(talk.to_guest, said, strlen(said)), strlen(said));
    for (size_t n = 1; n && used < strlen(said) - 1; used += n)
        n = talk_read(&talk, answer + used, sizeof answer - 1 - used);
    CHECK(!strcmp(answer, "HELLO \x01 THERE, A LINE LONGER THAN THE FIFO"));
    CHECK_EQ(write(talk.to_guest, ".", 1), 1);
    CHECK_EQ(imgvm_vm_wait(talk.vm, GUEST_TIMEOUT_MS, &run.result), 1);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    talk_end(&talk);

    talk_begin(&talk, &config, "halt", 1);
    CHECK_EQ(write(talk.to_guest, "ab\x01x", 4), 4);
    CHECK_EQ(imgvm_vm_wait(talk.vm, GUEST_TIMEOUT_MS, &run.result), 1);
    CHECK_EQ(run.result.reason, IMGVM_REASON_STOPPED);
    talk_end(&talk);
}

/* Half a million bytes through a pipe of 64 KiB: nothing is lost, and the guest is held back meanwhile. */
static inline void case_flood(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    struct talk talk;
    static char piece[65536];
    size_t total = 0;
    talk_begin(&talk, &config, "flood", 0);
    CHECK_EQ(imgvm_vm_wait(talk.vm, 300, &run.result), 0);
    size_t wrong = 0;
    for (size_t n = 1; n && total < 500000; total += n) {
        n = talk_read(&talk, piece, sizeof piece);
        for (size_t i = total; i < total + n; i++)
            wrong += piece[i - total] != (i % 64 == 63 ? '\n' : (char)('0' + i % 10));
    }
    CHECK_EQ(total, 500000);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(imgvm_vm_wait(talk.vm, GUEST_TIMEOUT_MS, &run.result), 1);
    CHECK_EQ(run.result.reason, IMGVM_REASON_DEBUG_EXIT);
    talk_end(&talk);
}

/* A guest that does nothing costs nothing; one that spins can be stopped. */
static inline void case_stop(uint32_t engine)
{
    imgvm_vm_config config = guest_config(engine);
    struct talk talk;
    struct timespec before, after;
    config.cpus = 2;
    talk_begin(&talk, &config, "halt", 0);
    CHECK_EQ(imgvm_vm_wait(talk.vm, 50, &run.result), 0);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    CHECK_EQ(imgvm_vm_wait(talk.vm, 300, &run.result), 0);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    CHECK((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec < 30000000L);
    imgvm_vm_stop(talk.vm);
    CHECK_EQ(imgvm_vm_wait(talk.vm, 0, &run.result), 1);
    CHECK_EQ(run.result.reason, IMGVM_REASON_STOPPED);
    talk_end(&talk);

    talk_begin(&talk, &config, "spin", 0);
    CHECK_EQ(imgvm_vm_wait(talk.vm, 50, &run.result), 0);
    imgvm_vm_stop(talk.vm);
    CHECK_EQ(imgvm_vm_wait(talk.vm, 0, &run.result), 1);
    talk_end(&talk);

    talk_begin(&talk, &config, "flood", 0); /* and one that waits for a reader, who goes away */
    CHECK_EQ(imgvm_vm_wait(talk.vm, 200, &run.result), 0);
    talk_end(&talk);
}

static inline int guest_cases(uint32_t engine)
{
    guest_begin();
    machine_kernel = guest_build("tests/guest/machine.c", false, &machine_size);
    hello_kernel = guest_build("imgvm/vmm/guest/hello.c", false, &hello_size);
    case_hello(engine);
    case_devices(engine);
    case_disk(engine);
    case_linux_protocol(engine);
    case_ends(engine);
    case_console(engine);
    case_flood(engine);
    case_stop(engine);
    free(machine_kernel);
    free(hello_kernel);
    guest_end();
    return check_report();
}

#endif
