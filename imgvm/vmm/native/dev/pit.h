/* SPDX-License-Identifier: MIT */
/* The 8254 interval timer and the PC's port 61h (gate of counter 2, speaker, refresh toggle).
 *
 * The board registers pit_ops (4 ports at 40h) and pit_port61_ops (1 port at 61h) with the same struct pit.
 * Counter 0 drives `irq0`. A host timer runs only while counter 0 has an edge to come; every count that is read
 * is computed from the clock. Everything runs under the board lock. */
#ifndef IMGVM_DEV_PIT_H
#define IMGVM_DEV_PIT_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/timer.h"
#include "../mem/bus.h"
#include "../mem/irq.h"

#define PIT_HZ 1193182u

struct pit_counter {          /* saved as it is */
    uint64_t start_ns;        /* when the count in progress was (re)loaded */
    uint32_t count;           /* that count, 1..10000h (BCD: 1..10000) */
    uint32_t next_count;      /* takes over at the end of the period (modes 2 and 3), on a trigger (1 and 5) */
    uint16_t latched;
    uint8_t mode, bcd, access; /* access: 1 low byte, 2 high byte, 3 low then high */
    uint8_t gate;
    uint8_t loaded;            /* a count is in progress */
    uint8_t next_pending;      /* next_count waits */
    uint8_t write_high, write_low_byte, read_high; /* flip-flops of two-byte access */
    uint8_t latched_bytes;     /* bytes of `latched` still to be read */
    uint8_t status_latched, status;
    uint8_t paused;            /* gate low in a mode that stops on it */
    uint32_t paused_elapsed;   /* ticks that had gone by when it stopped */
};

struct pit_state {
    struct pit_counter counter[3];
    uint64_t next_edge_ns; /* next rising edge of counter 0; TIMER_NEVER: none */
    uint32_t owed;         /* ticks that came due while nobody could deliver them */
    uint8_t port61;        /* bits 0 and 1, and the writable 2 and 3 */
};

struct pit {
    struct pit_state state;
    struct timer_queue *timers;
    struct timer timer;
    struct irq_line irq0;
};

extern const struct bus_ops pit_ops, pit_port61_ops;

void pit_init(struct pit *pit, struct timer_queue *timers, struct irq_line irq0);
void pit_reset(struct pit *pit);
void pit_loaded(struct pit *pit); /* after the state was filled from a snapshot: arms the timer again */

#endif
