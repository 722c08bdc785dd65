/* SPDX-License-Identifier: MIT */
/* IN, OUT, INS, OUTS: every form, size and direction, in every mode, with and without the I/O permission bitmap's leave
 * (SDM vol. 1, 18.3 to 18.5). */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#include "mode_world.h"

#define PORT 0x1f3u
#define IMMEDIATE_PORT 0x71u
#define BUFFER 0x4000u /* within reach of 16-bit offsets */
#define TIMES 3u

enum mode { REAL, V86, PROTECTED0, PROTECTED3, LONG0, LONG3, MODES };
static const struct {
    const char *name;
    unsigned bits;
    bool asks; /* the bitmap: above IOPL, and in virtual-8086 mode whatever it is */
} modes[MODES] = {
    [REAL] = {"real", 16, false}, [V86] = {"virtual-8086", 16, true}, [PROTECTED0] = {"protected, ring 0", 32, false},
    [PROTECTED3] = {"protected, ring 3", 32, true}, [LONG0] = {"64-bit, ring 0", 64, false}, [LONG3] = {"64-bit, ring 3", 64, true},
};

struct form {
    uint8_t opcode; /* of the byte form; the next one is the word and doubleword's */
    bool input, string, immediate;
};
static const struct form forms[] = {{0xe4, true, false, true}, {0xe6, false, false, true}, {0xec, true, false, false},
                                    {0xee, false, false, false}, {0x6c, true, true, false}, {0x6e, false, true, false}};

static void enter(struct world *w, struct x86_state *s, enum mode mode)
{
    switch (mode) {
    case REAL: real_mode(w, s); return;
    case V86: v86_mode(w, s, 3); return;
    case PROTECTED0: case PROTECTED3: protected_mode(w, s); break;
    default: long_mode(w, s);
    }
    if (mode == PROTECTED3 || mode == LONG3)
        to_user(s);
}

/* Bits of the bitmap for `size` ports. */
static void allow(struct world *w, unsigned port, unsigned size, bool allowed)
{
    uint16_t bits = get16(w, TSS + TSS_IO_MAP + port / 8), mask = (uint16_t)(((1u << size) - 1) << port % 8);
    put16(w, TSS + TSS_IO_MAP + port / 8, allowed ? bits & ~mask : bits | mask);
}

static unsigned assemble(uint8_t *code, const struct form *form, unsigned size, unsigned bits, bool repeated)
{
    unsigned n = 0;
    if (size == (bits == 16 ? 4 : 2))
        code[n++] = 0x66;
    if (repeated)
        code[n++] = 0xf3;
    code[n++] = form->opcode + (size > 1);
    if (form->immediate)
        code[n++] = IMMEDIATE_PORT;
    code[n++] = 0xf4; /* #GP in ring 3: an end too */
    return n;
}

static void check_string(struct world *w, const struct x86_state *s, const struct form *form, unsigned size, unsigned done, bool down,
                         bool repeated)
{
    int64_t step = down ? -(int64_t)size : (int64_t)size;
    CHECK_EQ(s->gpr[form->input ? RDI : RSI], (uint64_t)(BUFFER + step * (int64_t)done));
    CHECK_EQ(s->gpr[RCX], repeated ? TIMES - done : TIMES);
    for (unsigned i = 0; form->input && i < TIMES; i++) {
        uint64_t mask = size == 4 ? 0xffffffff : (1u << 8 * size) - 1;
        CHECK_EQ(get(w, (uint64_t)(BUFFER + step * (int64_t)i), size), i < done ? 0x12345678 & mask : 0xa5a5a5a5 & mask);
    }
}

static void one(struct world *w, enum mode mode, const struct form *form, unsigned size, bool repeated, bool down, bool allowed)
{
    struct x86_state s;
    uint8_t code[8];
    uint64_t mask = size == 4 ? 0xffffffff : (1u << 8 * size) - 1;
    unsigned port = form->immediate ? IMMEDIATE_PORT : PORT, length = assemble(code, form, size, modes[mode].bits, repeated);
    unsigned done = modes[mode].asks && !allowed ? 0 : repeated ? TIMES : 1;
    enter(w, &s, mode);
    allow(w, port, size, allowed);
    for (unsigned i = 0; i < 2 * TIMES * 4; i++)
        put(w, BUFFER - TIMES * 4 + i, 0xa5, 1);
    s.gpr[RAX] = 0x1122334455667788;
    s.gpr[RDX] = PORT;
    s.gpr[RCX] = TIMES;
    s.gpr[RSI] = s.gpr[RDI] = BUFFER;
    s.rflags |= down ? EFLAGS_DF : 0;
    w->port_reads = w->port_writes = w->last_port = w->last_value = 0;
    run(w, &s, code, code + length);
    allow(w, port, size, true);
    CHECK_EQ(form->input ? w->port_reads : w->port_writes, done);
    CHECK_EQ(form->input ? w->port_writes : w->port_reads, 0);
    CHECK_EQ(w->last_port, done ? port : 0);
    if (!form->input)
        CHECK_EQ(w->last_value, !done ? 0 : (form->string ? 0xa5a5a5a5 : 0x55667788) & mask);
    uint64_t rax = !form->input || form->string || !done ? 0x1122334455667788
                   : size == 4 ? 0x12345678 : (0x1122334455667788 & ~mask) | (0x12345678 & mask);
    CHECK_EQ(s.gpr[RAX], rax);
    if (form->string)
        check_string(w, &s, form, size, done, down, repeated);
}

static void test_mode(struct world *w, enum mode mode)
{
    int before = check_failures;
    for (unsigned f = 0; f < ARRAY_LEN(forms); f++)
        for (unsigned size = 1; size <= 4; size *= 2)
            for (unsigned variant = 0; variant < 8; variant++) {
                bool repeated = variant & 1, down = variant & 2, allowed = variant & 4;
                if (forms[f].string || !(variant & 3))
                    one(w, mode, &forms[f], size, repeated, down, allowed);
            }
    if (check_failures != before)
        printf("in %s mode\n", modes[mode].name);
}

int main(void)
{
    struct world w;
    world_main_begin();
    world_init(&w);
    for (enum mode mode = REAL; mode < MODES; mode++)
        test_mode(&w, mode);
    world_destroy(&w);
    return check_report();
}
