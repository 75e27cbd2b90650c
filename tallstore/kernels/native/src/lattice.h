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
enum { MOST_LANES = 256, MOST_TABLES = 64, MOST_RANK = 8, LARGEST = 7, CLASSES = 4 };
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
    for (int64_t i = 0; i < n; i++) out[i] = (int16_t)(across[0] * along[i]);
    for (int32_t k = 1; k < rank; k++)
        for (int64_t i = 0; i < n; i++) out[i] = (int16_t)(out[i] + (int16_t)(across[k] * along[k * width + i]));
}

#if defined(__AVX2__)
/* The same of 32 elements at a time, for four directions: what `predict` makes of them. Returns how many are done. */
ALWAYS int64_t predict_four(
    uint8_t *restrict grade, int8_t *restrict negative, const int8_t *across, const int8_t *along, int64_t n, int64_t width,
    const int32_t *marks
) {
    const __m256i eight = _mm256_set1_epi8(8), bias = _mm256_set1_epi16((int16_t)(8 * (across[0] + across[1] + across[2] + across[3])));
    const __m256i one = _mm256_set1_epi16((int16_t)((uint8_t)across[0] | (uint8_t)across[1] << 8));
    const __m256i two = _mm256_set1_epi16((int16_t)((uint8_t)across[2] | (uint8_t)across[3] << 8));
    __m256i mark[3];
    for (int m = 0; m < 3; m++) mark[m] = _mm256_set1_epi16((int16_t)(marks[m] - 1));
    int64_t i = 0;
#if defined(__AVX512VBMI2__)
    for (; i + 64 <= n; i += 64) { /* as below, twice as wide: what is unpacked and packed stays within 16 bytes */
        const __m512i ones = _mm512_broadcast_i32x4(_mm256_castsi256_si128(one)), twos = _mm512_broadcast_i32x4(_mm256_castsi256_si128(two));
        __m512i of[4], sum[2], count[2];
        for (int k = 0; k < 4; k++) of[k] = _mm512_add_epi8(_mm512_loadu_si512(along + k * width + i), _mm512_set1_epi8(8));
        sum[0] = _mm512_add_epi16(
            _mm512_maddubs_epi16(_mm512_unpacklo_epi8(of[0], of[1]), ones), _mm512_maddubs_epi16(_mm512_unpacklo_epi8(of[2], of[3]), twos)
        );
        sum[1] = _mm512_add_epi16(
            _mm512_maddubs_epi16(_mm512_unpackhi_epi8(of[0], of[1]), ones), _mm512_maddubs_epi16(_mm512_unpackhi_epi8(of[2], of[3]), twos)
        );
        for (int h = 0; h < 2; h++) {
            sum[h] = _mm512_sub_epi16(sum[h], _mm512_broadcast_i32x4(_mm256_castsi256_si128(bias)));
            const __m512i size = _mm512_abs_epi16(sum[h]);
            count[h] = _mm512_setzero_si512();
            for (int m = 0; m < 3; m++) {
                const __m512i below = _mm512_broadcast_i32x4(_mm256_castsi256_si128(mark[m]));
                count[h] = _mm512_mask_add_epi16(count[h], _mm512_cmpgt_epi16_mask(size, below), count[h], _mm512_set1_epi16(1));
            }
        }
        _mm512_storeu_si512(grade + i, _mm512_packs_epi16(count[0], count[1]));
        _mm512_storeu_si512(negative + i, _mm512_movm_epi8(_mm512_movepi8_mask(_mm512_packs_epi16(sum[0], sum[1]))));
    }
#endif
    for (; i + 32 <= n; i += 32) {
        __m256i of[4], sum[2], size[2], count[2]; /* one factor is made unsigned by adding 8, which `bias` takes back */
        for (int k = 0; k < 4; k++) of[k] = _mm256_add_epi8(_mm256_loadu_si256((const __m256i *)(along + k * width + i)), eight);
        sum[0] = _mm256_add_epi16(
            _mm256_maddubs_epi16(_mm256_unpacklo_epi8(of[0], of[1]), one), _mm256_maddubs_epi16(_mm256_unpacklo_epi8(of[2], of[3]), two)
        );
        sum[1] = _mm256_add_epi16(
            _mm256_maddubs_epi16(_mm256_unpackhi_epi8(of[0], of[1]), one), _mm256_maddubs_epi16(_mm256_unpackhi_epi8(of[2], of[3]), two)
        );
        for (int h = 0; h < 2; h++) {
            sum[h] = _mm256_sub_epi16(sum[h], bias), size[h] = _mm256_abs_epi16(sum[h]), count[h] = _mm256_setzero_si256();
            for (int m = 0; m < 3; m++) count[h] = _mm256_sub_epi16(count[h], _mm256_cmpgt_epi16(size[h], mark[m]));
        }
        _mm256_storeu_si256((__m256i *)(grade + i), _mm256_packs_epi16(count[0], count[1]));
        __m256i signs = _mm256_packs_epi16(sum[0], sum[1]); /* saturated: what is below 0 stays so */
        _mm256_storeu_si256((__m256i *)(negative + i), _mm256_cmpgt_epi8(_mm256_setzero_si256(), signs));
    }
    return i;
}
#endif

/* Predictions for elements [start, start + n) of a chunk, at most BLOCK. */
static inline void predict(ts_told *restrict told, int64_t start, int64_t n, const ts_rows *by) {
    const int16_t one = (int16_t)by->marks[0], two = (int16_t)by->marks[1], three = (int16_t)by->marks[2];
    int64_t segment = segment_of(start, by->width, by->first);
    for (int64_t i = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, by->width, by->first) - start);
        const int8_t *along = by->along + (start + i + by->width - by->first) % by->width, *across = by->across + segment * by->rank;
#if defined(__AVX2__)
        if (by->rank == 4) {
            int64_t done = predict_four(told->grade + i, told->negative + i, across, along, stop - i, by->width, by->marks);
            i += done, along += done;
        }
#endif
        int16_t found[BLOCK];
        predict_run(found, across, along, stop - i, by->width, by->rank);
        for (int64_t j = 0; j < stop - i; j++) {
            int16_t size = (int16_t)(found[j] < 0 ? -found[j] : found[j]);
            told->negative[i + j] = (int8_t)-(found[j] < 0);
            told->grade[i + j] = (uint8_t)((size >= one) + (size >= two) + (size >= three));
        }
        i = stop;
    }
}

/* Symbols as the prediction has them, and back. */
ALWAYS void turn_symbols(int8_t *to, const int8_t *symbols, const int8_t *restrict negative, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = (int8_t)((symbols[i] ^ negative[i]) - negative[i]);
}

/* The tables of elements [start, start + n), in place of their levels. `grade` is NULL where there are no directions. */
static inline void fill_tables(uint8_t *restrict levels, const uint8_t *restrict grade, int64_t start, int64_t n, const ts_rows *by) {
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

/* What a weight stands for, and frequencies of 2^bits: `kernels.lattice.frequencies`. */
ALWAYS uint64_t scaled_of(uint32_t weight) { return weight ? (uint64_t)(4 + (weight & 3)) << (weight >> 2) : 0; }

static inline void fill_shares(uint32_t *share, const uint8_t *weights, int32_t kinds, int32_t bits) {
    uint64_t total = 0;
    for (int32_t a = 0; a < kinds; a++) total += scaled_of(weights[a]);
    share[0] = 1u << bits;
    for (int32_t a = 1; a < kinds; a++) {
        share[a] = (uint32_t)((scaled_of(weights[a]) << bits) / total);
        share[0] -= share[a];
    }
}

ALWAYS uint32_t size_of(int8_t symbol) { return (uint32_t)(symbol < 0 ? -symbol : symbol); }

#endif
