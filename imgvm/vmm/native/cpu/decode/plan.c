/* SPDX-License-Identifier: MIT */
/* Digests isa.def when the library is loaded: the preprocessor cannot sort rows by opcode, and the
 * result never changes afterwards, so it counts as constant data. */
#include "plan.h"

struct plan plans[PLAN_MAX_ROWS];
uint16_t plan_rows[PLAN_MAX_ROWS];
struct plan_opcode plan_opcodes[MAP_COUNT][256];

static void plan_match(struct plan *plan, const struct isa_row *row)
{
    static const struct {
        uint32_t mask, value;
    } prefixes[] = {
        [PP___] = {0, 0},
        [PP_NF] = {FACT_F2 | FACT_F3, 0},
        [PP_NP] = {FACT_66 | FACT_F2 | FACT_F3, 0},
        [PP_66] = {FACT_66 | FACT_F2 | FACT_F3, FACT_66},
        [PP_F3] = {FACT_F3, FACT_F3},
        [PP_F2] = {FACT_F2, FACT_F2},
    };
    static const struct {
        uint32_t attribute, mask, value;
    } conditions[] = {
        {A_W0, FACT_W, 0}, {A_W1, FACT_W, FACT_W}, {A_L0, FACT_L, 0}, {A_L1, FACT_L, FACT_L}, {A_B0, FACT_B, 0},
    };
    plan->mask = prefixes[row->pp].mask;
    plan->value = prefixes[row->pp].value;
    for (unsigned i = 0; i < sizeof(conditions) / sizeof(conditions[0]); i++)
        if (row->attributes & conditions[i].attribute) {
            plan->mask |= conditions[i].mask;
            plan->value |= conditions[i].value;
        }
    if ((row->attributes & A_MODE) != MODE_ANY) {
        plan->mask |= FACT_64;
        plan->value |= (row->attributes & A_MODE) == MODE_O64 ? FACT_64 : 0;
    }

    if (row->modrm >= 0xc0) {
        plan->mask |= FACT_REGISTER | 0x3f;
        plan->value |= FACT_REGISTER | (row->modrm & 0x3f);
        return;
    }
    if ((row->modrm & 0x70) >= MR_MEM) {
        plan->mask |= FACT_REGISTER;
        plan->value |= (row->modrm & 0x70) == MR_REG ? FACT_REGISTER : 0;
    }
    if (row->modrm & MR_HAS_DIGIT) {
        plan->mask |= 0x38;
        plan->value |= (row->modrm & 7) << 3;
    }
}

static uint8_t plan_general(uint8_t type)
{
    return type == TYPE_B ? FIELD_BYTE : FIELD_GPR;
}

static void plan_operand(struct plan *plan, const struct isa_row *row, unsigned position)
{
    static const uint8_t immediates[] = {[TYPE_B] = IMM_B, [TYPE_BS] = IMM_BS, [TYPE_W] = IMM_W,
                                         [TYPE_Z] = IMM_Z, [TYPE_V] = IMM_V,   [TYPE_WB] = IMM_WB};
    const struct operand_info *operand = &operand_infos[row->operand[position]];
    switch (operand->class) {
    case CLASS_E:
        plan->rm = plan_general(operand->type);
        break;
    case CLASS_R:
        plan->rm = plan_general(operand->type);
        plan->flags |= PLAN_REGISTER;
        break;
    case CLASS_W: case CLASS_U:
        plan->rm = FIELD_VECTOR;
        break;
    case CLASS_Q: case CLASS_N: case CLASS_STI:
        plan->rm = FIELD_3BITS;
        break;
    case CLASS_Z:
        plan->rm = plan_general(operand->type);
        plan->flags |= PLAN_OPCODE_REG;
        break;
    case CLASS_VSIB_X: case CLASS_VSIB_DQ:
        plan->flags |= PLAN_VSIB;
        break;
    case CLASS_G:
        plan->reg = plan_general(operand->type);
        break;
    case CLASS_V:
        plan->reg = FIELD_VECTOR;
        break;
    case CLASS_P: case CLASS_S:
        plan->reg = FIELD_3BITS;
        break;
    case CLASS_C:
        plan->reg = FIELD_CR;
        break;
    case CLASS_D:
        plan->reg = FIELD_DR;
        break;
    case CLASS_SEG:
        plan->fixed_reg = row->operand[position] - OPD_SegES;
        break;
    case CLASS_B:
        plan->vvvv = FIELD_GPR;
        plan->flags |= PLAN_VVVV;
        break;
    case CLASS_H:
        plan->vvvv = FIELD_VECTOR;
        plan->flags |= PLAN_VVVV;
        break;
    case CLASS_ACC: /* beside an immediate it stands for rm, else for reg */
        plan->flags |= operand_infos[row->operand[1]].class == CLASS_I ? PLAN_ACC_RM : PLAN_ACC_REG;
        break;
    case CLASS_I:
        plan->immediate = immediates[operand->type];
        break;
    case CLASS_J:
        plan->immediate = operand->type == TYPE_B ? IMM_BS : IMM_JZ;
        break;
    case CLASS_A:
        plan->immediate = IMM_FAR;
        break;
    case CLASS_O:
        plan->immediate = IMM_MOFFS;
        break;
    case CLASS_L:
        plan->immediate = IMM_IS4;
        break;
    }
}

/* The operand size is that of the first operand which is data with a size of its own. */
static uint8_t plan_osize(const struct isa_row *row)
{
    for (unsigned i = 0; i < 4; i++) {
        const struct operand_info *operand = &operand_infos[row->operand[i]];
        switch (operand->class) {
        case CLASS_NONE: case CLASS_I: case CLASS_J: case CLASS_A: case CLASS_SEG: case CLASS_ST: case CLASS_STI:
            continue;
        case CLASS_IMPLIED:
            if (row->operand[i] != OPD_AL && row->operand[i] != OPD_eAX && row->operand[i] != OPD_vAX)
                continue;
        }
        switch (operand->type) {
        case TYPE_NONE: case TYPE_P: case TYPE_A: case TYPE_S: case TYPE_V_MW:
            return TYPE_V;
        case TYPE_D_MB: case TYPE_D_MW:
            return TYPE_D;
        }
        return operand->type;
    }
    return TYPE_V;
}

static void plan_row(struct plan *plan, const struct isa_row *row)
{
    plan_match(plan, row);
    plan->rm_size = TYPE_NONE;
    for (unsigned i = 0; i < 4; i++) {
        const struct operand_info *operand = &operand_infos[row->operand[i]];
        plan_operand(plan, row, i);
        switch (operand->class) {
        case CLASS_E: case CLASS_R: case CLASS_M: case CLASS_W: case CLASS_U: case CLASS_Q: case CLASS_N:
        case CLASS_VSIB_X: case CLASS_VSIB_DQ: case CLASS_O: case CLASS_Z: case CLASS_STI:
            plan->rm_size = operand->type;
            break;
        case CLASS_ACC:
            if (plan->flags & PLAN_ACC_RM)
                plan->rm_size = operand->type;
            break;
        }
    }
    plan->osize = plan_osize(row);
}

static unsigned plan_span(const struct isa_row *row)
{
    return row->attributes & A_CC ? 16 : row->attributes & A_R8 ? 8 : 1;
}

__attribute__((constructor)) static void plan_all(void)
{
    unsigned rows = isa_row_count < PLAN_MAX_ROWS ? isa_row_count : PLAN_MAX_ROWS;
    for (unsigned i = 0; i < rows; i++) {
        const struct isa_row *row = &isa_rows[i];
        plan_row(&plans[i], row);
        for (unsigned k = 0; k < plan_span(row); k++)
            plan_opcodes[row->map][(uint8_t)(row->opcode + k)].count++;
    }
    unsigned next = 0;
    for (unsigned map = 0; map < MAP_COUNT; map++)
        for (unsigned opcode = 0; opcode < 256; opcode++) {
            struct plan_opcode *entry = &plan_opcodes[map][opcode];
            entry->first = next;
            next += entry->count;
            entry->count = 0;
        }
    if (next > PLAN_MAX_ROWS)
        return; /* nothing decodes, which no test can miss */
    for (unsigned i = 0; i < rows; i++)
        for (unsigned k = 0; k < plan_span(&isa_rows[i]); k++) {
            struct plan_opcode *entry = &plan_opcodes[isa_rows[i].map][(uint8_t)(isa_rows[i].opcode + k)];
            plan_rows[entry->first + entry->count++] = i;
            entry->has_modrm = isa_rows[i].modrm != MR__;
        }
}
