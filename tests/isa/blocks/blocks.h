/* SPDX-License-Identifier: MIT */
/* The translator held against the interpreter: random programs of some instructions, with branches, loops, operands in
 * memory, flags that live across and code that is written, in every mode; each run plainly and then with something
 * coming in between.
 *
 *   encode.c   an instruction of a row of isa.def, aimed at memory that is there
 *   program.c  a program of them, and the state and memory it begins with
 *   side.c     a processor with its memory, and what came of a run
 *   main.c     what is done to a program, and options
 *
 * The world (tables, handlers that are HLT, the states of the modes) is that of tests/isa/kvm. */
#ifndef IMGVM_BLOCKS_H
#define IMGVM_BLOCKS_H

#include "cpu/cpu.h"
#include "isa/kvm/versus.h"

#define DATA_PAGES (DATA_BYTES / 4096)
#define COUNTER (DATA + DATA_BYTES - 16) /* a byte that loops count down */
/* In some programs of 64-bit code, each unit sees the data in a place of its own, so that a fault can be put at its operand
 * and at no other. */
#define WINDOWS 0x200000u
#define WINDOW_TABLE (TABLES + 0x4000u)
#define PROGRAM_BYTES 900u
#define UNITS 24
#define MMIO_MOST 2000u

struct program {
    enum mode mode;
    uint8_t bytes[PROGRAM_BYTES];
    unsigned length, units;
    unsigned unit[UNITS + 1]; /* where each instruction begins; the last: the end */
    bool writes_ports;
    bool windows;
    struct x86_state state;
};

/* ---- encode.c ---- */

/* Where data is for this mode's instructions: offset of DATA in the segments DS and ES. */
uint32_t data_offset(enum mode mode);
bool row_wanted(unsigned row, enum mode mode, const struct feature_set *features);
/* Up to 15 bytes for `address` (of the instruction), with its operand moved by `window`; 0: this row has none that decode in
 * this mode. */
unsigned encode(struct rng *rng, unsigned row, enum mode mode, uint64_t address, uint32_t window, uint8_t out[32],
                struct insn *insn);

/* ---- program.c ---- */

/* `image` holds MEMORY_BYTES: the world, and the program in it. */
void make_program(struct program *p, uint8_t *image, uint64_t seed, uint64_t number, enum mode mode,
                  const struct feature_set *features);
void print_program(const struct program *p);
uint64_t program_linear(const struct program *p); /* of its first byte */

/* ---- side.c ---- */

struct side {
    struct guest_mem mem;
    struct cpu *cpu;
    uint64_t now, cr8, outside; /* what was written to ports and to no memory, as a number */
    int vector;            /* of the interrupt that waits; -1: none */
    bool interrupt_on_out; /* it begins to wait when a port is written */
    uint64_t taken_at;     /* instructions executed when it was taken */
    unsigned mmio;         /* accesses to no memory; at MMIO_MOST the run is cut short: a string of 4 GiB takes too long */
};

struct ending {
    enum cpu_exit exit;
    bool hit;
    bool late; /* it was ended because it took too long */
    struct cpu_hit point;
    uint64_t instructions, outside;
    struct x86_state state;
};

bool side_start(struct side *side, const struct translator_ops *translator, const struct feature_set *features);
/* Memory and state as the program finds them. */
void side_begin(struct side *side, const uint8_t *image, const struct x86_state *state);
/* Until it halts, shuts down, meets a point, did `count` instructions, or it has taken too long (exit: request). */
void side_run(struct side *side, uint64_t count, struct ending *out);
uint8_t *side_memory(struct side *side);
/* NULL: they agree. Else the first difference by name; `text` shows it. */
const char *side_compare(struct side *a, const struct ending *x, struct side *b, const struct ending *y, char text[200]);

#endif
