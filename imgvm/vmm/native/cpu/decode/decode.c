/* SPDX-License-Identifier: MIT */
/* Bytes and mode to struct insn. Pure, and fast: it runs for every block the engine has not seen. */
#include "../../arch/x86.h"
#include "plan.h"

struct cursor {
    const uint8_t *next, *end;
    bool truncated; /* a read went past the end; it gave zero */
};

/* Prefixes and the facts of the encoding, before operands are looked at. */
struct head {
    enum insn_mode mode;
    bool prefix_66, prefix_67, lock;
    uint8_t repeat;  /* F2 or F3, the last one; 0 */
    uint8_t rex;     /* 40..4F; 0 without. A VEX prefix is translated to the same bits. */
    uint8_t segment; /* of the last segment prefix that counts, else INSN_SEG_FLAT */
    bool vex, vex_l;
    uint8_t vex_pp, vvvv; /* vvvv as a number: 0 when unused in the encoding */
    uint8_t map, opcode;
};

#define REX_W 8
#define REX_R 4
#define REX_X 2
#define REX_B 1

static inline uint8_t cursor_u8(struct cursor *cursor)
{
    if (cursor->next >= cursor->end) {
        cursor->truncated = true;
        return 0;
    }
    return *cursor->next++;
}

/* Little-endian, `size` bytes. */
static inline uint64_t cursor_read(struct cursor *cursor, unsigned size)
{
    uint64_t value = 0;
    if ((size_t)(cursor->end - cursor->next) < size) {
        cursor->truncated = true;
        return 0;
    }
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)cursor->next[i] << (8 * i);
    cursor->next += size;
    return value;
}

static inline uint64_t sign_extend(uint64_t value, unsigned size)
{
    unsigned shift = 64 - 8 * size;
    return (uint64_t)((int64_t)(value << shift) >> shift);
}

/* Legacy prefixes in any order, then at most one REX that counts (SDM vol. 2, 2.1.1 and 2.2.1). Returns the first
 * byte that is none. */
static uint8_t decode_prefixes(struct head *head, struct cursor *cursor)
{
    for (;;) {
        uint8_t byte = cursor_u8(cursor);
        switch (byte) {
        case 0x66:
            head->prefix_66 = true;
            break;
        case 0x67:
            head->prefix_67 = true;
            break;
        case 0xf0:
            head->lock = true;
            break;
        case 0xf2: case 0xf3:
            head->repeat = byte;
            break;
        case 0x26: case 0x2e: case 0x36: case 0x3e: /* ES CS SS DS: without effect in 64-bit mode */
            if (head->mode != INSN_MODE_64)
                head->segment = (byte >> 3) & 3;
            break;
        case 0x64: case 0x65:
            head->segment = byte == 0x64 ? FS : GS;
            break;
        default:
            if (head->mode == INSN_MODE_64 && (byte & 0xf0) == 0x40 && !cursor->truncated) {
                head->rex = byte;
                continue;
            }
            return byte;
        }
        head->rex = 0; /* a REX before another prefix is ignored */
    }
}

/* C4 and C5 (SDM vol. 2, 2.3.5). False: undefined. */
static bool decode_vex(struct head *head, struct cursor *cursor, bool three_bytes)
{
    if (head->prefix_66 || head->repeat || head->lock || head->rex)
        return false;
    uint8_t first = cursor_u8(cursor), last = first;
    uint8_t map = 1;
    head->rex = 0x40 | (first & 0x80 ? 0 : REX_R);
    if (three_bytes) {
        map = first & 0x1f;
        last = cursor_u8(cursor);
        head->rex |= (first & 0x40 ? 0 : REX_X) | (first & 0x20 ? 0 : REX_B) | (last & 0x80 ? REX_W : 0);
    }
    head->vvvv = (~last >> 3) & 15;
    head->vex_l = last & 4;
    head->vex_pp = last & 3;
    head->vex = true;
    head->opcode = cursor_u8(cursor);
    if (map < 1 || map > 3)
        return false;
    head->map = MAP_V0F + map - 1;
    if (head->mode != INSN_MODE_64) /* eight registers only; R and X are 0 as they are part of a modrm with mod 3 */
        head->rex &= 0x40 | REX_W;
    return true;
}

static bool decode_opcode(struct head *head, struct cursor *cursor, uint8_t byte)
{
    head->map = MAP_1B;
    head->opcode = byte;
    if (byte == 0x0f) {
        head->map = MAP_0F;
        head->opcode = cursor_u8(cursor);
        if (head->opcode == 0x38 || head->opcode == 0x3a) {
            head->map = head->opcode == 0x38 ? MAP_38 : MAP_3A;
            head->opcode = cursor_u8(cursor);
        }
        return true;
    }
    /* C4, C5 and 62 are LES, LDS and BOUND outside 64-bit mode, unless what would be their modrm byte names a register */
    if (byte == 0xc4 || byte == 0xc5 || byte == 0x62) {
        if (cursor->next >= cursor->end) {
            cursor->truncated = true;
            return true;
        }
        if (head->mode == INSN_MODE_64 || *cursor->next >= 0xc0)
            return byte != 0x62 && decode_vex(head, cursor, byte == 0xc4); /* no EVEX yet */
    }
    return true;
}

static uint32_t head_facts(const struct head *head, uint8_t modrm)
{
    static const uint32_t vex_prefix[] = {0, FACT_66, FACT_F3, FACT_F2};
    uint32_t facts = modrm;
    if (modrm >= 0xc0)
        facts |= FACT_REGISTER;
    if (head->vex)
        facts |= vex_prefix[head->vex_pp];
    else if (head->repeat)
        facts |= head->repeat == 0xf3 ? FACT_F3 : FACT_F2;
    else if (head->prefix_66)
        facts |= FACT_66;
    if (head->rex & REX_W)
        facts |= FACT_W;
    if (head->rex & REX_B)
        facts |= FACT_B;
    if (head->vex_l)
        facts |= FACT_L;
    if (head->mode == INSN_MODE_64)
        facts |= FACT_64;
    return facts;
}

/* 16-bit addresses (SDM vol. 2, table 2-1). */
static void decode_memory_16(struct insn *out, struct cursor *cursor, unsigned mod, unsigned rm)
{
    static const uint8_t bases[] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
    static const uint8_t indexes[] = {RSI, RDI, RSI, RDI, INSN_REG_NONE, INSN_REG_NONE, INSN_REG_NONE, INSN_REG_NONE};
    out->base = bases[rm];
    out->index = indexes[rm];
    if (mod == 0 && rm == 6) {
        out->base = INSN_REG_NONE;
        mod = 2;
    }
    if (mod == 1)
        out->disp = (int8_t)cursor_u8(cursor);
    else if (mod == 2)
        out->disp = (int16_t)cursor_read(cursor, 2);
}

/* 32- and 64-bit addresses (SDM vol. 2, tables 2-2, 2-3 and 2.2.1.6). */
static void decode_memory(struct insn *out, const struct head *head, struct cursor *cursor, unsigned mod, unsigned rm)
{
    unsigned base = rm;
    out->index = INSN_REG_NONE;
    if (rm == 4) {
        uint8_t sib = cursor_u8(cursor);
        unsigned index = (sib >> 3 & 7) | (head->rex & REX_X ? 8 : 0);
        base = sib & 7;
        out->scale = sib >> 6;
        out->index = index == 4 ? INSN_REG_NONE : index;
    }
    if (mod == 0 && base == 5) {
        out->base = rm == 5 && head->mode == INSN_MODE_64 ? INSN_REG_RIP : INSN_REG_NONE;
        mod = 2;
    } else {
        out->base = base | (head->rex & REX_B ? 8 : 0);
    }
    if (mod == 1)
        out->disp = (int8_t)cursor_u8(cursor);
    else if (mod == 2)
        out->disp = (int32_t)cursor_read(cursor, 4);
}

/* The segment of a memory operand (SDM vol. 1, table 3-5); also that of a string's source, which has no base. */
static uint8_t memory_segment(const struct insn *out, const struct head *head)
{
    if (head->segment != INSN_SEG_FLAT)
        return head->segment;
    if (head->mode == INSN_MODE_64)
        return INSN_SEG_FLAT;
    return (out->flags & INSN_MEM) && (out->base == RSP || out->base == RBP) ? SS : DS;
}

static uint8_t operand_size(const struct head *head, const struct isa_row *row)
{
    /* 66 is spent when it is part of the opcode */
    bool small = head->prefix_66 && row->pp != PP_66;
    switch (head->mode) {
    case INSN_MODE_16:
        return small ? 4 : 2;
    case INSN_MODE_32:
        return small ? 2 : 4;
    case INSN_MODE_64:
        if (head->rex & REX_W || row->attributes & A_F64)
            return 8;
        return small ? 2 : row->attributes & A_D64 ? 8 : 4;
    }
    return 4;
}

static unsigned type_size(uint8_t type, const struct insn *out, unsigned effective, bool mode64)
{
    unsigned vector = out->vl ? out->vl : 16;
    switch (type) {
    case TYPE_B: case TYPE_BS: case TYPE_WB:
        return 1;
    case TYPE_W:
        return 2;
    case TYPE_D:
        return 4;
    case TYPE_Q:
        return 8;
    case TYPE_T:
        return 10;
    case TYPE_DQ:
        return 16;
    case TYPE_QQ:
        return 32;
    case TYPE_V:
        return effective;
    case TYPE_Z:
        return effective > 4 ? 4 : effective;
    case TYPE_Y:
        return out->flags & INSN_W ? 8 : 4;
    case TYPE_NATURAL:
        return mode64 ? 8 : 4;
    case TYPE_X:
        return vector;
    case TYPE_XH:
        return vector / 2;
    case TYPE_XQ:
        return vector / 4;
    case TYPE_XE:
        return vector / 8;
    case TYPE_V_MW:
        return out->flags & INSN_MEM ? 2 : effective;
    case TYPE_D_MB:
        return out->flags & INSN_MEM ? 1 : 4;
    case TYPE_D_MW:
        return out->flags & INSN_MEM ? 2 : 4;
    case TYPE_P:
        return effective + 2;
    case TYPE_A:
        return effective * 2;
    case TYPE_S:
        return mode64 ? 10 : 6;
    }
    return 0;
}

static uint8_t field_register(uint8_t field, unsigned number, const struct head *head)
{
    switch (field) {
    case FIELD_BYTE:
        return !head->rex && number >= 4 ? number + 12 : number;
    case FIELD_3BITS:
        return number & 7;
    }
    return number;
}

static bool control_register_exists(unsigned number)
{
    return number == 0 || (number >= 2 && number <= 4) || number == 8;
}

static void decode_immediate(struct insn *out, const struct plan *plan, struct cursor *cursor, unsigned effective, bool mode64)
{
    unsigned size;
    switch (plan->immediate) {
    case IMM_NONE:
        return;
    case IMM_B:
        out->imm = cursor_u8(cursor);
        return;
    case IMM_IS4: /* eight registers outside 64-bit mode: bit 7 is ignored (SDM vol. 2, VBLENDVPS) */
        out->imm = cursor_u8(cursor) & (mode64 ? 0xff : 0x7f);
        return;
    case IMM_BS:
        out->imm = (uint64_t)(int64_t)(int8_t)cursor_u8(cursor);
        return;
    case IMM_W:
        out->imm = cursor_read(cursor, 2);
        return;
    case IMM_Z:
        out->imm = cursor_read(cursor, effective == 2 ? 2 : 4);
        if (effective == 8)
            out->imm = sign_extend(out->imm, 4);
        return;
    case IMM_V:
        out->imm = cursor_read(cursor, effective);
        return;
    case IMM_WB: /* in the layout insn.h wants */
        out->imm = cursor_read(cursor, 3);
        return;
    case IMM_JZ:
        size = effective == 2 ? 2 : 4;
        out->imm = sign_extend(cursor_read(cursor, size), size);
        return;
    case IMM_FAR:
        out->imm = cursor_read(cursor, effective == 2 ? 2 : 4);
        out->imm |= cursor_read(cursor, 2) << 32;
        return;
    case IMM_MOFFS:
        out->imm = cursor_read(cursor, out->asize);
        return;
    }
}

static const struct plan *find_plan(const struct head *head, const struct plan_opcode *entry, uint8_t modrm,
                                    unsigned *row)
{
    uint32_t facts = head_facts(head, modrm);
    const uint16_t *candidate = &plan_rows[entry->first];
    for (unsigned i = 0; i < entry->count; i++) {
        const struct plan *plan = &plans[candidate[i]];
        if ((facts & plan->mask) == plan->value) {
            *row = candidate[i];
            return plan;
        }
    }
    return NULL;
}

/* LOCK is for a memory destination of some operations only (SDM vol. 2, LOCK). */
static bool lock_is_legal(const struct insn *out)
{
    bool destination = out->form == FORM_RM || out->form == FORM_RM_REG || out->form == FORM_RM_IMM;
    return (out->flags & INSN_MEM) && destination && op_infos[out->op].attributes & OPA_LOCKABLE;
}

/* Registers out of modrm, VEX and the opcode. False: no such register. */
static bool decode_registers(struct insn *out, const struct head *head, const struct plan *plan)
{
    bool mode64 = head->mode == INSN_MODE_64;
    unsigned reg = (out->modrm >> 3 & 7) | (head->rex & REX_R ? 8 : 0);
    unsigned rm = (out->modrm & 7) | (head->rex & REX_B ? 8 : 0);

    if (plan->flags & PLAN_OPCODE_REG)
        rm = (head->opcode & 7) | (head->rex & REX_B ? 8 : 0);
    if (plan->flags & PLAN_ACC_RM)
        rm = RAX;
    if (plan->flags & PLAN_ACC_REG)
        reg = RAX;
    out->reg = plan->reg ? field_register(plan->reg, reg, head) : plan->fixed_reg ? plan->fixed_reg : reg;
    if (!(out->flags & INSN_MEM))
        out->rm = field_register(plan->rm, rm, head);
    if (plan->reg == FIELD_CR && !control_register_exists(reg))
        return false;
    if (plan->reg == FIELD_DR && reg > 7)
        return false;

    if (plan->flags & PLAN_VVVV)
        out->vvvv = mode64 ? head->vvvv : head->vvvv & 7;
    else if (head->vvvv)
        return false;
    if (plan->flags & PLAN_VSIB) {
        /* a vector index is never absent; index, mask and destination must differ (SDM vol. 2, VGATHERDPS) */
        if ((out->modrm & 7) != 4 || out->asize == 2)
            return false;
        if (out->index == INSN_REG_NONE)
            out->index = 4;
        if (out->reg == out->index || out->reg == out->vvvv || out->index == out->vvvv)
            return false;
    }
    return true;
}

static int decode_error(const struct cursor *cursor, const uint8_t *bytes)
{
    if (!cursor->truncated)
        return INSN_ERR_UNDEFINED;
    return cursor->end - bytes >= INSN_MAX_BYTES ? INSN_ERR_TOO_LONG : INSN_ERR_TRUNCATED;
}

int insn_decode(struct insn *out, const uint8_t *bytes, size_t available, enum insn_mode mode)
{
    struct cursor cursor = {bytes, bytes + (available < INSN_MAX_BYTES ? available : INSN_MAX_BYTES), false};
    struct head head = {.mode = mode, .segment = INSN_SEG_FLAT};

    *out = (struct insn){0};
    uint8_t byte = decode_prefixes(&head, &cursor);
    if (!decode_opcode(&head, &cursor, byte) || cursor.truncated)
        return decode_error(&cursor, bytes);

    const struct plan_opcode *entry = &plan_opcodes[head.map][head.opcode];
    if (entry->has_modrm)
        out->modrm = cursor_u8(&cursor);
    unsigned number;
    const struct plan *plan = cursor.truncated ? NULL : find_plan(&head, entry, out->modrm, &number);
    if (!plan)
        return decode_error(&cursor, bytes);
    const struct isa_row *row = &isa_rows[number];

    out->row = number;
    out->op = row->op;
    out->form = row->form;
    out->asize = mode == INSN_MODE_64 ? (head.prefix_67 ? 4 : 8) : (mode == INSN_MODE_32) != head.prefix_67 ? 4 : 2;
    out->vl = head.vex ? (head.vex_l ? 32 : 16) : 0;
    out->flags = (head.lock ? INSN_LOCK : 0) | (head.vex ? INSN_VEX : 0) | (head.segment != INSN_SEG_FLAT ? INSN_SEG_OVERRIDE : 0);
    if (head.rex && !head.vex)
        out->flags |= INSN_REX;
    if (head.rex & REX_W && (mode == INSN_MODE_64 || row->attributes & A_W1)) /* else it would size general registers */
        out->flags |= INSN_W;
    if (head.repeat && row->pp < PP_F3)
        out->flags |= head.repeat == 0xf3 ? INSN_REP : INSN_REPNE;

    out->base = out->index = INSN_REG_NONE;
    if (entry->has_modrm && out->modrm < 0xc0 && !(plan->flags & PLAN_REGISTER)) {
        out->flags |= INSN_MEM;
        if (out->asize == 2)
            decode_memory_16(out, &cursor, out->modrm >> 6, out->modrm & 7);
        else
            decode_memory(out, &head, &cursor, out->modrm >> 6, out->modrm & 7);
    } else if (plan->immediate == IMM_MOFFS) {
        out->flags |= INSN_MEM;
    }
    out->segment = memory_segment(out, &head);

    unsigned effective = operand_size(&head, row);
    out->osize = type_size(plan->osize, out, effective, mode == INSN_MODE_64);
    out->rm_size = type_size(plan->rm_size, out, effective, mode == INSN_MODE_64);
    if (row->attributes & A_CC)
        out->cond = head.opcode & 15;
    if (row->form == FORM_RM_1)
        out->imm = 1;
    decode_immediate(out, plan, &cursor, effective, mode == INSN_MODE_64);
    if (cursor.truncated)
        return decode_error(&cursor, bytes);
    if (!decode_registers(out, &head, plan) || (head.lock && !lock_is_legal(out)))
        return INSN_ERR_UNDEFINED;
    out->length = cursor.next - bytes;
    return out->length;
}

unsigned insn_operand_size(const struct insn *insn, unsigned operand)
{
    const struct operand_info *info = &operand_infos[isa_rows[insn->row].operand[operand]];
    switch (info->class) {
    case CLASS_E: case CLASS_R: case CLASS_M: case CLASS_W: case CLASS_U: case CLASS_Q: case CLASS_N: case CLASS_O:
        return insn->rm_size;
    }
    return type_size(info->type, insn, insn->osize, insn->osize == 8);
}
