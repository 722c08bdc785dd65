/* SPDX-License-Identifier: MIT */
/* National Semiconductor PC16550D UART (datasheet TL/C/8652), as a PC's COM port: OUT2 gates the interrupt.
 *
 * A byte written to THR has left before the write returns, so THRE and TEMT always stand, and the THRE interrupt
 * is raised again at once. The modem lines say that somebody listens: CTS, DSR and DCD are on.
 *
 * Not emulated: parity and framing errors, the transmitter's break, DMA mode. */
#include "serial.h"

#include <string.h>

#include "../base/bits.h"

enum { RBR_THR_DLL, IER_DLM, IIR_FCR, LCR, MCR, LSR, MSR, SCR };

#define IER_ERBFI 0x01 /* received data available, and the time-out */
#define IER_ETBEI 0x02
#define IER_ELSI 0x04
#define IER_EDSSI 0x08

#define IIR_NONE 0x01
#define IIR_MODEM_STATUS 0x00
#define IIR_THRE 0x02
#define IIR_RECEIVED 0x04
#define IIR_LINE_STATUS 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFOS 0xc0

#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_TRIGGER(v) ((v) >> 6)

#define LCR_DLAB 0x80
#define LCR_BREAK 0x40
#define LCR_PARITY 0x08
#define LCR_TWO_STOP 0x04
#define LCR_WORD_BITS(v) (5 + ((v) & 3))

#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_WRITABLE 0x1f

#define LSR_DR 0x01
#define LSR_OE 0x02
#define LSR_BI 0x10
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define LSR_FIFO_ERROR 0x80

#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80
#define MSR_TERI 0x04 /* the trailing edge of RI: the only delta that sees one direction */

#define NS_PER_SEC 1000000000u
#define BAUD_BASE 115200u
#define TIMEOUT_CHARACTERS 4
#define SETTLE_NS 20000000 /* Linux enables the interrupt first, and the FIFO (which clears it) a little later */
#define POLLS_TO_LISTEN 64 /* without a byte sent: a driver that sends looks once a byte */
#define TIMEOUT_MAX_NS 2000000 /* nobody types faster because the divisor says 300 baud */

static bool fifos(const struct serial_state *s) { return s->fcr & FCR_ENABLE; }
static unsigned capacity(const struct serial_state *s) { return fifos(s) ? SERIAL_FIFO_BYTES : 1; }

static unsigned trigger_level(const struct serial_state *s)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};
    return fifos(s) ? levels[FCR_TRIGGER(s->fcr)] : 1;
}

static uint8_t modem_lines(const struct serial_state *s)
{
    if (!(s->mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (uint8_t)((s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
                     (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static uint8_t interrupt_id(const struct serial_state *s)
{
    if ((s->ier & IER_ELSI) && s->lsr_errors)
        return IIR_LINE_STATUS;
    if ((s->ier & IER_ERBFI) && s->rx_count >= trigger_level(s))
        return IIR_RECEIVED;
    if ((s->ier & IER_ERBFI) && s->timeout_pending)
        return IIR_TIMEOUT;
    if ((s->ier & IER_ETBEI) && s->thre_pending)
        return IIR_THRE;
    if ((s->ier & IER_EDSSI) && s->msr_deltas)
        return IIR_MODEM_STATUS;
    return IIR_NONE;
}

static void update_irq(struct serial *serial)
{
    const struct serial_state *s = &serial->state;
    irq_set(&serial->irq, interrupt_id(s) != IIR_NONE && (s->mcr & MCR_OUT2));
}

/* ---- the receiver ---- */

/* "No character has been received or read for four character times", and one waits below the trigger level. */
static void restart_timeout(struct serial *serial)
{
    struct serial_state *s = &serial->state;
    s->timeout_pending = 0;
    s->timeout_ns = TIMER_NEVER;
    timer_cancel(serial->timers, &serial->timeout);
    if (!fifos(s) || s->rx_count == 0)
        return;
    unsigned bits = 1 + LCR_WORD_BITS(s->lcr) + !!(s->lcr & LCR_PARITY) + 1 + !!(s->lcr & LCR_TWO_STOP);
    uint64_t ns = (uint64_t)TIMEOUT_CHARACTERS * bits * (s->divisor ? s->divisor : 1) * NS_PER_SEC / BAUD_BASE;
    s->timeout_ns = timer_queue_now_ns(serial->timers) + MIN(ns, TIMEOUT_MAX_NS);
    timer_arm(serial->timers, &serial->timeout, s->timeout_ns);
}

static void timeout_fired(void *opaque, uint64_t now_ns)
{
    struct serial *serial = opaque;
    (void)now_ns;
    serial->state.timeout_ns = TIMER_NEVER;
    serial->state.timeout_pending = 1;
    update_irq(serial);
}

/* A byte's errors show in LSR when it reaches the FIFO's head. */
static void head_changed(struct serial_state *s)
{
    if (s->rx_count) {
        s->lsr_errors |= s->rx_errors[s->rx_head];
        s->rx_errors[s->rx_head] = 0;
    }
}

static bool push(struct serial_state *s, uint8_t byte, uint8_t errors, bool from_host)
{
    if (s->rx_count >= capacity(s))
        return false;
    unsigned at = (s->rx_head + s->rx_count) % SERIAL_FIFO_BYTES;
    s->rx[at] = byte;
    s->rx_errors[at] = errors;
    s->rx_from_host[at] = from_host;
    if (s->rx_count++ == 0)
        head_changed(s);
    return true;
}

static uint8_t pop(struct serial *serial)
{
    struct serial_state *s = &serial->state;
    uint8_t byte = s->rx[s->rx_head];
    if (s->rx_count == 0)
        return byte; /* undefined: whatever was there */
    serial->host_bytes_read += s->rx_from_host[s->rx_head];
    s->rx_count--;
    if (s->rx_count || fifos(s))
        s->rx_head = (s->rx_head + 1) % SERIAL_FIFO_BYTES;
    head_changed(s);
    return byte;
}

/* A driver clears the FIFO when it opens and closes the port. Nobody has seen these bytes: the host may send them again. */
static void clear_receiver(struct serial *serial)
{
    struct serial_state *s = &serial->state;
    serial->host_waits |= serial_waiting(serial) > 0;
    s->rx_head = s->rx_count = 0;
    memset(s->rx_errors, 0, sizeof(s->rx_errors));
}

/* A driver at work. While one probes for a UART it sets all of IER for a moment, but not OUT2. */
static bool guest_listens(const struct serial_state *s)
{
    if ((s->mcr & MCR_LOOP) || (s->rts_used && !(s->mcr & MCR_RTS)))
        return false;
    return ((s->ier & IER_ERBFI) && (s->mcr & MCR_OUT2)) || s->polls >= POLLS_TO_LISTEN;
}

static void set_up(struct serial *serial)
{
    serial->state.settled_ns = timer_queue_now_ns(serial->timers) + SETTLE_NS;
}

/* When not, there will be another look. */
static bool is_settled(struct serial *serial)
{
    if (timer_queue_now_ns(serial->timers) >= serial->state.settled_ns)
        return true;
    if (!serial->settle.armed)
        timer_arm(serial->timers, &serial->settle, serial->state.settled_ns);
    return false;
}

bool serial_is_heard(struct serial *serial)
{
    bool heard = guest_listens(&serial->state) && is_settled(serial);
    serial->host_awaits_listener = !heard;
    return heard;
}

/* Last in a handler: the host may come back with serial_receive from within. */
static void tell_host(struct serial *serial)
{
    const struct serial_state *s = &serial->state;
    bool room = serial->host_waits && !s->rx_count && !(s->mcr & MCR_LOOP);
    if (!room && !(serial->host_awaits_listener && guest_listens(s) && is_settled(serial)))
        return;
    serial->host_waits = serial->host_awaits_listener = false;
    if (serial->host.receive_ready)
        serial->host.receive_ready(serial->host.opaque);
}

static void settle_fired(void *opaque, uint64_t now_ns)
{
    (void)now_ns;
    tell_host(opaque);
}

size_t serial_waiting(const struct serial *serial)
{
    const struct serial_state *s = &serial->state;
    size_t waiting = 0;
    for (unsigned i = 0; i < s->rx_count; i++)
        waiting += s->rx_from_host[(s->rx_head + i) % SERIAL_FIFO_BYTES];
    return waiting;
}

size_t serial_take_read(struct serial *serial)
{
    size_t bytes = serial->host_bytes_read;
    serial->host_bytes_read = 0;
    return bytes;
}

size_t serial_receive(struct serial *serial, const uint8_t *data, size_t size)
{
    struct serial_state *s = &serial->state;
    size_t taken = 0;
    if (!(s->mcr & MCR_LOOP))
        while (taken < size && push(s, data[taken], 0, true))
            taken++;
    if (taken)
        restart_timeout(serial);
    if (taken < size)
        serial->host_waits = true;
    update_irq(serial);
    return taken;
}

void serial_receive_break(struct serial *serial)
{
    struct serial_state *s = &serial->state;
    if (s->mcr & MCR_LOOP)
        return;
    if (push(s, 0, LSR_BI, false))
        restart_timeout(serial);
    else
        s->lsr_errors |= LSR_OE;
    update_irq(serial);
}

/* ---- registers ---- */

static void transmit(struct serial *serial, uint8_t byte)
{
    struct serial_state *s = &serial->state;
    s->polls = 0;
    if (s->mcr & MCR_LOOP) {
        if (push(s, byte, 0, false))
            restart_timeout(serial);
        else
            s->lsr_errors |= LSR_OE;
    } else if (serial->host.transmit) {
        serial->host.transmit(serial->host.opaque, &byte, 1);
    }
    s->thre_pending = 1;
}

static void write_fcr(struct serial *serial, uint8_t value)
{
    struct serial_state *s = &serial->state;
    bool toggled = (value ^ s->fcr) & FCR_ENABLE; /* "when changing from FIFO to 16450 mode, data is cleared" */
    s->fcr = value & FCR_ENABLE ? value : 0;      /* other bits are not programmed unless bit 0 is one */
    if (toggled || (s->fcr & FCR_CLEAR_RX))
        clear_receiver(serial);
    restart_timeout(serial);
    set_up(serial);
}

static void write_mcr(struct serial *serial, uint8_t value)
{
    struct serial_state *s = &serial->state;
    if ((value ^ s->mcr) & MCR_WRITABLE)
        set_up(serial);
    uint8_t before = modem_lines(s);
    s->mcr = value & MCR_WRITABLE;
    s->rts_used |= !!(value & MCR_RTS);
    uint8_t after = modem_lines(s), changed = before ^ after;
    s->msr_deltas |= changed >> 4 & (uint8_t)~MSR_TERI;
    if (before & ~after & MSR_RI)
        s->msr_deltas |= MSR_TERI;
}

static void write_ier(struct serial *serial, uint8_t value)
{
    struct serial_state *s = &serial->state;
    uint8_t enabled = value & (uint8_t)~s->ier;
    s->ier = value & 0x0f;
    if (enabled & IER_ETBEI) /* enabling the interrupt while THR is empty raises it */
        s->thre_pending = 1;
    if (enabled & IER_ERBFI)
        set_up(serial);
}

static uint8_t read_lsr(struct serial_state *s)
{
    uint8_t value = (uint8_t)(LSR_THRE | LSR_TEMT | s->lsr_errors | (s->rx_count ? LSR_DR : 0));
    uint8_t in_fifo = s->lsr_errors & LSR_BI;
    for (unsigned i = 0; i < s->rx_count; i++)
        in_fifo |= s->rx_errors[(s->rx_head + i) % SERIAL_FIFO_BYTES];
    if (fifos(s) && in_fifo)
        value |= LSR_FIFO_ERROR;
    s->lsr_errors = 0;
    return value;
}

static void count_poll(struct serial_state *s)
{
    if (s->polls < POLLS_TO_LISTEN)
        s->polls++;
}

static uint8_t read_register(struct serial *serial, unsigned offset)
{
    struct serial_state *s = &serial->state;
    uint8_t value;
    switch (offset) {
    case RBR_THR_DLL:
        if (s->lcr & LCR_DLAB)
            return (uint8_t)s->divisor;
        value = pop(serial);
        restart_timeout(serial);
        return value;
    case IER_DLM:
        return s->lcr & LCR_DLAB ? (uint8_t)(s->divisor >> 8) : s->ier;
    case IIR_FCR:
        count_poll(s);
        value = interrupt_id(s);
        if (value == IIR_THRE)
            s->thre_pending = 0;
        return (uint8_t)(value | (fifos(s) ? IIR_FIFOS : 0));
    case LCR:
        return s->lcr;
    case MCR:
        return s->mcr;
    case LSR:
        count_poll(s);
        return read_lsr(s);
    case MSR:
        value = modem_lines(s) | s->msr_deltas;
        s->msr_deltas = 0;
        return value;
    default:
        return s->scr;
    }
}

static void write_register(struct serial *serial, unsigned offset, uint8_t value)
{
    struct serial_state *s = &serial->state;
    switch (offset) {
    case RBR_THR_DLL:
        if (s->lcr & LCR_DLAB)
            s->divisor = (uint16_t)((s->divisor & 0xff00) | value);
        else
            transmit(serial, value);
        break;
    case IER_DLM:
        if (s->lcr & LCR_DLAB)
            s->divisor = (uint16_t)((s->divisor & 0x00ff) | value << 8);
        else
            write_ier(serial, value);
        break;
    case IIR_FCR:
        write_fcr(serial, value);
        break;
    case LCR:
        s->lcr = value;
        set_up(serial);
        break;
    case MCR:
        write_mcr(serial, value);
        break;
    case SCR:
        s->scr = value;
        break;
    default: /* LSR and MSR: "writing is intended for factory testing" */
        break;
    }
}

static uint64_t serial_read(void *device, uint64_t offset, unsigned size)
{
    struct serial *serial = device;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_register(serial, (unsigned)(offset + i) & 7) << (8 * i);
    update_irq(serial);
    tell_host(serial);
    return value;
}

static void serial_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct serial *serial = device;
    for (unsigned i = 0; i < size; i++) {
        unsigned at = (unsigned)(offset + i) & 7;
        write_register(serial, at, (uint8_t)(value >> (8 * i)));
        if (at == RBR_THR_DLL && serial->state.thre_pending)
            irq_set(&serial->irq, false); /* writing THR withdrew the request; the next one is a new edge */
    }
    update_irq(serial);
    tell_host(serial);
}

static void power_on(struct serial *serial)
{
    memset(&serial->state, 0, sizeof(serial->state));
    serial->state.divisor = 12; /* 9600 baud; the datasheet leaves it open */
    serial->state.timeout_ns = TIMER_NEVER;
}

void serial_reset(struct serial *serial)
{
    clear_receiver(serial);
    power_on(serial);
    timer_cancel(serial->timers, &serial->timeout);
    timer_cancel(serial->timers, &serial->settle);
    irq_set(&serial->irq, false);
    tell_host(serial);
}

void serial_loaded(struct serial *serial)
{
    timer_cancel(serial->timers, &serial->timeout);
    if (serial->state.timeout_ns != TIMER_NEVER)
        timer_arm(serial->timers, &serial->timeout, serial->state.timeout_ns);
}

void serial_init(struct serial *serial, struct timer_queue *timers, struct irq_line irq,
                 const struct serial_host *host)
{
    serial->timers = timers;
    serial->irq = irq;
    serial->host = *host;
    serial->host_waits = serial->host_awaits_listener = false;
    serial->host_bytes_read = 0;
    timer_init(&serial->timeout, timeout_fired, serial);
    timer_init(&serial->settle, settle_fired, serial);
    power_on(serial);
}

const struct bus_ops serial_ops = {serial_read, serial_write};
