/* SPDX-License-Identifier: MIT */
/* The kernels on the software processor alone, without a machine around it: 64-bit ring 0, paging on. With the argument
 * `jit` it translates. Prints `kernel NAME NANOSECONDS CHECKSUM INSTRUCTIONS`, a line each. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c cpu/jit/*.c
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bits.h"
#include "cpu/cpu.h"
#include "cpu/jit/jit.h"
#include "kernels.h"

#define KERNEL_ROW(name, rounds) {#name, kernel_##name, rounds},
static const struct kernel kernels[] = {KERNELS(KERNEL_ROW)};
extern const uint8_t __start_bench_code[], __stop_bench_code[]; /* the linker's */

/* Guest physical and linear, for they are the same. */
#define TABLES 0x1000u
#define CODE 0x10000u
#define STOP 0x1f000u
#define STACK 0x40000u
#define SCRATCH 0x50000u
#define MEMORY_BYTES (1u << 20)

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The kernels touch no device: these are asked nothing. */
static uint32_t no_port_read(void *o, uint16_t port, unsigned size) { return (void)o, (void)port, (void)size, 0; }
static void no_port_write(void *o, uint16_t port, unsigned size, uint32_t v) { (void)o, (void)port, (void)size, (void)v; }
static uint64_t no_mmio_read(void *o, uint64_t gpa, unsigned size) { return (void)o, (void)gpa, (void)size, 0; }
static void no_mmio_write(void *o, uint64_t gpa, unsigned size, uint64_t v) { (void)o, (void)gpa, (void)size, (void)v; }
static int no_interrupt(void *o) { return (void)o, -1; }
static bool no_msr_read(void *o, uint32_t index, uint64_t *v) { return (void)o, (void)index, (void)v, false; }
static bool no_msr_write(void *o, uint32_t index, uint64_t v) { return (void)o, (void)index, (void)v, false; }
static uint64_t no_cr8_read(void *o) { return (void)o, 0; }
static void no_cr8_write(void *o, uint64_t v) { (void)o, (void)v; }
static uint64_t no_time(void *o) { return (void)o, 0; }

static void put64(struct guest_mem *mem, uint64_t gpa, uint64_t value)
{
    guest_mem_write(mem, gpa, &value, sizeof value);
}

/* 64-bit code at ring 0; 4 KiB pages, as a guest's programs have them. */
static void first_state(struct guest_mem *mem, struct x86_state *s)
{
    x86_state_reset(s, true);
    put64(mem, TABLES, (TABLES + 0x1000) | 3);
    put64(mem, TABLES + 0x1000, (TABLES + 0x2000) | 3);
    put64(mem, TABLES + 0x2000, (TABLES + 0x3000) | 3);
    for (uint64_t page = 0; page < MEMORY_BYTES / GUEST_PAGE_SIZE; page++)
        put64(mem, TABLES + 0x3000 + 8 * page, page * GUEST_PAGE_SIZE | 3);
    s->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_MP | CR0_WP;
    s->cr3 = TABLES;
    s->cr4 = CR4_PAE;
    s->efer = EFER_LME | EFER_LMA;
    for (unsigned i = 0; i < 6; i++)
        s->segment[i] = (struct x86_segment){16, 0xc093, 0xffffffff, 0};
    s->segment[CS] = (struct x86_segment){8, 0xa09b, 0xffffffff, 0};
}

int main(int argc, char **argv)
{
    static const struct cpu_callbacks callbacks = {
        .port_read = no_port_read, .port_write = no_port_write, .mmio_read = no_mmio_read, .mmio_write = no_mmio_write,
        .interrupt_acknowledge = no_interrupt, .msr_read = no_msr_read, .msr_write = no_msr_write,
        .cr8_read = no_cr8_read, .cr8_write = no_cr8_write, .time_ns = no_time,
    };
    bool jit = argc > 1 && !strcmp(argv[1], "jit");
    const struct cpu_options options = {
        .count = 1, .translator = jit ? &jit_translator : NULL, .translate_after = JIT_TRANSLATE_AFTER,
    };
    struct guest_mem mem;
    struct x86_state state;
    imgvm_error err = {0};
    struct cpu *cpu = NULL;
    if (cpu_install_trap_handlers(&err) < 0 || guest_mem_init(&mem, &err) < 0 ||
        guest_mem_add(&mem, 0, MEMORY_BYTES, false, &err) < 0 || !(cpu = cpu_create(&callbacks, NULL, &mem, &options, &err))) {
        fprintf(stderr, "cpu_loop: %s\n", err.message);
        return 1;
    }
    for (unsigned i = 0; i < ARRAY_LEN(kernels); i++) {
        const struct kernel *k = &kernels[i];
        const uint8_t hlt = 0xf4;
        first_state(&mem, &state);
        guest_mem_write(&mem, CODE, __start_bench_code, (uint64_t)(__stop_bench_code - __start_bench_code));
        guest_mem_write(&mem, STOP, &hlt, 1);
        put64(&mem, STACK, STOP); /* the kernel returns to a HLT */
        state.gpr[RSP] = STACK;
        state.gpr[RDI] = k->rounds;
        state.gpr[RSI] = SCRATCH;
        state.rip = CODE + (uint64_t)((uintptr_t)k->run - (uintptr_t)__start_bench_code);
        cpu_set_state(cpu, &state);
        uint64_t instructions = cpu_instructions(cpu), begin = now_ns();
        enum cpu_exit exit = cpu_run(cpu);
        uint64_t end = now_ns();
        cpu_get_state(cpu, &state);
        if (exit != CPU_EXIT_HALT || state.rip != STOP + 1) {
            fprintf(stderr, "cpu_loop: %s did not end as it should: exit %d at %" PRIx64 " %s\n", k->name, exit, state.rip,
                    cpu_message(cpu));
            return 1;
        }
        printf("kernel %s %" PRIu64 " %" PRIx64 " %" PRIu64 "\n", k->name, end - begin, state.gpr[RAX],
               cpu_instructions(cpu) - instructions);
    }
    cpu_destroy(cpu);
    guest_mem_destroy(&mem);
    return 0;
}
