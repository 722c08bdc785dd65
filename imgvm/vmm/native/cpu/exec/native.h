/* SPDX-License-Identifier: MIT */
/* One-instruction thunks: a computational instruction runs as itself on the host's processor.
 *
 * While the processor runs, the guest's x87, MMX, vector registers and MXCSR are live in the host's
 * registers (fpu.h); its general registers and status flags lie at the head of the processor's
 * structure. A thunk loads what its instruction reads from there, runs it with the memory operand
 * at a host address, and stores what it wrote. An exception of the instruction becomes a signal,
 * which trap.c turns into a call of native_trap; nothing has been stored by then. */
#ifndef IMGVM_CPU_EXEC_NATIVE_H
#define IMGVM_CPU_EXEC_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../base/error.h"
#include "../decode/insn.h"
#include "code_memory.h"

/* The head of the processor's structure, all that a thunk touches. */
struct native_head {
    uint64_t gpr[18]; /* the first 16, in encoding order, are the guest's */
    uint16_t flags;   /* what `lahf; seto al` leaves in AX: AH = SF ZF 0 AF 0 PF 1 CF, AL = OF */
};
#define CPU_CC_OFFSET 144
_Static_assert(offsetof(struct native_head, flags) == CPU_CC_OFFSET, "thunks have these offsets in their code");

/* memory: host address of the memory operand; anything when there is none. */
typedef void (*native_fn)(void *cpu, void *memory);

#define NATIVE_TABLE_SLOTS 16384 /* a power of two */

struct native_slot {
    uint64_t key[2]; /* everything the code depends on; key[0] 0: free */
    native_fn code;
};

/* One processor's thunks. Used by one thread at a time. */
struct native_cache {
    uint32_t generation; /* changes when every thunk handed out before became invalid */
    uint32_t count;
    uint32_t used;            /* bytes */
    /* Code elsewhere whose traps are answered by going on at another place (the translator's); NULL: none. Called in a
     * signal handler; 0: not one of its instructions. */
    uint64_t (*resume_elsewhere)(const void *elsewhere, uint64_t rip);
    const void *elsewhere;
    struct code_memory code;
    struct native_slot slots[NATIVE_TABLE_SLOTS];
};

struct native_cache *native_cache_create(imgvm_error *err);
void native_cache_destroy(struct native_cache *cache);

/* The code that runs this instruction: a row of kind OPK_NATIVE whose feature the host has. Valid until
 * cache->generation changes, which only this function does. NULL when the row cannot be encoded for the host
 * (a bug of the table). Touches no vector register. */
native_fn native_thunk(struct native_cache *cache, const struct insn *insn, const struct op_info *info);

/* The bytes of that code (native_emit.c): at most NATIVE_MAX_BYTES into `out`; returns their number, 0 as above. */
#define NATIVE_MAX_BYTES 128
unsigned native_emit(uint8_t out[NATIVE_MAX_BYTES], const struct insn *insn, const struct op_info *info);

/* The bytes of the instruction alone, with each guest register in the host register that the caller says, and its memory
 * operand at [base + index + disp] of the host's. Also tells which registers it uses and writes. 0: it has no such encoding. */
struct native_registers {
    uint8_t host[16];
    uint8_t base, index; /* index NATIVE_NO_INDEX: none */
    int32_t disp;
    uint16_t used, written; /* out: a bit each */
};
#define NATIVE_NO_INDEX 0xff
unsigned native_encode(uint8_t out[NATIVE_MAX_BYTES], const struct insn *insn, struct native_registers *registers);

/* The calling thread runs thunks of `cache` from now on (NULL: of none): its traps inside them go to native_trap. */
void native_cache_activate(struct native_cache *cache);
/* The thread's active cache; trap.c asks from within a signal handler. */
struct native_cache *native_cache_active(void);

/* Provided by the interpreter: the thunk called with this `cpu` raised x86 exception `vector` (EXC_DE, EXC_UD,
 * EXC_GP, EXC_MF, EXC_XM) and stored nothing; vector state is as the instruction left it. */
_Noreturn void native_trap(void *cpu, unsigned vector);

#endif
