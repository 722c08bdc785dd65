/* SPDX-License-Identifier: MIT */
/* A Multiboot kernel for tests of the whole machine: its command line names the test it shall run. It ends through
 * the debug exit port: 0 when all was as it should be, else the number of the check that failed. */
#include <stdint.h>

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4
#define LAPIC 0xfee00000u
#define TRAMPOLINE 0x8000u

struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};

struct module {
    uint32_t start, end, string, reserved;
};

__asm__(".section .multiboot, \"a\"\n"
        ".balign 4\n"
        ".long 0x1badb002, 0x3, -(0x1badb002 + 0x3)\n"
        ".text\n"
        ".globl start\n"
        "start:\n"
        "    movl $stack_top, %esp\n"
        "    pushl %ebx\n"
        "    pushl %eax\n"
        "    call run\n"
        ".bss\n"
        ".balign 16\n"
        "    .skip 16384\n"
        "stack_top:\n"
        ".text\n"
        /* what an interrupt does: count, and tell the controller that it wants to know */
        ".globl on_pic\n"
        "on_pic:\n"
        "    pushl %eax\n"
        "    incl interrupts\n"
        "    movb $0x20, %al\n"
        "    outb %al, $0xa0\n"
        "    outb %al, $0x20\n"
        "    jmp leave_interrupt\n"
        ".globl on_apic\n"
        "on_apic:\n"
        "    pushl %eax\n"
        "    incl interrupts\n"
        "    movl $0, 0xfee000b0\n"
        "    jmp leave_interrupt\n"
        /* and what a fault does: count, and go on elsewhere */
        ".globl on_fault\n"
        "on_fault:\n"
        "    pushl %eax\n"
        "    incl interrupts\n"
        "    movl resume_at, %eax\n"
        "    movl %eax, 4(%esp)\n"
        /* An IRET to the same ring in other words: KVM without hardware behind it cannot do IRET. */
        "leave_interrupt:\n"
        "    movl 12(%esp), %eax\n"
        "    movl %eax, 8(%esp)\n"  /* the flags take the place of CS, */
        "    movl 4(%esp), %eax\n"
        "    movl %eax, 12(%esp)\n" /* and EIP that of the flags */
        "    popl %eax\n"
        "    leal 4(%esp), %esp\n"
        "    popfl\n"
        "    ret\n"
        /* another processor begins here, in real mode, at a page below 1 MiB to which this is copied */
        ".globl trampoline, trampoline_end\n"
        ".code16\n"
        "trampoline:\n"
        "    cli\n"
        "    xorw %ax, %ax\n"
        "    movw %ax, %ds\n"
        "    lgdtl 0x8000 + trampoline_gdtr - trampoline\n"
        "    movl %cr0, %eax\n"
        "    orb $1, %al\n"
        "    movl %eax, %cr0\n"
        "    ljmpl $0x08, $processor_main\n"
        ".balign 8\n"
        "trampoline_gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
        "trampoline_gdtr: .word 23\n"
        "    .long 0x8000 + trampoline_gdt - trampoline\n"
        "trampoline_end:\n"
        ".code32\n"
        ".globl processor_main\n"
        "processor_main:\n"
        "    movw $0x10, %ax\n"
        "    movw %ax, %ds\n"
        "    lock incl processors\n"
        "1:  hlt\n"
        "    jmp 1b\n");

extern char on_pic[], on_apic[], on_fault[], trampoline[], trampoline_end[];
volatile uint32_t interrupts, processors, resume_at;

static inline void out8(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static inline void out32(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }
static inline uint8_t in8(uint16_t port)
{
    uint8_t v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint32_t in32(uint16_t port)
{
    uint32_t v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint64_t rdtsc(void)
{
    uint64_t v;
    __asm__ volatile("rdtsc" : "=A"(v));
    return v;
}
static inline volatile uint32_t *mem32(uint32_t address) { return (volatile uint32_t *)address; }

static void __attribute__((noreturn)) leave(uint32_t status)
{
    out32(DEBUG_EXIT, status);
    for (;;)
        __asm__ volatile("cli; hlt");
}

#define EXPECT(number, condition) \
    do {                          \
        if (!(condition))         \
            leave(number);        \
    } while (0)

static void put(const char *text)
{
    for (; *text; text++)
        out8(COM1, (uint8_t)*text);
}

static int same(const char *text, const char *other)
{
    while (*text && *text == *other)
        text++, other++;
    return *text == *other;
}

/* ---- interrupts ---- */

static uint64_t idt[256];

static void set_gate(unsigned vector, const char *handler)
{
    uint32_t address = (uint32_t)handler;
    idt[vector] = (address & 0xffff) | 0x08u << 16 | (uint64_t)(0x8e00u | (address & 0xffff0000u)) << 32;
}

static void load_idt(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint32_t base;
    } idtr = {sizeof idt - 1, (uint32_t)idt};
    __asm__ volatile("lidt %0" : : "m"(idtr));
}

static void init_pic(uint8_t mask)
{
    static const uint8_t words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4},
                                       {0xa1, 2},    {0x21, 1},    {0xa1, 1},    {0xa1, 0xff}};
    for (unsigned i = 0; i < sizeof words / 2; i++)
        out8(words[i][0], words[i][1]);
    out8(0x21, mask);
    for (unsigned i = 0; i < 16; i++)
        set_gate(0x20 + i, on_pic);
    load_idt();
}

static void wait_interrupts(uint32_t count)
{
    while (interrupts < count)
        __asm__ volatile("sti; hlt; cli");
}

/* ---- the tests ---- */

static void test_pit(void)
{
    init_pic(0xfe);
    out8(0x43, 0x34);
    out8(0x40, 0xa9); /* 1193: a millisecond */
    out8(0x40, 0x04);
    wait_interrupts(20);
}

static void test_apic_timer(void)
{
    load_idt();
    set_gate(0x40, on_apic);
    *mem32(LAPIC + 0xf0) = 0x1ff;
    *mem32(LAPIC + 0x3e0) = 0x3;       /* divide by 16 */
    *mem32(LAPIC + 0x320) = 0x20040;   /* periodic */
    *mem32(LAPIC + 0x380) = 1000000 / 16;
    wait_interrupts(10);
    *mem32(LAPIC + 0x320) = 0x10040;
}

/* The PIT's IRQ 0 arrives at pin 2 of the I/O APIC. */
static void test_ioapic(void)
{
    init_pic(0xff);
    set_gate(0x41, on_apic);
    *mem32(LAPIC + 0xf0) = 0x1ff;
    *mem32(0xfec00000) = 0x10 + 2 * 2 + 1;
    *mem32(0xfec00010) = *mem32(LAPIC + 0x20) & 0xff000000;
    *mem32(0xfec00000) = 0x10 + 2 * 2;
    *mem32(0xfec00010) = 0x41;
    out8(0x43, 0x34);
    out8(0x40, 0xa9);
    out8(0x40, 0x04);
    wait_interrupts(10);
}

static void test_self_ipi(void)
{
    load_idt();
    set_gate(0x42, on_apic);
    *mem32(LAPIC + 0xf0) = 0x1ff;
    *mem32(LAPIC + 0x300) = 0x40042; /* shorthand: self */
    wait_interrupts(1);
}

/* Each often enough for it to be translated: what traps on the host, too, is the guest's exception. */
static void test_exceptions(void)
{
    static const uint32_t zero, unmasked_mxcsr = 0x1d80, masked_mxcsr = 0x1f80;
    static const uint16_t unmasked_x87 = 0x37b;
    static const float one = 1;
    load_idt();
    set_gate(0, on_fault);
    set_gate(16, on_fault);
    set_gate(19, on_fault);
    __asm__ volatile("movl %%cr0, %%eax; andl $~4, %%eax; orl $0x22, %%eax; movl %%eax, %%cr0\n" /* less EM; NE, MP */
                     "movl %%cr4, %%eax; orl $0x600, %%eax; movl %%eax, %%cr4" /* OSFXSR, OSXMMEXCPT */
                     : : : "eax");
    for (uint32_t i = 0; i < 100; i++) {
        __asm__ volatile("movl $1f, resume_at; xorl %%edx, %%edx; movl $5, %%eax; divl %0; ud2; 1:"
                         : : "m"(zero) : "eax", "edx", "memory", "cc");
        EXPECT(1, interrupts == 3 * i + 1);
        __asm__ volatile("movl $1f, resume_at; fninit; fldcw %0; fld1; fdivs %1; fwait; ud2; 1: fninit"
                         : : "m"(unmasked_x87), "m"(zero) : "memory", "cc");
        EXPECT(2, interrupts == 3 * i + 2);
        __asm__ volatile("movl $1f, resume_at; ldmxcsr %0; movss %3, %%xmm0; divss %1, %%xmm0; ud2; 1: ldmxcsr %2"
                         : : "m"(unmasked_mxcsr), "m"(zero), "m"(masked_mxcsr), "m"(one) : "memory", "cc");
        EXPECT(3, interrupts == 3 * i + 3);
    }
}

static void pause_ticks(uint64_t ticks)
{
    for (uint64_t end = rdtsc() + ticks; rdtsc() < end;)
        __asm__ volatile("pause");
}

static void test_smp(uint32_t expected)
{
    for (char *from = trampoline, *to = (char *)TRAMPOLINE; from < trampoline_end;)
        *to++ = *from++;
    *mem32(LAPIC + 0xf0) = 0x1ff;
    *mem32(LAPIC + 0x300) = 0xc4500; /* INIT to all but self */
    pause_ticks(10000000);
    *mem32(LAPIC + 0x300) = 0xc4600 | TRAMPOLINE >> 12;
    while (processors < expected - 1)
        __asm__ volatile("pause");
}

static void test_rom(void)
{
    volatile uint32_t *rom = mem32(0xf0000);
    uint32_t before = *rom;
    *rom = ~before;
    EXPECT(1, *rom == before);
    EXPECT(2, *mem32(0xe0000) == 0x20445352); /* "RSD " */
}

static void test_pci(void)
{
    out32(0xcf8, 0x80000000);
    EXPECT(1, (in32(0xcfc) & 0xffff) == 0x8086);
    EXPECT(2, in32(0xcfc) == *mem32(0xe0000000)); /* ECAM shows the same */
    out32(0xcf8, 0x80000800);                     /* slot 1 */
    EXPECT(3, in32(0xcfc) == 0x10441af4);         /* virtio-rng */
    out32(0xcf8, 0x80000810);
    uint32_t bar = in32(0xcfc) & ~0xfu;
    EXPECT(4, bar >= 0xc0000000);
    EXPECT(5, *(volatile uint16_t *)(bar + 0x12) == 1); /* num_queues */
    out32(0xcf8, 0x8000f800);
    EXPECT(6, in32(0xcfc) == 0xffffffff); /* nobody there */
}

static void test_memory(const struct multiboot_info *info)
{
    EXPECT(1, info->mem_lower == 640);
    EXPECT(2, info->mem_upper > 60000 && info->mem_upper < 65536);
    volatile uint32_t *top = mem32(0x100000 + info->mem_upper * 1024 - 4);
    *top = 0x12345678;
    EXPECT(3, *top == 0x12345678);
    *mem32(0xd0000) = 1; /* nothing is there */
    EXPECT(4, *mem32(0xd0000) == 0xffffffff);
    out8(0x70, 0x34); /* CMOS: memory above 16 MiB in 64 KiB */
    EXPECT(5, in8(0x71) == ((64 - 16) * 16 & 0xff));
}

static void test_modules(const struct multiboot_info *info)
{
    const struct module *module = (const struct module *)info->mods_addr;
    EXPECT(1, info->mods_count == 2);
    EXPECT(2, !(module[0].start & 0xfff) && module[0].end - module[0].start == 5);
    EXPECT(3, same((const char *)module[0].string, "first one"));
    EXPECT(4, *(const char *)module[0].start == 'a');
    EXPECT(5, module[1].end - module[1].start == 5000 && *(const char *)(module[1].start + 4999) == 'z');
}

/* What was written into the CMOS RAM survives the reset; that tells the second start. */
static void test_reset(void)
{
    out8(0x70, 0x7f);
    if (in8(0x71) == 0x5a)
        leave(42);
    out8(0x70, 0x7f);
    out8(0x71, 0x5a);
    out8(0xcf9, 6);
    for (;;)
        __asm__ volatile("hlt");
}

static void test_keyboard_reset(void)
{
    out8(0x64, 0xfe);
    for (;;)
        __asm__ volatile("hlt");
}

static void test_triple_fault(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint32_t base;
    } none = {0, 0};
    __asm__ volatile("lidt %0; ud2" : : "m"(none));
}

/* Sends back what it receives, in upper case, until a full stop. */
static void test_echo(void)
{
    init_pic(0xef);
    out8(COM1 + 1, 1);
    out8(COM1 + 4, 0x0b); /* OUT2 lets the interrupt through */
    for (;;) {
        while (!(in8(COM1 + 5) & 1))
            __asm__ volatile("sti; hlt; cli");
        uint8_t c = in8(COM1);
        if (c == '.')
            leave(0);
        out8(COM1, c >= 'a' && c <= 'z' ? c - 32 : c);
    }
}

static void test_flood(void)
{
    for (uint32_t i = 0; i < 500000; i++)
        out8(COM1, (i & 63) == 63 ? '\n' : (uint8_t)('0' + i % 10));
}

/* ---- a disk: virtio-blk in slot 1, with an MSI-X interrupt for each request ---- */

static struct {
    struct __attribute__((packed)) {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } descriptor[16];
    struct {
        uint16_t flags, index, ring[16];
    } available;
    __attribute__((aligned(4))) struct {
        uint16_t flags;
        volatile uint16_t index;
        struct {
            uint32_t id, length;
        } ring[16];
    } used;
} queue __attribute__((aligned(4096)));

static struct {
    uint32_t type, reserved;
    uint64_t sector;
} request;
static uint8_t sector[512];
static volatile uint8_t answer;

static uint32_t config_read(uint32_t offset)
{
    out32(0xcf8, 0x80000800 | offset);
    return in32(0xcfc);
}

static void enable_msix(uint32_t vector)
{
    volatile uint32_t *table = mem32(config_read(0x14) & ~0xfu);
    table[0] = LAPIC;
    table[1] = 0;
    table[2] = vector;
    table[3] = 0;
    for (uint32_t at = config_read(0x34) & 0xff; at; at = config_read(at) >> 8 & 0xff)
        if ((config_read(at) & 0xff) == 0x11) {
            uint32_t head = config_read(at);
            out32(0xcfc, head | 1u << 31);
        }
}

static void do_request(uint32_t bar, uint32_t type, uint64_t number)
{
    uint16_t before = queue.used.index;
    uint32_t seen = interrupts;
    request.type = type;
    request.sector = number;
    answer = 0xff;
    queue.descriptor[0].address = (uint32_t)&request, queue.descriptor[0].length = 16;
    queue.descriptor[0].flags = 1, queue.descriptor[0].next = 1;
    queue.descriptor[1].address = (uint32_t)sector, queue.descriptor[1].length = 512;
    queue.descriptor[1].flags = type ? 1 : 3, queue.descriptor[1].next = 2;
    queue.descriptor[2].address = (uint32_t)&answer, queue.descriptor[2].length = 1, queue.descriptor[2].flags = 2;
    queue.available.ring[queue.available.index % 16] = 0;
    __asm__ volatile("" : : : "memory");
    queue.available.index++;
    __asm__ volatile("lock addl $0, (%%esp)" : : : "memory");
    *(volatile uint16_t *)(bar + 0x3000) = 0;
    wait_interrupts(seen + 1);
    EXPECT(10, queue.used.index == (uint16_t)(before + 1));
    EXPECT(11, answer == 0);
}

static void test_disk(void)
{
    EXPECT(1, config_read(0) == 0x10421af4);
    uint32_t bar = config_read(0x10) & ~0xfu;
    volatile uint8_t *status = (volatile uint8_t *)(bar + 0x14);
    load_idt();
    set_gate(0x50, on_apic);
    *mem32(LAPIC + 0xf0) = 0x1ff;
    enable_msix(0x50);
    *status = 0;
    *status = 3;
    *mem32(bar + 8) = 1;
    *mem32(bar + 12) = 1; /* VERSION_1 alone */
    *status = 11;
    EXPECT(2, *status == 11);
    *(volatile uint16_t *)(bar + 0x16) = 0;
    *(volatile uint16_t *)(bar + 0x18) = 16;
    *(volatile uint16_t *)(bar + 0x1a) = 0;
    *mem32(bar + 0x20) = (uint32_t)queue.descriptor;
    *mem32(bar + 0x28) = (uint32_t)&queue.available;
    *mem32(bar + 0x30) = (uint32_t)&queue.used;
    *(volatile uint16_t *)(bar + 0x1c) = 1;
    *status = 15;
    for (uint32_t i = 0; i < 20; i++) { /* sector 0 goes to sectors 1..20, with its number in front */
        do_request(bar, 0, 0);
        EXPECT(12, sector[0] == 'D' && sector[511] == 'K');
        sector[0] = (uint8_t)(i + 1);
        do_request(bar, 1, i + 1);
    }
}

void run(uint32_t magic, const struct multiboot_info *info)
{
    EXPECT(99, magic == 0x2badb002);
    EXPECT(98, (info->flags & 0x4d) == 0x4d);
    const char *name = (const char *)info->cmdline;
    if (same(name, "pit"))
        test_pit();
    else if (same(name, "apic-timer"))
        test_apic_timer();
    else if (same(name, "ioapic"))
        test_ioapic();
    else if (same(name, "self-ipi"))
        test_self_ipi();
    else if (same(name, "exceptions"))
        test_exceptions();
    else if (same(name, "smp4"))
        test_smp(4);
    else if (same(name, "rom"))
        test_rom();
    else if (same(name, "pci"))
        test_pci();
    else if (same(name, "memory"))
        test_memory(info);
    else if (same(name, "modules"))
        test_modules(info);
    else if (same(name, "reset"))
        test_reset();
    else if (same(name, "keyboard-reset"))
        test_keyboard_reset();
    else if (same(name, "triple-fault"))
        test_triple_fault();
    else if (same(name, "echo"))
        test_echo();
    else if (same(name, "flood"))
        test_flood();
    else if (same(name, "disk"))
        test_disk();
    else if (same(name, "power-off"))
        out16(0x604, 5 << 10 | 1 << 13);
    else if (same(name, "exec"))
        out8(0x5f4, 7);
    else if (same(name, "pvpanic"))
        out8(0x505, in8(0x505) & 1);
    else if (same(name, "panic-reset")) {
        put("[    1.500000] Kernel panic - not syncing: a test of panics\r\n[    1.6] more\r\n");
        out8(0xcf9, 6);
    } else if (same(name, "panic-halt"))
        put("Kernel panic - not syncing: for ever\n---[ end Kernel panic - not syncing: for ever ]---\n");
    else if (same(name, "halt"))
        __asm__ volatile("cli; hlt");
    else if (same(name, "spin"))
        for (;;)
            __asm__ volatile("pause");
    else
        leave(97);
    if (same(name, "panic-halt") || same(name, "halt") || same(name, "exec") || same(name, "power-off"))
        for (;;)
            __asm__ volatile("hlt");
    leave(0);
}
