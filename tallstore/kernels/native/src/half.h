/* bfloat16 and float16 ⇄ float32. Rounded to nearest, ties to even. None of this depends on the thread's treatment of
 * subnormal numbers (torch.set_flush_denormal): bits are moved, and products of small numbers are avoided. NaN is the
 * caller's: what becomes of its bits is the reference's affair. */
#ifndef TS_HALF_H
#define TS_HALF_H

#include "common.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__) && !defined(TS_SCALAR)
#include <arm_neon.h>
#endif

static inline float ts_from_bfloat16(uint16_t word) { return ts_float((uint32_t)word << 16); }

static inline uint16_t ts_to_bfloat16(float value) {
    uint32_t bits = ts_bits(value);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static inline float ts_from_float16(uint16_t word) {
    uint32_t size = word & 0x7FFFu, sign = (uint32_t)(word & 0x8000u) << 16;
    uint32_t normal = (size << 13) + 0x38000000u, infinite = normal + 0x38000000u;
    uint32_t small = ts_bits((float)(int32_t)size * 0x1p-24f); /* exact */
    uint32_t bits = size >= 0x7C00u ? infinite : normal;
    return ts_float((size < 0x400u ? small : bits) | sign);
}

static inline uint16_t ts_to_float16(float value) {
    uint32_t bits = ts_bits(value), size = bits & 0x7FFFFFFFu;
    /* What is carried into the exponent belongs there; 2^16 and more is infinite. */
    uint32_t normal = (size - 0x38000000u + 0xFFFu + ((size >> 13) & 1)) >> 13;
    /* The unit of small ones is 2^-24: added to 2^23, a number of them is rounded to a whole one. */
    float units = size < 0x38800000u ? ts_float(size) * 0x1p24f : 0.0f;
    uint32_t small = ts_bits(units + 0x1p23f) & 0x7FFFFFu;
    uint32_t found = size < 0x38800000u ? small : normal;
    found = size >= 0x47800000u ? 0x7C00u : found;
    return (uint16_t)(found | ((bits >> 16) & 0x8000u));
}

static inline void ts_widen_bfloat16(float *restrict out, const uint16_t *restrict words, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = ts_from_bfloat16(words[i]);
}

static inline void ts_narrow_bfloat16(uint16_t *restrict out, const float *restrict values, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = ts_to_bfloat16(values[i]);
}

static inline void ts_widen_float16(float *restrict out, const uint16_t *restrict words, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(words + i))));
#elif defined(__aarch64__) && !defined(TS_SCALAR)
    for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(words + i))));
#endif
    for (int64_t left = n - i; left > 0; left--, i++) out[i] = ts_from_float16(words[i]);
}

static inline void ts_narrow_float16(uint16_t *restrict out, const float *restrict values, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__) && !defined(TS_SCALAR)
    for (; i + 4 <= n; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(values + i))));
#endif
    for (int64_t left = n - i; left > 0; left--, i++) out[i] = ts_to_float16(values[i]);
}

static inline void ts_widen(float *restrict out, const uint16_t *restrict words, int64_t n, int32_t form) {
    if (form == TS_BFLOAT16) ts_widen_bfloat16(out, words, n);
    else ts_widen_float16(out, words, n);
}

static inline void ts_narrow(uint16_t *restrict out, const float *restrict values, int64_t n, int32_t form) {
    if (form == TS_BFLOAT16) ts_narrow_bfloat16(out, values, n);
    else ts_narrow_float16(out, values, n);
}

#endif
