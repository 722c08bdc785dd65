/* SPDX-License-Identifier: MIT */
/* What a device knows of interrupts: a line it drives, or a message it writes. Who listens is the board's affair. */
#ifndef IMGVM_MEM_IRQ_H
#define IMGVM_MEM_IRQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct irq_line {
    void (*set)(void *opaque, unsigned pin, bool level); /* NULL: not connected */
    void *opaque;
    unsigned pin;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->opaque, line->pin, level);
}

/* A message-signalled interrupt: a 32-bit write to an address in FEExxxxxh (SDM vol. 3, "Message Signalled Interrupts"). */
struct msi_sink {
    void (*send)(void *opaque, uint64_t address, uint32_t data);
    void *opaque;
};

#endif
