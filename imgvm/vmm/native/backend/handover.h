/* SPDX-License-Identifier: MIT */
/* Where a host's KVM cannot go on (an instruction its emulator does not know, a mode its processor cannot run), the
 * processor in software executes on the same state and memory until KVM can. */
#ifndef IMGVM_BACKEND_HANDOVER_H
#define IMGVM_BACKEND_HANDOVER_H

#include "backend.h"

struct handover;

struct handover_host {
    const struct engine_host *engine;
    void *opaque;
    /* The engine's CPUID table, so that the guest sees one processor. */
    void (*cpuid)(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
    /* The guest's TSC now. */
    uint64_t (*tsc)(void *opaque);
    const struct feature_set *features; /* of the guest's processors; NULL: all */
    enum cpu_vendor vendor;             /* as its CPUID says */
};

int handover_create(const struct handover_host *host, unsigned cpu, struct handover **out, imgvm_error *err);
void handover_destroy(struct handover *handover);

enum handover_result {
    HANDOVER_DONE,     /* *state has moved on: back to KVM */
    HANDOVER_SHUTDOWN, /* triple fault */
    HANDOVER_FAILED,   /* not one instruction could be executed; message says why */
};

/* Executes from *state. A failure at the place where the last one ended doubles the number of instructions, so that
 * what KVM cannot run at all is left behind in few turns. */
enum handover_result handover_run(struct handover *handover, struct x86_state *state);
const char *handover_message(const struct handover *handover);
uint64_t handover_instructions(const struct handover *handover);

#endif
