/* SPDX-License-Identifier: MIT */
/* For tests that run small guests: assembles one, boots it in a machine of one engine, gathers its console. */
#ifndef IMGVM_TEST_GUEST_RUN_H
#define IMGVM_TEST_GUEST_RUN_H

#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "include/imgvm_api.h"

#ifndef GUEST_TIMEOUT_MS
#define GUEST_TIMEOUT_MS 10000
#endif

struct guest_run {
    imgvm_result result;
    bool ended;
    char console[65536];
};

static char guest_folder[] = "/tmp/imgvm-guest-XXXXXX";

static inline void guest_begin(void)
{
    CHECK(mkdtemp(guest_folder) != NULL);
}

static inline void guest_end(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", guest_folder);
    CHECK_EQ(system(command), 0);
}

/* Builds source (relative to the repository): a 32-bit Multiboot kernel at 1 MiB, or a 64-bit one at 16 MiB. The
 * file's bytes, to be freed. */
static inline void *guest_build(const char *source, bool is64, size_t *size)
{
    char here[] = __FILE__, path[600], how[700], command[2000];
    snprintf(path, sizeof path, "%s/../..", dirname(here));
    snprintf(how, sizeof how, is64 ? "-m64 -Wl,-Ttext=0x1000000,-e,start" : "-m32 -Wl,-T,%s/imgvm/vmm/guest/hello.ld", path);
    snprintf(command, sizeof command,
             "cc %s -Os -ffreestanding -fno-pic -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables -nostdlib "
             "-static -Wl,--build-id=none -o %s/guest.elf %s/%s", how, guest_folder, path, source);
    CHECK_EQ(system(command), 0);
    snprintf(command, sizeof command, "%s/guest.elf", guest_folder);
    FILE *file = fopen(command, "rb");
    CHECK(file != NULL);
    if (!file)
        return NULL;
    void *data = malloc(1 << 20);
    *size = fread(data, 1, 1 << 20, file);
    fclose(file);
    return data;
}

static inline imgvm_vm_config guest_config(uint32_t engine)
{
    return (imgvm_vm_config){.abi = IMGVM_ABI, .engine = engine, .cpus = 1, .memory_bytes = 64 << 20,
                             .debug_exit = IMGVM_DEBUG_EXIT_RAW, .debug_exit_port = 0xf4, .reset_is_exit = true};
}

enum guest_protocol { GUEST_MULTIBOOT, GUEST_LINUX };

/* Runs the kernel; when it does not end by itself, stops it. `with` (may be NULL) is called before the start. */
static inline void guest_run_as(enum guest_protocol protocol, const imgvm_vm_config *config, const void *kernel, size_t size, const char *cmdline,
                             void (*with)(imgvm_vm *vm), struct guest_run *run)
{
    imgvm_vm *vm = NULL;
    imgvm_error err = {0};
    char path[64];
    memset(run, 0, sizeof *run);
    snprintf(path, sizeof path, "%s/console", guest_folder);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    int code = imgvm_vm_create(config, &vm, &err);
    if (!code)
        code = imgvm_vm_set_console(vm, -1, fd, 0, &err);
    if (!code && with)
        with(vm);
    if (!code)
        code = protocol == GUEST_LINUX ? imgvm_vm_load_linux(vm, kernel, size, "intrd!", 6, cmdline, &err)
                                       : imgvm_vm_load_multiboot(vm, kernel, size, cmdline, &err);
    if (!code)
        code = imgvm_vm_start(vm, &err);
    CHECK_EQ(code, 0);
    if (code)
        printf("%s (%s)\n", err.message, err.hint);
    if (!code) {
        run->ended = imgvm_vm_wait(vm, GUEST_TIMEOUT_MS, &run->result) == 1;
        imgvm_vm_stop(vm);
        if (!run->ended)
            imgvm_vm_wait(vm, -1, &run->result);
    }
    imgvm_vm_destroy(vm);
    ssize_t read_bytes = pread(fd, run->console, sizeof run->console - 1, 0);
    CHECK(read_bytes >= 0);
    close(fd);
}

static inline void guest_run(const imgvm_vm_config *config, const void *kernel, size_t size, const char *cmdline,
                             void (*with)(imgvm_vm *vm), struct guest_run *run)
{
    guest_run_as(GUEST_MULTIBOOT, config, kernel, size, cmdline, with, run);
}

#endif
