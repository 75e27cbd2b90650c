/* Base, step and sum of eight elements in registers, on processors with AVX2: one pass over memory for the shares that
 * are met most. The same products, sums and roundings as in steps.h and decode.c, which do everything else. */
#ifndef TS_FUSED_H
#define TS_FUSED_H

#include "steps.h"

#if defined(__AVX2__)

enum { TS_OVER_ONES, TS_OVER_VALUES, TS_BY_4_BITS, TS_BY_8_BITS };

static inline __m256 ts_load8(const void *base, int64_t k, const int form) {
    if (form == TS_FLOAT32) return _mm256_loadu_ps((const float *)base + k);
    const __m128i words = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)base + k));
    if (form == TS_FLOAT16) return _mm256_cvtph_ps(words);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

static inline void ts_store8(void *out, int64_t k, __m256 sum, const int form) {
    if (form == TS_FLOAT32) {
        _mm256_storeu_ps((float *)out + k, sum);
        return;
    }
    __m128i *place = (__m128i *)(void *)((uint16_t *)out + k);
    if (form == TS_FLOAT16) {
        _mm_storeu_si128(place, _mm256_cvtps_ph(sum, _MM_FROUND_TO_NEAREST_INT));
        return;
    }
    const __m256i bits = _mm256_castps_si256(sum), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(sum, sum, _CMP_UNORD_Q));
    const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7FC00000), nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128(place, _mm256_castsi256_si128(packed));
}

static inline __attribute__((always_inline)) int64_t
ts_fuse(void *out, const void *base, int64_t i, int64_t n, const ts_delta *d, const int form, const int way) {
    const ts_masking m = ts_masking_of(d);
    const __m256i nibbles = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const bool four = way == TS_BY_4_BITS;
    const __m256 low = four ? _mm256_loadu_ps(d->table) : m.size, high = four ? _mm256_loadu_ps(d->table + 8) : m.size;
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
        const __m256 before = ts_load8(base, k, form);
        if (way == TS_BY_4_BITS) {
            ts_store8(out, k, _mm256_add_ps(before, ts_look_up8(d->codes + ((i + k) >> 1), low, high, nibbles)), form);
        } else if (way == TS_BY_8_BITS) {
            const __m128i indices = _mm_loadl_epi64((const __m128i *)(const void *)(d->codes + i + k));
            const __m256 step = _mm256_i32gather_ps(d->table, _mm256_cvtepu8_epi32(indices), 4);
            ts_store8(out, k, _mm256_add_ps(before, step), form);
        } else {
            const float *values = way == TS_OVER_VALUES ? d->values + i + k : NULL;
            ts_store8(out, k, _mm256_sub_ps(before, ts_mask8(&m, d->codes, i + k, values)), form);
        }
    }
    return k;
}

/* As many of a run's elements as can be done so: a multiple of 8, or none. Of masks the base has no NaN. */
static int64_t fused(void *out, const void *base, int64_t i, int64_t n, const ts_delta *d, int32_t form) {
    int way;
    if (i % 8 || form == TS_FLOAT64 || d->levels) return 0;
    if (d->kind == TS_MASK) way = d->values ? TS_OVER_VALUES : TS_OVER_ONES;
    else if (d->kind == TS_LEVELS) way = d->bits == 4 ? TS_BY_4_BITS : TS_BY_8_BITS;
    else return 0;
#define TS_WAY(FORM, WAY) \
    if (form == FORM && way == WAY) return ts_fuse(out, base, i, n, d, FORM, WAY);
#define TS_WAYS(FORM) \
    TS_WAY(FORM, TS_OVER_ONES) TS_WAY(FORM, TS_OVER_VALUES) TS_WAY(FORM, TS_BY_4_BITS) TS_WAY(FORM, TS_BY_8_BITS)
    TS_WAYS(TS_FLOAT32)
    TS_WAYS(TS_BFLOAT16)
    TS_WAYS(TS_FLOAT16)
    return 0;
}

#else

static int64_t fused(void *out, const void *base, int64_t i, int64_t n, const ts_delta *d, int32_t form) {
    (void)out, (void)base, (void)i, (void)n, (void)d, (void)form;
    return 0;
}

#endif
#endif
