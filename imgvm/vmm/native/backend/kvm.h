/* SPDX-License-Identifier: MIT */
/* Shared by kvm.c, kvm_cpuid.c and kvm_state.c, the only files that see <linux/kvm.h>. */
#ifndef IMGVM_BACKEND_KVM_H
#define IMGVM_BACKEND_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

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
};

struct kvm_engine {
    struct engine engine;
    struct engine_host host;
    int kvm_fd, vm_fd;
    unsigned cpus;
    size_t run_bytes;
    bool has_xsave, has_xcrs;
    bool limited; /* the guest has these features; else all that KVM supports */
    struct feature_set features;
    struct kvm_cpu cpu[ENGINE_CPUS_MAX];
};

int kvm_state_get(struct kvm_engine *kvm, unsigned cpu, struct x86_state *state, imgvm_error *err);
int kvm_state_set(struct kvm_engine *kvm, unsigned cpu, const struct x86_state *state, imgvm_error *err);
/* The interrupt controllers back to power-on. */
int kvm_state_reset_irqchip(struct kvm_engine *kvm, imgvm_error *err);

/* kvm_cpuid.c. `id`: the processor's place in the machine. */
void kvm_cpuid_adapt(struct kvm_cpuid2 *cpuid, const struct kvm_engine *kvm, unsigned id);
/* Sets what the host's processor executes though its KVM does not say so. */
void kvm_cpuid_add_plain(struct kvm_cpuid2 *cpuid);
/* The rows of cpuid.def that are set. */
void kvm_cpuid_features(struct kvm_cpuid2 *cpuid, struct feature_set *out);
/* Clears what is not granted; only_known: also all that cpuid.def has no row for. */
void kvm_cpuid_limit(struct kvm_cpuid2 *cpuid, const struct feature_set *granted, bool only_known);

#endif
