/* SPDX-License-Identifier: MIT */
/* The memory every case begins with, and the states of the modes. */
#include "versus.h"

const struct mode_info mode_infos[MODES] = {
    [REAL16] = {"real", 16, false, false, false},        [V86] = {"v86", 16, true, false, false},
    [PROT16] = {"prot16", 16, false, false, false},      [PROT32] = {"prot32", 32, false, false, false},
    [PROT32_PAGED] = {"paged32", 32, false, true, false}, [USER16] = {"user16", 16, true, false, false},
    [USER32] = {"user32", 32, true, false, false},        [COMPAT16] = {"compat16", 16, true, true, true},
    [COMPAT32] = {"compat32", 32, true, true, true},     [LONG0] = {"long0", 64, false, true, true},
    [LONG3] = {"long3", 64, true, true, true},
};

/* A descriptor: `flags` are its bits 55:40 (type .. G), limit in bytes, or in pages when G is in flags. */
static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 |
           (uint64_t)((flags & 0xf0ff) | (limit >> 8 & 0xf00)) << 40 | (uint64_t)(base >> 24) << 56;
}

static uint64_t gate(uint16_t selector, uint32_t offset, uint32_t type_dpl_p)
{
    return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)type_dpl_p << 40 | (uint64_t)(offset >> 16) << 48;
}

/* One of every type, with both privileges, present and not. */
static uint64_t menu_descriptor(unsigned i)
{
    unsigned type = i & 15, s = i >> 4 & 1, flags = type | s << 4 | (i & 32 ? 0x60 : 0) | (i & 64 ? 0 : 0x80);
    bool wide = (i * 7 + i / 16) & 1;
    if (s && (type & 8))
        return descriptor(wide ? 0 : CODE, wide ? 0xfffff : 0xffff, flags | (wide ? 0xc000 : 0));
    if (s)
        return descriptor(DATA + (i & 3) * 0x10, i & 1 ? 0xfff : i & 4 ? 0x7fff : 0xffff, flags | (wide ? 0x4000 : 0));
    switch (type) {
    case 4: case 12: /* call gates, some with parameters */
        return gate(i & 1  ? CODE32
                    : wide ? CODE32
                           : CODE16,
                    wide ? CODE + 0x800 : 0x800, flags) |
               (uint64_t)(i >> 5 & 3) << 32;
    case 5:
        return gate(TSS_SELECTOR, 0, flags);
    case 6: case 7: case 14: case 15:
        return gate(CODE32, HANDLERS, flags);
    case 2:
        return descriptor(LDT, 8 * LDT_ENTRIES - 1, flags);
    case 1: case 3:
        return descriptor(TSS_OTHER16, wide ? 0x2b : 0x2a, flags);
    case 9: case 11:
        return descriptor(TSS_OTHER32, wide ? 0x67 : 0x66, flags);
    default:
        return descriptor(DATA, 0xffff, flags);
    }
}

static void put64(uint8_t *memory, uint32_t gpa, uint64_t value)
{
    store_le64(memory + gpa, value);
}

static void task_segments(uint8_t *m, bool long_mode)
{
    if (long_mode) {
        for (unsigned i = 0; i < 3; i++) /* RSP0-2, IST1-7 */
            put64(m, TSS + 4 + 8 * i, STACK0 - 0x400 * i);
        for (unsigned i = 0; i < 7; i++)
            put64(m, TSS + 0x24 + 8 * i, STACK0 - 0x400 * (i + 3));
    } else {
        for (unsigned i = 0; i < 3; i++) {
            store_le32(m + TSS + 4 + 8 * i, STACK0 - 0x400 * i);
            store_le32(m + TSS + 8 + 8 * i, (uint32_t)(DATA0 | (i ? i : 0)));
        }
    }
    store_le16(m + TSS + 0x66, TSS_IO_MAP);
    m[TSS + TSS_LIMIT] = 0xff;
    uint8_t *t = m + TSS_OTHER32;
    store_le32(t + 0x04, STACK0);
    store_le32(t + 0x08, DATA0);
    store_le32(t + 0x1c, TABLES);
    store_le32(t + 0x20, CODE + 0x900);
    store_le32(t + 0x24, 2);
    for (unsigned i = 0; i < 8; i++)
        store_le32(t + 0x28 + 4 * i, i == RSP ? STACK0 - 0x200 : 0x11110000u + i);
    for (unsigned i = 0; i < 6; i++)
        store_le32(t + 0x48 + 4 * i, i == CS ? CODE32 : DATA0);
    t = m + TSS_OTHER16;
    store_le16(t + 0x02, (uint16_t)STACK0);
    store_le16(t + 0x04, DATA0);
    store_le16(t + 0x0e, 0x900);
    store_le16(t + 0x10, 2);
    for (unsigned i = 0; i < 8; i++)
        store_le16(t + 0x12 + 2 * i, (uint16_t)(i == RSP ? STACK0 - 0x200 : 0x2220 + i));
    for (unsigned i = 0; i < 4; i++)
        store_le16(t + 0x22 + 2 * i, i == CS ? CODE16 : DATA0);
}

static void page_tables(uint8_t *m, bool long_mode)
{
    const uint64_t all = PTE_P | PTE_W | PTE_U | PTE_A | PTE_D;
    if (!long_mode) { /* 32-bit: a directory, and a table for the first 4 MiB */
        store_le32(m + TABLES, (uint32_t)(TABLES + 0x1000 + all));
        for (unsigned i = 0; i < 1024; i++)
            store_le32(m + TABLES + 0x1000 + 4 * i, (uint32_t)(4096 * i + all));
        return;
    }
    for (unsigned level = 0; level < 3; level++)
        put64(m, TABLES + 0x1000 * level, TABLES + 0x1000 * (level + 1) + all);
    for (unsigned i = 0; i < 512; i++)
        put64(m, TABLES + 0x3000 + 8 * i, 4096 * i + all);
}

void world_memory(uint8_t *m, bool long_mode)
{
    struct rng rng = {42};
    memset(m, 0, MEMORY_BYTES);
    memset(m + CODE, 0xf4, 0x10000);
    memset(m + HANDLERS, 0xf4, 0x2000);
    for (unsigned i = 0; i < DATA_BYTES; i += 8)
        put64(m, DATA + i, rng_next(&rng));
    for (unsigned i = 0; i < 0x40; i++)
        put64(m, STACK0 - 8 * i, rng_next(&rng)), put64(m, STACK3 - 8 * i, rng_next(&rng));
    for (unsigned v = 0; v < 256; v++) /* real mode's and v86's */
        store_le32(m + 4 * v, (HANDLERS + 0x1000 + 16 * v) / 16 << 16);
    for (unsigned v = 0; v < 256; v++) {
        /* 0-31 as they should be; from 32 on every kind */
        unsigned kind = v - 32, type = kind & 15, flags = (kind & 16 ? 0x60u : 0) | (kind & 32 ? 0u : 0x80u) | type;
        uint64_t low = v < 32 ? gate(long_mode ? CODE64 : CODE32, HANDLERS + 16 * v, v == 3 || v == 4 ? 0xee : 0x8e)
                       : type == 5 ? gate(TSS_SELECTOR, 0, flags)
                                   : gate(long_mode ? CODE64 : kind & 64 ? CODE16 : CODE32,
                                          kind & 64 && !long_mode ? 0x900 : HANDLERS + 16 * v, flags);
        put64(m, IDT + (long_mode ? 16 : 8) * v, low);
        if (long_mode && v >= 32 && (v & 0xe0) == 0xe0)
            m[IDT + 16 * v + 4] = v & 7; /* IST */
    }
    put64(m, GDT + CODE64, descriptor(0, 0xfffff, 0xa09b));
    put64(m, GDT + DATA0, descriptor(0, 0xfffff, 0xc093));
    put64(m, GDT + CODE32, descriptor(0, 0xfffff, 0xc09b));
    put64(m, GDT + CODE16, descriptor(CODE, 0xffff, 0x009b));
    put64(m, GDT + (USER_CODE32 & ~7u), descriptor(0, 0xfffff, 0xc0fb));
    put64(m, GDT + (USER_DATA & ~7u), descriptor(0, 0xfffff, 0xc0f3));
    put64(m, GDT + (USER_CODE64 & ~7u), descriptor(0, 0xfffff, 0xa0fb));
    put64(m, GDT + (USER_CODE16 & ~7u), descriptor(CODE, 0xffff, 0x00fb));
    put64(m, GDT + TSS_SELECTOR, descriptor(TSS, TSS_LIMIT, 0x8b));
    put64(m, GDT + LDT_SELECTOR, descriptor(LDT, 8 * LDT_ENTRIES - 1, 0x82));
    for (unsigned i = 0; i < 128; i++)
        put64(m, GDT + 8 * (GDT_MENU + i), menu_descriptor(i));
    /* whole 16-byte system descriptors for long mode, the last half of them not quite */
    for (unsigned i = 0; i < 48; i++) {
        uint64_t low = menu_descriptor((i & 15) | (i & 16 ? 32 : 0));
        put64(m, GDT + 8 * (GDT_MENU + 128 + 2 * i),
              (i & 15) == 12 ? gate(CODE64, CODE + 0x800, low >> 40 & 0xff) : low);
        put64(m, GDT + 8 * (GDT_MENU + 128 + 2 * i) + 8, i < 32 ? 0 : UINT64_C(1) << (8 * (i & 7)));
    }
    for (unsigned i = 0; i < LDT_ENTRIES; i++)
        put64(m, LDT + 8 * i, menu_descriptor(i));
    task_segments(m, long_mode);
    page_tables(m, long_mode);
}

struct x86_segment segment_of(uint16_t selector, const uint8_t *memory)
{
    if (selector < 4)
        return (struct x86_segment){.selector = selector, .attributes = SEG_UNUSABLE};
    uint64_t d = load_le64(memory + (selector & 4 ? LDT : GDT) + (selector & ~7u));
    uint32_t limit = (uint32_t)((d & 0xffff) | (d >> 32 & 0xf0000));
    uint32_t attributes = (uint32_t)(d >> 40) & 0xf0ff;
    return (struct x86_segment){
        .selector = selector, .attributes = attributes, .limit = attributes & SEG_G ? limit << 12 | 0xfff : limit,
        .base = (d >> 16 & 0xffffff) | (d >> 56 & 0xff) << 24};
}

/* A data segment that ES, DS, FS, GS may hold at this privilege: a present, readable one of the menu. */
static struct x86_segment some_data(struct rng *rng, bool user, const uint8_t *memory)
{
    for (unsigned tries = 0; tries < 50; tries++) {
        uint16_t selector =
            (uint16_t)(rng_percent(rng, 50) ? 8 * (GDT_MENU + rng_below(rng, 64)) : 4 + 8 * rng_below(rng, 64));
        struct x86_segment s = segment_of(selector | (user ? 3 : 0), memory);
        bool code = s.attributes & SEG_CODE;
        if (!(s.attributes & SEG_P) || !(s.attributes & SEG_S) || (code && !(s.attributes & SEG_WRITE_READ)) ||
            (user && (s.attributes & SEG_DPL) != SEG_DPL))
            continue;
        s.attributes |= SEG_ACCESSED;
        return s;
    }
    return segment_of(user ? USER_DATA : DATA0, memory);
}

static void real_segments(struct rng *rng, struct x86_state *s, enum mode mode)
{
    uint32_t attributes = mode == V86 ? 0x00f3 : 0x0093;
    for (unsigned i = 0; i < 6; i++) {
        uint16_t selector = (uint16_t)(i == CS                ? CODE / 16
                                       : i == SS              ? 0
                                       : rng_percent(rng, 80) ? (DATA / 16) + rng_below(rng, 0x800)
                                       : rng_percent(rng, 30) ? 0xffff - rng_below(rng, 16)
                                                              : 0xa000 + rng_below(rng, 0x1000));
        s->segment[i] = (struct x86_segment){selector, attributes, 0xffff, (uint64_t)selector << 4};
    }
    if (mode == REAL16) {
        s->segment[CS].attributes = 0x9b;
        for (unsigned i = 0; i < 6; i++) /* "big real" */
            if (i != CS && i != SS && rng_percent(rng, 15))
                s->segment[i] = (struct x86_segment){s->segment[i].selector, 0x8093, 0xffffffff, s->segment[i].base};
    }
}

static uint64_t random_flags(struct rng *rng, enum mode mode)
{
    uint64_t flags = EFLAGS_FIXED | (rng_next(rng) & EFLAGS_STATUS);
    if (rng_percent(rng, 30))
        flags |= EFLAGS_DF;
    if (rng_percent(rng, 40))
        flags |= EFLAGS_IF;
    if (rng_percent(rng, mode == V86 ? 60 : 30))
        flags |= rng_next(rng) & EFLAGS_IOPL;
    if (rng_percent(rng, 10))
        flags |= EFLAGS_ID;
    if (mode == V86)
        flags |= EFLAGS_VM;
    if (mode == LONG3) /* a paravirtual KVM runs it natively, with the host's */
        flags = (flags & ~(uint64_t)EFLAGS_IOPL) | EFLAGS_IF;
    return flags;
}

void world_state(struct rng *rng, struct x86_state *s, enum mode mode, const uint8_t *memory)
{
    const struct mode_info *info = &mode_infos[mode];
    x86_state_reset(s, true);
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] =
            i < 8 || info->bits == 64 ? random_integer(rng) & (info->bits == 64 ? ~UINT64_C(0) : 0xffffffff) : 0;
    s->rflags = random_flags(rng, mode);
    s->cr0 = CR0_ET | CR0_NE | CR0_MP | (mode == REAL16 ? 0 : CR0_PE) | (info->paging ? CR0_PG | CR0_WP : 0);
    s->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | (info->long_mode ? CR4_PAE : 0);
    s->cr3 = info->paging ? TABLES : 0;
    if (info->long_mode)
        s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    s->lstar = s->cstar = CODE + 0xa00;
    s->star = UINT64_C(0x0023000800000000);
    s->sfmask = 0x47700;
    s->sysenter_cs = 8;
    s->sysenter_esp = STACK0 - 0x100;
    s->sysenter_eip = CODE + 0xb00;
    s->mtrr_def_type = 0;
    s->gdtr = (struct x86_table){GDT, 8 * GDT_ENTRIES - 1};
    s->idtr = (struct x86_table){IDT, (uint16_t)(info->long_mode ? 0xfff : 0x7ff)};
    s->tr = (struct x86_segment){TSS_SELECTOR, SEG_P | 11, TSS_LIMIT, TSS};
    s->ldtr = (struct x86_segment){LDT_SELECTOR, SEG_P | 2, 8 * LDT_ENTRIES - 1, LDT};
    s->gpr[RSP] = (info->user ? STACK3 : STACK0) - 0x80;
    s->rip = 0x100 + rng_below(rng, 0x100);
    if (mode == REAL16 || mode == V86) {
        real_segments(rng, s, mode);
        if (mode == REAL16)
            s->idtr = (struct x86_table){0, 0x3ff};
        return;
    }
    s->segment[CS] = segment_of(info->bits == 64   ? info->user ? USER_CODE64 : CODE64
                                : info->bits == 32 ? info->user ? USER_CODE32 : CODE32
                                                   : info->user ? USER_CODE16 : CODE16, memory);
    if (info->bits != 16)
        s->rip += CODE;
    for (unsigned i = 0; i < 6; i++)
        if (i != CS)
            s->segment[i] = i == SS || rng_percent(rng, info->bits == 64 ? 80 : 25)
                                ? segment_of(info->user ? USER_DATA : DATA0, memory)
                            : rng_percent(rng, 7) ? segment_of((uint16_t)rng_below(rng, 4), memory)
                                                  : some_data(rng, info->user, memory);
    if (info->bits == 64 && rng_percent(rng, 50))
        s->segment[GS].base = DATA + 0x100, s->kernel_gs_base = random_integer(rng) & 0x7fffffffffff;
    if (info->bits == 16 && rng_percent(rng, 70)) /* a 16-bit stack; the upper half of ESP is nobody's */
        s->segment[SS] = (struct x86_segment){info->user ? USER_DATA : DATA0, info->user ? 0x00f3 : 0x0093, 0xffff, 0};
    else if (info->bits == 32 && rng_percent(rng, 10))
        s->segment[SS] = (struct x86_segment){info->user ? USER_DATA : DATA0, info->user ? 0x40f3 : 0x4093,
                                              (uint32_t)s->gpr[RSP] + rng_below(rng, 16), 0};
}
