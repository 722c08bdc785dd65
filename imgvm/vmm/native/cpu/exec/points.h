/* SPDX-License-Identifier: MIT */
/* A debugger's break- and watchpoints: any number, by linear address, unseen by the guest (its own are in debug.h).
 *
 * Nothing of this is looked at while no point is set. Code on a page with a breakpoint is never cached: each of its
 * instructions comes through block_single, which asks here. Pages with watchpoints never enter the TLB: each access to
 * them comes through access.c's slow path, which asks here. */
#ifndef IMGVM_CPU_EXEC_POINTS_H
#define IMGVM_CPU_EXEC_POINTS_H

#include <stdbool.h>
#include <stdint.h>

#include "../../base/bits.h"
#include "../cpu.h"

struct uop;

struct points {
    struct cpu_point *point;
    unsigned count, code, data; /* of all kinds; with CPU_POINT_EXECUTE; with the others */
    bool pass;                  /* the breakpoint at pass_linear is passed over once */
    uint64_t pass_linear;
    bool is_hit;
    struct cpu_hit hit;
};

/* Is there a breakpoint on this address's page? */
bool points_on_page(const struct points *points, uint64_t linear);
/* Are some of these bytes watched? */
bool points_watch(const struct points *points, uint64_t linear, unsigned size);
/* Before the instruction at `linear` runs: does not return when a breakpoint is there. */
void points_meet_code(struct cpu *cpu, uint64_t linear);
/* A data access, while the instruction may still be started over. After a hit it is completed, then cpu_run ends. */
void points_meet_data(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, uint32_t kinds);

#endif
