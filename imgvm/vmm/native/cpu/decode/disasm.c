/* SPDX-License-Identifier: MIT */
/* Intel syntax, from the rows the decoder used. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "../../arch/x86.h"
#include "isa.h"

struct text {
    char *start;
    size_t size;
    int length; /* of the whole text, though it may not fit */
};

__attribute__((format(printf, 2, 3))) static void text_add(struct text *text, const char *format, ...)
{
    bool room = (size_t)text->length < text->size;
    va_list arguments;
    va_start(arguments, format);
    text->length += vsnprintf(room ? text->start + text->length : NULL, room ? text->size - text->length : 0, format,
                              arguments);
    va_end(arguments);
}

static void text_signed(struct text *text, int64_t value)
{
    if (value < 0)
        text_add(text, "-0x%" PRIx64, -(uint64_t)value);
    else
        text_add(text, "0x%" PRIx64, value);
}

static void format_gpr(struct text *text, unsigned number, unsigned size)
{
    static const char *const names[] = {"ax", "cx", "dx", "bx", "sp", "bp", "si", "di"};
    static const char *const bytes[] = {"al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"};
    static const char *const high[] = {"ah", "ch", "dh", "bh"};
    if (size == 1 && number >= 16)
        text_add(text, "%s", high[number & 3]);
    else if (number >= 8)
        text_add(text, "r%u%s", number, size == 1 ? "b" : size == 2 ? "w" : size == 4 ? "d" : "");
    else if (size == 1)
        text_add(text, "%s", bytes[number]);
    else
        text_add(text, "%s%s", size == 8 ? "r" : size == 4 ? "e" : "", names[number]);
}

static void format_sreg(struct text *text, unsigned number)
{
    static const char *const names[] = {"es", "cs", "ss", "ds", "fs", "gs", "?", "?"};
    text_add(text, "%s", names[number & 7]);
}

static void format_vector(struct text *text, unsigned number, unsigned size)
{
    text_add(text, "%cmm%u", size > 16 ? 'y' : 'x', number);
}

static void format_pointer(struct text *text, unsigned size, bool override, unsigned segment)
{
    static const char *const names[] = {[1] = "byte", [2] = "word", [4] = "dword", [6] = "fword", [8] = "qword",
                                        [10] = "tbyte", [16] = "xmmword", [32] = "ymmword"};
    if (size < sizeof(names) / sizeof(names[0]) && names[size])
        text_add(text, "%s ptr ", names[size]);
    if (override) {
        format_sreg(text, segment);
        text_add(text, ":");
    }
}

/* size 0: the operand has none to show */
static void format_memory(struct text *text, const struct insn *insn, unsigned size, unsigned index_size)
{
    const char *plus = "";
    format_pointer(text, size, insn->flags & INSN_SEG_OVERRIDE, insn->segment);
    text_add(text, "[");
    if (insn->base == INSN_REG_RIP) {
        text_add(text, insn->asize == 8 ? "rip" : "eip");
        plus = " + ";
    } else if (insn->base != INSN_REG_NONE) {
        format_gpr(text, insn->base, insn->asize);
        plus = " + ";
    }
    if (insn->index != INSN_REG_NONE) {
        text_add(text, "%s", plus);
        if (index_size)
            format_vector(text, insn->index, index_size);
        else
            format_gpr(text, insn->index, insn->asize);
        if (insn->scale)
            text_add(text, "*%u", 1u << insn->scale);
        plus = " + ";
    }
    if (!*plus) {
        /* an absolute address, as the processor computes it */
        uint64_t address = (uint64_t)(int64_t)insn->disp + insn->imm * (isa_rows[insn->row].modrm == MR__);
        text_add(text, "0x%" PRIx64, insn->asize == 8 ? address : address & ((UINT64_C(1) << 8 * insn->asize) - 1));
    } else if (insn->disp) {
        text_add(text, insn->disp < 0 ? " - " : " + ");
        text_signed(text, insn->disp < 0 ? -(int64_t)insn->disp : insn->disp);
    }
    text_add(text, "]");
}

static void format_target(struct text *text, const struct insn *insn, uint64_t address)
{
    uint64_t target = address + insn->length + insn->imm;
    if (insn->osize == 2)
        target &= 0xffff;
    else if (insn->osize == 4)
        target &= 0xffffffff;
    text_add(text, "0x%" PRIx64, target);
}

static void format_immediate(struct text *text, const struct insn *insn, uint8_t operand)
{
    uint64_t imm = insn->imm;
    if (operand == OPD_Iwb)
        text_add(text, "0x%x, 0x%x", (unsigned)(imm & 0xffff), (unsigned)(imm >> 16));
    else if (operand == OPD_Ibs && (int64_t)imm < 0)
        text_add(text, "-0x%" PRIx64, -imm);
    else
        text_add(text, "0x%" PRIx64, imm);
}

static void format_implied(struct text *text, uint8_t operand, unsigned size)
{
    switch (operand) {
    case OPD_AL: case OPD_AX: case OPD_eAX: case OPD_vAX:
        format_gpr(text, RAX, size);
        break;
    case OPD_DX:
        text_add(text, "dx");
        break;
    case OPD_CL:
        text_add(text, "cl");
        break;
    case OPD_ONE:
        text_add(text, "1");
        break;
    }
}

static void format_operand(struct text *text, const struct insn *insn, unsigned position, uint64_t address)
{
    const struct isa_row *row = &isa_rows[insn->row];
    uint8_t operand = row->operand[position];
    const struct operand_info *info = &operand_infos[operand];
    unsigned size = insn_operand_size(insn, position);
    switch (info->class) {
    case CLASS_E: case CLASS_M: case CLASS_R: case CLASS_W: case CLASS_U: case CLASS_Q: case CLASS_N: case CLASS_O:
        if (insn->flags & INSN_MEM)
            format_memory(text, insn, size, 0);
        else if (info->class == CLASS_W || info->class == CLASS_U)
            format_vector(text, insn->rm, size);
        else if (info->class == CLASS_Q || info->class == CLASS_N)
            text_add(text, "mm%u", insn->rm);
        else
            format_gpr(text, insn->rm, size);
        break;
    case CLASS_VSIB_X: case CLASS_VSIB_DQ:
        format_memory(text, insn, size, info->class == CLASS_VSIB_X ? insn->vl : 16);
        break;
    case CLASS_Z:
        format_gpr(text, insn->rm, size);
        break;
    case CLASS_ACC:
        format_gpr(text, RAX, size);
        break;
    case CLASS_G:
        format_gpr(text, insn->reg, size);
        break;
    case CLASS_B:
        format_gpr(text, insn->vvvv, size);
        break;
    case CLASS_V:
        format_vector(text, insn->reg, size);
        break;
    case CLASS_H:
        format_vector(text, insn->vvvv, size);
        break;
    case CLASS_L:
        format_vector(text, insn->imm >> 4 & 15, size);
        break;
    case CLASS_XMM0:
        text_add(text, "xmm0");
        break;
    case CLASS_P:
        text_add(text, "mm%u", insn->reg);
        break;
    case CLASS_S: case CLASS_SEG:
        format_sreg(text, insn->reg);
        break;
    case CLASS_C:
        text_add(text, "cr%u", insn->reg);
        break;
    case CLASS_D:
        text_add(text, "dr%u", insn->reg);
        break;
    case CLASS_I:
        format_immediate(text, insn, operand);
        break;
    case CLASS_J:
        format_target(text, insn, address);
        break;
    case CLASS_A:
        text_add(text, "0x%" PRIx64 ":0x%" PRIx64, insn->imm >> 32, insn->imm & 0xffffffff);
        break;
    case CLASS_X:
        format_pointer(text, size, insn->segment != INSN_SEG_FLAT, insn->segment);
        text_add(text, "[");
        format_gpr(text, RSI, insn->asize);
        text_add(text, "]");
        break;
    case CLASS_Y:
        format_pointer(text, size, true, ES);
        text_add(text, "[");
        format_gpr(text, RDI, insn->asize);
        text_add(text, "]");
        break;
    case CLASS_ST:
        text_add(text, "st(0)");
        break;
    case CLASS_STI:
        text_add(text, "st(%u)", insn->rm);
        break;
    case CLASS_IMPLIED:
        format_implied(text, operand, size);
        break;
    }
}

/* The mnemonic of op.def: one of three or four alternatives by operand size, with the condition in place of %. */
static void format_mnemonic(struct text *text, const struct insn *insn)
{
    static const char *const conditions[] = {"o", "no", "b", "ae", "e", "ne", "be", "a",
                                             "s", "ns", "p", "np", "l", "ge", "le", "g"};
    const char *name = op_infos[insn->op].mnemonic;
    unsigned alternatives = 1, size = insn->op == OP_JCXZ ? insn->asize : insn->osize;
    for (const char *c = name; *c; c++)
        alternatives += *c == '/';
    if (alternatives > 1) {
        unsigned choice = size == 8 ? 3 : size == 4 ? 2 : size == 2 ? 1 : 0;
        for (unsigned skip = choice - (alternatives == 3 && choice); skip; name++)
            skip -= *name == '/';
    }
    for (; *name && *name != '/'; name++)
        if (*name == '%')
            text_add(text, "%s", conditions[insn->cond]);
        else
            text_add(text, "%c", *name);
}

static void format_prefixes(struct text *text, const struct insn *insn)
{
    if (insn->flags & INSN_LOCK)
        text_add(text, "lock ");
    switch (insn->op) {
    case OP_MOVS: case OP_STOS: case OP_LODS: case OP_INS: case OP_OUTS: case OP_CMPS: case OP_SCAS:
        if (insn->flags & INSN_REP)
            text_add(text, insn->op == OP_CMPS || insn->op == OP_SCAS ? "repe " : "rep ");
        else if (insn->flags & INSN_REPNE)
            text_add(text, "repne ");
    }
}

int insn_format(const struct insn *insn, uint64_t address, char *text_start, size_t size)
{
    struct text text = {text_start, size, 0};
    if (size)
        *text_start = 0;
    format_prefixes(&text, insn);
    format_mnemonic(&text, insn);
    const char *separator = " ";
    for (unsigned i = 0; i < 4; i++)
        if (isa_rows[insn->row].operand[i] != OPD__) {
            text_add(&text, "%s", separator);
            format_operand(&text, insn, i, address);
            separator = ", ";
        }
    return text.length;
}
