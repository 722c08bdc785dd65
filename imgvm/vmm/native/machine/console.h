/* SPDX-License-Identifier: MIT */
/* The host's end of the serial console: a queue of output, input with an escape prefix. Descriptors are never made
 * non-blocking (they may be shared with other processes): they are polled, and written in pieces that fit a pipe. */
#ifndef IMGVM_MACHINE_CONSOLE_H
#define IMGVM_MACHINE_CONSOLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../dev/serial.h"

#define CONSOLE_OUTPUT_LIMIT 0x40000u /* more than this in the queue holds the guest back */
#define CONSOLE_PENDING_BYTES 0x4000u /* what is typed or pasted ahead on a terminal; more is dropped */
#define CONSOLE_FLUSH_NS 1000000u     /* output is collected for so long before it is written */

struct console {
    int input_fd, output_fd; /* -1: none */
    uint8_t escape;          /* 0: none */
    pthread_mutex_t lock;    /* the queue's */
    pthread_cond_t drained;
    uint8_t *output;
    size_t used, capacity;
    bool closed;             /* nobody reads any more: output is dropped */
    int write_errno;         /* why; 0: the run has ended, or a reader has seen enough */
    bool released;           /* the run is ending: nobody waits */
    bool after_escape;       /* event loop only, like all that follows */
    bool input_ended;
    uint8_t pending[CONSOLE_PENDING_BYTES]; /* input that the guest has not read yet */
    size_t pending_at, pending_end;
    size_t handed_over;      /* of it, what waits in the serial port */
};

enum console_event { CONSOLE_NONE, CONSOLE_QUIT };

void console_init(struct console *console);
void console_destroy(struct console *console);
/* Any thread. Returns what is queued now; when that is `size`, the event loop has to be told. */
size_t console_put(struct console *console, const uint8_t *data, size_t size);
size_t console_queued(struct console *console);
/* Wait until the queue is half empty, closed or released. */
void console_wait_drained(struct console *console);
void console_release(struct console *console);
void console_close(struct console *console);
/* Event loop: the descriptor is ready. */
void console_write_some(struct console *console);
enum console_event console_read_some(struct console *console);
bool console_wants_input(const struct console *console);
/* Hands input to the serial port when it listens. What the guest throws away without having read it, as drivers do
 * when they open the port, is handed over again. The caller holds the board's lock. */
void console_feed(struct console *console, struct serial *serial);

#endif
