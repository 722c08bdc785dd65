/* SPDX-License-Identifier: MIT */
/* The KVM engine: the host's kernel runs the processors, with its own PIC, I/O APIC, local APICs and PIT.
 *
 * A kick is a signal that every thread of ours keeps blocked and that KVM_RUN alone lets through
 * (KVM_SET_SIGNAL_MASK): so no handler is installed in the process that hosts us, and a signal that arrives
 * before KVM_RUN still ends it. The flag `kicked` tells a kick from a stray wake-up. */
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../base/bits.h"

#define CPUID_ENTRIES 256
#define TSS_ADDRESS 0xfffbd000u /* three pages that no RAM and no device uses (Intel hosts without unrestricted guest) */
#define IDENTITY_ADDRESS UINT64_C(0xfffbc000)

static int kick_signal(void)
{
    return SIGRTMIN + 4;
}

static struct kvm_engine *kvm_of(struct engine *engine)
{
    return container_of(engine, struct kvm_engine, engine);
}

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

/* GSIs 0-15 reach the PIC and the I/O APIC, 16-23 the I/O APIC alone; the PIT's IRQ 0 is wired to pin 2 of the
 * I/O APIC, which the MADT's override tells. */
static int set_routing(struct kvm_engine *kvm, imgvm_error *err)
{
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entry[16 + 24 + KVM_MESSAGES];
    } table = {0};
    unsigned n = 0;
    for (unsigned gsi = 0; gsi < 24; gsi++) {
        if (gsi < 16 && gsi != 2)
            table.entry[n++] = (struct kvm_irq_routing_entry){
                .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP,
                .u.irqchip = {gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi & 7}};
        if (gsi != 2)
            table.entry[n++] = (struct kvm_irq_routing_entry){
                .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {KVM_IRQCHIP_IOAPIC, gsi ? gsi : 2}};
    }
    for (unsigned i = 0; i < kvm->messages; i++)
        table.entry[n++] = (struct kvm_irq_routing_entry){
            .gsi = KVM_FIRST_MESSAGE_GSI + i, .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)kvm->message[i].address,
                      .address_hi = (uint32_t)(kvm->message[i].address >> 32), .data = kvm->message[i].data}};
    table.head.nr = n;
    if (ioctl(kvm->vm_fd, KVM_SET_GSI_ROUTING, &table) < 0)
        return error_set(err, errno, "KVM: cannot set the interrupt routing: %s", strerror(errno));
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

    struct __attribute__((packed)) { /* the set follows the 32-bit length without a gap */
        struct kvm_signal_mask head;
        uint64_t blocked;
    } mask = {.head.len = 8, .blocked = ~(UINT64_C(1) << (kick_signal() - 1))};
    if (ioctl(cpu->fd, KVM_SET_SIGNAL_MASK, &mask) < 0)
        return error_set(err, errno, "KVM: cannot set the signal mask: %s", strerror(errno));
    return 0;
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
    kvm->run_bytes = (size_t)ioctl(kvm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    kvm->has_xsave = ioctl(kvm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE) > 0;
    kvm->has_xcrs = ioctl(kvm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
    cpuid->nent = CPUID_ENTRIES;
    if (ioctl(kvm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
        result = error_set(err, errno, "KVM: cannot read the supported CPUID: %s", strerror(errno));
        goto failed;
    }
    if ((result = create_vm(kvm, err)) < 0 || (result = add_memory(kvm, err)) < 0 || (result = set_routing(kvm, err)) < 0)
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

/* ---- running ---- */

static void serve_port(struct kvm_engine *kvm, unsigned cpu, struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        uint32_t value = 0;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, data, run->io.size);
            kvm->host.port_write(kvm->host.opaque, cpu, run->io.port, run->io.size, value);
        } else {
            value = kvm->host.port_read(kvm->host.opaque, cpu, run->io.port, run->io.size);
            memcpy(data, &value, run->io.size);
        }
    }
}

static void serve_mmio(struct kvm_engine *kvm, unsigned cpu, struct kvm_run *run)
{
    uint64_t value = 0;
    unsigned size = MIN(run->mmio.len, 8u);
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, size);
        kvm->host.mmio_write(kvm->host.opaque, cpu, run->mmio.phys_addr, size, value);
    } else {
        value = kvm->host.mmio_read(kvm->host.opaque, cpu, run->mmio.phys_addr, size);
        memcpy(run->mmio.data, &value, size);
    }
}

/* Where it stopped and what stands there, for a failure the user has to understand. */
static void describe_failure(struct kvm_cpu *cpu, unsigned id, const char *what)
{
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs = {0};
    ioctl(cpu->fd, KVM_GET_REGS, &regs);
    ioctl(cpu->fd, KVM_GET_SREGS, &sregs);
    int n = snprintf(cpu->message, sizeof cpu->message,
                     "KVM: %s (processor %u, cs:rip %04x:%#llx, cr0 %#llx, cr3 %#llx, cr4 %#llx)", what, id,
                     sregs.cs.selector, regs.rip, sregs.cr0, sregs.cr3, sregs.cr4);
    struct kvm_run *run = cpu->run;
    if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR && run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
        run->internal.ndata > 1 && (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
        n += snprintf(cpu->message + n, sizeof cpu->message - n, ", instruction");
        for (unsigned i = 0; i < MIN(run->emulation_failure.insn_size, 15); i++)
            n += snprintf(cpu->message + n, sizeof cpu->message - n, " %02x", run->emulation_failure.insn_bytes[i]);
    }
}

static enum engine_exit fail(struct kvm_engine *kvm, unsigned id)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    struct kvm_run *run = cpu->run;
    char what[128];
    switch (run->exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR:
        if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
            snprintf(what, sizeof what, "the host cannot emulate an instruction of the guest");
        else
            snprintf(what, sizeof what, "internal error %u of the host", run->internal.suberror);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(what, sizeof what, "the host's processor refuses to enter the guest, reason %#llx",
                 run->fail_entry.hardware_entry_failure_reason);
        break;
    default:
        snprintf(what, sizeof what, "exit for an unknown reason %u", run->exit_reason);
    }
    describe_failure(cpu, id, what);
    return ENGINE_EXIT_INTERNAL;
}

/* ---- when KVM cannot go on ---- */

static void cpuid_of_guest(void *opaque, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct kvm_cpuid2 *cpuid = ((struct kvm_cpu *)opaque)->cpuid;
    for (unsigned i = 0; i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        bool indexed = entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        if (entry->function != leaf || (indexed && entry->index != subleaf))
            continue;
        out[0] = entry->eax;
        out[1] = entry->ebx;
        out[2] = entry->ecx;
        out[3] = entry->edx;
        return;
    }
    out[0] = out[1] = out[2] = out[3] = 0;
}

static uint64_t tsc_of_guest(void *opaque)
{
    struct kvm_cpu *cpu = opaque;
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[1];
    } msr = {.head.nmsrs = 1, .entry[0].index = 0x10};
    return ioctl(cpu->fd, KVM_GET_MSRS, &msr) == 1 ? msr.entry[0].data : 0;
}

/* The software processor goes on from here until KVM can. */
static enum engine_exit hand_over(struct kvm_engine *kvm, unsigned id, bool *go_on)
{
    struct kvm_cpu *cpu = &kvm->cpu[id];
    imgvm_error err = {0};
    struct x86_state state;
    *go_on = false;
    if (!cpu->handover) {
        const struct handover_host host = {&kvm->host, cpu, cpuid_of_guest, tsc_of_guest,
                                            kvm->limited ? &kvm->features : NULL, kvm_cpuid_vendor(cpu->cpuid)};
        if (handover_create(&host, id, &cpu->handover, &err) < 0)
            goto failed;
    }
    if (kvm_state_get(kvm, id, &state, &err) < 0)
        goto failed;
    switch (handover_run(cpu->handover, &state)) {
    case HANDOVER_SHUTDOWN:
        return kvm_state_set(kvm, id, &state, &err) < 0 ? ENGINE_EXIT_INTERNAL : ENGINE_EXIT_SHUTDOWN;
    case HANDOVER_FAILED:
        snprintf(cpu->message, sizeof cpu->message, "%s", handover_message(cpu->handover));
        return ENGINE_EXIT_INTERNAL;
    case HANDOVER_DONE:
        break;
    }
    if (kvm_state_set(kvm, id, &state, &err) < 0)
        goto failed;
    cpu->handovers++;
    *go_on = true;
    return ENGINE_EXIT_KICKED;
failed:
    snprintf(cpu->message, sizeof cpu->message, "%s", err.message);
    return ENGINE_EXIT_INTERNAL;
}

static bool software_can(const struct kvm_run *run)
{
    return (run->exit_reason == KVM_EXIT_INTERNAL_ERROR && run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) ||
           run->exit_reason == KVM_EXIT_FAIL_ENTRY;
}

static void consume_kick_signal(void)
{
    sigset_t set;
    struct timespec none = {0};
    sigemptyset(&set);
    sigaddset(&set, kick_signal());
    while (sigtimedwait(&set, NULL, &none) > 0)
        ;
}

static enum engine_exit kvm_run_cpu(struct engine *engine, unsigned id)
{
    struct kvm_engine *kvm = kvm_of(engine);
    struct kvm_cpu *cpu = &kvm->cpu[id];
    if (!atomic_load(&cpu->running_once)) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, kick_signal());
        pthread_sigmask(SIG_BLOCK, &set, NULL);
        cpu->thread = pthread_self();
        atomic_store(&cpu->running_once, true);
    }
    for (;;) {
        if (atomic_exchange(&cpu->kicked, false)) {
            /* A port or MMIO access that we answered is completed by the next KVM_RUN: let it, without going on. */
            cpu->run->immediate_exit = 1;
            ioctl(cpu->fd, KVM_RUN, 0);
            cpu->run->immediate_exit = 0;
            consume_kick_signal();
            return ENGINE_EXIT_KICKED;
        }
        if (unlikely(cpu->debug_changed) && kvm_debug_prepare(kvm, id) < 0) {
            snprintf(cpu->message, sizeof cpu->message, "KVM: this host cannot debug: %s", strerror(errno));
            return ENGINE_EXIT_INTERNAL;
        }
        if (ioctl(cpu->fd, KVM_RUN, 0) < 0) {
            if (errno == EINTR || errno == EAGAIN) {
                consume_kick_signal();
                continue;
            }
            if (errno == EFAULT) {
                describe_failure(cpu, id, "the host cannot map a page of guest memory");
                return ENGINE_EXIT_INTERNAL;
            }
            snprintf(cpu->message, sizeof cpu->message, "KVM: processor %u cannot run: %s", id, strerror(errno));
            return ENGINE_EXIT_INTERNAL;
        }
        switch (cpu->run->exit_reason) {
        case KVM_EXIT_IO:
            serve_port(kvm, id, cpu->run);
            break;
        case KVM_EXIT_MMIO:
            serve_mmio(kvm, id, cpu->run);
            break;
        case KVM_EXIT_IRQ_WINDOW_OPEN:
        case KVM_EXIT_INTR:
            break;
        case KVM_EXIT_DEBUG:
            if (kvm_debug_exit(kvm, id))
                return ENGINE_EXIT_DEBUG;
            break;
        case KVM_EXIT_SHUTDOWN:
            return ENGINE_EXIT_SHUTDOWN;
        default:
            if (software_can(cpu->run)) {
                bool go_on;
                enum engine_exit exit = hand_over(kvm, id, &go_on);
                if (!go_on)
                    return exit;
                break;
            }
            return fail(kvm, id);
        }
    }
}

static void kvm_kick(struct engine *engine, unsigned id)
{
    struct kvm_cpu *cpu = &kvm_of(engine)->cpu[id];
    atomic_store(&cpu->kicked, true);
    if (atomic_load(&cpu->running_once))
        pthread_kill(cpu->thread, kick_signal());
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

/* ---- interrupts ---- */

static void kvm_set_irq(struct engine *engine, unsigned gsi, bool level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    ioctl(kvm_of(engine)->vm_fd, KVM_IRQ_LINE, &line);
}

/* The message's eventfd, made at its first use; -1 when there is none to be had. Lock held. */
static int message_fd_locked(struct kvm_engine *kvm, uint64_t address, uint32_t data)
{
    for (unsigned i = 0; i < kvm->messages; i++)
        if (kvm->message[i].address == address && kvm->message[i].data == data)
            return kvm->message[i].fd;
    if (kvm->messages == KVM_MESSAGES)
        return -1;
    unsigned i = kvm->messages;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0)
        return -1;
    kvm->message[i] = (struct kvm_message){address, data, fd};
    kvm->messages++;
    struct kvm_irqfd irqfd = {.fd = (uint32_t)fd, .gsi = KVM_FIRST_MESSAGE_GSI + i};
    if (set_routing(kvm, NULL) < 0 || ioctl(kvm->vm_fd, KVM_IRQFD, &irqfd) < 0) {
        kvm->messages--;
        set_routing(kvm, NULL);
        close(fd);
        return -1;
    }
    return fd;
}

static void kvm_send_msi(struct engine *engine, uint64_t address, uint32_t data)
{
    struct kvm_engine *kvm = kvm_of(engine);
    pthread_mutex_lock(&kvm->message_lock);
    int fd = message_fd_locked(kvm, address, data);
    pthread_mutex_unlock(&kvm->message_lock);
    uint64_t one = 1;
    if (fd >= 0 && write(fd, &one, sizeof one) == sizeof one)
        return;
    struct kvm_msi msi = {.address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    ioctl(kvm->vm_fd, KVM_SIGNAL_MSI, &msi);
}

static int kvm_reset_irqchip(struct engine *engine, imgvm_error *err)
{
    return kvm_state_reset_irqchip(kvm_of(engine), err);
}

static int set_doorbell(struct engine *engine, uint64_t gpa, int eventfd, uint32_t flags, imgvm_error *err)
{
    struct kvm_ioeventfd io = {.addr = gpa, .len = 0, .fd = eventfd, .flags = flags};
    if (ioctl(kvm_of(engine)->vm_fd, KVM_IOEVENTFD, &io) < 0)
        return error_set(err, errno, "KVM: cannot set a doorbell at %#" PRIx64 ": %s", gpa, strerror(errno));
    return 0;
}

static int kvm_add_doorbell(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err)
{
    return set_doorbell(engine, gpa, eventfd, 0, err);
}

static int kvm_remove_doorbell(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err)
{
    return set_doorbell(engine, gpa, eventfd, KVM_IOEVENTFD_FLAG_DEASSIGN, err);
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
