/* SPDX-License-Identifier: MIT */
/* An encoding of a row for a mode, and the case around it. What the bytes mean in the end the decoder says. */
#include "versus.h"

struct writer {
    uint8_t bytes[32];
    unsigned count;
};

static void put(struct writer *w, unsigned byte)
{
    w->bytes[w->count++] = (uint8_t)byte;
}

static bool is_string(unsigned op)
{
    return op == OP_MOVS || op == OP_CMPS || op == OP_STOS || op == OP_LODS || op == OP_SCAS || op == OP_INS ||
           op == OP_OUTS;
}

static unsigned choose_modrm(struct rng *rng, const struct isa_row *row)
{
    unsigned byte = (unsigned)rng_next(rng) & 0xff, constraint = row->modrm, kind = constraint & 0xf0;
    if (constraint >= 0xc0)
        return constraint;
    bool memory = kind == MR_MEM || (kind == MR_MR && rng_percent(rng, 60));
    byte = !memory ? byte | 0xc0 : byte >= 0xc0 ? byte & 0x3f : byte;
    if (constraint & MR_HAS_DIGIT)
        byte = (byte & 0xc7) | (constraint & 7) << 3;
    for (unsigned i = 0; i < 4; i++) /* of eight segment or control registers not all exist */
        if (operand_infos[row->operand[i]].class == CLASS_C && rng_percent(rng, 90))
            byte = (byte & 0xc7) | (unsigned)PICK(rng, ((const uint8_t[]){0, 2, 3, 4})) << 3;
    return byte;
}

static void put_modrm(struct writer *w, struct rng *rng, unsigned modrm, unsigned address_bits)
{
    unsigned mod = modrm >> 6, rm = modrm & 7, base = rm, displacement = 0;
    put(w, modrm);
    if (mod == 3)
        return;
    if (address_bits == 16) {
        displacement = mod == 1 ? 1 : mod == 2 || rm == 6 ? 2 : 0;
    } else {
        if (rm == 4) {
            unsigned sib = (unsigned)rng_next(rng) & 0xff;
            put(w, sib);
            base = sib & 7;
        }
        displacement = mod == 1 ? 1 : mod == 2 || base == 5 ? 4 : 0;
    }
    uint64_t value = random_integer(rng);
    for (unsigned i = 0; i < displacement; i++)
        put(w, value >> (8 * i) & 0xff);
}

static void put_prefixes(struct writer *w, struct rng *rng, const struct isa_row *row, bool *address_size)
{
    static const uint8_t segments[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    bool lockable = op_infos[row->op].attributes & OPA_LOCKABLE, stray = rng_percent(rng, 1);
    uint8_t prefixes[8];
    unsigned count = 0;
    if (rng_percent(rng, 25))
        prefixes[count++] = PICK(rng, segments);
    if ((*address_size = rng_percent(rng, 20)))
        prefixes[count++] = 0x67;
    if (row->pp == PP_66 || (row->pp != PP_NP && rng_percent(rng, 35)) || stray)
        prefixes[count++] = 0x66;
    if (row->pp == PP_F3 || row->pp == PP_F2)
        prefixes[count++] = row->pp == PP_F3 ? 0xf3 : 0xf2;
    else if ((row->pp == PP___ && rng_percent(rng, is_string(row->op) ? 60 : 2)) || stray)
        prefixes[count++] = rng_percent(rng, 50) ? 0xf3 : 0xf2;
    if (rng_percent(rng, lockable ? 15 : 1))
        prefixes[count++] = 0xf0;
    for (unsigned i = count; i > 1; i--) {
        unsigned j = rng_below(rng, i);
        uint8_t other = prefixes[j];
        prefixes[j] = prefixes[i - 1];
        prefixes[i - 1] = other;
    }
    for (unsigned i = 0; i < count; i++)
        put(w, prefixes[i]);
}

void generate(struct kcase *c, uint64_t seed, uint64_t number, uint16_t number_of_row, enum mode mode,
              const uint8_t *memory)
{
    struct rng rng = {seed * UINT64_C(0xda942042e4dd58b5) ^ number * UINT64_C(0x2545f4914f6cdd1d)};
    const struct isa_row *row = &isa_rows[number_of_row];
    unsigned bits = mode_infos[mode].bits;
    struct writer w = {.count = 0};
    bool address_size;

    rng_next(&rng);
    put_prefixes(&w, &rng, row, &address_size);
    if (bits == 64) {
        unsigned rex = rng_percent(&rng, 40) ? 0x40 | ((unsigned)rng_next(&rng) & 15) : 0;
        if (row->attributes & A_W1)
            rex |= 0x48;
        if (row->attributes & A_W0)
            rex &= ~8u;
        if (row->attributes & A_B0)
            rex &= ~1u;
        if (rex)
            put(&w, rex);
    }
    if (row->map != MAP_1B)
        put(&w, 0x0f);
    if (row->map == MAP_38 || row->map == MAP_3A)
        put(&w, row->map == MAP_38 ? 0x38 : 0x3a);
    put(&w, row->opcode + (row->attributes & A_R8   ? rng_below(&rng, 8)
                           : row->attributes & A_CC ? rng_below(&rng, 16)
                                                    : 0));
    unsigned address_bits = !address_size ? bits : bits == 32 ? 16 : 32;
    if (row->modrm != MR__)
        put_modrm(&w, &rng, choose_modrm(&rng, row), address_bits);
    uint64_t immediate = random_integer(&rng);
    memcpy(w.bytes + w.count, &immediate, 8);

    c->number = number;
    c->mode = mode;
    c->row = number_of_row;
    c->patches = 0;
    memcpy(c->code, w.bytes, 15);
    c->code[15] = 0xf4;
    enum insn_mode decode = bits == 16 ? INSN_MODE_16 : bits == 32 ? INSN_MODE_32 : INSN_MODE_64;
    c->decoded = insn_decode(&c->insn, c->code, 15, decode);
    world_state(&rng, &c->state, mode, memory);
    if (c->decoded > 0) {
        place_operands(&rng, c);
        c->decoded = insn_decode(&c->insn, c->code, 15, decode);
    }
    c->length = (uint8_t)(c->decoded > 0 ? (unsigned)c->decoded : MIN(w.count + 2, 15));
    add_patch(c, c->state.segment[CS].base + c->state.rip, c->code, c->length);
}
