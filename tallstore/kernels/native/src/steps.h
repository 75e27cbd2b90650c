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

#if defined(__AVX2__)

/* A mask's tables by symbol: a lookup is by the lowest two bits of a lane, of which a binary mask has one. */
typedef struct {
    bool two;
    __m256i shifts; /* a symbol's bits to the lowest ones of its lane */
    __m256 size;    /* s */
    __m256 negate;  /* −0 where q is negated, else 0 */
    __m256 keep;    /* all ones where the symbol is not 0 */
    __m256 over_ones;
} ts_masking;

static inline ts_masking ts_masking_of(const ts_delta *d) {
    const bool two = d->bits == 2;
    const __m256i one = _mm256_setr_epi32(0, -1, 0, 0, 0, -1, 0, 0), both = _mm256_setr_epi32(0, -1, -1, 0, 0, -1, -1, 0);
    const __m256i odd = _mm256_setr_epi32(0, -1, 0, -1, 0, -1, 0, -1);
    ts_masking m;
    m.two = two;
    m.shifts = two ? _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14) : _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    m.size = _mm256_set1_ps((float)d->scale);
    m.negate = _mm256_castsi256_ps(_mm256_and_si256(two ? one : odd, _mm256_set1_epi32(INT32_MIN)));
    m.keep = _mm256_castsi256_ps(two ? both : odd);
    m.over_ones = _mm256_and_ps(_mm256_xor_ps(m.size, m.negate), m.keep);
    return m;
}

/* Steps of eight elements from `at`, a multiple of 8, on: see ts_mask_f32. */
static inline __m256 ts_mask8(const ts_masking *m, const uint8_t *codes, int64_t at, const float *values) {
    uint16_t word = 0;
    if (m->two) memcpy(&word, codes + (at >> 2), sizeof word);
    else word = codes[at >> 3];
    const __m256i symbols = _mm256_srlv_epi32(_mm256_set1_epi32(word), m->shifts);
    if (!values) return _mm256_permutevar_ps(m->over_ones, symbols);
    const __m256 q = _mm256_mul_ps(m->size, _mm256_loadu_ps(values));
    const __m256 turned = _mm256_xor_ps(q, _mm256_permutevar_ps(m->negate, symbols));
    return _mm256_and_ps(turned, _mm256_permutevar_ps(m->keep, symbols));
}

/* Eight values by indices of 4 bits; nibbles: 0, 4 … 28. */
static inline __m256 ts_look_up8(const uint8_t *codes, __m256 low, __m256 high, __m256i nibbles) {
    uint32_t word;
    memcpy(&word, codes, sizeof word);
    const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32((int32_t)word), nibbles);
    const __m256 a = _mm256_permutevar8x32_ps(low, index), b = _mm256_permutevar8x32_ps(high, index);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

#endif

/* table[index] of elements [i, i + n). */
static inline void ts_look_up(float *restrict out, const uint8_t *codes, const float *table, int64_t i, int64_t n, int32_t bits) {
    int64_t k = 0;
#if defined(__AVX2__)
    if (bits == 4 && i % 2 == 0) {
        const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
        const __m256i nibbles = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        for (; k + 8 <= n; k += 8) _mm256_storeu_ps(out + k, ts_look_up8(codes + ((i + k) >> 1), low, high, nibbles));
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
    if (i % 8 == 0) {
        const ts_masking m = ts_masking_of(d);
        for (; k + 8 <= n; k += 8) _mm256_storeu_ps(out + k, ts_mask8(&m, d->codes, i + k, values ? values + k : NULL));
    }
#endif
    for (; k < n; k++) {
        const unsigned symbol = ts_symbol(d->codes, i + k, d->bits);
        const float q = values ? scale * values[k] : scale;
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
