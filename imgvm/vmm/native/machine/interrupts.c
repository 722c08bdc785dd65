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

static void deliver(struct board *board, uint32_t destination, bool logical, unsigned mode, uint8_t vector, bool level)
{
    if (mode == LAPIC_MODE_LOWEST) {
        struct lapic *best = NULL;
        unsigned lowest = UINT_MAX;
        for (unsigned i = 0; i < board->cpus; i++) {
            struct lapic *lapic = &board->cpu[i].lapic;
            if (!lapic_match_destination(lapic, destination, logical))
                continue;
            unsigned priority = lapic_arbitration(lapic);
            if (priority < lowest) {
                best = lapic;
                lowest = priority;
            }
        }
        if (best)
            lapic_deliver(best, LAPIC_MODE_FIXED, vector, level);
        return;
    }
    for (unsigned i = 0; i < board->cpus; i++)
        if (lapic_match_destination(&board->cpu[i].lapic, destination, logical))
            lapic_deliver(&board->cpu[i].lapic, mode, vector, level);
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
    deliver(board, lapic_msi_destination(address), address & BIT(2), (data >> 8) & 7, (uint8_t)data, data & BIT(15));
}

static void send_ipi(void *opaque, uint64_t icr)
{
    struct board_cpu *from = opaque;
    struct board *board = from->board;
    unsigned mode = LAPIC_ICR_MODE(icr), shorthand = LAPIC_ICR_SHORTHAND(icr);
    uint8_t vector = LAPIC_ICR_VECTOR(icr);
    if (mode == LAPIC_MODE_INIT && !LAPIC_ICR_LEVEL(icr))
        return; /* INIT level de-assert: not supported since the Pentium 4 */
    if (!shorthand) {
        deliver(board, LAPIC_ICR_DESTINATION(icr), LAPIC_ICR_LOGICAL(icr), mode, vector, false);
        return;
    }
    for (unsigned i = 0; i < board->cpus; i++) {
        bool self = i == from->id;
        if (shorthand == 1 ? self : shorthand == 2 || !self)
            lapic_deliver(&board->cpu[i].lapic, mode, vector, false);
    }
}

static void end_of_interrupt(void *opaque, uint8_t vector)
{
    struct board_cpu *cpu = opaque;
    ioapic_eoi(&cpu->board->ioapic, vector);
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
    for (unsigned i = 0; i < board->cpus; i++)
        lapic_set_lint(&board->cpu[i].lapic, 0, level);
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
        const struct lapic_host host = {signal_cpu, send_ipi, end_of_interrupt, cpu};
        cpu->board = board;
        cpu->id = i;
        timer_queue_init(&cpu->timers, &board->clock);
        cpu->timers.kick = timer_moved;
        cpu->timers.kick_opaque = cpu;
        lapic_init(&cpu->lapic, i, i == 0, &cpu->timers, &cpu->tsc_offset, &host);
    }
    pic_init(&board->pic, pic_output, board);
    return 0;
}

/* As firmware hands over: the PCI lines level-triggered at the PIC, and the PIC reaching the bootstrap processor
 * through its LINT0 ("virtual wire mode", MultiProcessor Specification 3.6.2.2). */
void interrupts_reset(struct board *board)
{
    pic_reset(&board->pic);
    board->pic.state.chip[0].elcr = 1 << 5 | 1 << 7;
    board->pic.state.chip[1].elcr = 1 << (9 - 8) | 1 << (10 - 8) | 1 << (11 - 8);
    ioapic_reset(&board->ioapic);
    for (unsigned i = 0; i < board->cpus; i++)
        lapic_reset(&board->cpu[i].lapic);
    struct lapic *bootstrap = &board->cpu[0].lapic;
    lapic_mmio_write(bootstrap, 0xf0, 4, 0x1ff);
    lapic_mmio_write(bootstrap, 0x350, 4, LAPIC_MODE_EXTINT << 8);
    lapic_mmio_write(bootstrap, 0x360, 4, LAPIC_MODE_NMI << 8);
}

/* ---- what an engine calls ---- */

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    struct board *board = opaque;
    return (uint32_t)bus_read(&board->ports, port, size);
}

static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct board *board = opaque;
    bus_write(&board->ports, port, size, value);
    if (unlikely(atomic_load_explicit(&board->congested, memory_order_relaxed)))
        board->host.throttle(board->host.opaque);
}

/* The local APIC's page belongs to the processor that looks at it. */
static struct lapic *lapic_at(struct board *board, unsigned cpu, uint64_t gpa)
{
    if (!own_chips(board))
        return NULL;
    struct lapic *lapic = &board->cpu[cpu].lapic;
    return gpa - lapic_mmio_base(lapic) < 0x1000 && lapic_mmio_enabled(lapic) ? lapic : NULL;
}

static uint64_t mmio_read(void *opaque, unsigned cpu, uint64_t gpa, unsigned size)
{
    struct board *board = opaque;
    struct lapic *lapic = lapic_at(board, cpu, gpa);
    if (!lapic)
        return bus_read(&board->mmio, gpa, size);
    pthread_mutex_lock(&board->lock);
    uint64_t value = lapic_mmio_read(lapic, gpa & 0xfff, size);
    pthread_mutex_unlock(&board->lock);
    return value;
}

static void mmio_write(void *opaque, unsigned cpu, uint64_t gpa, unsigned size, uint64_t value)
{
    struct board *board = opaque;
    struct lapic *lapic = lapic_at(board, cpu, gpa);
    if (!lapic) {
        bus_write(&board->mmio, gpa, size, value);
        return;
    }
    pthread_mutex_lock(&board->lock);
    lapic_mmio_write(lapic, gpa & 0xfff, size, value);
    pthread_mutex_unlock(&board->lock);
}

static uint64_t time_ns(void *opaque)
{
    struct board *board = opaque;
    return clock_now_ns(&board->clock);
}

static int interrupt_acknowledge(void *opaque, unsigned id)
{
    struct board *board = opaque;
    struct board_cpu *cpu = &board->cpu[id];
    int vector = -1;
    pthread_mutex_lock(&board->lock);
    if (lapic_extint_pending(&cpu->lapic)) {
        vector = pic_acknowledge(&board->pic);
        lapic_extint_taken(&cpu->lapic);
    } else if (lapic_pending_vector(&cpu->lapic) >= 0) {
        vector = lapic_acknowledge(&cpu->lapic);
    }
    pthread_mutex_unlock(&board->lock);
    return vector;
}

static bool apic_msr_read(void *opaque, unsigned cpu, uint32_t index, uint64_t *value)
{
    struct board *board = opaque;
    pthread_mutex_lock(&board->lock);
    bool known = lapic_msr_read(&board->cpu[cpu].lapic, index, value);
    pthread_mutex_unlock(&board->lock);
    return known;
}

static bool apic_msr_write(void *opaque, unsigned cpu, uint32_t index, uint64_t value)
{
    struct board *board = opaque;
    pthread_mutex_lock(&board->lock);
    bool known = lapic_msr_write(&board->cpu[cpu].lapic, index, value);
    pthread_mutex_unlock(&board->lock);
    return known;
}

static void tsc_offset_changed(void *opaque, unsigned id, uint64_t offset)
{
    struct board *board = opaque;
    pthread_mutex_lock(&board->lock);
    board->cpu[id].tsc_offset = offset;
    lapic_tsc_moved(&board->cpu[id].lapic);
    pthread_mutex_unlock(&board->lock);
}

static uint64_t cr8_read(void *opaque, unsigned cpu)
{
    struct board *board = opaque;
    pthread_mutex_lock(&board->lock);
    uint64_t value = lapic_get_cr8(&board->cpu[cpu].lapic);
    pthread_mutex_unlock(&board->lock);
    return value;
}

static void cr8_write(void *opaque, unsigned cpu, uint64_t value)
{
    struct board *board = opaque;
    pthread_mutex_lock(&board->lock);
    lapic_set_cr8(&board->cpu[cpu].lapic, (unsigned)value & 15);
    pthread_mutex_unlock(&board->lock);
}

static uint64_t timer_next_ns(void *opaque, unsigned cpu)
{
    struct board *board = opaque;
    return timer_queue_next_ns(&board->cpu[cpu].timers);
}

static void timer_run(void *opaque, unsigned cpu)
{
    struct board *board = opaque;
    pthread_mutex_lock(&board->lock);
    timer_queue_run(&board->cpu[cpu].timers);
    pthread_mutex_unlock(&board->lock);
}

struct engine_host interrupts_engine_host(struct board *board)
{
    return (struct engine_host){
        .opaque = board, .mem = &board->mem, .port_read = port_read, .port_write = port_write,
        .mmio_read = mmio_read, .mmio_write = mmio_write, .time_ns = time_ns,
        .interrupt_acknowledge = interrupt_acknowledge, .apic_msr_read = apic_msr_read,
        .apic_msr_write = apic_msr_write, .cr8_read = cr8_read, .cr8_write = cr8_write,
        .tsc_offset_changed = tsc_offset_changed,
        .timer_next_ns = timer_next_ns, .timer_run = timer_run,
    };
}
