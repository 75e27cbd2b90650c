/* What encoding and decoding of codec `drift` share: `tallstore.kernels.drift` tells what it is. */
#ifndef TS_DRIFT_H
#define TS_DRIFT_H

#include "lattice.h"

enum { DRIFT_GRADES = 8, DRIFT_CLASSES = 16, STILL = 0xFF, MAP = CONTEXTS + (DRIFT_GRADES - 1) * LEVELS };

typedef struct { /* what is told of contexts; `kernels/drift_fast.py` makes it */
    const uint8_t *table;  /* of each context; STILL where elements have no symbols */
    const uint8_t *shifts; /* of each segment */
    int64_t width, first;
    int32_t contexts; /* of grade 0: LEVELS + the largest shift; of the other grades there are LEVELS each */
} ts_drift;

/* Grades of n elements, and −1 where they drifted downwards, else 0; with `levels`, their levels, too. */
ALWAYS void fill_grades(
    uint8_t *restrict grade, int8_t *restrict negative, uint8_t *restrict levels, const void *words, const void *base,
    int64_t n, int32_t bits, int32_t unit, const uint8_t *grades, const lattice *of
) {
    int64_t i = 0;
#if defined(__AVX2__)
    const __m128i by = _mm_cvtsi32_si128(unit);
    const __m256i most = _mm256_set1_epi16(DRIFT_CLASSES - 1);
    const __m256i map = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)grades));
    const __m128i shift = _mm_cvtsi32_si128(of->shift);
    const __m256i mask = _mm256_set1_epi16((int16_t)of->mask), low = _mm256_set1_epi16((int16_t)of->low);
    for (; bits == 16 && i + 32 <= n; i += 32) {
        __m256i d[2], class[2], key[2];
        for (int h = 0; h < 2; h++) {
            __m256i word = _mm256_loadu_si256((const __m256i *)((const uint16_t *)words + i + 16 * h)), to = turned16(word);
            __m256i from = turned16(_mm256_loadu_si256((const __m256i *)((const uint16_t *)base + i + 16 * h)));
            d[h] = _mm256_sub_epi16(to, from);
            class[h] = _mm256_min_epu16(_mm256_srl_epi16(_mm256_abs_epi16(d[h]), by), most);
            key[h] = _mm256_subs_epu16(_mm256_and_si256(_mm256_srl_epi16(word, shift), mask), low);
        }
        if (levels) {
            __m256i all = _mm256_permute4x64_epi64(_mm256_packus_epi16(key[0], key[1]), 0xD8);
            _mm256_storeu_si256((__m256i *)(levels + i), _mm256_min_epu8(all, _mm256_set1_epi8(LEVELS - 1)));
        }
        __m256i classes = _mm256_permute4x64_epi64(_mm256_packus_epi16(class[0], class[1]), 0xD8);
        __m256i signs = _mm256_permute4x64_epi64(_mm256_packs_epi16(d[0], d[1]), 0xD8);
        _mm256_storeu_si256((__m256i *)(grade + i), _mm256_shuffle_epi8(map, classes));
        _mm256_storeu_si256((__m256i *)(negative + i), _mm256_cmpgt_epi8(_mm256_setzero_si256(), signs));
    }
#endif
    for (; i < n; i++) {
        uint32_t d = turned(word_at(words, i, bits), bits) - turned(word_at(base, i, bits), bits);
        int32_t step = bits == 16 ? (int16_t)d : bits == 32 ? (int32_t)d : (int8_t)d;
        uint32_t class = (step < 0 ? 0u - (uint32_t)step : (uint32_t)step) >> unit;
        grade[i] = grades[TS_MIN(class, DRIFT_CLASSES - 1)];
        negative[i] = (int8_t)-(step < 0);
        if (levels) levels[i] = level_of(word_at(words, i, bits), of);
    }
}

ALWAYS void fill_grades_of(
    uint8_t *grade, int8_t *negative, uint8_t *levels, const void *words, const void *base, int64_t n, int32_t unit,
    const uint8_t *grades, const lattice *of
) {
    if (of->bits == 16) fill_grades(grade, negative, levels, words, base, n, 16, unit, grades, of);
    else if (of->bits == 32) fill_grades(grade, negative, levels, words, base, n, 32, unit, grades, of);
    else fill_grades(grade, negative, levels, words, base, n, 8, unit, grades, of);
}

/* The tables of elements [start, start + n), in place of their levels. */
static inline void fill_maps(uint8_t *restrict levels, const uint8_t *restrict grade, int64_t start, int64_t n, const ts_drift *by) {
    const uint8_t *graded = by->table + by->contexts - LEVELS; /* of grade g from LEVELS · g on */
    int64_t segment = segment_of(start, by->width, by->first);
#if defined(__AVX2__)
    __m256i map[DRIFT_GRADES];
    for (int g = 1; g < DRIFT_GRADES; g++)
        map[g] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(graded + g * LEVELS)));
#endif
    for (int64_t i = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, by->width, by->first) - start);
        const uint8_t *table = by->table + by->shifts[segment];
#if defined(__AVX2__)
        map[0] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
        for (; i + 32 <= stop; i += 32) {
            __m256i *at = (__m256i *)(levels + i), level = _mm256_loadu_si256(at), out = _mm256_shuffle_epi8(map[0], level);
            __m256i of = _mm256_loadu_si256((const __m256i *)(grade + i));
            for (int g = 1; g < DRIFT_GRADES; g++) {
                __m256i here = _mm256_cmpeq_epi8(of, _mm256_set1_epi8((char)g));
                out = _mm256_blendv_epi8(out, _mm256_shuffle_epi8(map[g], level), here);
            }
            _mm256_storeu_si256(at, out);
        }
#endif
        for (; i < stop; i++) levels[i] = grade[i] ? graded[grade[i] * LEVELS + levels[i]] : table[levels[i]];
    }
}

#endif
