/* SPDX-License-Identifier: MIT */
/* The two cascaded 8259A interrupt controllers of a PC, with the edge/level control registers.
 *
 * The board registers pic_master_ops (2 ports at 20h), pic_slave_ops (2 at A0h) and pic_elcr_ops (2 at 4D0h),
 * all with the same struct pic as device; connects lines to pic_set_irq; and asks pic_acknowledge for the vector
 * when the processor takes an external interrupt. Everything runs under the board lock. */
#ifndef IMGVM_DEV_PIC_H
#define IMGVM_DEV_PIC_H

#include <stdbool.h>
#include <stdint.h>

#include "../mem/bus.h"

struct pic_chip { /* saved as it is */
    uint8_t irr, isr, imr;
    uint8_t lines;  /* the input pins as they stand */
    uint8_t elcr;   /* 1: the pin is level-triggered */
    uint8_t icw1, icw2, icw3, icw4;
    uint8_t expected_icw; /* 2..4 in the middle of initialisation; 0: ready */
    uint8_t lowest;       /* the pin with the lowest priority; 7 unless rotated */
    uint8_t read_isr, poll, special_mask, rotate_on_auto_eoi;
};

struct pic_state {
    struct pic_chip chip[2]; /* master, slave */
};

struct pic {
    struct pic_state state;
    bool intr_level; /* what was last told to the board */
    void (*intr)(void *opaque, bool level);
    void *opaque;
};

extern const struct bus_ops pic_master_ops, pic_slave_ops, pic_elcr_ops;

/* intr is called whenever the master's INT output changes. */
void pic_init(struct pic *pic, void (*intr)(void *opaque, bool level), void *opaque);
void pic_reset(struct pic *pic);
/* After the state was filled from a snapshot: recomputes the output and tells the board. */
void pic_loaded(struct pic *pic);
/* Fits irq_line.set: `opaque` is the struct pic, pin is 0..15 (2 is the cascade and is ignored). */
void pic_set_irq(void *opaque, unsigned pin, bool level);
bool pic_pending(const struct pic *pic);
/* The interrupt acknowledge cycle: always returns a vector (a spurious one, IR7's, when the request has gone). */
int pic_acknowledge(struct pic *pic);

#endif
