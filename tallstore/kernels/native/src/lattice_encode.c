/* Steps as symbols, counts of them, and their range coding: the encoder of codec `lattice`. The stream is of 16-bit words. */
#include "lattice.h"

enum { CLASSES = 4 };

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

ALWAYS void prepare_some(
    int8_t *restrict symbols, bit_writer *extra, const void *after, const void *base, int64_t start, int64_t n, int32_t bits
) {
    for (int64_t i = start; i < n; i++) {
        uint32_t d = turned(word_at(after, i, bits), bits) - turned(word_at(base, i, bits), bits);
        int32_t step = bits == 16 ? (int16_t)d : bits == 32 ? (int32_t)d : (int8_t)d;
        uint32_t size = step < 0 ? 0u - (uint32_t)step : (uint32_t)step, symbol = size;
        if (size >= DIRECT) {
            int32_t octave = 31 - __builtin_clz(size), open = octave - 1;
            symbol = DIRECT + 2u * (uint32_t)(octave - 4) + ((size >> open) & 1);
            put_bits(extra, size & ((1u << open) - 1), open);
        }
        symbols[i] = (int8_t)(step < 0 ? -(int32_t)symbol : (int32_t)symbol);
    }
}

/* Symbols and levels of n elements, and the bits that symbols leave open; `extra` has room for 4 bytes an element and 8
 * more. Returns how many bytes of it are used. */
TS_KERNEL(int64_t, lattice_prepare)(
    int8_t *symbols, uint8_t *levels, uint8_t *extra, const void *after, const void *base, int64_t n, int32_t bits,
    int32_t shift, int32_t mask, int32_t low
) {
    const lattice of = {bits, shift, mask, low};
    bit_writer to = {extra, 0, 0};
    if (bits == 16) {
        int64_t i = 0;
        fill_levels(levels, base, n, &of, 16);
#if defined(__AVX2__)
        const uint16_t *a = after, *b = base;
        const __m256i most = _mm256_set1_epi16(DIRECT - 1);
        for (; i + 32 <= n; i += 32) {
            __m256i d[2];
            for (int h = 0; h < 2; h++)
                d[h] = _mm256_sub_epi16(
                    turned16(_mm256_loadu_si256((const __m256i *)(a + i + 16 * h))),
                    turned16(_mm256_loadu_si256((const __m256i *)(b + i + 16 * h)))
                );
            /* −2^15 is its own magnitude: taken for unsigned, it is large. */
            __m256i size = _mm256_max_epu16(_mm256_abs_epi16(d[0]), _mm256_abs_epi16(d[1]));
            __m256i small = _mm256_cmpeq_epi16(_mm256_max_epu16(size, most), most);
            if (_mm256_movemask_epi8(small) == -1) {
                __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(d[0], d[1]), 0xD8);
                _mm256_storeu_si256((__m256i *)(symbols + i), packed);
            } else prepare_some(symbols, &to, after, base, i, i + 32, 16);
        }
#endif
        prepare_some(symbols, &to, after, base, i, n, 16);
    } else if (bits == 32) {
        fill_levels(levels, base, n, &of, 32);
        prepare_some(symbols, &to, after, base, 0, n, 32);
    } else {
        fill_levels(levels, base, n, &of, 8);
        prepare_some(symbols, &to, after, base, 0, n, 8);
    }
    memcpy(to.out, &to.held, 8);
    return to.out - extra + (to.count + 7) / 8;
}

/* Of symbols as bytes their places in the order 0, +1, −1, +2, … */
ALWAYS void fill_index(uint8_t index[256]) {
    for (int a = -128; a < 128; a++) index[(uint8_t)a] = (uint8_t)(a > 0 ? 2 * a - 1 : -2 * a);
}

/* counts[segment][level][class] of one element in so many: all of it is written. */
TS_KERNEL(void, lattice_count_segments)(
    int64_t *counts, const int8_t *symbols, const uint8_t *levels, int64_t n, int64_t width, int64_t first,
    int64_t one_in
) {
    for (int64_t i = 0, segment = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, width, first));
        uint32_t some[4][LEVELS * CLASSES] = {{0}};
        for (uint32_t turn = 0; i < stop; i += one_in, turn++) {
            uint32_t size = size_of(symbols[i]);
            some[turn & 3][levels[i] * CLASSES + (size < CLASSES - 1 ? size : CLASSES - 1)]++;
        }
        i = stop;
        for (int at = 0; at < LEVELS * CLASSES; at++)
            counts[segment * LEVELS * CLASSES + at] = (int64_t)some[0][at] + some[1][at] + some[2][at] + some[3][at];
    }
}

/* sums[segment][direction]: products of the signs of a segment's steps with each direction; all of it is written. */
TS_KERNEL(void, lattice_project)(
    int32_t *sums, const int8_t *symbols, int64_t n, const int8_t *along, int32_t rank, int64_t width, int64_t first
) {
    int16_t sign[BLOCK];
    int64_t segment = 0;
    memset(sums, 0, (size_t)rank * 4);
    for (int64_t i = 0; i < n;) {
        int64_t end = end_of(segment, width, first), stop = TS_MIN(TS_MIN(n, end), i + BLOCK);
        int64_t place = (i + width - first) % width, size = stop - i;
        for (int64_t j = 0; j < size; j++) sign[j] = (int16_t)((symbols[i + j] > 0) - (symbols[i + j] < 0));
        for (int32_t k = 0; k < rank; k++) {
            const int8_t *by = along + k * width + place;
            int32_t sum = 0;
            for (int64_t j = 0; j < size; j++) sum += (int32_t)sign[j] * (int16_t)by[j];
            sums[segment * rank + k] += sum;
        }
        i = stop;
        if (i == end && i < n) memset(sums + ++segment * rank, 0, (size_t)rank * 4);
    }
}

/* counts[grade][context][symbol], symbols being 0, +1, −1, +2, … as predictions have them: all of it is written. */
TS_KERNEL(void, lattice_count_symbols)(
    int64_t *counts, const int8_t *symbols, const uint8_t *levels, int64_t n, const ts_rows *by
) {
    uint32_t some[2][GRADES * CONTEXTS * KINDS], grades = by->rank ? GRADES : 1; /* two: one need not wait for the other */
    uint8_t index[256];
    ts_told told;
    int8_t turned_over[BLOCK];
    memset(some, 0, sizeof some);
    fill_index(index);
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        const int8_t *here = symbols + start;
        const uint8_t *level = levels + start;
        int64_t segment = segment_of(start, by->width, by->first);
        if (by->rank) {
            predict(&told, start, size, by);
            turn_symbols(turned_over, here, told.negative, size);
            here = turned_over;
        }
        for (int64_t i = 0; i < size; segment++) {
            int64_t stop = TS_MIN(size, end_of(segment, by->width, by->first) - start);
            uint32_t shift = by->shifts[segment];
            if (by->rank)
                for (; i < stop; i++)
                    some[i & 1][(told.grade[i] * CONTEXTS + level[i] + shift) * KINDS + index[(uint8_t)here[i]]]++;
            else
                for (; i < stop; i++) some[i & 1][(level[i] + shift) * KINDS + index[(uint8_t)here[i]]]++;
        }
    }
    for (uint32_t at = 0; at < grades * CONTEXTS * KINDS; at++) counts[at] = (int64_t)some[0][at] + some[1][at];
}

typedef struct {
    uint64_t inverse; /* 2^64 / share, rounded up; of share 1 a special one */
    uint32_t share, begin;
} coder;

ALWAYS uint32_t coded(uint32_t x, const coder *by, int32_t bits) {
#if defined(__SIZEOF_INT128__)
    uint32_t quotient = (uint32_t)(((unsigned __int128)x * by->inverse) >> 64);
#else
    uint32_t quotient = by->share > 1 ? x / by->share : x - 1;
#endif
    return x + by->begin + quotient * ((1u << bits) - by->share);
}

/* Code n symbols of these levels. `words` has room for n; those that are used are its last. `share`, `begin`: frequency
 * and begin of 0, +1, −1, +2, … by table, `kinds` of them. `states`: `lanes` of them. Returns how many words there are. */
TS_KERNEL(int64_t, lattice_encode)(
    uint16_t *words, uint32_t *states, const int8_t *symbols, const uint8_t *levels, int64_t n, int32_t lanes, int32_t bits,
    const ts_rows *by, const uint32_t *share, const uint32_t *begin, int32_t tables, int32_t kinds
) {
    coder coders[MOST_TABLES * KINDS];
    uint8_t found[BLOCK], index[256];
    int8_t turned_over[BLOCK];
    uint16_t place[BLOCK];
    ts_told told;
    uint32_t state[MOST_LANES];
    uint16_t *out = words + n;
    for (int at = 0; at < tables * kinds; at++) {
        uint32_t f = share[at];
        coders[at].share = f;
        /* For share 1 the quotient comes out one too small, which the begin makes good. */
        coders[at].inverse = f > 1 ? UINT64_MAX / f + 1 : UINT64_MAX;
        coders[at].begin = begin[at] + (f == 1 ? (1u << bits) - 1 : 0);
    }
    fill_index(index);
    for (int lane = 0; lane < lanes; lane++) state[lane] = LOWEST;
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
        for (int64_t i = 0; i < size; i++) place[i] = (uint16_t)(found[i] * kinds + index[(uint8_t)here[i]]);
        for (int64_t i = size - 1; i >= 0; i--) {
            const coder *one = coders + place[i];
            uint32_t x = state[i & (lanes - 1)];
            bool full = x >> (32 - bits) >= one->share;
            out[-1] = (uint16_t)x; /* there is room: each element before this one has some */
            out -= full;
            x >>= full * 16;
            state[i & (lanes - 1)] = coded(x, one, bits);
        }
    }
    memcpy(states, state, (size_t)lanes * 4);
    return words + n - out;
}
