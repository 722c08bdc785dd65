/* SPDX-License-Identifier: MIT */
/* gdb's remote protocol, served by the event loop's thread (docs/debugging.md). Processors are threads 1, 2, ...; when
 * one stops, all are stopped, and so is the machine's clock. */
#ifndef IMGVM_MACHINE_GDB_H
#define IMGVM_MACHINE_GDB_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>

#include "../include/imgvm_api.h"

struct gdb;
struct imgvm_vm;

/* Listens at HOST:PORT, PORT or unix:PATH; *where is told the address taken. From now on the processors are held until
 * a debugger lets them go. */
int gdb_create(struct imgvm_vm *vm, const char *address, struct gdb **out, char *where, size_t where_size, imgvm_error *err);
void gdb_destroy(struct gdb *gdb);

/* ---- event loop ---- */

#define GDB_POLL_MAX 2
unsigned gdb_poll(struct gdb *gdb, struct pollfd *fds);
void gdb_serve(struct gdb *gdb, const struct pollfd *fds, unsigned count);
/* The processors stand still, and the machine's clock will be set back by as long: no timer may run. */
bool gdb_holds_time(const struct gdb *gdb);
void gdb_run_ended(struct gdb *gdb, const imgvm_result *result);

/* ---- a processor's thread ---- */

/* It came back with ENGINE_EXIT_DEBUG. */
void gdb_processor_stopped(struct gdb *gdb, unsigned cpu);
/* vm.lock is held: may it not run? Tells the event loop that one more is parked. */
bool gdb_holds_locked(struct gdb *gdb, unsigned cpu);

#endif
