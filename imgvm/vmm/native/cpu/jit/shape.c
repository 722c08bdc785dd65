/* SPDX-License-Identifier: MIT */
#include "shape.h"

#include "../decode/isa.h"

static void size_opcode(struct shape *s, unsigned size, uint32_t byte_code)
{
    s->op.code = byte_code + (size > 1);
    s->op.prefix = size == 2 ? 0x66 : 0;
    s->op.w = size == 8;
    s->size = size;
}

static bool fits8(uint64_t v) { return (uint64_t)(int64_t)(int8_t)v == v; }

/* Byte registers: AH..BH are not reachable beside a REX prefix. */
static bool high_byte(const struct insn *in)
{
    return in->reg >= 16 || (!(in->flags & INSN_MEM) && in->rm >= 16);
}

bool shape_of(const struct uop *u, struct shape *s)
{
    static const uint8_t alu[] = {[OP_ADD] = 1, [OP_OR] = 2, [OP_ADC] = 3, [OP_SBB] = 4, [OP_AND] = 5, [OP_SUB] = 6, [OP_XOR] = 7, [OP_CMP] = 8};
    const struct insn *in = &u->in;
    unsigned size = in->osize;
    *s = (struct shape){0};
    if (in->flags & INSN_LOCK || high_byte(in) || ((in->flags & INSN_MEM) && u->ea_slow))
        return false;
    if (in->op < ARRAY_LEN(alu) && alu[in->op]) {
        unsigned k = alu[in->op] - 1u;
        bool keeps = in->op != OP_CMP;
        if (in->form == FORM_RM_REG) {
            size_opcode(s, size, k * 8);
            s->reg = in->reg, s->reg_read = true, s->rm_read = true, s->rm_written = keeps;
        } else if (in->form == FORM_REG_RM) {
            size_opcode(s, size, k * 8 + 2);
            s->reg = in->reg, s->reg_read = true, s->reg_written = keeps, s->rm_read = true;
        } else if (in->form == FORM_RM_IMM) {
            size_opcode(s, size, 0x80);
            s->digit = true, s->reg = (uint8_t)k, s->rm_read = true, s->rm_written = keeps;
            s->immediate = (uint8_t)(size == 1 ? 1 : size == 2 ? 2 : 4);
            if (size > 1 && fits8(in->imm))
                s->op.code = 0x83, s->immediate = 1;
        } else {
            return false;
        }
        s->op.rex = size == 1;
        return true;
    }
    switch (in->op) {
    case OP_TEST:
        if (in->form == FORM_RM_REG) {
            size_opcode(s, size, 0x84);
            s->reg = in->reg, s->reg_read = true;
        } else if (in->form == FORM_RM_IMM) {
            size_opcode(s, size, 0xf6);
            s->digit = true, s->immediate = (uint8_t)(size == 1 ? 1 : size == 2 ? 2 : 4);
        } else {
            return false;
        }
        s->rm_read = true;
        break;
    case OP_MOV:
        if (in->form == FORM_RM_REG) {
            size_opcode(s, size, 0x88);
            s->reg = in->reg, s->reg_read = true, s->rm_written = true;
        } else if (in->form == FORM_REG_RM) {
            size_opcode(s, size, 0x8a);
            s->reg = in->reg, s->reg_written = true, s->reg_read = size < 4, s->rm_read = true;
        } else if (in->form == FORM_RM_IMM) {
            bool wide = size == 8 && (uint64_t)(int64_t)(int32_t)in->imm != in->imm;
            if (wide)
                return false;
            size_opcode(s, size, 0xc6);
            s->digit = true, s->rm_written = true, s->immediate = (uint8_t)(size == 1 ? 1 : size == 2 ? 2 : 4);
        } else {
            return false;
        }
        if (!(in->flags & INSN_MEM) && size < 4)
            s->rm_read = true; /* a partial write keeps the rest */
        break;
    case OP_MOVZX:
    case OP_MOVSX:
    case OP_MOVSXD: {
        unsigned from = insn_operand_size(in, 1);
        if (in->form != FORM_REG_RM || from > 4 || (from == 4 && in->op == OP_MOVZX))
            return false;
        s->op.code = from == 4 ? 0x63 : (in->op == OP_MOVZX ? 0x0fb6u : 0x0fbeu) + (from == 2);
        s->op.w = size == 8;
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.rex = from == 1;
        s->size = from;
        s->reg = in->reg, s->reg_written = true, s->reg_read = size < 4, s->rm_read = true;
        return true;
    }
    case OP_INC:
    case OP_DEC:
        size_opcode(s, size, 0xfe);
        s->digit = true, s->reg = in->op == OP_DEC, s->rm_read = s->rm_written = true;
        break;
    case OP_NOT:
    case OP_NEG:
        size_opcode(s, size, 0xf6);
        s->digit = true, s->reg = in->op == OP_NOT ? 2 : 3, s->rm_read = s->rm_written = true;
        break;
    case OP_ROL: case OP_ROR: case OP_RCL: case OP_RCR: case OP_SHL: case OP_SHR: case OP_SAR: {
        static const uint8_t digits[] = {[OP_ROL - OP_ROL] = 0, [OP_ROR - OP_ROL] = 1, [OP_RCL - OP_ROL] = 2, [OP_RCR - OP_ROL] = 3,
                                         [OP_SHL - OP_ROL] = 4, [OP_SHR - OP_ROL] = 5, [OP_SAR - OP_ROL] = 7};
        if (in->form == FORM_RM_CL) {
            size_opcode(s, size, 0xd2);
        } else if (in->form == FORM_RM_IMM || in->form == FORM_RM_1) {
            if (!(in->imm & (size == 8 ? 63 : 31)))
                return false;
            size_opcode(s, size, 0xc0);
            s->immediate = 1;
        } else {
            return false;
        }
        s->digit = true, s->reg = digits[in->op - OP_ROL], s->rm_read = s->rm_written = true;
        break;
    }
    case OP_IMUL:
        if (in->form == FORM_REG_RM) {
            s->op.code = 0x0faf, s->reg_read = true;
        } else if (in->form == FORM_REG_RM_IMM) {
            s->op.code = fits8(in->imm) ? 0x6b : 0x69;
            s->immediate = (uint8_t)(fits8(in->imm) ? 1 : size == 2 ? 2 : 4);
            s->reg_read = size == 2;
        } else {
            return false;
        }
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.w = size == 8;
        s->size = size;
        s->reg = in->reg, s->reg_written = true, s->rm_read = true;
        return true;
    case OP_MUL:
        if (in->form != FORM_RM)
            return false;
        size_opcode(s, size, 0xf6);
        s->digit = true, s->reg = 4, s->rm_read = true;
        break;
    case OP_CMOVCC:
        s->op.code = 0x0f40u | in->cond;
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.w = size == 8;
        s->size = size;
        s->reg = in->reg, s->reg_written = s->reg_read = true, s->rm_read = true;
        return true;
    case OP_SETCC:
        s->op.code = 0x0f90u | in->cond;
        s->op.rex = true;
        s->size = 1;
        s->digit = true, s->rm_written = true, s->rm_read = !(in->flags & INSN_MEM);
        return true;
    case OP_BT: case OP_BTS: case OP_BTR: case OP_BTC: {
        unsigned k = in->op == OP_BT ? 0 : in->op == OP_BTS ? 1 : in->op == OP_BTR ? 2 : 3;
        if (in->flags & INSN_MEM)
            return false;
        if (in->form == FORM_RM_REG) {
            s->op.code = 0x0fa3u + 8 * k;
            s->reg = in->reg, s->reg_read = true;
        } else {
            s->op.code = 0x0fba;
            s->digit = true, s->reg = (uint8_t)(4 + k), s->immediate = 1;
        }
        s->op.prefix = size == 2 ? 0x66 : 0;
        s->op.w = size == 8;
        s->size = size;
        s->rm_read = true, s->rm_written = k != 0;
        return true;
    }
    default:
        return false;
    }
    s->op.rex = size == 1;
    return true;
}

enum special special_of(const struct uop *u)
{
    const struct insn *in = &u->in;
    bool mem = in->flags & INSN_MEM;
    switch (in->op) {
    case OP_LEA: return !u->ea_slow && in->osize >= 4 ? SPECIAL_LEA : SPECIAL_NONE;
    case OP_PUSH:
        return in->osize == 8 && !mem && (in->form == FORM_RM || in->form == FORM_IMM) ? SPECIAL_PUSH : SPECIAL_NONE;
    case OP_POP: return in->osize == 8 && !mem && in->form == FORM_RM ? SPECIAL_POP : SPECIAL_NONE;
    case OP_NOP: return SPECIAL_NOP;
    case OP_MOV: return in->form == FORM_RM_IMM && !mem && in->osize == 8 ? SPECIAL_MOV_IMM64 : SPECIAL_NONE;
    case OP_LEAVE: return in->osize == 8 ? SPECIAL_LEAVE : SPECIAL_NONE;
    case OP_CBW: case OP_CWD: return SPECIAL_WIDEN;
    case OP_JCC: return SPECIAL_JCC;
    case OP_JMP: return in->form == FORM_REL ? SPECIAL_JMP : in->osize == 8 && !(mem && u->ea_slow) ? SPECIAL_JMP_RM : SPECIAL_NONE;
    case OP_CALL: return in->form == FORM_REL ? SPECIAL_CALL : !mem && in->osize == 8 && in->rm != RSP ? SPECIAL_CALL_REG : SPECIAL_NONE;
    case OP_RET: return in->osize == 8 ? SPECIAL_RET : SPECIAL_NONE;
    default: return SPECIAL_NONE;
    }
}

unsigned inline_code(const struct uop *u, uint8_t code[NATIVE_MAX_BYTES + 1])
{
    const struct insn *in = &u->in;
    const struct op_info *info = &op_infos[in->op];
    bool mem = in->flags & INSN_MEM;
    if (info->kind != OPK_NATIVE || !u->native || !u->unit || info->flags_read || info->flags_written || (mem && u->ea_slow))
        return 0;
    for (unsigned i = 0; i < 4; i++) {
        switch (operand_infos[isa_rows[in->row].operand[i]].class) {
        case CLASS_G: case CLASS_R: case CLASS_B: case CLASS_IMPLIED:
            return 0;
        case CLASS_E:
            if (!mem)
                return 0;
            break;
        default:
            break;
        }
    }
    unsigned n = native_emit(code, in, info);
    if (n < 2)
        return 0;
    n--; /* the thunk's ret */
    if (!mem)
        return n;
    /* [rsi] becomes [r14]: the same modrm with the extension bit of the base set */
    if (in->flags & INSN_VEX) {
        code[1] &= 0xdf;
        return n;
    }
    unsigned at = 0;
    while (code[at] == 0x66 || code[at] == 0xf2 || code[at] == 0xf3)
        at++;
    if ((code[at] & 0xf0) == 0x40) {
        code[at] |= 1;
        return n;
    }
    for (unsigned i = n; i > at; i--)
        code[i] = code[i - 1];
    code[at] = 0x41;
    return n + 1;
}
