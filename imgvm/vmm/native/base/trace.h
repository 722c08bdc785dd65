/* SPDX-License-Identifier: MIT */
/* A line of text for each event of the kinds that were asked for. Whoever may have one looks at `trace_wants` first, so
 * that it costs a comparison where nothing was. Lines of several threads do not mix. */
#ifndef IMGVM_BASE_TRACE_H
#define IMGVM_BASE_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

/* kind, name, what it is */
#define TRACE_KINDS(KIND)                                                        \
    KIND(EXITS, "exits", "translated code is left")                              \
    KIND(EXCEPTIONS, "exceptions", "delivered to the guest")                     \
    KIND(INTERRUPTS, "interrupts", "delivered: external, NMI, INT n")            \
    KIND(MODES, "modes", "of the processor, and its control registers")          \
    KIND(MSRS, "msrs", "RDMSR and WRMSR")                                        \
    KIND(PORTS, "ports", "IN and OUT")                                           \
    KIND(MMIO, "mmio", "accesses to devices and to nothing")

enum trace_kind {
#define KIND(kind, name, what) TRACE_##kind,
    TRACE_KINDS(KIND)
#undef KIND
    TRACE_KIND_COUNT
};

struct trace;

/* `kinds`: names with commas between, or "all". */
int trace_check(const char *kinds, imgvm_error *err);
/* Lines go to a copy of fd. */
int trace_open(struct trace **out, const char *kinds, int fd, imgvm_error *err);
void trace_close(struct trace *trace); /* NULL: nothing */
int trace_flush(struct trace *trace); /* 0, or -errno: it is not whole */
uint32_t trace_kinds(const struct trace *trace); /* a bit each */
/* `trace` NULL: none. */
bool trace_wants(const struct trace *trace, enum trace_kind kind);
void trace_line(struct trace *trace, uint64_t time_ns, unsigned cpu, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
