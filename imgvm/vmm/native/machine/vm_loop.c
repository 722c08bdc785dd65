/* SPDX-License-Identifier: MIT */
/* The threads of a running machine: a processor's, and the event loop that serves timers, the console and doorbells,
 * resets the board, and gathers everything at the end. */
#define _GNU_SOURCE /* ppoll */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../dev/virtio/blk.h"
#include "vm.h"

#define DRAIN_TIMEOUT_MS 5000 /* at the end, for a reader of the output who does not read */

/* ---- processors ---- */

static void report_triple_fault(struct imgvm_vm *vm, unsigned id)
{
    struct engine *engine = vm->board.engine;
    struct x86_state state;
    imgvm_error err;
    char panic[sizeof vm->board.report.panic_line];
    pthread_mutex_lock(&vm->board.lock);
    memcpy(panic, vm->board.report.panic_line, sizeof panic);
    pthread_mutex_unlock(&vm->board.lock);
    if (*panic)
        vm_finish(vm, IMGVM_REASON_PANIC, 0, "%s", panic);
    else if (engine->ops->get_state(engine, id, &state, &err) < 0)
        vm_finish(vm, IMGVM_REASON_TRIPLE_FAULT, 0, "triple fault on processor %u", id);
    else
        vm_finish(vm, IMGVM_REASON_TRIPLE_FAULT, 0,
                  "triple fault on processor %u at %04x:%#" PRIx64 " (rsp %#" PRIx64 ", cr0 %#" PRIx64 ", cr2 %#" PRIx64
                  ", cr3 %#" PRIx64 ", cr4 %#" PRIx64 ", efer %#" PRIx64 ", idt %#" PRIx64 "+%#x)",
                  id, state.segment[CS].selector, state.rip, state.gpr[RSP], state.cr0, state.cr2, state.cr3, state.cr4,
                  state.efer, state.idtr.base, state.idtr.limit);
}

/* At the start and after a kick: stop (false), or wait while the board is being reset or a debugger holds this one. */
static bool may_go_on(struct vm_cpu *cpu)
{
    struct imgvm_vm *vm = cpu->vm;
    pthread_mutex_lock(&vm->lock);
    vm->parked++;
    pthread_cond_broadcast(&vm->changed);
    while ((vm->resetting || (vm->gdb && gdb_holds_locked(vm->gdb, cpu->id))) && !vm->ending)
        pthread_cond_wait(&vm->changed, &vm->lock);
    vm->parked--;
    bool go_on = !vm->ending;
    pthread_mutex_unlock(&vm->lock);
    return go_on;
}

void *vm_cpu_thread(void *opaque)
{
    struct vm_cpu *cpu = opaque;
    struct imgvm_vm *vm = cpu->vm;
    struct engine *engine = vm->board.engine;
    while (may_go_on(cpu)) {
        switch (engine->ops->run(engine, cpu->id)) {
        case ENGINE_EXIT_KICKED:
            break;
        case ENGINE_EXIT_DEBUG:
            gdb_processor_stopped(vm->gdb, cpu->id);
            break;
        case ENGINE_EXIT_SHUTDOWN:
            report_triple_fault(vm, cpu->id);
            break;
        case ENGINE_EXIT_INTERNAL:
            vm_finish(vm, IMGVM_REASON_INTERNAL, 0, "%s", engine->ops->message(engine, cpu->id));
            break;
        }
    }
    return NULL;
}

/* ---- the event loop ---- */

static void reset_board(struct imgvm_vm *vm)
{
    imgvm_error err = {0};
    pthread_mutex_lock(&vm->lock);
    while (vm->parked < vm->cpu_threads && !vm->ending)
        pthread_cond_wait(&vm->changed, &vm->lock);
    bool ending = vm->ending;
    pthread_mutex_unlock(&vm->lock);
    if (!ending && (board_power_on(&vm->board, &err) < 0 || vm_boot(vm, &err) < 0 || vm_set_first_states(vm, &err) < 0))
        vm_finish(vm, IMGVM_REASON_INTERNAL, 0, "the machine cannot be reset: %s", err.message);
    pthread_mutex_lock(&vm->lock);
    vm->resetting = false;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
}

static void feed_input(struct imgvm_vm *vm)
{
    struct console *console = &vm->console;
    if (console->pending_at == console->pending_end)
        return;
    pthread_mutex_lock(&vm->board.lock);
    console_feed(console, &vm->board.serial);
    pthread_mutex_unlock(&vm->board.lock);
}

/* Output that has begun to queue is written a moment later, together with what follows it. */
struct pace {
    bool waiting;
    uint64_t write_at_ns;
};

static bool output_due(struct imgvm_vm *vm, struct pace *pace, uint64_t now_ns)
{
    size_t queued = console_queued(&vm->console);
    if (!queued) {
        pace->waiting = false;
        return false;
    }
    if (!pace->waiting || pace->write_at_ns > now_ns + CONSOLE_FLUSH_NS) { /* a debugger sets the clock back */
        pace->waiting = true;
        pace->write_at_ns = now_ns + CONSOLE_FLUSH_NS;
    }
    return now_ns >= pace->write_at_ns || queued >= CONSOLE_OUTPUT_LIMIT / 4;
}

static void wait_and_serve(struct imgvm_vm *vm, struct pace *pace)
{
    struct board *board = &vm->board;
    struct console *console = &vm->console;
    struct pollfd fds[3 + BOARD_VIRTIO_MAX + GDB_POLL_MAX];
    bool standing = vm->gdb && gdb_holds_time(vm->gdb);
    uint64_t now = clock_now_ns(&board->clock), deadline = standing ? TIMER_NEVER : timer_queue_next_ns(&board->timers);
    unsigned count = 0, input = 0, output = 0;
    fds[count++] = (struct pollfd){.fd = vm->wake_fd, .events = POLLIN};
    if (console_wants_input(console)) {
        input = count;
        fds[count++] = (struct pollfd){.fd = console->input_fd, .events = POLLIN};
    }
    if (output_due(vm, pace, now)) {
        output = count;
        fds[count++] = (struct pollfd){.fd = console->output_fd, .events = POLLOUT};
    } else if (pace->waiting) {
        deadline = MIN(deadline, pace->write_at_ns);
    }
    unsigned bells = count;
    for (unsigned i = 0; i < board->doorbell_count; i++)
        fds[count++] = (struct pollfd){.fd = board->doorbells[i].fd, .events = POLLIN};
    unsigned debugger = count;
    if (vm->gdb)
        count += gdb_poll(vm->gdb, fds + count);

    uint64_t left = deadline > now ? deadline - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
    if (ppoll(fds, count, deadline == TIMER_NEVER ? NULL : &timeout, NULL) < 0)
        return;

    uint64_t ignored;
    if (fds[0].revents && read(vm->wake_fd, &ignored, sizeof ignored) < 0)
        return;
    if (!standing && timer_queue_next_ns(&board->timers) <= clock_now_ns(&board->clock)) {
        pthread_mutex_lock(&board->lock);
        timer_queue_run(&board->timers);
        pthread_mutex_unlock(&board->lock);
    }
    for (unsigned i = 0; i < board->doorbell_count; i++)
        if (fds[bells + i].revents)
            doorbell_ring(&board->doorbells[i]);
    if (input && fds[input].revents && console_read_some(console) == CONSOLE_QUIT)
        vm_finish(vm, IMGVM_REASON_STOPPED, 0, "ended from the console");
    feed_input(vm);
    if (vm->gdb)
        gdb_serve(vm->gdb, fds + debugger, count - debugger);
    if (output && fds[output].revents) {
        console_write_some(console);
        size_t queued = console_queued(console);
        if (queued <= CONSOLE_OUTPUT_LIMIT / 2)
            atomic_store(&board->congested, false);
    }
}

static void drain_output(struct imgvm_vm *vm)
{
    struct console *console = &vm->console;
    while (console_queued(console)) {
        struct pollfd fd = {.fd = console->output_fd, .events = POLLOUT};
        if (poll(&fd, 1, DRAIN_TIMEOUT_MS) <= 0)
            break;
        console_write_some(console);
    }
    console_close(console);
}

/* What went wrong with the disks: the guest has seen an I/O error, but cannot know why. */
static void describe_disk_errors(struct imgvm_vm *vm)
{
    imgvm_result *result = &vm->result;
    pthread_mutex_lock(&vm->board.lock);
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct virtio_blk_stats stats;
        virtio_blk_stats(vm->disks[i], &stats);
        if (stats.host_errors && !result->disk_errors)
            snprintf(result->disk_message, sizeof result->disk_message, "%s", stats.first_error.message);
        result->disk_errors += stats.host_errors;
    }
    pthread_mutex_unlock(&vm->board.lock);
}

static void finish_run(struct imgvm_vm *vm)
{
    struct engine *engine = vm->board.engine;
    for (unsigned i = 0; i < vm->cpu_threads; i++)
        pthread_join(vm->cpu[i].thread, NULL);
    drain_output(vm);
    describe_disk_errors(vm);
    vm->result.output_errno = vm->console.write_errno;
    vm->result.trace_errno = -trace_flush(vm->trace);
    if (vm->gdb)
        gdb_run_ended(vm->gdb, &vm->result);
    pthread_mutex_lock(&vm->lock);
    vm->result.instructions = engine->ops->instructions(engine);
    vm->result.handovers = engine->ops->handovers ? engine->ops->handovers(engine) : 0;
    vm->result.run_ns = clock_now_ns(&vm->board.clock) - vm->result.run_ns; /* held the start until now */
    vm->ended = true;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
}

void *vm_loop_thread(void *opaque)
{
    struct imgvm_vm *vm = opaque;
    struct pace pace = {0};
    for (;;) {
        pthread_mutex_lock(&vm->lock);
        bool ending = vm->ending, resetting = vm->resetting;
        pthread_mutex_unlock(&vm->lock);
        if (ending)
            break;
        if (resetting)
            reset_board(vm);
        else
            wait_and_serve(vm, &pace);
    }
    finish_run(vm);
    return NULL;
}
