/* SPDX-License-Identifier: MIT */
/* The wiring of interrupts, and the world as an engine sees it.
 *
 * With an engine that brings the chips (KVM), a line or a message goes straight to it. Otherwise:
 *
 *     ISA IRQ n -----+--> 8259A pin n --INT--> LINT0 of every local APIC
 *                    +--> I/O APIC pin n (IRQ 0: pin 2)
 *     PCI INTA#-D# --+--> 8259A pins 10, 11, 5, 7
 *                    +--> I/O APIC pins 16-19
 *     I/O APIC, MSI ----> messages ---------> local APICs that match
 *     IPI --------------------------------->  local APICs that match
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>

#include "board.h"

const uint8_t board_pirq_isa[PCI_PIRQS] = {10, 11, 5, 7};

static bool own_chips(const struct board *board)
{
    return board->cpu != NULL;
}

void interrupts_set_gsi(void *opaque, unsigned gsi, bool level)
{
    struct board *board = opaque;
    if (!own_chips(board)) {
        board->engine->ops->set_irq(board->engine, gsi, level);
        return;
    }
    if (gsi < 16)
        pic_set_irq(&board->pic, gsi, level);
    ioapic_set_irq(&board->ioapic, gsi == 0 ? 2 : gsi, level);
}

void interrupts_set_pirq(void *opaque, unsigned pirq, bool level)
{
    struct board *board = opaque;
    if (!own_chips(board)) {
        board->engine->ops->set_irq(board->engine, BOARD_PIRQ_GSI + pirq, level);
        return;
    }
    pic_set_irq(&board->pic, board_pirq_isa[pirq], level);
    ioapic_set_irq(&board->ioapic, BOARD_PIRQ_GSI + pirq, level);
}

/* ---- messages between local APICs ---- */

struct message {
    uint32_t destination;
    bool logical, level;
    unsigned mode;
    uint8_t vector;
};

/* An APIC ID is the processor's number, so that a physical destination needs no search. */
static unsigned first_candidate(const struct message *m)
{
    return m->logical || m->destination == LAPIC_BROADCAST ? 0 : m->destination;
}

static unsigned last_candidate(const struct board *board, const struct message *m)
{
    return m->logical || m->destination == LAPIC_BROADCAST ? board->cpus : MIN(m->destination + 1, board->cpus);
}

static void deliver_to(struct board_cpu *cpu, unsigned mode, uint8_t vector, bool level)
{
    pthread_mutex_lock(&cpu->lock);
    lapic_deliver(&cpu->lapic, mode, vector, level);
    pthread_mutex_unlock(&cpu->lock);
}

static void deliver_lowest(struct board *board, const struct message *m)
{
    struct board_cpu *best = NULL;
    unsigned lowest = UINT_MAX;
    for (unsigned i = first_candidate(m); i < last_candidate(board, m); i++) {
        struct board_cpu *cpu = &board->cpu[i];
        pthread_mutex_lock(&cpu->lock);
        bool match = lapic_match_destination(&cpu->lapic, m->destination, m->logical);
        unsigned priority = match ? lapic_arbitration(&cpu->lapic) : UINT_MAX;
        pthread_mutex_unlock(&cpu->lock);
        if (priority < lowest) {
            best = cpu;
            lowest = priority;
        }
    }
    if (best)
        deliver_to(best, LAPIC_MODE_FIXED, m->vector, m->level);
}

static void deliver(struct board *board, const struct message *m)
{
    if (m->mode == LAPIC_MODE_LOWEST) {
        deliver_lowest(board, m);
        return;
    }
    for (unsigned i = first_candidate(m); i < last_candidate(board, m); i++) {
        struct board_cpu *cpu = &board->cpu[i];
        pthread_mutex_lock(&cpu->lock);
        if (lapic_match_destination(&cpu->lapic, m->destination, m->logical))
            lapic_deliver(&cpu->lapic, m->mode, m->vector, m->level);
        pthread_mutex_unlock(&cpu->lock);
    }
}

/* SDM vol. 3, "Message Signalled Interrupts": address FEEnn0RLxxh, destination in 19:12, redirection hint in bit 3,
 * logical in bit 2; data: vector in 7:0, delivery mode in 10:8, level-triggered in 15. */
void interrupts_send_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct board *board = opaque;
    if (!own_chips(board)) {
        board->engine->ops->send_msi(board->engine, address, data);
        return;
    }
    if (address >> 20 != 0xfee)
        return;
    deliver(board, &(struct message){.destination = lapic_msi_destination(address), .logical = address & BIT(2),
                                     .level = data & BIT(15), .mode = (data >> 8) & 7, .vector = (uint8_t)data});
}

static void send_ipi(struct board_cpu *from, uint64_t icr)
{
    struct board *board = from->board;
    unsigned mode = LAPIC_ICR_MODE(icr), shorthand = LAPIC_ICR_SHORTHAND(icr);
    uint8_t vector = LAPIC_ICR_VECTOR(icr);
    if (mode == LAPIC_MODE_INIT && !LAPIC_ICR_LEVEL(icr))
        return; /* INIT level de-assert: not supported since the Pentium 4 */
    if (!shorthand) {
        deliver(board, &(struct message){.destination = LAPIC_ICR_DESTINATION(icr), .logical = LAPIC_ICR_LOGICAL(icr),
                                         .mode = mode, .vector = vector});
        return;
    }
    for (unsigned i = 0; i < board->cpus; i++) {
        bool self = i == from->id;
        if (shorthand == 1 ? self : shorthand == 2 || !self)
            deliver_to(&board->cpu[i], mode, vector, false);
    }
}

/* ---- what a local APIC tells: its processor's lock is held ---- */

static void note_ipi(void *opaque, uint64_t icr)
{
    struct board_cpu *cpu = opaque;
    cpu->ipi = icr;
    cpu->sends_ipi = true;
}

static void note_end_of_interrupt(void *opaque, uint8_t vector)
{
    struct board_cpu *cpu = opaque;
    cpu->ended_vector = vector;
    cpu->ended = true;
}

/* Lets go of the lock, and then sends what the access to the local APIC has left: at most one of each. */
static void unlock_and_send(struct board_cpu *cpu)
{
    uint64_t icr = cpu->ipi;
    uint8_t vector = cpu->ended_vector;
    bool sends = cpu->sends_ipi, ended = cpu->ended;
    cpu->sends_ipi = cpu->ended = false;
    pthread_mutex_unlock(&cpu->lock);
    if (sends)
        send_ipi(cpu, icr);
    if (ended) {
        pthread_mutex_lock(&cpu->board->lock);
        ioapic_eoi(&cpu->board->ioapic, vector);
        pthread_mutex_unlock(&cpu->board->lock);
    }
}

static bool interrupt_waits(const struct board_cpu *cpu)
{
    return lapic_pending_vector(&cpu->lapic) >= 0 || lapic_extint_pending(&cpu->lapic);
}

static void signal_cpu(void *opaque, unsigned what)
{
    struct board_cpu *cpu = opaque;
    struct engine *engine = cpu->board->engine;
    uint32_t signals = 0;
    if (!engine)
        return; /* being built */
    if (what & LAPIC_SIGNAL_INIT)
        lapic_init_reset(&cpu->lapic);
    if (what & (LAPIC_SIGNAL_INTR | LAPIC_SIGNAL_INIT))
        signals |= interrupt_waits(cpu) ? ENGINE_SIGNAL_INTR : ENGINE_SIGNAL_NO_INTR;
    if (what & LAPIC_SIGNAL_NMI)
        signals |= ENGINE_SIGNAL_NMI;
    if (what & LAPIC_SIGNAL_INIT)
        signals |= ENGINE_SIGNAL_INIT;
    if (what & LAPIC_SIGNAL_SIPI)
        signals |= ENGINE_SIGNAL_SIPI;
    engine->ops->signal(engine, cpu->id, signals, LAPIC_SIGNAL_SIPI_VECTOR(what));
}

static void pic_output(void *opaque, bool level)
{
    struct board *board = opaque;
    for (unsigned i = 0; i < board->cpus; i++) {
        pthread_mutex_lock(&board->cpu[i].lock);
        lapic_set_lint(&board->cpu[i].lapic, 0, level);
        pthread_mutex_unlock(&board->cpu[i].lock);
    }
}

static void timer_moved(void *opaque)
{
    struct board_cpu *cpu = opaque;
    struct engine *engine = cpu->board->engine;
    if (engine)
        engine->ops->signal(engine, cpu->id, ENGINE_SIGNAL_TIMER, 0);
}

int interrupts_init(struct board *board, imgvm_error *err)
{
    board->cpu = calloc(board->cpus, sizeof *board->cpu);
    if (!board->cpu)
        return error_set(err, ENOMEM, "out of memory for %u processors", board->cpus);
    for (unsigned i = 0; i < board->cpus; i++) {
        struct board_cpu *cpu = &board->cpu[i];
        const struct lapic_host host = {signal_cpu, note_ipi, note_end_of_interrupt, cpu};
        cpu->board = board;
        cpu->id = i;
        pthread_mutex_init(&cpu->lock, NULL);
        timer_queue_init(&cpu->timers, &board->clock);
        cpu->timers.kick = timer_moved;
        cpu->timers.kick_opaque = cpu;
        lapic_init(&cpu->lapic, i, i == 0, &cpu->timers, &cpu->tsc_offset, &host);
    }
    pic_init(&board->pic, pic_output, board);
    return 0;
}

void interrupts_destroy(struct board *board)
{
    for (unsigned i = 0; board->cpu && i < board->cpus; i++)
        pthread_mutex_destroy(&board->cpu[i].lock);
    free(board->cpu);
    board->cpu = NULL;
}

/* As firmware hands over: the PCI lines level-triggered at the PIC, and the PIC reaching the bootstrap processor
 * through its LINT0 ("virtual wire mode", MultiProcessor Specification 3.6.2.2). */
void interrupts_reset(struct board *board)
{
    pic_reset(&board->pic);
    board->pic.state.chip[0].elcr = 1 << 5 | 1 << 7;
    board->pic.state.chip[1].elcr = 1 << (9 - 8) | 1 << (10 - 8) | 1 << (11 - 8);
    ioapic_reset(&board->ioapic);
    for (unsigned i = 0; i < board->cpus; i++) {
        struct board_cpu *cpu = &board->cpu[i];
        pthread_mutex_lock(&cpu->lock);
        lapic_reset(&cpu->lapic);
        if (i == 0)
            lapic_set_virtual_wire(&cpu->lapic);
        pthread_mutex_unlock(&cpu->lock);
    }
}

/* ---- what an engine calls ---- */

static uint64_t time_ns(void *opaque)
{
    struct board *board = opaque;
    return clock_now_ns(&board->clock);
}

static uint64_t time_piece(void *opaque, struct clock_piece *out)
{
    struct board *board = opaque;
    return clock_now_in_piece(&board->clock, out);
}

#define TRACE(board, kind, cpu, ...)                                     \
    do {                                                                 \
        if (trace_wants((board)->trace, kind))                           \
            trace_line((board)->trace, time_ns(board), cpu, __VA_ARGS__); \
    } while (0)

static uint32_t port_read(void *opaque, unsigned id, uint16_t port, unsigned size)
{
    struct board *board = opaque;
    uint32_t value = (uint32_t)bus_read(&board->ports, port, size);
    TRACE(board, TRACE_PORTS, id, "port read %x/%u = %x %s", port, size, value, bus_name(&board->ports, port));
    return value;
}

static void port_write(void *opaque, unsigned id, uint16_t port, unsigned size, uint32_t value)
{
    struct board *board = opaque;
    TRACE(board, TRACE_PORTS, id, "port write %x/%u = %x %s", port, size, value, bus_name(&board->ports, port));
    bus_write(&board->ports, port, size, value);
    if (unlikely(atomic_load_explicit(&board->congested, memory_order_relaxed)))
        board->host.throttle(board->host.opaque);
}

/* The processor, locked, when gpa is in its local APIC's page: each sees its own there. Else NULL. */
static struct board_cpu *lock_lapic_at(struct board *board, unsigned id, uint64_t gpa)
{
    if (!own_chips(board))
        return NULL;
    struct board_cpu *cpu = &board->cpu[id];
    pthread_mutex_lock(&cpu->lock);
    if (gpa - lapic_mmio_base(&cpu->lapic) < GUEST_PAGE_SIZE && lapic_mmio_enabled(&cpu->lapic)) {
        cpu->lapic_accesses++;
        return cpu;
    }
    pthread_mutex_unlock(&cpu->lock);
    return NULL;
}

static uint64_t mmio_read(void *opaque, unsigned id, uint64_t gpa, unsigned size)
{
    struct board *board = opaque;
    struct board_cpu *cpu = lock_lapic_at(board, id, gpa);
    uint64_t value;
    if (cpu) {
        value = lapic_mmio_read(&cpu->lapic, gpa % GUEST_PAGE_SIZE, size);
        unlock_and_send(cpu);
    } else {
        value = bus_read(&board->mmio, gpa, size);
    }
    TRACE(board, TRACE_MMIO, id, "mmio read %" PRIx64 "/%u = %" PRIx64 " %s", gpa, size, value,
          cpu ? "local APIC" : bus_name(&board->mmio, gpa));
    return value;
}

static void mmio_write(void *opaque, unsigned id, uint64_t gpa, unsigned size, uint64_t value)
{
    struct board *board = opaque;
    struct board_cpu *cpu = lock_lapic_at(board, id, gpa);
    TRACE(board, TRACE_MMIO, id, "mmio write %" PRIx64 "/%u = %" PRIx64 " %s", gpa, size, value,
          cpu ? "local APIC" : bus_name(&board->mmio, gpa));
    if (!cpu) {
        bus_write(&board->mmio, gpa, size, value);
        return;
    }
    lapic_mmio_write(&cpu->lapic, gpa % GUEST_PAGE_SIZE, size, value);
    unlock_and_send(cpu);
}

static struct board_cpu *lock_cpu(void *opaque, unsigned id)
{
    struct board *board = opaque;
    struct board_cpu *cpu = &board->cpu[id];
    pthread_mutex_lock(&cpu->lock);
    return cpu;
}

/* The 8259A's vector; the board's lock comes before the processor's. */
static int acknowledge_pic(struct board_cpu *cpu)
{
    int vector = -1;
    pthread_mutex_lock(&cpu->board->lock);
    pthread_mutex_lock(&cpu->lock);
    bool pending = lapic_extint_pending(&cpu->lapic);
    lapic_extint_taken(&cpu->lapic);
    pthread_mutex_unlock(&cpu->lock);
    if (pending)
        vector = pic_acknowledge(&cpu->board->pic);
    pthread_mutex_unlock(&cpu->board->lock);
    return vector;
}

static int interrupt_acknowledge(void *opaque, unsigned id)
{
    struct board_cpu *cpu = lock_cpu(opaque, id);
    bool external = lapic_extint_pending(&cpu->lapic);
    int vector = !external && lapic_pending_vector(&cpu->lapic) >= 0 ? lapic_acknowledge(&cpu->lapic) : -1;
    pthread_mutex_unlock(&cpu->lock);
    return external ? acknowledge_pic(cpu) : vector;
}

static bool apic_msr_read(void *opaque, unsigned id, uint32_t index, uint64_t *value)
{
    struct board_cpu *cpu = lock_cpu(opaque, id);
    bool known = lapic_msr_read(&cpu->lapic, index, value);
    cpu->lapic_msr_accesses++;
    unlock_and_send(cpu);
    return known;
}

static bool apic_msr_write(void *opaque, unsigned id, uint32_t index, uint64_t value)
{
    struct board_cpu *cpu = lock_cpu(opaque, id);
    bool known = lapic_msr_write(&cpu->lapic, index, value);
    cpu->lapic_msr_accesses++;
    unlock_and_send(cpu);
    return known;
}

static void tsc_offset_changed(void *opaque, unsigned id, uint64_t offset)
{
    struct board_cpu *cpu = lock_cpu(opaque, id);
    cpu->tsc_offset = offset;
    lapic_tsc_moved(&cpu->lapic);
    pthread_mutex_unlock(&cpu->lock);
}

static uint64_t cr8_read(void *opaque, unsigned id)
{
    struct board_cpu *cpu = lock_cpu(opaque, id);
    uint64_t value = lapic_get_cr8(&cpu->lapic);
    pthread_mutex_unlock(&cpu->lock);
    return value;
}

static void cr8_write(void *opaque, unsigned id, uint64_t value)
{
    struct board_cpu *cpu = lock_cpu(opaque, id);
    lapic_set_cr8(&cpu->lapic, (unsigned)value & 15);
    pthread_mutex_unlock(&cpu->lock);
}

static uint64_t timer_next_ns(void *opaque, unsigned cpu)
{
    struct board *board = opaque;
    return timer_queue_next_ns(&board->cpu[cpu].timers);
}

static void timer_run(void *opaque, unsigned id)
{
    struct board_cpu *cpu = lock_cpu(opaque, id);
    timer_queue_run(&cpu->timers);
    pthread_mutex_unlock(&cpu->lock);
}

struct engine_host interrupts_engine_host(struct board *board)
{
    return (struct engine_host){
        .opaque = board, .mem = &board->mem, .port_read = port_read, .port_write = port_write,
        .mmio_read = mmio_read, .mmio_write = mmio_write, .time_ns = time_ns, .time_piece = time_piece,
        .interrupt_acknowledge = interrupt_acknowledge, .apic_msr_read = apic_msr_read,
        .apic_msr_write = apic_msr_write, .cr8_read = cr8_read, .cr8_write = cr8_write,
        .tsc_offset_changed = tsc_offset_changed,
        .timer_next_ns = timer_next_ns, .timer_run = timer_run,
    };
}
