/* SPDX-License-Identifier: MIT */
/* An encoding of a row of isa.def, and the case around it. What the bytes mean in the end is for the decoder to say:
 * a prefix may have made another instruction of them. */
#include <string.h>

#include "differential.h"

struct writer {
    enum insn_mode mode;
    uint8_t bytes[32];
    unsigned count;
    bool narrow;              /* 67 came */
    unsigned displacement_at; /* of a full displacement; 0: none */
};

static void put(struct writer *w, unsigned byte)
{
    w->bytes[w->count++] = (uint8_t)byte;
}

static bool is_string(unsigned op)
{
    return op == OP_MOVS || op == OP_CMPS || op == OP_STOS || op == OP_LODS || op == OP_SCAS;
}

static bool row_has_vsib(const struct isa_row *row)
{
    for (unsigned i = 0; i < 4; i++)
        if (operand_infos[row->operand[i]].class == CLASS_VSIB_X || operand_infos[row->operand[i]].class == CLASS_VSIB_DQ)
            return true;
    return false;
}

static bool row_has_vvvv(const struct isa_row *row)
{
    for (unsigned i = 0; i < 4; i++)
        if (operand_infos[row->operand[i]].class == CLASS_H || operand_infos[row->operand[i]].class == CLASS_B)
            return true;
    return false;
}

static unsigned choose_modrm(struct rng *rng, const struct isa_row *row)
{
    unsigned byte = (unsigned)rng_next(rng) & 0xff, constraint = row->modrm;
    if (constraint >= 0xc0)
        return constraint;
    bool memory = (constraint & 0xf0 & ~8u) == MR_MEM || ((constraint & 0xf0 & ~8u) == MR_MR && rng_percent(rng, 55));
    if (memory)
        byte = byte >= 0xc0 ? byte & 0x3f : byte;
    else
        byte |= 0xc0;
    if (constraint & MR_HAS_DIGIT)
        byte = (byte & 0xc7) | (constraint & 7) << 3;
    if (row_has_vsib(row))
        byte = (byte & 0xf8) | 4;
    return byte;
}

/* modrm with its SIB and displacement. */
static void put_modrm(struct writer *w, struct rng *rng, unsigned modrm)
{
    unsigned mod = modrm >> 6, rm = modrm & 7, base = rm;
    bool words = w->mode != INSN_MODE_64 && (w->mode == INSN_MODE_16) != w->narrow; /* 16-bit addresses */
    put(w, modrm);
    if (mod == 3)
        return;
    if (words)
        base = rm == 6 ? 5 : 0; /* where mod 0 means a displacement alone */
    else if (rm == 4) {
        unsigned sib = (unsigned)rng_next(rng) & 0xff;
        put(w, sib);
        base = sib & 7;
    }
    if (mod == 1) {
        put(w, (unsigned)rng_next(rng));
    } else if (mod == 2 || base == 5) {
        uint32_t value = (uint32_t)(rng_percent(rng, 50) ? rng_next(rng) : (uint64_t)((int64_t)rng_next(rng) >> 52));
        w->displacement_at = w->count;
        for (unsigned i = 0; i < (words ? 2 : 4); i++)
            put(w, value >> (8 * i));
    }
}

static void put_legacy(struct writer *w, struct rng *rng, const struct isa_row *row)
{
    static const uint8_t segments[] = {0x64, 0x65, 0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e};
    bool mode64 = w->mode == INSN_MODE_64;
    bool lockable = op_infos[row->op].attributes & OPA_LOCKABLE, stray = rng_percent(rng, 2);
    uint8_t prefixes[8];
    unsigned count = 0, rex = 0;

    if (rng_percent(rng, mode64 ? 15 : 30))
        prefixes[count++] = segments[rng_below(rng, sizeof segments)];
    if (rng_percent(rng, mode64 ? 12 : 25))
        prefixes[count++] = 0x67;
    if (row->pp == PP_66 || (row->pp != PP_NP && rng_percent(rng, 25)) || stray)
        prefixes[count++] = 0x66;
    if (row->pp == PP_F3 || row->pp == PP_F2)
        prefixes[count++] = row->pp == PP_F3 ? 0xf3 : 0xf2;
    else if ((row->pp == PP___ && rng_percent(rng, is_string(row->op) ? 60 : 6)) || stray)
        prefixes[count++] = rng_percent(rng, 50) ? 0xf3 : 0xf2;
    if (rng_percent(rng, lockable ? 25 : 1))
        prefixes[count++] = 0xf0;
    for (unsigned i = count; i > 1; i--) { /* in any order */
        unsigned j = rng_below(rng, i);
        uint8_t other = prefixes[j];
        prefixes[j] = prefixes[i - 1];
        prefixes[i - 1] = other;
    }
    for (unsigned i = 0; i < count; i++) {
        put(w, prefixes[i]);
        w->narrow |= prefixes[i] == 0x67;
    }
    if (rng_percent(rng, 55))
        rex = 0x40 | ((unsigned)rng_next(rng) & 7) | (rng_percent(rng, 60) ? 8 : 0);
    if (row->attributes & A_W1)
        rex |= 0x48;
    if (row->attributes & A_W0)
        rex &= ~8u;
    if (row->attributes & A_B0)
        rex &= ~1u;
    if (rex && mode64)
        put(w, rex);
    if (row->map != MAP_1B)
        put(w, 0x0f);
    if (row->map == MAP_38 || row->map == MAP_3A)
        put(w, row->map == MAP_38 ? 0x38 : 0x3a);
}

static void put_vex(struct writer *w, struct rng *rng, const struct isa_row *row)
{
    static const uint8_t pps[] = {[PP_66] = 1, [PP_F3] = 2, [PP_F2] = 3};
    unsigned flags = (unsigned)rng_next(rng), vvvv = row_has_vvvv(row) || rng_percent(rng, 2) ? flags >> 8 & 15 : 15;
    if (w->mode != INSN_MODE_64) { /* else it is LES or LDS; eight registers */
        flags |= 0xc00000;
        vvvv |= rng_percent(rng, 95) ? 8 : 0;
    }
    unsigned w_bit = row->attributes & A_W0 ? 0 : row->attributes & A_W1 ? 0x80 : flags & 0x80;
    unsigned l_bit = row->attributes & A_L0 ? 0 : row->attributes & A_L1 ? 4 : flags & 4;
    unsigned last = w_bit | vvvv << 3 | l_bit | pps[row->pp];
    if (rng_percent(rng, 10))
        put(w, rng_percent(rng, 50) ? 0x64 : 0x65);
    if (rng_percent(rng, 10)) {
        put(w, 0x67);
        w->narrow = true;
    }
    if (row->map == MAP_V0F && !w_bit && rng_percent(rng, 50)) {
        put(w, 0xc5);
        put(w, (flags >> 16 & 0x80) | (last & 0x7f) | (w->mode == INSN_MODE_64 ? 0 : 0x40));
    } else {
        put(w, 0xc4);
        put(w, (flags >> 16 & 0xe0) | (row->map - MAP_V0F + 1));
        put(w, last);
    }
}

/* Where the instruction lies: in the middle of a page, across two, cut off by the end of the mapping (and of most
 * segments). A linear address. */
static uint64_t choose_place(struct rng *rng, unsigned length)
{
    switch (rng_below(rng, 32)) {
    case 0: case 1:
        return CODE_BASE + PAGE - 1 - rng_below(rng, length);
    case 2:
        return CODE_BASE + CODE_BYTES - 1 - rng_below(rng, length);
    default:
        return CODE_BASE + 0x700 + rng_below(rng, 256);
    }
}

/* A relative target that is no part of the instruction itself, for that would run the rest of its bytes. */
static void place_target(struct rng *rng, struct diff_case *c)
{
    unsigned size = c->insn.form != FORM_REL ? 0
                    : operand_infos[isa_rows[c->insn.row].operand[0]].type == TYPE_B ? 1
                    : c->insn.osize == 2 ? 2 : 4;
    uint64_t end = code_linear(c) + c->length - CODE_BASE;
    int64_t displacement;
    if (!size)
        return;
    do {
        displacement = (int8_t)rng_next(rng);
        if (size >= 2 && rng_percent(rng, 60))
            displacement = (int64_t)(rng_next(rng) % CODE_BYTES) - (int64_t)end;
        else if (size >= 2 && rng_percent(rng, 30))
            displacement = size == 2 ? (int16_t)rng_next(rng) : (int32_t)rng_next(rng);
    } while (displacement >= -(int64_t)c->length - 16 && displacement < 0);
    for (unsigned i = 0; i < size; i++)
        c->code[c->length - size + i] = (uint8_t)(displacement >> (8 * i));
}

static struct isa_row any_opcode(struct rng *rng)
{
    static const uint8_t legacy[] = {PP___, PP___, PP_NP, PP_66, PP_F3, PP_F2}, vex[] = {PP_NP, PP_66, PP_F3, PP_F2};
    uint8_t map = (uint8_t)(1 + rng_below(rng, MAP_COUNT - 1)); /* the one-byte map is full */
    uint8_t pp = map >= MAP_V0F ? vex[rng_below(rng, ARRAY_LEN(vex))] : legacy[rng_below(rng, ARRAY_LEN(legacy))];
    return (struct isa_row){.map = map, .opcode = (uint8_t)rng_next(rng), .pp = pp, .modrm = MR_MR, .op = OP_NOP};
}

/* The pointer in the instruction itself. */
static void place_far_target(struct rng *rng, struct diff_case *c)
{
    unsigned size = c->insn.osize == 2 ? 2 : 4;
    struct x86_segment segment = {0};
    if (c->insn.flags & INSN_MEM || (c->insn.op != OP_JMP_FAR && c->insn.op != OP_CALL_FAR))
        return;
    uint16_t selector = choose_code_selector(rng, c);
    segment_of(selector, &segment);
    uint64_t offset = choose_target(rng, c) - segment.base;
    memcpy(c->code + c->length - size - 2, &offset, size);
    store_le16(c->code + c->length - 2, selector);
}

void generate(struct diff_case *c, uint64_t seed, uint64_t number, uint16_t number_of_row, enum insn_mode mode)
{
    struct rng rng = {(seed + 0x100 * mode) * UINT64_C(0xda942042e4dd58b5) ^ number * UINT64_C(0x2545f4914f6cdd1d)};
    struct writer w = {.mode = mode};

    rng_next(&rng);
    const struct isa_row any = any_opcode(&rng), *row = number_of_row == ANY_OPCODE ? &any : &isa_rows[number_of_row];
    if (row->map >= MAP_V0F)
        put_vex(&w, &rng, row);
    else
        put_legacy(&w, &rng, row);
    unsigned opcode = row->opcode;
    if (row->attributes & A_R8)
        opcode += rng_below(&rng, 8);
    if (row->attributes & A_CC)
        opcode += rng_below(&rng, 16);
    put(&w, opcode);
    if (row->modrm != MR__)
        put_modrm(&w, &rng, choose_modrm(&rng, row));
    uint64_t immediate = random_integer(&rng);
    memcpy(w.bytes + w.count, &immediate, 8);

    c->mode = (uint8_t)mode;
    choose_segments(&rng, c);
    c->number = number;
    c->row = number_of_row;
    c->map = row->map;
    c->opcode = (uint8_t)opcode;
    memcpy(c->code, w.bytes, 16);
    c->decoded = insn_decode(&c->insn, c->code, 15, mode);
    if (c->decoded > 0 && c->insn.op == OP_INT) {
        /* users may call 3, 4 and 80h; the last is the host's system calls */
        uint8_t *vector = &c->code[c->decoded - 1];
        *vector = rng_percent(&rng, 30) ? (uint8_t)(3 + rng_below(&rng, 2)) : *vector == 0x80 ? 0x81 : *vector;
    }
    c->length = (uint8_t)(c->decoded > 0 ? (unsigned)c->decoded : MIN(w.count, 15));
    if (c->decoded <= 0) /* should a processor run it after all, what follows must not be anything */
        memset(c->code + c->length, 0xcc, sizeof c->code - c->length);
    c->rip = (choose_place(&rng, c->length) - base_of(c, CS)) & (mode == INSN_MODE_64 ? UINT64_MAX : UINT32_MAX);
    c->patches = 0;
    random_state(&rng, c);
    if (c->decoded > 0) {
        place_target(&rng, c);
        place_far_target(&rng, c);
        place_operands(&rng, c, w.displacement_at);
        insn_decode(&c->insn, c->code, 15, mode);
    }
}
