/* SPDX-License-Identifier: MIT */
/* Programs: instructions one after another, some of them jumping among themselves, some in a loop, some written by
 * others. Behind the last, and wherever a jump goes astray, is HLT. */
#include "blocks.h"

#define NOWHERE UNITS

struct maker {
    struct rng rng;
    struct program *p;
    uint64_t linear; /* of the program's first byte */
    unsigned bits;
    const struct feature_set *features;
    struct {
        unsigned at, size, unit; /* a displacement or an address, and the unit meant */
        bool absolute;           /* the address of the unit's immediate byte */
    } fix[UNITS];
    unsigned fixes;
    bool is_byte_move[UNITS]; /* MOV reg8, imm8: may be written */
};

static uint16_t wanted[5][4096]; /* rows by kind, for the mode at hand */
static unsigned wanted_count[5];

static void collect_rows(enum mode mode, const struct feature_set *features)
{
    static enum mode collected = MODES;
    if (mode == collected)
        return;
    collected = mode;
    memset(wanted_count, 0, sizeof wanted_count);
    for (unsigned i = 0; i < isa_row_count; i++) {
        unsigned kind = op_infos[isa_rows[i].op].kind;
        if (row_wanted(i, mode, features))
            wanted[kind][wanted_count[kind]++] = (uint16_t)i;
    }
}

static unsigned some_row(struct rng *rng)
{
    static const uint8_t kinds[] = {OPK_INT, OPK_INT, OPK_INT, OPK_INT, OPK_INT, OPK_INT, OPK_MEM, OPK_MEM, OPK_NATIVE, OPK_NATIVE,
                                    OPK_CTRL, OPK_CTRL, OPK_INT, OPK_NATIVE, OPK_INT, OPK_SYS};
    unsigned kind = PICK(rng, kinds);
    return wanted[kind][rng_below(rng, wanted_count[kind])];
}

static void put(struct maker *m, unsigned byte)
{
    if (m->p->length < PROGRAM_BYTES)
        m->p->bytes[m->p->length++] = (uint8_t)byte;
}

static void put_value(struct maker *m, uint64_t value, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        put(m, value >> (8 * i) & 0xff);
}

static void fix_later(struct maker *m, unsigned at, unsigned size, unsigned unit, bool absolute)
{
    if (m->fixes < UNITS)
        m->fix[m->fixes++] = (typeof(m->fix[0])){at, size, unit, absolute};
}

/* Flags that the manual leaves undefined, and that the two do leave in different states: the interpreter as they were,
 * the translator as the host's instruction does. */
static bool flags_are_anyones(const struct insn *in)
{
    switch (in->op) {
    case OP_MUL: case OP_IMUL: case OP_DIV: case OP_IDIV: case OP_BT: case OP_BTS: case OP_BTR: case OP_BTC:
    case OP_BSF: case OP_BSR: case OP_LZCNT: case OP_TZCNT:
        return true;
    default:
        return false;
    }
}

static void put_row(struct maker *m)
{
    struct program *p = m->p;
    uint8_t bytes[32];
    struct insn in;
    unsigned length = 0;
    uint32_t window = p->windows ? WINDOWS + p->units * DATA_BYTES - DATA : 0;
    for (unsigned tries = 0; !length && tries < 20; tries++)
        length = encode(&m->rng, some_row(&m->rng), p->mode, m->linear + p->length, window, bytes, &in);
    if (!length || p->length + length + 8 > PROGRAM_BYTES)
        return;
    unsigned at = p->length;
    for (unsigned i = 0; i < length; i++)
        put(m, bytes[i]);
    p->writes_ports |= in.op == OP_OUT;
    if (in.form == FORM_REL && rng_percent(&m->rng, 95)) {
        unsigned size = operand_infos[isa_rows[in.row].operand[0]].type == TYPE_B ? 1 : in.osize == 2 && m->bits != 64 ? 2 : 4;
        bool back = rng_percent(&m->rng, 12);
        unsigned to = back ? rng_below(&m->rng, p->units + 1) : p->units + 1 + rng_below(&m->rng, 4);
        fix_later(m, at + length - size, size, to, false);
    }
    if (flags_are_anyones(&in)) {
        put(m, 0x38);
        put(m, 0xc0 | rng_below(&m->rng, 64)); /* cmp r8, r8 */
    }
}

/* MOV byte [..], imm8 into the immediate byte of another unit. */
static void put_code_write(struct maker *m)
{
    unsigned target = rng_below(&m->rng, UNITS);
    if (m->bits == 16 && m->p->mode != REAL16)
        return; /* the code segment cannot be written */
    if (m->p->mode == REAL16)
        put(m, 0x2e);
    put(m, 0xc6);
    put(m, m->bits == 64 ? 0x04 : m->bits == 32 ? 0x05 : 0x06);
    if (m->bits == 64)
        put(m, 0x25);
    fix_later(m, m->p->length, m->bits == 16 ? 2 : 4, target, true);
    put_value(m, 0, m->bits == 16 ? 2 : 4);
    put(m, (unsigned)rng_next(&m->rng) & 0xff);
}

static void put_byte_move(struct maker *m)
{
    m->is_byte_move[m->p->units] = true;
    put(m, 0xb0 + rng_below(&m->rng, 3));
    put(m, (unsigned)rng_next(&m->rng) & 0xff);
}

/* DEC byte [COUNTER]; JNZ to the first unit. */
static void put_loop_end(struct maker *m)
{
    uint32_t counter = COUNTER - DATA + data_offset(m->p->mode);
    put(m, 0xfe);
    put(m, m->bits == 64 ? 0x0c : m->bits == 32 ? 0x0d : 0x0e);
    if (m->bits == 64)
        put(m, 0x25);
    put_value(m, counter, m->bits == 16 ? 2 : 4);
    put(m, 0x0f);
    put(m, 0x85);
    fix_later(m, m->p->length, m->bits == 16 ? 2 : 4, 0, false);
    put_value(m, 0, m->bits == 16 ? 2 : 4);
}

static void put_fixes(struct maker *m)
{
    struct program *p = m->p;
    for (unsigned i = 0; i < m->fixes; i++) {
        unsigned unit = MIN(m->fix[i].unit, p->units), at = m->fix[i].at, size = m->fix[i].size;
        uint64_t value = p->unit[unit] - (uint64_t)(at + size);
        if (m->fix[i].absolute) {
            /* the next one that may be written; else a byte that nobody reads */
            while (unit < p->units && !m->is_byte_move[unit])
                unit++;
            uint64_t byte = unit < p->units ? p->unit[unit] + 1 : p->length + 20;
            value = (m->bits == 16 ? p->state.rip : m->linear) + byte;
        }
        if (at + size <= p->length)
            memcpy(p->bytes + at, &value, size);
    }
}

/* ---- the state ---- */

static void place_pointers(struct maker *m)
{
    static const uint8_t pointers[] = {RBX, RBP, RSI, RDI, R8, R13};
    struct x86_state *s = &m->p->state;
    for (unsigned i = 0; i < ARRAY_LEN(pointers); i++) {
        unsigned page = 1 + 2 * i + rng_below(&m->rng, 2);
        unsigned in_page = rng_percent(&m->rng, 20) ? 0xfe0 + rng_below(&m->rng, 32) : 0x80 + 16 * rng_below(&m->rng, 0xe0);
        s->gpr[pointers[i]] = data_offset(m->p->mode) + page * 0x1000 + in_page;
    }
    if (m->bits == 16) /* BP goes with the stack's segment */
        s->gpr[RBP] = (mode_infos[m->p->mode].user ? STACK3 : STACK0) - 0x100 - rng_below(&m->rng, 64);
    s->gpr[RCX] = rng_below(&m->rng, 40);
    s->gpr[RDX] = rng_below(&m->rng, 200);
}

static void place_segments(struct maker *m)
{
    struct x86_state *s = &m->p->state;
    bool user = mode_infos[m->p->mode].user, real = m->p->mode == REAL16 || m->p->mode == V86;
    const struct x86_segment flat = {user ? USER_DATA : DATA0, user ? 0xc0f3 : 0xc093, 0xffffffff, 0};
    const struct x86_segment small = {real ? DATA / 16 : flat.selector, user ? 0x00f3 : 0x0093, 0xffff, DATA};
    for (unsigned i = 0; i < 6; i++)
        if (i != CS && i != SS)
            s->segment[i] = m->bits == 16 ? small : flat;
    if (m->bits == 64)
        s->segment[FS].base = 0x40, s->segment[GS].base = 0x100;
}

static void place_state(struct maker *m, const uint8_t *image)
{
    struct x86_state *s = &m->p->state;
    world_state(&m->rng, s, m->p->mode, image);
    place_segments(m);
    place_pointers(m);
    if (s->cr0 & CR0_PE) {
        s->cr4 |= CR4_OSXSAVE;
        s->xcr0 = 7;
    }
    s->rflags |= EFLAGS_IF;
    for (unsigned i = 0; i < 32; i++)
        store_le64(s->xsave + 160 + 8 * i, random_integer(&m->rng));
    store_le64(s->xsave + 512, 7);
    if (rng_percent(&m->rng, 15)) /* some exceptions unmasked */
        store_le32(s->xsave + 24, 0x1f80 & ~((unsigned)rng_next(&m->rng) & 0x1f80));
    if (rng_percent(&m->rng, 10))
        store_le16(s->xsave, (uint16_t)(0x37f & ~(rng_next(&m->rng) & 0x3f)));
    /* in the middle of a page, or so that the program goes on in the next */
    unsigned in_page = rng_percent(&m->rng, 25) ? 0x1000 - 2 - rng_below(&m->rng, 60) : 0x100 + rng_below(&m->rng, 0x80);
    s->rip = (s->segment[CS].base ? 0 : CODE) + in_page;
}

uint64_t program_linear(const struct program *p)
{
    return p->state.segment[CS].base + p->state.rip;
}

static void place_windows(uint8_t *image)
{
    const uint64_t all = PTE_P | PTE_W | PTE_U | PTE_A | PTE_D;
    store_le64(image + TABLES + 0x2000 + 8 * (WINDOWS >> 21), WINDOW_TABLE + all);
    for (unsigned page = 0; page < UNITS * DATA_PAGES; page++)
        store_le64(image + WINDOW_TABLE + 8 * page, DATA + 4096 * (page % DATA_PAGES) + all);
}

void make_program(struct program *p, uint8_t *image, uint64_t seed, uint64_t number, enum mode mode,
                  const struct feature_set *features)
{
    struct maker m = {.rng = {seed * UINT64_C(0xda942042e4dd58b5) ^ number * UINT64_C(0x2545f4914f6cdd1d)},
                      .p = p, .bits = mode_infos[mode].bits, .features = features};
    rng_next(&m.rng);
    *p = (struct program){.mode = mode};
    collect_rows(mode, features);
    place_state(&m, image);
    p->windows = m.bits == 64 && rng_percent(&m.rng, 30);
    if (p->windows)
        place_windows(image);
    m.linear = program_linear(p);
    unsigned units = 2 + rng_below(&m.rng, UNITS - 8);
    bool loop = rng_percent(&m.rng, 35);
    for (p->units = 0; p->units < units; p->units++) {
        p->unit[p->units] = p->length;
        unsigned kind = rng_below(&m.rng, 100);
        if (kind < 3)
            put_code_write(&m);
        else if (kind < 8)
            put_byte_move(&m);
        else
            put_row(&m);
    }
    p->unit[p->units] = p->length;
    if (loop)
        put_loop_end(&m);
    put_fixes(&m);
    memcpy(image + m.linear, p->bytes, p->length);
    image[COUNTER] = (uint8_t)(1 + rng_below(&m.rng, 40));
}

void print_program(const struct program *p)
{
    unsigned bits = mode_infos[p->mode].bits;
    enum insn_mode mode = bits == 16 ? INSN_MODE_16 : bits == 32 ? INSN_MODE_32 : INSN_MODE_64;
    for (unsigned at = 0; at < p->length;) {
        struct insn in;
        char text[128];
        int length = insn_decode(&in, p->bytes + at, p->length - at + 0, mode);
        if (length <= 0) {
            printf("  %llx  %02x (undefined)\n", (unsigned long long)p->state.rip + at, p->bytes[at]);
            return;
        }
        insn_format(&in, p->state.rip + at, text, sizeof text);
        printf("  %llx  %-40s", (unsigned long long)p->state.rip + at, text);
        for (int i = 0; i < length; i++)
            printf("%02x", p->bytes[at + (unsigned)i]);
        printf("\n");
        at += (unsigned)length;
    }
}
