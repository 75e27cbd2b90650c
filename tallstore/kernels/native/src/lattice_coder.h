/* What encoders of codecs `lattice` and `drift` share: symbols as range coders take them. */
#ifndef TS_LATTICE_CODER_H
#define TS_LATTICE_CODER_H

#include "lattice.h"

/* Of signed symbols their places in the order 0, +1, −1, +2, …, behind `kinds` for each row in front of their own. */
ALWAYS void fill_places(uint16_t *restrict place, const uint8_t *restrict row, const int8_t *restrict symbols, int64_t n, uint16_t kinds) {
    for (int64_t i = 0; i < n; i++) {
        int16_t symbol = symbols[i];
        place[i] = (uint16_t)(row[i] * kinds + (symbol > 0 ? 2 * symbol - 1 : -2 * symbol));
    }
}

typedef struct {
    double inverse; /* a little more than 1 / share: quotients by it, rounded down, are exact */
    uint32_t shares; /* the share; 2^bits less the share, shifted by 16 */
    uint32_t begin;
} coder;

#if defined(__AVX2__)
/* Code elements whose coders are place[0 … n), n a multiple of 4 as the number of lanes is, from the last one on. Returns
 * where words begin. */
ALWAYS uint16_t *encode_fours(
    uint16_t *out, uint32_t *restrict state, const uint16_t *restrict place, int64_t n, const coder *coders, int32_t lanes,
    int32_t bits, const uint8_t (*order)[16]
) {
    const __m128i by = _mm_cvtsi32_si128(32 - bits), low = _mm_set1_epi32(0xFFFF), one = _mm_set1_epi32(1);
    const __m256d large = _mm256_set1_pd(0x1p52), less = _mm256_set1_pd(0x1p52 - 0.5); /* whose last digit is 1 */
    for (int64_t i = n - 4; i >= 0; i -= 4) {
        __m128i of[4], *at = (__m128i *)(state + (i & (lanes - 1))), x = _mm_loadu_si128(at);
        for (int k = 0; k < 4; k++) of[k] = _mm_loadu_si128((const __m128i *)(coders + place[i + k]));
        __m128i a = _mm_unpackhi_epi32(of[0], of[1]), b = _mm_unpackhi_epi32(of[2], of[3]);
        __m128i shares = _mm_unpacklo_epi64(a, b), begin = _mm_unpackhi_epi64(a, b);
        __m256d inverse = _mm256_castsi256_pd(
            _mm256_set_m128i(_mm_unpacklo_epi64(of[2], of[3]), _mm_unpacklo_epi64(of[0], of[1]))
        );
        __m128i full = _mm_cmpgt_epi32(_mm_add_epi32(_mm_srl_epi32(x, by), one), _mm_and_si128(shares, low));
        unsigned few = (unsigned)_mm_movemask_ps(_mm_castsi128_ps(full));
        _mm_storel_epi64((__m128i *)(out - 4), _mm_shuffle_epi8(x, _mm_loadu_si128((const __m128i *)order[few])));
        out -= __builtin_popcount(few);
        x = _mm_blendv_epi8(x, _mm_srli_epi32(x, 16), full);
        __m256i wide = _mm256_or_si256(_mm256_cvtepu32_epi64(x), _mm256_castpd_si256(large));
        __m256d quotient = _mm256_mul_pd(_mm256_sub_pd(_mm256_castsi256_pd(wide), large), inverse);
        quotient = _mm256_add_pd(quotient, less);
        __m128 half = _mm_castpd_ps(_mm256_extractf128_pd(quotient, 1));
        __m128i times = _mm_castps_si128(_mm_shuffle_ps(_mm_castpd_ps(_mm256_castpd256_pd128(quotient)), half, 0x88));
        x = _mm_add_epi32(_mm_add_epi32(x, begin), _mm_mullo_epi32(times, _mm_srli_epi32(shares, 16)));
        _mm_storeu_si128(at, x);
    }
    return out;
}
#endif

static void fill_coders(coder *coders, const uint8_t *weights, int32_t kinds, int32_t bits) {
    uint32_t share[KINDS], begin = 0;
    fill_shares(share, weights, kinds, bits);
    for (int at = 0; at < kinds; begin += share[at++]) {
        coders[at].inverse = (1 + 0x1p-40) / TS_MAX(share[at], 1);
        coders[at].shares = share[at] | ((1u << bits) - share[at]) << 16;
        coders[at].begin = begin;
    }
}

/* order[few]: where the words of those of four lanes lie that have one, the last ones. */
ALWAYS void fill_fours(uint8_t (*order)[16]) {
    memset(order, 0x80, 256);
    for (int few = 0; few < 16; few++)
        for (int lane = 3, to = 8; lane >= 0; lane--)
            if (few >> lane & 1) to -= 2, order[few][to] = (uint8_t)(4 * lane), order[few][to + 1] = (uint8_t)(4 * lane + 1);
}

/* Code elements whose coders are place[0 … n), the first one's in lane 0, from the last one on. Returns where words begin. */
ALWAYS uint16_t *encode_some(
    uint16_t *out, uint32_t *states, const uint16_t *place, int64_t n, const coder *coders, int32_t lanes, int32_t bits,
    const uint8_t (*order)[16]
) {
    int64_t left = n;
    (void)order;
#if defined(__AVX2__)
    left &= 3;
#endif
    for (int64_t i = n - 1; i >= n - left; i--) {
        const coder *one = coders + place[i];
        uint32_t x = states[i & (lanes - 1)], full = x >> (32 - bits) >= (one->shares & 0xFFFF);
        out[-1] = (uint16_t)x;
        out -= full;
        x >>= full * 16;
        states[i & (lanes - 1)] = x + one->begin + (uint32_t)((double)x * one->inverse) * (one->shares >> 16);
    }
#if defined(__AVX2__)
    out = encode_fours(out, states, place, n - left, coders, lanes, bits, order);
#endif
    return out;
}

#endif
