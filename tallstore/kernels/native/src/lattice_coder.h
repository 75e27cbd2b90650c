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

enum { FEW = 64, MANY = 256 };
typedef struct { /* what is looked up while several elements are coded at a time */
    uint8_t order[16][16]; /* [few]: where the words of those of four lanes lie that have one, the last ones */
    bool wide, few;        /* whether there may be thirty-two elements, by what follows, and whether that is FEW at most */
    uint16_t shares[MANY], begins[MANY];
} lookups;

#if defined(__AVX512VBMI2__)
/* Of 32 places in a table of `size` numbers what is there. */
ALWAYS __m512i look_up(const __m512i *table, __m512i places, int32_t size) {
    __m512i found = _mm512_permutex2var_epi16(table[0], places, table[1]);
    for (int32_t k = 64; k < size; k += 64) {
        const __mmask32 here = _mm512_cmpge_epu16_mask(places, _mm512_set1_epi16((int16_t)k));
        found = _mm512_mask_mov_epi16(found, here, _mm512_permutex2var_epi16(table[k / 32], places, table[k / 32 + 1]));
    }
    return found;
}

/* Code elements whose coders are place[0 … n), n a multiple of 32 as the number of lanes is, from the last one on. Returns where
 * words begin. `size`: of the tables, FEW or MANY. Quotients are below 2^22 and rounded down to 24 bits, twice: they are exact or
 * too small by one, which the rest tells. */
ALWAYS uint16_t *encode_wide(
    uint16_t *out, uint32_t *restrict state, const uint16_t *restrict place, int64_t n, int32_t lanes, int32_t bits,
    const lookups *by, int32_t size
) {
    enum { DOWN = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC };
    const __m128i top = _mm_cvtsi32_si128(32 - bits), up = _mm_cvtsi32_si128(bits);
    const __m256i lane = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i shares[MANY / 32], begins[MANY / 32];
    for (int32_t k = 0; k < size / 32; k++) shares[k] = _mm512_loadu_si512(by->shares + 32 * k), begins[k] = _mm512_loadu_si512(by->begins + 32 * k);
    for (int64_t i = n - 32; i >= 0; i -= 32) {
        const __m512i own = _mm512_loadu_si512(place + i), each = look_up(shares, own, size), all = look_up(begins, own, size);
        for (int h = 1; h >= 0; h--) {
            uint32_t *at = state + ((i + 16 * h) & (lanes - 1));
            const __m512i share = _mm512_cvtepu16_epi32(h ? _mm512_extracti64x4_epi64(each, 1) : _mm512_castsi512_si256(each));
            const __m512i begin = _mm512_cvtepu16_epi32(h ? _mm512_extracti64x4_epi64(all, 1) : _mm512_castsi512_si256(all));
            __m512i x = _mm512_loadu_si512(at);
            const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srl_epi32(x, top), share);
            const int count = __builtin_popcount(full);
            const __m256i words = _mm256_maskz_compress_epi16(full, _mm512_cvtepi32_epi16(x)); /* turned to be the last of 16 */
            const __m256i last = _mm256_permutexvar_epi16(_mm256_add_epi16(lane, _mm256_set1_epi16((int16_t)count)), words);
            _mm256_storeu_si256((__m256i *)(out - 16), last);
            out -= count;
            x = _mm512_mask_srli_epi32(x, full, x, 16);
            const __m512 ratio = _mm512_div_round_ps(_mm512_cvt_roundepu32_ps(x, DOWN), _mm512_cvtepi32_ps(share), DOWN);
            const __m512i quotient = _mm512_cvttps_epi32(ratio), rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, share));
            x = _mm512_add_epi32(_mm512_add_epi32(rest, begin), _mm512_sll_epi32(quotient, up));
            const __m512i more = _mm512_sub_epi32(_mm512_set1_epi32(1 << bits), share);
            _mm512_storeu_si512(at, _mm512_mask_add_epi32(x, _mm512_cmpge_epi32_mask(rest, share), x, more));
        }
    }
    return out;
}
#endif

#if defined(__AVX2__)
/* Code elements whose coders are place[begin … n), both multiples of 4 as the number of lanes is, from the last one on. Returns
 * where words begin. */
ALWAYS uint16_t *encode_fours(
    uint16_t *out, uint32_t *restrict state, const uint16_t *restrict place, int64_t begin, int64_t n, const coder *coders,
    int32_t lanes, int32_t bits, const uint8_t (*order)[16]
) {
    const __m128i by = _mm_cvtsi32_si128(32 - bits), low = _mm_set1_epi32(0xFFFF), one = _mm_set1_epi32(1);
    const __m256d large = _mm256_set1_pd(0x1p52), less = _mm256_set1_pd(0x1p52 - 0.5); /* whose last digit is 1 */
    for (int64_t i = n - 4; i >= begin; i -= 4) {
        __m128i of[4], *at = (__m128i *)(state + (i & (lanes - 1))), x = _mm_loadu_si128(at);
        for (int k = 0; k < 4; k++) of[k] = _mm_loadu_si128((const __m128i *)(coders + place[i + k]));
        __m128i a = _mm_unpackhi_epi32(of[0], of[1]), b = _mm_unpackhi_epi32(of[2], of[3]);
        __m128i shares = _mm_unpacklo_epi64(a, b), first = _mm_unpackhi_epi64(a, b);
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
        x = _mm_add_epi32(_mm_add_epi32(x, first), _mm_mullo_epi32(times, _mm_srli_epi32(shares, 16)));
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

ALWAYS void fill_lookups(lookups *of, const coder *coders, int32_t count, int32_t lanes, int32_t bits) {
    memset(of, 0, sizeof *of);
    memset(of->order, 0x80, sizeof of->order);
    for (int few = 0; few < 16; few++)
        for (int lane = 3, to = 8; lane >= 0; lane--)
            if (few >> lane & 1)
                to -= 2, of->order[few][to] = (uint8_t)(4 * lane), of->order[few][to + 1] = (uint8_t)(4 * lane + 1);
    of->wide = count <= MANY && lanes >= 32 && bits >= 10;
    for (int32_t at = 0; at < count && of->wide; at++)
        of->shares[at] = (uint16_t)coders[at].shares, of->begins[at] = (uint16_t)coders[at].begin;
    of->few = count <= FEW;
}

/* Code elements whose coders are place[0 … n), the first one's in lane 0, from the last one on. Returns where words begin. */
ALWAYS uint16_t *encode_some(
    uint16_t *out, uint32_t *states, const uint16_t *place, int64_t n, const coder *coders, int32_t lanes, int32_t bits,
    const lookups *by
) {
    int64_t left = n;
    (void)by;
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
    int64_t begin = 0;
#if defined(__AVX512VBMI2__)
    begin = by->wide ? n & ~(int64_t)31 : 0;
#endif
    out = encode_fours(out, states, place, begin, n - left, coders, lanes, bits, by->order);
#if defined(__AVX512VBMI2__)
    if (by->wide && by->few) out = encode_wide(out, states, place, begin, lanes, bits, by, FEW);
    else if (by->wide) out = encode_wide(out, states, place, begin, lanes, bits, by, MANY);
#endif
#endif
    return out;
}

#endif
