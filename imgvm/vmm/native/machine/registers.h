/* SPDX-License-Identifier: MIT */
/* The registers of a processor by name, as debuggers and people know them: rax, cs, cs_base, cr3, efer, st0, xmm7,
 * ymm7h, ... Values are little-endian bytes. */
#ifndef IMGVM_MACHINE_REGISTERS_H
#define IMGVM_MACHINE_REGISTERS_H

#include <stdbool.h>
#include <stdint.h>

#include "../arch/state.h"

#define REGISTER_BYTES_MAX 16

struct register_row {
    const char *name;
    uint8_t bytes;
    uint8_t kind;
    uint16_t at; /* by kind: offset in the state or its XSAVE area, segment number */
};

/* NULL: there is none of that name. */
const struct register_row *register_find(const char *name);
/* In the order of a listing; NULL behind the last. */
const struct register_row *register_at(unsigned index);
void register_read(const struct x86_state *state, const struct register_row *row, uint8_t *value);
/* A selector written outside protected mode moves the segment's base with it, as a load would; inside, base, limit
 * and attributes are registers of their own. */
void register_write(struct x86_state *state, const struct register_row *row, const uint8_t *value);

/* Width of the code that runs: 16, 32 or 64. */
unsigned register_code_bits(const struct x86_state *state);
/* Linear address of the next instruction. */
uint64_t register_linear_pc(const struct x86_state *state);

#endif
