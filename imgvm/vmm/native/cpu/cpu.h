/* SPDX-License-Identifier: MIT */
/* One processor in software. It knows guest memory and, through callbacks, a world of ports,
 * MMIO and interrupts; it knows no device. One thread runs it; other threads may only call
 * cpu_request, cpu_withdraw and cpu_has_work. */
#ifndef IMGVM_CPU_CPU_H
#define IMGVM_CPU_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../arch/cpu_feature.h"
#include "../arch/state.h"
#include "../base/clock_piece.h"
#include "../base/count.h"
#include "../mem/guest_mem.h"

struct cpu;

/* Called from the thread that runs the processor, with the guest's vector state already put away. */
struct cpu_callbacks {
    uint32_t (*port_read)(void *opaque, uint16_t port, unsigned size);
    void (*port_write)(void *opaque, uint16_t port, unsigned size, uint32_t value);
    uint64_t (*mmio_read)(void *opaque, uint64_t gpa, unsigned size); /* size 1, 2, 4, 8 */
    void (*mmio_write)(void *opaque, uint64_t gpa, unsigned size, uint64_t value);
    int (*interrupt_acknowledge)(void *opaque); /* the vector, or -1 when nothing is deliverable any more */
    /* MSRs that belong to the local APIC (1Bh, 6E0h, 800h-8FFh). false: #GP */
    bool (*msr_read)(void *opaque, uint32_t index, uint64_t *value);
    bool (*msr_write)(void *opaque, uint32_t index, uint64_t value);
    uint64_t (*cr8_read)(void *opaque);
    void (*cr8_write)(void *opaque, uint64_t value);
    uint64_t (*time_ns)(void *opaque); /* the machine's clock; must not touch vector registers */
    /* The page at gpa became code, or (`more`) more of it did: before this returns, every other processor must have dropped
     * its cached write translations, or if `more`, those that cpu_may_store_to names (CPU_REQUEST_FLUSH,
     * cpu_flush_pending). May be NULL when there is one processor. */
    void (*code_added)(void *opaque, uint64_t gpa, bool more);
    /* A locked access needs two host accesses. begin: returns once no other processor executes anything, and none does
     * until end: each is asked (CPU_REQUEST_PARK) and calls `park`, which returns then. cpu_executes tells of each
     * whether it has to be waited for. May be NULL, both, when there is one processor. */
    void (*exclusive)(void *opaque, bool begin);
    void (*park)(void *opaque);

    /* The rest may be NULL. */
    /* false: this port (or physical address) is not to be touched by this processor, because somebody else keeps the
     * device. The instruction has not begun and cpu_run returns CPU_EXIT_REFUSED. */
    bool (*may_access)(void *opaque, bool port, uint64_t address);
    /* Answers CPUID instead of the processor's own table. */
    void (*cpuid)(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
    /* The guest waits for another processor in a loop of PAUSE, PAUSES_A_CALL of them a call. */
    void (*pause)(void *opaque);
    /* A line of what was to be traced. */
    void (*trace)(void *opaque, const char *text);
    /* Code was made here, for Linux perf; NULL: nobody wants to know. */
    void (*name_code)(void *opaque, const void *start, size_t bytes, const char *name);
    /* As clock_now_in_piece, for translated code to read the TSC by; must not touch vector registers. A piece is used until
     * it ends or cpu_run does. */
    uint64_t (*time_piece)(void *opaque, struct clock_piece *out);
    /* The guest moved its TSC: guest TSC = time_ns + offset from now on. */
    void (*tsc_offset_changed)(void *opaque, uint64_t offset);
};

#define PAUSES_A_CALL 64u

/* Requests from outside, a bit each. INTR is sticky until interrupt_acknowledge says -1 or it is withdrawn. */
#define CPU_REQUEST_INTR 0x01u
#define CPU_REQUEST_NMI 0x02u
#define CPU_REQUEST_INIT 0x04u
#define CPU_REQUEST_SIPI 0x08u /* vector in cpu_set_sipi_vector */
#define CPU_REQUEST_EXIT 0x10u /* return from cpu_run soon with CPU_EXIT_REQUEST */
#define CPU_REQUEST_FLUSH 0x20u /* another processor marked code pages: drop cached write translations */
#define CPU_REQUEST_PARK 0x40u /* another processor wants to be alone */
#define CPU_REQUEST_CLOCK 0x80u /* the deadline has perhaps passed: cpu_clock_due */

enum cpu_exit {
    CPU_EXIT_REQUEST,  /* CPU_REQUEST_EXIT was seen, or the deadline passed */
    CPU_EXIT_HALT,     /* HLT or wait-for-SIPI and nothing to do: wait until cpu_has_work */
    CPU_EXIT_SHUTDOWN, /* triple fault */
    CPU_EXIT_REFUSED,  /* may_access said no to the instruction at rip */
    CPU_EXIT_INTERNAL, /* a bug or a limit of ours; cpu_message says which */
};

struct translator_ops; /* exec/exec.h; cpu/jit/jit.h has one */

struct cpu_options {
    unsigned id;        /* initial APIC ID */
    unsigned count;     /* processors of the machine, for CPUID topology */
    const struct feature_set *features; /* of those it offers, what it is to have; NULL: all but LA57 */
    enum cpu_vendor vendor;             /* AUTO is Intel */
    const struct translator_ops *translator; /* NULL: interpret everything */
    size_t block_bytes, code_bytes; /* room for decoded and for translated blocks; 0: what is good for so many processors */
    unsigned translate_after; /* interpretations of a block before it is translated */
    bool count_instructions;  /* translated code counts its instructions (cpu_instructions) and calls of executors, too */
    uint32_t traced;          /* kinds of events (base/trace.h), a bit each, that are told to `trace` */
};

/* What a processor on this host can have, as one of `count`. */
void cpu_offered_features(unsigned count, struct feature_set *out);
/* Who made this host's. */
enum cpu_vendor cpu_host_vendor(void);

/* NULL: err says why. */
struct cpu *cpu_create(const struct cpu_callbacks *callbacks, void *opaque, struct guest_mem *mem,
                       const struct cpu_options *options, imgvm_error *err);
void cpu_destroy(struct cpu *cpu);

enum cpu_exit cpu_run(struct cpu *cpu);
/* Executes at most `count` instructions; CPU_EXIT_REQUEST when it did them all. One that faults counts, with the
 * delivery of its exception. */
enum cpu_exit cpu_run_count(struct cpu *cpu, uint64_t count);
/* cpu_run returns CPU_EXIT_REQUEST soon after the machine's clock reaches this, if cpu_clock_due says so then. UINT64_MAX:
 * never. */
void cpu_set_deadline_ns(struct cpu *cpu, uint64_t deadline_ns);

/* The clock has reached the deadline, or almost: cpu_run returns CPU_EXIT_REQUEST soon. Interpreted blocks look at the
 * clock of their own accord, translated ones want to be told. May be called in a signal handler. */
void cpu_clock_due(struct cpu *cpu);
/* Code was written (guest_mem.code_changed): what is translated must be looked over. */
void cpu_look_up(struct cpu *cpu);
void cpu_request(struct cpu *cpu, uint32_t requests);
void cpu_withdraw(struct cpu *cpu, uint32_t requests);
void cpu_set_sipi_vector(struct cpu *cpu, uint8_t vector);
bool cpu_has_work(struct cpu *cpu); /* a halted processor would leave its halt */

/* For `exclusive`: is it inside cpu_run? If not, it sees CPU_REQUEST_PARK before it executes anything. */
bool cpu_executes(struct cpu *cpu);
/* For code_added: may it be in the midst of a store to that page, which holds code, having seen that it hits none? */
bool cpu_may_store_to(struct cpu *cpu, uint64_t gpa);
/* For code_added: does `cpu` still have to see CPU_REQUEST_FLUSH? Not while it is outside cpu_run: it flushes first
 * thing when it comes back. */
bool cpu_flush_pending(struct cpu *cpu);
/* On the processor's own thread: honour a flush request now (while waiting for others to honour ours). */
void cpu_flush_now(struct cpu *cpu);

/* The whole state, between two cpu_run calls. */
void cpu_get_state(struct cpu *cpu, struct x86_state *state);
void cpu_set_state(struct cpu *cpu, const struct x86_state *state);
/* A20 gate: false masks bit 20 of every physical address. */
void cpu_set_a20(struct cpu *cpu, bool enabled);

/* ---- for debuggers: all between two cpu_run calls ---- */

#define CPU_POINT_EXECUTE 1u
#define CPU_POINT_WRITE 2u
#define CPU_POINT_READ 4u

struct cpu_point {
    uint64_t linear, size; /* [linear, linear + size); a breakpoint on code looks at `linear` alone */
    uint32_t kinds;        /* CPU_POINT_* */
};

struct cpu_hit {
    struct cpu_point point;
    uint64_t linear; /* what was executed, or the first byte of the point that was touched */
    uint32_t kinds;  /* how */
};

#define CPU_WATCHED_PAGES_MAX 65536u

/* Replaces all break- and watchpoints (-ENOSPC: too much to watch, and all stays as it was), which the guest does not see. At one, cpu_run ends with CPU_EXIT_REQUEST: before
 * the instruction that a breakpoint is on, after the one that touched a watched byte. They cost nothing while unset. */
int cpu_set_points(struct cpu *cpu, const struct cpu_point *points, unsigned count, imgvm_error *err);
/* Whether that is why it ended; asked once a hit. */
bool cpu_take_hit(struct cpu *cpu, struct cpu_hit *out);
/* The next instruction runs whatever breakpoint is on it. */
void cpu_pass_point(struct cpu *cpu);
/* While held, neither INTR nor NMI is taken. */
void cpu_hold_interrupts(struct cpu *cpu, bool hold);

/* An exception on the point of being delivered: nothing of its instruction has happened (a trap's has), rip says where
 * the handler would return to, CR2 and DR6 are set. */
struct cpu_exception {
    uint8_t vector;
    bool has_error_code;
    uint32_t error_code;
};
/* While set, an exception ends cpu_run with CPU_EXIT_REQUEST instead of being delivered. INT n, INT3 and INTO are
 * instructions that go through the table, as ever; what goes wrong on their way is an exception. */
void cpu_report_exceptions(struct cpu *cpu, bool report);
/* Whether that is why it ended; asked once an exception. */
bool cpu_take_exception(struct cpu *cpu, struct cpu_exception *out);
/* The physical address behind a linear one, as the page tables have it; nothing is marked and nothing faults. */
bool cpu_probe(struct cpu *cpu, uint64_t linear, uint64_t *gpa);

uint64_t cpu_instructions(const struct cpu *cpu);
/* All else that was counted; between two cpu_run calls. */
void cpu_tell_counts(const struct cpu *cpu, const struct count_sink *sink);
const char *cpu_message(const struct cpu *cpu);
/* Once a process, before the first cpu_run: installs the SIGFPE/SIGSEGV/SIGBUS handlers that turn a native
 * instruction's trap into the guest's exception; other traps go on to whoever handled them before. */
int cpu_install_trap_handlers(imgvm_error *err);

#endif
