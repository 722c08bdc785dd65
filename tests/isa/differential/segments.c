/* SPDX-License-Identifier: MIT */
/* Segments for code that has them. All have DPL 3 and are marked accessed, as Linux makes them
 * (arch/x86/include/asm/desc.h, fill_ldt); a present conforming one it refuses. */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "differential.h"

#define DATA (SEG_S | SEG_P | SEG_DPL | SEG_ACCESSED)
#define CODE (DATA | SEG_CODE)
#define W SEG_WRITE_READ
#define DOWN SEG_EXPAND_CONFORM
#define TOP 0x10000u /* what a 16-bit offset cannot reach */

static const struct {
    uint32_t base, limit; /* in pages with SEG_G */
    uint16_t attributes;
} table[LDT_SEGMENTS] = {
    [1] = {CODE_BASE, CODE_BYTES - 1, CODE | W},
    [2] = {CODE_BASE + CODE_BYTES - TOP, TOP - 1, CODE | W}, /* the pages at the top of 64 KiB */
    [3] = {CODE_BASE, CODE_BYTES - 1, CODE},                 /* execute-only */
    [4] = {CODE_BASE, CODE_BYTES - 1, CODE | W | SEG_DB},
    [5] = {CODE_BASE - 0x1230, CODE_BYTES - 1 + 0x1230, CODE | SEG_DB},
    [6] = {CODE_BASE, CODE_BYTES - 1, (CODE | W) & ~SEG_P},
    [7] = {DATA_BASE, DATA_BYTES - 1, DATA | W | SEG_DB},
    [8] = {DATA_BASE, DATA_BYTES - 1, DATA | W},
    [9] = {DATA_BASE + DATA_BYTES - TOP, TOP - 1, DATA | W},
    [10] = {DATA_BASE + DATA_BYTES - TOP, TOP - DATA_BYTES + 0x123, DATA | W | DOWN},
    [11] = {0, DATA_BASE / PAGE, DATA | W | DOWN | SEG_DB | SEG_G},
    [12] = {DATA_BASE, DATA_BYTES - 1, DATA},                        /* read-only */
    [13] = {DATA_BASE, DATA_BYTES - 1, (DATA | W) & ~SEG_P},
    [14] = {DATA_BASE - 0xff3, DATA_BYTES / PAGE, DATA | W | SEG_DB | SEG_G | SEG_AVL},
    [15] = {0, 0xfffff, DATA | W | SEG_G},                           /* 4 GiB behind a 16-bit stack pointer */
    [16] = {DATA_BASE, 0x7fe, DATA | W},
    [17] = {DATA_BASE, 0xffff, DATA | DOWN},                         /* grows down and is empty: FFFFh is both ends */
};

static const struct {
    uint16_t selector;
    struct x86_segment segment;
} of_linux[] = {
    {USER_CS, {USER_CS, 0xa0fb, 0xffffffff, 0}},
    {USER_CS32, {USER_CS32, 0xc0fb, 0xffffffff, 0}},
    {USER_SS, {USER_SS, 0xc0f3, 0xffffffff, 0}},
};

bool segment_of(uint16_t selector, struct x86_segment *out)
{
    unsigned index = selector >> 3;
    for (unsigned i = 0; i < ARRAY_LEN(of_linux); i++)
        if ((selector | 3) == of_linux[i].selector) {
            *out = of_linux[i].segment;
            return true;
        }
    if (!(selector & 4) || index == 0 || index >= LDT_SEGMENTS)
        return false;
    uint32_t limit = table[index].limit;
    *out = (struct x86_segment){selector, table[index].attributes, table[index].attributes & SEG_G ? limit << 12 | 0xfff : limit,
                                table[index].base};
    return true;
}

uint64_t ldt_descriptor(unsigned index)
{
    uint64_t base = table[index].base, limit = table[index].limit, attributes = table[index].attributes;
    return (limit & 0xffff) | (base & 0xffffff) << 16 | attributes << 40 | (limit >> 16) << 48 | (base >> 24) << 56;
}

bool ldt_install(void)
{
    for (unsigned i = 1; i < LDT_SEGMENTS; i++) {
        uint16_t attributes = table[i].attributes;
        struct user_desc entry = {
            .entry_number = i, .base_addr = table[i].base, .limit = table[i].limit, .seg_32bit = !!(attributes & SEG_DB),
            .contents = attributes >> 2 & 3, .read_exec_only = !(attributes & SEG_WRITE_READ),
            .limit_in_pages = !!(attributes & SEG_G), .seg_not_present = !(attributes & SEG_P),
            .useable = !!(attributes & SEG_AVL),
        };
        if (syscall(SYS_modify_ldt, 0x11, &entry, sizeof entry))
            return false;
    }
    return true;
}

#define LDT(index) ((index) << 3 | 7)

/* What a program may have in its registers; 16-bit addresses do not reach the data through a flat one. */
void choose_segments(struct rng *rng, struct diff_case *c)
{
    static const uint16_t code16[] = {LDT(1), LDT(1), LDT(2), LDT(3)}, code32[] = {USER_CS32, LDT(4), LDT(5)};
    static const uint16_t stacks[] = {LDT(7), LDT(8), LDT(9), LDT(10), LDT(8), LDT(11), LDT(14), LDT(15), LDT(16), USER_SS};
    static const uint16_t data[] = {LDT(7), LDT(8), LDT(9), LDT(10), LDT(16), LDT(14), LDT(8), LDT(7), LDT(12), LDT(17),
                                    LDT(1), 0, LDT(4), LDT(11), USER_SS, USER_SS};
    memset(c->selector, 0, sizeof c->selector);
    c->selector[CS] = USER_CS;
    c->selector[SS] = USER_SS;
    if (c->mode == INSN_MODE_64)
        return;
    bool short_addresses = c->mode == INSN_MODE_16;
    c->selector[CS] = short_addresses ? code16[rng_below(rng, ARRAY_LEN(code16))] : code32[rng_below(rng, ARRAY_LEN(code32))];
    c->selector[SS] = stacks[rng_below(rng, short_addresses ? ARRAY_LEN(stacks) - 1 : ARRAY_LEN(stacks))];
    for (unsigned i = 0; i < 6; i++)
        if (i != CS && i != SS)
            c->selector[i] = data[rng_below(rng, short_addresses && rng_percent(rng, 90) ? 9 : ARRAY_LEN(data))];
}

/* Null, Linux's own of every kind, ours, and some that are not there. */
uint16_t choose_selector(struct rng *rng)
{
    static const uint16_t selectors[] = {0, 1, 3, USER_SS, USER_SS, USER_SS, 0x2a, 0x28, USER_CS, USER_CS32, 0x10, 0x18, 0x1b, 0x08,
                                         0x73, 0x2f, 0x83, 0xfff8, LDT(LDT_SEGMENTS), LDT(0)};
    uint16_t any = (uint16_t)rng_next(rng);
    if (any & 0x8000)
        return (uint16_t)((any % LDT_SEGMENTS) << 3 | (any >> 8 & 7 ? 7 : 4 | (any >> 11 & 3)));
    return rng_percent(rng, 90) || any >> 3 == 15 ? selectors[any % ARRAY_LEN(selectors)] : any;
}

/* Not from here to 64-bit code by CALL: its push would be to the full rSP, of which 32-bit code knows but half. */
uint16_t choose_code_selector(struct rng *rng, const struct diff_case *c)
{
    bool to64 = c->mode == INSN_MODE_64 || c->insn.op != OP_CALL_FAR;
    static const uint16_t selectors[] = {USER_CS, USER_CS, USER_CS, 0x30, 0x33 | 4, USER_CS32, USER_CS32, LDT(1), LDT(2), LDT(3), LDT(4), LDT(5),
                                         LDT(6), LDT(7), USER_SS, 0x10, 0, 0x1b};
    unsigned first = to64 ? 0 : 4;
    return selectors[first + rng_below(rng, ARRAY_LEN(selectors) - first)];
}

uint64_t base_of(const struct diff_case *c, unsigned segment)
{
    struct x86_segment found;
    if (c->mode == INSN_MODE_64)
        return segment == FS ? FS_BASE : segment == GS ? GS_BASE : 0;
    return segment != INSN_SEG_FLAT && segment_of(c->selector[segment], &found) ? found.base : 0;
}
