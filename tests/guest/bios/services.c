/* SPDX-License-Identifier: MIT */
/* Calls the services of a BIOS and says of each whether it did what it should; the number of those that did not is what it
 * writes to the debug exit port. It runs with any BIOS: "skip" says what a BIOS may leave out.
 *
 * Compiled with gcc -m16; everything lies in the first 64 KiB. The disk it came from is written to behind its first MiB. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct regs {
    uint32_t eax, ebx, ecx, edx, esi, edi, ebp;
    uint16_t ds, es, flags;
} __attribute__((packed));

#define CARRY 1u
#define ZERO 0x40u
#define FAR_BASE 0x20000u /* buffers beyond the first 64 KiB */

extern uint8_t boot_drive;

void call_bios(uint8_t number, struct regs *r); /* boot.S */

static void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static uint8_t peek(uint16_t segment, uint16_t offset)
{
    uint8_t value;
    __asm__ volatile("movw %w1, %%fs\n movb %%fs:(%2), %0" : "=q"(value) : "r"(segment), "r"((uint32_t)offset) : "memory");
    return value;
}

static void poke(uint16_t segment, uint16_t offset, uint8_t value)
{
    __asm__ volatile("movw %w1, %%fs\n movb %0, %%fs:(%2)" : : "q"(value), "r"(segment), "r"((uint32_t)offset) : "memory");
}

static uint32_t peek32(uint16_t segment, uint16_t offset)
{
    return peek(segment, offset) | peek(segment, offset + 1) << 8 | peek(segment, offset + 2) << 16 |
           (uint32_t)peek(segment, offset + 3) << 24;
}

void *memset(void *to, int value, size_t bytes)
{
    for (uint8_t *p = to; bytes; bytes--)
        *p++ = (uint8_t)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t bytes)
{
    const uint8_t *q = from;
    for (uint8_t *p = to; bytes; bytes--)
        *p++ = *q++;
    return to;
}

/* ---- the serial port, without the BIOS: what it prints is under test ---- */

static void put(char c)
{
    while (!(in8(0x3fd) & 0x20))
        ;
    out8(0x3f8, (uint8_t)c);
}

static void say(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            put('\r');
        put(*text);
    }
}

static void say_hex(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static unsigned failed;

static void check(const char *what, bool good)
{
    say(good ? "ok " : "FAILED ");
    say(what);
    say("\n");
    failed += !good;
}

static void skip(const char *what)
{
    say("skip ");
    say(what);
    say("\n");
}

static bool carry(const struct regs *r) { return r->flags & CARRY; }
static uint8_t ah(const struct regs *r) { return (uint8_t)(r->eax >> 8); }
static uint8_t al(const struct regs *r) { return (uint8_t)r->eax; }

/* ---- 15h, 24h: address line 20 ---- */

/* FFFF:0510 and 0000:0500 are one byte as long as bit 20 is masked. */
static bool wraps(void)
{
    uint8_t low = peek(0, 0x500), high = peek(0xffff, 0x510);
    poke(0, 0x500, 0x5a);
    poke(0xffff, 0x510, 0xa5);
    bool same = peek(0, 0x500) == 0xa5;
    poke(0xffff, 0x510, high);
    poke(0, 0x500, low);
    return same;
}

static void a20(void)
{
    struct regs r = {.eax = 0x2403};
    call_bios(0x15, &r);
    check("a20: 2403 knows both gates", !carry(&r) && ah(&r) == 0 && (r.ebx & 3) == 3);
    r = (struct regs){.eax = 0x2400};
    call_bios(0x15, &r);
#ifdef A20_IS_ALWAYS_ON /* KVM's is */
    check("a20: 2400 says that it cannot", carry(&r) && ah(&r) == 0x86 && !wraps());
    return;
#endif
    check("a20: 2400 makes memory wrap", !carry(&r) && wraps());
    r = (struct regs){.eax = 0x2402};
    call_bios(0x15, &r);
    check("a20: 2402 sees it off", !carry(&r) && al(&r) == 0);
    r = (struct regs){.eax = 0x2401};
    call_bios(0x15, &r);
    check("a20: 2401 ends that", !carry(&r) && !wraps());
    r = (struct regs){.eax = 0x2402};
    call_bios(0x15, &r);
    check("a20: 2402 sees it on", !carry(&r) && al(&r) == 1);
    out8(0x92, in8(0x92) & ~3u);
    check("a20: port 92h masks it", wraps());
    out8(0x92, (in8(0x92) & ~1u) | 2u);
    check("a20: port 92h opens it", !wraps());
    while (in8(0x64) & 2)
        ;
    out8(0x64, 0xdd);
    while (in8(0x64) & 2)
        ;
    check("a20: the keyboard controller masks it", wraps());
    r = (struct regs){.eax = 0x2401};
    call_bios(0x15, &r);
#ifdef STRICT /* SeaBIOS looks at port 92h alone */
    check("a20: 2401 after the keyboard controller", !carry(&r) && !wraps());
#endif
    out8(0x64, 0xdd);
    while (in8(0x64) & 2)
        ;
    out8(0x64, 0xdf);
    while (in8(0x64) & 2)
        ;
    check("a20: the keyboard controller opens it", !wraps());
}

/* ---- memory ---- */

static struct {
    uint32_t base, base_high, bytes, bytes_high, type;
} entry;

static void memory(void)
{
    struct regs r = {0};
    call_bios(0x12, &r);
    uint32_t low = (r.eax & 0xffff) << 10, ebda = peek32(0x40, 0x0e) << 4 & 0xffff0;
    check("memory: 12h ends at the EBDA", low >= 0x90000 && low <= ebda && ebda < 0xa0000);
    check("memory: the EBDA knows its size", peek((uint16_t)(ebda >> 4), 0) == (0xa0000 - ebda) >> 10);

    uint32_t usable_low = 0, usable_high = 0, last = 0, more = 0, entries = 0;
    bool ascending = true;
    do {
        r = (struct regs){.eax = 0xe820, .ebx = more, .ecx = 20, .edx = 0x534d4150, .edi = (uint32_t)(uintptr_t)&entry};
        call_bios(0x15, &r);
        if (carry(&r) || r.eax != 0x534d4150)
            break;
        say("e820 ");
        say_hex(entry.base_high), say_hex(entry.base), say(" "), say_hex(entry.bytes_high), say_hex(entry.bytes), say(" "),
            say_hex(entry.type), say("\n");
        if (entry.base_high == 0) {
            ascending &= entry.base >= last;
            last = entry.base + entry.bytes;
            if (entry.type == 1 && entry.base == 0)
                usable_low = entry.bytes;
            if (entry.type == 1 && entry.base == 0x100000)
                usable_high = entry.bytes;
            if (entry.base < 0xa0000 && entry.base + entry.bytes > ebda && entry.type == 1)
                usable_low = 0; /* the EBDA would be overwritten */
        }
        more = r.ebx;
    } while (more && ++entries < 32);
    check("memory: e820 is a list", entries >= 3 && more == 0);
    check("memory: e820 ascends", ascending);
    check("memory: e820 has the low memory", usable_low >= 0x90000 && usable_low <= ebda);
    check("memory: e820 has the rest", usable_high >= 0x3000000 && usable_high <= 0x3f00000);
    r = (struct regs){.eax = 0xe820, .ebx = 0, .ecx = 20, .edx = 0, .edi = (uint32_t)(uintptr_t)&entry};
    call_bios(0x15, &r);
    check("memory: e820 wants its signature", carry(&r));

    r = (struct regs){.eax = 0xe801};
    call_bios(0x15, &r);
    uint32_t kib = (r.ecx & 0xffff) + ((r.edx & 0xffff) << 6);
    check("memory: e801", !carry(&r) && (r.ecx & 0xffff) == 15 << 10 && kib <= usable_high >> 10 && kib + 64 > usable_high >> 10);
    r = (struct regs){.eax = 0x8800};
    call_bios(0x15, &r);
    check("memory: 88", !carry(&r) && (r.eax & 0xffff) >= 15 << 10);
    r = (struct regs){.eax = 0xc000};
    call_bios(0x15, &r);
    check("memory: c0 has a table of an AT", !carry(&r) && peek(r.es, (uint16_t)r.ebx) >= 8 && peek(r.es, (uint16_t)r.ebx + 2) == 0xfc);
    r = (struct regs){.eax = 0xc100};
    call_bios(0x15, &r);
    check("memory: c1", !carry(&r) && (uint32_t)r.es << 4 == ebda);
    r = (struct regs){.eax = 0x7f00};
    call_bios(0x15, &r);
    check("memory: an unknown function", carry(&r) && ah(&r) == 0x86);
}

/* 15h, 87h: to above 1 MiB and back, with address line 20 as it was. */
static void copying(void)
{
    static struct {
        uint16_t limit, base_low;
        uint8_t base_middle, rights;
        uint8_t flags, base_high;
    } __attribute__((packed)) table[6];
    for (unsigned i = 0; i < 1024; i++)
        poke(FAR_BASE >> 4, (uint16_t)i, (uint8_t)(i * 7 + (i >> 8)));
    const uint32_t high = 0x1234560, back = FAR_BASE + 0x1000;
    uint8_t limit = 0xff;
    for (unsigned turn = 0; turn < 2; turn++) {
        uint32_t from = turn ? high : FAR_BASE, to = turn ? back : high;
        memset(table, 0, sizeof table);
        table[2].limit = table[3].limit = (uint16_t)(limit << 8 | 0xff);
        table[2].base_low = (uint16_t)from, table[2].base_middle = (uint8_t)(from >> 16), table[2].base_high = (uint8_t)(from >> 24);
        table[3].base_low = (uint16_t)to, table[3].base_middle = (uint8_t)(to >> 16), table[3].base_high = (uint8_t)(to >> 24);
        table[2].rights = table[3].rights = 0x93;
        struct regs r = {.eax = 0x8700, .ecx = 512, .esi = (uint32_t)(uintptr_t)table};
        call_bios(0x15, &r);
        check(turn ? "copying: 87 from above" : "copying: 87 to above", !carry(&r) && ah(&r) == 0);
    }
    bool same = true;
    for (unsigned i = 0; i < 1024; i++)
        same &= peek(back >> 4, (uint16_t)i) == (uint8_t)(i * 7 + (i >> 8));
    check("copying: what came back is what went", same);
}

/* ---- 13h ---- */

static struct {
    uint8_t bytes, reserved;
    uint16_t count, offset, segment;
    uint32_t sector, sector_high;
} packet;

static uint8_t buffer[1024], other[1024];

static struct regs edd(uint8_t function, uint32_t sector, uint16_t count, const void *data)
{
    packet.bytes = 16, packet.reserved = 0, packet.count = count, packet.segment = 0;
    packet.offset = (uint16_t)(uintptr_t)data, packet.sector = sector, packet.sector_high = 0;
    struct regs r = {.eax = function << 8, .edx = boot_drive, .esi = (uint32_t)(uintptr_t)&packet};
    call_bios(0x13, &r);
    return r;
}

static bool equal(const uint8_t *a, const uint8_t *b, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        if (a[i] != b[i])
            return false;
    return true;
}

static void disk(void)
{
    struct regs r = {.eax = 0x0800, .edx = boot_drive};
    call_bios(0x13, &r);
    uint32_t track = r.ecx & 0x3f, heads = (r.edx >> 8 & 0xff) + 1;
    check("disk: 08 tells the geometry", !carry(&r) && track == 63 && heads >= 16 && (r.edx & 0xff) >= 1);
    check("disk: the BDA counts it", peek(0x40, 0x75) == (r.edx & 0xff));

    r = (struct regs){.eax = 0x4100, .ebx = 0x55aa, .edx = boot_drive};
    call_bios(0x13, &r);
    check("disk: 41 knows the extensions", !carry(&r) && (r.ebx & 0xffff) == 0xaa55 && (r.ecx & 1) && ah(&r) >= 0x21);

    /* What CHS writes, LBA reads; the sector is one beyond the first track and head. */
    uint32_t lba = 4096 + 77, cylinder = lba / (heads * track), head = lba / track % heads, sector = lba % track + 1;
    for (unsigned i = 0; i < sizeof buffer; i++)
        buffer[i] = (uint8_t)(i * 31 + (i >> 8) + 1);
    r = (struct regs){.eax = 0x0302, .ebx = (uint32_t)(uintptr_t)buffer, .edx = head << 8 | boot_drive,
                      .ecx = (cylinder & 0xff) << 8 | (cylinder >> 2 & 0xc0) | sector};
    uint32_t ecx = r.ecx;
    call_bios(0x13, &r);
    check("disk: 03 writes", !carry(&r) && ah(&r) == 0 && al(&r) == 2);
    memset(other, 0, sizeof other);
    r = edd(0x42, lba, 2, other);
    check("disk: 42 reads it", !carry(&r) && ah(&r) == 0 && packet.count == 2 && equal(buffer, other, sizeof buffer));
    for (unsigned i = 0; i < sizeof buffer; i++)
        buffer[i] ^= 0xff;
    r = edd(0x43, lba, 2, buffer);
    check("disk: 43 writes", !carry(&r) && ah(&r) == 0);
    memset(other, 0, sizeof other);
    r = (struct regs){.eax = 0x0202, .ebx = (uint32_t)(uintptr_t)other, .edx = head << 8 | boot_drive, .ecx = ecx};
    call_bios(0x13, &r);
    check("disk: 02 reads it", !carry(&r) && al(&r) == 2 && equal(buffer, other, sizeof buffer));
    r = (struct regs){.eax = 0x0402, .edx = head << 8 | boot_drive, .ecx = ecx};
    call_bios(0x13, &r);
    check("disk: 04 verifies", !carry(&r));

    r = edd(0x42, 0xfffffff0, 1, other);
    check("disk: 42 beyond the end", carry(&r) && ah(&r) != 0);
    uint8_t status = ah(&r);
    r = (struct regs){.eax = 0x0100, .edx = boot_drive};
    call_bios(0x13, &r);
    check("disk: 01 tells what went wrong", ah(&r) == status);
    r = (struct regs){.eax = 0x0000, .edx = boot_drive};
    call_bios(0x13, &r);
    check("disk: 00 resets", !carry(&r) && ah(&r) == 0);
    r = (struct regs){.eax = 0x0201, .ebx = (uint32_t)(uintptr_t)other, .edx = boot_drive, .ecx = 0};
    call_bios(0x13, &r);
    check("disk: there is no sector 0", carry(&r));

    static struct {
        uint16_t bytes, flags;
        uint32_t cylinders, heads, track, sectors, sectors_high;
        uint16_t sector_bytes;
    } __attribute__((packed)) parameters;
    parameters.bytes = sizeof parameters;
    r = (struct regs){.eax = 0x4800, .edx = boot_drive, .esi = (uint32_t)(uintptr_t)&parameters};
    call_bios(0x13, &r);
    check("disk: 48 tells its size", !carry(&r) && parameters.sectors == DISK_SECTORS && parameters.sector_bytes == 512);
    r = (struct regs){.eax = 0x1500, .edx = boot_drive};
    call_bios(0x13, &r);
    check("disk: 15 says a hard disk", !carry(&r) && ah(&r) == 3);
    r = (struct regs){.eax = 0x0201, .ebx = (uint32_t)(uintptr_t)other, .edx = 0x8f, .ecx = 1};
    call_bios(0x13, &r);
    check("disk: there is no drive 8Fh", carry(&r) && ah(&r) != 0);

    /* 64 KiB at once, across a boundary of 64 KiB that a DMA controller could not cross. */
    packet.bytes = 16, packet.count = 127, packet.offset = 0x8000, packet.segment = FAR_BASE >> 4;
    packet.sector = lba - 60, packet.sector_high = 0;
    r = (struct regs){.eax = 0x4200, .edx = boot_drive, .esi = (uint32_t)(uintptr_t)&packet};
    call_bios(0x13, &r);
    bool same = !carry(&r);
    for (unsigned i = 0; i < 1024; i++)
        same &= peek((FAR_BASE + 0x8000 + 60 * 512) >> 4, (uint16_t)i) == buffer[i];
    check("disk: 42 reads 127 sectors", same);
}

/* ---- time ---- */

static uint32_t ticks(void)
{
    struct regs r = {0};
    call_bios(0x1a, &r);
    return r.ecx << 16 | (r.edx & 0xffff);
}

static volatile uint16_t user_ticks;
void on_tick(void);
__asm__(".text\n.globl on_tick\non_tick: incw %cs:user_ticks\n iretw\n");

static void time(void)
{
    poke(0, 4 * 0x1c, (uint8_t)(uintptr_t)on_tick);
    poke(0, 4 * 0x1c + 1, (uint8_t)((uintptr_t)on_tick >> 8));
    poke(0, 4 * 0x1c + 2, 0);
    poke(0, 4 * 0x1c + 3, 0);
    uint32_t first = ticks();
    user_ticks = 0;
    while (ticks() - first < 3)
        __asm__ volatile("hlt");
    check("time: 1Ch is called with each tick", user_ticks >= 3 && user_ticks <= 5);

    struct regs r = {.eax = 0x0200};
    call_bios(0x1a, &r);
    check("time: 02 is a time of day", !carry(&r) && (r.ecx >> 8 & 0xff) < 0x24 && (r.ecx & 0xff) < 0x60 && (r.edx >> 8 & 0xff) < 0x60);
    uint32_t hours = (r.ecx >> 12 & 15) * 10 + (r.ecx >> 8 & 15), minutes = (r.ecx >> 4 & 15) * 10 + (r.ecx & 15);
    uint32_t tick = (hours * 60 + minutes) * 1092; /* a minute has 1092.4 */
    check("time: the ticks are those of the clock", ticks() + 1092 >= tick && ticks() <= tick + 3 * 1092);
    r = (struct regs){.eax = 0x0400};
    call_bios(0x1a, &r);
    check("time: 04 is a date", !carry(&r) && (r.ecx >> 8 & 0xff) >= 0x20 && (r.edx >> 8 & 0xff) <= 0x12 && (r.edx & 0xff) <= 0x31);
    r = (struct regs){.eax = 0x0100, .ecx = 0x1, .edx = 0x2345};
    call_bios(0x1a, &r);
    uint32_t set = ticks();
    check("time: 01 sets the ticks", set >= 0x12345 && set < 0x12355);

    user_ticks = 0;
    r = (struct regs){.eax = 0x8600, .ecx = 3, .edx = 0x0d40}; /* 200 000 us: 3.6 ticks */
    call_bios(0x15, &r);
    check("time: 86 waits", !carry(&r) && user_ticks >= 3);
}

/* ---- 10h, 11h, 16h, 1Ah B1h ---- */

static void screen(void)
{
    struct regs r = {0};
    call_bios(0x11, &r);
    check("equipment: 11h is the BDA's word", (r.eax & 0xffff) == (peek32(0x40, 0x10) & 0xffff));
#ifdef NO_SCREEN
    return;
#endif
    r = (struct regs){.eax = 0x0f00};
    call_bios(0x10, &r);
    check("screen: 0F has 80 columns", (r.eax >> 8 & 0xff) == 80 && (al(&r) & 0x7f) == 3);
    r = (struct regs){.eax = 0x0200, .edx = 0x0507};
    call_bios(0x10, &r);
    r = (struct regs){.eax = 0x0e41};
    call_bios(0x10, &r);
    r = (struct regs){.eax = 0x0300};
    call_bios(0x10, &r);
    check("screen: 03 follows 02 and 0E", (r.edx & 0xffff) == 0x0508);
    r = (struct regs){.eax = 0x0e0d};
    call_bios(0x10, &r);
    r = (struct regs){.eax = 0x0e0a};
    call_bios(0x10, &r);
    r = (struct regs){.eax = 0x0300};
    call_bios(0x10, &r);
    check("screen: a line's end", (r.edx & 0xffff) == 0x0600);
}

static void pci(void)
{
    struct regs r = {.eax = 0xb101};
    call_bios(0x1a, &r);
    check("pci: B101", !carry(&r) && ah(&r) == 0 && r.edx == 0x20494350);
    r = (struct regs){.eax = 0xb103, .ecx = 0x060000};
    call_bios(0x1a, &r);
    check("pci: B103 finds the host bridge", !carry(&r) && (r.ebx & 0xffff) == 0);
    r = (struct regs){.eax = 0xb102, .ecx = 0x1042, .edx = 0x1af4};
    call_bios(0x1a, &r);
    if (carry(&r)) { /* a transitional device, elsewhere */
        skip("pci: B102 finds the disk");
        return;
    }
    uint32_t where = r.ebx & 0xffff;
    r = (struct regs){.eax = 0xb109, .ebx = where, .edi = 2};
    call_bios(0x1a, &r);
    check("pci: B109 reads", !carry(&r) && (r.ecx & 0xffff) == 0x1042);
    r = (struct regs){.eax = 0xb102, .ecx = 0x1234, .edx = 0x5678};
    call_bios(0x1a, &r);
    check("pci: B102 of nothing", carry(&r) && ah(&r) == 0x86);
}

/* The keyboard controller takes a byte as if the keyboard had sent it. */
static void scan(uint8_t code)
{
    while (in8(0x64) & 2)
        ;
    out8(0x64, 0xd2);
    while (in8(0x64) & 2)
        ;
    out8(0x60, code);
    for (unsigned i = 0; i < 1000 && (in8(0x64) & 1); i++) /* until IRQ 1's handler has it */
        in8(0x80);
}

static void keyboard(void)
{
    static const struct {
        uint8_t codes[6];
        uint16_t key;
        const char *what;
    } rows[] = {
        {{0x1e, 0x9e}, 0x1e61, "a"},
        {{0x2a, 0x1e, 0x9e, 0xaa}, 0x1e41, "Shift and a"},
        {{0x36, 0x03, 0x83, 0xb6}, 0x0340, "Shift and 2"},
        {{0x1d, 0x2e, 0xae, 0x9d}, 0x2e03, "Ctrl and c"},
        {{0x38, 0x1e, 0x9e, 0xb8}, 0x1e00, "Alt and a"},
        {{0x3a, 0xba, 0x10, 0x90}, 0x1051, "q with Caps Lock"},
        {{0x3a, 0xba, 0x10, 0x90}, 0x1071, "q without it again"},
        {{0x1c, 0x9c}, 0x1c0d, "Enter"},
        {{0x3b, 0xbb}, 0x3b00, "F1"},
        {{0x2a, 0x3b, 0xbb, 0xaa}, 0x5400, "Shift and F1"},
        {{0x57, 0xd7}, 0x8500, "F11"},
        {{0x48, 0xc8}, 0x4800, "8 of the keypad, without Num Lock"},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (unsigned j = 0; j < sizeof rows[i].codes && rows[i].codes[j]; j++)
            scan(rows[i].codes[j]);
        struct regs r = {.eax = 0x1100};
        call_bios(0x16, &r);
        bool there = !(r.flags & ZERO);
        if (there) {
            r = (struct regs){.eax = 0x1000};
            call_bios(0x16, &r);
        }
        say("keyboard: ");
        check(rows[i].what, there && (r.eax & 0xffff) == rows[i].key);
    }
    struct regs r = {.eax = 0x0200};
    call_bios(0x16, &r);
    check("keyboard: 02 has no Shift left", (al(&r) & 0x0f) == 0);
}

static void serial(void)
{
    struct regs r = {.eax = 0x0300};
    call_bios(0x14, &r);
    check("serial: 03 may send", (ah(&r) & 0xa0) == 0x20);
    r = (struct regs){.eax = 0x0100 | '+'};
    call_bios(0x14, &r);
    check("serial: 01 sends", !(ah(&r) & 0x80));
    r = (struct regs){.eax = 0x0300, .edx = 3};
    call_bios(0x14, &r);
    check("serial: there is no fourth port", peek32(0x40, 6) << 16 == 0);
}

static void keys(void)
{
    static const uint16_t wanted[] = {0x1e61, 0x1e41, 0x1c0d, 0x011b, 0x4800, 0x3b00, 0x2e03, 0x0e08, 0x0231};
    struct regs r = {.eax = 0x0500, .ecx = 0x1234};
    call_bios(0x16, &r);
    check("keys: 05 puts one", al(&r) == 0);
    r = (struct regs){.eax = 0x0100};
    call_bios(0x16, &r);
    check("keys: 01 sees it", !(r.flags & ZERO) && (r.eax & 0xffff) == 0x1234);
    r = (struct regs){0};
    call_bios(0x16, &r);
    check("keys: 00 takes it", (r.eax & 0xffff) == 0x1234);
    r = (struct regs){.eax = 0x0100};
    call_bios(0x16, &r);
    check("keys: and then there is none", r.flags & ZERO);
#ifdef SERIAL_KEYS
    say("type\n");
    for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        r = (struct regs){.eax = i & 1 ? 0x1000 : 0};
        call_bios(0x16, &r);
        say("key ");
        say_hex(r.eax & 0xffff);
        say("\n");
        check("keys: what the serial port brings", (r.eax & 0xffff) == wanted[i]);
    }
#else
    (void)wanted;
    skip("keys: what the serial port brings");
#endif
}

void main(void)
{
    say("\nservices\n");
    memory();
    a20();
    copying();
    disk();
    time();
    screen();
    pci();
    serial();
    keyboard();
    keys();
    say(failed ? "some FAILED\n" : "all well\n");
    out8(0xf4, (uint8_t)failed);
    __asm__ volatile("hlt");
}
