/* SPDX-License-Identifier: MIT */
/* The software processor on small programs, from the state a test sets: arithmetic, faults, paging, interrupts,
 * self-modifying code, native rows, modes. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "flat_state.h"
#include "quiet_world.h"
#include "world_translator.h"
#include "cpu/cpu.h"

struct world {
    struct guest_mem mem;
    struct cpu *cpu;
    uint32_t last_port, last_value;
    unsigned mmio_reads, mmio_writes;
    uint64_t mmio_last;
    int vector;
    uint64_t now;
};

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)size;
    return port == 0x60 ? 0x12345678 : ~0u;
}
static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct world *w = opaque;
    (void)size;
    w->last_port = port;
    w->last_value = value;
}
static uint64_t mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    struct world *w = opaque;
    (void)gpa, (void)size;
    w->mmio_reads++;
    return 0x1122334455667788;
}
static void mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    struct world *w = opaque;
    (void)gpa, (void)size;
    w->mmio_writes++;
    w->mmio_last = value;
}
static int acknowledge(void *opaque)
{
    struct world *w = opaque;
    int vector = w->vector;
    w->vector = -1;
    return vector;
}
static uint64_t time_ns(void *opaque)
{
    struct world *w = opaque;
    return w->now += 10;
}
static const struct cpu_callbacks callbacks = {
    port_read, port_write, mmio_read, mmio_write, acknowledge, quiet_msr_read, quiet_msr_write, quiet_cr8_read, quiet_cr8_write, time_ns,
};

#define CODE 0x10000
#define STACK 0x8000
#define TABLES 0x20000 /* PML4, PDPT, PD: identity with 2 MiB pages, and PT for the first 2 MiB */
#define IDT 0x30000
#define GDT 0x31000
#define HANDLERS 0x32000
#define MMIO 0xe0000000u

static void world_init(struct world *w)
{
    imgvm_error err;
    memset(w, 0, sizeof *w);
    w->vector = -1;
    CHECK_EQ(guest_mem_init(&w->mem, &err), 0);
    CHECK_EQ(guest_mem_add(&w->mem, 0, 16 << 20, false, &err), 0);
    struct cpu_options options = {.id = 0, .count = 1, .translator = WORLD_TRANSLATOR,
                                  .count_instructions = true};
    w->cpu = cpu_create(&callbacks, w, &w->mem, &options, &err);
    CHECK(w->cpu != NULL);
}

static void world_destroy(struct world *w)
{
    cpu_destroy(w->cpu);
    guest_mem_destroy(&w->mem);
}

static void put64(struct world *w, uint64_t gpa, uint64_t value)
{
    CHECK(guest_mem_write(&w->mem, gpa, &value, 8));
}

static uint64_t get64(struct world *w, uint64_t gpa)
{
    uint64_t value = 0;
    CHECK(guest_mem_read(&w->mem, gpa, &value, 8));
    return value;
}

/* 64-bit ring 0, first 4 GiB mapped one to one, an IDT whose handler for vector n is at HANDLERS + 16 n: `hlt`. */
static void long_mode(struct world *w, struct x86_state *s)
{
    flat_long_mode(s, TABLES);
    map_first_4_gib(&w->mem, TABLES);
    put64(w, GDT + 8, UINT64_C(0x00af9b000000ffff));
    put64(w, GDT + 16, UINT64_C(0x00cf93000000ffff));
    for (uint64_t v = 0; v < 256; v++) {
        uint64_t at = HANDLERS + 16 * v;
        put64(w, IDT + 16 * v, (at & 0xffff) | 8 << 16 | UINT64_C(0x8e00) << 32 | (at >> 16) << 48);
        put64(w, IDT + 16 * v + 8, 0);
        put64(w, at, 0xf4);
    }
    s->gdtr = (struct x86_table){GDT, 0xff};
    s->idtr = (struct x86_table){IDT, 0xfff};
    s->gpr[RSP] = STACK;
    s->rip = CODE;
}

/* Runs the code between two assembler labels until HLT; the state afterwards is in *s. */
static enum cpu_exit run(struct world *w, struct x86_state *s, const uint8_t *code, const uint8_t *end)
{
    CHECK(guest_mem_write(&w->mem, CODE, code, (uint64_t)(end - code)));
    cpu_set_state(w->cpu, s);
    enum cpu_exit exit = cpu_run(w->cpu);
    cpu_get_state(w->cpu, s);
    return exit;
}

#define GUEST(name, ...)                                                                                   \
    __asm__(".pushsection .rodata\n" #name "_begin:\n" __VA_ARGS__ "\n" #name "_end:\n.popsection\n");      \
    extern const uint8_t name##_begin[], name##_end[]
#define RUN(w, s, name) run(w, s, name##_begin, name##_end)

GUEST(sums, "xor %eax, %eax; mov $1000, %ecx; 1: add %rcx, %rax; dec %ecx; jnz 1b; mov $0x8000000000000000, %rdx;"
            "add %rdx, %rdx; pushfq; pop %rbx; mov %rax, -64(%rsp); mov -64(%rsp), %esi; call 2f; hlt; 2: imul $3, %rsi, %rdi;"
            "neg %rdi; movb $0x80, %ah; movsbl %ah, %ebp; ret");
static void test_sums(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, sums), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RBX] & EFLAGS_STATUS, EFLAGS_CF | EFLAGS_OF | EFLAGS_ZF | EFLAGS_PF);
    CHECK_EQ(s.gpr[RSI], 500500);
    CHECK_EQ(s.gpr[RDI], (uint64_t)-1501500);
    CHECK_EQ(s.gpr[RBP], 0xffffff80);
    CHECK_EQ(s.gpr[RSP], STACK);
    CHECK_EQ(cpu_instructions(w.cpu), 2 + 3000 + 13);
    world_destroy(&w);
}

GUEST(native_rows, "movl $3, %eax; cvtsi2sd %eax, %xmm3; movl $0x40, -4(%rsp); cvtsi2sdl -4(%rsp), %xmm4; divsd %xmm4, %xmm3;"
                   "movsd %xmm3, -32(%rsp); fninit; fld1; fldpi; faddp; fstpl -40(%rsp); popcnt %rax, %rbx; pcmpeqd %xmm9, %xmm9;"
                   "movdqu %xmm9, -24(%rsp); pmovmskb %xmm9, %ecx; ucomisd %xmm4, %xmm3; setb %dl; hlt");
static void test_native_rows(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, native_rows), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, CODE + (uint64_t)(native_rows_end - native_rows_begin));
    double quotient, sum;
    uint64_t bits = get64(&w, STACK - 32);
    memcpy(&quotient, &bits, 8);
    bits = get64(&w, STACK - 40);
    memcpy(&sum, &bits, 8);
    CHECK(quotient == 3.0 / 64);
    CHECK(sum > 4.14159 && sum < 4.1416);
    CHECK_EQ(s.gpr[RBX], 2);
    CHECK_EQ(s.gpr[RCX], 0xffff);
    CHECK_EQ(s.gpr[RDX] & 0xff, 1);
    CHECK_EQ(get64(&w, STACK - 24), ~UINT64_C(0));
    world_destroy(&w);
}

GUEST(page_fault, "mov $0x123000, %edi; mov $7, %eax; add %eax, 4(%rdi); hlt");
GUEST(divide, "xor %ecx, %ecx; mov $5, %eax; cltd; idiv %ecx; hlt");
GUEST(misaligned, "movaps -8(%rsp), %xmm0; hlt");
GUEST(unmasked, "movl $0x1d80, -8(%rsp); ldmxcsr -8(%rsp); pxor %xmm1, %xmm1; mov $1, %eax; cvtsi2ss %eax, %xmm0; divss %xmm1, %xmm0; hlt");
static void test_faults(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s);
    put64(&w, TABLES + 0x6000 + 8 * 0x123, 0x123000 | 5); /* present, user, read-only */
    CHECK_EQ(RUN(&w, &s, page_fault), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, HANDLERS + 16 * EXC_PF + 1);
    CHECK_EQ(s.cr2, 0x123004);
    CHECK_EQ(get64(&w, STACK - 48), PF_P | PF_W);
    CHECK_EQ(get64(&w, STACK - 40), CODE + 10);
    CHECK_EQ(s.gpr[RSP], STACK - 48);

    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, divide), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, HANDLERS + 16 * EXC_DE + 1);
    CHECK_EQ(get64(&w, STACK - 40), CODE + 8);
    CHECK_EQ(get64(&w, STACK - 24) & EFLAGS_STATUS, EFLAGS_ZF | EFLAGS_PF); /* what XOR left, though IDIV would kill it */

    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, misaligned), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, HANDLERS + 16 * EXC_GP + 1);

    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, unmasked), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, HANDLERS + 16 * EXC_XM + 1);

    /* no IDT at all: page fault, double fault, triple fault */
    long_mode(&w, &s);
    s.idtr.limit = 0;
    CHECK_EQ(RUN(&w, &s, divide), CPU_EXIT_SHUTDOWN);
    CHECK(strstr(cpu_message(w.cpu), "triple fault") != NULL);
    world_destroy(&w);
}

/* Flags that nothing in the program reads are in the fault's image all the same. */
GUEST(dead_flags, "mov $0x123000, %edi; mov $0x7fffffff, %eax; add $1, %eax; mov %eax, (%rdi); cmp %eax, %eax; hlt");
static void test_flags_at_a_fault(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s);
    put64(&w, TABLES + 0x6000 + 8 * 0x123, 0x123000 | 5);
    CHECK_EQ(RUN(&w, &s, dead_flags), CPU_EXIT_HALT);
    CHECK_EQ(s.rip, HANDLERS + 16 * EXC_PF + 1);
    CHECK_EQ(get64(&w, STACK - 24) & EFLAGS_STATUS, EFLAGS_OF | EFLAGS_SF | EFLAGS_AF | EFLAGS_PF);
    world_destroy(&w);
}

GUEST(modifying, "lea 1f(%rip), %rdi; mov $10, %ecx; xor %eax, %eax; 2: incb 1(%rdi); 1: mov $0, %al; movzbl %al, %edx; add %edx, %ebx;"
                 "dec %ecx; jnz 2b; hlt");
static void test_self_modifying(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, modifying), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RBX], 55);
    world_destroy(&w);
}

GUEST(device, "mov $0xe0000010, %edi; mov (%rdi), %rax; addl $1, (%rdi); mov $0x60, %dx; in %dx, %eax; out %al, $0x80;"
              "mov $2, %ecx; lea -64(%rsp), %rdi; mov $0xe0000000, %esi; rep movsl; hlt");
static void test_device_access(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, device), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RAX], 0x12345678);
    CHECK_EQ(w.last_port, 0x80);
    CHECK_EQ(w.last_value, 0x78);
    CHECK_EQ(w.mmio_reads, 4); /* one load, one of the read-modify-write, two of the string */
    CHECK_EQ(w.mmio_writes, 1);
    CHECK_EQ(w.mmio_last, 0x55667789);
    world_destroy(&w);
}

GUEST(waiting, "sti; hlt; 1: jmp 1b");
GUEST(handler, "incl 0x9000; iretq");
static void test_interrupts(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s);
    CHECK_EQ(RUN(&w, &s, waiting), CPU_EXIT_HALT);
    CHECK(!cpu_has_work(w.cpu));
    CHECK_EQ(s.rip, CODE + 2);
    w.vector = 0x41;
    cpu_request(w.cpu, CPU_REQUEST_INTR);
    CHECK(cpu_has_work(w.cpu));
    CHECK_EQ(cpu_run(w.cpu), CPU_EXIT_HALT); /* the handler's own hlt */
    cpu_get_state(w.cpu, &s);
    CHECK_EQ(s.rip, HANDLERS + 16 * 0x41 + 1);
    CHECK_EQ(get64(&w, STACK - 40), CODE + 2);
    CHECK_EQ(s.rflags & EFLAGS_IF, 0);

    /* iretq, then an endless loop left by request */
    guest_mem_write(&w.mem, HANDLERS + 16 * 0x42, handler_begin, (uint64_t)(handler_end - handler_begin));
    long_mode(&w, &s);
    guest_mem_write(&w.mem, HANDLERS + 16 * 0x42, handler_begin, (uint64_t)(handler_end - handler_begin));
    CHECK_EQ(RUN(&w, &s, waiting), CPU_EXIT_HALT);
    w.vector = 0x42;
    cpu_request(w.cpu, CPU_REQUEST_INTR);
    CHECK_EQ(cpu_run_count(w.cpu, 100), CPU_EXIT_REQUEST);
    CHECK_EQ((uint32_t)get64(&w, 0x9000), 1);
    cpu_get_state(w.cpu, &s);
    CHECK_EQ(s.rip, CODE + 2);
    CHECK_EQ(s.gpr[RSP], STACK);
    cpu_request(w.cpu, CPU_REQUEST_EXIT);
    CHECK_EQ(cpu_run(w.cpu), CPU_EXIT_REQUEST);
    cpu_set_deadline_ns(w.cpu, w.now + 100);
    if (WORLD_TRANSLATOR)
        cpu_clock_due(w.cpu); /* translated code has to be told */
    CHECK_EQ(cpu_run(w.cpu), CPU_EXIT_REQUEST);
    world_destroy(&w);
}

/* reset vector style: real mode, then protected, then long mode, as firmware and kernels do it */
GUEST(modes, ".code16\n"
             "xor %ax, %ax; mov %ax, %ds; mov %ax, %ss; mov $0x7000, %sp; mov $0x1000, %bx; movw $0xbeef, (%bx); pushw $0x1234; popw %cx;"
             "lgdtl 0x600; mov %cr0, %eax; or $1, %al; mov %eax, %cr0; ljmpl $8, $(0x10000 + modes32 - modes_begin)\n"
             ".code32\nmodes32: mov $16, %ax; mov %ax, %ds; mov %ax, %ss; mov $0x7000, %esp; call 1f; 1: pop %esi;"
             "mov $0x20000, %eax; mov %eax, %cr3; mov %cr4, %eax; or $0x20, %eax; mov %eax, %cr4; mov $0xc0000080, %ecx; rdmsr; or $0x100, %eax;"
             "wrmsr; mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; ljmpl $24, $(0x10000 + modes64 - modes_begin)\n"
             ".code64\nmodes64: mov $0x123456789abcdef, %rdi; mov $0x1000, %ebx; movzwl (%rbx), %edx; hlt");
static void test_modes(void)
{
    struct world w;
    struct x86_state s;
    world_init(&w);
    long_mode(&w, &s); /* for its tables */
    x86_state_reset(&s, true);
    s.segment[CS].selector = 0x1000;
    s.segment[CS].base = CODE;
    s.rip = 0;
    put64(&w, GDT + 8, UINT64_C(0x00cf9b000000ffff));
    put64(&w, GDT + 24, UINT64_C(0x00af9b000000ffff));
    put64(&w, 0x600, 0xff | (uint64_t)GDT << 16);
    CHECK_EQ(RUN(&w, &s, modes), CPU_EXIT_HALT);
    CHECK_EQ(s.gpr[RDI], 0x123456789abcdef);
    CHECK_EQ(s.gpr[RDX], 0xbeef);
    CHECK_EQ(s.gpr[RCX] & 0xffff, 0x0080); /* the MSR's number is the last thing in it */
    CHECK(s.efer & EFER_LMA);
    world_destroy(&w);
}

int main(int argc, char **argv)
{
    imgvm_error err;
    CHECK_EQ(cpu_install_trap_handlers(&err), 0);
    test_sums();
    test_native_rows();
    test_faults();
    test_flags_at_a_fault();
    test_self_modifying();
    test_device_access();
    test_interrupts();
    test_modes();
    (void)argc, (void)argv;
    return check_report();
}
