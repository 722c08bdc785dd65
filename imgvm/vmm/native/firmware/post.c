/* SPDX-License-Identifier: MIT */
/* From reset to the boot loader. The board has given PCI devices their addresses and written the ACPI tables. */
#include "bios.h"
#include "disk.h"
#include "memory.h"

#define CPUID_MTRR (1u << 12)
#define MTRR_BASE_0 0x200
#define MTRR_MASK_0 0x201
#define MTRR_DEF_TYPE 0x2ff
#define MTRR_UNCACHED 0
#define MTRR_WRITE_BACK 6
#define MTRR_VALID 0x800u
#define MTRR_ENABLE 0x800u
#define MMIO_BEGIN 0xc0000000u
#define MMIO_BYTES 0x40000000u

u32 stack_free;
/* The EBDA's first byte is its size in KiB. */
__attribute__((section(".ebda"), used, aligned(16))) const u8 ebda_head[16] = {EBDA_BYTES >> 10};

extern const u8 int_08[], int_09[], int_10[], int_11[], int_12[], int_13[], int_14[], int_15[], int_16[], int_17[], int_18[],
    int_19[], int_1a[], irq_master[], irq_slave[], ignore[], diskette_parameters[];

static void set_vector(unsigned number, const u8 *handler)
{
    poke16(0, 4 * number, (u16)(uintptr_t)handler);
    poke16(0, 4 * number + 2, BIOS_SEG);
}

static void set_vectors(void)
{
    static const u8 *const services[] = {int_10, int_11, int_12, int_13, int_14, int_15, int_16, int_17, int_18, int_19, int_1a};
    for (unsigned i = 0; i < 0x78; i++)
        set_vector(i, ignore);
    for (unsigned i = 0x78; i < 0x100; i++)
        poke32(0, 4 * i, 0);
    set_vector(0x08, int_08);
    set_vector(0x09, int_09);
    for (unsigned i = 0x0a; i < 0x10; i++)
        set_vector(i, irq_master);
    for (unsigned i = 0; i < ARRAY_LEN(services); i++)
        set_vector(0x10 + i, services[i]);
    set_vector(0x1e, diskette_parameters);
    for (unsigned i = 0x70; i < 0x78; i++)
        set_vector(i, irq_slave);
    for (unsigned i = 0x60; i < 0x68; i++) /* free for programs, which look for zeros */
        poke32(0, 4 * i, 0);
}

static void clear_bda(void)
{
    for (unsigned i = 0; i < 0x100; i += 4)
        poke32(BDA_SEG, i, 0);
    poke16(BDA_SEG, BDA_EBDA, EBDA_SEG);
    poke16(BDA_SEG, BDA_MEMORY_KIB, EBDA_SEG >> 6);
    poke16(BDA_SEG, BDA_EQUIPMENT, 0x0226); /* a serial port, 80 columns in colour, a mouse port, a coprocessor */
}

/* Both 8259A as on an AT: vectors 08h and 70h, the slave on IRQ 2. What is not served here stays masked. */
static void init_pics(void)
{
    out8(0x20, 0x11), out8(0x21, 0x08), out8(0x21, 0x04), out8(0x21, 0x01);
    out8(0xa0, 0x11), out8(0xa1, 0x70), out8(0xa1, 0x02), out8(0xa1, 0x01);
    out8(0x21, 0xf8);
    out8(0xa1, 0xff);
}

/* SDM vol. 3, 12.11: all is write-back but what lies between RAM and 4 GiB. */
static void init_mtrrs(void)
{
    u32 features, ignored;
    cpuid(1, &features);
    if (!(features & CPUID_MTRR))
        return;
    unsigned address_bits = cpuid(0x80000000, &ignored) >= 0x80000008 ? cpuid(0x80000008, &ignored) & 0xff : 36;
    write_msr(MTRR_BASE_0, MMIO_BEGIN | MTRR_UNCACHED);
    write_msr(MTRR_MASK_0, ((((u64)1 << address_bits) - 1) & ~(u64)(MMIO_BYTES - 1)) | MTRR_VALID);
    write_msr(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK);
}

void post(void)
{
    init_mtrrs();
    set_vectors();
    clear_bda();
    init_pics();
    serial_init();
    video_init();
    keyboard_init();
    time_init();
    memory_init();
    interrupts_on();
    disks_init();
    boot();
}

void copy_out(u16 segment, u16 offset, const void *data, u16 bytes)
{
    const u8 *from = data;
    for (; bytes; bytes--)
        poke8(segment, offset++, *from++);
}

void copy_in(void *data, u16 segment, u16 offset, u16 bytes)
{
    u8 *to = data;
    for (; bytes; bytes--)
        *to++ = peek8(segment, offset++);
}

/* gcc calls these for structures. */
void *memset(void *to, int value, size_t bytes)
{
    for (u8 *p = to; bytes; bytes--)
        *p++ = (u8)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t bytes)
{
    const u8 *source = from;
    for (u8 *p = to; bytes; bytes--)
        *p++ = *source++;
    return to;
}

int memcmp(const void *a, const void *b, size_t bytes)
{
    const u8 *x = a, *y = b;
    for (; bytes; bytes--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}
