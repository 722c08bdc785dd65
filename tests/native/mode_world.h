/* SPDX-License-Identifier: MIT */
/* A small world for tests of the processor's modes: memory, one software processor, tables for every mode, and guest
 * code written in the test itself. Every exception handler is HLT: a test runs until something happens, and looks. */
#ifndef IMGVM_TEST_MODE_WORLD_H
#define IMGVM_TEST_MODE_WORLD_H

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "check.h"
#include "flat_state.h"
#include "quiet_world.h"
#include "world_translator.h"
#include "cpu/cpu.h"

/* Physical layout */
#define CODE 0x10000u
#define STACK 0x8000u      /* ring 0 */
#define USER_STACK 0x9000u /* ring 3 */
#define TSS 0x2000u
#define TSS_IO_MAP 0x88u /* behind 104 bytes and the 32 of the redirection map */
#define TABLES 0x20000u  /* 6 pages long mode, 1 page table for the first 2 MiB, 1 page directory of 32-bit paging */
#define IDT 0x30000u
#define GDT 0x31000u
#define LDT 0x31800u
#define HANDLERS 0x32000u
#define DATA 0x40000u

/* Selectors */
#define CODE64 0x08
#define DATA0 0x10
#define CODE32 0x18
#define CODE16 0x20
#define USER_CODE32 0x2b
#define USER_DATA 0x33
#define USER_CODE64 0x3b
#define TSS_SEL 0x40 /* 16 bytes in long mode */
#define DATA16 0x50
#define FREE_SEL 0x58 /* the first that a test may fill */

struct world {
    struct guest_mem mem;
    struct cpu *cpu;
    uint32_t last_port, last_value;
    unsigned port_reads, port_writes, mmio_reads, mmio_writes;
    int vector;
    uint64_t now;
    void (*on_port_write)(struct world *w); /* NULL: nothing more */
};

static inline uint32_t world_port_read(void *opaque, uint16_t port, unsigned size)
{
    struct world *w = opaque;
    (void)size;
    w->port_reads++;
    w->last_port = port;
    return 0x12345678;
}
static inline void world_port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct world *w = opaque;
    (void)size;
    w->port_writes++;
    w->last_port = port;
    w->last_value = value;
    if (w->on_port_write)
        w->on_port_write(w);
}
static inline uint64_t world_mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    struct world *w = opaque;
    (void)gpa, (void)size;
    w->mmio_reads++;
    return 0x1122334455667788;
}
static inline void world_mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    struct world *w = opaque;
    (void)gpa, (void)size, (void)value;
    w->mmio_writes++;
}
static inline int world_acknowledge(void *opaque)
{
    struct world *w = opaque;
    int vector = w->vector;
    w->vector = -1;
    return vector;
}
static inline uint64_t world_time_ns(void *opaque)
{
    struct world *w = opaque;
    return w->now += 10;
}

static inline void put(struct world *w, uint64_t gpa, uint64_t value, unsigned size)
{
    CHECK(guest_mem_write(&w->mem, gpa, &value, size));
}
static inline void put64(struct world *w, uint64_t gpa, uint64_t value)
{
    put(w, gpa, value, 8);
}
static inline void put32(struct world *w, uint64_t gpa, uint32_t value)
{
    put(w, gpa, value, 4);
}
static inline void put16(struct world *w, uint64_t gpa, uint16_t value)
{
    put(w, gpa, value, 2);
}
static inline uint64_t get(struct world *w, uint64_t gpa, unsigned size)
{
    uint64_t value = 0;
    CHECK(guest_mem_read(&w->mem, gpa, &value, size));
    return value;
}
#define get64(w, gpa) get(w, gpa, 8)
#define get32(w, gpa) ((uint32_t)get(w, gpa, 4))
#define get16(w, gpa) ((uint16_t)get(w, gpa, 2))

/* A descriptor: `flags` are its bits 55:40 (type .. G), limit in bytes, or in pages when G is in flags. */
static inline uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)((flags & 0xf0ff) | (limit >> 8 & 0xf00)) << 40 |
           (uint64_t)(base >> 24) << 56;
}
static inline uint64_t gate(uint16_t selector, uint32_t offset, uint32_t type_dpl_p)
{
    return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)type_dpl_p << 40 | (uint64_t)(offset >> 16) << 48;
}

static inline void world_init_as(struct world *w, enum cpu_vendor vendor)
{
    static const struct cpu_callbacks callbacks = {
        .port_read = world_port_read, .port_write = world_port_write, .mmio_read = world_mmio_read,
        .mmio_write = world_mmio_write, .interrupt_acknowledge = world_acknowledge, .msr_read = quiet_msr_read,
        .msr_write = quiet_msr_write, .cr8_read = quiet_cr8_read, .cr8_write = quiet_cr8_write, .time_ns = world_time_ns, .name_code = WORLD_NAME_CODE,
        .time_piece = WORLD_TIME_PIECE};
    imgvm_error err;
    memset(w, 0, sizeof *w);
    w->vector = -1;
    CHECK_EQ(guest_mem_init(&w->mem, &err), 0);
    CHECK_EQ(guest_mem_add(&w->mem, 0, 4 << 20, false, &err), 0);
    struct cpu_options options = {.id = 0, .count = 1, .translator = WORLD_TRANSLATOR, .translate_after = WORLD_TRANSLATE_AFTER, .vendor = vendor,
                                  .count_instructions = WORLD_COUNTS, .block_bytes = WORLD_BLOCK_BYTES,
                                  .code_bytes = WORLD_CODE_BYTES};
    w->cpu = cpu_create(&callbacks, w, &w->mem, &options, &err);
    CHECK(w->cpu != NULL);

    put64(w, GDT + CODE64, descriptor(0, 0xfffff, 0xa09b));
    put64(w, GDT + DATA0, descriptor(0, 0xfffff, 0xc093));
    put64(w, GDT + CODE32, descriptor(0, 0xfffff, 0xc09b));
    put64(w, GDT + CODE16, descriptor(0, 0xfffff, 0x809b));
    put64(w, GDT + (USER_CODE32 & ~7u), descriptor(0, 0xfffff, 0xc0fb));
    put64(w, GDT + (USER_DATA & ~7u), descriptor(0, 0xfffff, 0xc0f3));
    put64(w, GDT + (USER_CODE64 & ~7u), descriptor(0, 0xfffff, 0xa0fb));
    put64(w, GDT + DATA16, descriptor(0, 0xffff, 0x0093));
    for (uint32_t v = 0; v < 256; v++)
        put(w, HANDLERS + 16 * v, 0xf4, 1);
    /* all ports allowed, all software interrupts redirected to the IVT, 0xff at the end */
    put16(w, TSS + 0x66, TSS_IO_MAP);
    put(w, TSS + TSS_IO_MAP + 0x2000, 0xff, 1);
}

static inline void world_init(struct world *w)
{
    world_init_as(w, CPU_VENDOR_INTEL);
}

static inline void world_destroy(struct world *w)
{
    cpu_destroy(w->cpu);
    guest_mem_destroy(&w->mem);
}

static inline void common_tables(struct x86_state *s)
{
    s->gdtr = (struct x86_table){GDT, 0x7ff};
    s->idtr = (struct x86_table){IDT, 0xfff};
    s->tr = (struct x86_segment){TSS_SEL, SEG_P | 11, TSS_IO_MAP + 0x2000, TSS};
    s->ldtr = (struct x86_segment){.attributes = SEG_UNUSABLE};
    s->gpr[RSP] = STACK;
    s->rip = CODE;
}

/* 64-bit ring 0; the first 4 GiB are mapped one to one and the user's, the first 2 MiB by 4 KiB pages. */
static inline void long_mode(struct world *w, struct x86_state *s)
{
    flat_long_mode(s, TABLES);
    common_tables(s);
    map_first_4_gib(&w->mem, TABLES);
    for (uint64_t v = 0; v < 256; v++) {
        put64(w, IDT + 16 * v, gate(CODE64, (uint32_t)(HANDLERS + 16 * v), 0x8e));
        put64(w, IDT + 16 * v + 8, 0);
    }
    put64(w, GDT + TSS_SEL, descriptor(TSS, TSS_IO_MAP + 0x2000, 0x8b));
    put64(w, GDT + TSS_SEL + 8, 0);
    put64(w, TSS + 4, STACK);
}

/* 32-bit ring 0, no paging, 32-bit interrupt gates. */
static inline void protected_mode(struct world *w, struct x86_state *s)
{
    x86_state_reset(s, true);
    common_tables(s);
    for (uint32_t v = 0; v < 256; v++)
        put64(w, IDT + 8 * v, gate(CODE32, HANDLERS + 16 * v, 0x8e));
    put64(w, GDT + TSS_SEL, descriptor(TSS, TSS_IO_MAP + 0x2000, 0x8b));
    put32(w, TSS + 4, STACK);
    put32(w, TSS + 8, DATA0);
    s->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_MP;
    s->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->xcr0 = 7;
    s->segment[CS] = (struct x86_segment){CODE32, 0xc09b, 0xffffffff, 0};
    for (unsigned i = 0; i < 6; i++)
        if (i != CS)
            s->segment[i] = (struct x86_segment){DATA0, 0xc093, 0xffffffff, 0};
}

/* The same code's ring 3, from either of the two above. */
static inline void to_user(struct x86_state *s)
{
    bool wide = s->efer & EFER_LMA;
    s->segment[CS] = (struct x86_segment){wide ? USER_CODE64 : USER_CODE32, wide ? 0xa0fb : 0xc0fb, 0xffffffff, 0};
    for (unsigned i = 0; i < 6; i++)
        if (i != CS)
            s->segment[i] = (struct x86_segment){USER_DATA, 0xc0f3, 0xffffffff, 0};
    s->gpr[RSP] = USER_STACK;
}

/* Real mode at 1000:0, data and stack segments 0; the IVT's handlers are those of the IDT. */
static inline void real_mode(struct world *w, struct x86_state *s)
{
    x86_state_reset(s, true);
    for (uint32_t v = 0; v < 256; v++)
        put32(w, 4 * v, (HANDLERS + 16 * v) / 16 << 16);
    s->segment[CS].selector = CODE / 16;
    s->segment[CS].base = CODE;
    s->idtr.limit = 0x3ff;
    s->gpr[RSP] = STACK;
    s->rip = 0;
}

/* Virtual-8086 mode in protected_mode's world, at 1000:0, with this IOPL. The IVT points to HANDLERS + 0x1000. */
static inline void v86_mode(struct world *w, struct x86_state *s, unsigned iopl)
{
    protected_mode(w, s);
    for (uint32_t v = 0; v < 256; v++) {
        put32(w, 4 * v, (HANDLERS + 0x1000 + 16 * v) / 16 << 16);
        put(w, HANDLERS + 0x1000 + 16 * v, 0xf4, 1);
    }
    s->rflags |= EFLAGS_VM | iopl << 12;
    for (unsigned i = 0; i < 6; i++)
        s->segment[i] = (struct x86_segment){0, 0x00f3, 0xffff, 0};
    s->segment[CS] = (struct x86_segment){CODE / 16, 0x00f3, 0xffff, CODE};
    s->gpr[RSP] = USER_STACK;
    s->rip = 0;
}

/* Runs the code between two assembler labels until HLT; the state afterwards is in *s. */
static inline enum cpu_exit run(struct world *w, struct x86_state *s, const uint8_t *code, const uint8_t *end)
{
    CHECK(guest_mem_write(&w->mem, CODE, code, (uint64_t)(end - code)));
    cpu_set_state(w->cpu, s);
    cpu_run_count(w->cpu, 0); /* a new run: nothing is left of the last one */
    enum cpu_exit exit = cpu_run(w->cpu);
    cpu_get_state(w->cpu, s);
    if (exit == CPU_EXIT_INTERNAL || exit == CPU_EXIT_SHUTDOWN)
        printf("%s\n", cpu_message(w->cpu));
    s->activity = X86_RUNNING;
    return exit;
}

#define GUEST(name, bits, ...)                                                                              \
    __asm__(".pushsection .rodata\n.code" #bits "\n" #name "_begin:\n" __VA_ARGS__ "\n" #name "_end:\n.code64\n.popsection\n"); \
    extern const uint8_t name##_begin[], name##_end[]
#define RUN(w, s, name) run(w, s, name##_begin, name##_end)
#define AT(name, label) (CODE + (uint32_t)(label - name##_begin))

/* Which handler did the processor stop in? */
static inline int stopped_in(const struct x86_state *s)
{
    uint64_t linear = s->segment[CS].base + s->rip - 1;
    return linear >= HANDLERS && linear < HANDLERS + 0x1000 && (linear - HANDLERS) % 16 == 0 ? (int)((linear - HANDLERS) / 16) : -1;
}
#define CHECK_VECTOR(s, expected) CHECK_EQ(stopped_in(s), expected)

/* Ends of the test programs. */
static inline int world_main_begin(void)
{
    imgvm_error err;
    CHECK_EQ(cpu_install_trap_handlers(&err), 0);
    return 0;
}

/* A slot of the stack that an entry has made, from its top. */
static inline uint64_t frame(struct world *w, const struct x86_state *s, unsigned slot)
{
    unsigned size = s->efer & EFER_LMA ? 8 : 4;
    return get(w, s->gpr[RSP] + slot * size, size);
}

#endif
