/* Steps on the lattice of numbers that a float type holds, and their range coding: what `tallstore.kernels.lattice` does,
 * and tells about. Symbols are signed bytes, levels and tables unsigned ones; the stream is of 16-bit words. */
#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__) && !defined(TS_SCALAR)
#include <arm_neon.h>
#endif

enum { DIRECT = 16, LEVELS = 16, CLASSES = 4, CONTEXTS = 31, SYMBOLS = 71, BLOCK = 4096, MOST_LANES = 256 };
#define LOWEST 65536u

typedef struct { /* how the bits of a type are read, and the exponent of level 0 */
    int32_t bits, shift, mask, low;
} lattice;

typedef struct { /* how contexts are told; table has LEVELS + the largest shift entries */
    const uint8_t *table, *shifts;
    int64_t width, first;
} contexts;

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

ALWAYS uint8_t level_of(uint32_t word, const lattice *of) {
    uint32_t key = (word >> of->shift) & (uint32_t)of->mask, low = (uint32_t)of->low;
    key = key > low ? key - low : 0;
    return (uint8_t)(key < LEVELS - 1 ? key : LEVELS - 1);
}

ALWAYS void fill_levels(uint8_t *restrict out, const void *words, int64_t n, const lattice *of, int32_t bits) {
    if (bits == 16) {
        const uint16_t *w = words;
        const uint16_t mask = (uint16_t)of->mask, low = (uint16_t)of->low;
        for (int64_t i = 0; i < n; i++) {
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

/* The tables of elements [start, start + n), in place of their levels. */
static void fill_tables(uint8_t *restrict levels, int64_t start, int64_t n, const contexts *by) {
    int64_t segment = segment_of(start, by->width, by->first);
    for (int64_t i = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, by->width, by->first) - start);
        const uint8_t *table = by->table + by->shifts[segment];
#if defined(__AVX2__)
        const __m256i map = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
        for (; i + 32 <= stop; i += 32) {
            __m256i *at = (__m256i *)(levels + i);
            _mm256_storeu_si256(at, _mm256_shuffle_epi8(map, _mm256_loadu_si256(at)));
        }
#elif defined(__aarch64__) && !defined(TS_SCALAR)
        const uint8x16_t map = vld1q_u8(table);
        for (; i + 16 <= stop; i += 16) vst1q_u8(levels + i, vqtbl1q_u8(map, vld1q_u8(levels + i)));
#endif
        for (; i < stop; i++) levels[i] = table[levels[i]];
    }
}

/* ------------------------------------------------------------------------------------------------------- open bits */

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

typedef struct {
    const uint8_t *data;
    int64_t bytes, at; /* `at`: bits read */
    bool over;
} bit_reader;

ALWAYS uint32_t get_bits(bit_reader *from, int32_t width) {
    int64_t byte = from->at >> 3;
    uint64_t word = 0;
    if (from->at + width > 8 * from->bytes) {
        from->over = true;
        return 0;
    }
    if (byte + 8 <= from->bytes) word = ts_load64(from->data + byte);
    else memcpy(&word, from->data + byte, (size_t)(from->bytes - byte));
    word >>= from->at & 7;
    from->at += width;
    return (uint32_t)word & ((1u << width) - 1);
}

/* -------------------------------------------------------------------------------------------------------- encoding */

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

#if defined(__AVX2__)
ALWAYS __m256i turned16(__m256i words) {
    return _mm256_xor_si256(words, _mm256_srli_epi16(_mm256_srai_epi16(words, 15), 1));
}
#endif

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

ALWAYS uint32_t size_of(int8_t symbol) { return (uint32_t)(symbol < 0 ? -symbol : symbol); }

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

/* counts[context][symbol]: all of it is written. */
TS_KERNEL(void, lattice_count_symbols)(
    int64_t *counts, const int8_t *symbols, const uint8_t *levels, int64_t n, int64_t width, int64_t first,
    const uint8_t *shifts
) {
    uint32_t some[4][CONTEXTS * SYMBOLS] = {{0}}; /* several, so that one need not wait for another */
    for (int64_t i = 0, segment = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, width, first));
        uint32_t shift = shifts[segment];
        for (; i + 4 <= stop; i += 4)
            for (int at = 0; at < 4; at++) some[at][(levels[i + at] + shift) * SYMBOLS + size_of(symbols[i + at])]++;
        for (; i < stop; i++) some[0][(levels[i] + shift) * SYMBOLS + size_of(symbols[i])]++;
    }
    for (int at = 0; at < CONTEXTS * SYMBOLS; at++)
        counts[at] = (int64_t)some[0][at] + some[1][at] + some[2][at] + some[3][at];
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

/* Code n symbols of these levels. `words` has room for n; those that are used are its last. `both`: frequency and begin of
 * 0, +1, −1, +2, … by table, `kinds` of them. `states`: `lanes` of them. Returns how many words there are. */
TS_KERNEL(int64_t, lattice_encode)(
    uint16_t *words, uint32_t *states, const int8_t *symbols, const uint8_t *levels, int64_t n, int32_t lanes, int32_t bits,
    const uint8_t *table, const uint8_t *shifts, int64_t width, int64_t first, const uint32_t *share, const uint32_t *begin,
    int32_t tables, int32_t kinds
) {
    const contexts by = {table, shifts, width, first};
    coder coders[CONTEXTS * (2 * SYMBOLS - 1)];
    uint8_t found[BLOCK], index[256];
    uint16_t place[BLOCK];
    uint32_t state[MOST_LANES];
    uint16_t *out = words + n;
    for (int at = 0; at < tables * kinds; at++) {
        uint32_t f = share[at];
        coders[at].share = f;
        /* For share 1 the quotient comes out one too small, which the begin makes good. */
        coders[at].inverse = f > 1 ? UINT64_MAX / f + 1 : UINT64_MAX;
        coders[at].begin = begin[at] + (f == 1 ? (1u << bits) - 1 : 0);
    }
    for (int a = -128; a < 128; a++) index[(uint8_t)a] = (uint8_t)(a > 0 ? 2 * a - 1 : -2 * a);
    for (int lane = 0; lane < lanes; lane++) state[lane] = LOWEST;
    for (int64_t start = n ? (n - 1) / BLOCK * BLOCK : -1; start >= 0; start -= BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        memcpy(found, levels + start, (size_t)size);
        fill_tables(found, start, size, &by);
        for (int64_t i = 0; i < size; i++) place[i] = (uint16_t)(found[i] * kinds + index[(uint8_t)symbols[start + i]]);
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

/* -------------------------------------------------------------------------------------------------------- decoding */

typedef struct {
    const uint16_t *at, *end;
    bool over;
} stream;

ALWAYS uint32_t next_state(uint32_t x, uint32_t entry, int32_t bits) {
    return ((entry & 0xFFF) + 1) * (x >> bits) + (entry >> 12 & 0xFFF);
}

#if defined(__AVX2__)
/* Eight entries: vpgatherdd takes longer than this where it is microcode. */
ALWAYS __m256i eight(const uint32_t *entries, __m256i at) {
    __m128i half[2];
    for (int h = 0; h < 2; h++) {
        __m128i four = h ? _mm256_extracti128_si256(at, 1) : _mm256_castsi256_si128(at);
        uint64_t a = (uint64_t)_mm_cvtsi128_si64(four), b = (uint64_t)_mm_extract_epi64(four, 1);
        half[h] = _mm_cvtsi32_si128((int)entries[(uint32_t)a]);
        half[h] = _mm_insert_epi32(half[h], (int)entries[a >> 32], 1);
        half[h] = _mm_insert_epi32(half[h], (int)entries[(uint32_t)b], 2);
        half[h] = _mm_insert_epi32(half[h], (int)entries[b >> 32], 3);
    }
    return _mm256_set_m128i(half[1], half[0]);
}

/* Symbols of `size` lanes, a multiple of 8, in place of their tables. The stream has a word for each. Returns where the next
 * ones read on. */
ALWAYS const uint16_t *decode_lanes(
    uint8_t *restrict found, int32_t size, const uint32_t *restrict entries, uint32_t *restrict states, int32_t bits,
    const uint16_t *restrict at, const uint8_t (*restrict order)[8]
) {
    const __m256i mask = _mm256_set1_epi32((1 << bits) - 1), twelve = _mm256_set1_epi32(0xFFF);
    const __m256i last = _mm256_set1_epi64x(0x0F0B0703); /* the highest byte of each of four */
    const __m128i by = _mm_cvtsi32_si128(bits);
    for (int32_t lane = 0; lane < size; lane += 8) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(states + lane));
        __m256i slot = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(found + lane)));
        slot = _mm256_or_si256(_mm256_sll_epi32(slot, by), _mm256_and_si256(x, mask));
        __m256i entry = eight(entries, slot);
        __m256i share = _mm256_sub_epi32(_mm256_and_si256(entry, twelve), _mm256_set1_epi32(-1));
        x = _mm256_mullo_epi32(share, _mm256_srl_epi32(x, by));
        x = _mm256_add_epi32(x, _mm256_and_si256(_mm256_srli_epi32(entry, 12), twelve));
        __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
        unsigned few = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));
        __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at));
        next = _mm256_permutevar8x32_epi32(next, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)order[few])));
        next = _mm256_or_si256(_mm256_slli_epi32(x, 16), next);
        _mm256_storeu_si256((__m256i *)(states + lane), _mm256_blendv_epi8(x, next, low));
        at += __builtin_popcount(few);
        entry = _mm256_shuffle_epi8(entry, last);
        __m128i symbols = _mm_unpacklo_epi32(_mm256_castsi256_si128(entry), _mm256_extracti128_si256(entry, 1));
        _mm_storel_epi64((__m128i *)(found + lane), symbols);
    }
    return at;
}
#else
ALWAYS const uint16_t *decode_lanes(
    uint8_t *restrict found, int32_t size, const uint32_t *restrict entries, uint32_t *restrict states, int32_t bits,
    const uint16_t *restrict at, const uint8_t (*restrict order)[8]
) {
    (void)order;
    for (int32_t lane = 0; lane < size; lane++) {
        uint32_t x = states[lane], entry = entries[(uint32_t)found[lane] << bits | (x & ((1u << bits) - 1))];
        x = next_state(x, entry, bits);
        bool low = x < LOWEST;
        states[lane] = low ? x << 16 | *at : x;
        at += low;
        found[lane] = (uint8_t)(entry >> 24);
    }
    return at;
}
#endif

/* Symbols of n elements, in place of their tables. */
static void decode_symbols(
    uint8_t *found, int64_t n, const uint32_t *entries, uint32_t *states, int32_t lanes, int32_t bits, stream *from,
    const uint8_t (*order)[8]
) {
    for (int64_t start = 0; start < n; start += lanes) {
        int32_t size = (int32_t)TS_MIN(n - start, lanes), lane = 0;
        uint8_t *here = found + start;
        if (from->end - from->at >= lanes) {
            lane = size & ~7;
            from->at = decode_lanes(here, lane, entries, states, bits, from->at, order);
        }
        for (; lane < size; lane++) {
            uint32_t x = states[lane], entry = entries[(uint32_t)here[lane] << bits | (x & ((1u << bits) - 1))];
            x = next_state(x, entry, bits);
            if (x < LOWEST) {
                if (from->at == from->end) from->over = true;
                else x = x << 16 | *from->at++;
            }
            states[lane] = x;
            here[lane] = (uint8_t)(entry >> 24);
        }
    }
}

/* By table and slot: share − 1, 12 bits; the slot's place in the symbol, 12 bits; the symbol, 8 bits. */
static void fill_entries(uint32_t *entries, const uint8_t *weights, int32_t tables, int32_t symbols, int32_t bits) {
    for (int32_t table = 0; table < tables; table++, weights += symbols) {
        uint64_t scaled[SYMBOLS], total = 0;
        uint32_t left = 1u << bits;
        for (int32_t a = 0; a < symbols; a++) {
            scaled[a] = weights[a] ? (4 + (weights[a] & 3ull)) << (weights[a] >> 2) : 0;
            total += a ? 2 * scaled[a] : scaled[a];
        }
        for (int32_t a = 1; a < symbols; a++) {
            scaled[a] = (scaled[a] << bits) / total;
            left -= 2 * (uint32_t)scaled[a];
        }
        scaled[0] = left;
        for (int32_t a = 0; a < symbols; a++)
            for (int32_t sign = 0; sign < (a ? 2 : 1); sign++)
                for (uint32_t place = 0; place < scaled[a]; place++)
                    *entries++ = ((uint32_t)scaled[a] - 1) | place << 12 | (uint32_t)(uint8_t)(sign ? -a : a) << 24;
    }
}

ALWAYS uint32_t moved(uint32_t word, int8_t symbol, bit_reader *extra, int32_t bits) {
    uint32_t size = size_of(symbol);
    if (size >= DIRECT) {
        int32_t open = 3 + (int32_t)(size - DIRECT) / 2;
        size = (2 + (size & 1)) << open;
        size += get_bits(extra, open);
    }
    return turned(turned(word, bits) + (symbol < 0 ? 0u - size : size), bits);
}

ALWAYS void apply(void *words, int64_t start, const uint8_t *symbols, int64_t n, bit_reader *extra, int32_t bits) {
    int64_t i = 0;
#if defined(__AVX2__)
    for (; bits == 16 && i + 16 <= n; i += 16) {
        uint16_t *at = (uint16_t *)words + start + i, before[16];
        __m256i base = _mm256_loadu_si256((const __m256i *)at);
        __m128i steps = _mm_loadu_si128((const __m128i *)(symbols + i));
        __m256i to = turned16(_mm256_add_epi16(turned16(base), _mm256_cvtepi8_epi16(steps)));
        unsigned large = (unsigned)_mm_movemask_epi8(_mm_cmpgt_epi8(_mm_abs_epi8(steps), _mm_set1_epi8(DIRECT - 1)));
        _mm256_storeu_si256((__m256i *)at, to);
        if (large) {
            _mm256_storeu_si256((__m256i *)before, base);
            for (; large; large &= large - 1) {
                int one = __builtin_ctz(large);
                at[one] = (uint16_t)moved(before[one], (int8_t)symbols[i + one], extra, 16);
            }
        }
    }
#endif
    for (; i < n; i++)
        put_word(words, start + i, bits, moved(word_at(words, start + i, bits), (int8_t)symbols[i], extra, bits));
}

/* Turn n of the base's elements into the task's. `entries`: room for tables · 2^bits; `weights`: `symbols` of each table, one
 * of them not 0. `states` are used up. Returns 0; 1 if the stream does not end with the elements; 2 if the open bits do
 * not. */
TS_KERNEL(int32_t, lattice_decode)(
    void *words, int64_t n, int32_t bits_of_word, int32_t shift, int32_t mask, int32_t low, int32_t bits,
    uint32_t *entries, const uint8_t *weights, int32_t tables, int32_t symbols, const uint8_t *table, const uint8_t *shifts,
    int64_t width, int64_t first, uint32_t *states, int32_t lanes, const uint16_t *coded_words, int64_t coded_size, const uint8_t *extra, int64_t extra_size
) {
    const lattice of = {bits_of_word, shift, mask, low};
    const contexts by = {table, shifts, width, first};
    stream from = {coded_words, coded_words + coded_size, false};
    bit_reader open = {extra, extra_size, 0, false};
    uint8_t found[BLOCK], order[256][8];
    fill_entries(entries, weights, tables, symbols, bits);
    for (int few = 0; few < 256; few++)
        for (int lane = 0; lane < 8; lane++) order[few][lane] = (uint8_t)__builtin_popcount((unsigned)few & ((1u << lane) - 1));
    for (int64_t start = 0; start < n && !from.over; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        char *here = (char *)words + start * (bits_of_word / 8);
        if (bits_of_word == 16) fill_levels(found, here, size, &of, 16);
        else fill_levels(found, here, size, &of, bits_of_word);
        fill_tables(found, start, size, &by);
        decode_symbols(found, size, entries, states, lanes, bits, &from, (const uint8_t (*)[8])order);
        if (bits_of_word == 16) apply(here, 0, found, size, &open, 16);
        else if (bits_of_word == 32) apply(here, 0, found, size, &open, 32);
        else apply(here, 0, found, size, &open, 8);
    }
    bool ended = !from.over && from.at == from.end;
    for (int lane = 0; lane < lanes; lane++) ended = ended && states[lane] == LOWEST;
    if (!ended) return 1;
    bool zero = !(open.at & 7) || !(extra_size && extra[extra_size - 1] >> (open.at & 7));
    return open.over || (open.at + 7) / 8 != extra_size || !zero ? 2 : 0;
}
