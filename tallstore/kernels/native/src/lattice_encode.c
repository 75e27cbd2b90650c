/* Steps as symbols, counts of them, and their range coding: the encoder of codec `lattice`. The stream is of 16-bit words. */
#include "lattice.h"

typedef struct {
    uint8_t *out;
    uint64_t held;
    int32_t count;
} bit_writer;

ALWAYS void put_bits(bit_writer *to, uint32_t value, int32_t width) { /* at most 30 */
    to->held |= (uint64_t)value << to->count;
    to->count += width;
    if (to->count >= 32) {
        memcpy(to->out, &to->held, 4);
        to->out += 4, to->held >>= 32, to->count -= 32;
    }
}

ALWAYS int8_t symbol_of(int32_t step, bit_writer *extra) {
    uint32_t size = step < 0 ? 0u - (uint32_t)step : (uint32_t)step, symbol = size;
    if (size >= DIRECT) {
        int32_t octave = 31 - __builtin_clz(size), open = octave - 1;
        symbol = DIRECT + 2u * (uint32_t)(octave - 4) + ((size >> open) & 1);
        put_bits(extra, size & ((1u << open) - 1), open);
    }
    return (int8_t)(step < 0 ? -(int32_t)symbol : (int32_t)symbol);
}

ALWAYS int32_t step_of(const void *after, const void *base, int64_t i, int32_t bits) {
    uint32_t d = turned(word_at(after, i, bits), bits) - turned(word_at(base, i, bits), bits);
    return bits == 16 ? (int16_t)d : bits == 32 ? (int32_t)d : (int8_t)d;
}

ALWAYS void prepare_some(
    int8_t *restrict symbols, bit_writer *extra, const void *after, const void *base, int64_t n, int32_t bits
) {
    int64_t i = 0;
#if defined(__AVX2__)
    const uint16_t *a = after, *b = base;
    for (; bits == 16 && i + 64 <= n; i += 64) {
        uint64_t large = 0;
        for (int k = 0; k < 64; k += 32) {
            __m256i d[2], size[2];
            for (int h = 0; h < 2; h++) {
                d[h] = _mm256_sub_epi16(
                    turned16(_mm256_loadu_si256((const __m256i *)(a + i + k + 16 * h))),
                    turned16(_mm256_loadu_si256((const __m256i *)(b + i + k + 16 * h)))
                );
                size[h] = _mm256_cmpgt_epi16(_mm256_srli_epi16(_mm256_abs_epi16(d[h]), 4), _mm256_setzero_si256());
            }
            __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(d[0], d[1]), 0xD8);
            _mm256_storeu_si256((__m256i *)(symbols + i + k), packed);
            packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(size[0], size[1]), 0xD8);
            large |= (uint64_t)(uint32_t)_mm256_movemask_epi8(packed) << k;
        }
        for (; large; large &= large - 1) {
            int64_t one = i + __builtin_ctzll(large);
            symbols[one] = symbol_of(step_of(after, base, one, 16), extra);
        }
    }
#endif
    for (; i < n; i++) symbols[i] = symbol_of(step_of(after, base, i, bits), extra);
}

/* Symbols and levels of n elements, and the bits that symbols leave open; `extra` has room for 4 bytes an element and 8
 * more. Returns how many bytes of it are used. */
TS_KERNEL(int64_t, lattice_prepare)(
    int8_t *symbols, uint8_t *levels, uint8_t *extra, const void *after, const void *base, int64_t n, int32_t bits,
    int32_t shift, int32_t mask, int32_t low
) {
    const lattice of = {bits, shift, mask, low};
    bit_writer to = {extra, 0, 0};
    if (bits == 16) fill_levels(levels, base, n, &of, 16), prepare_some(symbols, &to, after, base, n, 16);
    else if (bits == 32) fill_levels(levels, base, n, &of, 32), prepare_some(symbols, &to, after, base, n, 32);
    else fill_levels(levels, base, n, &of, 8), prepare_some(symbols, &to, after, base, n, 8);
    memcpy(to.out, &to.held, 8);
    return to.out - extra + (to.count + 7) / 8;
}

/* counts[segment][level][class] of one element in so many, at most 2^13 in a segment: all of it is written. */
TS_KERNEL(void, lattice_count_segments)(
    int16_t *counts, const int8_t *symbols, const uint8_t *levels, int64_t n, int64_t width, int64_t first,
    int64_t one_in
) {
    uint8_t key[BLOCK];
    uint16_t some[4][LEVELS * CLASSES] = {{0}}; /* four: one need not wait for the others */
    int64_t segment = 0, begin = 0, next = 0; /* `next`: the next one to be counted */
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        for (int64_t i = 0; i < size; i++) {
            int8_t symbol = symbols[start + i];
            uint8_t class = (uint8_t)(symbol < 0 ? -symbol : symbol);
            key[i] = (uint8_t)(levels[start + i] * CLASSES + (class < CLASSES ? class : CLASSES - 1));
        }
        while (begin < start + size) {
            int64_t end = end_of(segment, width, first), stop = TS_MIN(TS_MIN(n, end), start + size);
            for (; next + 3 * one_in < stop; next += 4 * one_in)
                for (int k = 0; k < 4; k++) some[k][key[next + k * one_in - start]]++;
            for (; next < stop; next += one_in) some[0][key[next - start]]++;
            if (stop < end && stop < n) break;
            for (int at = 0; at < LEVELS * CLASSES; at++)
                counts[segment * LEVELS * CLASSES + at] = (int16_t)(some[0][at] + some[1][at] + some[2][at] + some[3][at]);
            memset(some, 0, sizeof some);
            segment++, begin = next = stop;
        }
    }
}

/* Of signed symbols their places in the order 0, +1, −1, +2, …, behind `kinds` for each row in front of their own. */
ALWAYS void fill_places(uint16_t *restrict place, const uint8_t *restrict row, const int8_t *restrict symbols, int64_t n, uint16_t kinds) {
    for (int64_t i = 0; i < n; i++) {
        int16_t symbol = symbols[i];
        place[i] = (uint16_t)(row[i] * kinds + (symbol > 0 ? 2 * symbol - 1 : -2 * symbol));
    }
}

/* counts[grade][context][symbol], symbols being 0, +1, −1, +2, … as predictions have them: all of it is written. */
TS_KERNEL(void, lattice_count_symbols)(
    int64_t *counts, const int8_t *symbols, const uint8_t *levels, int64_t n, const ts_rows *by
) {
    uint32_t some[2][GRADES * CONTEXTS * KINDS], grades = is_graded(by) ? GRADES : 1; /* two: one need not wait for the other */
    uint8_t row[BLOCK];
    uint16_t place[BLOCK];
    ts_told told;
    int8_t turned_over[BLOCK];
    memset(some, 0, sizeof some);
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK), segment = segment_of(start, by->width, by->first), i = 0;
        const int8_t *here = symbols + start;
        if (is_graded(by)) {
            predict(&told, start, size, by);
            turn_symbols(turned_over, here, told.negative, size);
            here = turned_over;
        }
        for (int64_t at = 0; at < size; segment++) {
            int64_t stop = TS_MIN(size, end_of(segment, by->width, by->first) - start);
            uint8_t shift = by->shifts[segment];
            if (is_graded(by))
                for (; at < stop; at++) row[at] = (uint8_t)(told.grade[at] * CONTEXTS + levels[start + at] + shift);
            else
                for (; at < stop; at++) row[at] = (uint8_t)(levels[start + at] + shift);
        }
        fill_places(place, row, here, size, KINDS);
        for (; i + 1 < size; i += 2) some[0][place[i]]++, some[1][place[i + 1]]++;
        if (i < size) some[0][place[i]]++;
    }
    for (uint32_t at = 0; at < grades * CONTEXTS * KINDS; at++) counts[at] = (int64_t)some[0][at] + some[1][at];
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

/* Code n symbols of these levels. `words` has room for n + 4; those that are used are the last of n. `weights`: `kinds` of
 * each table, of 0, +1, −1, +2, …; `states`: `lanes` of them. Returns how many words there are. */
TS_KERNEL(int64_t, lattice_encode)(
    uint16_t *words, uint32_t *states, const int8_t *symbols, const uint8_t *levels, int64_t n, int32_t lanes, int32_t bits,
    const ts_rows *by, const uint8_t *weights, int32_t tables, int32_t kinds
) {
    coder coders[MOST_TABLES * KINDS];
    uint8_t found[BLOCK], order[16][16];
    int8_t turned_over[BLOCK];
    uint16_t place[BLOCK], *out = words + n + 4;
    ts_told told;
    for (int table = 0; table < tables; table++) fill_coders(coders + table * kinds, weights + table * kinds, kinds, bits);
    memset(order, 0x80, sizeof order);
    for (int few = 0; few < 16; few++) /* words of those that have one, the last ones of four */
        for (int lane = 3, to = 8; lane >= 0; lane--)
            if (few >> lane & 1) to -= 2, order[few][to] = (uint8_t)(4 * lane), order[few][to + 1] = (uint8_t)(4 * lane + 1);
    for (int lane = 0; lane < lanes; lane++) states[lane] = LOWEST;
    for (int64_t start = n ? (n - 1) / BLOCK * BLOCK : -1; start >= 0; start -= BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK), left = size;
        const int8_t *here = symbols + start;
        memcpy(found, levels + start, (size_t)size);
        if (is_graded(by)) {
            predict(&told, start, size, by);
            turn_symbols(turned_over, here, told.negative, size);
            here = turned_over;
        }
        fill_tables(found, is_graded(by) ? told.grade : NULL, start, size, by);
        fill_places(place, found, here, size, (uint16_t)kinds);
#if defined(__AVX2__)
        left &= 3;
#endif
        for (int64_t i = size - 1; i >= size - left; i--) {
            const coder *one = coders + place[i];
            uint32_t x = states[i & (lanes - 1)], full = x >> (32 - bits) >= (one->shares & 0xFFFF);
            out[-1] = (uint16_t)x;
            out -= full;
            x >>= full * 16;
            states[i & (lanes - 1)] = x + one->begin + (uint32_t)((double)x * one->inverse) * (one->shares >> 16);
        }
#if defined(__AVX2__)
        out = encode_fours(out, states, place, size - left, coders, lanes, bits, (const uint8_t (*)[16])order);
#endif
    }
    return words + n + 4 - out;
}
