/* SPDX-License-Identifier: MIT */
/* The embedded guest: a Multiboot kernel of 32 bits that says on COM1 what machine it finds, and ends with a status.
 *
 * Words of its command line: name=TEXT (whom to greet for), status=N (what to write to the debug exit port, 0),
 * port=0xN (where that is, 0xf4). Without such a port it powers off through ACPI's fixed hardware, if it can,
 * or halts. */
#include <stdint.h>

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4
#define LOADER_MAGIC 0x2badb002u

struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};

struct memory_range {
    uint32_t size;
    uint64_t base, length;
    uint32_t type;
} __attribute__((packed));

__asm__(".section .multiboot, \"a\"\n"
        ".balign 4\n"
        ".long 0x1badb002, 0x3, -(0x1badb002 + 0x3)\n" /* modules on pages, memory information */
        ".text\n"
        ".globl start\n"
        "start:\n"
        "    movl $stack_top, %esp\n"
        "    pushl %ebx\n"
        "    pushl %eax\n"
        "    call greet\n"
        "1:  cli\n"
        "    hlt\n"
        "    jmp 1b\n"
        ".bss\n"
        ".balign 16\n"
        "    .skip 16384\n"
        "stack_top:\n"
        ".text\n");

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void cpuid(uint32_t leaf, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(0));
}

/* ---- the serial port ---- */

static void put_char(char c)
{
    while (!(in8(COM1 + 5) & 0x20))
        ;
    out8(COM1, (uint8_t)c);
}

static void put(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            put_char('\r');
        put_char(*text);
    }
}

static void put_number(uint32_t value)
{
    char digits[11], *at = digits + 10;
    *at = 0;
    do
        *--at = (char)('0' + value % 10);
    while (value /= 10);
    put(at);
}

/* ---- the command line ---- */

static int starts_with(const char *text, const char *start)
{
    while (*start)
        if (*text++ != *start++)
            return 0;
    return 1;
}

/* What follows `key` where a word begins with it, or NULL. */
static const char *option(const char *cmdline, const char *key)
{
    for (const char *at = cmdline; *at; at++)
        if ((at == cmdline || at[-1] == ' ') && starts_with(at, key)) {
            while (*key++)
                at++;
            return at;
        }
    return 0;
}

static uint32_t number(const char *text, uint32_t otherwise)
{
    if (!text)
        return otherwise;
    uint32_t value = 0, base = 10;
    if (text[0] == '0' && text[1] == 'x') {
        base = 16;
        text += 2;
    }
    for (;; text++) {
        uint32_t digit = *text >= '0' && *text <= '9' ? (uint32_t)(*text - '0')
                         : *text >= 'a' && *text <= 'f' ? (uint32_t)(*text - 'a' + 10) : 99;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

static void put_word(const char *text)
{
    while (*text && *text != ' ')
        put_char(*text++);
}

/* ---- ACPI: processors and the power-off registers ---- */

static uint32_t load32(uint32_t address)
{
    return *(const volatile uint32_t *)address;
}

/* Through the XSDT, or the RSDT of ACPI 1.0, whose entries have 4 bytes. */
static uint32_t find_table(const char *signature)
{
    uint32_t rsdp = 0xe0000;
    while (rsdp < 0x100000 && !starts_with((const char *)rsdp, "RSD PTR "))
        rsdp += 16;
    if (rsdp == 0x100000)
        return 0;
    uint32_t is_new = *(const uint8_t *)(rsdp + 15) >= 2;
    uint32_t list = load32(rsdp + (is_new ? 24 : 16));
    for (uint32_t at = 36; at < load32(list + 4); at += is_new ? 8 : 4)
        if (starts_with((const char *)load32(list + at), signature))
            return load32(list + at);
    return 0;
}

static uint32_t count_processors(void)
{
    uint32_t madt = find_table("APIC"), count = 0;
    for (uint32_t at = 44; madt && at < load32(madt + 4); at += *(const uint8_t *)(madt + at + 1))
        count += *(const uint8_t *)(madt + at) == 0 && (load32(madt + at + 4) & 1);
    return count;
}

static void power_off(void)
{
    uint32_t fadt = find_table("FACP");
    if (fadt) /* SLP_EN with the board's SLP_TYP of S5 */
        __asm__ volatile("outw %0, %1" : : "a"((uint16_t)(5 << 10 | 1 << 13)), "Nd"((uint16_t)load32(fadt + 64)));
}

/* ---- what it says ---- */

/* The brand string, or where there is none the vendor. */
static void put_brand(void)
{
    uint32_t words[13] = {0};
    cpuid(0x80000000, words);
    int has_brand = words[0] >= 0x80000004;
    for (uint32_t i = 0; has_brand && i < 3; i++)
        cpuid(0x80000002 + i, words + 4 * i);
    if (!has_brand || !words[0]) {
        uint32_t leaf[4];
        cpuid(0, leaf);
        words[0] = leaf[1], words[1] = leaf[3], words[2] = leaf[2], words[3] = 0;
    }
    const char *text = (const char *)words;
    while (*text == ' ')
        text++;
    put(text);
}

static uint32_t memory_mib(const struct multiboot_info *info)
{
    uint64_t total = 0;
    for (uint32_t at = info->mmap_addr; at < info->mmap_addr + info->mmap_length;) {
        const struct memory_range *range = (const struct memory_range *)at;
        if (range->type == 1)
            total += range->length;
        at += range->size + 4;
    }
    return (uint32_t)((total + 0x80000) >> 20);
}

void greet(uint32_t magic, const struct multiboot_info *info)
{
    out8(COM1 + 3, 0x03); /* 8 bits, no parity, one stop bit */
    out8(COM1 + 2, 0x07); /* FIFOs on, empty */
    const char *cmdline = magic == LOADER_MAGIC && (info->flags & 4) ? (const char *)info->cmdline : "";
    const char *name = option(cmdline, "name=");
    uint32_t cr0;
    __asm__("movl %%cr0, %0" : "=r"(cr0));

    put("Hello from ");
    if (name)
        put_word(name);
    else
        put("a machine without a name");
    put("!\n  processors  ");
    put_number(count_processors());
    put(" (");
    put_brand();
    put(")\n  memory      ");
    put_number(magic == LOADER_MAGIC ? memory_mib(info) : 0);
    put(" MiB\n  mode        ");
    put(cr0 & 1 ? "32-bit protected mode" : "real mode");
    put(cr0 >> 31 ? ", paging on\n" : ", paging off\n");
    uint32_t status = number(option(cmdline, "status="), 0);
    put("  status      ");
    put_number(status);
    put("\n");
    out32((uint16_t)number(option(cmdline, "port="), DEBUG_EXIT), status);
    power_off();
}
