/* SPDX-License-Identifier: MIT */
/* The software processor held against the processor it runs on: one user-mode instruction at a time, from the same
 * state, in the same memory, at the same addresses.
 *
 *   generate.c  a case: an encoding of a row of isa.def and a state to run it from, all from one number
 *   segments.c  a local descriptor table with a segment of every kind, the same on both sides
 *   operands.c  values worth computing with, and addresses worth touching
 *   host.c      runs cases natively, in a child that only this host's kernel stands behind
 *   guest.c     runs them in the software processor, ring 3
 *
 * 64-bit code runs in Linux's own segments; 32- and 16-bit code in compatibility mode, in segments of the LDT that
 * modify_ldt(2) makes: short, at FFFFh, growing down, read-only, not present.
 *
 *   compare.c   says what differs, and which of it is excused
 *   known.c     rows that are not run, and differences between processors, each with its reason
 *   main.c      options, batches, coverage */
#ifndef IMGVM_DIFFERENTIAL_H
#define IMGVM_DIFFERENTIAL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../rng.h"
#include "arch/state.h"
#include "arch/x86.h"
#include "base/bits.h"
#include "cpu/decode/isa.h"

/* ---- memory both sides have ---- */

#define PAGE 4096u
/* Two executable pages, full of INT3 but for the instruction; nothing before and behind them. */
#define CODE_BASE UINT64_C(0x10000000)
#define CODE_BYTES (2 * PAGE)
/* Readable and writable pages, one of them (READ_ONLY_PAGE) only readable; nothing before and behind. */
#define DATA_BASE UINT64_C(0x20000000)
#define DATA_PAGES 4u
#define READ_ONLY_PAGE 2u
#define DATA_BYTES (DATA_PAGES * PAGE)
/* FS and GS are there, so that 32-bit offsets reach the data from both. */
#define FS_BASE (DATA_BASE - PAGE)
#define GS_BASE (DATA_BASE - 0x5c8)

#define USER_CS 0x33u /* where Linux has them */
#define USER_CS32 0x23u
#define USER_SS 0x2bu
#define LDT_SEGMENTS 18u /* entry 0 is empty */

#define XSAVE_BYTES 832 /* legacy region, header, upper halves of YMM */
#define PATCHES 4
#define PATCH_BYTES 1024

struct patch {
    uint16_t offset, size; /* from DATA_BASE; of the next bytes of patch_bytes */
};

struct diff_case {
    uint64_t number;
    uint64_t gpr[16], rip, rflags; /* rip: the offset in CS */
    uint16_t selector[6];          /* by enum x86_sreg */
    uint8_t mode;                  /* enum insn_mode */
    uint8_t code[16];
    uint8_t length, patches;
    struct patch patch[PATCHES];
    uint8_t patch_bytes[PATCH_BYTES];
    int decoded; /* what insn_decode returned for insn */
    struct insn insn;
    uint16_t row;        /* of isa.def that was aimed at, or ANY_OPCODE */
    uint8_t map, opcode; /* enum isa_map */
    _Alignas(64) uint8_t xsave[XSAVE_BYTES];
};

/* A quadword of the data pages that is not what it is in every case's beginning. */
struct diff_word {
    uint32_t index;
    uint64_t value;
};
#define DIFF_WORDS 192

struct diff_result {
    bool ran;
    uint8_t vector;
    uint16_t cs, ss, ds, es, fs, gs;
    uint32_t error;
    uint64_t cr2;
    uint64_t gpr[16], rip, rflags, fs_base, gs_base;
    uint32_t words; /* DIFF_WORDS + 1: more than there is room for */
    struct diff_word word[DIFF_WORDS];
    _Alignas(64) uint8_t xsave[XSAVE_BYTES];
};

/* What the data pages hold before a case's patches. */
uint64_t data_pristine(unsigned index);

/* Instead of a row: any opcode of any map, to see that what is undefined here is undefined there. */
#define ANY_OPCODE 0xffffu

#define BATCH 512
struct batch {
    unsigned count;
    volatile unsigned running; /* the case the child is at */
    struct diff_case cases[BATCH];
    struct diff_result results[BATCH];
};

/* ---- generate.c, operands.c ---- */

/* Case `number` of a run: everything follows from seed, number, row and mode. */
void generate(struct diff_case *c, uint64_t seed, uint64_t number, uint16_t row, enum insn_mode mode);

uint64_t random_integer(struct rng *rng);
void random_state(struct rng *rng, struct diff_case *c);
void random_image(struct rng *rng, uint8_t *bytes, unsigned size);
/* A linear address to jump to: mostly code that is not the instruction itself. */
uint64_t choose_target(struct rng *rng, const struct diff_case *c);
/* Gives registers and memory the values that make the instruction meet the pages above; `displacement_at`: where in
 * the code its 4-byte displacement is, 0 without one. */
void place_operands(struct rng *rng, struct diff_case *c, unsigned displacement_at);

/* ---- segments.c ---- */

/* What a selector of a code or data segment stands for, as a segment register would hold it; false: nothing of ours. */
bool segment_of(uint16_t selector, struct x86_segment *out);
/* Entry `index` of the LDT as the processor reads it. */
uint64_t ldt_descriptor(unsigned index);
bool ldt_install(void); /* in this process */
void choose_segments(struct rng *rng, struct diff_case *c);
uint16_t choose_selector(struct rng *rng);
uint16_t choose_code_selector(struct rng *rng, const struct diff_case *c);

/* Base of a segment register (or INSN_SEG_FLAT) as the case begins. */
uint64_t base_of(const struct diff_case *c, unsigned segment);
static inline uint64_t code_linear(const struct diff_case *c)
{
    return base_of(c, CS) + c->rip;
}

struct guest;

/* ---- known.c ---- */

/* Why a row is not run; NULL: it is. */
const char *row_excluded(unsigned row, enum insn_mode mode, const struct guest *guest);
/* Undefined here, but not to be tried. */
bool opcode_excluded(const struct diff_case *c);
/* Why this case's results may differ on this host. */
const char *known_difference(const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest);
bool host_is_amd(void);

/* ---- host.c, guest.c ---- */

struct host;
struct host *host_start(struct batch *shared, unsigned batches);
/* Have a batch run in the child; wait for it. False: the child died in case batch->running. */
void host_begin(struct host *host, unsigned batch);
bool host_wait(struct host *host);
void host_stop(struct host *host);

/* `translate`: every block runs translated; half of the cases find the data pages in the TLB, as a translation wants. */
struct guest *guest_start(bool translate);
bool guest_has(const struct guest *guest, unsigned feature); /* enum cpu_feature */
void guest_run(struct guest *guest, const struct diff_case *c, struct diff_result *r);
void guest_stop(struct guest *guest);

/* ---- compare.c ---- */

/* NULL: they agree. Else what differs first, as a word. */
const char *compare(const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest);
void report(FILE *out, const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest);

#endif
