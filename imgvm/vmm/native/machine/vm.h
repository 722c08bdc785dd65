/* SPDX-License-Identifier: MIT */
/* A machine that runs: the board, one thread a processor, and the event loop's thread.
 *
 * Locks, outermost first: board.lock, vm.lock, then whatever an engine or the console has of its own.
 * Whatever ends the run calls vm_finish: the first reason counts, every processor is kicked out of its engine, the
 * event loop gathers the threads, writes what is left of the output and tells those who wait. */
#ifndef IMGVM_MACHINE_VM_H
#define IMGVM_MACHINE_VM_H

#include <pthread.h>
#include <stdatomic.h>

#include "board.h"
#include "boot.h"
#include "console.h"
#include "gdb.h"

enum vm_boot_kind { VM_BOOT_NONE, VM_BOOT_LINUX, VM_BOOT_MULTIBOOT, VM_BOOT_FIRMWARE };

struct vm_cpu {
    struct imgvm_vm *vm;
    unsigned id;
    pthread_t thread;
};

struct imgvm_vm {
    imgvm_vm_config config;
    struct board board;
    struct console console;
    struct virtio_device *disks[BOARD_VIRTIO_MAX]; /* the board's */
    unsigned disk_count;

    /* what is booted; kernel, initrd and command line are kept only when a reset has to load them again */
    enum vm_boot_kind boot_kind;
    struct boot_blob kernel, initrd;
    char *cmdline;
    struct boot_module *modules;
    unsigned module_count;
    struct boot_order boot_order; /* of the built-in BIOS */
    struct x86_state boot_state;

    pthread_mutex_t lock;
    pthread_cond_t changed;  /* ended, parked, resumed */
    int wake_fd;             /* stirs the event loop */
    bool started, loop_joinable;
    bool ending;             /* a reason is known */
    bool ended;              /* and everything has stopped */
    bool resetting;          /* processors park until the event loop has reset the board */
    unsigned parked;
    imgvm_result result;

    struct trace *trace; /* NULL: none */
    struct gdb *gdb; /* NULL: no debugger was asked for */

    pthread_t loop;
    struct vm_cpu cpu[ENGINE_CPUS_MAX];
    unsigned cpu_threads;
};

void vm_finish(struct imgvm_vm *vm, uint32_t reason, uint32_t status, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void vm_wake_loop(struct imgvm_vm *vm);
/* Load the boot images and give every processor its first state. */
int vm_boot(struct imgvm_vm *vm, imgvm_error *err);
int vm_set_first_states(struct imgvm_vm *vm, imgvm_error *err);

/* vm_loop.c */
void *vm_loop_thread(void *opaque);
void *vm_cpu_thread(void *opaque);

#endif
