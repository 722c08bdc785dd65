/* SPDX-License-Identifier: MIT */
/* The seam between the machine and whatever executes its processors: the host's KVM or the processor in
 * software. The machine calls an engine through engine_ops; an engine calls the machine through engine_host.
 *
 * Threads: `run` is called by one thread per processor; `kick`, `signal`, `set_irq` and `send_msi` by any
 * thread (with or without the board lock); everything else while that processor does not run. The two state calls
 * need the board's locks free: an engine may ask the board for what a local APIC holds. */
#ifndef IMGVM_BACKEND_BACKEND_H
#define IMGVM_BACKEND_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "../arch/cpu_model.h"
#include "../arch/state.h"
#include "../base/clock_piece.h"
#include "../base/count.h"
#include "../base/trace.h"
#include "../mem/guest_mem.h"

#define ENGINE_CPUS_MAX 64

/* What `run` came back for. Halting is the engine's own affair: a halted processor sleeps inside `run`. */
enum engine_exit {
    ENGINE_EXIT_KICKED,   /* somebody called kick */
    ENGINE_EXIT_DEBUG,    /* what a debugger asked for has come: stop_of says what */
    ENGINE_EXIT_SHUTDOWN, /* triple fault; the state says where */
    ENGINE_EXIT_INTERNAL, /* a bug or a limit of the engine; message says which */
};

/* The world around the processors. Each call takes the locks that it needs: board.lock for devices, the processor's own
 * for what belongs to its local APIC. */
struct engine_host {
    void *opaque;
    struct guest_mem *mem;
    const struct cpu_wish *wish; /* the processors' features; NULL: all that the engine has. For `create` alone */
    bool count;                  /* translated code counts its instructions */
    struct trace *trace;         /* base/trace.h; NULL: none */
    int perf_map_fd;             /* where translated code is named for Linux perf (its /tmp/perf-PID.map); 0: nowhere */
    bool lockstep;               /* translated code is checked by the interpreter (cpu/jit/lockstep.h) */
    uint32_t (*port_read)(void *opaque, unsigned cpu, uint16_t port, unsigned size);
    void (*port_write)(void *opaque, unsigned cpu, uint16_t port, unsigned size, uint32_t value);
    uint64_t (*mmio_read)(void *opaque, unsigned cpu, uint64_t gpa, unsigned size); /* any size up to 8 */
    void (*mmio_write)(void *opaque, unsigned cpu, uint64_t gpa, unsigned size, uint64_t value);
    uint64_t (*time_ns)(void *opaque);
    uint64_t (*time_piece)(void *opaque, struct clock_piece *out); /* as clock_now_in_piece */

    /* For engines without interrupt controllers of their own: the board's local APICs. */
    int (*interrupt_acknowledge)(void *opaque, unsigned cpu); /* -1: nothing to deliver */
    bool (*apic_msr_read)(void *opaque, unsigned cpu, uint32_t index, uint64_t *value);
    bool (*apic_msr_write)(void *opaque, unsigned cpu, uint32_t index, uint64_t value);
    uint64_t (*cr8_read)(void *opaque, unsigned cpu);
    void (*cr8_write)(void *opaque, unsigned cpu, uint64_t value);
    void (*tsc_offset_changed)(void *opaque, unsigned cpu, uint64_t offset); /* guest TSC = time_ns + offset */
    uint64_t (*timer_next_ns)(void *opaque, unsigned cpu); /* lock-free; UINT64_MAX: none */
    void (*timer_run)(void *opaque, unsigned cpu);
};

/* What `signal` carries. */
#define ENGINE_SIGNAL_INTR 0x01u
#define ENGINE_SIGNAL_NMI 0x02u
#define ENGINE_SIGNAL_INIT 0x04u
#define ENGINE_SIGNAL_SIPI 0x08u
#define ENGINE_SIGNAL_NO_INTR 0x10u /* the interrupt request has gone */
#define ENGINE_SIGNAL_TIMER 0x20u   /* the processor's next timer has moved nearer */

/* ---- for debuggers ---- */

#define ENGINE_POINT_EXECUTE 1u
#define ENGINE_POINT_WRITE 2u
#define ENGINE_POINT_READ 4u

/* A breakpoint (EXECUTE: on the instruction that begins at `linear`) or a watchpoint on [linear, linear + size). */
struct engine_point {
    uint64_t linear, size;
    uint32_t kinds;
};

enum engine_stop_reason {
    ENGINE_STOP_STEPS, /* the instructions asked for are done */
    ENGINE_STOP_POINT, /* before a breakpoint's instruction; behind the instruction that met a watchpoint */
    ENGINE_STOP_HALT,  /* halted before the steps were done */
    ENGINE_STOP_EXCEPTION, /* an exception is reported instead of delivered */
};

struct engine_stop {
    enum engine_stop_reason reason;
    struct engine_point point; /* the one that was met, and how (kinds) and where (linear) */
    uint64_t linear;
    uint32_t kinds;
    uint8_t vector; /* of the exception */
    bool has_error_code;
    uint32_t error_code;
};

#define ENGINE_STEPS_TO_HALT UINT64_MAX /* no limit, but a halt ends the run */

/* How the next run goes. */
#define ENGINE_GO_QUIET 1u /* no interrupt is taken */
#define ENGINE_GO_WAIT 4u  /* a halt does not end the steps: they are done once something woke the processor */
#define ENGINE_GO_PASS 2u  /* a breakpoint on the first instruction is passed over */

struct engine {
    const struct engine_ops *ops;
};

struct engine_ops {
    const char *name;
    bool irqchip; /* PIC, PIT, I/O APIC and local APICs are the engine's; the board has none */

    /* 0: can run here. Whether hardware is behind a /dev/kvm is for the caller to judge. */
    int (*probe)(imgvm_error *err);
    int (*create)(const struct engine_host *host, unsigned cpus, struct engine **out, imgvm_error *err);
    void (*destroy)(struct engine *engine);

    enum engine_exit (*run)(struct engine *engine, unsigned cpu);
    void (*kick)(struct engine *engine, unsigned cpu);
    const char *(*message)(struct engine *engine, unsigned cpu);
    uint64_t (*instructions)(struct engine *engine); /* executed in software */
    void (*tell_counts)(struct engine *engine, const struct count_sink *sink); /* all else that was counted; NULL: nothing */
    uint64_t (*handovers)(struct engine *engine);    /* times that software went on for KVM; NULL: never */

    int (*get_state)(struct engine *engine, unsigned cpu, struct x86_state *state, imgvm_error *err);
    int (*set_state)(struct engine *engine, unsigned cpu, const struct x86_state *state, imgvm_error *err);
    void (*set_a20)(struct engine *engine, bool enabled);

    /* For debuggers, while no processor runs. set_points replaces all: -ENOSPC when the engine cannot have that many.
     * set_steps: from now on `run` ends with ENGINE_EXIT_DEBUG after that many instructions; 0: no such limit. */
    int (*set_points)(struct engine *engine, const struct engine_point *points, unsigned count, imgvm_error *err);
    void (*set_steps)(struct engine *engine, unsigned cpu, uint64_t steps, uint32_t go);
    struct engine_stop (*stop_of)(struct engine *engine, unsigned cpu);
    bool (*translate)(struct engine *engine, unsigned cpu, uint64_t linear, uint64_t *gpa);
    /* Exceptions end `run` instead of being delivered. NULL: the engine cannot. */
    void (*report_exceptions)(struct engine *engine, unsigned cpu, bool report);

    /* without irqchip */
    void (*signal)(struct engine *engine, unsigned cpu, uint32_t signals, uint8_t sipi_vector);

    /* with irqchip */
    void (*set_irq)(struct engine *engine, unsigned gsi, bool level);
    void (*send_msi)(struct engine *engine, uint64_t address, uint32_t data);
    int (*reset_irqchip)(struct engine *engine, imgvm_error *err);
    /* From now on a write to gpa (any value, any size) only signals the eventfd. */
    int (*add_doorbell)(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err);
    int (*remove_doorbell)(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err);
};

extern const struct engine_ops engine_kvm_ops, engine_soft_ops, engine_jit_ops;

/* The engine of an IMGVM_ENGINE_* number, or NULL. Stands alone (engines.c), so that a program can link the
 * engines it wants. */
const struct engine_ops *engine_find(uint32_t id);

#endif
