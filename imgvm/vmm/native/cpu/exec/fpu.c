/* SPDX-License-Identifier: MIT */
#include "fpu.h"

#include "../../base/bits.h"

/* FXSAVE image, the legacy region of an XSAVE image (SDM vol. 1, 10.5.1 and 13.4.1):
 *
 *   0 FCW  2 FSW  4 FTW (a bit a register: in use)  6 FOP  8 FIP  16 FDP  24 MXCSR  28 MXCSR_MASK
 *   32 + 16*i  ST(i), 10 bytes        160 + 16*i  XMMi
 *   512 XSTATE_BV  520 XCOMP_BV       576 + 16*i  upper half of YMMi */
#define FCW 0
#define FSW 2
#define FTW 4
#define POINTERS 6 /* FOP, FIP, FDP */
#define POINTERS_BYTES 18
#define MXCSR 24
#define MXCSR_MASK_FIELD 28
#define ST 32
#define ST_BYTES 128
#define XMM 160
#define XMM_BYTES 256
#define LEGACY_BYTES 512
#define XSTATE_BV 512
#define XCOMP_BV 520
#define HEADER_BYTES 64
#define YMM 576
#define YMM_BYTES 256

#define COMPACTED BIT(63)
#define FEATURES (XCR0_X87 | XCR0_SSE | XCR0_AVX)

#define FCW_INIT 0x037f
#define FCW_WRITABLE 0x1f3f
#define FCW_ONE 0x0040 /* a reserved bit that reads as one */
#define FCW_MASKS 0x3f
#define FSW_ES 0x0080
#define FSW_TOP_SHIFT 11
#define FSW_B 0x8000
#define MXCSR_INIT 0x1f80

/* ---- handing the registers over ---- */

/* The operating system enabled AVX, therefore XSAVE. Without AVX, FXSAVE holds all there is. */
static inline bool host_has_xsave(void)
{
    return __builtin_cpu_supports("avx");
}

/* The pointers to the last x87 instruction and operand are addresses of ours. */
static void forget_pointers(uint8_t *area)
{
    store_le64(area + POINTERS, 0);
    store_le64(area + POINTERS + 8, 0);
    store_le16(area + POINTERS + 16, 0);
}

void fpu_store(uint8_t *area)
{
    if (host_has_xsave()) {
        __asm__ volatile("xsave64 %0" : "+m"(*(uint8_t(*)[FPU_XSAVE_BYTES])area) : "a"(FEATURES), "d"(0));
    } else {
        __asm__ volatile("fxsave64 %0" : "+m"(*(uint8_t(*)[LEGACY_BYTES])area));
        store_le64(area + XSTATE_BV, XCR0_X87 | XCR0_SSE);
    }
    forget_pointers(area);
}

void fpu_load(const uint8_t *area)
{
    if (host_has_xsave())
        __asm__ volatile("xrstor64 %0" : : "m"(*(const uint8_t(*)[FPU_XSAVE_BYTES])area), "a"(FEATURES), "d"(0));
    else
        __asm__ volatile("fxrstor64 %0" : : "m"(*(const uint8_t(*)[LEGACY_BYTES])area));
}

/* FSW as FCW makes it: ES and B say whether an unmasked exception is pending. A state that says otherwise would make
 * the host raise a fault that it cannot explain. */
static void settle_exceptions(uint8_t *area)
{
    uint16_t fcw = (load_le16(area + FCW) & FCW_WRITABLE) | FCW_ONE, fsw = load_le16(area + FSW);
    fsw &= ~(FSW_ES | FSW_B);
    if (fsw & ~fcw & FCW_MASKS)
        fsw |= FSW_ES | FSW_B;
    store_le16(area + FCW, fcw);
    store_le16(area + FSW, fsw);
}

/* Would that change nothing, and no exception be pending? */
static bool is_settled(const uint8_t *area)
{
    uint16_t fcw = load_le16(area + FCW), fsw = load_le16(area + FSW);
    return (fcw & ~FCW_WRITABLE) == FCW_ONE && !(fsw & (FSW_ES | FSW_B)) && !(fsw & ~fcw & FCW_MASKS);
}

/* x87 as FNINIT leaves it. */
static void init_x87(uint8_t *area)
{
    fpu_zero(area, MXCSR);
    store_le16(area + FCW, FCW_INIT);
    fpu_zero(area + ST, ST_BYTES);
}

/* Fill in the components that the header calls initial, so that the image says everything. */
static void spell_out(uint8_t *area)
{
    uint64_t in_use = load_le64(area + XSTATE_BV);
    if (!(in_use & XCR0_X87))
        init_x87(area);
    if (!(in_use & XCR0_SSE))
        fpu_zero(area + XMM, XMM_BYTES);
    if (!(in_use & XCR0_AVX))
        fpu_zero(area + YMM, YMM_BYTES);
}

static void put_in_use(uint8_t *area, uint64_t features)
{
    store_le64(area + XSTATE_BV, load_le64(area + XSTATE_BV) | features);
}

/* Could a load of the area fault, or load what it does not say? Not after a store of ours: the way of every exit to
 * a device and back must not cost more than it has to. */
static bool is_clean(const uint8_t *area)
{
    uint64_t in_use = load_le64(area + XSTATE_BV), reserved = in_use & ~FEATURES;
    for (unsigned offset = 8; offset < HEADER_BYTES; offset += 8)
        reserved |= load_le64(area + XSTATE_BV + offset);
    bool spelled_out = host_has_xsave() || !(~in_use & (XCR0_X87 | XCR0_SSE));
    return !reserved && spelled_out && is_settled(area) && fpu_mxcsr_valid(load_le32(area + MXCSR));
}

void fpu_enter(uint8_t *area)
{
    if (!is_clean(area)) {
        store_le32(area + MXCSR, load_le32(area + MXCSR) & MXCSR_MASK);
        store_le64(area + XSTATE_BV, load_le64(area + XSTATE_BV) & FEATURES);
        fpu_zero(area + XCOMP_BV, HEADER_BYTES - 8);
        spell_out(area); /* FXRSTOR knows no header */
        settle_exceptions(area);
    }
    fpu_load(area);
}

void fpu_leave(uint8_t *area)
{
    static const uint32_t mxcsr = MXCSR_INIT;
    fpu_store(area);
    /* no pending exception, no tag of an MMX register may reach the C code that comes next */
    if (load_le32(area + FCW) != FCW_INIT || area[FTW])
        __asm__ volatile("fninit");
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    if (host_has_xsave())
        __asm__ volatile("vzeroupper");
}

/* ---- FNSTENV, FNSAVE ---- */

#define TAG_VALID 0u
#define TAG_ZERO 1u
#define TAG_SPECIAL 2u
#define TAG_EMPTY 3u

/* Two bits a register, from its contents (SDM vol. 1, 8.1.7 and table 10-3). */
static unsigned register_tag(const uint8_t *value)
{
    uint64_t significand = load_le64(value);
    unsigned exponent = load_le16(value + 8) & 0x7fff;
    if (exponent == 0)
        return significand ? TAG_SPECIAL : TAG_ZERO;
    return exponent != 0x7fff && significand >> 63 ? TAG_VALID : TAG_SPECIAL;
}

static unsigned stack_top(const uint8_t *area)
{
    return load_le16(area + FSW) >> FSW_TOP_SHIFT & 7;
}

/* FSW with a new TOP. The physical registers stay; the area has them in stack order. */
static void put_status(uint8_t *area, uint16_t fsw)
{
    uint8_t registers[ST_BYTES];
    unsigned before = stack_top(area);
    store_le16(area + FSW, fsw);
    fpu_copy(registers, area + ST, ST_BYTES);
    for (unsigned i = 0; i < 8; i++)
        fpu_copy(area + ST + 16 * i, registers + 16 * ((i + stack_top(area) - before) & 7), 16);
}

static uint16_t full_tags(const uint8_t *area)
{
    unsigned top = stack_top(area);
    uint16_t tags = 0;
    for (unsigned i = 0; i < 8; i++) { /* the image has registers in stack order, tags in physical order */
        unsigned tag = area[FTW] >> i & 1 ? register_tag(area + ST + 16 * ((i - top) & 7)) : TAG_EMPTY;
        tags |= tag << (2 * i);
    }
    return tags;
}

static uint8_t abridged_tags(uint16_t tags)
{
    uint8_t in_use = 0;
    for (unsigned i = 0; i < 8; i++)
        if ((tags >> (2 * i) & 3) != TAG_EMPTY)
            in_use |= 1 << i;
    return in_use;
}

static unsigned environment_bytes(bool size32)
{
    return size32 ? 28 : 14;
}

static void put_environment(const uint8_t *area, uint8_t *out, bool size32)
{
    unsigned step = size32 ? 4 : 2;
    const uint16_t words[] = {load_le16(area + FCW), load_le16(area + FSW), full_tags(area)};
    fpu_zero(out, environment_bytes(size32));
    for (unsigned i = 0; i < 3; i++) {
        store_le16(out + step * i, words[i]);
        if (size32)
            store_le16(out + step * i + 2, 0xffff); /* reserved halves, as processors write them */
    }
    if (size32)
        store_le16(out + 26, 0xffff);
}

unsigned fpu_fnstenv(uint8_t *area, uint8_t out[28], bool size32)
{
    spell_out(area);
    put_environment(area, out, size32);
    store_le16(area + FCW, load_le16(area + FCW) | FCW_MASKS);
    settle_exceptions(area);
    put_in_use(area, XCR0_X87);
    return environment_bytes(size32);
}

unsigned fpu_fnsave(uint8_t *area, uint8_t out[108], bool size32)
{
    unsigned offset = environment_bytes(size32);
    spell_out(area);
    put_environment(area, out, size32);
    for (unsigned i = 0; i < 8; i++)
        fpu_copy(out + offset + 10 * i, area + ST + 16 * i, 10);
    /* as FNINIT: the registers are empty, but hold what they held (SDM vol. 2, FINIT) */
    put_status(area, 0);
    store_le16(area + FCW, FCW_INIT);
    area[FTW] = 0;
    forget_pointers(area);
    put_in_use(area, XCR0_X87);
    return offset + 80;
}

void fpu_fldenv(uint8_t *area, const uint8_t *in, bool size32)
{
    unsigned step = size32 ? 4 : 2;
    spell_out(area);
    store_le16(area + FCW, load_le16(in));
    put_status(area, load_le16(in + step));
    area[FTW] = abridged_tags(load_le16(in + 2 * step));
    settle_exceptions(area);
    put_in_use(area, XCR0_X87);
}

void fpu_frstor(uint8_t *area, const uint8_t *in, bool size32)
{
    unsigned offset = environment_bytes(size32);
    fpu_fldenv(area, in, size32);
    for (unsigned i = 0; i < 8; i++)
        fpu_copy(area + ST + 16 * i, in + offset + 10 * i, 10);
}

void fpu_open(uint8_t *area)
{
    spell_out(area);
    put_in_use(area, FEATURES);
}

uint8_t *fpu_mmx(uint8_t *area)
{
    put_status(area, load_le16(area + FSW) & ~(7 << FSW_TOP_SHIFT));
    area[FTW] = 0xff;
    return area + ST;
}

bool fpu_pending(const uint8_t *area)
{
    return load_le64(area + XSTATE_BV) & XCR0_X87 && load_le16(area + FSW) & FSW_ES;
}

/* ---- FXSAVE, and the legacy region of XSAVE ---- */

static unsigned xmm_bytes(bool long_mode)
{
    return long_mode ? XMM_BYTES : XMM_BYTES / 2; /* XMM8-15 exist in 64-bit mode only */
}

static void put_x87(const uint8_t *area, uint8_t *out)
{
    fpu_copy(out, area, MXCSR);
    out[FTW + 1] = 0;
    fpu_zero(out + POINTERS, POINTERS_BYTES);
    fpu_copy(out + ST, area + ST, ST_BYTES);
    for (unsigned i = 0; i < 8; i++) /* reserved */
        fpu_zero(out + ST + 16 * i + 10, 6);
}

static void put_mxcsr(const uint8_t *area, uint8_t *out)
{
    store_le32(out + MXCSR, load_le32(area + MXCSR));
    store_le32(out + MXCSR_MASK_FIELD, MXCSR_MASK);
}

static void take_x87(uint8_t *area, const uint8_t *in)
{
    fpu_copy(area, in, FTW + 1);
    fpu_copy(area + ST, in + ST, ST_BYTES);
    settle_exceptions(area);
}

unsigned fpu_fxsave(const uint8_t *area, uint8_t out[FPU_FXSAVE_BYTES], bool long_mode)
{
    uint8_t whole[FPU_XSAVE_BYTES];
    fpu_copy(whole, area, sizeof whole);
    spell_out(whole);
    put_x87(whole, out);
    put_mxcsr(whole, out);
    fpu_copy(out + XMM, whole + XMM, xmm_bytes(long_mode));
    return XMM + xmm_bytes(long_mode);
}

unsigned fpu_fxsave_live(uint8_t out[FPU_FXSAVE_BYTES])
{
    __asm__ volatile("fxsave64 %0" : "=m"(*(uint8_t(*)[FPU_FXSAVE_BYTES])out));
    forget_pointers(out);
    store_le32(out + MXCSR_MASK_FIELD, MXCSR_MASK);
    return XMM + XMM_BYTES;
}

bool fpu_fxrstor_live(uint8_t in[FPU_FXSAVE_BYTES])
{
    if (!is_settled(in) || !fpu_mxcsr_valid(load_le32(in + MXCSR)))
        return false;
    forget_pointers(in);
    __asm__ volatile("fxrstor64 %0" : : "m"(*(const uint8_t(*)[FPU_FXSAVE_BYTES])in));
    return true;
}

bool fpu_fxrstor(uint8_t *area, const uint8_t in[FPU_FXSAVE_BYTES], bool long_mode)
{
    uint32_t mxcsr = load_le32(in + MXCSR);
    if (!fpu_mxcsr_valid(mxcsr))
        return false;
    spell_out(area);
    take_x87(area, in);
    store_le32(area + MXCSR, mxcsr);
    fpu_copy(area + XMM, in + XMM, xmm_bytes(long_mode));
    put_in_use(area, XCR0_X87 | XCR0_SSE);
    return true;
}

/* ---- XSAVE ---- */

uint32_t fpu_xsave_bytes(uint64_t features, bool compacted)
{
    (void)compacted; /* AVX is the first extended component: at 576 in both formats */
    return features & XCR0_AVX ? YMM + YMM_BYTES : YMM;
}

uint64_t fpu_in_use(const uint8_t *area, uint64_t xcr0)
{
    uint64_t in_use = load_le64(area + XSTATE_BV) & xcr0 & FEATURES;
    if (load_le32(area + MXCSR) != MXCSR_INIT) /* MXCSR counts to SSE (SDM vol. 1, 13.6) */
        in_use |= XCR0_SSE & xcr0;
    return in_use;
}

void fpu_xsave(const uint8_t *area, uint8_t *image, uint64_t rfbm, enum fpu_xsave kind, bool long_mode)
{
    uint8_t whole[FPU_XSAVE_BYTES];
    uint64_t in_use = fpu_in_use(area, rfbm);
    /* XSAVE writes initial components too; the others leave them alone (SDM vol. 1, 13.7, 13.9, 13.10) */
    uint64_t write = kind == FPU_XSAVE ? rfbm : in_use;

    fpu_copy(whole, area, sizeof whole);
    spell_out(whole);
    if (write & XCR0_X87)
        put_x87(whole, image);
    if (kind == FPU_XSAVEC ? write & XCR0_SSE : rfbm & (XCR0_SSE | XCR0_AVX))
        put_mxcsr(whole, image);
    if (write & XCR0_SSE)
        fpu_copy(image + XMM, whole + XMM, xmm_bytes(long_mode));
    if (write & XCR0_AVX)
        fpu_copy(image + YMM, whole + YMM, xmm_bytes(long_mode));

    if (kind == FPU_XSAVEC) {
        store_le64(image + XSTATE_BV, in_use);
        store_le64(image + XCOMP_BV, rfbm | COMPACTED);
    } else {
        store_le64(image + XSTATE_BV, (load_le64(image + XSTATE_BV) & ~rfbm) | in_use);
    }
}

/* SDM vol. 1, 13.8: standard format, 13.8.2: compacted. */
uint32_t fpu_xrstor_bytes(const uint8_t *image, uint64_t rfbm, uint64_t xcr0)
{
    uint64_t in_use = load_le64(image + XSTATE_BV), format = load_le64(image + XCOMP_BV);
    if (format & COMPACTED) {
        if (format & ~COMPACTED & ~xcr0 || in_use & ~format)
            return 0;
    } else if (format || in_use & ~xcr0 || load_le64(image + XCOMP_BV + 8)) {
        return 0;
    }
    if (format & COMPACTED) /* bytes 63:16 of the header are reserved in this format */
        for (unsigned offset = 16; offset < HEADER_BYTES; offset += 8)
            if (load_le64(image + XSTATE_BV + offset))
                return 0;
    return fpu_xsave_bytes(in_use & rfbm, format & COMPACTED);
}

bool fpu_xrstor(uint8_t *area, const uint8_t *image, uint64_t rfbm, bool long_mode)
{
    uint64_t in_use = load_le64(image + XSTATE_BV);
    bool compacted = load_le64(image + XCOMP_BV) & COMPACTED;
    /* the standard format restores MXCSR with SSE or AVX whatever XSTATE_BV says; the compacted one treats it as a
     * part of SSE */
    bool take_mxcsr = compacted ? rfbm & in_use & XCR0_SSE : rfbm & (XCR0_SSE | XCR0_AVX);
    uint32_t mxcsr = load_le32(image + MXCSR);
    if (take_mxcsr && !fpu_mxcsr_valid(mxcsr))
        return false;

    spell_out(area);
    if (rfbm & in_use & XCR0_X87)
        take_x87(area, image);
    else if (rfbm & XCR0_X87)
        init_x87(area);
    if (take_mxcsr)
        store_le32(area + MXCSR, mxcsr);
    else if (compacted && rfbm & XCR0_SSE)
        store_le32(area + MXCSR, MXCSR_INIT);
    if (rfbm & in_use & XCR0_SSE)
        fpu_copy(area + XMM, image + XMM, xmm_bytes(long_mode));
    else if (rfbm & XCR0_SSE)
        fpu_zero(area + XMM, xmm_bytes(long_mode));
    if (rfbm & in_use & XCR0_AVX)
        fpu_copy(area + YMM, image + YMM, xmm_bytes(long_mode));
    else if (rfbm & XCR0_AVX)
        fpu_zero(area + YMM, xmm_bytes(long_mode));

    /* what is restored takes the image's word; the rest was spelled out */
    uint64_t before = load_le64(area + XSTATE_BV);
    uint64_t kept = long_mode ? 0 : before & (XCR0_SSE | XCR0_AVX); /* registers 8-15 were not touched */
    store_le64(area + XSTATE_BV, (before & ~rfbm) | (in_use & rfbm) | kept);
    return true;
}
