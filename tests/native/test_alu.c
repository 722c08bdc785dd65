/* SPDX-License-Identifier: MIT */
/* needs: cpu/decode/isa.c */
/* alu.h, the host's own instructions, against alu_c.h, the manual in C: results and every defined flag; all operands of
 * eight bits, and the edges and many random ones of the wider sizes. Which flags are undefined is op.def's to say, but
 * for those that a count defines. */
#include "check.h"
#include "cpu/decode/insn.h"
#include "cpu/exec/alu.h"
#include "cpu/exec/alu_c.h"

#include "arch/x86.h"

#define CC_ALL (ALU_C_CF | ALU_C_PF | ALU_C_AF | ALU_C_ZF | ALU_C_SF | ALU_C_OF)

typedef uint64_t binary_fn(uint64_t a, uint64_t b, uint16_t *cc);
typedef uint64_t shift_fn(uint64_t a, uint64_t b, uint8_t count, uint16_t *cc);

/* One signature for all: what an operation does not take, it ignores. */
#define BINARY(name, bits)                                                                            \
    static uint64_t host_##name##_##bits(uint64_t a, uint64_t b, uint16_t *cc)                        \
    {                                                                                                 \
        return alu_##name##_##bits((uint##bits##_t)a, (uint##bits##_t)b, cc);                         \
    }                                                                                                 \
    static uint64_t ours_##name##_##bits(uint64_t a, uint64_t b, uint16_t *cc)                        \
    {                                                                                                 \
        return alu_c_##name(a, b, bits, cc);                                                          \
    }
#define UNARY(name, bits)                                                                             \
    static uint64_t host_##name##_##bits(uint64_t a, uint64_t b, uint16_t *cc)                        \
    {                                                                                                 \
        (void)b;                                                                                      \
        return alu_##name##_##bits((uint##bits##_t)a, cc);                                            \
    }                                                                                                 \
    static uint64_t ours_##name##_##bits(uint64_t a, uint64_t b, uint16_t *cc)                        \
    {                                                                                                 \
        (void)b;                                                                                      \
        return alu_c_##name(a, bits, cc);                                                             \
    }
#define SHIFT(name, bits)                                                                             \
    static uint64_t host_##name##_##bits(uint64_t a, uint64_t b, uint8_t count, uint16_t *cc)         \
    {                                                                                                 \
        (void)b;                                                                                      \
        return alu_##name##_##bits((uint##bits##_t)a, count, cc);                                     \
    }                                                                                                 \
    static uint64_t ours_##name##_##bits(uint64_t a, uint64_t b, uint8_t count, uint16_t *cc)         \
    {                                                                                                 \
        (void)b;                                                                                      \
        return alu_c_##name(a, count, bits, cc);                                                      \
    }
#define DOUBLE_SHIFT(name, bits)                                                                      \
    static uint64_t host_##name##_##bits(uint64_t a, uint64_t b, uint8_t count, uint16_t *cc)         \
    {                                                                                                 \
        return alu_##name##_##bits((uint##bits##_t)a, (uint##bits##_t)b, count, cc);                  \
    }                                                                                                 \
    static uint64_t ours_##name##_##bits(uint64_t a, uint64_t b, uint8_t count, uint16_t *cc)         \
    {                                                                                                 \
        return alu_c_##name(a, b, count, bits, cc);                                                   \
    }

#define WIDE(kind, name) kind(name, 16) kind(name, 32) kind(name, 64)
#define ALL(kind, name) kind(name, 8) WIDE(kind, name)
#define BINARIES(DO) DO(BINARY, add, ADD) DO(BINARY, sub, SUB) DO(BINARY, adc, ADC) DO(BINARY, sbb, SBB) DO(BINARY, and, AND) \
    DO(BINARY, or, OR) DO(BINARY, xor, XOR) DO(UNARY, inc, INC) DO(UNARY, dec, DEC) DO(UNARY, neg, NEG)
#define SHIFTS(DO) DO(SHIFT, rol, ROL) DO(SHIFT, ror, ROR) DO(SHIFT, rcl, RCL) DO(SHIFT, rcr, RCR) DO(SHIFT, shl, SHL) \
    DO(SHIFT, shr, SHR) DO(SHIFT, sar, SAR)
#define DOUBLES(DO) DO(DOUBLE_SHIFT, shld, SHLD) DO(DOUBLE_SHIFT, shrd, SHRD)

#define DEFINE(kind, name, op) ALL(kind, name)
#define DEFINE_WIDE(kind, name, op) WIDE(kind, name)
BINARIES(DEFINE)
SHIFTS(DEFINE)
DOUBLES(DEFINE_WIDE)

#define ENTRY(name, op, bits) {#name, OP_##op, bits, host_##name##_##bits, ours_##name##_##bits},
#define ENTRIES_WIDE(kind, name, op) ENTRY(name, op, 16) ENTRY(name, op, 32) ENTRY(name, op, 64)
#define ENTRIES(kind, name, op) ENTRY(name, op, 8) ENTRIES_WIDE(kind, name, op)
static const struct {
    const char *name;
    enum insn_op op;
    unsigned bits;
    binary_fn *host, *ours;
} binaries[] = {BINARIES(ENTRIES)};
static const struct {
    const char *name;
    enum insn_op op;
    unsigned bits;
    shift_fn *host, *ours;
} shifts[] = {SHIFTS(ENTRIES) DOUBLES(ENTRIES_WIDE)};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static uint64_t random_state = 0x243f6a8885a308d3;

static uint64_t random_u64(void)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state;
}

static const uint64_t edges[] = {0, 1, 2, 0x7e, 0x7f, 0x80, 0x81, 0xff, 0x7fff, 0x8000, 0x8001, 0xffff, 0x7fffffff, 0x80000000,
                                 0x80000001, 0xffffffff, INT64_MAX, (uint64_t)INT64_MIN, UINT64_MAX, 0xf, 0x10, 0x5555555555555555};

static uint64_t value_of(unsigned i, unsigned bits)
{
    return (i < COUNT(edges) ? edges[i] : random_u64() >> (random_u64() & 63)) & alu_c_mask(bits);
}

static uint16_t flags_of(unsigned i)
{
    return (uint16_t)((i & 0xd5) << 8 | 0x200 | (i >> 1 & 1));
}

static uint16_t cc_of_eflags(unsigned eflags)
{
    return (uint16_t)((eflags & 0xd5) << 8 | (eflags & EFLAGS_OF ? ALU_C_OF : 0));
}

static void compare_results(const char *name, unsigned bits, uint64_t a, uint64_t b, unsigned count, uint64_t host, uint64_t ours,
                            uint16_t host_cc, uint16_t ours_cc, uint16_t undefined)
{
    uint64_t differing = (host ^ ours) | ((host_cc ^ ours_cc) & CC_ALL & ~undefined);
    check_count++;
    if (!differing)
        return;
    if (check_failures++ < 20)
        printf("%s%u(%#" PRIx64 ", %#" PRIx64 ", %u): host %#" PRIx64 " flags %04x, C %#" PRIx64 " flags %04x, undefined %04x\n", name,
               bits, a, b, count, host, host_cc, ours, ours_cc, undefined);
}

static void try_binary(unsigned at, uint64_t a, uint64_t b, unsigned flags)
{
    uint16_t host_cc = flags_of(flags), ours_cc = host_cc;
    uint64_t host = binaries[at].host(a, b, &host_cc), ours = binaries[at].ours(a, b, &ours_cc);
    compare_results(binaries[at].name, binaries[at].bits, a, b, 0, host, ours, host_cc, ours_cc,
                    cc_of_eflags(op_infos[binaries[at].op].flags_undefined));
}

/* What op.def calls undefined "in some case at least" is defined in these (SDM vol. 2, the instructions' pages). */
static uint16_t undefined_of_shift(enum insn_op op, unsigned bits, unsigned count)
{
    uint16_t undefined = cc_of_eflags(op_infos[op].flags_undefined);
    bool is_double = op == OP_SHLD || op == OP_SHRD;
    if (count == 1)
        undefined &= ~ALU_C_OF;
    if (count < bits || (op == OP_SAR || is_double))
        undefined &= ~ALU_C_CF;
    if (is_double && count <= bits)
        undefined &= ~(ALU_C_CF | ALU_C_PF | ALU_C_ZF | ALU_C_SF);
    return undefined;
}

static void try_shift(unsigned at, uint64_t a, uint64_t b, unsigned count, unsigned flags)
{
    unsigned bits = shifts[at].bits;
    enum insn_op op = shifts[at].op;
    uint16_t host_cc = flags_of(flags), ours_cc = host_cc;
    if ((op == OP_SHLD || op == OP_SHRD) && count > bits)
        return; /* the result itself is undefined */
    uint64_t host = shifts[at].host(a, b, (uint8_t)count, &host_cc), ours = shifts[at].ours(a, b, (uint8_t)count, &ours_cc);
    compare_results(shifts[at].name, bits, a, b, count, host, ours, host_cc, ours_cc, undefined_of_shift(op, bits, count));
}

static void test_bytes(void)
{
    for (unsigned at = 0; at < COUNT(binaries); at++)
        for (unsigned i = 0; binaries[at].bits == 8 && i < 65536; i++)
            for (unsigned carry = 0; carry < 2; carry++)
                try_binary(at, i & 0xff, i >> 8, carry ? 0xd7 : 0);
    for (unsigned at = 0; at < COUNT(shifts); at++)
        for (unsigned i = 0; shifts[at].bits == 8 && i < 256 * 32; i++)
            for (unsigned carry = 0; i >> 8 && carry < 2; carry++)
                try_shift(at, i & 0xff, 0, i >> 8, carry ? 0xd7 : 0);
}

#define VALUES (COUNT(edges) + 40)

static void test_wide(void)
{
    for (unsigned at = 0; at < COUNT(binaries); at++)
        for (unsigned i = 0; i < VALUES * VALUES; i++)
            try_binary(at, value_of(i % VALUES, binaries[at].bits), value_of(i / VALUES, binaries[at].bits), (unsigned)random_u64());
    for (unsigned at = 0; at < COUNT(shifts); at++) {
        unsigned bits = shifts[at].bits, limit = bits == 64 ? 64 : 32;
        for (unsigned i = 0; i < VALUES * limit * 4; i++)
            if (i % limit)
                try_shift(at, value_of(i / limit % VALUES, bits), value_of(i / 7 % VALUES, bits), i % limit, (unsigned)random_u64());
    }
}

int main(void)
{
    test_bytes();
    test_wide();
    return check_report();
}
