/* SPDX-License-Identifier: MIT */
/* Intel 8259A (datasheet 231468) twice, cascaded through pin 2, and the ELCR of the PIIX family (82371AB
 * datasheet, 4.1.4 "Edge/Level Control Registers").
 *
 * Not emulated: MCS-80/85 mode (a vector is always ICW2's upper five bits and the pin), buffered mode's pins,
 * LTIM (the ELCR decides, as on every PCI chipset), other cascades than the PC's. */
#include "pic.h"

#include <string.h>

#define MASTER 0
#define SLAVE 1
#define CASCADE_PIN 2
#define SPURIOUS_PIN 7

#define ICW1_IC4 0x01  /* ICW4 follows */
#define ICW1_SNGL 0x02 /* no ICW3 */
#define ICW1_INIT 0x10 /* D4 tells ICW1 from the OCWs */
#define ICW4_AEOI 0x02
#define ICW4_SFNM 0x10

#define OCW3_SELECT 0x08 /* D4 = 0, D3 = 1 */
#define OCW3_RIS 0x01
#define OCW3_RR 0x02
#define OCW3_POLL 0x04
#define OCW3_SMM 0x20
#define OCW3_ESMM 0x40

#define POLL_REQUEST 0x80

/* System timer, keyboard and cascade; clock and coprocessor error: these pins cannot be level-triggered. */
static const uint8_t elcr_writable[2] = {0xf8, 0xde};

/* ---- one chip ---- */

static void chip_set_line(struct pic_chip *chip, unsigned pin, bool level)
{
    uint8_t bit = (uint8_t)(1u << pin);
    bool was = chip->lines & bit;
    chip->lines = (uint8_t)(level ? chip->lines | bit : chip->lines & ~bit);
    if (!level)
        chip->irr &= (uint8_t)~bit; /* "IR must remain high until the first INTA": a request can be withdrawn */
    else if (!was || (chip->elcr & bit))
        chip->irr |= bit;
}

/* The pin that the chip would have serviced now, or -1. */
static int chip_request(const struct pic_chip *chip, bool master)
{
    if (chip->expected_icw)
        return -1;
    unsigned requests = chip->irr & (uint8_t)~chip->imr;
    unsigned blocking = chip->isr;
    if (chip->special_mask)
        blocking &= (uint8_t)~chip->imr;
    if (master && (chip->icw4 & ICW4_SFNM))
        blocking &= ~(1u << CASCADE_PIN); /* a slave may interrupt its own service with something more urgent */
    for (unsigned i = 1; i <= 8; i++) {
        unsigned pin = (chip->lowest + i) & 7;
        if (blocking & (1u << pin))
            return -1;
        if (requests & (1u << pin))
            return (int)pin;
    }
    return -1;
}

static void chip_acknowledge(struct pic_chip *chip, unsigned pin)
{
    uint8_t bit = (uint8_t)(1u << pin);
    if (!(chip->elcr & bit))
        chip->irr &= (uint8_t)~bit;
    if (!(chip->icw4 & ICW4_AEOI))
        chip->isr |= bit;
    else if (chip->rotate_on_auto_eoi)
        chip->lowest = (uint8_t)pin;
}

static int chip_vector(const struct pic_chip *chip, unsigned pin)
{
    return (chip->icw2 & 0xf8) | (int)pin;
}

static void chip_ocw2(struct pic_chip *chip, uint8_t value)
{
    bool rotate = value & 0x80, specific = value & 0x40, eoi = value & 0x20;
    unsigned pin = value & 7;
    if (!eoi) {
        if (specific && rotate)
            chip->lowest = (uint8_t)pin; /* set priority command */
        else if (!specific)
            chip->rotate_on_auto_eoi = rotate;
        return;
    }
    if (!specific) {
        unsigned in_service = chip->isr;
        if (chip->special_mask) /* "a masked IS bit will not be cleared by a non-specific EOI in special mask mode" */
            in_service &= (uint8_t)~chip->imr;
        if (!in_service)
            return;
        for (pin = (chip->lowest + 1u) & 7; !(in_service & (1u << pin)); pin = (pin + 1) & 7)
            ;
    }
    chip->isr &= (uint8_t)~(1u << pin);
    if (rotate)
        chip->lowest = (uint8_t)pin;
}

static void chip_ocw3(struct pic_chip *chip, uint8_t value)
{
    if (value & OCW3_ESMM)
        chip->special_mask = !!(value & OCW3_SMM);
    if (value & OCW3_POLL)
        chip->poll = 1;
    if (value & OCW3_RR)
        chip->read_isr = value & OCW3_RIS;
}

/* "Initialization Command Words": the edge sense circuit and the IMR are cleared, IR7 gets the lowest priority,
 * special mask mode ends, reads show the IRR. */
static void chip_icw1(struct pic_chip *chip, uint8_t value)
{
    chip->icw1 = value;
    chip->irr = chip->lines & chip->elcr;
    chip->isr = chip->imr = 0;
    chip->lowest = 7;
    chip->special_mask = chip->read_isr = chip->poll = chip->rotate_on_auto_eoi = 0;
    if (!(value & ICW1_IC4))
        chip->icw4 = 0;
    chip->expected_icw = 2;
}

static void chip_icw(struct pic_chip *chip, uint8_t value)
{
    uint8_t next = 0;
    switch (chip->expected_icw) {
    case 2:
        chip->icw2 = value;
        next = chip->icw1 & ICW1_SNGL ? 4 : 3;
        break;
    case 3:
        chip->icw3 = value;
        next = 4;
        break;
    case 4:
        chip->icw4 = value;
        break;
    }
    chip->expected_icw = next == 4 && !(chip->icw1 & ICW1_IC4) ? 0 : next;
}

static void chip_write(struct pic_chip *chip, unsigned a0, uint8_t value)
{
    if (a0 == 0) {
        if (value & ICW1_INIT)
            chip_icw1(chip, value);
        else if (value & OCW3_SELECT)
            chip_ocw3(chip, value);
        else
            chip_ocw2(chip, value);
    } else if (chip->expected_icw) {
        chip_icw(chip, value);
    } else {
        chip->imr = value;
    }
}

static uint8_t chip_read(struct pic_chip *chip, unsigned a0, bool master)
{
    if (chip->poll) { /* the read takes the place of INTA */
        chip->poll = 0;
        int pin = chip_request(chip, master);
        if (pin < 0)
            return 0;
        chip_acknowledge(chip, (unsigned)pin);
        return (uint8_t)(POLL_REQUEST | pin);
    }
    if (a0)
        return chip->imr;
    return chip->read_isr ? chip->isr : chip->irr;
}

/* ---- the pair ---- */

static void update(struct pic *pic)
{
    struct pic_chip *master = &pic->state.chip[MASTER], *slave = &pic->state.chip[SLAVE];
    chip_set_line(master, CASCADE_PIN, chip_request(slave, false) >= 0);
    bool level = chip_request(master, true) >= 0;
    if (level == pic->intr_level)
        return;
    pic->intr_level = level;
    pic->intr(pic->opaque, level);
}

void pic_set_irq(void *opaque, unsigned pin, bool level)
{
    struct pic *pic = opaque;
    if (pin > 15 || pin == CASCADE_PIN)
        return;
    chip_set_line(&pic->state.chip[pin >> 3], pin & 7, level);
    update(pic);
}

bool pic_pending(const struct pic *pic)
{
    return pic->intr_level;
}

int pic_acknowledge(struct pic *pic)
{
    struct pic_chip *master = &pic->state.chip[MASTER], *slave = &pic->state.chip[SLAVE];
    int pin = chip_request(master, true);
    if (pin < 0)
        return chip_vector(master, SPURIOUS_PIN);
    chip_acknowledge(master, (unsigned)pin);
    int vector = chip_vector(master, (unsigned)pin);
    if (pin == CASCADE_PIN) {
        int slave_pin = chip_request(slave, false);
        vector = chip_vector(slave, slave_pin < 0 ? SPURIOUS_PIN : (unsigned)slave_pin);
        if (slave_pin >= 0)
            chip_acknowledge(slave, (unsigned)slave_pin);
        /* The slave's INT drops during INTA: when it wants something more, that is a new edge for the master. */
        chip_set_line(master, CASCADE_PIN, false);
    }
    update(pic);
    return vector;
}

void pic_reset(struct pic *pic)
{
    for (unsigned i = 0; i < 2; i++) {
        uint8_t lines = pic->state.chip[i].lines;
        /* The datasheet leaves the power-up state open. Masked is the kind choice: a guest that enables
         * interrupts before it programs the chip gets none through vectors 0-7. */
        pic->state.chip[i] = (struct pic_chip){.lines = lines, .imr = 0xff, .lowest = 7};
    }
    update(pic);
}

void pic_loaded(struct pic *pic)
{
    pic->intr_level = chip_request(&pic->state.chip[MASTER], true) >= 0;
    pic->intr(pic->opaque, pic->intr_level);
}

void pic_init(struct pic *pic, void (*intr)(void *opaque, bool level), void *opaque)
{
    memset(pic, 0, sizeof(*pic));
    pic->intr = intr;
    pic->opaque = opaque;
    pic_reset(pic);
}

/* ---- ports ---- */

static uint64_t pair_read(struct pic *pic, unsigned which, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)chip_read(&pic->state.chip[which], (unsigned)(offset + i) & 1, which == MASTER) << (8 * i);
    if (which == SLAVE) /* a poll acknowledges: as above */
        chip_set_line(&pic->state.chip[MASTER], CASCADE_PIN, false);
    update(pic);
    return value;
}

static void pair_write(struct pic *pic, unsigned which, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        chip_write(&pic->state.chip[which], (unsigned)(offset + i) & 1, (uint8_t)(value >> (8 * i)));
    update(pic);
}

static uint64_t master_read(void *device, uint64_t offset, unsigned size)
{
    return pair_read(device, MASTER, offset, size);
}

static void master_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    pair_write(device, MASTER, offset, size, value);
}

static uint64_t slave_read(void *device, uint64_t offset, unsigned size)
{
    return pair_read(device, SLAVE, offset, size);
}

static void slave_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    pair_write(device, SLAVE, offset, size, value);
}

static uint64_t elcr_read(void *device, uint64_t offset, unsigned size)
{
    const struct pic *pic = device;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)pic->state.chip[(offset + i) & 1].elcr << (8 * i);
    return value;
}

static void elcr_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct pic *pic = device;
    for (unsigned i = 0; i < size; i++) {
        unsigned which = (unsigned)(offset + i) & 1;
        struct pic_chip *chip = &pic->state.chip[which];
        chip->elcr = (uint8_t)(value >> (8 * i)) & elcr_writable[which];
        chip->irr = (uint8_t)((chip->irr & ~chip->elcr) | (chip->lines & chip->elcr));
    }
    update(pic);
}

const struct bus_ops pic_master_ops = {master_read, master_write};
const struct bus_ops pic_slave_ops = {slave_read, slave_write};
const struct bus_ops pic_elcr_ops = {elcr_read, elcr_write};
