/* What is taken from the base, as float32 or float64: of masks over a vector, and of deltas by their levels. */
#ifndef TS_STEPS_H
#define TS_STEPS_H

#include "gaps.h"

enum { TS_NOTHING = 0, TS_GAPS = 1, TS_MASK = 2, TS_LEVELS = 3, TS_VALUES = 4 };

/* A task's share of one chunk. `tallstore.kernels.native.decode` declares the same. */
typedef struct {
    int32_t kind; /* one of those above */
    int32_t bits; /* of a symbol or an index */
    int64_t n;            /* elements */
    double scale;         /* s, exactly a float32 */
    const uint8_t *codes; /* gaps, packed symbols, or indices: two per byte, the first in the low half, or one */
    int64_t code_bytes;
    const uint8_t *signs; /* of gaps */
    int64_t sign_bytes;
    const float *values;   /* v, or the delta; NULL: 1 everywhere, or by its levels */
    const uint8_t *levels; /* v by indices of 4 bits; or NULL */
    const float *table;    /* levels: 16 of indices of 4 bits, 256 of 8 */
} ts_delta;

static inline unsigned ts_symbol(const uint8_t *codes, int64_t i, int32_t bits) {
    return bits == 1 ? (codes[i >> 3] >> (i & 7)) & 1u : (codes[i >> 2] >> (2 * (i & 3))) & 3u;
}

static inline unsigned ts_index(const uint8_t *codes, int64_t i, int32_t bits) {
    return bits == 8 ? codes[i] : (codes[i >> 1] >> (4 * (i & 1))) & 15u;
}

/* table[index] of elements [i, i + n); i is even. */
static inline void ts_look_up(float *restrict out, const uint8_t *codes, const float *table, int64_t i, int64_t n, int32_t bits) {
    int64_t k = 0;
#if defined(__AVX2__)
    if (bits == 4 && i % 2 == 0) {
        const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
        const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        for (; k + 8 <= n; k += 8) {
            uint32_t word;
            memcpy(&word, codes + ((i + k) >> 1), sizeof word);
            const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32((int32_t)word), shifts);
            const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
            const __m256 a = _mm256_permutevar8x32_ps(low, index), b = _mm256_permutevar8x32_ps(high, index);
            _mm256_storeu_ps(out + k, _mm256_blendv_ps(a, b, upper));
        }
    }
#endif
    for (; k < n; k++) out[k] = table[ts_index(codes, i + k, bits)];
}

/* Steps of a mask: 0 where the symbol is 0, −q where it is 1, and q where it is 2; q = s·v, rounded once. They are
 * subtracted: x − 0 is x, −0 too, and x − (−q) is x + q. values: NULL where v is 1. */
static inline void ts_mask_f32(float *restrict out, const ts_delta *d, const float *values, int64_t i, int64_t n) {
    const float scale = (float)d->scale;
    int64_t k = 0;
#if defined(__AVX2__)
    if (i % 8 == 0) { /* a lookup by the lowest two bits of a lane, of which a binary mask has one */
        const bool two = d->bits == 2;
        const __m256 size = _mm256_set1_ps(scale);
        const __m256i sign = _mm256_set1_epi32(INT32_MIN);
        const __m256i odd = _mm256_setr_epi32(0, -1, 0, -1, 0, -1, 0, -1), upper = _mm256_setr_epi32(0, 0, -1, 0, 0, 0, -1, 0);
        const __m256 negate = _mm256_castsi256_ps(
            two ? _mm256_and_si256(_mm256_setr_epi32(0, -1, 0, 0, 0, -1, 0, 0), sign) : _mm256_and_si256(odd, sign));
        const __m256 keep = _mm256_castsi256_ps(
            two ? _mm256_or_si256(_mm256_setr_epi32(0, -1, 0, 0, 0, -1, 0, 0), upper) : odd);
        const __m256 table = _mm256_and_ps(_mm256_xor_ps(size, negate), keep);
        const __m256i shifts = two ? _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14) : _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        for (; k + 8 <= n; k += 8) {
            uint16_t word = 0;
            if (two) memcpy(&word, d->codes + ((i + k) >> 2), sizeof word);
            else word = d->codes[(i + k) >> 3];
            const __m256i symbols = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
            if (!values) {
                _mm256_storeu_ps(out + k, _mm256_permutevar_ps(table, symbols));
                continue;
            }
            const __m256 q = _mm256_mul_ps(size, _mm256_loadu_ps(values + k));
            const __m256 turned = _mm256_xor_ps(q, _mm256_permutevar_ps(negate, symbols));
            _mm256_storeu_ps(out + k, _mm256_and_ps(turned, _mm256_permutevar_ps(keep, symbols)));
        }
    }
#endif
    const float steps[4] = {0.0f, -scale, scale, 0.0f};
    if (!values) {
        for (; k < n; k++) out[k] = steps[ts_symbol(d->codes, i + k, d->bits)];
        return;
    }
    for (; k < n; k++) {
        const unsigned symbol = ts_symbol(d->codes, i + k, d->bits);
        const float q = scale * values[k];
        out[k] = symbol == 0 ? 0.0f : symbol == 1 ? -q : q;
    }
}

static inline void ts_mask_f64(double *restrict out, const ts_delta *d, const float *values, int64_t i, int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        const unsigned symbol = ts_symbol(d->codes, i + k, d->bits);
        const double q = d->scale * (values ? (double)values[k] : 1.0);
        out[k] = symbol == 0 ? 0.0 : symbol == 1 ? -q : q;
    }
}

#endif
