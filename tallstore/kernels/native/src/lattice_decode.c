/* The decoder of codec `lattice`: range-coded steps, applied to the base's elements. The stream is of 16-bit words. */
#include "lattice.h"

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

/* By table and slot: frequency − 1, 12 bits; the slot's place in the symbol, 12 bits; the symbol, 8 bits. `kinds`: symbols
 * 0, +1, −1, +2, … of a table that have weights. */
static void fill_entries(uint32_t *entries, const uint8_t *weights, int32_t tables, int32_t kinds, int32_t bits) {
    for (int32_t table = 0; table < tables; table++, weights += kinds) {
        uint64_t scaled[KINDS], total = 0;
        uint32_t left = 1u << bits;
        for (int32_t a = 0; a < kinds; a++) {
            scaled[a] = weights[a] ? (4 + (weights[a] & 3ull)) << (weights[a] >> 2) : 0;
            total += scaled[a];
        }
        for (int32_t a = 1; a < kinds; a++) {
            scaled[a] = (scaled[a] << bits) / total;
            left -= (uint32_t)scaled[a];
        }
        scaled[0] = left;
        for (int32_t a = 0; a < kinds; a++) {
            uint32_t symbol = (uint32_t)(uint8_t)(a & 1 ? (a + 1) / 2 : -(a / 2)) << 24;
            for (uint32_t place = 0; place < scaled[a]; place++)
                *entries++ = ((uint32_t)scaled[a] - 1) | place << 12 | symbol;
        }
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

/* Turn n of the base's elements into the task's. `entries`: room for tables · 2^bits; `weights`: `kinds` of each table, one
 * of them not 0. `states` are used up. Returns 0; 1 if the stream does not end with the elements; 2 if the open bits do
 * not. */
TS_KERNEL(int32_t, lattice_decode)(
    void *words, int64_t n, int32_t bits_of_word, int32_t shift, int32_t mask, int32_t low, int32_t bits,
    uint32_t *entries, const uint8_t *weights, int32_t tables, int32_t kinds, const ts_rows *by, uint32_t *states,
    int32_t lanes, const uint16_t *coded_words, int64_t coded_size, const uint8_t *extra, int64_t extra_size
) {
    const lattice of = {bits_of_word, shift, mask, low};
    stream from = {coded_words, coded_words + coded_size, false};
    bit_reader open = {extra, extra_size, 0, false};
    uint8_t found[BLOCK], order[256][8];
    ts_told told;
    fill_entries(entries, weights, tables, kinds, bits);
    for (int few = 0; few < 256; few++)
        for (int lane = 0; lane < 8; lane++) order[few][lane] = (uint8_t)__builtin_popcount((unsigned)few & ((1u << lane) - 1));
    for (int64_t start = 0; start < n && !from.over; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        char *here = (char *)words + start * (bits_of_word / 8);
        if (bits_of_word == 16) fill_levels(found, here, size, &of, 16);
        else fill_levels(found, here, size, &of, bits_of_word);
        if (by->rank) predict(&told, start, size, by);
        fill_tables(found, by->rank ? told.grade : NULL, start, size, by);
        decode_symbols(found, size, entries, states, lanes, bits, &from, (const uint8_t (*)[8])order);
        if (by->rank) turn_symbols((int8_t *)found, (const int8_t *)found, told.negative, size);
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