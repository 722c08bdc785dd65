/* SPDX-License-Identifier: MIT */
/* A 16550A UART. Bytes leave at once through host.transmit (the line is infinitely fast; the divisor is kept and
 * only paces the receiver's time-out); bytes arrive through serial_receive.
 *
 * The board registers serial_ops (8 ports) and connects irq. Everything runs under the board lock, so transmit
 * must not block: it queues. */
#ifndef IMGVM_DEV_SERIAL_H
#define IMGVM_DEV_SERIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../base/timer.h"
#include "../mem/bus.h"
#include "../mem/irq.h"

#define SERIAL_FIFO_BYTES 16

struct serial_state { /* saved as it is */
    uint8_t rx[SERIAL_FIFO_BYTES];
    uint8_t rx_errors[SERIAL_FIFO_BYTES]; /* LSR bits that belong to each byte */
    bool rx_from_host[SERIAL_FIFO_BYTES]; /* came through serial_receive */
    uint8_t rx_head, rx_count;
    uint8_t ier, fcr, lcr, mcr, scr;
    uint8_t lsr_errors;   /* LSR's OE, PE, FE, BI: until LSR is read */
    uint8_t msr_deltas;   /* MSR bits 3:0: until MSR is read */
    uint8_t thre_pending; /* the THRE interrupt waits: cleared by reading IIR or writing THR */
    uint8_t timeout_pending;
    uint8_t polls;           /* reads of LSR and IIR since the last byte was sent */
    uint8_t rts_used;        /* RTS has been on: off means wait */
    uint8_t pad[1];
    uint16_t divisor;
    uint64_t timeout_ns;  /* when the receiver's time-out is due; TIMER_NEVER: not running */
    uint64_t settled_ns;  /* when its set-up will have been left alone for a while */
};

struct serial_host {
    void (*transmit)(void *opaque, const uint8_t *data, size_t size); /* may be NULL: bytes vanish */
    void (*receive_ready)(void *opaque); /* room after serial_receive took less than given or bytes were thrown away,
                                          * or somebody listens */
    void *opaque;
};

struct serial {
    struct serial_state state;
    struct timer_queue *timers;
    struct timer timeout, settle;
    struct irq_line irq;
    struct serial_host host;
    bool host_waits; /* serial_receive refused bytes, or the guest threw some away */
    size_t host_bytes_read; /* by the guest, since serial_take_read */
    bool host_awaits_listener;
};

extern const struct bus_ops serial_ops;

void serial_init(struct serial *serial, struct timer_queue *timers, struct irq_line irq,
                 const struct serial_host *host);
void serial_reset(struct serial *serial);
void serial_loaded(struct serial *serial);
/* Bytes from the line. Returns how many were taken: the FIFO's room (none in loop-back: the line is cut off).
 * When less than size, receive_ready will be called. */
size_t serial_receive(struct serial *serial, const uint8_t *data, size_t size);
/* Of these bytes, how many wait in the FIFO; and how many the guest has read since the last call. What is in neither
 * number it has thrown away unseen, and a host that wants nothing lost sends it again. */
size_t serial_waiting(const struct serial *serial);
size_t serial_take_read(struct serial *serial);
/* Whether the guest is ready to receive: it has enabled the receiver's interrupt, or polls, and has finished setting
 * the port up, which clears the FIFO. When not, receive_ready will be called. */
bool serial_is_heard(struct serial *serial);
/* A break condition on the line (a zero byte with LSR's BI set). */
void serial_receive_break(struct serial *serial);

#endif
