/* SPDX-License-Identifier: MIT */
/* A case under KVM. It has no interrupt controllers here, so that HLT comes back to us. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "backend/kvm.h"
#include "versus.h"

struct theirs {
    struct kvm_engine kvm;
    struct guest_mem mem;
    struct feature_set features;
};

static void alarmed(int number)
{
    (void)number; /* to end KVM_RUN with EINTR is all */
}

static int map_memory(struct theirs *t, uint64_t bytes)
{
    struct kvm_userspace_memory_region slot = {
        .slot = 0, .memory_size = bytes, .userspace_addr = (uintptr_t)t->mem.regions[0].host};
    return ioctl(t->kvm.vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);
}

struct theirs *theirs_start(char *why, size_t size)
{
    imgvm_error err;
    struct theirs *t = calloc(1, sizeof *t);
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + 256 * sizeof cpuid->entries[0]);
    const char *what = "out of memory";
    uint64_t identity = 0xfffbc000;
    struct sigaction action = {.sa_handler = alarmed};
    if (!t || !cpuid || guest_mem_init(&t->mem, &err) < 0 || guest_mem_add(&t->mem, 0, MEMORY_BYTES, false, &err) < 0)
        goto failed;
    sigaction(SIGALRM, &action, NULL);
    struct kvm_engine *kvm = &t->kvm;
    struct kvm_cpu *cpu = &kvm->cpu[0];
    kvm->cpus = 1;
    what = "cannot open /dev/kvm";
    if ((kvm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC)) < 0)
        goto failed;
    what = "cannot make a virtual machine";
    if ((kvm->vm_fd = ioctl(kvm->kvm_fd, KVM_CREATE_VM, 0)) < 0 ||
        ioctl(kvm->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000ul) < 0 ||
        ioctl(kvm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 || map_memory(t, MEMORY_BYTES) < 0)
        goto failed;
    what = "cannot make a processor";
    kvm->run_bytes = (size_t)ioctl(kvm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    kvm->has_xsave = ioctl(kvm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE) > 0;
    kvm->has_xcrs = ioctl(kvm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
    cpuid->nent = 256;
    if ((cpu->fd = ioctl(kvm->vm_fd, KVM_CREATE_VCPU, 0ul)) < 0 ||
        (cpu->run = mmap(NULL, kvm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0)) == MAP_FAILED ||
        ioctl(kvm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
        goto failed;
    for (unsigned i = 0; i < cpuid->nent; i++)
        if (cpuid->entries[i].function ==
            0) /* "GenuineIntel", as the software processor: SYSCALL and SYSENTER differ */
            cpuid->entries[i].ebx = 0x756e6547, cpuid->entries[i].edx = 0x49656e69, cpuid->entries[i].ecx = 0x6c65746e;
    if (ioctl(cpu->fd, KVM_SET_CPUID2, cpuid) < 0)
        goto failed;
    cpu->cpuid = cpuid;
    kvm_cpuid_features(cpuid, &t->features);
    return t;
failed:
    snprintf(why, size, "%s: %s", what, strerror(errno));
    free(cpuid);
    free(t);
    return NULL;
}

const struct feature_set *theirs_features(const struct theirs *t)
{
    return &t->features;
}

uint8_t *theirs_memory(struct theirs *t)
{
    return t->mem.regions[0].host;
}

void theirs_forget_tables(struct theirs *t)
{
    map_memory(t, 0);
    map_memory(t, MEMORY_BYTES);
}

static void serve(struct kvm_run *run, struct result *r)
{
    if (run->exit_reason == KVM_EXIT_IO) {
        uint8_t *data = (uint8_t *)run + run->io.data_offset;
        for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
            uint64_t value = 0;
            if (run->io.direction == KVM_EXIT_IO_OUT) {
                memcpy(&value, data, run->io.size);
                outside_write(r, 'o', run->io.port, run->io.size, value);
            } else {
                value = outside_read(r, 'i', run->io.port, run->io.size);
                memcpy(data, &value, run->io.size);
            }
        }
        return;
    }
    uint64_t value = 0;
    unsigned size = MIN(run->mmio.len, 8u);
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, size);
        outside_write(r, 'w', run->mmio.phys_addr, size, value);
    } else {
        value = outside_read(r, 'r', run->mmio.phys_addr, size);
        memcpy(run->mmio.data, &value, size);
    }
}

void theirs_run(struct theirs *t, const struct x86_state *state, struct result *r)
{
    struct kvm_run *run = t->kvm.cpu[0].run;
    imgvm_error err;
    const struct itimerval limit = {.it_value.tv_usec = 300000}, none = {0};
    r->accesses = 0;
    r->outcome = CANNOT;
    struct kvm_sregs sregs;
    run->cr8 = state->cr8; /* without interrupt controllers in the kernel, it is here */
    if (kvm_state_set(&t->kvm, 0, state, &err) < 0 || ioctl(t->kvm.cpu[0].fd, KVM_GET_SREGS, &sregs) < 0)
        return;
    if (sregs.cr0 != state->cr0 || sregs.cr4 != state->cr4) { /* a paravirtual KVM has no 32-bit paging */
        ioctl(t->kvm.cpu[0].fd, KVM_RUN, 0); /* the shutdown that this left pending would be the next case's */
        return;
    }
    setitimer(ITIMER_REAL, &limit, NULL);
    for (unsigned turns = 0; turns < 1000; turns++) {
        if (ioctl(t->kvm.cpu[0].fd, KVM_RUN, 0) < 0) {
            r->outcome = errno == EINTR ? RUNS_ON : CANNOT;
            break;
        }
        if (run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO) {
            serve(run, r);
            continue;
        }
        r->outcome = run->exit_reason == KVM_EXIT_HLT        ? HALTED
                     : run->exit_reason == KVM_EXIT_SHUTDOWN ? SHUTDOWN
                                                             : CANNOT;
        break;
    }
    setitimer(ITIMER_REAL, &none, NULL);
    if (kvm_state_get(&t->kvm, 0, &r->state, &err) < 0)
        r->outcome = CANNOT;
}

void theirs_stop(struct theirs *t)
{
    munmap(t->kvm.cpu[0].run, t->kvm.run_bytes);
    close(t->kvm.cpu[0].fd);
    close(t->kvm.vm_fd);
    close(t->kvm.kvm_fd);
    free(t->kvm.cpu[0].cpuid);
    guest_mem_destroy(&t->mem);
    free(t);
}
