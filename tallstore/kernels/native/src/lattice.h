/* Steps on the lattice of numbers that a float type holds: what encoding and decoding of codec `lattice` share. It is what
 * `tallstore.kernels.lattice` does, and tells about. Symbols are signed bytes, levels, grades and tables unsigned ones. */
#ifndef TS_LATTICE_H
#define TS_LATTICE_H

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__) && !defined(TS_SCALAR)
#include <arm_neon.h>
#endif

enum { DIRECT = 16, LEVELS = 16, CONTEXTS = 31, SYMBOLS = 71, KINDS = 2 * SYMBOLS - 1, GRADES = 4, BLOCK = 4096 };
enum { MOST_LANES = 256, MOST_TABLES = 64 };
#define LOWEST 65536u

typedef struct { /* how the bits of a type are read, and the exponent of level 0 */
    int32_t bits, shift, mask, low;
} lattice;

typedef struct { /* what is told of rows; `kernels/lattice_fast.py` makes it */
    const uint8_t *table, *shifts;
    const int8_t *across, *along;
    int64_t width, first;
    int32_t rank, contexts; /* `contexts`: entries of `table` per grade, LEVELS + the largest shift */
    int32_t marks[GRADES - 1];
} ts_rows;

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS uint32_t word_at(const void *words, int64_t i, int32_t bits) {
    return bits == 16 ? ((const uint16_t *)words)[i] : bits == 32 ? ((const uint32_t *)words)[i] : ((const uint8_t *)words)[i];
}

ALWAYS void put_word(void *words, int64_t i, int32_t bits, uint32_t word) {
    if (bits == 16) ((uint16_t *)words)[i] = (uint16_t)word;
    else if (bits == 32) ((uint32_t *)words)[i] = word;
    else ((uint8_t *)words)[i] = (uint8_t)word;
}

ALWAYS uint32_t turned(uint32_t word, int32_t bits) {
    uint32_t sign = (word >> (bits - 1)) & 1, most = (1u << (bits - 1)) - 1;
    return word ^ ((0u - sign) & most);
}

#if defined(__AVX2__)
ALWAYS __m256i turned16(__m256i words) {
    return _mm256_xor_si256(words, _mm256_srli_epi16(_mm256_srai_epi16(words, 15), 1));
}
#endif

ALWAYS uint8_t level_of(uint32_t word, const lattice *of) {
    uint32_t key = (word >> of->shift) & (uint32_t)of->mask, low = (uint32_t)of->low;
    key = key > low ? key - low : 0;
    return (uint8_t)(key < LEVELS - 1 ? key : LEVELS - 1);
}

ALWAYS void fill_levels(uint8_t *restrict out, const void *words, int64_t n, const lattice *of, int32_t bits) {
    if (bits == 16) {
        const uint16_t *w = words;
        const uint16_t mask = (uint16_t)of->mask, low = (uint16_t)of->low;
        int64_t i = 0;
#if defined(__AVX2__)
        const __m128i by = _mm_cvtsi32_si128(of->shift);
        const __m256i masks = _mm256_set1_epi16((short)mask), lows = _mm256_set1_epi16((short)low);
        for (; i + 32 <= n; i += 32) {
            __m256i key[2];
            for (int h = 0; h < 2; h++) {
                __m256i word = _mm256_loadu_si256((const __m256i *)(w + i + 16 * h));
                key[h] = _mm256_subs_epu16(_mm256_and_si256(_mm256_srl_epi16(word, by), masks), lows);
            }
            __m256i all = _mm256_permute4x64_epi64(_mm256_packus_epi16(key[0], key[1]), 0xD8);
            _mm256_storeu_si256((__m256i *)(out + i), _mm256_min_epu8(all, _mm256_set1_epi8(LEVELS - 1)));
        }
#endif
        for (; i < n; i++) {
            uint16_t key = (uint16_t)((w[i] >> of->shift) & mask);
            key = (uint16_t)(key > low ? key - low : 0);
            out[i] = (uint8_t)(key < LEVELS - 1 ? key : LEVELS - 1);
        }
    } else
        for (int64_t i = 0; i < n; i++) out[i] = level_of(word_at(words, i, bits), of);
}

/* The segment of an element, and the first element of the next one. */
ALWAYS int64_t segment_of(int64_t i, int64_t width, int64_t first) { return width ? (i + width - first) / width : 0; }
ALWAYS int64_t end_of(int64_t segment, int64_t width, int64_t first) {
    return width ? first + segment * width : INT64_MAX;
}

/* ----------------------------------------------------------------------------------------------------- predictions */

typedef struct { /* of the elements of a block: grades, and −1 where the prediction is negative, else 0 */
    uint8_t grade[BLOCK];
    int8_t negative[BLOCK];
} ts_told;

ALWAYS void predict_run(int16_t *restrict out, const int8_t *restrict across, const int8_t *along, int64_t n, int64_t width, int32_t rank) {
    if (rank == 4) {
        const int16_t a = across[0], b = across[1], c = across[2], d = across[3];
        const int8_t *second = along + width, *third = second + width, *fourth = third + width;
        for (int64_t i = 0; i < n; i++)
            out[i] = (int16_t)(
                (int16_t)(a * along[i]) + (int16_t)(b * second[i]) + (int16_t)(c * third[i]) + (int16_t)(d * fourth[i])
            );
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = (int16_t)(across[0] * along[i]);
    for (int32_t k = 1; k < rank; k++)
        for (int64_t i = 0; i < n; i++) out[i] = (int16_t)(out[i] + (int16_t)(across[k] * along[k * width + i]));
}

/* Predictions for elements [start, start + n) of a chunk, at most BLOCK. */
static void predict(ts_told *restrict told, int64_t start, int64_t n, const ts_rows *by) {
    int16_t found[BLOCK];
    int64_t segment = segment_of(start, by->width, by->first);
    for (int64_t i = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, by->width, by->first) - start);
        int64_t place = (start + i + by->width - by->first) % by->width;
        predict_run(found + i, by->across + segment * by->rank, by->along + place, stop - i, by->width, by->rank);
        i = stop;
    }
    const int16_t one = (int16_t)by->marks[0], two = (int16_t)by->marks[1], three = (int16_t)by->marks[2];
    for (int64_t i = 0; i < n; i++) {
        int16_t size = (int16_t)(found[i] < 0 ? -found[i] : found[i]);
        told->negative[i] = (int8_t)-(found[i] < 0);
        told->grade[i] = (uint8_t)((size >= one) + (size >= two) + (size >= three));
    }
}

/* Symbols as the prediction has them, and back. */
ALWAYS void turn_symbols(int8_t *to, const int8_t *symbols, const int8_t *restrict negative, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = (int8_t)((symbols[i] ^ negative[i]) - negative[i]);
}

/* The tables of elements [start, start + n), in place of their levels. `grade` is NULL where there are no directions. */
static void fill_tables(uint8_t *restrict levels, const uint8_t *restrict grade, int64_t start, int64_t n, const ts_rows *by) {
    int64_t segment = segment_of(start, by->width, by->first);
    for (int64_t i = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, by->width, by->first) - start);
        const uint8_t *table = by->table + by->shifts[segment];
#if defined(__AVX2__)
        __m256i map[GRADES];
        for (int g = 0; g < (grade ? GRADES : 1); g++)
            map[g] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + g * by->contexts)));
        for (; i + 32 <= stop; i += 32) {
            __m256i *at = (__m256i *)(levels + i), level = _mm256_loadu_si256(at), out = _mm256_shuffle_epi8(map[0], level);
            if (grade) {
                __m256i of = _mm256_loadu_si256((const __m256i *)(grade + i));
                for (int g = 1; g < GRADES; g++) {
                    __m256i here = _mm256_cmpeq_epi8(of, _mm256_set1_epi8((char)g));
                    out = _mm256_blendv_epi8(out, _mm256_shuffle_epi8(map[g], level), here);
                }
            }
            _mm256_storeu_si256(at, out);
        }
#elif defined(__aarch64__) && !defined(TS_SCALAR)
        uint8x16x4_t map;
        for (int g = 0; g < GRADES; g++) map.val[g] = vld1q_u8(table + (grade ? g * by->contexts : 0));
        for (; i + 16 <= stop; i += 16) {
            uint8x16_t at = vld1q_u8(levels + i);
            if (grade) at = vorrq_u8(at, vshlq_n_u8(vld1q_u8(grade + i), 4));
            vst1q_u8(levels + i, vqtbl4q_u8(map, at));
        }
#endif
        for (; i < stop; i++) levels[i] = table[levels[i] + (grade ? grade[i] * by->contexts : 0)];
    }
}

ALWAYS uint32_t size_of(int8_t symbol) { return (uint32_t)(symbol < 0 ? -symbol : symbol); }

#endif
