/* SPDX-License-Identifier: MIT */
/* Shared by the files kvm*.c, the only ones that see <linux/kvm.h>. */
#ifndef IMGVM_BACKEND_KVM_H
#define IMGVM_BACKEND_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

#include "../base/bits.h"
#include "backend.h"
#include "handover.h"

struct kvm_cpu {
    int fd;
    struct kvm_run *run;
    pthread_t thread;
    _Atomic bool running_once; /* `thread` is valid */
    _Atomic bool kicked;
    struct kvm_cpuid2 *cpuid; /* as the guest sees it */
    struct handover *handover; /* made when first needed */
    uint64_t handovers;
    char message[480];

    /* a debugger's wishes (kvm_debug.c) */
    uint64_t steps;     /* left to do; 0: no limit */
    uint64_t step_pc; /* linear address of the instruction being stepped */
    bool quiet, passing;
    bool debug_changed; /* KVM has to be told */
    struct engine_stop stop;
};

#define KVM_DEBUG_REGISTERS 4u

/* A message-signalled interrupt that the kernel sends when its eventfd is written (KVM_IRQFD). */
struct kvm_message {
    uint64_t address;
    uint32_t data;
    int fd;
};
#define KVM_MESSAGES 64
#define KVM_FIRST_MESSAGE_GSI 24

struct kvm_engine {
    struct engine engine;
    struct engine_host host;
    int kvm_fd, vm_fd;
    unsigned cpus;
    size_t run_bytes;
    bool has_xsave, has_xcrs;
    pthread_mutex_t message_lock;
    struct kvm_message message[KVM_MESSAGES]; /* GSI KVM_FIRST_MESSAGE_GSI + index */
    unsigned messages;
    bool limited; /* the guest has these features; else all that KVM supports */
    struct feature_set features;
    struct engine_point *points; /* a debugger's, and which debug register holds which */
    unsigned point_count, debug_used;
    bool debug_scan; /* there are more breakpoints than registers */
    uint64_t debug_address[KVM_DEBUG_REGISTERS], debug_dr7;
    uint8_t debug_point[KVM_DEBUG_REGISTERS];
    struct kvm_cpu cpu[ENGINE_CPUS_MAX];
};

static inline struct kvm_engine *kvm_of(struct engine *engine)
{
    return container_of(engine, struct kvm_engine, engine);
}

/* kvm_run.c */
enum engine_exit kvm_run_cpu(struct engine *engine, unsigned id);
void kvm_kick(struct engine *engine, unsigned id);
/* Before its first run. */
int kvm_let_kicks_through(struct kvm_cpu *cpu, imgvm_error *err);

/* kvm_irq.c */
void kvm_set_irq(struct engine *engine, unsigned gsi, bool level);
void kvm_send_msi(struct engine *engine, uint64_t address, uint32_t data);
int kvm_add_doorbell(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err);
int kvm_remove_doorbell(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err);
/* Tells the kernel which GSI leads where, messages among them. */
int kvm_route(struct kvm_engine *kvm, imgvm_error *err);

/* kvm_state.c */
int kvm_state_get(struct kvm_engine *kvm, unsigned cpu, struct x86_state *state, imgvm_error *err);
int kvm_state_set(struct kvm_engine *kvm, unsigned cpu, const struct x86_state *state, imgvm_error *err);
/* The interrupt controllers back to power-on. */
int kvm_state_reset_irqchip(struct kvm_engine *kvm, imgvm_error *err);

/* kvm_cpuid.c. `id`: the processor's place in the machine. */
void kvm_cpuid_adapt(struct kvm_cpuid2 *cpuid, const struct kvm_engine *kvm, unsigned id);
/* Sets what the host's processor executes though its KVM does not say so. */
void kvm_cpuid_add_plain(struct kvm_cpuid2 *cpuid);
/* The rows of cpuid.def that are set. */
enum cpu_vendor kvm_cpuid_vendor(const struct kvm_cpuid2 *cpuid);
/* Makes it a processor of this vendor's; AUTO: it stays the host's. KVM then lets SYSENTER and SYSCALL go that way. */
void kvm_cpuid_set_vendor(struct kvm_cpuid2 *cpuid, enum cpu_vendor vendor);
void kvm_cpuid_features(struct kvm_cpuid2 *cpuid, struct feature_set *out);
/* Clears what is not granted; only_known: also all that cpuid.def has no row for. */
void kvm_cpuid_limit(struct kvm_cpuid2 *cpuid, const struct feature_set *granted, bool only_known);

/* kvm_debug.c */
int kvm_debug_set_points(struct kvm_engine *kvm, const struct engine_point *points, unsigned count, imgvm_error *err);
void kvm_debug_set_steps(struct kvm_engine *kvm, unsigned cpu, uint64_t steps, uint32_t go);
int kvm_debug_prepare(struct kvm_engine *kvm, unsigned cpu); /* before KVM_RUN, when debug_changed; -1 and errno */
bool kvm_debug_exit(struct kvm_engine *kvm, unsigned cpu);   /* KVM_EXIT_DEBUG; false: go on */
bool kvm_debug_translate(struct kvm_engine *kvm, unsigned cpu, uint64_t linear, uint64_t *gpa);

#endif
