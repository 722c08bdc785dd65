/* SPDX-License-Identifier: MIT */
/* The KVM engine: the host's kernel runs the processors, with its own PIC, I/O APIC, local APICs and PIT. */
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../base/bits.h"

#define CPUID_ENTRIES 256
#define TSS_ADDRESS 0xfffbd000u /* three pages that no RAM and no device uses (Intel hosts without unrestricted guest) */
#define IDENTITY_ADDRESS UINT64_C(0xfffbc000)

static const struct {
    int capability;
    const char *name;
} required[] = {
    {KVM_CAP_USER_MEMORY, "USER_MEMORY"},   {KVM_CAP_READONLY_MEM, "READONLY_MEM"},
    {KVM_CAP_IRQCHIP, "IRQCHIP"},           {KVM_CAP_PIT2, "PIT2"},
    {KVM_CAP_IRQ_ROUTING, "IRQ_ROUTING"},   {KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI"},
    {KVM_CAP_IOEVENTFD, "IOEVENTFD"},       {KVM_CAP_IRQFD, "IRQFD"},
    {KVM_CAP_EXT_CPUID, "EXT_CPUID"},       {KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR"},
    {KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS"},   {KVM_CAP_MP_STATE, "MP_STATE"},
    {KVM_CAP_DEBUGREGS, "DEBUGREGS"},
};

static int open_kvm(imgvm_error *err)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        int code = errno;
        if (code == ENOENT) {
            error_set(err, code, "KVM: /dev/kvm does not exist");
            return error_hint(err, "load the kvm_intel or kvm_amd module, or use the software processor");
        }
        if (code == EACCES || code == EPERM) {
            error_set(err, code, "KVM: no permission to open /dev/kvm");
            return error_hint(err, "add the user to the group kvm, or use the software processor");
        }
        return error_set(err, code, "KVM: cannot open /dev/kvm: %s", strerror(code));
    }
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        close(fd);
        return error_set(err, ENOTSUP, "KVM: /dev/kvm speaks version %d of the interface, not %d", version, KVM_API_VERSION);
    }
    for (unsigned i = 0; i < ARRAY_LEN(required); i++)
        if (ioctl(fd, KVM_CHECK_EXTENSION, required[i].capability) <= 0) {
            close(fd);
            return error_set(err, ENOTSUP, "KVM: this host's kernel lacks KVM_CAP_%s", required[i].name);
        }
    return fd;
}

/* ---- creation ---- */

static int create_vm(struct kvm_engine *kvm, imgvm_error *err)
{
    kvm->vm_fd = ioctl(kvm->kvm_fd, KVM_CREATE_VM, 0);
    if (kvm->vm_fd < 0)
        return error_set(err, errno, "KVM: cannot create a virtual machine: %s", strerror(errno));
    uint64_t identity = IDENTITY_ADDRESS;
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    if (ioctl(kvm->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_ADDRESS) < 0 ||
        ioctl(kvm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
        return error_set(err, errno, "KVM: cannot place the real-mode helper pages: %s", strerror(errno));
    if (ioctl(kvm->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return error_set(err, errno, "KVM: cannot create the interrupt controllers: %s", strerror(errno));
    if (ioctl(kvm->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
        return error_set(err, errno, "KVM: cannot create the interval timer: %s", strerror(errno));
    return 0;
}

static int add_memory(struct kvm_engine *kvm, imgvm_error *err)
{
    const struct guest_mem *mem = kvm->host.mem;
    for (unsigned i = 0; i < mem->count; i++) {
        const struct guest_region *region = &mem->regions[i];
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .flags = region->read_only ? KVM_MEM_READONLY : 0,
            .guest_phys_addr = region->gpa,
            .memory_size = region->size,
            .userspace_addr = (uintptr_t)region->host,
        };
        if (ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
            return error_set(err, errno, "KVM: cannot map guest memory at %#" PRIx64 ": %s", region->gpa, strerror(errno));
    }
    return 0;
}

static int create_cpu(struct kvm_engine *kvm, unsigned id, const struct kvm_cpuid2 *supported, imgvm_error *err)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    cpu->fd = ioctl(kvm->vm_fd, KVM_CREATE_VCPU, (unsigned long)id);
    if (cpu->fd < 0)
        return error_set(err, errno, "KVM: cannot create processor %u: %s", id, strerror(errno));
    void *run = mmap(NULL, kvm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
    if (run == MAP_FAILED)
        return error_set(err, errno, "KVM: cannot map processor %u: %s", id, strerror(errno));
    cpu->run = run;

    size_t bytes = sizeof *supported + CPUID_ENTRIES * sizeof supported->entries[0];
    struct kvm_cpuid2 *cpuid = malloc(bytes);
    if (!cpuid)
        return error_set(err, ENOMEM, "KVM: out of memory");
    memcpy(cpuid, supported, bytes);
    kvm_cpuid_adapt(cpuid, kvm, id);
    kvm_cpuid_add_plain(cpuid);
    if (kvm->host.wish) {
        kvm_cpuid_set_vendor(cpuid, kvm->host.wish->vendor);
        kvm_cpuid_features(cpuid, &kvm->features);
        int result = cpu_wish_grant(kvm->host.wish, &kvm->features, &kvm->features, err);
        if (result < 0) {
            free(cpuid);
            return result;
        }
        kvm_cpuid_limit(cpuid, &kvm->features, kvm->host.wish->model != CPU_MODEL_HOST);
        kvm->limited = true;
    }
    cpu->cpuid = cpuid;
    if (ioctl(cpu->fd, KVM_SET_CPUID2, cpuid) < 0)
        return error_set(err, errno, "KVM: the host refuses processor %u's CPUID: %s", id, strerror(errno));
    return kvm_let_kicks_through(cpu, err);
}

static void kvm_destroy(struct engine *engine)
{
    struct kvm_engine *kvm = kvm_of(engine);
    for (unsigned i = 0; i < kvm->cpus; i++) {
        handover_destroy(kvm->cpu[i].handover);
        free(kvm->cpu[i].cpuid);
        if (kvm->cpu[i].run)
            munmap(kvm->cpu[i].run, kvm->run_bytes);
        if (kvm->cpu[i].fd >= 0)
            close(kvm->cpu[i].fd);
    }
    for (unsigned i = 0; i < kvm->messages; i++)
        close(kvm->message[i].fd);
    pthread_mutex_destroy(&kvm->message_lock);
    if (kvm->vm_fd >= 0)
        close(kvm->vm_fd);
    if (kvm->kvm_fd >= 0)
        close(kvm->kvm_fd);
    free(kvm->points);
    free(kvm);
}

static int kvm_create(const struct engine_host *host, unsigned cpus, struct engine **out, imgvm_error *err)
{
    struct kvm_engine *kvm = calloc(1, sizeof *kvm);
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + CPUID_ENTRIES * sizeof cpuid->entries[0]);
    int result = error_set(err, ENOMEM, "KVM: out of memory");
    if (!kvm || !cpuid) {
        free(kvm);
        free(cpuid);
        return result;
    }
    kvm->engine.ops = &engine_kvm_ops;
    kvm->host = *host;
    kvm->cpus = cpus;
    kvm->vm_fd = -1;
    pthread_mutex_init(&kvm->message_lock, NULL);
    for (unsigned i = 0; i < cpus; i++)
        kvm->cpu[i].fd = -1;
    kvm->kvm_fd = result = open_kvm(err);
    if (result < 0)
        goto failed;
    int run_bytes = ioctl(kvm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_bytes < (int)sizeof(struct kvm_run)) {
        result = error_set(err, run_bytes < 0 ? errno : ENOTSUP, "KVM: the host says nothing of a processor's shared page");
        goto failed;
    }
    kvm->run_bytes = (size_t)run_bytes;
    kvm->has_xsave = ioctl(kvm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE) > 0;
    kvm->has_xcrs = ioctl(kvm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
    cpuid->nent = CPUID_ENTRIES;
    if (ioctl(kvm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
        result = error_set(err, errno, "KVM: cannot read the supported CPUID: %s", strerror(errno));
        goto failed;
    }
    if ((result = create_vm(kvm, err)) < 0 || (result = add_memory(kvm, err)) < 0 || (result = kvm_route(kvm, err)) < 0)
        goto failed;
    for (unsigned i = 0; i < cpus; i++)
        if ((result = create_cpu(kvm, i, cpuid, err)) < 0)
            goto failed;
    free(cpuid);
    kvm->host.wish = NULL; /* it was lent for this call */
    *out = &kvm->engine;
    return 0;
failed:
    free(cpuid);
    kvm_destroy(&kvm->engine);
    return result;
}

static const char *kvm_message(struct engine *engine, unsigned id)
{
    return kvm_of(engine)->cpu[id].message;
}

/* Only what the software processor did for KVM is counted. */
static uint64_t kvm_instructions(struct engine *engine)
{
    struct kvm_engine *kvm = kvm_of(engine);
    uint64_t sum = 0;
    for (unsigned i = 0; i < kvm->cpus; i++)
        sum += kvm->cpu[i].handover ? handover_instructions(kvm->cpu[i].handover) : 0;
    return sum;
}

static uint64_t kvm_handovers(struct engine *engine)
{
    struct kvm_engine *kvm = kvm_of(engine);
    uint64_t sum = 0;
    for (unsigned i = 0; i < kvm->cpus; i++)
        sum += kvm->cpu[i].handovers;
    return sum;
}

static int kvm_get_state(struct engine *engine, unsigned cpu, struct x86_state *state, imgvm_error *err)
{
    return kvm_state_get(kvm_of(engine), cpu, state, err);
}

static int kvm_set_state(struct engine *engine, unsigned cpu, const struct x86_state *state, imgvm_error *err)
{
    return kvm_state_set(kvm_of(engine), cpu, state, err);
}

/* ---- debuggers ---- */

static int kvm_set_points(struct engine *engine, const struct engine_point *points, unsigned count, imgvm_error *err)
{
    return kvm_debug_set_points(kvm_of(engine), points, count, err);
}

static void kvm_set_steps(struct engine *engine, unsigned cpu, uint64_t steps, uint32_t go)
{
    kvm_debug_set_steps(kvm_of(engine), cpu, steps, go);
}

static struct engine_stop kvm_stop_of(struct engine *engine, unsigned cpu)
{
    return kvm_of(engine)->cpu[cpu].stop;
}

static bool kvm_translate(struct engine *engine, unsigned cpu, uint64_t linear, uint64_t *gpa)
{
    return kvm_debug_translate(kvm_of(engine), cpu, linear, gpa);
}

/* KVM always has address line 20 enabled. */
static void kvm_set_a20(struct engine *engine, bool enabled)
{
    (void)engine;
    (void)enabled;
}

static int kvm_reset_irqchip(struct engine *engine, imgvm_error *err)
{
    return kvm_state_reset_irqchip(kvm_of(engine), err);
}

static int kvm_probe(imgvm_error *err)
{
    int fd = open_kvm(err);
    if (fd < 0)
        return fd;
    int vm = ioctl(fd, KVM_CREATE_VM, 0);
    int code = errno;
    close(fd);
    if (vm < 0)
        return error_set(err, code, "KVM: cannot create a virtual machine: %s", strerror(code));
    close(vm);
    return 0;
}

const struct engine_ops engine_kvm_ops = {
    .name = "kvm",
    .irqchip = true,
    .probe = kvm_probe,
    .create = kvm_create,
    .destroy = kvm_destroy,
    .run = kvm_run_cpu,
    .kick = kvm_kick,
    .message = kvm_message,
    .instructions = kvm_instructions,
    .handovers = kvm_handovers,
    .get_state = kvm_get_state,
    .set_state = kvm_set_state,
    .set_a20 = kvm_set_a20,
    .set_points = kvm_set_points,
    .set_steps = kvm_set_steps,
    .stop_of = kvm_stop_of,
    .translate = kvm_translate,
    .set_irq = kvm_set_irq,
    .send_msi = kvm_send_msi,
    .reset_irqchip = kvm_reset_irqchip,
    .add_doorbell = kvm_add_doorbell,
    .remove_doorbell = kvm_remove_doorbell,
};
