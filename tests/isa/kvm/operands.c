/* SPDX-License-Identifier: MIT */
/* What an instruction finds: addresses around the edges of segments, selectors of every kind of descriptor, frames to
 * return from, control register values that differ in a bit or two. */
#include "versus.h"

uint64_t random_integer(struct rng *rng)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0x100,
                                     0x7fff,
                                     0x8000,
                                     0xffff,
                                     0x10000,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     0x100000000,
                                     0x7fffffffffffffff,
                                     0x8000000000000000,
                                     ~UINT64_C(0)};
    uint64_t value = rng_next(rng);
    switch (rng_below(rng, 6)) {
    case 0:
        return PICK(rng, edges);
    case 1:
        return PICK(rng, edges) + rng_below(rng, 5) - 2;
    case 2:
        return value & 0xff;
    case 3:
        return (uint64_t)((int64_t)value >> (value & 63));
    default:
        return value;
    }
}

uint16_t random_selector(struct rng *rng)
{
    unsigned rpl = rng_percent(rng, 50) ? 0 : rng_below(rng, 4);
    switch (rng_below(rng, 16)) {
    case 0:
        return (uint16_t)rng_below(rng, 4); /* null */
    case 1:
        return (uint16_t)rng_next(rng);
    case 2: case 3: case 4:
        return (uint16_t)(8 * rng_below(rng, LDT_ENTRIES) + 4 + rpl);
    case 5: case 6: case 7:
        return (uint16_t)(8 * rng_below(rng, GDT_MENU) + rpl);
    default:
        return (uint16_t)(8 * rng_below(rng, GDT_ENTRIES) + rpl);
    }
}

void add_patch(struct kcase *c, uint64_t gpa, const void *bytes, unsigned size)
{
    if (gpa > MEMORY_BYTES - size || c->patches == PATCHES)
        return;
    struct patch *p = &c->patch[c->patches++];
    p->gpa = (uint32_t)gpa;
    p->size = size;
    memcpy(p->bytes, bytes, size);
}

static uint64_t address_mask(const struct kcase *c, unsigned bytes)
{
    (void)c;
    return bytes == 8 ? ~UINT64_C(0) : (UINT64_C(1) << (8 * bytes)) - 1;
}

static uint64_t choose_offset(struct rng *rng, const struct x86_segment *s, bool flat, unsigned size, uint64_t mask)
{
    uint64_t limit = flat ? ~UINT64_C(0) : s->limit;
    if (!flat && (s->attributes & SEG_UNUSABLE))
        return rng_next(rng) & 0xffff;
    if (limit > 0x100000 && mask > 0xffff) {
        uint64_t base = flat && s->base == 0 ? 0 : s->base;
        switch (rng_below(rng, 12)) {
        case 0:
            return DATA - base + 0x1000 * (1 + rng_below(rng, 8)) - 1 - rng_below(rng, size);
        case 1:
            return rng_percent(rng, 50) ? mask - rng_below(rng, 2 * size) : 0xe0000000 + rng_below(rng, 64);
        case 2:
            return flat && rng_percent(rng, 50) ? UINT64_C(0x800000000000) - rng_below(rng, 2 * size)
                                                : MEMORY_BYTES + rng_below(rng, 0x1000) - base;
        default:
            return DATA - base + rng_below(rng, DATA_BYTES - 64);
        }
    }
    switch (rng_below(rng, 8)) {
    case 0: case 1:
        return limit + 1 - size + rng_below(rng, 3) - 1;
    case 2:
        return rng_percent(rng, 50) ? rng_below(rng, 4) : limit + rng_below(rng, 3);
    case 3:
        return 0xffff - rng_below(rng, 8);
    default:
        return (s->attributes & (SEG_CODE | SEG_EXPAND_CONFORM)) == SEG_EXPAND_CONFORM
                   ? limit + 1 + rng_below(rng, (unsigned)(0x10000 - limit))
                   : rng_below(rng, (unsigned)MIN(limit, 0xffff));
    }
}

/* Solves base + (index << scale) + disp = target for a register. */
static void aim_memory(struct rng *rng, struct kcase *c, uint64_t target)
{
    struct insn *i = &c->insn;
    uint64_t *gpr = c->state.gpr, mask = address_mask(c, i->asize), disp = (uint64_t)(int64_t)i->disp;
    bool base = i->base < 16, index = i->index < 16;
    unsigned solved = base && i->base != RSP ? i->base : index && i->scale == 0 ? i->index : 16;
    if (index && i->index != solved)
        gpr[i->index] = (gpr[i->index] & ~mask) | ((uint64_t)rng_below(rng, 0x200) & mask);
    if (solved == 16 || (base && index && i->base == i->index)) {
        if (!base && !index && i->base != INSN_REG_RIP && c->decoded > 2) { /* the displacement itself */
            for (int at = c->decoded - 2; at > 0; at--) {
                uint64_t here = i->asize == 2 ? load_le16(c->code + at) : load_le32(c->code + at);
                if (here == (disp & (i->asize == 2 ? 0xffff : 0xffffffff)) && here > 0xff) {
                    memcpy(c->code + at, &target, i->asize == 2 ? 2 : 4);
                    break;
                }
            }
        }
        return;
    }
    uint64_t rest = disp;
    if (base && i->base != solved)
        rest += gpr[i->base];
    if (index && i->index != solved)
        rest += gpr[i->index] << i->scale;
    gpr[solved] = (gpr[solved] & ~mask) | ((target - rest) & mask);
}

static uint64_t effective_address(const struct kcase *c)
{
    const struct insn *i = &c->insn;
    uint64_t ea = (uint64_t)(int64_t)i->disp;
    ea += i->base < 16 ? c->state.gpr[i->base] : i->base == INSN_REG_RIP ? c->state.rip + (uint64_t)c->decoded : 0;
    ea += i->index < 16 ? c->state.gpr[i->index] << i->scale : 0;
    return ea & address_mask(c, i->asize);
}

static const struct x86_segment *operand_segment(const struct kcase *c)
{
    static const struct x86_segment none;
    return c->insn.segment < 6 ? &c->state.segment[c->insn.segment] : &none;
}

static bool is_flat(const struct kcase *c)
{
    return mode_infos[c->mode].bits == 64;
}

/* A value for the rm operand, in its register or in memory. */
static void set_rm(struct kcase *c, const void *bytes, unsigned size)
{
    if (c->insn.flags & INSN_MEM)
        add_patch(c, (operand_segment(c)->base + effective_address(c)) & (is_flat(c) ? ~UINT64_C(0) : 0xffffffff),
                  bytes, size);
    else if (c->insn.rm < 16 && size <= 8)
        memcpy(&c->state.gpr[c->insn.rm], bytes, size);
}

static void set_stack(struct kcase *c, const void *bytes, unsigned size)
{
    const struct x86_segment *ss = &c->state.segment[SS];
    uint64_t sp = c->state.gpr[RSP];
    if (!is_flat(c))
        sp = (ss->base + (sp & (ss->attributes & SEG_DB ? 0xffffffff : 0xffff))) & 0xffffffff;
    add_patch(c, sp, bytes, size);
}

static uint64_t some_target(struct rng *rng, const struct kcase *c)
{
    bool based = c->state.segment[CS].base || rng_percent(rng, 10);
    if (rng_percent(rng, 8))
        return random_integer(rng);
    return (based ? 0 : CODE) + 0x400 + rng_below(rng, 0x400);
}

/* A code selector that may be meant, or any. */
static uint16_t some_code(struct rng *rng, const struct kcase *c)
{
    static const uint16_t codes[] = {CODE64, CODE32, CODE16, USER_CODE32, USER_CODE64, USER_CODE16};
    if (c->mode == REAL16 || c->mode == V86)
        return (uint16_t)(rng_percent(rng, 85) ? CODE / 16 + rng_below(rng, 16) : rng_next(rng));
    return rng_percent(rng, 45) ? PICK(rng, codes) : random_selector(rng);
}

static uint64_t some_flags(struct rng *rng)
{
    uint64_t flags = rng_next(rng) & 0x3f7fd7;
    flags &= ~(uint64_t)(rng_percent(rng, 90) ? EFLAGS_VM : 0);
    flags &= ~(uint64_t)(rng_percent(rng, 85) ? EFLAGS_NT : 0);
    flags &= ~(uint64_t)(rng_percent(rng, 80) ? EFLAGS_VIP | EFLAGS_VIF : 0);
    return flags & ~(uint64_t)(EFLAGS_TF | EFLAGS_RF);
}

static void put_frame(struct rng *rng, struct kcase *c, bool iret)
{
    static const uint16_t stacks[] = {USER_DATA, DATA0};
    unsigned size = c->insn.osize, n = 0;
    uint64_t word[9];
    uint8_t bytes[72];
    word[n++] = some_target(rng, c);
    word[n++] = some_code(rng, c);
    if (iret)
        word[n++] = some_flags(rng);
    word[n++] = STACK3 - 0x40 - rng_below(rng, 64);
    word[n++] = rng_percent(rng, 70) ? PICK(rng, stacks) : random_selector(rng);
    while (n < 9)
        word[n++] = DATA / 16 + rng_below(rng, 256);
    for (unsigned i = 0; i < n; i++)
        memcpy(bytes + i * size, &word[i], size);
    set_stack(c, bytes, MIN(n * size, 64));
}

static uint64_t control_value(struct rng *rng, const struct kcase *c, unsigned reg)
{
    static const uint64_t bits0[] = {CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE,           CR0_WP,
                                     CR0_AM, CR0_NW, CR0_CD, CR0_PG, 1 << 8, UINT64_C(1) << 32};
    static const uint64_t bits4[] = {CR4_VME,        CR4_PVI,  CR4_TSD,      CR4_DE,    CR4_PSE,
                                     CR4_PAE,        CR4_MCE,  CR4_PGE,      CR4_PCE,   CR4_OSFXSR,
                                     CR4_OSXMMEXCPT, CR4_UMIP, CR4_FSGSBASE, CR4_PCIDE, CR4_OSXSAVE,
                                     CR4_SMEP,       CR4_SMAP, CR4_PKE,      1 << 15,   UINT64_C(1) << 40};
    uint64_t value = reg == 0 ? c->state.cr0 : reg == 3 ? c->state.cr3 : c->state.cr4;
    switch (reg) {
    case 0: case 4:
        for (unsigned n = rng_below(rng, 4); n; n--)
            value ^= reg ? PICK(rng, bits4) : PICK(rng, bits0);
        return value;
    case 3:
        return value ^ (rng_percent(rng, 50) ? 0 : rng_percent(rng, 70) ? 0x18 : UINT64_C(1) << rng_below(rng, 64));
    case 8:
        return rng_below(rng, 20);
    default:
        return random_integer(rng);
    }
}

static void place_msr(struct rng *rng, struct kcase *c)
{
    static const uint32_t msrs[] = {0x174,      0x175,      0x176,      0x277,      0xc0000080, 0xc0000081, 0xc0000082,
                                    0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0x2ff,
                                    0x200,      0x201,      0x20f,      0x250,      0x258,      0x26f,      0xfe};
    uint32_t index = PICK(rng, msrs);
    uint64_t value = random_integer(rng);
    if (index == 0xc0000080)
        value = c->state.efer ^ (rng_percent(rng, 60) ? UINT64_C(1) << rng_below(rng, 16) : 0);
    else if (index == 0x277 && rng_percent(rng, 70))
        value &= UINT64_C(0x0707070707070707);
    else if (rng_percent(rng, 40))
        value &= 0x7fffffffffff;
    c->state.gpr[RCX] = (c->state.gpr[RCX] & ~UINT64_C(0xffffffff)) | index;
    c->state.gpr[RAX] = (uint32_t)value;
    c->state.gpr[RDX] = value >> 32;
}

/* Changes an entry of the page tables over the page at `linear`, and what the control registers make of it. */
static void place_paging(struct rng *rng, struct kcase *c, uint64_t linear)
{
    static const uint64_t flips[] = {PTE_P, PTE_W,  PTE_U, PTE_A, PTE_D, PTE_NX, PTE_PS, UINT64_C(1) << 51,
                                     PTE_G, PTE_PWT};
    bool wide = mode_infos[c->mode].long_mode;
    if (linear >= (wide ? 0x200000u : 0x400000u))
        return;
    unsigned level = rng_percent(rng, 75) ? 0 : 1 + rng_below(rng, wide ? 3 : 1);
    uint64_t at = wide ? TABLES + 0x1000 * (3 - level) + 8 * (level ? 0 : linear >> 12)
                       : TABLES + 0x1000 * (1 - level) + 4 * (level ? 0 : linear >> 12);
    uint64_t entry = PTE_P | PTE_W | PTE_U | PTE_A | PTE_D |
                     (level ? TABLES + 0x1000 * ((wide ? 3u : 1u) - level + 1) : linear & ~UINT64_C(0xfff));
    for (unsigned n = 1 + rng_below(rng, 2); n; n--)
        entry ^= PICK(rng, flips);
    if (level && (entry & PTE_PS) && rng_percent(rng, 80))
        entry &= ~(uint64_t)0x1ff000; /* a large page at 0 */
    add_patch(c, at, &entry, wide ? 8 : 4);
    if (rng_percent(rng, 40))
        c->state.cr0 ^= CR0_WP;
    if (rng_percent(rng, 40))
        c->state.cr4 |= CR4_PSE;
    if (rng_percent(rng, 30))
        c->state.efer &= ~(uint64_t)EFER_NXE;
    if (rng_percent(rng, 30) && c->mode == LONG0) /* for SMAP; in ring 3 a paravirtual KVM has the host's CR0.AM */
        c->state.rflags |= EFLAGS_AC;
    if (rng_percent(rng, 30))
        c->state.cr4 |= CR4_SMAP;
    if (rng_percent(rng, 30))
        c->state.cr4 |= CR4_SMEP;
}

static void place_strings(struct rng *rng, struct kcase *c)
{
    uint64_t mask = address_mask(c, c->insn.asize), *gpr = c->state.gpr;
    unsigned size = c->insn.osize;
    const struct x86_segment *source = c->insn.segment < 6 ? &c->state.segment[c->insn.segment] : &c->state.segment[DS];
    gpr[RSI] = (gpr[RSI] & ~mask) | (choose_offset(rng, source, is_flat(c), size, mask) & mask);
    gpr[RDI] = (gpr[RDI] & ~mask) | (choose_offset(rng, &c->state.segment[ES], is_flat(c), size, mask) & mask);
    gpr[RCX] = (gpr[RCX] & ~mask) | rng_below(rng, 12);
}

static void place_special(struct rng *rng, struct kcase *c)
{
    static const uint16_t ports[] = {0x60, 0x80, 0xff, 0xfe, 0xfd, 0x100, 0xcfc, 0xffff};
    struct insn *i = &c->insn;
    uint64_t value = random_integer(rng);
    uint8_t bytes[16];
    memcpy(bytes, &value, 8);
    memcpy(bytes + 8, &value, 8);
    switch (i->op) {
    case OP_MOV_TO_SREG: case OP_LAR: case OP_LSL: case OP_VERR: case OP_VERW: case OP_LLDT: case OP_LTR: case OP_ARPL:
        store_le16(bytes, random_selector(rng));
        set_rm(c, bytes, 2);
        break;
    case OP_LDS: case OP_LES: case OP_LFS: case OP_LGS: case OP_LSS:
        store_le16(bytes + i->osize, random_selector(rng));
        set_rm(c, bytes, i->osize + 2u);
        break;
    case OP_JMP_FAR: case OP_CALL_FAR: {
        uint64_t target = some_target(rng, c);
        memcpy(bytes, &target, 8);
        store_le16(bytes + i->osize, some_code(rng, c));
        if (i->flags & INSN_MEM)
            set_rm(c, bytes, i->osize + 2u);
        else
            memcpy(c->code + c->decoded - i->osize - 2, bytes, i->osize + 2u);
        break;
    }
    case OP_JMP: case OP_CALL:
        value = some_target(rng, c);
        if (i->form == FORM_RM)
            set_rm(c, &value, 8);
        break;
    case OP_RET:
        value = some_target(rng, c);
        set_stack(c, &value, i->osize);
        break;
    case OP_RETF: case OP_IRET:
        put_frame(rng, c, i->op == OP_IRET);
        if (rng_percent(rng, 3) && i->op == OP_IRET)
            c->state.rflags |= EFLAGS_NT;
        break;
    case OP_POP_SREG:
        store_le16(bytes, random_selector(rng));
        set_stack(c, bytes, 8);
        break;
    case OP_POPF:
        value = some_flags(rng) | (rng_percent(rng, 5) ? EFLAGS_TF : 0);
        set_stack(c, &value, 8);
        break;
    case OP_MOV_TO_CR:
        c->state.gpr[i->rm] = control_value(rng, c, i->reg);
        break;
    case OP_MOV_TO_DR:
        c->state.gpr[i->rm] =
            i->reg == 7 ? value & 0xffff2700 : value & (rng_percent(rng, 80) ? 0xffffffff : ~UINT64_C(0));
        break;
    case OP_LMSW:
        value = (c->state.cr0 ^ rng_below(rng, 16)) | (value & 0xfff0);
        set_rm(c, &value, 2);
        break;
    case OP_LGDT: case OP_LIDT:
        store_le16(bytes, (uint16_t)(rng_percent(rng, 50) ? 0x7ff : rng_next(rng)));
        value = rng_percent(rng, 50) ? GDT : value;
        memcpy(bytes + 2, &value, 8);
        set_rm(c, bytes, 10);
        break;
    case OP_RDMSR: case OP_WRMSR:
        place_msr(rng, c);
        break;
    case OP_IN: case OP_OUT: case OP_INS: case OP_OUTS:
        store_le16((uint8_t *)&c->state.gpr[RDX], PICK(rng, ports));
        break;
    case OP_SYSEXIT: case OP_SYSRET:
        c->state.gpr[RCX] = i->op == OP_SYSRET ? some_target(rng, c) : STACK3;
        c->state.gpr[RDX] = some_target(rng, c);
        break;
    case OP_BT: case OP_BTS: case OP_BTR: case OP_BTC:
        if (i->form == FORM_RM_REG && i->reg < 16 && rng_percent(rng, 80) && i->reg != i->base && i->reg != i->index)
            c->state.gpr[i->reg] = (uint64_t)((int64_t)rng_below(rng, 256) - 64);
        break;
    case OP_XSETBV:
        c->state.gpr[RCX] = rng_percent(rng, 90) ? 0 : 1;
        c->state.gpr[RAX] = rng_below(rng, 16);
        c->state.gpr[RDX] = rng_percent(rng, 90) ? 0 : value;
        break;
    case OP_ENTER: case OP_LEAVE:
        c->state.gpr[RBP] = c->state.gpr[RSP] + rng_below(rng, 64);
        if (i->op == OP_ENTER)
            store_le16(c->code + c->decoded - 3, (uint16_t)rng_below(rng, rng_percent(rng, 80) ? 0x400 : 0x10000));
        break;
    case OP_BOUND:
        store_le16(bytes, 0), store_le32(bytes + i->osize, 0x7fff);
        if (rng_percent(rng, 70))
            set_rm(c, bytes, 2u * i->osize);
        break;
    }
}

void place_operands(struct rng *rng, struct kcase *c)
{
    uint64_t mask = address_mask(c, c->insn.asize), linear = 0;
    if (rng_percent(rng, 4)) /* the stack at an end */
        c->state.gpr[RSP] =
            rng_percent(rng, 50) ? rng_below(rng, 8) : (c->state.gpr[RSP] & ~UINT64_C(0xfff)) + rng_below(rng, 8);
    if (c->insn.flags & INSN_MEM) {
        unsigned size = c->insn.rm_size ? c->insn.rm_size : 8;
        aim_memory(rng, c, choose_offset(rng, operand_segment(c), is_flat(c), size, mask) & mask);
        linear = operand_segment(c)->base + effective_address(c);
    }
    switch (c->insn.op) {
    case OP_MOVS: case OP_CMPS: case OP_STOS: case OP_LODS: case OP_SCAS: case OP_INS: case OP_OUTS:
        place_strings(rng, c);
        linear = c->state.segment[ES].base + c->state.gpr[RDI];
        break;
    }
    place_special(rng, c);
    if (mode_infos[c->mode].paging && rng_percent(rng, linear ? 20 : 2))
        place_paging(rng, c, (linear ? linear : c->state.segment[CS].base + c->state.rip) & 0xffffffff);
}
