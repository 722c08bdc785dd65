/* SPDX-License-Identifier: MIT */
/* The built-in BIOS: a PC/AT's interrupt services on this project's board. Its screen is the first serial port, its disks are
 * virtio-blk devices. 16-bit code of gcc -m16: DS, ES and SS are the EBDA (layout.h), so pointers reach that alone; other
 * memory is read and written with peek and poke.
 *
 * Services are named by the interrupt's number and AH, as in Ralf Brown's Interrupt List. */
#ifndef IMGVM_FIRMWARE_BIOS_H
#define IMGVM_FIRMWARE_BIOS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define ARRAY_LEN(a) (sizeof(a) / sizeof(*(a)))

/* What a service was called with and returns (dispatch in entry.S). */
#define REGISTER(letter)              \
    union {                           \
        u32 e##letter##x;             \
        u16 letter##x;                \
        struct {                      \
            u8 letter##l, letter##h;  \
        };                            \
    }
struct regs {
    union { u32 edi; u16 di; };
    union { u32 esi; u16 si; };
    union { u32 ebp; u16 bp; };
    REGISTER(b);
    REGISTER(d);
    REGISTER(c);
    REGISTER(a);
    u32 esp;
    u16 ss, ds, es, fs, gs, flags;
};
_Static_assert(offsetof(struct regs, eax) == FRAME_EAX && offsetof(struct regs, flags) == FRAME_FLAGS &&
                   sizeof(struct regs) == FRAME_BYTES,
               "entry.S sees another frame");

#define FLAG_CARRY 0x0001
#define FLAG_ZERO 0x0040
#define FLAG_INTERRUPT 0x0200

static inline void set_carry(struct regs *r, bool carry)
{
    r->flags = (u16)((r->flags & ~FLAG_CARRY) | (carry ? FLAG_CARRY : 0));
}

/* 15h and others: a function that is not here. */
static inline void unsupported(struct regs *r)
{
    r->ah = 0x86;
    set_carry(r, true);
}

/* ---- the processor ---- */

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u16 in16(u16 port)
{
    u16 value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void interrupts_on(void) { __asm__ volatile("sti" : : : "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("cli" : : : "memory"); }
static inline u32 interrupts_save(void)
{
    u32 flags;
    __asm__ volatile("pushfl\n popl %0\n cli" : "=r"(flags) : : "memory");
    return flags;
}
static inline void interrupts_restore(u32 flags) { __asm__ volatile("pushl %0\n popfl" : : "r"(flags) : "memory", "cc"); }
/* Until the next interrupt; they are off again behind it. */
static inline void wait_for_interrupt(void) { __asm__ volatile("sti\n hlt\n cli" : : : "memory"); }
static inline void pause(void) { __asm__ volatile("pause" : : : "memory"); }

static inline u32 cpuid(u32 leaf, u32 *edx)
{
    u32 eax = leaf, ebx, ecx = 0;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(*edx));
    return eax;
}

static inline void write_msr(u32 index, u64 value) { __asm__ volatile("wrmsr" : : "c"(index), "A"(value)); }

/* ---- memory outside the EBDA ---- */

#define PEEK(bits, letter)                                                                                 \
    static inline u##bits peek##bits(u16 segment, u32 offset)                                              \
    {                                                                                                      \
        u##bits value;                                                                                     \
        __asm__ volatile("movw %w1, %%fs\n mov" letter " %%fs:(%2), %0"                                    \
                         : "=q"(value) : "r"(segment), "r"(offset) : "memory");                            \
        return value;                                                                                      \
    }                                                                                                      \
    static inline void poke##bits(u16 segment, u32 offset, u##bits value)                                  \
    {                                                                                                      \
        __asm__ volatile("movw %w1, %%fs\n mov" letter " %0, %%fs:(%2)"                                    \
                         : : "q"(value), "r"(segment), "r"(offset) : "memory");                            \
    }
PEEK(8, "b")
PEEK(16, "w")
PEEK(32, "l")
#undef PEEK

/* To and from the EBDA. Offsets stay below 64 KiB. */
void copy_out(u16 segment, u16 offset, const void *data, u16 bytes);
void copy_in(void *data, u16 segment, u16 offset, u16 bytes);
void *memset(void *to, int value, size_t bytes);
void *memcpy(void *to, const void *from, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

/* ---- the BIOS data area ---- */

#define BDA_COM1 0x00
#define BDA_EBDA 0x0e
#define BDA_EQUIPMENT 0x10
#define BDA_MEMORY_KIB 0x13
#define BDA_SHIFTS 0x17
#define BDA_KEY_HEAD 0x1a
#define BDA_KEY_TAIL 0x1c
#define BDA_KEYS 0x1e
#define BDA_KEYS_END 0x3e
#define BDA_VIDEO_MODE 0x49
#define BDA_COLUMNS 0x4a
#define BDA_PAGE_BYTES 0x4c
#define BDA_CURSOR 0x50
#define BDA_CURSOR_SHAPE 0x60
#define BDA_PAGE 0x62
#define BDA_CRTC 0x63
#define BDA_TICKS 0x6c
#define BDA_MIDNIGHT 0x70
#define BDA_DISK_STATUS 0x74
#define BDA_DISK_COUNT 0x75
#define BDA_COM1_TIMEOUT 0x7c
#define BDA_KEYS_BEGIN_AT 0x80
#define BDA_KEYS_END_AT 0x82
#define BDA_LAST_ROW 0x84
#define BDA_CHAR_HEIGHT 0x85
#define BDA_SHIFTS_EXTENDED 0x96

/* ---- between the files ---- */

extern u32 stack_free; /* entry.S */

/* entry.S */
__attribute__((noreturn)) void run_boot_code(u32 segment_offset, u32 drive);
__attribute__((noreturn)) void restart_boot(void);
void copy_extended(u32 words);

/* console.c: the serial port as a terminal */
void serial_init(void);
void serial_put(u8 byte);
bool serial_get(u8 *byte);
void serial_listen(void);
void video_init(void);
void print(const char *text);
void print_hex(u32 value, unsigned digits);

/* keyboard.c */
void keyboard_init(void);

/* time.c */
void time_init(void);
void delay_us(u32 us);

/* pci.c: bus 0 */
u32 pci_read32(u8 devfn, u8 offset);
u16 pci_read16(u8 devfn, u8 offset);
u8 pci_read8(u8 devfn, u8 offset);
void pci_write32(u8 devfn, u8 offset, u32 value);
void pci_write16(u8 devfn, u8 offset, u16 value);
void pci_write8(u8 devfn, u8 offset, u8 value);
void pci_bios_service(struct regs *r);

/* boot.c */
__attribute__((noreturn)) void boot(void);

#endif
