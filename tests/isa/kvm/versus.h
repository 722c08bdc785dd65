/* SPDX-License-Identifier: MIT */
/* The software processor held against this host's KVM: 16- and 32-bit modes and system instructions, one at a time,
 * from the same struct x86_state (handed to KVM and taken back by the engine's own backend/kvm_state.c) in equal
 * memories.
 *
 *   world.c     descriptor tables, page tables, handlers; the state a mode begins with
 *   generate.c  a case: an encoding of a row of isa.def, prefixes, what it is aimed at
 *   operands.c  what registers, memory and stack hold, so that the operation means something
 *   ours.c, theirs.c  run a case
 *   compare.c   says what differs
 *   known.c     rows that are not run, and where KVM deviates from the manual, each with its reason
 *   main.c      options, counting
 *
 * Code is one instruction in a field of HLT; every exception handler is HLT. So whatever happens, it ends in HLT (in
 * ring 3: #GP, and so in a handler), in a shutdown, or the case is dropped. */
#ifndef IMGVM_VERSUS_H
#define IMGVM_VERSUS_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "../rng.h"
#include "arch/cpu_feature.h"
#include "arch/state.h"
#include "base/bits.h"
#include "cpu/decode/isa.h"
#include "mem/guest_mem.h"

/* ---- physical memory, mapped one to one where there is paging ---- */

#define MEMORY_BYTES 0x120000u /* past 1 MiB, for real mode's last segment */
#define TSS 0x2000u            /* the current one; its I/O map allows ports 0-FFh and no others */
#define TSS_IO_MAP 0x88u
#define TSS_LIMIT (TSS_IO_MAP + 0x20u)
#define TSS_OTHER32 0x3000u /* to switch to */
#define TSS_OTHER16 0x3800u
#define STACK0 0x8000u
#define STACK3 0x9000u
#define CODE 0x10000u /* 64 KiB of HLT */
#define TABLES 0x20000u
#define IDT 0x30000u
#define GDT 0x32000u
#define GDT_ENTRIES 256u
#define LDT 0x33000u
#define LDT_ENTRIES 64u
#define HANDLERS 0x34000u /* 16 bytes of HLT a vector */
#define DATA 0x40000u     /* 64 KiB that operands are in */
#define DATA_BYTES 0x10000u

/* Selectors; GDT_MENU onwards and the LDT hold every kind of descriptor. */
#define CODE64 0x08
#define DATA0 0x10
#define CODE32 0x18
#define CODE16 0x20
#define USER_CODE32 0x2b
#define USER_DATA 0x33
#define USER_CODE64 0x3b
#define USER_CODE16 0x43
#define TSS_SELECTOR 0x48 /* two entries */
#define LDT_SELECTOR 0x58 /* two entries */
#define GDT_MENU 16u

enum mode { REAL16, V86, PROT16, PROT32, PROT32_PAGED, USER16, USER32, COMPAT16, COMPAT32, LONG0, LONG3, MODES };

struct mode_info {
    const char *name;
    uint8_t bits; /* 16, 32, 64 */
    bool user, paging, long_mode;
};
extern const struct mode_info mode_infos[MODES];

#define PATCHES 8
struct patch {
    uint32_t gpa, size;
    uint8_t bytes[64];
};

struct kcase {
    uint64_t number;
    enum mode mode;
    uint16_t row; /* aimed at */
    uint8_t code[16];
    uint8_t length;
    int decoded;
    struct insn insn;
    unsigned patches;
    struct patch patch[PATCHES];
    struct x86_state state;
};

enum outcome { HALTED, SHUTDOWN, RUNS_ON, CANNOT };

#define LOG 64
struct access {
    uint32_t kind, size; /* 'i' in, 'o' out, 'r' and 'w' MMIO a byte at a time */
    uint64_t address, value;
};
struct result {
    enum outcome outcome;
    unsigned instructions; /* ours alone */
    unsigned accesses;
    struct access access[LOG];
    struct x86_state state;
};
/* What is outside: the same answers for both. */
uint64_t outside_read(struct result *r, uint32_t kind, uint64_t address, unsigned size);
void outside_write(struct result *r, uint32_t kind, uint64_t address, unsigned size, uint64_t value);

/* world.c */
void world_memory(uint8_t *memory, bool long_mode); /* all of it, MEMORY_BYTES */
void world_state(struct rng *rng, struct x86_state *s, enum mode mode, const uint8_t *memory);
struct x86_segment segment_of(uint16_t selector, const uint8_t *memory);

/* generate.c: everything follows from seed and number. `memory` is the pristine one of the mode. */
void generate(struct kcase *c, uint64_t seed, uint64_t number, uint16_t row, enum mode mode, const uint8_t *memory);

/* operands.c */
void place_operands(struct rng *rng, struct kcase *c);
uint64_t random_integer(struct rng *rng);
uint16_t random_selector(struct rng *rng);
void add_patch(struct kcase *c, uint64_t gpa, const void *bytes, unsigned size);

/* ours.c, theirs.c. `memory` of each is MEMORY_BYTES of RAM at 0. */
struct ours;
struct ours *ours_start(const struct feature_set *theirs);
bool ours_has(const struct ours *ours, unsigned feature);
uint8_t *ours_memory(struct ours *ours);
void ours_run(struct ours *ours, const struct x86_state *state, struct result *r);
void ours_stop(struct ours *ours);

struct theirs;
struct theirs *theirs_start(char *why, size_t size); /* NULL: no usable KVM here */
const struct feature_set *theirs_features(const struct theirs *theirs);
uint8_t *theirs_memory(struct theirs *theirs);
/* The page tables have been written behind KVM's back. */
void theirs_forget_tables(struct theirs *theirs);
void theirs_run(struct theirs *theirs, const struct x86_state *state, struct result *r);
void theirs_stop(struct theirs *theirs);

/* compare.c. NULL: they agree. Memories may be adjusted where flags are undefined. */
const char *compare(const struct kcase *c, const struct result *ours, const struct result *theirs, uint8_t *our_memory,
                    uint8_t *their_memory);
void report(const struct kcase *c, const struct result *ours, const struct result *theirs, const uint8_t *our_memory,
            const uint8_t *their_memory, const uint8_t *pristine);
/* The vector whose handler it stopped in; -1: none. */
int stopped_in(const struct result *r);

/* known.c */
const char *row_excluded(unsigned row, const struct ours *ours);
/* KVM said so in its own way. */
bool kvm_cannot(const struct kcase *c, const struct result *ours, const struct result *theirs);
/* Where KVM delivers events differently on purpose, ours (which is as the manual says) is retold its way. */
void as_kvm_delivers(const struct kcase *c, struct result *ours, const struct result *theirs, uint8_t *our_memory,
                     const uint8_t *their_memory);
const char *known_difference(const struct kcase *c, const struct result *ours, const struct result *theirs,
                             const char *what);

#endif
