/* SPDX-License-Identifier: MIT */
/* INT 16h and IRQ 1: keys of the keyboard controller, and the bytes that the serial port receives, which become the keys that
 * would have typed them. Both end in the BDA's buffer. */
#include "bios.h"

#define PIC_MASK 0x21
#define MASK_TIMER 0x01
#define MASK_SERIAL 0x10
#define KEY_ESCAPE 0x011b
#define KEY_BACKSPACE 0x0e08

#define SHIFT_RIGHT 0x01
#define SHIFT_LEFT 0x02
#define SHIFT_CTRL 0x04
#define SHIFT_ALT 0x08
#define SHIFT_CAPS 0x40
#define EXTENDED_E0 0x02

#define SCAN_KEYPAD 0x47
#define ESCAPE_WAIT_US 5000 /* what follows an escape within this time is one key with it */

/* By scan code of set 1: what a key gives alone and with Shift. */
static const char plain[] = "\0\0331234567890-=\b\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[] = "\0\033!@#$%^&*()_+\b\tQWERTYUIOP{}\r\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";
static const char keypad[] = "789-456+1230.";

/* ---- the buffer ---- */

static u16 after(u16 at)
{
    return at + 2 == peek16(BDA_SEG, BDA_KEYS_END_AT) ? peek16(BDA_SEG, BDA_KEYS_BEGIN_AT) : (u16)(at + 2);
}

static bool buffer_full(void)
{
    return after(peek16(BDA_SEG, BDA_KEY_TAIL)) == peek16(BDA_SEG, BDA_KEY_HEAD);
}

static bool put_key(u16 key)
{
    u16 tail = peek16(BDA_SEG, BDA_KEY_TAIL);
    if (buffer_full())
        return false;
    poke16(BDA_SEG, tail, key);
    poke16(BDA_SEG, BDA_KEY_TAIL, after(tail));
    return true;
}

static bool next_key(u16 *key, bool take)
{
    u16 head = peek16(BDA_SEG, BDA_KEY_HEAD);
    if (head == peek16(BDA_SEG, BDA_KEY_TAIL))
        return false;
    *key = peek16(BDA_SEG, head);
    if (take)
        poke16(BDA_SEG, BDA_KEY_HEAD, after(head));
    return true;
}

void keyboard_init(void)
{
    poke16(BDA_SEG, BDA_KEYS_BEGIN_AT, BDA_KEYS);
    poke16(BDA_SEG, BDA_KEYS_END_AT, BDA_KEYS_END);
    poke16(BDA_SEG, BDA_KEY_HEAD, BDA_KEYS);
    poke16(BDA_SEG, BDA_KEY_TAIL, BDA_KEYS);
    poke8(BDA_SEG, BDA_SHIFTS_EXTENDED, 0x10); /* an enhanced keyboard */
}

/* ---- the serial port's bytes as keys ---- */

static u16 key_of(u8 byte)
{
    if (byte == 0x7f)
        return KEY_BACKSPACE;
    for (unsigned scan = 1; scan < sizeof plain - 1; scan++)
        if (plain[scan] == (char)byte || shifted[scan] == (char)byte)
            return (u16)(scan << 8 | byte);
    if (byte && byte <= 26) /* with Ctrl */
        for (unsigned scan = 1; scan < sizeof plain - 1; scan++)
            if (plain[scan] == (char)(byte + 'a' - 1))
                return (u16)(scan << 8 | byte);
    return byte;
}

static bool soon(u8 *byte)
{
    for (u32 waited = 0; waited < ESCAPE_WAIT_US; waited += 100) {
        if (serial_get(byte))
            return true;
        delay_us(100);
    }
    return false;
}

/* What xterm and its kin send for keys without a character (ECMA-48 control sequences). */
static u16 key_of_sequence(u8 introducer)
{
    static const struct {
        u8 introducer, final;
        u16 key;
    } finals[] = {
        {'[', 'A', 0x4800}, {'[', 'B', 0x5000}, {'[', 'C', 0x4d00}, {'[', 'D', 0x4b00}, {'[', 'H', 0x4700}, {'[', 'F', 0x4f00},
        {'O', 'A', 0x4800}, {'O', 'B', 0x5000}, {'O', 'C', 0x4d00}, {'O', 'D', 0x4b00}, {'O', 'H', 0x4700}, {'O', 'F', 0x4f00},
        {'O', 'P', 0x3b00}, {'O', 'Q', 0x3c00}, {'O', 'R', 0x3d00}, {'O', 'S', 0x3e00},
    };
    static const u16 numbered[] = {
        0, 0x4700, 0x5200, 0x5300, 0x4f00, 0x4900, 0x5100, 0x4700, 0x4f00, 0, 0, 0x3b00, 0x3c00, 0x3d00, 0x3e00, 0x3f00, 0,
        0x4000, 0x4100, 0x4200, 0x4300, 0x4400, 0, 0x8500, 0x8600,
    };
    unsigned number = 0;
    u8 byte;
    while (soon(&byte)) {
        if (byte >= '0' && byte <= '9') {
            number = (number * 10 + byte - '0') & 0xff;
            continue;
        }
        if (byte == '~')
            return number < ARRAY_LEN(numbered) ? numbered[number] : 0;
        for (unsigned i = 0; i < ARRAY_LEN(finals); i++)
            if (finals[i].introducer == introducer && finals[i].final == byte)
                return finals[i].key;
        if (byte >= 0x40)
            break;
    }
    return 0;
}

static void take_serial(void)
{
    u8 byte;
    serial_listen();
    while (!buffer_full() && serial_get(&byte)) {
        u8 next;
        if (byte != 0x1b) {
            put_key(key_of(byte));
        } else if (!soon(&next)) {
            put_key(KEY_ESCAPE);
        } else if (next == '[' || next == 'O') {
            u16 key = key_of_sequence(next);
            if (key)
                put_key(key);
        } else {
            put_key(KEY_ESCAPE);
            put_key(key_of(next));
        }
    }
}

/* ---- IRQ 1 ---- */

static u16 key_of_scan(u8 scan, u8 shifts, bool extended)
{
    if (scan >= SCAN_KEYPAD && scan < SCAN_KEYPAD + sizeof keypad - 1) {
        char digit = keypad[scan - SCAN_KEYPAD];
        bool sign = digit == '-' || digit == '+';
        return (u16)(scan << 8 | (sign || (!extended && (shifts & (SHIFT_LEFT | SHIFT_RIGHT))) ? digit : 0));
    }
    if (scan >= 0x3b && scan <= 0x44) { /* F1 to F10 */
        u8 base = shifts & SHIFT_ALT ? 0x2d : shifts & SHIFT_CTRL ? 0x23 : shifts & (SHIFT_LEFT | SHIFT_RIGHT) ? 0x19 : 0;
        return (u16)((scan + base) << 8);
    }
    if (scan == 0x57 || scan == 0x58) /* F11, F12 */
        return (u16)((scan - 0x57 + 0x85) << 8);
    if (scan >= sizeof plain - 1 || !plain[scan])
        return 0;
    if (shifts & SHIFT_ALT)
        return (u16)(scan << 8);
    char letter = plain[scan];
    bool is_letter = letter >= 'a' && letter <= 'z';
    if ((shifts & SHIFT_CTRL) && is_letter)
        return (u16)(scan << 8 | (letter & 0x1f));
    bool upper = (shifts & (SHIFT_LEFT | SHIFT_RIGHT)) != 0;
    if (is_letter && (shifts & SHIFT_CAPS))
        upper = !upper;
    return (u16)(scan << 8 | (u8)(upper ? shifted[scan] : letter));
}

static void take_scan_code(u8 code)
{
    u8 shifts = peek8(BDA_SEG, BDA_SHIFTS), more = peek8(BDA_SEG, BDA_SHIFTS_EXTENDED);
    if (code == 0xe0 || code == 0xe1) {
        poke8(BDA_SEG, BDA_SHIFTS_EXTENDED, more | EXTENDED_E0);
        return;
    }
    poke8(BDA_SEG, BDA_SHIFTS_EXTENDED, more & ~EXTENDED_E0);
    u8 scan = code & 0x7f;
    u8 bit = scan == 0x36 ? SHIFT_RIGHT : scan == 0x2a ? SHIFT_LEFT : scan == 0x1d ? SHIFT_CTRL : scan == 0x38 ? SHIFT_ALT : 0;
    if (bit && (more & EXTENDED_E0) && bit <= SHIFT_LEFT)
        return; /* the false Shift that goes with the grey keys */
    if (bit) {
        poke8(BDA_SEG, BDA_SHIFTS, code & 0x80 ? shifts & ~bit : shifts | bit);
    } else if (scan == 0x3a) {
        if (!(code & 0x80))
            poke8(BDA_SEG, BDA_SHIFTS, shifts ^ SHIFT_CAPS);
    } else if (!(code & 0x80)) {
        u16 key = key_of_scan(scan, shifts, more & EXTENDED_E0);
        if (key)
            put_key(key);
    }
}

void keyboard_irq(struct regs *r)
{
    (void)r;
    if (in8(0x64) & 0x01)
        take_scan_code(in8(0x60));
    out8(0x20, 0x20);
}

/* ---- 16h ---- */

/* The timer wakes us 18 times a second, or what the serial port receives; if the program has silenced the timer, there is
 * nothing to sleep for. */
static void wait_a_moment(void)
{
    u8 mask = in8(PIC_MASK);
    if (mask & MASK_TIMER) {
        interrupts_on();
        pause();
        interrupts_off();
        return;
    }
    if (mask & MASK_SERIAL)
        out8(PIC_MASK, mask & (u8)~MASK_SERIAL);
    wait_for_interrupt();
    if (mask & MASK_SERIAL)
        out8(PIC_MASK, in8(PIC_MASK) | MASK_SERIAL);
}

void keyboard_service(struct regs *r)
{
    u16 key = 0;
    switch (r->ah) {
    case 0x00:
    case 0x10:
        for (take_serial(); !next_key(&key, true); take_serial())
            wait_a_moment();
        r->ax = key;
        break;
    case 0x01:
    case 0x11:
        take_serial();
        r->flags |= FLAG_ZERO;
        if (next_key(&key, false)) {
            r->ax = key;
            r->flags &= (u16)~FLAG_ZERO;
        }
        break;
    case 0x02:
        r->al = peek8(BDA_SEG, BDA_SHIFTS);
        break;
    case 0x05:
        r->al = !put_key(r->cx);
        break;
    case 0x09:
        r->al = 0x30; /* 05h, 10h to 12h */
        break;
    case 0x12:
        r->al = peek8(BDA_SEG, BDA_SHIFTS);
        r->ah = 0;
        break;
    }
}
