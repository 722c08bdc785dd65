/* SPDX-License-Identifier: MIT */
/* The 8042 keyboard controller (PS/2 command set) with an AT keyboard behind it. No mouse is attached: the
 * auxiliary port tests good and stays silent.
 *
 * The board registers i8042_data_ops (1 port at 60h) and i8042_command_ops (1 port at 64h) with the same struct
 * i8042. Everything runs under the board lock. */
#ifndef IMGVM_DEV_I8042_H
#define IMGVM_DEV_I8042_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/bus.h"
#include "../mem/irq.h"

#define I8042_QUEUE_BYTES 32

struct i8042_queue {
    uint8_t data[I8042_QUEUE_BYTES];
    uint8_t head, count;
};

struct i8042_state {
    uint8_t ram[32];     /* byte 0 is the command byte */
    uint8_t output_port;
    uint8_t status;      /* SYS and A2 (last write was a command); OBF, AUX computed from `output` */
    uint8_t output, output_full, output_aux, output_raises;
    uint8_t command;     /* waits for its data byte; 0: none */
    uint8_t kbd_command; /* the keyboard waits for a parameter; 0: none */
    uint8_t kbd_scanning, kbd_scancode_set, kbd_leds, kbd_rate, kbd_last, kbd_break;
    struct i8042_queue controller, keyboard; /* replies of the controller (untranslated, first), of the keyboard */
    uint8_t controller_aux; /* the controller's replies stand for the auxiliary port's */
};

struct i8042_host {
    void (*a20)(void *opaque, bool enabled); /* the controller's A20 output changed */
    void (*reset)(void *opaque);             /* the processor's reset line was pulsed */
    void *opaque;
};

struct i8042 {
    struct i8042_state state;
    struct irq_line kbd_irq, aux_irq; /* IRQ 1, IRQ 12 */
    struct i8042_host host;
};

extern const struct bus_ops i8042_data_ops, i8042_command_ops;

void i8042_init(struct i8042 *i8042, struct irq_line kbd_irq, struct irq_line aux_irq, const struct i8042_host *host);
void i8042_reset(struct i8042 *i8042);
void i8042_loaded(struct i8042 *i8042);
/* Key events as a keyboard sends them: scan code set 2 (the controller translates to set 1 when the guest asked for
 * it). All or nothing: false when the keyboard's buffer has no room or scanning is off. */
bool i8042_press(struct i8042 *i8042, const uint8_t *codes, size_t count);

#endif
