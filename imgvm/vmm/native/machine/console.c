/* SPDX-License-Identifier: MIT */
#include "console.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/bits.h"

#define PIECE 4096 /* a pipe that polls as writable takes this much without blocking */

void console_init(struct console *console)
{
    memset(console, 0, sizeof *console);
    console->input_fd = console->output_fd = -1;
    pthread_mutex_init(&console->lock, NULL);
    pthread_cond_init(&console->drained, NULL);
}

void console_destroy(struct console *console)
{
    free(console->output);
    pthread_cond_destroy(&console->drained);
    pthread_mutex_destroy(&console->lock);
}

size_t console_put(struct console *console, const uint8_t *data, size_t size)
{
    if (console->output_fd < 0)
        return 0;
    pthread_mutex_lock(&console->lock);
    if (!console->closed && console->used + size > console->capacity) {
        size_t capacity = MAX(console->capacity * 2, MAX(size, (size_t)0x10000));
        uint8_t *grown = realloc(console->output, capacity);
        if (grown) {
            console->output = grown;
            console->capacity = capacity;
        }
    }
    if (!console->closed && console->used + size <= console->capacity) {
        memcpy(console->output + console->used, data, size);
        console->used += size;
    }
    size_t used = console->used;
    pthread_mutex_unlock(&console->lock);
    return used;
}

size_t console_queued(struct console *console)
{
    pthread_mutex_lock(&console->lock);
    size_t used = console->used;
    pthread_mutex_unlock(&console->lock);
    return used;
}

void console_wait_drained(struct console *console)
{
    pthread_mutex_lock(&console->lock);
    while (!console->closed && !console->released && console->used > CONSOLE_OUTPUT_LIMIT / 2)
        pthread_cond_wait(&console->drained, &console->lock);
    pthread_mutex_unlock(&console->lock);
}

void console_release(struct console *console)
{
    pthread_mutex_lock(&console->lock);
    console->released = true;
    pthread_cond_broadcast(&console->drained);
    pthread_mutex_unlock(&console->lock);
}

void console_close(struct console *console)
{
    pthread_mutex_lock(&console->lock);
    console->closed = true;
    console->used = 0;
    pthread_cond_broadcast(&console->drained);
    pthread_mutex_unlock(&console->lock);
}

/* Only the event loop takes bytes away, so the piece may be written without the lock's being held. */
void console_write_some(struct console *console)
{
    uint8_t piece[PIECE];
    pthread_mutex_lock(&console->lock);
    size_t size = MIN(console->used, sizeof piece);
    if (size)
        memcpy(piece, console->output, size);
    pthread_mutex_unlock(&console->lock);
    if (!size)
        return;
    ssize_t written = write(console->output_fd, piece, size);
    if (written < 0) {
        if (errno != EINTR && errno != EAGAIN) {
            console->write_errno = errno == EPIPE ? 0 : errno;
            console_close(console);
        }
        return;
    }
    pthread_mutex_lock(&console->lock);
    console->used -= MIN((size_t)written, console->used);
    memmove(console->output, console->output + written, console->used);
    if (console->used <= CONSOLE_OUTPUT_LIMIT / 2)
        pthread_cond_broadcast(&console->drained);
    pthread_mutex_unlock(&console->lock);
}

static void keep(struct console *console, uint8_t byte)
{
    if (console->pending_at && console->pending_end == sizeof console->pending) {
        console->pending_end -= console->pending_at;
        memmove(console->pending, console->pending + console->pending_at, console->pending_end);
        console->pending_at = 0;
    }
    if (console->pending_end < sizeof console->pending)
        console->pending[console->pending_end++] = byte;
}

static void show_help(struct console *console)
{
    char text[160], key[8] = "?";
    if (console->escape >= 1 && console->escape <= 26)
        snprintf(key, sizeof key, "ctrl-%c", 'a' + console->escape - 1);
    int size = snprintf(text, sizeof text,
                        "\r\n%s x  end the machine\r\n%s h  this help\r\n%s %s  send %s itself\r\n", key, key, key, key, key);
    console_put(console, (const uint8_t *)text, (size_t)size);
}

bool console_wants_input(const struct console *console)
{
    /* A terminal is always read, for its escape; other input waits until the port has taken what there is. */
    return console->input_fd >= 0 && !console->input_ended &&
           (console->escape || console->pending_at + console->handed_over == console->pending_end);
}

enum console_event console_read_some(struct console *console)
{
    uint8_t data[512]; /* a byte may become two: the prefix that was none, and itself */
    ssize_t size = read(console->input_fd, data, sizeof data);
    if (size <= 0) {
        console->input_ended = size == 0 || (errno != EINTR && errno != EAGAIN);
        return CONSOLE_NONE;
    }
    enum console_event event = CONSOLE_NONE;
    for (ssize_t i = 0; i < size; i++) {
        uint8_t byte = data[i];
        if (console->after_escape) {
            console->after_escape = false;
            if (byte == 'x') {
                event = CONSOLE_QUIT;
                continue;
            }
            if (byte == 'h') {
                show_help(console);
                continue;
            }
            if (byte != console->escape)
                keep(console, console->escape);
        } else if (console->escape && byte == console->escape) {
            console->after_escape = true;
            continue;
        }
        keep(console, byte);
    }
    return event;
}

void console_feed(struct console *console, struct serial *serial)
{
    console->pending_at += serial_take_read(serial);
    console->handed_over = serial_waiting(serial);
    size_t start = console->pending_at + console->handed_over;
    if (start < console->pending_end && serial_is_heard(serial))
        console->handed_over += serial_receive(serial, console->pending + start, console->pending_end - start);
    if (console->pending_at == console->pending_end)
        console->pending_at = console->pending_end = 0;
}
