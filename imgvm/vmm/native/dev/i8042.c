/* SPDX-License-Identifier: MIT */
/* Intel 8042 as a PS/2 keyboard controller (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary
 * Device Controller") and an enhanced keyboard (the same, "Keyboards").
 *
 * Not emulated: a mouse (bytes for the auxiliary port come back as the controller's time-out), passwords, the test
 * inputs, the time a byte takes on the wire. */
#include "i8042.h"

#include <string.h>

#define STATUS_OBF 0x01
#define STATUS_SYS 0x04     /* self test passed */
#define STATUS_A2 0x08      /* the last write was a command */
#define STATUS_UNLOCKED 0x10 /* the keyboard lock is open */
#define STATUS_AUX_OBF 0x20
#define STATUS_TIMEOUT 0x40

/* The command byte, RAM byte 0. */
#define COMMAND_KBD_INT 0x01
#define COMMAND_AUX_INT 0x02
#define COMMAND_SYS 0x04
#define COMMAND_KBD_DISABLE 0x10
#define COMMAND_AUX_DISABLE 0x20
#define COMMAND_TRANSLATE 0x40

#define OUTPUT_RESET 0x01 /* low: the processor is held in reset */
#define OUTPUT_A20 0x02
#define OUTPUT_KBD_OBF 0x10
#define OUTPUT_AUX_OBF 0x20

#define INPUT_PORT 0x80 /* keyboard not locked */

#define KBD_ACK 0xfa
#define KBD_RESEND 0xfe
#define KBD_TEST_PASSED 0xaa
#define KBD_BREAK 0xf0

/* Scan code set 2 to set 1, the controller's translation. 80h and above pass, but for 83h (F7) and 84h (Alt-SysRq). */
static const uint8_t set1_from_set2[128] = {
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, /* 00 */
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, /* 10 */
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, /* 20 */
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, /* 30 */
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, /* 40 */
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, /* 50 */
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, /* 60 */
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, /* 70 */
};

/* ---- queues and the output buffer ---- */

static bool queue_push(struct i8042_queue *queue, uint8_t byte)
{
    if (queue->count == I8042_QUEUE_BYTES)
        return false;
    queue->data[(queue->head + queue->count++) % I8042_QUEUE_BYTES] = byte;
    return true;
}

static uint8_t queue_pop(struct i8042_queue *queue)
{
    uint8_t byte = queue->data[queue->head];
    queue->head = (queue->head + 1) % I8042_QUEUE_BYTES;
    queue->count--;
    return byte;
}

static void update_irqs(struct i8042 *i8042)
{
    const struct i8042_state *s = &i8042->state;
    irq_set(&i8042->kbd_irq, s->output_full && !s->output_aux && (s->ram[0] & COMMAND_KBD_INT));
    irq_set(&i8042->aux_irq, s->output_full && s->output_aux && (s->ram[0] & COMMAND_AUX_INT));
}

/* False: the byte is swallowed (a release prefix, folded into the code that follows). */
static bool translate(struct i8042_state *s, uint8_t *byte)
{
    if (*byte == KBD_BREAK) {
        s->kbd_break = 0x80;
        return false;
    }
    uint8_t code = *byte < 0x80 ? set1_from_set2[*byte] : *byte == 0x83 ? 0x41 : *byte == 0x84 ? 0x54 : *byte;
    *byte = code < 0x80 ? code | s->kbd_break : code;
    if (code != 0xe0 && code != 0xe1)
        s->kbd_break = 0;
    return true;
}

static void fill_output(struct i8042 *i8042)
{
    struct i8042_state *s = &i8042->state;
    if (!s->output_full && s->controller.count) {
        s->output = queue_pop(&s->controller);
        s->output_full = 1;
        s->output_aux = s->output_timeout = 0;
    }
    while (!s->output_full && s->keyboard.count && !(s->ram[0] & COMMAND_KBD_DISABLE)) {
        s->output = queue_pop(&s->keyboard);
        s->output_full = !(s->ram[0] & COMMAND_TRANSLATE) || translate(s, &s->output);
        s->output_aux = s->output_timeout = 0;
    }
    update_irqs(i8042);
}

/* The auxiliary port's bytes go straight to the output buffer: nobody there sends by itself. */
static void output_aux(struct i8042_state *s, uint8_t byte, bool timeout)
{
    s->output = byte;
    s->output_full = s->output_aux = 1;
    s->output_timeout = timeout;
}

static void set_output_port(struct i8042 *i8042, uint8_t value)
{
    uint8_t before = i8042->state.output_port;
    i8042->state.output_port = value;
    if ((before ^ value) & OUTPUT_A20)
        i8042->host.a20(i8042->host.opaque, value & OUTPUT_A20);
    if (!(value & OUTPUT_RESET))
        i8042->host.reset(i8042->host.opaque);
}

/* ---- the keyboard ---- */

static void keyboard_defaults(struct i8042_state *s)
{
    s->kbd_set = 2;
    s->kbd_leds = 0;
    s->kbd_rate = 0x2b; /* 10.9 characters a second after half a second */
    s->kbd_command = 0;
}

static void keyboard_reply(struct i8042_state *s, uint8_t byte)
{
    queue_push(&s->keyboard, byte);
    if (byte != KBD_RESEND)
        s->kbd_last = byte;
}

static void keyboard_parameter(struct i8042_state *s, uint8_t command, uint8_t value)
{
    switch (command) {
    case 0xed:
        s->kbd_leds = value & 7;
        break;
    case 0xf0:
        if (value > 3) {
            keyboard_reply(s, KBD_RESEND);
            return;
        }
        if (value)
            s->kbd_set = value;
        break;
    case 0xf3:
        s->kbd_rate = value & 0x7f;
        break;
    }
    keyboard_reply(s, KBD_ACK);
    if (command == 0xf0 && value == 0)
        keyboard_reply(s, s->kbd_set);
}

static void keyboard_write(struct i8042_state *s, uint8_t value)
{
    uint8_t command = s->kbd_command;
    s->kbd_command = 0;
    if (command && value < 0x80) {
        keyboard_parameter(s, command, value);
        return;
    }
    switch (value) {
    case 0xee: /* echo */
        keyboard_reply(s, 0xee);
        return;
    case 0xfe: /* resend */
        queue_push(&s->keyboard, s->kbd_last);
        return;
    case 0xed: /* LEDs */
    case 0xf0: /* scan code set */
    case 0xf3: /* typematic rate */
    case 0xfb: /* set 3: one key typematic, ... */
    case 0xfc:
    case 0xfd:
        s->kbd_command = value;
        break;
    case 0xf2: /* identify: an MF2 keyboard */
        keyboard_reply(s, KBD_ACK);
        keyboard_reply(s, 0xab);
        keyboard_reply(s, 0x83);
        return;
    case 0xf4:
        s->keyboard = (struct i8042_queue){0};
        s->kbd_scanning = 1;
        break;
    case 0xf5:
    case 0xf6:
        s->keyboard = (struct i8042_queue){0};
        keyboard_defaults(s);
        s->kbd_scanning = value == 0xf6;
        break;
    case 0xf7: /* set 3: all keys typematic, ... */
    case 0xf8:
    case 0xf9:
    case 0xfa:
        break;
    case 0xff:
        s->keyboard = (struct i8042_queue){0};
        keyboard_defaults(s);
        s->kbd_scanning = 1;
        keyboard_reply(s, KBD_ACK);
        keyboard_reply(s, KBD_TEST_PASSED);
        return;
    default:
        keyboard_reply(s, KBD_RESEND);
        return;
    }
    keyboard_reply(s, KBD_ACK);
}

bool i8042_press(struct i8042 *i8042, const uint8_t *codes, size_t count)
{
    struct i8042_state *s = &i8042->state;
    if (!s->kbd_scanning || count > (size_t)(I8042_QUEUE_BYTES - s->keyboard.count))
        return false;
    for (size_t i = 0; i < count; i++)
        queue_push(&s->keyboard, codes[i]);
    fill_output(i8042);
    return true;
}

/* ---- the controller ---- */

static uint8_t read_output_port(const struct i8042_state *s)
{
    uint8_t value = s->output_port & (uint8_t)~(OUTPUT_KBD_OBF | OUTPUT_AUX_OBF);
    return (uint8_t)(value | (s->output_full ? s->output_aux ? OUTPUT_AUX_OBF : OUTPUT_KBD_OBF : 0));
}

static void set_command_byte(struct i8042_state *s, uint8_t value)
{
    s->ram[0] = value;
    s->status = (uint8_t)((s->status & ~STATUS_SYS) | (value & COMMAND_SYS ? STATUS_SYS : 0));
}

static void controller_command(struct i8042 *i8042, uint8_t command)
{
    struct i8042_state *s = &i8042->state;
    s->command = 0;
    if (command >= 0x20 && command <= 0x3f) {
        queue_push(&s->controller, s->ram[command & 0x1f]);
        return;
    }
    if (command >= 0xf0) { /* "pulse output port": bits 3:0 that are zero go low for 6 microseconds */
        if (!(command & OUTPUT_RESET))
            i8042->host.reset(i8042->host.opaque);
        return;
    }
    switch (command) {
    case 0xa7:
        s->ram[0] |= COMMAND_AUX_DISABLE;
        break;
    case 0xa8:
        s->ram[0] &= (uint8_t)~COMMAND_AUX_DISABLE;
        break;
    case 0xa4: /* password installed? no */
        queue_push(&s->controller, 0xf1);
        break;
    case 0xa9: /* test the auxiliary interface: no error */
    case 0xab: /* ... the keyboard interface */
    case 0xe0: /* test inputs: clocks low, data low */
        queue_push(&s->controller, 0x00);
        break;
    case 0xaa: /* self test: passes, and leaves the interfaces disabled */
        s->keyboard = s->controller = (struct i8042_queue){0};
        s->output_full = 0;
        set_command_byte(s, COMMAND_SYS | COMMAND_KBD_DISABLE | COMMAND_AUX_DISABLE | COMMAND_TRANSLATE);
        queue_push(&s->controller, 0x55);
        break;
    case 0xad:
        s->ram[0] |= COMMAND_KBD_DISABLE;
        break;
    case 0xae:
        s->ram[0] &= (uint8_t)~COMMAND_KBD_DISABLE;
        break;
    case 0xc0:
        queue_push(&s->controller, INPUT_PORT);
        break;
    case 0xd0:
        queue_push(&s->controller, read_output_port(s));
        break;
    case 0xdd: /* A20 off and on, as many clones have it */
        set_output_port(i8042, s->output_port & (uint8_t)~OUTPUT_A20);
        break;
    case 0xdf:
        set_output_port(i8042, s->output_port | OUTPUT_A20);
        break;
    case 0xd1: /* these take a data byte */
    case 0xd2:
    case 0xd3:
    case 0xd4:
        s->command = command;
        break;
    default:
        if (command >= 0x60 && command <= 0x7f)
            s->command = command;
        break;
    }
}

static void controller_data(struct i8042 *i8042, uint8_t value)
{
    struct i8042_state *s = &i8042->state;
    uint8_t command = s->command;
    s->command = 0;
    switch (command) {
    case 0:
        s->ram[0] &= (uint8_t)~COMMAND_KBD_DISABLE; /* a byte for the keyboard enables its interface */
        keyboard_write(s, value);
        break;
    case 0x60:
        set_command_byte(s, value);
        break;
    case 0xd1:
        set_output_port(i8042, value);
        break;
    case 0xd2: /* as if it came from the keyboard */
        queue_push(&s->controller, value);
        break;
    case 0xd3: /* as if it came from the mouse */
        output_aux(s, value, false);
        break;
    case 0xd4: /* nobody clocks the byte in: the controller gives up, and says so */
        s->ram[0] &= (uint8_t)~COMMAND_AUX_DISABLE;
        output_aux(s, KBD_RESEND, true);
        break;
    default:
        s->ram[command & 0x1f] = value;
        break;
    }
}

/* ---- ports ---- */

static uint64_t data_read(void *device, uint64_t offset, unsigned size)
{
    struct i8042 *i8042 = device;
    (void)offset, (void)size;
    uint8_t value = i8042->state.output;
    i8042->state.output_full = 0;
    update_irqs(i8042); /* the line falls between two bytes: each is an edge */
    fill_output(i8042);
    return value;
}

static void data_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *i8042 = device;
    (void)offset, (void)size;
    i8042->state.status &= (uint8_t)~STATUS_A2;
    controller_data(i8042, (uint8_t)value);
    fill_output(i8042);
}

static uint64_t status_read(void *device, uint64_t offset, unsigned size)
{
    const struct i8042_state *s = &((struct i8042 *)device)->state;
    (void)offset, (void)size;
    uint8_t value = s->status | STATUS_UNLOCKED;
    if (s->output_full)
        value |= STATUS_OBF;
    if (s->output_full && s->output_aux)
        value |= STATUS_AUX_OBF;
    if (s->output_full && s->output_timeout)
        value |= STATUS_TIMEOUT;
    return value;
}

static void command_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *i8042 = device;
    (void)offset, (void)size;
    i8042->state.status |= STATUS_A2;
    controller_command(i8042, (uint8_t)value);
    fill_output(i8042);
}

/* As firmware leaves it: tested, keyboard enabled with translation and interrupt, A20 open. */
static void power_on(struct i8042_state *s)
{
    memset(s, 0, sizeof(*s));
    s->output_port = 0xc0 | OUTPUT_RESET | OUTPUT_A20;
    set_command_byte(s, COMMAND_SYS | COMMAND_TRANSLATE | COMMAND_KBD_INT | COMMAND_AUX_DISABLE);
    keyboard_defaults(s);
    s->kbd_scanning = 1;
}

void i8042_reset(struct i8042 *i8042)
{
    bool a20 = i8042->state.output_port & OUTPUT_A20;
    power_on(&i8042->state);
    update_irqs(i8042);
    if (!a20)
        i8042->host.a20(i8042->host.opaque, true);
}

void i8042_loaded(struct i8042 *i8042)
{
    i8042->host.a20(i8042->host.opaque, i8042->state.output_port & OUTPUT_A20);
    update_irqs(i8042);
}

void i8042_init(struct i8042 *i8042, struct irq_line kbd_irq, struct irq_line aux_irq, const struct i8042_host *host)
{
    i8042->kbd_irq = kbd_irq;
    i8042->aux_irq = aux_irq;
    i8042->host = *host;
    power_on(&i8042->state);
}

const struct bus_ops i8042_data_ops = {data_read, data_write};
const struct bus_ops i8042_command_ops = {status_read, command_write};
