/* SPDX-License-Identifier: MIT */
/* What a block asked the world outside of its processor, so that it can be asked the same again without asking. */
#ifndef IMGVM_CPU_JIT_LOCKSTEP_IO_H
#define IMGVM_CPU_JIT_LOCKSTEP_IO_H

#include "../exec/exec.h"

#define LOCKSTEP_EVENTS 4096u

enum lockstep_kind { PORT_READ, PORT_WRITE, MMIO_READ, MMIO_WRITE, MSR_READ, MSR_WRITE, CR8_READ, CR8_WRITE, TIME, TSC_MOVED };

struct lockstep_event {
    uint8_t kind, size;
    bool ok; /* MSRs: no #GP */
    uint64_t address, value;
};

enum lockstep_phase {
    IO_REAL,   /* no block is being compared */
    IO_RECORD, /* what is not in the record yet happens, and is entered */
    IO_REPLAY, /* what is not in the record is a difference */
    IO_FINISH, /* the record, then the world */
};

struct lockstep_io {
    struct cpu *cpu;
    struct cpu_callbacks real;
    void *opaque;
    enum lockstep_phase phase;
    unsigned count, next;
    bool differs; /* found at event[next - 1] or at the end */
    struct lockstep_event event[LOCKSTEP_EVENTS];
};

/* Puts itself between the processor and its callbacks. */
void lockstep_io_attach(struct lockstep_io *io, struct cpu *cpu);

#endif
