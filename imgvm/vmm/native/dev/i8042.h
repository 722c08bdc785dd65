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

struct i8042_state { /* saved as it is */
    uint8_t ram[32];     /* byte 0 is the command byte */
    uint8_t output_port;
    uint8_t status;      /* SYS and A2; the rest is computed */
    uint8_t output, output_full, output_aux, output_timeout; /* the output buffer and its status bits */
    uint8_t command;     /* a controller command that waits for its data byte; 0: none */
    uint8_t kbd_command; /* a keyboard command that waits for its parameter; 0: none */
    uint8_t kbd_scanning, kbd_set, kbd_leds, kbd_rate, kbd_last;
    uint8_t kbd_break;   /* translation saw F0h: the next code is a release */
    struct i8042_queue controller, keyboard; /* bytes that wait for the output buffer */
};

struct i8042_host {
    void (*a20)(void *opaque, bool enabled); /* the A20 output changed; it is on after init and reset */
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
