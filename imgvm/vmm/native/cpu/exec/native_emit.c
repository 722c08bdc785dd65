/* SPDX-License-Identifier: MIT */
/* The code of a thunk (native.h): the decoded instruction is encoded anew, from its row and fields, with the memory
 * operand at [rsi], the guest's general registers in scratch registers of the host, and vector registers as they are.
 *
 *     movzx eax, word [rdi + flags]; add al, 7fh; sahf    when flags are read, or kept in part
 *     mov   rax, [rdi + 8*a]                              each general register it names
 *     op    ..., [rsi]
 *     mov   [rdi + 8*a], rax                              each it writes
 *     lahf; seto al; mov [rdi + flags], ax                when flags are written
 *     ret
 */
#include "../../arch/x86.h"
#include "../decode/isa.h"
#include "native.h"

#define REX 0x40
#define REX_W 8
#define REX_R 4
#define REX_X 2
#define REX_B 1

struct emitter {
    uint8_t *next;
    /* guest registers held in host registers */
    struct {
        uint8_t guest; /* 0..15; 16..19 AH CH DH BH */
        uint8_t host;
        bool written;
    } held[6];
    unsigned held_count;
    uint8_t pool[3]; /* host registers for explicit operands */
    unsigned pool_used;
    const struct native_registers *fixed; /* instead: every register has its place */
};

static void put(struct emitter *e, uint8_t byte)
{
    *e->next++ = byte;
}

static void put_value(struct emitter *e, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        put(e, (uint8_t)(value >> (8 * i)));
}

/* Registers an operation names in no operand. */
static void implied_registers(enum insn_op op, uint32_t *read, uint32_t *written)
{
    *read = *written = 0;
    switch (op) {
    case OP_MULX:
        *read = 1 << RDX;
        break;
    case OP_PCMPESTRI: case OP_VPCMPESTRI:
        *written = 1 << RCX;
        *read = 1 << RAX | 1 << RDX;
        break;
    case OP_PCMPESTRM: case OP_VPCMPESTRM:
        *read = 1 << RAX | 1 << RDX;
        break;
    case OP_PCMPISTRI: case OP_VPCMPISTRI:
        *written = 1 << RCX;
        break;
    default:
        break;
    }
}

static unsigned hold_in(struct emitter *e, unsigned guest, unsigned host, bool written)
{
    e->held[e->held_count].guest = guest;
    e->held[e->held_count].host = host;
    e->held[e->held_count].written = written;
    e->held_count++;
    return host;
}

/* The host register for an explicit operand; the same one when two operands name the same register. */
static unsigned hold(struct emitter *e, unsigned guest, bool written)
{
    if (e->fixed) {
        hold_in(e, guest, guest < 16 ? e->fixed->host[guest] : 0, written);
        return e->held[e->held_count - 1].host;
    }
    for (unsigned i = 0; i < e->held_count; i++)
        if (e->held[i].guest == guest) {
            e->held[i].written |= written;
            return e->held[i].host;
        }
    return hold_in(e, guest, e->pool[e->pool_used++], written);
}

/* mov between a host register and the guest's copy of a register. AH..BH: the byte alone, in the low byte. */
static void put_move(struct emitter *e, unsigned guest, unsigned host, bool store)
{
    uint8_t rex = host & 8 ? REX | REX_R : 0, displacement = 8 * (guest & 15);
    if (guest >= 16) {
        displacement++;
        if (rex)
            put(e, rex);
        if (!store)
            put(e, 0x0f);
        put(e, store ? 0x88 : 0xb6);
    } else {
        put(e, rex | REX | REX_W);
        put(e, store ? 0x89 : 0x8b);
    }
    put(e, 0x40 | (host & 7) << 3 | RDI);
    put(e, displacement);
}

/* op [rdi + CPU_CC_OFFSET], register field 0 (ax). */
static void put_flags_operand(struct emitter *e)
{
    put(e, 0x80 | RDI);
    put_value(e, CPU_CC_OFFSET, 4);
}

static void put_flags_load(struct emitter *e)
{
    put_value(e, 0xb70f, 2); /* movzx eax, word */
    put_flags_operand(e);
    put_value(e, 0x9e7f04, 3); /* add al, 7fh: OF from AL; sahf: the others */
}

static void put_flags_store(struct emitter *e)
{
    put_value(e, 0xc0900f9f, 4); /* lahf; seto al */
    put_value(e, 0x8966, 2);     /* mov word, ax */
    put_flags_operand(e);
}

/* Fields of the instruction's own encoding. */
struct encoding {
    const struct isa_row *row;
    uint8_t reg, rm, vvvv; /* host numbers */
    bool memory, has_modrm, vex, w;
    uint8_t base, index; /* of the memory operand, and NATIVE_NO_INDEX */
    int32_t disp;
    bool prefix_66;
    uint8_t vl;
    unsigned immediate_bytes;
    uint64_t immediate;
};

static uint8_t mandatory_prefix(uint8_t pp)
{
    return pp == PP_66 ? 0x66 : pp == PP_F3 ? 0xf3 : pp == PP_F2 ? 0xf2 : 0;
}

/* ModRM, and SIB and displacement of a memory operand (SDM vol. 2, 2.1.5). */
static void put_modrm(struct emitter *e, const struct encoding *c)
{
    uint8_t reg = (uint8_t)((c->reg & 7) << 3), base = c->base & 7;
    bool sib = c->index != NATIVE_NO_INDEX || base == RSP;
    if (!c->memory) {
        put(e, 0xc0 | reg | (c->rm & 7));
        return;
    }
    uint8_t mod = c->disp == 0 && base != RBP ? 0 : c->disp == (int8_t)c->disp ? 0x40 : 0x80;
    put(e, mod | reg | (sib ? RSP : base));
    if (sib)
        put(e, (c->index == NATIVE_NO_INDEX ? RSP : c->index & 7) << 3 | base);
    put_value(e, (uint64_t)c->disp, mod == 0 ? 0 : mod == 0x40 ? 1 : 4);
}

static void put_instruction(struct emitter *e, const struct encoding *c)
{
    bool r = c->reg & 8, b = (c->memory ? c->base : c->rm) & 8;
    bool x = c->memory && c->index != NATIVE_NO_INDEX && c->index & 8;
    uint8_t map = c->row->map;

    if (c->vex) {
        static const uint8_t pp[] = {[PP_66] = 1, [PP_F3] = 2, [PP_F2] = 3};
        put(e, 0xc4);
        put(e, (r ? 0 : 0x80) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | (map - MAP_V0F + 1));
        put(e, (c->w ? 0x80 : 0) | (~c->vvvv & 15) << 3 | (c->vl == 32 ? 4 : 0) | pp[c->row->pp]);
    } else {
        uint8_t mandatory = mandatory_prefix(c->row->pp);
        uint8_t rex = (c->w ? REX_W : 0) | (r ? REX_R : 0) | (x ? REX_X : 0) | (b ? REX_B : 0);
        if (c->prefix_66 && mandatory != 0x66)
            put(e, 0x66);
        if (mandatory)
            put(e, mandatory);
        if (rex)
            put(e, REX | rex);
        if (map != MAP_1B)
            put(e, 0x0f);
        if (map == MAP_38 || map == MAP_3A)
            put(e, map == MAP_38 ? 0x38 : 0x3a);
    }
    put(e, c->row->opcode);
    if (c->has_modrm)
        put_modrm(e, c);
    put_value(e, c->immediate, c->immediate_bytes);
}

/* What operand `index` asks of the encoding. False: no thunk can have such an operand. */
static bool encode_operand(struct emitter *e, struct encoding *c, const struct insn *insn, unsigned index)
{
    unsigned operand = c->row->operand[index];
    const struct operand_info *info = &operand_infos[operand];
    /* destinations come first; MULX has two */
    bool written = index == 0 || (index == 1 && insn->op == OP_MULX);

    if ((info->class == CLASS_E && info->type == TYPE_V && insn->rm_size == 2) ||
        (info->class == CLASS_G && info->type == TYPE_V && insn->osize == 2) ||
        (info->class == CLASS_M && info->type == TYPE_V && insn->rm_size == 2))
        c->prefix_66 = true;

    switch (info->class) {
    case CLASS_NONE: case CLASS_M: case CLASS_XMM0: case CLASS_ST:
        return true;
    case CLASS_E: case CLASS_R:
        if (!c->memory)
            c->rm = hold(e, insn->rm, written);
        return true;
    case CLASS_G:
        c->reg = hold(e, insn->reg, written);
        return true;
    case CLASS_B:
        c->vvvv = hold(e, insn->vvvv, written);
        return true;
    case CLASS_IMPLIED:
        if (operand != OPD_AX)
            return false;
        hold_in(e, RAX, RAX, written);
        return true;
    case CLASS_V:
        c->reg = insn->reg;
        return true;
    case CLASS_P:
        c->reg = insn->reg & 7;
        return true;
    case CLASS_W: case CLASS_U:
        c->rm = insn->rm;
        return true;
    case CLASS_Q: case CLASS_N: case CLASS_STI:
        c->rm = insn->rm & 7;
        return true;
    case CLASS_H:
        c->vvvv = insn->vvvv;
        return true;
    case CLASS_I: case CLASS_L:
        c->immediate = insn->imm;
        c->immediate_bytes = info->type == TYPE_W ? 2 : info->type == TYPE_Z ? (insn->osize == 2 ? 2 : 4) : 1;
        return info->type != TYPE_V;
    default:
        return false;
    }
}

/* modrm.reg is part of the opcode, or all of modrm is (x87). */
static void encode_fixed_modrm(struct encoding *c, const struct insn *insn)
{
    uint8_t constraint = c->row->modrm;
    c->has_modrm = constraint != MR__;
    if (constraint >= 0xc0) {
        c->reg = constraint >> 3 & 7;
        c->rm = constraint & 7;
    } else if (constraint & MR_HAS_DIGIT) {
        c->reg = insn->modrm >> 3 & 7;
    }
}

static struct encoding encoding_of(const struct insn *insn)
{
    return (struct encoding){
        .row = &isa_rows[insn->row],
        .memory = insn->flags & INSN_MEM,
        .vex = insn->flags & INSN_VEX,
        .w = insn->flags & INSN_W,
        .vl = insn->vl,
        .base = RSI,
        .index = NATIVE_NO_INDEX,
    };
}

unsigned native_encode(uint8_t out[NATIVE_MAX_BYTES], const struct insn *insn, struct native_registers *registers)
{
    struct emitter e = {.next = out, .fixed = registers};
    struct encoding c = encoding_of(insn);
    uint32_t implied_read, implied_written;
    c.base = registers->base;
    c.index = registers->index;
    c.disp = registers->disp;
    if (c.row->attributes & (A_R8 | A_CC))
        return 0;
    for (unsigned i = 0; i < 4; i++)
        if (!encode_operand(&e, &c, insn, i))
            return 0;
    encode_fixed_modrm(&c, insn);
    implied_registers(insn->op, &implied_read, &implied_written);
    registers->used = (uint16_t)(implied_read | implied_written);
    registers->written = (uint16_t)implied_written;
    for (unsigned i = 0; i < e.held_count; i++) {
        if (e.held[i].guest >= 16)
            return 0;
        registers->used |= (uint16_t)(1u << e.held[i].guest);
        registers->written |= (uint16_t)((unsigned)e.held[i].written << e.held[i].guest);
    }
    put_instruction(&e, &c);
    return (unsigned)(e.next - out);
}

unsigned native_emit(uint8_t out[NATIVE_MAX_BYTES], const struct insn *insn, const struct op_info *info)
{
    struct emitter e = {.next = out};
    struct encoding c = encoding_of(insn);
    uint32_t implied_read, implied_written;

    if (c.row->attributes & (A_R8 | A_CC))
        return 0;
    implied_registers(insn->op, &implied_read, &implied_written);
    /* with implied registers in their places, explicit ones go elsewhere */
    bool low = !(implied_read | implied_written);
    for (unsigned i = 0; i < 3; i++)
        e.pool[i] = low ? i : R8 + i;
    for (unsigned i = 0; i < 4; i++)
        if (!encode_operand(&e, &c, insn, i))
            return 0;
    encode_fixed_modrm(&c, insn);
    for (unsigned n = RAX; n <= RDX; n++)
        if ((implied_read | implied_written) & 1 << n)
            hold_in(&e, n, n, implied_written & 1 << n);

    /* what is undefined may be what it was */
    if (info->flags_read || info->flags_undefined || (info->flags_written && info->flags_written != EFLAGS_STATUS))
        put_flags_load(&e);
    for (unsigned i = 0; i < e.held_count; i++)
        put_move(&e, e.held[i].guest, e.held[i].host, false);
    put_instruction(&e, &c);
    for (unsigned i = 0; i < e.held_count; i++)
        if (e.held[i].written)
            put_move(&e, e.held[i].guest, e.held[i].host, true);
    if (info->flags_written)
        put_flags_store(&e);
    put(&e, 0xc3);
    return e.next - out;
}
