/* SPDX-License-Identifier: MIT */
/* The imgvm_vm_* calls of the ABI. */
#include "vm.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "../base/bits.h"
#include "../dev/virtio/blk.h"
#include "keep.h"

/* ---- the end of a run ---- */

void vm_wake_loop(struct imgvm_vm *vm)
{
    uint64_t one = 1;
    ssize_t written = write(vm->wake_fd, &one, sizeof one);
    (void)written; /* EAGAIN: it has been told often enough */
}

static void kick_all(struct imgvm_vm *vm)
{
    struct engine *engine = vm->board.engine;
    for (unsigned i = 0; engine && i < vm->board.cpus; i++)
        engine->ops->kick(engine, i);
    vm_wake_loop(vm);
}

void vm_finish(struct imgvm_vm *vm, uint32_t reason, uint32_t status, const char *format, ...)
{
    pthread_mutex_lock(&vm->lock);
    bool first = !vm->ending;
    if (first) {
        va_list args;
        va_start(args, format);
        vsnprintf(vm->result.message, sizeof vm->result.message, format, args);
        va_end(args);
        vm->result.reason = reason;
        vm->result.status = status;
        vm->ending = true;
        pthread_cond_broadcast(&vm->changed);
    }
    pthread_mutex_unlock(&vm->lock);
    if (!first)
        return;
    /* Nobody may be left waiting for the console, or the processors could not be gathered. */
    atomic_store(&vm->board.congested, false);
    console_release(&vm->console);
    kick_all(vm);
}

/* ---- what the board says; its lock is held ---- */

static void on_power_off(void *opaque)
{
    vm_finish(opaque, IMGVM_REASON_POWEROFF, 0, "the guest switched the machine off");
}

static void on_reset(void *opaque)
{
    struct imgvm_vm *vm = opaque;
    if (vm->board.report.panic_line[0]) {
        vm_finish(vm, IMGVM_REASON_PANIC, 0, "%s", vm->board.report.panic_line);
    } else if (vm->config.reset_is_exit) {
        vm_finish(vm, IMGVM_REASON_RESET, 0, "the guest reset the machine");
    } else {
        pthread_mutex_lock(&vm->lock);
        vm->resetting = true;
        pthread_mutex_unlock(&vm->lock);
        kick_all(vm);
    }
}

static void on_debug_exit(void *opaque, uint32_t status)
{
    vm_finish(opaque, IMGVM_REASON_DEBUG_EXIT, status, "the guest wrote its status to the debug exit port");
}

static void on_exec_status(void *opaque, uint32_t status)
{
    vm_finish(opaque, IMGVM_REASON_EXEC, status, "the command ended with status %u", status);
}

static void on_panic(void *opaque)
{
    struct imgvm_vm *vm = opaque;
    const char *line = vm->board.report.panic_line;
    vm_finish(vm, IMGVM_REASON_PANIC, 0, "%s", *line ? line : "the guest reported a panic");
}

static void on_serial_output(void *opaque, const uint8_t *data, size_t size)
{
    struct imgvm_vm *vm = opaque;
    size_t queued = console_put(&vm->console, data, size);
    if (queued == size)
        vm_wake_loop(vm);
    if (queued > CONSOLE_OUTPUT_LIMIT)
        atomic_store(&vm->board.congested, true);
}

static void on_serial_ready(void *opaque)
{
    vm_wake_loop(opaque);
}

static void on_throttle(void *opaque)
{
    struct imgvm_vm *vm = opaque;
    console_wait_drained(&vm->console);
    atomic_store(&vm->board.congested, false);
}

static void on_timer_moved(void *opaque)
{
    vm_wake_loop(opaque);
}

/* ---- making a machine ---- */

int imgvm_engine_probe(uint32_t engine, imgvm_error *err)
{
    const struct engine_ops *ops = engine_find(engine);
    if (!ops)
        return error_set(err, EINVAL, "there is no engine %u", engine);
    return ops->probe(err);
}

static int64_t utc_at_zero_ns(int64_t offset_sec)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (now.tv_sec + offset_sec) * INT64_C(1000000000) + now.tv_nsec;
}

/* Messages and hints are always collected: callers of ours may pass NULL. */
#define NEED_ERROR(err)  \
    imgvm_error ignored_; \
    if (!(err))          \
        (err) = &ignored_

int imgvm_trace_check(const char *kinds, imgvm_error *err)
{
    NEED_ERROR(err);
    return trace_check(kinds, err);
}

int imgvm_vm_create(const imgvm_vm_config *config, imgvm_vm **out, imgvm_error *err)
{
    NEED_ERROR(err);
    if (config->abi != IMGVM_ABI)
        return error_set(err, EINVAL, "the caller speaks version %u of the native interface, this is %d", config->abi, IMGVM_ABI);
    const struct engine_ops *ops = engine_find(config->engine);
    if (!ops)
        return error_set(err, EINVAL, "there is no engine %u", config->engine);
    if (config->lockstep && (config->engine != IMGVM_ENGINE_JIT || config->cpus != 1)) {
        error_set(err, EINVAL, "lock-step holds the translator against the interpreter, on one processor");
        return error_hint(err, "--accel jit --cpus 1");
    }
    struct cpu_wish wish;
    int result = cpu_wish_parse(&wish, config->cpu_model, config->cpu_features, config->cpu_vendor, err);
    if (result < 0)
        return result;
    struct imgvm_vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return error_set(err, ENOMEM, "out of memory for a machine");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    vm->config = *config;
    vm->config.cpu_model = vm->config.cpu_features = vm->config.cpu_vendor = vm->config.trace = NULL; /* the caller's, for this call */
    vm->config.smbios = NULL;
    console_init(&vm->console);
    vm->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (vm->wake_fd < 0) {
        result = error_set(err, errno, "cannot create an eventfd: %s", strerror(errno));
        imgvm_vm_destroy(vm);
        return result;
    }
    if (config->trace && (result = trace_open(&vm->trace, config->trace, config->trace_fd, err)) < 0) {
        imgvm_vm_destroy(vm);
        return result;
    }
    const struct board_config board = {
        .engine = ops, .cpus = config->cpus, .memory_bytes = config->memory_bytes, .debug_exit = config->debug_exit,
        .debug_exit_port = config->debug_exit_port, .entropy = config->entropy, .shadow = config->firmware_shadow,
        .wish = &wish, .trace = vm->trace, .lockstep = config->lockstep, .count = config->count, .perf_map_fd = config->perf_map_fd, .smbios = config->smbios, .utc_base_ns = utc_at_zero_ns(config->rtc_offset_sec),
        .host = {on_power_off, on_reset, on_debug_exit, on_exec_status, on_panic, on_serial_output, on_serial_ready,
                 on_throttle, vm},
    };
    if ((result = board_init(&vm->board, &board, err)) < 0) {
        imgvm_vm_destroy(vm);
        return result;
    }
    vm->board.timers.kick = on_timer_moved;
    vm->board.timers.kick_opaque = vm;
    *out = vm;
    return 0;
}

static void forget_boot(struct imgvm_vm *vm)
{
    keep_forget(vm->kernel.data, vm->kernel.size);
    keep_forget(vm->initrd.data, vm->initrd.size);
    free(vm->cmdline);
    for (unsigned i = 0; i < vm->module_count; i++) {
        keep_forget(vm->modules[i].blob.data, vm->modules[i].blob.size);
        free((void *)vm->modules[i].cmdline);
    }
    free(vm->modules);
    vm->kernel = vm->initrd = (struct boot_blob){0};
    vm->cmdline = NULL;
    vm->modules = NULL;
    vm->module_count = 0;
}

void imgvm_vm_destroy(imgvm_vm *vm)
{
    if (!vm)
        return;
    imgvm_vm_stop(vm);
    if (vm->loop_joinable)
        pthread_join(vm->loop, NULL);
    gdb_destroy(vm->gdb);
    board_destroy(&vm->board);
    console_destroy(&vm->console);
    trace_close(vm->trace);
    forget_boot(vm);
    if (vm->wake_fd >= 0)
        close(vm->wake_fd);
    pthread_cond_destroy(&vm->changed);
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

static int check_not_started(struct imgvm_vm *vm, imgvm_error *err)
{
    return vm->started ? error_set(err, EBUSY, "the machine has been started already") : 0;
}

int imgvm_vm_add_disk(imgvm_vm *vm, imgvm_image *image, bool read_only, const char *serial, uint32_t cache, bool discard,
                      imgvm_error *err)
{
    NEED_ERROR(err);
    int result = check_not_started(vm, err);
    if (result < 0)
        return result;
    if (cache > IMGVM_CACHE_UNSAFE)
        return error_set(err, EINVAL, "there is no cache mode %u", cache);
    const struct virtio_blk_config config = {
        .image = image, .read_only = read_only, .serial = serial, .cache = cache, .keeps_space = !discard,
        .mem = &vm->board.mem, .lock = &vm->board.lock, .queue_kind = QUEUE_BEST,
    };
    struct virtio_device *device;
    if ((result = virtio_blk_create(&device, &config, err)) < 0)
        return result;
    if ((result = board_add_virtio(&vm->board, device, err)) < 0)
        device->ops->destroy(device);
    else
        vm->disks[vm->disk_count++] = device;
    return result;
}

int imgvm_vm_set_console(imgvm_vm *vm, int input_fd, int output_fd, uint8_t escape, imgvm_error *err)
{
    NEED_ERROR(err);
    int result = check_not_started(vm, err);
    if (result < 0)
        return result;
    vm->console.input_fd = input_fd;
    vm->console.output_fd = output_fd;
    vm->console.escape = escape;
    return 0;
}

int imgvm_vm_set_gdb(imgvm_vm *vm, const char *address, char *where, uint32_t where_size, imgvm_error *err)
{
    NEED_ERROR(err);
    int result = check_not_started(vm, err);
    if (result < 0)
        return result;
    if (vm->gdb)
        return error_set(err, EBUSY, "the machine waits for a debugger already");
    return gdb_create(vm, address, &vm->gdb, where, where_size, err);
}

/* ---- booting ---- */

static int copy_blob(struct boot_blob *out, const void *data, uint64_t size, imgvm_error *err)
{
    *out = (struct boot_blob){keep_bytes(data, size), size};
    if (size && !out->data)
        return error_set(err, ENOMEM, "out of memory for a copy of the boot files");
    return 0;
}

static int load_boot(struct imgvm_vm *vm, imgvm_error *err)
{
    if (vm->boot_kind == VM_BOOT_LINUX)
        return boot_linux(&vm->board.mem, &vm->board.map, vm->kernel, vm->initrd, vm->cmdline, &vm->boot_state, err);
    if (vm->boot_kind == VM_BOOT_FIRMWARE)
        return boot_firmware(&vm->board.mem, &vm->board.map, vm->kernel, vm->config.firmware_shadow ? NULL : &vm->boot_order,
                             &vm->boot_state, err);
    return boot_multiboot(&vm->board.mem, &vm->board.map, vm->kernel, vm->cmdline, vm->modules, vm->module_count,
                          &vm->boot_state, err);
}

int vm_boot(struct imgvm_vm *vm, imgvm_error *err)
{
    int result = load_boot(vm, err);
    return result ? result : board_announce_smbios(&vm->board, err);
}

/* For resets. */
static int keep_boot(struct imgvm_vm *vm, struct boot_blob kernel, struct boot_blob initrd, const char *cmdline,
                     imgvm_error *err)
{
    int result = copy_blob(&vm->kernel, kernel.data, kernel.size, err);
    if (result == 0)
        result = copy_blob(&vm->initrd, initrd.data, initrd.size, err);
    vm->cmdline = strdup(cmdline ? cmdline : "");
    if (result == 0 && !vm->cmdline)
        result = error_set(err, ENOMEM, "out of memory for the command line");
    if (result < 0)
        forget_boot(vm);
    return result;
}

static int load(struct imgvm_vm *vm, enum vm_boot_kind kind, struct boot_blob kernel, struct boot_blob initrd,
                const char *cmdline, imgvm_error *err)
{
    int result = check_not_started(vm, err);
    if (result < 0)
        return result;
    if (vm->boot_kind != VM_BOOT_NONE)
        return error_set(err, EBUSY, "the machine has a kernel already");
    vm->kernel = kernel;
    vm->initrd = initrd;
    vm->cmdline = (char *)(cmdline ? cmdline : "");
    vm->boot_kind = kind;
    result = vm_boot(vm, err);
    vm->kernel = vm->initrd = (struct boot_blob){0}; /* they were the caller's */
    vm->cmdline = NULL;
    if (result == 0 && !vm->config.reset_is_exit)
        result = keep_boot(vm, kernel, initrd, cmdline, err);
    if (result < 0)
        vm->boot_kind = VM_BOOT_NONE;
    else if (vm->config.reset_is_exit)
        forget_boot(vm);
    return result;
}

int imgvm_vm_load_linux(imgvm_vm *vm, const void *kernel, uint64_t kernel_bytes, const void *initrd,
                        uint64_t initrd_bytes, const char *cmdline, imgvm_error *err)
{
    NEED_ERROR(err);
    return load(vm, VM_BOOT_LINUX, (struct boot_blob){kernel, kernel_bytes},
                (struct boot_blob){initrd, initrd ? initrd_bytes : 0}, cmdline, err);
}

int imgvm_vm_add_module(imgvm_vm *vm, const void *data, uint64_t bytes, const char *cmdline, imgvm_error *err)
{
    NEED_ERROR(err);
    int result = check_not_started(vm, err);
    if (result < 0)
        return result;
    struct boot_module module = {.cmdline = strdup(cmdline ? cmdline : "")};
    struct boot_module *grown = realloc(vm->modules, (vm->module_count + 1) * sizeof *grown);
    if (grown)
        vm->modules = grown;
    if (!grown || !module.cmdline || copy_blob(&module.blob, data, bytes, err) < 0) {
        free((void *)module.cmdline);
        return error_set(err, ENOMEM, "out of memory for a module");
    }
    vm->modules[vm->module_count++] = module;
    return 0;
}

int imgvm_vm_load_multiboot(imgvm_vm *vm, const void *kernel, uint64_t kernel_bytes, const char *cmdline,
                            imgvm_error *err)
{
    NEED_ERROR(err);
    return load(vm, VM_BOOT_MULTIBOOT, (struct boot_blob){kernel, kernel_bytes}, (struct boot_blob){0}, cmdline, err);
}

int imgvm_vm_load_firmware(imgvm_vm *vm, const void *rom, uint64_t rom_bytes, const uint8_t *order, uint32_t order_count,
                           imgvm_error *err)
{
    NEED_ERROR(err);
    if (order_count > sizeof vm->boot_order.kind)
        return error_set(err, EINVAL, "a boot order has at most %zu entries", sizeof vm->boot_order.kind);
    vm->boot_order.count = (uint8_t)order_count;
    for (uint32_t i = 0; i < order_count; i++)
        vm->boot_order.kind[i] = order[i];
    return load(vm, VM_BOOT_FIRMWARE, (struct boot_blob){rom, rom_bytes}, (struct boot_blob){0}, NULL, err);
}

/* ---- running ---- */

int vm_set_first_states(struct imgvm_vm *vm, imgvm_error *err)
{
    struct engine *engine = vm->board.engine;
    int result = engine->ops->set_state(engine, 0, &vm->boot_state, err);
    for (unsigned i = 1; !result && i < vm->board.cpus; i++) {
        struct x86_state waiting;
        x86_state_reset(&waiting, false);
        result = engine->ops->set_state(engine, i, &waiting, err);
    }
    return result;
}

static int start_threads(struct imgvm_vm *vm, imgvm_error *err)
{
    int code = 0;
    for (unsigned i = 0; i < vm->board.cpus && !code; i++) {
        vm->cpu[i] = (struct vm_cpu){.vm = vm, .id = i};
        code = pthread_create(&vm->cpu[i].thread, NULL, vm_cpu_thread, &vm->cpu[i]);
        vm->cpu_threads += !code;
    }
    if (!code)
        code = pthread_create(&vm->loop, NULL, vm_loop_thread, vm);
    if (!code) {
        vm->loop_joinable = true;
        return 0;
    }
    vm_finish(vm, IMGVM_REASON_INTERNAL, 0, "cannot start a thread");
    for (unsigned i = 0; i < vm->cpu_threads; i++)
        pthread_join(vm->cpu[i].thread, NULL);
    vm->cpu_threads = 0;
    return error_set(err, code, "cannot start a thread: %s", strerror(code));
}

int imgvm_vm_start(imgvm_vm *vm, imgvm_error *err)
{
    NEED_ERROR(err);
    int result = check_not_started(vm, err);
    if (result < 0)
        return result;
    if (vm->boot_kind == VM_BOOT_NONE) {
        error_set(err, EINVAL, "the machine has nothing to boot");
        return error_hint(err, "load a kernel before starting it");
    }
    if ((result = board_power_on(&vm->board, err)) < 0 || (result = vm_set_first_states(vm, err)) < 0)
        return result;
    /* Signals are the business of the threads that were here before: ours inherit a mask that blocks all but traps, of which a
     * guest's instructions have some; one that is blocked ends the process. */
    static const int traps[] = {SIGFPE, SIGSEGV, SIGBUS, SIGILL};
    sigset_t others, before;
    sigfillset(&others);
    for (unsigned i = 0; i < ARRAY_LEN(traps); i++)
        sigdelset(&others, traps[i]);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    vm->result.run_ns = clock_now_ns(&vm->board.clock);
    vm->started = true;
    result = start_threads(vm, err);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result < 0)
        vm->started = false;
    return result;
}

int imgvm_vm_wait(imgvm_vm *vm, int timeout_ms, imgvm_result *out)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    if (timeout_ms > 0) {
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += timeout_ms % 1000 * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
    }
    pthread_mutex_lock(&vm->lock);
    int code = 0;
    while (!vm->ended && vm->started && code != ETIMEDOUT)
        code = timeout_ms < 0 ? pthread_cond_wait(&vm->changed, &vm->lock)
                              : pthread_cond_timedwait(&vm->changed, &vm->lock, &until);
    bool ended = vm->ended;
    if (ended)
        *out = vm->result;
    pthread_mutex_unlock(&vm->lock);
    return ended;
}

void imgvm_vm_power_button(imgvm_vm *vm)
{
    pthread_mutex_lock(&vm->board.lock);
    acpi_pm_power_button(&vm->board.acpi_pm);
    pthread_mutex_unlock(&vm->board.lock);
}

void imgvm_vm_stop(imgvm_vm *vm)
{
    imgvm_result result;
    if (!vm->started)
        return;
    vm_finish(vm, IMGVM_REASON_STOPPED, 0, "stopped");
    imgvm_vm_wait(vm, -1, &result);
}
