/* The hash of an element's place: 24 bits of what `kernels.place_hash.first_of` gives. See `kernels.place_hash`. */
#ifndef TS_PLACE_HASH_H
#define TS_PLACE_HASH_H

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

static inline uint32_t ts_drawn(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    return x >> 8;
}

/* The same of 8 or 16 elements, the first of which is `first`. */
#if defined(__AVX2__)
static inline __m256i ts_drawn8(uint32_t first) {
    __m256i x = _mm256_add_epi32(_mm256_set1_epi32((int32_t)first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    x = _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 16)), _mm256_set1_epi32(0x7FEB352D));
    x = _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 15)), _mm256_set1_epi32((int32_t)0x846CA68Bu));
    return _mm256_srli_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 16)), 8);
}
#endif
#if defined(__AVX512VBMI2__)
static inline __m512i ts_drawn16(uint32_t first) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i x = _mm512_add_epi32(_mm512_set1_epi32((int32_t)first), lane);
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(0x7FEB352D));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32((int32_t)0x846CA68Bu));
    return _mm512_srli_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), 8);
}
#endif

/* The number in [0, 1): `recipes.dither.uniform`. */
static inline float ts_uniform(uint32_t x) { return (float)(int32_t)ts_drawn(x) * 0x1p-24f; }

#endif
