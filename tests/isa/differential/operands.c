/* SPDX-License-Identifier: MIT */
/* Values: where arithmetic has its edges. Addresses: where memory has its. */
#include <string.h>

#include "differential.h"

/* ---- values ---- */

uint64_t random_integer(struct rng *rng)
{
    static const uint64_t edges[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
                                     INT64_MAX, (uint64_t)INT64_MIN, UINT64_MAX, 0x100000000, 0x5555555555555555};
    uint64_t value = rng_next(rng);
    switch (rng_below(rng, 8)) {
    case 0: return edges[value % ARRAY_LEN(edges)];
    case 1: return value;
    case 2: return (uint64_t)((int64_t)value >> 32);
    case 3: return value & 63;
    case 4: return -(value & 63);
    case 5: return (UINT64_C(1) << (value & 63)) + (uint64_t)(int64_t)((int)(value >> 8 & 3) - 1);
    case 6: return value >> (value & 63);
    default: return (value & 0xff) * UINT64_C(0x0101010101010101);
    }
}

static uint32_t random_float(struct rng *rng)
{
    static const uint32_t edges[] = {0, 1, 0x007fffff, 0x00800000, 0x3f800000, 0x3f7fffff, 0x3f800001, 0x7f7fffff, 0x7f800000,
                                     0x7f800001, 0x7fc00000, 0x7fffffff, 0x4effffff, 0x4f000000, 0x4f7fffff, 0x5f000000, 0x3f000000};
    uint32_t bits = (uint32_t)rng_next(rng);
    switch (rng_below(rng, 4)) {
    case 0: return edges[bits % ARRAY_LEN(edges)] | (bits & 0x80000000);
    case 1: return bits;
    default: return (bits & 0x807fffff) | (110 + (bits >> 23) % 36) << 23;
    }
}

static uint64_t random_double(struct rng *rng)
{
    static const uint64_t edges[] = {
        0, 1, UINT64_C(0x000fffffffffffff), UINT64_C(0x0010000000000000), UINT64_C(0x3ff0000000000000), UINT64_C(0x3fefffffffffffff),
        UINT64_C(0x3ff0000000000001), UINT64_C(0x7fefffffffffffff), UINT64_C(0x7ff0000000000000), UINT64_C(0x7ff0000000000001),
        UINT64_C(0x7ff8000000000000), UINT64_C(0x7fffffffffffffff), UINT64_C(0x41dfffffffc00000), UINT64_C(0x41e0000000000000),
        UINT64_C(0x43e0000000000000), UINT64_C(0x36a0000000000000), UINT64_C(0x47efffffffffffff), UINT64_C(0x3fe0000000000000)};
    uint64_t bits = rng_next(rng);
    switch (rng_below(rng, 4)) {
    case 0: return edges[bits % ARRAY_LEN(edges)] | (bits & UINT64_C(1) << 63);
    case 1: return bits;
    default: return (bits & UINT64_C(0x800fffffffffffff)) | (1000 + (bits >> 52) % 50) << 52;
    }
}

static void random_extended(struct rng *rng, uint8_t *bytes)
{
    static const uint16_t exponents[] = {0, 0, 1, 0x3fff, 0x3ffe, 0x7ffe, 0x7fff, 0x7fff, 0x403e, 0x401e, 0x3fbf, 0x43fe, 0x3c01};
    static const uint64_t significands[] = {0, 1, UINT64_C(0x8000000000000000), UINT64_C(0xc000000000000000), UINT64_C(0x8000000000000001),
                                            UINT64_MAX, INT64_MAX, UINT64_C(0xa000000000000000), UINT64_C(0x4000000000000000)};
    uint64_t bits = rng_next(rng), significand = bits | UINT64_C(1) << 63;
    unsigned exponent = 0x3fff - 40 + rng_below(rng, 80);
    if (rng_percent(rng, 30))
        exponent = exponents[rng_below(rng, ARRAY_LEN(exponents))];
    if (rng_percent(rng, 30))
        significand = significands[rng_below(rng, ARRAY_LEN(significands))];
    if (rng_percent(rng, 10)) { /* anything, unnormals and MMX values among it */
        exponent = (unsigned)(bits >> 20) & 0x7fff;
        significand = rng_next(rng);
    }
    store_le64(bytes, significand);
    store_le16(bytes + 8, (uint16_t)(exponent | (rng_percent(rng, 40) ? 0x8000 : 0)));
}

/* An operand of any kind: floats, doubles, integers, decimal digits. */
void random_image(struct rng *rng, uint8_t *bytes, unsigned size)
{
    unsigned kind = rng_below(rng, 8);
    uint8_t value[16];
    for (unsigned at = 0; at < size; at += kind == 6 ? 10 : 8) {
        if (kind < 2) {
            store_le32(value, random_float(rng));
            store_le32(value + 4, random_float(rng));
        } else if (kind < 4) {
            store_le64(value, random_double(rng));
        } else if (kind == 6) {
            random_extended(rng, value);
        } else if (kind == 7 && rng_percent(rng, 50)) {
            store_le64(value, rng_next(rng) & UINT64_C(0x0707070707070707)); /* decimal, and shuffles within bounds */
        } else {
            store_le64(value, random_integer(rng));
        }
        unsigned step = kind == 6 ? 10 : 8;
        memcpy(bytes + at, value, MIN(step, size - at));
    }
}

static uint32_t random_mxcsr(struct rng *rng)
{
    uint32_t bits = (uint32_t)rng_next(rng);
    switch (rng_below(rng, 8)) {
    case 0: return bits & 0xffff;
    case 1: return 0x1f80 | (bits & 0xe07f);
    case 2: return 0x1f80 | (bits & 0x6000);
    case 3: return (bits & 0x1f80) | (bits & 0x8040);
    default: return 0x1f80;
    }
}

static void random_x87(struct rng *rng, uint8_t *area)
{
    static const uint16_t controls[] = {0x37f, 0x37f, 0x37f, 0x27f, 0x07f, 0xf7f, 0xb7f, 0x77f, 0x340, 0x360, 0x34d};
    uint16_t control = controls[rng_below(rng, ARRAY_LEN(controls))], status = 0;
    uint64_t bits = rng_next(rng);
    if (rng_percent(rng, 10))
        control = (uint16_t)((bits & 0x0f3f) | 0x40);
    if (rng_percent(rng, 60))
        status = (bits >> 16) & 0x7f00;
    if (rng_percent(rng, 15))
        status |= (bits >> 32) & 0x7f;
    if (rng_percent(rng, 85)) /* nothing pending */
        status &= ~(~control & 0x3f);
    if (status & ~control & 0x3f)
        status |= 0x8080;
    store_le16(area, control);
    store_le16(area + 2, status);
    area[4] = rng_percent(rng, 70) ? 0xff : rng_percent(rng, 30) ? 0 : (uint8_t)(bits >> 48);
    for (unsigned i = 0; i < 8; i++)
        random_extended(rng, area + 32 + 16 * i);
}

void random_state(struct rng *rng, struct diff_case *c)
{
    uint64_t bits = rng_next(rng);
    for (unsigned i = 0; i < 16; i++)
        c->gpr[i] = random_integer(rng) & (c->mode == INSN_MODE_64 ? UINT64_MAX : UINT32_MAX);
    c->rflags = EFLAGS_FIXED | EFLAGS_IF | (bits & EFLAGS_STATUS);
    if (rng_percent(rng, 20))
        c->rflags |= EFLAGS_DF;
    if (rng_percent(rng, 3))
        c->rflags |= EFLAGS_AC;
    if (rng_percent(rng, 2))
        c->rflags |= EFLAGS_TF;
    memset(c->xsave, 0, XSAVE_BYTES);
    random_x87(rng, c->xsave);
    store_le32(c->xsave + 24, random_mxcsr(rng));
    for (unsigned i = 0; i < 16; i++) {
        random_image(rng, c->xsave + 160 + 16 * i, 16);
        random_image(rng, c->xsave + 576 + 16 * i, 16);
    }
    store_le64(c->xsave + 512, XCR0_X87 | XCR0_SSE | XCR0_AVX);
}

/* ---- addresses ---- */

/* For an operand of `size` bytes: mostly where it is fine, sometimes across pages, read-only, or not there. */
static uint64_t choose_address(struct rng *rng, unsigned size, unsigned align)
{
    uint64_t pages = DATA_BASE + (rng_percent(rng, 80) ? 0 : 3 * PAGE), address;
    unsigned span = pages == DATA_BASE ? 2 * PAGE : PAGE;
    switch (rng_below(rng, 32)) {
    case 0: /* across two pages that are fine */
        return DATA_BASE + PAGE - rng_below(rng, size ? size : 1);
    case 1: /* into the read-only one */
        return DATA_BASE + READ_ONLY_PAGE * PAGE - rng_below(rng, size + 1);
    case 2:
        return DATA_BASE + READ_ONLY_PAGE * PAGE + rng_below(rng, PAGE);
    case 3: /* over either end */
        return rng_percent(rng, 50) ? DATA_BASE - rng_below(rng, size + 1) : DATA_BASE + DATA_BYTES - rng_below(rng, size + 1);
    case 4: /* nowhere; not canonical; the kernel's */
        address = rng_next(rng);
        switch (address & 3) {
        case 0: return DATA_BASE + DATA_BYTES + rng_below(rng, PAGE);
        case 1: return UINT64_C(0x00007fffffffffff) - rng_below(rng, 64);
        case 2: return (address & UINT64_C(0x0000ffffffffffff)) | UINT64_C(0x1234) << 48;
        default: return UINT64_C(0xffffc00000000000) + rng_below(rng, 1 << 20);
        }
    default:
        address = pages + rng_below(rng, span - MIN(size, span - 1));
        return rng_percent(rng, 80) ? align_down(address, align) : address;
    }
}

/* Puts bytes where they are in data pages; the rest is dropped. */
static void patch(struct diff_case *c, uint64_t address, const uint8_t *bytes, unsigned size)
{
    unsigned used = 0;
    uint64_t end = address + size;
    if (end < address)
        return;
    for (unsigned i = 0; i < c->patches; i++)
        used += c->patch[i].size;
    for (uint64_t at = address; at < end; at++)
        if (at < DATA_BASE || at >= DATA_BASE + DATA_BYTES || (at - DATA_BASE) / PAGE == READ_ONLY_PAGE) {
            if (at != address)
                end = at;
            else
                return;
        }
    size = (unsigned)(end - address);
    if (c->patches == PATCHES || used + size > PATCH_BYTES)
        return;
    c->patch[c->patches++] = (struct patch){(uint16_t)(address - DATA_BASE), (uint16_t)size};
    memcpy(c->patch_bytes + used, bytes, size);
}

static void patch64(struct diff_case *c, uint64_t address, uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    patch(c, address, bytes, 8);
}

/* The base of the memory operand's segment. */
static uint64_t operand_base(const struct diff_case *c)
{
    return base_of(c, c->insn.segment);
}

/* An offset for a register that an address of `size` bytes is made of: what the processor does not look at is garbage. */
static uint64_t as_register(struct rng *rng, const struct diff_case *c, uint64_t offset, unsigned size, unsigned percent)
{
    if (size == 8 || !rng_percent(rng, percent))
        return size == 8 ? offset : offset & bits_mask_bytes(size);
    uint64_t garbage = rng_next(rng) & ~bits_mask_bytes(size);
    return (offset & bits_mask_bytes(size)) | (c->mode == INSN_MODE_64 ? garbage : garbage & UINT32_MAX);
}

static unsigned stack_size(const struct diff_case *c)
{
    struct x86_segment ss;
    if (c->mode == INSN_MODE_64)
        return 8;
    return segment_of(c->selector[SS], &ss) && ss.attributes & SEG_DB ? 4 : 2;
}

/* rSP or rBP for the stack at a linear address. */
static uint64_t as_stack_pointer(struct rng *rng, const struct diff_case *c, uint64_t linear)
{
    return as_register(rng, c, linear - base_of(c, SS), stack_size(c), 70);
}

/* Where a segment ends or begins, as a linear address: the operand is across its limit, at it, or just within. */
static uint64_t at_limit(struct rng *rng, const struct diff_case *c, unsigned segment, unsigned size)
{
    struct x86_segment found = {0};
    uint64_t edge;
    if (!segment_of(c->selector[segment], &found))
        return rng_below(rng, PAGE);
    edge = rng_percent(rng, 80) ? (uint64_t)found.limit + 1 : rng_percent(rng, 50) ? 0 : 0x10000;
    return found.base + edge + rng_below(rng, 4) - rng_below(rng, size + 3);
}

/* An address for an operand in a segment. */
static uint64_t choose_in_segment(struct rng *rng, const struct diff_case *c, unsigned segment, unsigned size, unsigned align)
{
    if (c->mode != INSN_MODE_64 && segment < 6 && rng_percent(rng, 12))
        return at_limit(rng, c, segment, size);
    return choose_address(rng, size, align);
}

static uint64_t register_value(const struct diff_case *c, unsigned r)
{
    return r == INSN_REG_RIP ? c->rip + c->length : r == INSN_REG_NONE ? 0 : c->gpr[r];
}

static uint64_t effective_address(const struct diff_case *c, bool vsib)
{
    const struct insn *in = &c->insn;
    uint64_t offset = register_value(c, in->base) + (uint64_t)(int64_t)in->disp;
    if (!in->modrm && in->base == INSN_REG_NONE)
        offset = in->imm; /* moffs */
    else if (!vsib)
        offset += register_value(c, in->index) << in->scale;
    offset = (offset & bits_mask_bytes(in->asize)) + operand_base(c);
    return c->mode == INSN_MODE_64 ? offset : (uint32_t)offset;
}

/* Sets what the address is made of, but no register of `pinned`. */
static void aim(struct rng *rng, struct diff_case *c, uint64_t target, uint32_t pinned, bool vsib, unsigned displacement_at)
{
    struct insn *in = &c->insn;
    uint64_t offset = target - operand_base(c), rest;
    bool has_index = !vsib && in->index < 16;

    if (!in->modrm && in->base == INSN_REG_NONE) {
        unsigned at = c->length - in->asize; /* moffs stands last */
        for (unsigned i = 0; i < in->asize; i++)
            c->code[at + i] = (uint8_t)(offset >> (8 * i));
        in->imm = offset & bits_mask_bytes(in->asize);
        return;
    }
    rest = offset - (uint64_t)(int64_t)in->disp;
    if (has_index && in->index == in->base && !(pinned >> in->base & 1)) {
        c->gpr[in->base] = as_register(rng, c, rest / (1 + (1u << in->scale)), in->asize, 0);
    } else if (in->base < 16 && !(pinned >> in->base & 1)) {
        c->gpr[in->base] = as_register(rng, c, rest - (has_index ? c->gpr[in->index] << in->scale : 0), in->asize, 80);
    } else if (has_index && !(pinned >> in->index & 1)) {
        c->gpr[in->index] = as_register(rng, c, (rest - register_value(c, in->base)) >> in->scale, in->asize, 0);
    } else if (displacement_at) {
        uint64_t displacement = offset - register_value(c, in->base) - (has_index ? c->gpr[in->index] << in->scale : 0);
        if (in->asize == 2)
            store_le16(c->code + displacement_at, (uint16_t)displacement);
        else
            store_le32(c->code + displacement_at, (uint32_t)displacement);
        in->disp = in->asize == 2 ? (int16_t)displacement : (int32_t)displacement;
    }
}

/* ---- operations with ideas of their own ---- */

uint64_t choose_target(struct rng *rng, const struct diff_case *c)
{
    uint64_t target, here = code_linear(c);
    switch (rng_below(rng, 12)) {
    case 0: return DATA_BASE + rng_below(rng, DATA_BYTES);
    case 1: return rng_percent(rng, 50) ? UINT64_C(0x0000800000000000) : rng_next(rng) | UINT64_C(1) << 62;
    case 2: return CODE_BASE + CODE_BYTES + rng_below(rng, PAGE);
    default:
        do
            target = CODE_BASE + rng_below(rng, CODE_BYTES);
        while (target + 32 > here && target < here + 32);
        return target;
    }
}

static bool takes_selector(unsigned op)
{
    switch (op) {
    case OP_MOV_TO_SREG: case OP_LAR: case OP_LSL: case OP_VERR: case OP_VERW:
        return true;
    }
    return false;
}

static bool takes_far_pointer(unsigned op)
{
    return op == OP_LFS || op == OP_LGS || op == OP_LSS || op == OP_LES || op == OP_LDS;
}

static bool uses_stack(unsigned op)
{
    switch (op) {
    case OP_PUSH: case OP_POP: case OP_PUSHF: case OP_POPF: case OP_CALL: case OP_RET: case OP_ENTER: case OP_LEAVE:
    case OP_PUSH_SREG: case OP_POP_SREG: case OP_CALL_FAR: case OP_RETF: case OP_IRET: case OP_PUSHA: case OP_POPA:
        return true;
    }
    return false;
}

/* CS:rIP, and behind it what IRET and RETF to another ring take. */
static void far_frame(struct rng *rng, struct diff_case *c, uint64_t top, unsigned size)
{
    uint8_t frame[40];
    uint16_t selector = choose_code_selector(rng, c);
    struct x86_segment segment = {0};
    segment_of(selector, &segment);
    uint64_t words[5] = {choose_target(rng, c) - segment.base, selector,
                         rng_next(rng) & ~(uint64_t)(EFLAGS_TF | EFLAGS_NT | EFLAGS_VM), choose_address(rng, 8, 8),
                         rng_percent(rng, 90) ? USER_SS : choose_selector(rng)};
    for (unsigned i = 0; i < 5; i++)
        memcpy(frame + size * i, &words[i], size);
    patch(c, top, frame, size * 5);
}

static uint32_t place_stack(struct rng *rng, struct diff_case *c)
{
    unsigned op = c->insn.op, size = c->insn.osize > 8 ? 8 : c->insn.osize;
    uint64_t top = choose_in_segment(rng, c, SS, rng_percent(rng, 50) ? size : 64, 8);
    c->gpr[op == OP_LEAVE ? RBP : RSP] = as_stack_pointer(rng, c, top);
    if (op == OP_ENTER && rng_percent(rng, 90))
        c->gpr[RBP] = as_stack_pointer(rng, c, choose_in_segment(rng, c, SS, size, 8));
    if (op == OP_RET) {
        patch64(c, top, choose_target(rng, c) - base_of(c, CS));
    } else if (op == OP_POPF) {
        uint64_t flags = rng_next(rng);
        patch64(c, top, rng_percent(rng, 50) ? flags & ~(uint64_t)(EFLAGS_TF | EFLAGS_AC) : flags);
    } else if (op == OP_POP_SREG) {
        patch64(c, top, (rng_next(rng) & ~UINT64_C(0xffff)) | choose_selector(rng));
    } else if (op == OP_RETF || op == OP_IRET) {
        far_frame(rng, c, top, size);
    }
    return 1u << RSP | 1u << RBP;
}

static uint32_t place_string(struct rng *rng, struct diff_case *c)
{
    struct insn *in = &c->insn;
    uint64_t source = choose_in_segment(rng, c, in->segment, in->osize, in->osize);
    uint64_t destination = choose_in_segment(rng, c, ES, in->osize, in->osize);
    uint64_t count = rng_percent(rng, 90) ? rng_below(rng, 12) : rng_percent(rng, 90) ? rng_below(rng, 300) : rng_next(rng);
    if (rng_percent(rng, 15)) /* overlapping, and across pages */
        destination = source + rng_below(rng, 33) - 16;
    c->gpr[RSI] = as_register(rng, c, source - operand_base(c), in->asize, 100);
    c->gpr[RDI] = as_register(rng, c, destination - base_of(c, ES), in->asize, 100);
    c->gpr[RCX] = as_register(rng, c, count, in->asize, 100);
    uint8_t same[64];
    random_image(rng, same, sizeof same);
    if (in->op == OP_SCAS)
        for (unsigned i = 0; i < sizeof same; i++)
            same[i] = (uint8_t)(c->gpr[RAX] >> (8 * (i & 7)));
    if (in->op == OP_CMPS && rng_percent(rng, 70))
        patch(c, source, same, sizeof same);
    same[rng_below(rng, sizeof same)] ^= 1;
    patch(c, destination, same, sizeof same);
    return 0;
}

static void place_vsib(struct rng *rng, struct diff_case *c)
{
    unsigned index = c->insn.index & 15, step = c->insn.op == OP_VPGATHERDD || c->insn.op == OP_VPGATHERDQ ||
                     c->insn.op == OP_VGATHERDPS || c->insn.op == OP_VGATHERDPD ? 4 : 8;
    for (unsigned at = 0; at < 32; at += step) {
        int64_t value = (int64_t)rng_below(rng, 512) - 256;
        if (rng_percent(rng, 4))
            value = (int64_t)rng_next(rng) >> 46;
        memcpy((at < 16 ? c->xsave + 160 : c->xsave + 576 - 16) + 16 * index + at, &value, step);
    }
}

/* Images that state is loaded from. */
static unsigned load_image(struct rng *rng, struct diff_case *c, uint8_t *image)
{
    unsigned op = c->insn.op;
    switch (op) {
    case OP_FXRSTOR:
        memcpy(image, c->xsave, 512);
        random_image(rng, image + 160, 256);
        random_x87(rng, image);
        store_le32(image + 24, rng_percent(rng, 90) ? random_mxcsr(rng) : (uint32_t)rng_next(rng));
        return 512;
    case OP_XRSTOR:
        memcpy(image, c->xsave, XSAVE_BYTES);
        random_image(rng, image + 160, 256);
        random_image(rng, image + 576, 256);
        random_x87(rng, image);
        store_le32(image + 24, rng_percent(rng, 90) ? random_mxcsr(rng) : (uint32_t)rng_next(rng));
        memset(image + 512, 0, 64);
        image[512] = (uint8_t)(rng_next(rng) & 7);
        if (rng_percent(rng, 3)) /* nobody has this one; what lies between depends on the host's XCR0 */
            image[519] = 0x40;
        if (rng_percent(rng, 30))
            store_le64(image + 520, UINT64_C(1) << 63 | (rng_percent(rng, 80) ? 7 : rng_next(rng) & 7));
        if (rng_percent(rng, 5))
            image[520 + rng_below(rng, 56)] ^= 1;
        return XSAVE_BYTES;
    case OP_FRSTOR: case OP_FLDENV: {
        uint8_t area[160];
        unsigned step = c->insn.osize == 2 ? 2 : 4;
        random_image(rng, image, 108);
        random_x87(rng, area);
        memcpy(image, area, 2);
        memcpy(image + step, area + 2, 2);
        return 108;
    }
    case OP_LDMXCSR: case OP_VLDMXCSR:
        store_le32(image, rng_percent(rng, 85) ? random_mxcsr(rng) : (uint32_t)rng_next(rng));
        return 4;
    }
    return 0;
}

static bool is_xsave(unsigned op)
{
    return op == OP_XSAVE || op == OP_XSAVEOPT || op == OP_XSAVEC || op == OP_XRSTOR || op == OP_XSAVES || op == OP_XRSTORS;
}

/* The rest of what an operation needs, once its memory operand has its place. */
static void adjust_values(struct rng *rng, struct diff_case *c, uint64_t address)
{
    const struct insn *in = &c->insn;
    bool memory = in->flags & INSN_MEM;
    uint8_t image[PATCH_BYTES];
    unsigned size = load_image(rng, c, image);

    if (!size) {
        size = in->rm_size ? in->rm_size : 32;
        random_image(rng, image, size);
    }
    if (in->op == OP_CMPXCHG && memory && rng_percent(rng, 50))
        memcpy(image, &c->gpr[RAX], 8);
    if ((in->op == OP_CMPXCHG8B || in->op == OP_CMPXCHG16B) && rng_percent(rng, 50)) {
        unsigned half = in->op == OP_CMPXCHG8B ? 4 : 8;
        memcpy(image, &c->gpr[RAX], half);
        memcpy(image + half, &c->gpr[RDX], half);
    }
    if (in->op == OP_JMP || in->op == OP_CALL) {
        uint64_t target = choose_target(rng, c) - base_of(c, CS);
        if (memory)
            memcpy(image, &target, 8);
        else if (in->form == FORM_RM && in->rm != RSP)
            c->gpr[in->rm] = c->mode == INSN_MODE_64 ? target : (uint32_t)target;
    }
    if (takes_selector(in->op)) {
        uint16_t selector = choose_selector(rng);
        store_le16(image, selector);
        if (!memory)
            c->gpr[in->rm] = (c->gpr[in->rm] & ~UINT64_C(0xffff)) | selector;
    }
    if (takes_far_pointer(in->op)) {
        random_image(rng, image, 16);
        store_le16(image + in->osize, choose_selector(rng));
        size = in->osize + 2;
    }
    if (in->op == OP_JMP_FAR || in->op == OP_CALL_FAR) {
        uint16_t selector = choose_code_selector(rng, c);
        struct x86_segment segment = {0};
        segment_of(selector, &segment);
        uint64_t target = choose_target(rng, c) - segment.base;
        unsigned offset = in->osize;
        memset(image, 0, 16);
        memcpy(image, &target, offset);
        store_le16(image + offset, selector);
        size = offset + 2;
    }
    if (memory)
        patch(c, address, image, size);
}

void place_operands(struct rng *rng, struct diff_case *c, unsigned displacement_at)
{
    struct insn *in = &c->insn;
    unsigned op = in->op, size = in->rm_size ? in->rm_size : 64, align = size & (size - 1) ? 1 : size;
    uint32_t pinned = 0;
    bool vsib = false;

    for (unsigned i = 0; i < 4; i++) {
        uint8_t class = operand_infos[isa_rows[in->row].operand[i]].class;
        vsib |= class == CLASS_VSIB_X || class == CLASS_VSIB_DQ;
    }
    if (uses_stack(op))
        pinned |= place_stack(rng, c);
    else if (rng_percent(rng, 50))
        c->gpr[RSP] = as_stack_pointer(rng, c, DATA_BASE + 8 * rng_below(rng, PAGE / 8));
    switch (op) {
    case OP_MOVS: case OP_CMPS: case OP_STOS: case OP_LODS: case OP_SCAS:
        place_string(rng, c);
        return;
    case OP_XLAT:
        c->gpr[RBX] = choose_in_segment(rng, c, in->segment, 1, 1) - (c->gpr[RAX] & 0xff) - operand_base(c);
        c->gpr[RBX] = as_register(rng, c, c->gpr[RBX], in->asize, 50);
        return;
    case OP_MASKMOVQ: case OP_MASKMOVDQU: case OP_VMASKMOVDQU:
        c->gpr[RDI] = as_register(rng, c, choose_in_segment(rng, c, in->segment, 16, 16) - operand_base(c), in->asize, 50);
        return;
    case OP_LOOP: case OP_LOOPE: case OP_LOOPNE: case OP_JCXZ:
        if (rng_percent(rng, 70))
            c->gpr[RCX] = as_register(rng, c, rng_below(rng, 4), in->asize, 30);
        return;
    case OP_DIV: case OP_IDIV:
        if (rng_percent(rng, 60))
            c->gpr[RDX] = op == OP_IDIV && rng_percent(rng, 50) ? (uint64_t)((int64_t)c->gpr[RAX] >> 63) : rng_below(rng, 64);
        if (in->osize == 1 && rng_percent(rng, 50))
            c->gpr[RAX] &= 0xfff;
        pinned |= 1u << RAX | 1u << RDX;
        break;
    case OP_CMPXCHG:
        if (!(in->flags & INSN_MEM) && rng_percent(rng, 50))
            c->gpr[RAX] = c->gpr[in->rm & 15];
        break;
    case OP_BT: case OP_BTS: case OP_BTR: case OP_BTC:
        if (in->form == FORM_RM_REG && in->flags & INSN_MEM && rng_percent(rng, 95)) {
            c->gpr[in->reg] = (uint64_t)((int64_t)rng_below(rng, 4096) - 2048) & (c->mode == INSN_MODE_64 ? UINT64_MAX : UINT32_MAX);
            pinned |= 1u << in->reg;
            size = 4;
        }
        break;
    }
    if (is_xsave(op)) {
        c->gpr[RAX] = rng_percent(rng, 60) ? 7 : rng_next(rng) & 7;
        c->gpr[RDX] = rng_percent(rng, 90) ? 0 : c->gpr[RDX] & UINT64_C(0xffffffff00000000);
        pinned |= 1u << RAX | 1u << RDX;
        size = XSAVE_BYTES;
        align = 64;
    }
    if (op == OP_FXSAVE || op == OP_FXRSTOR) {
        size = 512;
        align = 16;
    }
    if (vsib)
        place_vsib(rng, c);
    uint64_t address = 0;
    if (in->flags & INSN_MEM) {
        aim(rng, c, choose_in_segment(rng, c, in->segment, size, align), pinned, vsib, displacement_at);
        address = effective_address(c, vsib);
    }
    adjust_values(rng, c, address);
}
