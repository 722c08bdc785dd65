/* SPDX-License-Identifier: MIT */
/* Interrupts into KVM's controllers: lines, messages, and doorbells, whose writes never leave the kernel. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "kvm.h"

/* GSIs 0-15 reach the PIC and the I/O APIC, 16-23 the I/O APIC alone; the PIT's IRQ 0 is wired to pin 2 of the
 * I/O APIC, which the MADT's override tells. */
int kvm_route(struct kvm_engine *kvm, imgvm_error *err)
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

void kvm_set_irq(struct engine *engine, unsigned gsi, bool level)
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
    if (kvm_route(kvm, NULL) < 0 || ioctl(kvm->vm_fd, KVM_IRQFD, &irqfd) < 0) {
        kvm->messages--;
        kvm_route(kvm, NULL);
        close(fd);
        return -1;
    }
    return fd;
}

void kvm_send_msi(struct engine *engine, uint64_t address, uint32_t data)
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

static int set_doorbell(struct engine *engine, uint64_t gpa, int eventfd, uint32_t flags, imgvm_error *err)
{
    struct kvm_ioeventfd io = {.addr = gpa, .len = 0, .fd = eventfd, .flags = flags};
    if (ioctl(kvm_of(engine)->vm_fd, KVM_IOEVENTFD, &io) < 0)
        return error_set(err, errno, "KVM: cannot set a doorbell at %#" PRIx64 ": %s", gpa, strerror(errno));
    return 0;
}

int kvm_add_doorbell(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err)
{
    return set_doorbell(engine, gpa, eventfd, 0, err);
}

int kvm_remove_doorbell(struct engine *engine, uint64_t gpa, int eventfd, imgvm_error *err)
{
    return set_doorbell(engine, gpa, eventfd, KVM_IOEVENTFD_FLAG_DEASSIGN, err);
}
