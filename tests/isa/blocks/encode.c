/* SPDX-License-Identifier: MIT */
/* Instructions that mostly find their memory: some registers point into the data, and others are what is computed
 * with. */
#include "blocks.h"

struct writer {
    struct rng *rng;
    const struct isa_row *row;
    enum mode mode;
    unsigned bits, address_bits;
    uint8_t *bytes;
    unsigned count;
    unsigned relative_at; /* of a displacement that is to reach `target` from the instruction's end; 0: none */
    uint32_t target;
    uint32_t window; /* added to the addresses of operands, but for those on the stack */
};

static void put(struct writer *w, unsigned byte)
{
    w->bytes[w->count++] = (uint8_t)byte;
}

static void put_bytes(struct writer *w, uint64_t value, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        put(w, value >> (8 * i) & 0xff);
}

uint32_t data_offset(enum mode mode)
{
    return mode_infos[mode].bits == 16 ? 0 : DATA;
}

/* BX, BP, SI and DI are all that 16-bit addresses can have. */
static bool is_pointer(unsigned r)
{
    return r == RBX || r == RSP || r == RBP || r == RSI || r == RDI || r == R8 || r == R13;
}

static unsigned some_register(struct writer *w)
{
    unsigned r;
    bool any = rng_percent(w->rng, 6);
    do
        r = rng_below(w->rng, w->bits == 64 ? 16 : 8);
    while (!any && is_pointer(r));
    return r;
}

static uint32_t some_target(struct writer *w)
{
    return data_offset(w->mode) + rng_below(w->rng, DATA_BYTES - 256) + w->window;
}

static bool has_class(const struct isa_row *row, enum operand_class first, enum operand_class last)
{
    for (unsigned i = 0; i < 4; i++) {
        unsigned class = operand_infos[row->operand[i]].class;
        if (class >= first && class <= last)
            return true;
    }
    return false;
}

/* modrm, SIB and displacement of a memory operand; rex: bits X and B to be set are returned. */
static unsigned memory_16(struct writer *w, unsigned reg)
{
    static const uint8_t single[] = {4, 5, 6, 7}; /* SI DI BP BX */
    unsigned rm = rng_percent(w->rng, 8) ? rng_below(w->rng, 8) : PICK(w->rng, single), mod = rng_below(w->rng, 3);
    if (mod == 0 && rm == 6 && rng_percent(w->rng, 50))
        mod = 1;
    put(w, mod << 6 | reg << 3 | rm);
    if (mod == 0 && rm == 6)
        put_bytes(w, some_target(w), 2);
    else if (mod)
        put_bytes(w, mod == 1 ? rng_next(w->rng) : (uint64_t)(rng_below(w->rng, 0x800)), mod);
    return 0;
}

static unsigned memory_32(struct writer *w, unsigned reg)
{
    static const uint8_t bases[] = {RBX, RBP, RSI, RDI, RBX, RSI, RSP, R8, R13};
    unsigned base = bases[rng_below(w->rng, w->bits == 64 ? 9 : 7)], mod = rng_below(w->rng, 3);
    if (rng_percent(w->rng, 10)) { /* no register at all */
        if (w->bits == 64 && rng_percent(w->rng, 70)) {
            put(w, reg << 3 | 5);
            w->relative_at = w->count;
            w->target = some_target(w);
            put_bytes(w, 0, 4);
            return 0;
        }
        put(w, reg << 3 | (w->bits == 64 ? 4 : 5));
        if (w->bits == 64)
            put(w, 0x25);
        put_bytes(w, some_target(w), 4);
        return 0;
    }
    bool index = rng_percent(w->rng, 8);
    unsigned index_register = rng_percent(w->rng, 50) ? RCX : RDX;
    uint32_t window = base == RSP ? 0 : w->window;
    if (window)
        mod = 2;
    else if (mod == 0 && (base & 7) == 5)
        mod = 1;
    put(w, mod << 6 | reg << 3 | (index ? 4 : base & 7));
    if (index)
        put(w, rng_below(w->rng, 4) << 6 | index_register << 3 | (base & 7));
    else if ((base & 7) == 4)
        put(w, 0x24);
    if (mod)
        put_bytes(w, mod == 1 ? rng_next(w->rng) : (uint64_t)rng_below(w->rng, 0x1000) - 0x200 + window, mod == 1 ? 1 : 4);
    return base >> 3;
}

/* The operand bytes into a writer of their own, because REX comes before. Returns REX's R, X and B. */
static unsigned put_operands(struct writer *w)
{
    const struct isa_row *row = w->row;
    unsigned constraint = row->modrm, kind = constraint & 0xf0;
    if (constraint >= 0xc0) {
        put(w, constraint);
        return 0;
    }
    bool memory = kind == MR_MEM || (kind == MR_MR && rng_percent(w->rng, 55));
    bool vector = has_class(row, CLASS_V, CLASS_V) || has_class(row, CLASS_P, CLASS_P);
    unsigned r = constraint & MR_HAS_DIGIT ? constraint & 7 : vector ? rng_below(w->rng, w->bits == 64 ? 16 : 8) : some_register(w);
    if (has_class(row, CLASS_S, CLASS_S))
        r = rng_percent(w->rng, 50) ? ES : GS;
    unsigned rex = constraint & MR_HAS_DIGIT ? 0 : (r >> 3) << 2;
    if (memory)
        return rex | (w->address_bits == 16 ? memory_16(w, r & 7) : memory_32(w, r & 7));
    unsigned rm = has_class(row, CLASS_W, CLASS_U) || has_class(row, CLASS_Q, CLASS_STI) ? rng_below(w->rng, w->bits == 64 ? 16 : 8)
                                                                                       : some_register(w);
    put(w, 0xc0 | (r & 7) << 3 | (rm & 7));
    return rex | rm >> 3;
}

static bool is_string(unsigned op)
{
    return op == OP_MOVS || op == OP_CMPS || op == OP_STOS || op == OP_LODS || op == OP_SCAS;
}

static void put_prefixes(struct writer *w, bool memory)
{
    static const uint8_t segments[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    const struct isa_row *row = w->row;
    bool lockable = memory && op_infos[row->op].attributes & OPA_LOCKABLE;
    if (rng_percent(w->rng, 6))
        put(w, PICK(w->rng, segments));
    if (w->address_bits != w->bits)
        put(w, 0x67);
    if (row->map >= MAP_V0F)
        return;
    if (row->pp == PP_66 || ((row->pp == PP___ || row->pp == PP_NF) && rng_percent(w->rng, w->bits == 64 ? 12 : 35)))
        put(w, 0x66);
    if (row->pp == PP_F3 || row->pp == PP_F2)
        put(w, row->pp == PP_F3 ? 0xf3 : 0xf2);
    else if (row->pp == PP___ && is_string(row->op) && rng_percent(w->rng, 50))
        put(w, rng_percent(w->rng, 50) ? 0xf3 : 0xf2);
    else if (lockable && rng_percent(w->rng, 15))
        put(w, 0xf0);
}

static void put_vex(struct writer *w, unsigned rex)
{
    static const uint8_t pps[] = {[PP_66] = 1, [PP_F3] = 2, [PP_F2] = 3};
    const struct isa_row *row = w->row;
    bool named = has_class(row, CLASS_H, CLASS_H) || has_class(row, CLASS_B, CLASS_B);
    unsigned vvvv = named ? 15 - rng_below(w->rng, w->bits == 64 ? 16 : 8) : 15;
    unsigned w_bit = row->attributes & A_W0 ? 0 : row->attributes & A_W1 ? 0x80 : (unsigned)rng_next(w->rng) & 0x80;
    unsigned l_bit = row->attributes & A_L0 ? 0 : row->attributes & A_L1 ? 4 : (unsigned)rng_next(w->rng) & 4;
    put(w, 0xc4);
    put(w, (~(rex << 5) & 0xe0) | (row->map - MAP_V0F + 1));
    put(w, w_bit | vvvv << 3 | l_bit | pps[row->pp]);
}

static void put_opcode(struct writer *w, unsigned rex, unsigned opcode)
{
    const struct isa_row *row = w->row;
    if (row->map >= MAP_V0F) {
        put_vex(w, rex);
    } else {
        if (w->bits == 64) {
            rex |= row->attributes & A_W1 ? 0x48 : row->attributes & A_W0 ? 0 : rng_percent(w->rng, 45) ? 0x48 : 0;
            if (rex || rng_percent(w->rng, 20))
                put(w, 0x40 | rex);
        }
        if (row->map != MAP_1B)
            put(w, 0x0f);
        if (row->map == MAP_38 || row->map == MAP_3A)
            put(w, row->map == MAP_38 ? 0x38 : 0x3a);
    }
    put(w, opcode);
}

unsigned encode(struct rng *rng, unsigned number, enum mode mode, uint64_t address, uint32_t window, uint8_t out[32],
                struct insn *insn)
{
    const struct isa_row *row = &isa_rows[number];
    uint8_t operand_bytes[16];
    unsigned bits = mode_infos[mode].bits, other = bits == 32 ? 16 : 32;
    struct writer w = {.rng = rng, .row = row, .mode = mode, .bits = bits, .bytes = out, .window = window};
    w.address_bits = rng_percent(rng, 4) ? other : bits;
    struct writer operands = w;
    operands.bytes = operand_bytes;
    unsigned rex = row->modrm != MR__ ? put_operands(&operands) : 0, opcode = row->opcode;
    bool memory = row->modrm != MR__ && operand_bytes[0] < 0xc0;
    if (row->attributes & A_R8) {
        unsigned r = some_register(&w);
        opcode += r & 7;
        rex |= r >> 3;
    }
    if (row->attributes & A_CC)
        opcode += rng_below(rng, 16);
    put_prefixes(&w, memory);
    put_opcode(&w, row->attributes & A_B0 ? rex & ~1u : rex, opcode);
    for (unsigned i = 0; i < operands.count; i++)
        put(&w, operand_bytes[i]);
    if (has_class(row, CLASS_O, CLASS_O)) {
        put_bytes(&w, some_target(&w), w.address_bits / 8);
    } else {
        uint64_t immediate = random_integer(rng);
        memcpy(w.bytes + w.count, &immediate, 8);
    }
    enum insn_mode decode = bits == 16 ? INSN_MODE_16 : bits == 32 ? INSN_MODE_32 : INSN_MODE_64;
    int length = insn_decode(insn, out, 15, decode);
    if (length <= 0)
        return 0;
    if (operands.relative_at) {
        uint32_t displacement = operands.target - (uint32_t)(address + (unsigned)length);
        memcpy(out + w.count - operands.count + operands.relative_at, &displacement, 4);
        insn_decode(insn, out, 15, decode);
    }
    return (unsigned)length;
}

bool row_wanted(unsigned number, enum mode mode, const struct feature_set *features)
{
    const struct isa_row *row = &isa_rows[number];
    const struct op_info *info = &op_infos[row->op];
    unsigned bits = mode_infos[mode].bits, only = row->attributes & A_MODE;
    if ((only == MODE_I64 && bits == 64) || (only == MODE_O64 && bits != 64))
        return false;
    if (info->feature != FEATURE_BASE && !feature_set_has(features, info->feature))
        return false;
    if (row->map >= MAP_V0F && (mode == REAL16 || mode == V86))
        return false;
    if (has_class(row, CLASS_VSIB_X, CLASS_VSIB_DQ))
        return false; /* its addresses are vectors: nothing would be there */
    switch (row->op) {
    case OP_PUSHF: case OP_POPF: case OP_STI: case OP_CLI: case OP_OUT: case OP_IN: case OP_CPUID: case OP_MOV_FROM_SREG: case OP_FXSAVE:
        return true;
    case OP_HLT: case OP_JMP_FAR: case OP_CALL_FAR: case OP_RETF: case OP_IRET: case OP_INT: case OP_ENTER: case OP_SYSCALL:
        return false; /* other tests' matter, or the end */
    default:
        return info->kind != OPK_SYS;
    }
}
