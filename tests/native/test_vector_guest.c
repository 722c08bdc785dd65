/* SPDX-License-Identifier: MIT */
/* C functions full of x87, SSE, AVX2, FMA, AES... run twice: here, and on the software processor with this program's
 * own image mapped at the same addresses. They must leave the same bytes. So decoder, checks, memory operands across
 * pages, thunks and FPU images are tested together. */
// needs: base/error.c arch/*.c mem/guest_mem.c cpu/exec/*.c cpu/mmu/*.c cpu/decode/*.c
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "arch/x86.h"
#include "base/bits.h"
#include "check.h"
#include "flat_state.h"
#include "quiet_world.h"
#include "world_translator.h"
#include "cpu/exec/cpuid.h"
#include "cpu/exec/fpu.h"

/* ---- the functions; each may touch this image only, and call nothing ---- */

#define KERNEL(name, isa) \
    __attribute__((noinline, no_stack_protector, no_sanitize("address"), no_sanitize("undefined"), target(isa))) \
    static void name(uint8_t *out, const uint8_t *in)

#define IN_BYTES 8192
#define OUT_BYTES 16384

KERNEL(x87, "no-avx")
{
    long double sum = 0, x = 0.25L;
    for (int i = 0; i < 200; i++) {
        long double s, c, t;
        __asm__("fsincos" : "=t"(c), "=u"(s) : "0"(x));
        __asm__("fptan; fstp %%st(0)" : "=t"(t) : "0"(x / 3));
        __asm__("fyl2x" : "+t"(x) : "u"(s * s + 1.5L) : "st(1)");
        sum = sum * 0.75L + s / (c + 3) - t + (int)(x * 100) + (long long)(sum * 1000) % 7 + (float)x + (double)t;
        x = sum < 3 ? sum + 0.5L : -sum / (i + 2);
        memcpy(out + 16 * i, &sum, 10);
    }
    uint16_t status, control = 0x0c7f, old;
    __asm__ volatile("fnstcw %0; fldcw %1" : "=m"(old) : "m"(control)); /* round to zero */
    long long rounded[2] = {0};
    __asm__ volatile("fldl %2; fistpll %0; fldl %2; fisttpll %1; fldcw %3" : "=m"(rounded[0]), "=m"(rounded[1])
                     : "m"(*(const double *)(in + 8)), "m"(old));
    __asm__ volatile("fxam; fnstsw %0" : "=m"(status));
    memcpy(out + 8000, rounded, 16);
    memcpy(out + 8016, &status, 2);
    unsigned char bcd[10];
    __asm__ volatile("fildll %1; fbstp %0" : "=m"(bcd) : "m"(rounded[0]));
    memcpy(out + 8020, bcd, 10);
}

KERNEL(sse_scalar, "no-avx")
{
    double p[3] = {1, 2, 3}, v[3] = {0.1, -0.2, 0.3};
    float f = 1;
    for (int i = 0; i < 500; i++) {
        __m128d square = _mm_set_sd(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
        double d = _mm_cvtsd_f64(_mm_sqrt_sd(square, square));
        for (int j = 0; j < 3; j++) {
            v[j] -= p[j] / (d * d * d) * 0.01;
            p[j] += v[j] * 0.01;
        }
        f = f * 1.01f + (float)p[0];
        if (f > 1e6f || p[1] < v[1])
            f = (float)(int)(f / 1000) - (float)((uint64_t)i * 12345678901u);
        memcpy(out + 24 * i, p, 24);
        memcpy(out + 14000 + 4 * i, &f, 4);
    }
    (void)in;
}

KERNEL(sse_packed, "sse4.2")
{
    __m128i hash = _mm_set1_epi32(0x01234567);
    uint32_t crc = 0;
    /* odd addresses: loads and stores straddle pages */
    for (unsigned i = 0; i + 64 < IN_BYTES; i += 13) {
        __m128i a = _mm_loadu_si128((const __m128i *)(in + i)), b = _mm_loadu_si128((const __m128i *)(in + i + 16));
        hash = _mm_add_epi16(_mm_mullo_epi32(hash, a), _mm_madd_epi16(b, a));
        hash = _mm_xor_si128(_mm_shuffle_epi8(hash, _mm_and_si128(b, _mm_set1_epi8(15))), _mm_sad_epu8(a, b));
        hash = _mm_blendv_epi8(hash, _mm_packus_epi32(a, b), _mm_cmpgt_epi64(a, b));
        hash = _mm_add_epi64(hash, _mm_alignr_epi8(a, b, 5));
        crc = _mm_crc32_u64(_mm_crc32_u8(crc, in[i]), _mm_extract_epi64(hash, 1));
        crc += _mm_popcnt_u64(_mm_cvtsi128_si64(hash));
        crc += _mm_cmpestri(a, 7, b, 16, _SIDD_CMP_EQUAL_ANY) + _mm_testc_si128(a, b) + _mm_movemask_epi8(hash);
        crc += _mm_cmpistrz(a, b, _SIDD_CMP_RANGES) + _mm_cmpistrc(a, hash, _SIDD_CMP_EQUAL_ORDERED);
        _mm_storeu_si128((__m128i *)(out + i), hash);
        __m128 f = _mm_cvtepi32_ps(_mm_srai_epi32(hash, 8));
        f = _mm_div_ps(_mm_add_ps(f, _mm_set1_ps(0.5f)), _mm_sqrt_ps(_mm_mul_ps(f, f)));
        f = _mm_round_ps(_mm_dp_ps(f, _mm_movehdup_ps(f), 0xf1), _MM_FROUND_TO_NEAREST_INT);
        _mm_storel_pi((__m64 *)(out + 9000 + (i & 4095)), f);
    }
    memcpy(out, &crc, 4);
}

KERNEL(avx, "avx2,fma,f16c,bmi,bmi2,lzcnt")
{
    __m256i hash = _mm256_setzero_si256();
    __m256d acc = _mm256_set1_pd(1.0);
    uint64_t bits = 0x9e3779b97f4a7c15;
    for (unsigned i = 0; i + 64 < IN_BYTES; i += 29) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(in + i));
        hash = _mm256_add_epi32(_mm256_permutevar8x32_epi32(hash, a), _mm256_mullo_epi16(a, hash));
        hash = _mm256_xor_si256(hash, _mm256_sllv_epi32(a, _mm256_srli_epi32(a, 27)));
        hash = _mm256_permute2x128_si256(hash, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)), 0x21);
        acc = _mm256_fmadd_pd(acc, _mm256_set1_pd(0.5), _mm256_cvtepi32_pd(_mm256_castsi256_si128(hash)));
        acc = _mm256_fnmsub_pd(acc, _mm256_broadcast_sd((const double *)"\0\0\0\0\0\0\xd0\x3f"), acc);
        __m128i half = _mm256_cvtps_ph(_mm256_cvtepi32_ps(_mm256_srai_epi32(hash, 20)), 0);
        bits = _pext_u64(bits * 3, in[i] | 0xff00ff00ff00ff00) + _pdep_u64(in[i + 1], bits);
        bits += _mulx_u64(bits, bits | 1, (unsigned long long *)(out + 16000));
        bits ^= _bzhi_u64(bits, in[i] & 63) + _tzcnt_u64(bits) + _lzcnt_u64(bits | 1) + _blsi_u64(bits);
        bits += _bextr_u64(bits, 3, 9);
        _mm256_storeu_si256((__m256i *)(out + i), hash);
        _mm_storeu_si128((__m128i *)(out + 8192 + (i & 2047)), half);
        _mm256_storeu_pd((double *)(out + 11000 + (i & 2047)), acc);
    }
    memcpy(out + 16200, &bits, 8);
    _mm256_zeroupper();
}

KERNEL(crypto, "aes,pclmul,sha,sse4.1")
{
    __m128i state = _mm_set1_epi8(0x3c), key = _mm_set1_epi8(0x55), e = state;
    for (unsigned i = 0; i + 32 < 4096; i += 16) {
        __m128i m = _mm_loadu_si128((const __m128i *)(in + i));
        state = _mm_aesenc_si128(state, m);
        key = _mm_xor_si128(_mm_aeskeygenassist_si128(key, 0x1b), _mm_aesimc_si128(m));
        state = _mm_xor_si128(_mm_aesdeclast_si128(state, key), _mm_clmulepi64_si128(m, key, 0x10));
        e = _mm_sha1rnds4_epu32(_mm_sha1nexte_epu32(e, m), state, 2);
        state = _mm_sha256rnds2_epu32(state, _mm_sha256msg1_epu32(e, m), key);
        _mm_storeu_si128((__m128i *)(out + i), state);
    }
}

KERNEL(mmx, "mmx")
{
    for (unsigned i = 0; i + 16 < 2048; i += 8)
        __asm__ volatile("movq (%0), %%mm1; paddsb 8(%0), %%mm1; movq %%mm1, %%mm7; punpcklbw 4(%0), %%mm7;"
                         "pmaddwd %%mm7, %%mm1; psllw $3, %%mm7; pshufw $0x1b, %%mm7, %%mm7; pxor %%mm7, %%mm1;"
                         "movq2dq %%mm1, %%xmm2; cvtpi2ps %%mm7, %%xmm3; movq %%mm1, (%1); movups %%xmm3, 4096(%1)"
                         : : "r"(in + i), "r"(out + i) : "memory", "xmm2", "xmm3");
    __asm__ volatile("emms");
}

/* Images: what is saved must be what is restored, and vector registers live on in between. */
KERNEL(images, "avx")
{
    __asm__ volatile("vmovups (%0), %%ymm5; vmovups 32(%0), %%ymm13; fld1; fldpi; fldl 64(%0);"
                     "fxsave64 (%1); xorps %%xmm5, %%xmm5; fninit; fxrstor64 (%1); fstpt 512(%1);"
                     "fnstenv 528(%1); fldenv 528(%1); fnsave 560(%1); frstor 560(%1); fstpt 680(%1);"
                     "mov $7, %%eax; xor %%edx, %%edx; xsave64 704(%1); vzeroall; xrstor64 704(%1);"
                     "vmovups %%ymm5, 2048(%1); vmovups %%ymm13, 2080(%1);"
                     "mov $6, %%eax; xsavec64 2112(%1); vzeroall; xrstor64 2112(%1); vmovups %%ymm13, 3072(%1);"
                     "fstpt 3104(%1); fninit; vzeroupper"
                     : : "r"(in), "r"(out) : "memory", "eax", "edx");
    /* fields that processors fill in their own way: pointers, reserved bytes, MXCSR_MASK */
    for (unsigned i = 0; i < 18; i++)
        out[6 + i] = out[704 + 6 + i] = 0;
    for (unsigned i = 0; i < 4; i++)
        out[28 + i] = out[704 + 28 + i] = out[2112 + 28 + i] = 0;
    for (unsigned i = 12; i < 28; i++)
        out[528 + i] = out[560 + i] = 0;
}

/* ---- the machine ---- */

extern const uint8_t __executable_start[], _end[];
static _Alignas(4096) uint8_t input[IN_BYTES + 64], output[OUT_BYTES + 64], stack[16384];
static const uint8_t halt = 0xf4;
static uint64_t now;

#define TABLES 0x1000u
#define IMAGE 0x200000u

static struct guest_mem mem;
static struct cpu *cpu;
static uint64_t next_table = TABLES + 4096;

static uint64_t gpa_of(const void *address)
{
    return IMAGE + ((uintptr_t)address - align_down((uintptr_t)__executable_start, 4096));
}

/* Maps the page of `linear` to `gpa`, adding tables on the way. */
static void map_page(uint64_t linear, uint64_t gpa)
{
    uint64_t table = TABLES;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        uint64_t at = table + 8 * (linear >> shift & 511), entry;
        CHECK(guest_mem_read(&mem, at, &entry, 8));
        if (!entry) {
            entry = next_table | 7;
            next_table += 4096;
            CHECK(guest_mem_write(&mem, at, &entry, 8));
        }
        table = entry & ~UINT64_C(4095);
    }
    gpa |= 7;
    CHECK(guest_mem_write(&mem, table + 8 * (linear >> 12 & 511), &gpa, 8));
}

static void prepare(void)
{
    imgvm_error err;
    struct cpu_options options = {.count = 1, .translator = WORLD_TRANSLATOR};
    uint64_t start = align_down((uintptr_t)__executable_start, 4096), end = align_up((uintptr_t)_end, 4096);
    CHECK_EQ(guest_mem_init(&mem, &err), 0);
    CHECK_EQ(guest_mem_add(&mem, 0, IMAGE + align_up(end - start, 4096), false, &err), 0);
    for (uint64_t page = start; page < end; page += 4096)
        map_page(page, IMAGE + page - start);
    CHECK(next_table < IMAGE);
    cpu = cpu_create(&quiet_callbacks, &now, &mem, &options, &err);
    CHECK(cpu != NULL);
    CHECK_EQ(cpu_install_trap_handlers(&err), 0);
}

/* Not by memcpy: the address sanitizer would have it that gaps between variables are not to be read. */
static void copy_in(const void *from, const void *to)
{
    size_t bytes = (const uint8_t *)to - (const uint8_t *)from;
    void *guest = guest_mem_ptr(&mem, gpa_of(from), bytes, true);
    CHECK(guest != NULL);
    fpu_copy(guest, from, bytes);
    guest_mem_written(&mem, gpa_of(from), bytes);
}

static void run_guest(void (*kernel)(uint8_t *, const uint8_t *), unsigned shift)
{
    struct x86_state s;
    uint64_t top = (uintptr_t)stack + sizeof stack - 8, end = (uintptr_t)&halt;
    flat_long_mode(&s, TABLES);
    s.gpr[RSP] = top;
    s.gpr[RDI] = (uintptr_t)output + shift;
    s.gpr[RSI] = (uintptr_t)input + shift;
    s.rip = (uintptr_t)kernel;
    store_le16(s.xsave, 0x37f);
    copy_in(input, input + sizeof input);
    copy_in(output, output + sizeof output);
    CHECK(guest_mem_write(&mem, gpa_of((void *)top), &end, 8));
    cpu_set_state(cpu, &s);
    CHECK_EQ(cpu_run(cpu), CPU_EXIT_HALT);
    cpu_get_state(cpu, &s);
    if (s.rip != end + 1)
        printf("guest stopped at %#" PRIx64 ", cr2 %#" PRIx64 ": %s\n", s.rip, s.cr2, cpu_message(cpu));
    CHECK_EQ(s.rip, end + 1);
    CHECK_EQ(s.gpr[RSP], top + 8);
}

static void test_kernel(const char *name, void (*kernel)(uint8_t *, const uint8_t *))
{
    static uint8_t result[OUT_BYTES + 64];
    for (unsigned shift = 0; shift <= 64; shift += 64) {
        for (size_t i = 0; i < sizeof input; i++)
            input[i] = (uint8_t)(random() >> 7);
        memset(output, 0xa5, sizeof output);
        memset(output + 704, 0, 4096); /* XSAVE headers */
        run_guest(kernel, shift);
        kernel(output + shift, input + shift);
        CHECK(guest_mem_read(&mem, gpa_of(output), result, sizeof result));
        size_t i = 0;
        while (i < sizeof result && result[i] == output[i])
            i++;
        check_count++;
        if (i < sizeof result) {
            check_failures++;
            printf("%s: byte %zu is %02x, on the host %02x\n", name, i, result[i], output[i]);
        }
    }
}

int main(void)
{
#ifdef __SANITIZE_ADDRESS__
    return printf("1 checks, 0 failed\n"), 0; /* memcpy would be a call out of this image */
#endif
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return printf("1 checks, 0 failed\n"), 0; /* the host has less than these functions need */
    prepare();
    copy_in((const void *)align_down((uintptr_t)__executable_start, 4096), _end);
    test_kernel("x87", x87);
    test_kernel("sse_scalar", sse_scalar);
    test_kernel("sse_packed", sse_packed);
    test_kernel("avx", avx);
    test_kernel("mmx", mmx);
    test_kernel("images", images);
    if (cpuid_host_has(FEATURE_AES) && cpuid_host_has(FEATURE_PCLMULQDQ) && cpuid_host_has(FEATURE_SHA))
        test_kernel("crypto", crypto);
    cpu_destroy(cpu);
    guest_mem_destroy(&mem);
    return check_report();
}
