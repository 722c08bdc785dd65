/* SPDX-License-Identifier: MIT */
/* INT 10h and INT 14h: the screen is whatever terminal hangs on the first serial port. Characters go out as UTF-8, places
 * and colours as ECMA-48 sequences, and those only where they differ from what the terminal has anyway: plain text stays
 * plain text. What is on the screen cannot be read back. */
#include "bios.h"

#define COM1 0x3f8
#define UART_DATA (COM1 + 0)
#define UART_IER (COM1 + 1)
#define UART_FCR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)
#define UART_MSR (COM1 + 6)
#define IER_DATA 0x01
#define LCR_DIVISOR 0x80
#define MCR_OUT2 0x08 /* lets its interrupt through */
#define LSR_DATA 0x01
#define LSR_THRE 0x20

#define COLUMNS 80
#define ROWS 25
#define NORMAL 0x07
#define NOWHERE 0xff

/* The terminal's own cursor and colours. */
static u8 terminal_row, terminal_column, terminal_attribute;

static const u16 code_page_437_low[32] = {
    0x0020, 0x263a, 0x263b, 0x2665, 0x2666, 0x2663, 0x2660, 0x2022, 0x25d8, 0x25cb, 0x25d9, 0x2642,
    0x2640, 0x266a, 0x266b, 0x263c, 0x25ba, 0x25c4, 0x2195, 0x203c, 0x00b6, 0x00a7, 0x25ac, 0x21a8,
    0x2191, 0x2193, 0x2192, 0x2190, 0x221f, 0x2194, 0x25b2, 0x25bc,
};
static const u16 code_page_437[128] = {
    0x00c7, 0x00fc, 0x00e9, 0x00e2, 0x00e4, 0x00e0, 0x00e5, 0x00e7, 0x00ea, 0x00eb, 0x00e8, 0x00ef,
    0x00ee, 0x00ec, 0x00c4, 0x00c5, 0x00c9, 0x00e6, 0x00c6, 0x00f4, 0x00f6, 0x00f2, 0x00fb, 0x00f9,
    0x00ff, 0x00d6, 0x00dc, 0x00a2, 0x00a3, 0x00a5, 0x20a7, 0x0192, 0x00e1, 0x00ed, 0x00f3, 0x00fa,
    0x00f1, 0x00d1, 0x00aa, 0x00ba, 0x00bf, 0x2310, 0x00ac, 0x00bd, 0x00bc, 0x00a1, 0x00ab, 0x00bb,
    0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563, 0x2551, 0x2557,
    0x255d, 0x255c, 0x255b, 0x2510, 0x2514, 0x2534, 0x252c, 0x251c, 0x2500, 0x253c, 0x255e, 0x255f,
    0x255a, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256c, 0x2567, 0x2568, 0x2564, 0x2565, 0x2559,
    0x2558, 0x2552, 0x2553, 0x256b, 0x256a, 0x2518, 0x250c, 0x2588, 0x2584, 0x258c, 0x2590, 0x2580,
    0x03b1, 0x00df, 0x0393, 0x03c0, 0x03a3, 0x03c3, 0x00b5, 0x03c4, 0x03a6, 0x0398, 0x03a9, 0x03b4,
    0x221e, 0x03c6, 0x03b5, 0x2229, 0x2261, 0x00b1, 0x2265, 0x2264, 0x2320, 0x2321, 0x00f7, 0x2248,
    0x00b0, 0x2219, 0x00b7, 0x221a, 0x207f, 0x00b2, 0x25a0, 0x00a0,
};

/* ---- the port ---- */

void serial_init(void)
{
    out8(UART_IER, 0);
    out8(UART_LCR, 0x83);
    out8(UART_DATA, 1); /* 115200 */
    out8(UART_IER, 0);
    out8(UART_LCR, 0x03);
    out8(UART_FCR, 0x07);
    out8(UART_MCR, 0x03); /* DTR, RTS */
    poke16(BDA_SEG, BDA_COM1, COM1);
    poke8(BDA_SEG, BDA_COM1_TIMEOUT, 1);
}

void serial_put(u8 byte)
{
    while (!(in8(UART_LSR) & LSR_THRE))
        pause();
    out8(UART_DATA, byte);
}

/* What a terminal sends is kept until somebody listens: a program that asks for keys does. Its interrupt stays masked but
 * for waiting. A driver of the program's own has set IER itself. */
void serial_listen(void)
{
    if ((in8(UART_LCR) & LCR_DIVISOR) || in8(UART_IER))
        return;
    out8(UART_MCR, in8(UART_MCR) | MCR_OUT2);
    out8(UART_IER, IER_DATA);
}

bool serial_get(u8 *byte)
{
    if (!(in8(UART_LSR) & LSR_DATA))
        return false;
    *byte = in8(UART_DATA);
    return true;
}

/* 14h: of the first port alone. */
void serial_service(struct regs *r)
{
    if (r->dx != 0) {
        r->ah = 0x80;
        return;
    }
    switch (r->ah) {
    case 0x00: { /* speed, parity, stop and length */
        static const u16 divisors[] = {1047, 768, 384, 192, 96, 48, 24, 12};
        u16 divisor = divisors[r->al >> 5];
        out8(UART_LCR, 0x80);
        out8(UART_DATA, (u8)divisor);
        out8(UART_IER, (u8)(divisor >> 8));
        out8(UART_LCR, r->al & 0x1f);
        r->al = in8(UART_MSR);
        r->ah = in8(UART_LSR);
        break;
    }
    case 0x01:
        serial_put(r->al);
        r->ah = in8(UART_LSR);
        break;
    case 0x02: {
        u8 byte;
        for (u32 tries = 0; tries < 1000; tries++) {
            if (serial_get(&byte)) {
                r->al = byte;
                r->ah = 0;
                return;
            }
            delay_us(1000);
        }
        r->ah = 0x80;
        break;
    }
    case 0x03:
        r->al = in8(UART_MSR);
        r->ah = in8(UART_LSR);
        break;
    default:
        r->ah = 0x80;
    }
}

/* 17h: there is no printer. */
void printer_service(struct regs *r)
{
    r->ah = 0x01; /* timed out */
}

/* ---- the terminal ---- */

static void put_text(const char *text)
{
    while (*text)
        serial_put((u8)*text++);
}

static void put_number(u32 value)
{
    char digits[11];
    unsigned i = sizeof digits - 1;
    digits[i] = 0;
    do
        digits[--i] = (char)('0' + value % 10);
    while (value /= 10);
    put_text(digits + i);
}

/* ESC [ a ; b end */
static void put_sequence(u32 a, u32 b, char end)
{
    put_text("\033[");
    put_number(a);
    serial_put(';');
    put_number(b);
    serial_put((u8)end);
}

static void put_glyph(u8 character)
{
    u16 code = character < 0x20 ? code_page_437_low[character] : character < 0x7f ? character : 0x2302;
    if (character >= 0x80)
        code = code_page_437[character - 0x80];
    if (code >= 0x800)
        serial_put((u8)(0xe0 | code >> 12));
    if (code >= 0x80) {
        serial_put((u8)(code >= 0x800 ? 0x80 | (code >> 6 & 0x3f) : 0xc0 | code >> 6));
        code = 0x80 | (code & 0x3f);
    }
    serial_put((u8)code);
}

/* The PC's colours have blue in bit 0 and red in bit 2, ECMA-48's the other way round. */
static u8 colour(u8 bits)
{
    return (u8)((bits & 1) << 2 | (bits & 2) | (bits & 4) >> 2);
}

static void use_attribute(u8 attribute)
{
    if (attribute == terminal_attribute)
        return;
    terminal_attribute = attribute;
    if (attribute == NORMAL) {
        put_text("\033[0m");
        return;
    }
    put_text(attribute & 0x08 ? "\033[0;1" : "\033[0");
    serial_put(';');
    put_number(30 + colour(attribute));
    serial_put(';');
    put_number(40 + colour(attribute >> 4));
    serial_put('m');
}

static void take_terminal_to(u8 row, u8 column)
{
    if (row == terminal_row && column == terminal_column)
        return;
    if (terminal_column != NOWHERE && column == 0 && (row == terminal_row || row == terminal_row + 1)) {
        serial_put('\r');
        if (row != terminal_row)
            serial_put('\n');
    } else {
        put_sequence(row + 1u, column + 1u, 'H');
    }
    terminal_row = row;
    terminal_column = column;
}

static void set_cursor(u8 row, u8 column)
{
    poke16(BDA_SEG, BDA_CURSOR, (u16)(row << 8 | column));
}

static void sync(void)
{
    u16 cursor = peek16(BDA_SEG, BDA_CURSOR);
    take_terminal_to((u8)(cursor >> 8), (u8)cursor);
}

/* A character at the cursor, which stays or goes on; a line's end scrolls the screen. */
static void put_at_cursor(u8 character, u8 attribute, u16 count)
{
    sync();
    use_attribute(attribute);
    for (; count && terminal_column < COLUMNS; count--, terminal_column++)
        put_glyph(character);
    if (terminal_column == COLUMNS)
        terminal_column = NOWHERE; /* there, or in the next line: terminals differ */
}

static void next_line(u8 column)
{
    u8 row = peek8(BDA_SEG, BDA_CURSOR + 1);
    serial_put('\n');
    if (row < ROWS - 1)
        row++;
    set_cursor(row, column);
    terminal_row = row;
    terminal_column = column;
}

static void teletype(u8 character, u8 attribute)
{
    u8 row = peek8(BDA_SEG, BDA_CURSOR + 1), column = peek8(BDA_SEG, BDA_CURSOR);
    switch (character) {
    case '\a':
        serial_put('\a');
        return;
    case '\b':
        if (column) {
            sync();
            serial_put('\b');
            terminal_column = (u8)(column - 1);
            set_cursor(row, terminal_column);
        }
        return;
    case '\r':
        if (terminal_row == row) { /* the column does not matter any more */
            serial_put('\r');
            terminal_column = 0;
        }
        set_cursor(row, 0);
        return;
    case '\n':
        sync();
        next_line(column);
        return;
    }
    put_at_cursor(character, attribute, 1);
    if (column + 1 < COLUMNS) {
        set_cursor(row, (u8)(column + 1));
        return;
    }
    serial_put('\r');
    next_line(0);
}

void print(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            teletype('\r', NORMAL);
        teletype((u8)*text, NORMAL);
    }
}

void print_hex(u32 value, unsigned digits)
{
    while (digits--)
        teletype((u8)"0123456789ABCDEF"[value >> 4 * digits & 15], NORMAL);
}

/* ---- 10h ---- */

static void clear_screen(void)
{
    use_attribute(NORMAL);
    put_text("\033[H\033[2J");
    terminal_row = terminal_column = 0;
}

static void set_mode(u8 mode)
{
    poke8(BDA_SEG, BDA_VIDEO_MODE, mode);
    poke16(BDA_SEG, BDA_COLUMNS, COLUMNS);
    poke16(BDA_SEG, BDA_PAGE_BYTES, 0x1000);
    poke16(BDA_SEG, BDA_CURSOR_SHAPE, 0x0607);
    poke8(BDA_SEG, BDA_PAGE, 0);
    poke16(BDA_SEG, BDA_CRTC, 0x3d4);
    poke8(BDA_SEG, BDA_LAST_ROW, ROWS - 1);
    poke8(BDA_SEG, BDA_CHAR_HEIGHT, 16);
    set_cursor(0, 0);
}

void video_init(void)
{
    set_mode(3);
    terminal_row = terminal_column = 0;
    terminal_attribute = NORMAL;
}

/* 06h and 07h: lines first..last go up or down by `count`; 0: they are cleared. Terminals scroll whole lines. */
static void scroll(struct regs *r, bool up)
{
    u8 first = r->ch, last = r->dh < ROWS ? r->dh : ROWS - 1;
    if (first > last)
        return;
    bool whole = first == 0 && last == ROWS - 1 && r->cl == 0 && r->dl >= COLUMNS - 1;
    use_attribute(r->bh);
    if (r->al == 0 && whole) {
        put_text("\033[2J");
    } else if (r->al == 0 || r->cl != 0 || r->dl < COLUMNS - 1) {
        if (r->al)
            return; /* a part of each line cannot be moved */
        for (u8 row = first; row <= last; row++) {
            put_sequence(row + 1u, r->cl + 1u, 'H');
            for (u8 column = r->cl; column <= r->dl && column < COLUMNS; column++)
                serial_put(' ');
        }
    } else {
        put_sequence(first + 1u, last + 1u, 'r');
        put_text("\033[");
        put_number(r->al);
        serial_put(up ? 'S' : 'T');
        put_text("\033[r");
    }
    terminal_column = NOWHERE;
}

static void write_string(struct regs *r)
{
    u16 cursor = peek16(BDA_SEG, BDA_CURSOR);
    set_cursor(r->dh, r->dl);
    for (u16 i = 0, at = r->bp; i < r->cx; i++) {
        u8 character = peek8(r->es, at++);
        teletype(character, r->al & 2 ? peek8(r->es, at++) : r->bl);
    }
    if (!(r->al & 1))
        poke16(BDA_SEG, BDA_CURSOR, cursor);
}

void video_service(struct regs *r)
{
    switch (r->ah) {
    case 0x00:
        set_mode(3); /* no other */
        if (!(r->al & 0x80))
            clear_screen();
        r->al = 0x30;
        break;
    case 0x01:
        poke16(BDA_SEG, BDA_CURSOR_SHAPE, r->cx);
        break;
    case 0x02:
        if (r->bh == 0)
            set_cursor(r->dh < ROWS ? r->dh : ROWS - 1, r->dl < COLUMNS ? r->dl : COLUMNS - 1);
        break;
    case 0x03:
        r->dx = r->bh ? 0 : peek16(BDA_SEG, BDA_CURSOR);
        r->cx = peek16(BDA_SEG, BDA_CURSOR_SHAPE);
        break;
    case 0x06:
    case 0x07:
        scroll(r, r->ah == 0x06);
        break;
    case 0x08:
        r->ax = NORMAL << 8 | ' ';
        break;
    case 0x09:
        put_at_cursor(r->al, r->bl, r->cx);
        break;
    case 0x0a:
        put_at_cursor(r->al, terminal_attribute, r->cx);
        break;
    case 0x0e:
        teletype(r->al, NORMAL);
        break;
    case 0x0f:
        r->ah = COLUMNS;
        r->al = peek8(BDA_SEG, BDA_VIDEO_MODE);
        r->bh = 0;
        break;
    case 0x11:
        if (r->al == 0x30) { /* of the font, the number of rows */
            r->cx = 16;
            r->dl = ROWS - 1;
        }
        break;
    case 0x13:
        write_string(r);
        break;
    case 0x1a: /* which display: none of those it asks for */
    case 0x4f: /* VESA */
        r->al = 0;
        break;
    }
}
