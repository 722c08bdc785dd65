/* SPDX-License-Identifier: MIT */
#include "registers.h"

#include <stddef.h>
#include <string.h>

#include "../base/bits.h"

enum kind {
    PLAIN,    /* bytes of struct x86_state */
    SELECTOR, /* segment[at] */
    FLAGS,
    MXCSR,
    X87,      /* bytes of the XSAVE area's components */
    SSE,
    AVX,
    TAGS,     /* x87's two bits a register; FXSAVE keeps one */
};

/* The XSAVE area's standard form (SDM vol. 1, 10.5.1 and 13.4). */
#define XSAVE_FCW 0
#define XSAVE_FSW 2
#define XSAVE_FTW 4
#define XSAVE_FOP 6
#define XSAVE_FIP 8
#define XSAVE_FCS 12
#define XSAVE_FDP 16
#define XSAVE_FDS 20
#define XSAVE_MXCSR 24
#define XSAVE_ST 32
#define XSAVE_XMM 160
#define XSAVE_XSTATE_BV 512
#define XSAVE_YMM_HIGH 576

#define ROW(name, field, bytes) {name, bytes, PLAIN, offsetof(struct x86_state, field)}
#define SEGMENT(name, field) \
    ROW(name "_base", field.base, 8), ROW(name "_limit", field.limit, 4), ROW(name "_attributes", field.attributes, 4)
#define EIGHT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define SIXTEEN(X) EIGHT(X) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

static const struct register_row rows[] = {
    ROW("rax", gpr[RAX], 8), ROW("rbx", gpr[RBX], 8), ROW("rcx", gpr[RCX], 8), ROW("rdx", gpr[RDX], 8),
    ROW("rsi", gpr[RSI], 8), ROW("rdi", gpr[RDI], 8), ROW("rbp", gpr[RBP], 8), ROW("rsp", gpr[RSP], 8),
    ROW("r8", gpr[R8], 8), ROW("r9", gpr[R9], 8), ROW("r10", gpr[R10], 8), ROW("r11", gpr[R11], 8),
    ROW("r12", gpr[R12], 8), ROW("r13", gpr[R13], 8), ROW("r14", gpr[R14], 8), ROW("r15", gpr[R15], 8),
    ROW("rip", rip, 8), {"rflags", 8, FLAGS, 0},
    {"cs", 2, SELECTOR, CS}, {"ss", 2, SELECTOR, SS}, {"ds", 2, SELECTOR, DS}, {"es", 2, SELECTOR, ES},
    {"fs", 2, SELECTOR, FS}, {"gs", 2, SELECTOR, GS},
    SEGMENT("cs", segment[CS]), SEGMENT("ss", segment[SS]), SEGMENT("ds", segment[DS]), SEGMENT("es", segment[ES]),
    SEGMENT("fs", segment[FS]), SEGMENT("gs", segment[GS]),
    ROW("ldtr", ldtr.selector, 2), SEGMENT("ldtr", ldtr), ROW("tr", tr.selector, 2), SEGMENT("tr", tr),
    ROW("gdtr_base", gdtr.base, 8), ROW("gdtr_limit", gdtr.limit, 2), ROW("idtr_base", idtr.base, 8),
    ROW("idtr_limit", idtr.limit, 2),
    ROW("cr0", cr0, 8), ROW("cr2", cr2, 8), ROW("cr3", cr3, 8), ROW("cr4", cr4, 8), ROW("cr8", cr8, 8),
    ROW("xcr0", xcr0, 8),
    ROW("dr0", dr[0], 8), ROW("dr1", dr[1], 8), ROW("dr2", dr[2], 8), ROW("dr3", dr[3], 8), ROW("dr6", dr[6], 8),
    ROW("dr7", dr[7], 8),
    ROW("efer", efer, 8), ROW("star", star, 8), ROW("lstar", lstar, 8), ROW("cstar", cstar, 8), ROW("sfmask", sfmask, 8),
    ROW("k_gs_base", kernel_gs_base, 8), ROW("sysenter_cs", sysenter_cs, 8), ROW("sysenter_esp", sysenter_esp, 8),
    ROW("sysenter_eip", sysenter_eip, 8), ROW("tsc_aux", tsc_aux, 8), ROW("pat", pat, 8),
    ROW("apic_base", apic_base, 8),
#define X(n) {"st" #n, 10, X87, XSAVE_ST + 16 * n},
    EIGHT(X)
#undef X
    {"fctrl", 2, X87, XSAVE_FCW}, {"fstat", 2, X87, XSAVE_FSW}, {"ftag", 2, TAGS, 0}, {"fop", 2, X87, XSAVE_FOP},
    {"fioff", 4, X87, XSAVE_FIP}, {"fiseg", 2, X87, XSAVE_FCS}, {"fooff", 4, X87, XSAVE_FDP},
    {"foseg", 2, X87, XSAVE_FDS}, {"mxcsr", 4, MXCSR, XSAVE_MXCSR},
#define X(n) {"xmm" #n, 16, SSE, XSAVE_XMM + 16 * n},
    SIXTEEN(X)
#undef X
#define X(n) {"ymm" #n "h", 16, AVX, XSAVE_YMM_HIGH + 16 * n},
    SIXTEEN(X)
#undef X
};

const struct register_row *register_find(const char *name)
{
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++)
        if (!strcmp(rows[i].name, name))
            return &rows[i];
    return NULL;
}

const struct register_row *register_at(unsigned index)
{
    return index < ARRAY_LEN(rows) ? &rows[index] : NULL;
}

/* ---- the XSAVE area: a component whose bit is clear has its first values, whatever the bytes say (13.6) ---- */

static uint64_t component_of(const struct register_row *row)
{
    return row->kind == SSE ? XCR0_SSE : row->kind == AVX ? XCR0_AVX : XCR0_X87;
}

static bool is_live(const struct x86_state *state, uint64_t component)
{
    return load_le64(state->xsave + XSAVE_XSTATE_BV) & component;
}

static void make_live(struct x86_state *state, uint64_t component)
{
    if (is_live(state, component))
        return;
    if (component == XCR0_X87) {
        memset(state->xsave, 0, XSAVE_MXCSR);
        memset(state->xsave + XSAVE_ST, 0, XSAVE_XMM - XSAVE_ST);
        store_le16(state->xsave + XSAVE_FCW, 0x037f);
    } else {
        memset(state->xsave + (component == XCR0_SSE ? XSAVE_XMM : XSAVE_YMM_HIGH), 0, 256);
    }
    store_le64(state->xsave + XSAVE_XSTATE_BV, load_le64(state->xsave + XSAVE_XSTATE_BV) | component);
}

/* The full tag word of one bit a register (SDM vol. 1, 10.5.1.1): the kind of number is read off its bytes. */
static uint16_t full_tags(const uint8_t *xsave)
{
    unsigned top = load_le16(xsave + XSAVE_FSW) >> 11 & 7;
    uint16_t tags = 0;
    for (unsigned i = 0; i < 8; i++) {
        const uint8_t *st = xsave + XSAVE_ST + 16 * ((i - top) & 7);
        unsigned tag = 3; /* empty */
        if (xsave[XSAVE_FTW] & 1u << i) {
            uint16_t exponent = load_le16(st + 8) & 0x7fff;
            uint64_t fraction = load_le64(st);
            tag = exponent == 0 && !fraction ? 1 : exponent && exponent != 0x7fff && fraction >> 63 ? 0 : 2;
        }
        tags |= (uint16_t)(tag << (2 * i));
    }
    return tags;
}

static uint8_t short_tags(uint16_t tags)
{
    uint8_t used = 0;
    for (unsigned i = 0; i < 8; i++)
        used |= (uint8_t)(((tags >> (2 * i) & 3) != 3) << i);
    return used;
}

/* ---- reading and writing ---- */

void register_read(const struct x86_state *state, const struct register_row *row, uint8_t *value)
{
    switch ((enum kind)row->kind) {
    case PLAIN:
        memcpy(value, (const uint8_t *)state + row->at, row->bytes);
        break;
    case SELECTOR:
        store_le16(value, state->segment[row->at].selector);
        break;
    case FLAGS:
        store_le64(value, state->rflags);
        break;
    case MXCSR:
        memcpy(value, state->xsave + row->at, row->bytes);
        break;
    case X87:
    case SSE:
    case AVX:
    case TAGS: {
        bool live = is_live(state, component_of(row));
        if (row->kind == TAGS)
            store_le16(value, live ? full_tags(state->xsave) : 0xffff);
        else if (live)
            memcpy(value, state->xsave + row->at, row->bytes);
        else
            memset(value, 0, row->bytes);
        if (!live && row->kind == X87 && row->at == XSAVE_FCW)
            store_le16(value, 0x037f);
        break;
    }
    }
}

void register_write(struct x86_state *state, const struct register_row *row, const uint8_t *value)
{
    switch ((enum kind)row->kind) {
    case PLAIN:
        memcpy((uint8_t *)state + row->at, value, row->bytes);
        break;
    case SELECTOR:
        state->segment[row->at].selector = load_le16(value);
        if (!(state->cr0 & CR0_PE) || (state->rflags & EFLAGS_VM))
            state->segment[row->at].base = (uint64_t)load_le16(value) << 4;
        break;
    case FLAGS:
        state->rflags = load_le64(value) | EFLAGS_FIXED;
        break;
    case MXCSR:
        store_le32(state->xsave + row->at, load_le32(value) & 0xffff);
        break;
    case X87:
    case SSE:
    case AVX:
        make_live(state, component_of(row));
        memcpy(state->xsave + row->at, value, row->bytes);
        break;
    case TAGS:
        make_live(state, XCR0_X87);
        state->xsave[XSAVE_FTW] = short_tags(load_le16(value));
        break;
    }
}

unsigned register_code_bits(const struct x86_state *state)
{
    if (state->rflags & EFLAGS_VM)
        return 16;
    uint32_t attributes = state->segment[CS].attributes;
    return (state->efer & EFER_LMA) && (attributes & SEG_L) ? 64 : attributes & SEG_DB ? 32 : 16;
}

uint64_t register_linear_pc(const struct x86_state *state)
{
    return register_code_bits(state) == 64 ? state->rip : (uint32_t)(state->segment[CS].base + state->rip);
}
