/* SPDX-License-Identifier: MIT */
/* The board: memory, buses, chips and how they are wired. board.c is the only file that knows addresses and global
 * system interrupts (GSIs); docs/memory-map.md draws them. interrupts.c carries interrupts between the chips.
 *
 * Everything but board_init and board_destroy happens under `lock`, which bus accesses take themselves; but for the
 * local APICs and their timers, each of which has a lock of its own. */
#ifndef IMGVM_MACHINE_BOARD_H
#define IMGVM_MACHINE_BOARD_H

#include <pthread.h>
#include <stdatomic.h>

#include "../backend/backend.h"
#include "../base/clock.h"
#include "../base/timer.h"
#include "../dev/acpi_pm.h"
#include "../dev/debug_exit.h"
#include "../dev/i8042.h"
#include "../dev/ioapic.h"
#include "../dev/lapic.h"
#include "../dev/pci/host.h"
#include "../dev/pic.h"
#include "../dev/pit.h"
#include "../dev/port92.h"
#include "../dev/reset_control.h"
#include "../dev/rtc.h"
#include "../dev/serial.h"
#include "../dev/virtio/pci.h"
#include "../mem/bus.h"
#include "../base/trace.h"
#include "../mem/guest_mem.h"
#include "memory_map.h"
#include "report.h"
#include "smbios.h"

#define BOARD_VIRTIO_MAX 30 /* slots 1-30 */

struct board;

/* One processor's share of the board; unused when the engine has its own interrupt controllers. */
struct board_cpu {
    struct board *board;
    unsigned id; /* and its APIC ID */
    pthread_mutex_t lock; /* of what follows. Below board.lock; nobody holds two processors' */
    struct timer_queue timers; /* run by the processor's own thread */
    struct lapic lapic;
    uint64_t tsc_offset;
    /* What an access to the local APIC sent to others: carried out by the thread that accessed, once it has let go. */
    uint64_t ipi;
    uint8_t ended_vector;
    bool sends_ipi, ended;
    uint64_t lapic_accesses, lapic_msr_accesses; /* statistics */
};

/* What leaves the board. All but throttle with the lock held: they must not block. */
struct board_host {
    void (*power_off)(void *opaque);
    void (*reset)(void *opaque);
    void (*debug_exit)(void *opaque, uint32_t status);
    void (*exec_status)(void *opaque, uint32_t status);
    void (*panic)(void *opaque);
    void (*serial_output)(void *opaque, const uint8_t *data, size_t size);
    void (*serial_ready)(void *opaque); /* there is room for input again */
    void (*throttle)(void *opaque);     /* no lock held: may wait while board->congested */
    void *opaque;
};

/* One virtio device's doorbell: with an engine that can, a write rings an eventfd instead of stopping the vCPU. */
struct board_doorbell {
    struct board *board;
    struct virtio_pci *pci;
    int fd;                              /* -1: none */
    uint64_t address[VIRTIO_QUEUES_MAX]; /* where it is registered now; 0: nowhere */
};

struct board {
    pthread_mutex_t lock;
    struct clock clock;
    struct timer_queue timers; /* run by the event loop */
    struct guest_mem mem;
    struct bus ports, mmio;
    struct memory_map map;
    uint8_t smbios_entry[SMBIOS_ENTRY_BYTES];
    struct engine *engine;
    struct board_host host;
    unsigned cpus;
    struct board_cpu *cpu;
    struct trace *trace;    /* the vm's */
    _Atomic bool congested; /* the console's output waits: processors are held back */

    struct pic pic;
    struct pit pit;
    struct ioapic ioapic;
    struct rtc rtc;
    struct serial serial;
    struct i8042 i8042;
    struct port92 port92;
    struct reset_control reset_control;
    struct acpi_pm acpi_pm;
    struct debug_exit debug_exit;
    struct report report;
    struct pci_host pci;
    bool has_pci;
    struct board_doorbell doorbells[BOARD_VIRTIO_MAX];
    unsigned doorbell_count, virtio_count;
};

struct board_config {
    const struct engine_ops *engine;
    unsigned cpus;
    uint64_t memory_bytes;
    uint32_t debug_exit; /* IMGVM_DEBUG_EXIT_* */
    uint16_t debug_exit_port;
    bool entropy;
    bool shadow;                 /* C0000h to FFFFFh can be written, and is left to a firmware that is not ours */
    const struct cpu_wish *wish; /* NULL: all the features that the engine has */
    bool lockstep, count;        /* see struct engine_host */
    struct trace *trace;         /* NULL: none */
    int perf_map_fd;             /* see struct engine_host */
    int64_t utc_base_ns;
    const imgvm_smbios *smbios;  /* for board_init */
    struct board_host host;
};

/* Needs zeroed memory; board_destroy may be called whatever this returned. */
int board_init(struct board *board, const struct board_config *config, imgvm_error *err);
void board_destroy(struct board *board); /* nothing runs any more */
/* Before the first run. Takes the device on success. */
int board_add_virtio(struct board *board, struct virtio_device *device, imgvm_error *err);
/* Power-on: chips reset, resources of PCI assigned, ACPI tables written. The loader and the processors come after. */
int board_power_on(struct board *board, imgvm_error *err);
/* Where SMBIOS begins: in the segment of the BIOS, so behind the loader. */
int board_announce_smbios(struct board *board, imgvm_error *err);

/* interrupts.c */
int interrupts_init(struct board *board, imgvm_error *err);
void interrupts_destroy(struct board *board);
void interrupts_reset(struct board *board);
void interrupts_set_gsi(void *opaque, unsigned gsi, bool level);  /* fits irq_line.set; opaque: the board */
void interrupts_set_pirq(void *opaque, unsigned pirq, bool level); /* PCI's four lines */
void interrupts_send_msi(void *opaque, uint64_t address, uint32_t data);
struct engine_host interrupts_engine_host(struct board *board);

/* doorbell.c: fills the hooks of a device; the event loop calls doorbell_ring when an eventfd was rung. */
void doorbell_attach(struct board *board, struct virtio_pci *pci);
void doorbell_ring(struct board_doorbell *doorbell);
void doorbell_detach_all(struct board *board);

#define BOARD_PIRQ_GSI 16
extern const uint8_t board_pirq_isa[PCI_PIRQS];

#endif
