/* Steps as symbols, counts of them, and their range coding: the encoder of codec `lattice`. The stream is of 16-bit words. */
#include "lattice_coder.h"

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

enum { PAIRS = 1 << 14, LONG = 1 << 15 };

/* Count elements whose symbols are −1, 0 and 1 by pairs of them, each context and symbol in seven bits: half as many counters
 * are waited for. Whether they are that. */
ALWAYS bool count_pairs(uint32_t *pairs, uint16_t *restrict place, uint8_t *restrict row, const int8_t *symbols, int64_t size) {
    uint8_t large = size & 1;
    for (int64_t i = 0; i < size; i++) large |= (uint8_t)(symbols[i] + 1) > 2;
    if (large) return false;
    for (int64_t i = 0; i < size; i++) row[i] = (uint8_t)(row[i] << 2 | (symbols[i] & 3));
    for (int64_t i = 0; i < size / 2; i++) place[i] = (uint16_t)(row[2 * i] | row[2 * i + 1] << 7);
    for (int64_t i = 0; i < size / 2; i++) pairs[place[i]]++;
    return true;
}

/* counts[grade][context][symbol], symbols being 0, +1, −1, +2, … as predictions have them: all of it is written. */
TS_KERNEL(void, lattice_count_symbols)(
    int64_t *counts, const int8_t *symbols, const uint8_t *levels, int64_t n, const ts_rows *by
) {
    uint32_t some[2][GRADES * CONTEXTS * KINDS], grades = by->rank ? GRADES : 1; /* two: one need not wait for the other */
    uint32_t pairs[PAIRS];
    const bool paired = n >= LONG && !by->rank;
    uint8_t row[BLOCK];
    uint16_t place[BLOCK];
    ts_told told;
    int8_t turned_over[BLOCK];
    memset(some, 0, sizeof some);
    if (paired) memset(pairs, 0, sizeof pairs);
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK), segment = segment_of(start, by->width, by->first), i = 0;
        const int8_t *here = symbols + start;
        if (by->rank) {
            predict(&told, start, size, by);
            turn_symbols(turned_over, here, told.negative, size);
            here = turned_over;
        }
        for (int64_t at = 0; at < size; segment++) {
            int64_t stop = TS_MIN(size, end_of(segment, by->width, by->first) - start);
            uint8_t shift = by->shifts[segment];
            if (by->rank)
                for (; at < stop; at++) row[at] = (uint8_t)(told.grade[at] * CONTEXTS + levels[start + at] + shift);
            else
                for (; at < stop; at++) row[at] = (uint8_t)(levels[start + at] + shift);
        }
        if (paired && count_pairs(pairs, place, row, here, size)) continue;
        fill_places(place, row, here, size, KINDS);
        for (; i + 1 < size; i += 2) some[0][place[i]]++, some[1][place[i + 1]]++;
        if (i < size) some[0][place[i]]++;
    }
    for (int at = 0; paired && at < PAIRS; at++)
        for (int one = at & 127, k = 0; k < 2; k++, one = at >> 7)
            if (pairs[at]) some[0][(one >> 2) * KINDS + (one & 1) + (one >> 1 & 1)] += pairs[at]; /* −1 is 3 of two bits */
    for (uint32_t at = 0; at < grades * CONTEXTS * KINDS; at++) counts[at] = (int64_t)some[0][at] + some[1][at];
}

/* Code n symbols of these levels. `words` has room for n + 4; those that are used are the last of it. `weights`: `kinds` of
 * each table, of 0, +1, −1, +2, …; `states`: `lanes` of them. Returns how many words there are. */
TS_KERNEL(int64_t, lattice_encode)(
    uint16_t *words, uint32_t *states, const int8_t *symbols, const uint8_t *levels, int64_t n, int32_t lanes, int32_t bits,
    const ts_rows *by, const uint8_t *weights, int32_t tables, int32_t kinds
) {
    coder coders[MOST_TABLES * KINDS];
    uint8_t found[BLOCK];
    lookups look;
    int8_t turned_over[BLOCK];
    uint16_t place[BLOCK], *out = words + n + 4;
    ts_told told;
    for (int table = 0; table < tables; table++) fill_coders(coders + table * kinds, weights + table * kinds, kinds, bits);
    fill_lookups(&look, coders, tables * kinds, lanes, bits);
    for (int lane = 0; lane < lanes; lane++) states[lane] = LOWEST;
    for (int64_t start = n ? (n - 1) / BLOCK * BLOCK : -1; start >= 0; start -= BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        const int8_t *here = symbols + start;
        memcpy(found, levels + start, (size_t)size);
        if (by->rank) {
            predict(&told, start, size, by);
            turn_symbols(turned_over, here, told.negative, size);
            here = turned_over;
        }
        fill_tables(found, by->rank ? told.grade : NULL, start, size, by);
        fill_places(place, found, here, size, (uint16_t)kinds);
        out = encode_some(out, states, place, size, coders, lanes, bits, &look);
    }
    return words + n + 4 - out;
}
