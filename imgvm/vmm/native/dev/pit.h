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

struct pit_counter {      /* saved as it is; a tick is a period of PIT_HZ since the clock's zero */
    uint64_t start_tick;  /* when the count in progress was loaded */
    uint64_t switch_tick; /* when next_count takes over (modes 2 and 3) */
    uint64_t paused_ticks; /* how far the count had come when the gate stopped it */
    uint32_t count;       /* initial value of the count in progress, 1..10000h (BCD: 1..10000) */
    uint32_t next_count;
    uint16_t latched;
    uint8_t mode, bcd, access; /* access: 1 low byte, 2 high byte, 3 low then high */
    uint8_t gate;
    uint8_t counting;     /* a count is in progress (or paused) */
    uint8_t paused;
    uint8_t next_pending; /* next_count waits for the end of the period, or for a trigger (modes 1 and 5) */
    uint8_t write_high, low_byte, read_high; /* flip-flops of two-byte access */
    uint8_t count_latched, status_latched, status;
    uint8_t pad;
};

struct pit_state {
    struct pit_counter counter[3];
    uint64_t edge_tick; /* the next rising edge of counter 0; TIMER_NEVER: none */
    uint32_t owed;      /* edges that came due while nobody could deliver them */
    uint8_t port61;     /* bits 3:0 */
    uint8_t line;       /* level of irq0 */
    uint8_t pad[2];
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
