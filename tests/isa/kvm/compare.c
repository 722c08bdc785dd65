/* SPDX-License-Identifier: MIT */
#include "versus.h"

int stopped_in(const struct result *r)
{
    uint64_t at = r->state.segment[CS].base + r->state.rip - 1;
    if (r->outcome != HALTED || at < HANDLERS || at >= HANDLERS + 0x2000)
        return -1;
    return (int)((at - HANDLERS) / 16 % 256);
}

static bool same_segment(const struct x86_segment *a, const struct x86_segment *b)
{
    bool none_a = (a->attributes & SEG_UNUSABLE) || !(a->attributes & SEG_P);
    bool none_b = (b->attributes & SEG_UNUSABLE) || !(b->attributes & SEG_P);
    if (a->selector != b->selector || none_a != none_b)
        return false;
    return none_a || (a->attributes == b->attributes && a->limit == b->limit && a->base == b->base);
}

static uint32_t undefined_flags(const struct kcase *c)
{
    return c->decoded > 0 ? op_infos[c->insn.op].flags_undefined : 0;
}

/* In an exception's frame; HLT's own #GP is how ring 3 ends. */
static void mask_frame(const struct result *r, const struct kcase *c, uint8_t *memory)
{
    const struct x86_state *s = &r->state;
    bool wide = (s->efer & EFER_LMA) != 0;
    int vector = stopped_in(r);
    unsigned code = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 ? 1 : 0;
    uint64_t at = s->segment[SS].base + s->gpr[RSP] + (code + 2) * (wide ? 8 : 4);
    if (vector >= 0 && at < MEMORY_BYTES - 4)
        store_le32(memory + at, load_le32(memory + at) & ~(undefined_flags(c) | (wide ? EFLAGS_IOPL : 0)));
}

static const struct {
    const char *name;
    uint16_t offset, size;
} fields[] = {
#define FIELD(name, field, size) {name, offsetof(struct x86_state, field), size}
    FIELD("rip", rip, 8),
    FIELD("gdtr", gdtr.base, 8),
    FIELD("gdtr limit", gdtr.limit, 2),
    FIELD("idtr", idtr.base, 8),
    FIELD("idtr limit", idtr.limit, 2),
    FIELD("cr0", cr0, 8),
    FIELD("cr2", cr2, 8),
    FIELD("cr3", cr3, 8),
    FIELD("cr4", cr4, 8),
    FIELD("dr0", dr[0], 8),
    FIELD("dr1", dr[1], 8),
    FIELD("dr2", dr[2], 8),
    FIELD("dr3", dr[3], 8),
    FIELD("dr6", dr[6], 8),
    FIELD("dr7", dr[7], 8),
    FIELD("xcr0", xcr0, 8),
    FIELD("efer", efer, 8),
    FIELD("star", star, 8),
    FIELD("lstar", lstar, 8),
    FIELD("cstar", cstar, 8),
    FIELD("sfmask", sfmask, 8),
    FIELD("kernel_gs_base", kernel_gs_base, 8),
    FIELD("sysenter_cs", sysenter_cs, 8),
    FIELD("sysenter_esp", sysenter_esp, 8),
    FIELD("sysenter_eip", sysenter_eip, 8),
    FIELD("tsc_aux", tsc_aux, 8),
    FIELD("pat", pat, 8),
    FIELD("mtrr_def_type", mtrr_def_type, 8),
    FIELD("mtrr_fixed", mtrr_fixed, 88),
    FIELD("mtrr_base", mtrr_base, 64),
    FIELD("mtrr_mask", mtrr_mask, 64),
    FIELD("cr8", cr8, 8),
#undef FIELD
};

static const char *compare_state(const struct kcase *c, const struct x86_state *a, const struct x86_state *b)
{
    static const char *const gprs[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const segments[6] = {"es", "cs", "ss", "ds", "fs", "gs"};
    for (unsigned i = 0; i < ARRAY_LEN(fields); i++)
        if (memcmp((const char *)a + fields[i].offset, (const char *)b + fields[i].offset, fields[i].size))
            return fields[i].name;
    for (unsigned i = 0; i < 6; i++)
        if (!same_segment(&a->segment[i], &b->segment[i]))
            return segments[i];
    if (!same_segment(&a->tr, &b->tr))
        return "tr";
    if (!same_segment(&a->ldtr, &b->ldtr))
        return "ldtr";
    for (unsigned i = 0; i < 16; i++)
        if (a->gpr[i] != b->gpr[i])
            return gprs[i];
    if ((a->rflags ^ b->rflags) & ~(uint64_t)undefined_flags(c))
        return "rflags";
    if (memcmp(a->xsave, b->xsave, 5)) /* FCW, FSW, FTW */
        return "x87";
    for (unsigned i = 0; i < 8; i++)
        if (memcmp(a->xsave + 32 + 16 * i, b->xsave + 32 + 16 * i, 10))
            return "x87 registers";
    if (memcmp(a->xsave + 160, b->xsave + 160, 256))
        return "xmm";
    return NULL;
}

const char *compare(const struct kcase *c, const struct result *ours, const struct result *theirs, uint8_t *our_memory,
                    uint8_t *their_memory)
{
    if (ours->outcome != theirs->outcome)
        return "outcome";
    if (ours->outcome == SHUTDOWN)
        return NULL; /* what a dead processor holds is nobody's business */
    if (stopped_in(ours) != stopped_in(theirs))
        return "vector";
    const char *what = compare_state(c, &ours->state, &theirs->state);
    if (what)
        return what;
    if (ours->accesses != theirs->accesses ||
        memcmp(ours->access, theirs->access, MIN(ours->accesses, LOG) * sizeof ours->access[0]))
        return "accesses";
    if (mode_infos[c->mode].user || mode_infos[c->mode].long_mode)
        mask_frame(ours, c, our_memory), mask_frame(theirs, c, their_memory);
    return memcmp(our_memory, their_memory, MEMORY_BYTES) ? "memory" : NULL;
}

static void print_segment(const char *name, const struct x86_segment *a, const struct x86_segment *b,
                          const struct x86_segment *from)
{
    if (!same_segment(a, b) || !same_segment(from, b))
        printf("  %-4s %04x %05x %08x %" PRIx64 "  |  %04x %05x %08x %" PRIx64 "   from %04x %05x %08x %" PRIx64 "\n",
               name, a->selector, a->attributes, a->limit, a->base, b->selector, b->attributes, b->limit, b->base,
               from->selector, from->attributes, from->limit, from->base);
}

void report(const struct kcase *c, const struct result *ours, const struct result *theirs, const uint8_t *our_memory,
            const uint8_t *their_memory, const uint8_t *pristine)
{
    static const char *const outcomes[] = {"halted", "shutdown", "runs on", "cannot"};
    static const char *const names[] = {"es", "cs", "ss", "ds", "fs", "gs"};
    const struct x86_state *a = &ours->state, *b = &theirs->state, *s = &c->state;
    char text[128] = "undefined";
    if (c->decoded > 0)
        insn_format(&c->insn, s->rip, text, sizeof text);
    printf("  %s at %04x:%" PRIx64 ":", mode_infos[c->mode].name, s->segment[CS].selector, s->rip);
    for (unsigned i = 0; i < c->length; i++)
        printf(" %02x", c->code[i]);
    printf("  %s\n  ours %s vector %d  |  kvm %s vector %d\n", text, outcomes[ours->outcome], stopped_in(ours),
           outcomes[theirs->outcome], stopped_in(theirs));
    for (unsigned i = 0; i < 16; i++)
        if (a->gpr[i] != b->gpr[i] || a->gpr[i] != s->gpr[i] ||
            (c->decoded > 0 && (i == c->insn.base || i == c->insn.index || i == c->insn.rm)))
            printf("  gpr%-2u %" PRIx64 "  |  %" PRIx64 "   from %" PRIx64 "\n", i, a->gpr[i], b->gpr[i], s->gpr[i]);
    printf("  rflags %" PRIx64 "  |  %" PRIx64 "   from %" PRIx64 "\n", a->rflags, b->rflags, s->rflags);
    for (unsigned i = 0; i < ARRAY_LEN(fields); i++) {
        uint64_t x = 0, y = 0, from = 0;
        memcpy(&x, (const char *)a + fields[i].offset, MIN(fields[i].size, 8));
        memcpy(&y, (const char *)b + fields[i].offset, MIN(fields[i].size, 8));
        memcpy(&from, (const char *)s + fields[i].offset, MIN(fields[i].size, 8));
        if (x != y || x != from)
            printf("  %s %" PRIx64 "  |  %" PRIx64 "   from %" PRIx64 "\n", fields[i].name, x, y, from);
    }
    if (memcmp(a->xsave, b->xsave, 5))
        printf("  x87 %04x %04x %02x  |  %04x %04x %02x   from %04x %04x %02x\n", load_le16(a->xsave),
               load_le16(a->xsave + 2), a->xsave[4], load_le16(b->xsave), load_le16(b->xsave + 2), b->xsave[4],
               load_le16(s->xsave), load_le16(s->xsave + 2), s->xsave[4]);
    printf("  ecx %x\n", (uint32_t)s->gpr[RCX]);
    for (unsigned i = 0; i < 6; i++)
        print_segment(names[i], &a->segment[i], &b->segment[i], &s->segment[i]);
    if (c->insn.segment < 6 && (c->insn.flags & INSN_MEM))
        printf("  operand's segment %s: %04x %05x %08x %" PRIx64 "\n", names[c->insn.segment],
               s->segment[c->insn.segment].selector, s->segment[c->insn.segment].attributes,
               s->segment[c->insn.segment].limit, s->segment[c->insn.segment].base);
    print_segment("tr", &a->tr, &b->tr, &s->tr);
    print_segment("ldtr", &a->ldtr, &b->ldtr, &s->ldtr);
    for (unsigned i = 0; i < c->patches; i++) {
        printf("  at %05x:", c->patch[i].gpa);
        for (unsigned j = 0; j < MIN(c->patch[i].size, 32u); j++)
            printf(" %02x", c->patch[i].bytes[j]);
        printf("\n");
    }
    unsigned printed = 0;
    for (unsigned i = 0; i < MEMORY_BYTES && printed < 14; i += 4)
        if (load_le32(our_memory + i) != load_le32(their_memory + i)) {
            printf("  [%05x] %08x  |  %08x   from %08x\n", i, load_le32(our_memory + i), load_le32(their_memory + i),
                   load_le32(pristine + i));
            printed++;
        }
    for (unsigned i = 0; i < MIN(MAX(ours->accesses, theirs->accesses), 4u); i++)
        printf("  access %c %" PRIx64 " %" PRIx64 "  |  %c %" PRIx64 " %" PRIx64 "\n",
               i < ours->accesses ? ours->access[i].kind : '-', ours->access[i].address, ours->access[i].value,
               i < theirs->accesses ? theirs->access[i].kind : '-', theirs->access[i].address, theirs->access[i].value);
}
