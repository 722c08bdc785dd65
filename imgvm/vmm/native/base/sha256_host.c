/* SPDX-License-Identifier: MIT */
/* SHA-256 by SHA256RNDS2, SHA256MSG1 and SHA256MSG2 (SDM vol. 2): ten times as fast, and a kernel of 34 MB is checked
 * at every start. */
#include <cpuid.h>
#include <immintrin.h>

#include "sha256_compress.h"

bool sha256_host_has_sha(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_SSSE3) || !(ecx & bit_SSE4_1))
        return false;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && ebx & bit_SHA;
}

#define WITH_SHA __attribute__((target("sha,ssse3,sse4.1")))

/* W[t] to W[t+3] from the sixteen words before them, the oldest first. */
WITH_SHA static inline __m128i schedule(const __m128i w[4], unsigned oldest)
{
    __m128i newest = w[(oldest + 3) % 4];
    __m128i sum = _mm_sha256msg1_epu32(w[oldest], w[(oldest + 1) % 4]);
    sum = _mm_add_epi32(sum, _mm_alignr_epi8(newest, w[(oldest + 2) % 4], 4));
    return _mm_sha256msg2_epu32(sum, newest);
}

WITH_SHA void sha256_compress_sha(uint32_t state[8], const uint8_t *data, size_t blocks)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i *at = (__m128i *)state;
    /* The instructions want the state as A, B, E, F and C, D, G, H, from the highest word on. */
    __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(at), 0xb1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(at + 1), 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; blocks; blocks--, data += 64) {
        __m128i w[4], abef_before = abef, cdgh_before = cdgh;
#pragma GCC unroll 16
        for (unsigned i = 0; i < 16; i++) { /* four rounds each */
            if (i < 4)
                w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)data + i), big_endian);
            else
                w[i % 4] = schedule(w, i % 4);
            __m128i sum = _mm_add_epi32(w[i % 4], _mm_loadu_si128((const __m128i *)sha256_round_constants + i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(at, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(at + 1, _mm_alignr_epi8(dchg, feba, 8));
}
