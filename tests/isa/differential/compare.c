/* SPDX-License-Identifier: MIT */
/* Two results of one case: what must be the same, and how a disagreement is told. */
#include <inttypes.h>
#include <string.h>

#include "differential.h"

static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

/* The flags that the manual leaves open: what op.def says, and nothing else. A count of zero leaves none open. */
static uint64_t flags_undefined(const struct diff_case *c)
{
    if (c->decoded <= 0)
        return 0;
    const struct insn *in = &c->insn;
    const struct op_info *info = &op_infos[in->op];
    if (info->attributes & OPA_MAY_KEEP_FLAGS && info->flags_undefined) {
        uint64_t count = in->form == FORM_RM_1 ? 1 : in->form == FORM_RM_CL || in->form == FORM_RM_REG_CL ? c->gpr[RCX] : in->imm;
        if (!(count & (in->osize == 8 ? 63 : 31)))
            return 0;
    }
    return info->flags_undefined;
}

static bool has_error_code(unsigned vector)
{
    return vector == EXC_DF || (vector >= EXC_TS && vector <= EXC_PF) || vector == EXC_AC;
}

/* Beyond user space Linux always says "present", lest users learn what is mapped (arch/x86/mm/fault.c). */
static uint32_t visible_error(const struct diff_result *r)
{
    return r->vector == EXC_PF && r->cr2 >= UINT64_C(0x7ffffffff000) ? r->error | PF_P : r->error;
}

/* Components that the header calls initial, spelled out; no pointers, no reserved bytes. */
static void normalise_xsave(uint8_t *to, const uint8_t *from)
{
    uint64_t features = load_le64(from + 512);
    memset(to, 0, XSAVE_BYTES);
    store_le16(to, 0x37f);
    if (features & XCR0_X87) {
        memcpy(to, from, 5);
        for (unsigned i = 0; i < 8; i++)
            memcpy(to + 32 + 16 * i, from + 32 + 16 * i, 10);
    }
    memcpy(to + 24, from + 24, 4);
    if (features & XCR0_SSE)
        memcpy(to + 160, from + 160, 256);
    if (features & XCR0_AVX)
        memcpy(to + 576, from + 576, 256);
}

static const char *xsave_field(const uint8_t *a, const uint8_t *b)
{
    static const struct {
        uint16_t from, to;
        const char *name;
    } fields[] = {{0, 2, "fcw"}, {2, 4, "fsw"}, {4, 5, "ftw"}, {24, 28, "mxcsr"}, {32, 160, "st"}, {160, 416, "xmm"}, {576, 832, "ymm"}};
    for (unsigned i = 0; i < ARRAY_LEN(fields); i++)
        if (memcmp(a + fields[i].from, b + fields[i].from, fields[i].to - fields[i].from))
            return fields[i].name;
    return NULL;
}

/* Bytes of an x87 or XSAVE image in memory that are the processor's own affair: the pointers to the last x87
 * instruction and operand, which this engine keeps at zero (cpu/exec/fpu.h), and MXCSR_MASK. First byte and end. */
static bool image_pointers(const struct diff_case *c, unsigned *first, unsigned *end)
{
    if (c->decoded <= 0)
        return false;
    switch (c->insn.op) {
    case OP_FNSTENV: case OP_FNSAVE:
        *first = c->insn.osize == 2 ? 6 : 12;
        *end = c->insn.osize == 2 ? 14 : 28;
        return true;
    case OP_FXSAVE: case OP_XSAVE: case OP_XSAVEOPT: case OP_XSAVEC:
        *first = 6;
        *end = 32;
        return true;
    }
    return false;
}

static uint64_t word_at(const struct diff_result *r, unsigned index)
{
    for (unsigned i = 0; i < r->words; i++)
        if (r->word[i].index == index)
            return r->word[i].value;
    return data_pristine(index);
}

/* The first byte of the data pages that differs, outside of an image's pointers; DATA_BYTES: none. */
static unsigned memory_difference(const struct diff_case *c, const struct diff_result *a, const struct diff_result *b)
{
    unsigned first = 0, end = 0;
    uint64_t image = 0;
    if (a->words == b->words && (a->words > DIFF_WORDS || !memcmp(a->word, b->word, a->words * sizeof a->word[0])))
        return DATA_BYTES;
    if (image_pointers(c, &first, &end)) {
        image = c->patches ? DATA_BASE + c->patch[c->patches - 1].offset : 0;
        if (a->words > DIFF_WORDS || b->words > DIFF_WORDS)
            return 0;
    }
    for (unsigned index = 0; index < DATA_BYTES / 8; index++) {
        uint64_t differing = word_at(a, index) ^ word_at(b, index);
        for (unsigned i = 0; differing; i++, differing >>= 8) {
            uint64_t offset = DATA_BASE + 8 * index + i - image;
            bool keep_mxcsr = end == 32 && offset >= 24 && offset < 28;
            if (differing & 0xff && !(image && offset >= first && offset < end && !keep_mxcsr))
                return 8 * index + i;
        }
    }
    return DATA_BYTES;
}

/* What 16- and 32-bit code leaves in the rest is not defined (SDM vol. 1, 3.4.1.1). */
static uint64_t register_mask(const struct diff_case *c)
{
    return c->mode == INSN_MODE_64 ? UINT64_MAX : UINT32_MAX;
}

static unsigned register_count(const struct diff_case *c)
{
    return c->mode == INSN_MODE_64 ? 16 : 8;
}

/* Returning from the kernel clears the RPL of a null selector (SDM vol. 2, IRET). */
static uint16_t data_selector(uint16_t selector)
{
    return selector <= 3 ? 0 : selector;
}

const char *compare(const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest)
{
    uint8_t a[XSAVE_BYTES], b[XSAVE_BYTES];
    if (!host->ran || !guest->ran)
        return "died";
    if (host->vector != guest->vector)
        return "vector";
    if (has_error_code(host->vector) && visible_error(host) != visible_error(guest))
        return "error code";
    if (host->vector == EXC_PF && host->cr2 != guest->cr2)
        return "cr2";
    uint64_t mask = register_mask(c);
    if ((host->rip ^ guest->rip) & mask)
        return "rip";
    for (unsigned i = 0; i < register_count(c); i++)
        if ((host->gpr[i] ^ guest->gpr[i]) & mask)
            return gpr_names[i];
    if ((host->rflags ^ guest->rflags) & ~flags_undefined(c))
        return "rflags";
    if (host->cs != guest->cs || host->ss != guest->ss || data_selector(host->ds) != data_selector(guest->ds) ||
        data_selector(host->es) != data_selector(guest->es) || data_selector(host->fs) != data_selector(guest->fs) ||
        data_selector(host->gs) != data_selector(guest->gs))
        return "selectors";
    if (c->mode == INSN_MODE_64 && (host->fs_base != guest->fs_base || host->gs_base != guest->gs_base))
        return "fs or gs base";
    if (memory_difference(c, host, guest) < DATA_BYTES)
        return "memory";
    normalise_xsave(a, host->xsave);
    normalise_xsave(b, guest->xsave);
    return xsave_field(a, b);
}

/* ---- the report ---- */

static void print_bytes(FILE *out, const uint8_t *bytes, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        fprintf(out, "%02x", bytes[i]);
}

static void print_both(FILE *out, const char *name, uint64_t before, uint64_t host, uint64_t guest)
{
    if (host != guest)
        fprintf(out, "    %-8s before %016" PRIx64 "  host %016" PRIx64 "  ours %016" PRIx64 "\n", name, before, host, guest);
}

static void print_vector(FILE *out, const char *name, unsigned i, const uint8_t *before, const uint8_t *a, const uint8_t *b, unsigned size)
{
    if (!memcmp(a, b, size))
        return;
    fprintf(out, "    %s%u before ", name, i);
    print_bytes(out, before, size);
    fprintf(out, " host ");
    print_bytes(out, a, size);
    fprintf(out, " ours ");
    print_bytes(out, b, size);
    fprintf(out, "\n");
}

static void report_xsave(FILE *out, const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest)
{
    uint8_t a[XSAVE_BYTES], b[XSAVE_BYTES];
    normalise_xsave(a, host->xsave);
    normalise_xsave(b, guest->xsave);
    print_both(out, "fcw", load_le16(c->xsave), load_le16(a), load_le16(b));
    print_both(out, "fsw", load_le16(c->xsave + 2), load_le16(a + 2), load_le16(b + 2));
    print_both(out, "ftw", c->xsave[4], a[4], b[4]);
    print_both(out, "mxcsr", load_le32(c->xsave + 24), load_le32(a + 24), load_le32(b + 24));
    for (unsigned i = 0; i < 8; i++)
        print_vector(out, "st", i, c->xsave + 32 + 16 * i, a + 32 + 16 * i, b + 32 + 16 * i, 10);
    for (unsigned i = 0; i < 16; i++) {
        print_vector(out, "xmm", i, c->xsave + 160 + 16 * i, a + 160 + 16 * i, b + 160 + 16 * i, 16);
        print_vector(out, "ymmh", i, c->xsave + 576 + 16 * i, a + 576 + 16 * i, b + 576 + 16 * i, 16);
    }
}

void report(FILE *out, const struct diff_case *c, const struct diff_result *host, const struct diff_result *guest)
{
    char text[256] = "(undefined)";
    const char *what = compare(c, host, guest);
    if (c->decoded > 0)
        insn_format(&c->insn, c->rip, text, sizeof text);
    fprintf(out, "case %" PRIu64 ": %s differs: ", c->number, what ? what : "nothing");
    print_bytes(out, c->code, c->length);
    fprintf(out, "  %s\n    at %" PRIx64 " rflags %" PRIx64 " fcw %04x fsw %04x ftw %02x mxcsr %04x row %u", text, c->rip, c->rflags,
            load_le16(c->xsave), load_le16(c->xsave + 2), c->xsave[4], load_le32(c->xsave + 24), c->row);
    for (unsigned i = 0; i < register_count(c); i++)
        fprintf(out, "%s%s=%" PRIx64, i % 8 ? " " : "\n    ", gpr_names[i], c->gpr[i]);
    fprintf(out, "\n");
    if (c->mode != INSN_MODE_64)
        fprintf(out, "    cs=%x ss=%x ds=%x es=%x fs=%x gs=%x\n", c->selector[CS], c->selector[SS], c->selector[DS], c->selector[ES],
                c->selector[FS], c->selector[GS]);
    for (unsigned i = 0, at = 0; i < c->patches; at += c->patch[i++].size) {
        fprintf(out, "    [%" PRIx64 "] = ", DATA_BASE + c->patch[i].offset);
        print_bytes(out, c->patch_bytes + at, MIN(c->patch[i].size, 64));
        fprintf(out, "\n");
    }
    fprintf(out, "    host: vector %u error %x cr2 %" PRIx64 "; ours: vector %u error %x cr2 %" PRIx64 "\n", host->vector,
            host->error, host->vector == EXC_PF ? host->cr2 : 0, guest->vector, guest->error, guest->vector == EXC_PF ? guest->cr2 : 0);
    print_both(out, "rip", c->rip, host->rip, guest->rip);
    print_both(out, "rflags", c->rflags, host->rflags, guest->rflags);
    for (unsigned i = 0; i < register_count(c); i++)
        print_both(out, gpr_names[i], c->gpr[i], host->gpr[i] & register_mask(c), guest->gpr[i] & register_mask(c));
    print_both(out, "cs", c->selector[CS], host->cs, guest->cs);
    print_both(out, "ss", c->selector[SS], host->ss, guest->ss);
    print_both(out, "ds", c->selector[DS], host->ds, guest->ds);
    print_both(out, "es", c->selector[ES], host->es, guest->es);
    print_both(out, "fs", c->selector[FS], host->fs, guest->fs);
    print_both(out, "gs", c->selector[GS], host->gs, guest->gs);
    print_both(out, "fs_base", base_of(c, FS), host->fs_base, guest->fs_base);
    print_both(out, "gs_base", base_of(c, GS), host->gs_base, guest->gs_base);
    unsigned at = memory_difference(c, host, guest);
    if (at < DATA_BYTES) {
        fprintf(out, "    [%" PRIx64 "]\n", DATA_BASE + at);
        print_both(out, "word", data_pristine(at / 8), word_at(host, at / 8), word_at(guest, at / 8));
    }
    report_xsave(out, c, host, guest);
}
