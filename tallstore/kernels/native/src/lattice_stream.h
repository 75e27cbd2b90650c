/* What decoders of codecs `lattice` and `drift` share: range-coded symbols, the bits that they leave open, and what moves
 * elements. The stream is of 16-bit words. */
#ifndef TS_LATTICE_STREAM_H
#define TS_LATTICE_STREAM_H

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

typedef struct { /* coded steps of a chunk: where their parts lie, and what is behind them */
    int32_t bits, lanes;
    const uint8_t *states, *words, *open, *rest;
    int64_t coded, open_bytes;
} coded_steps;

/* Read a chunk's first 24 bytes. What is between these and the steps is its model. False if the parts do not fit it. */
static bool read_steps(coded_steps *to, lattice *of, int64_t *width, int64_t *first, const uint8_t *data, int64_t size) {
    uint32_t counts[5]; /* width, first, bytes of the model, words, open bytes */
    if (size < 24) return false;
    memcpy(counts, data + 4, sizeof counts);
    to->bits = data[1], of->low = data[3], *width = counts[0], *first = counts[1];
    if (to->bits < 8 || to->bits > 12 || data[2] < 3 || data[2] > 8 || of->low > of->mask) return false;
    if (*first > *width || (*width && !*first)) return false;
    to->lanes = 1 << data[2], to->coded = counts[3], to->open_bytes = counts[4];
    to->states = data + 24 + counts[2], to->words = to->states + 4 * to->lanes, to->open = to->words + 2 * to->coded;
    to->rest = to->open + to->open_bytes;
    return to->rest <= data + size;
}

typedef struct { /* of words, `left` of them; the last ones are read from `tail`, where zeros stand behind them */
    const uint8_t *at;
    int64_t left;
    uint8_t tail[4 * MOST_LANES + 16];
    bool last, over;
} stream;

#if defined(__AVX2__)
/* Eight of the entries, by where they are. A gather takes longer than this on many processors. */
ALWAYS __m256i eight(const uint32_t *entries, const uint32_t *at) {
    __m128i half[2];
    for (int h = 0; h < 2; h++) {
        __m128i one[4];
        for (int k = 0; k < 4; k++) one[k] = _mm_cvtsi32_si128((int)entries[at[4 * h + k]]);
        half[h] = _mm_unpacklo_epi64(_mm_unpacklo_epi32(one[0], one[1]), _mm_unpacklo_epi32(one[2], one[3]));
    }
    return _mm256_set_m128i(half[1], half[0]);
}

/* Symbols of `size` lanes, a multiple of 8, in place of their tables. Returns where the next words are read. */
ALWAYS const uint8_t *decode_lanes(
    uint8_t *restrict found, int32_t size, const uint32_t *restrict entries, uint32_t *restrict states, int32_t bits,
    const uint8_t *restrict at, const uint8_t (*restrict order)[8]
) {
    const __m256i mask = _mm256_set1_epi32((1 << bits) - 1), twelve = _mm256_set1_epi32(0xFFF);
    const __m256i last = _mm256_set1_epi64x(0x0F0B0703); /* the highest byte of each of four */
    const __m128i by = _mm_cvtsi32_si128(bits);
    uint32_t slots[MOST_LANES]; /* all of them first: what is loaded by one need not wait for the states of another */
    for (int32_t lane = 0; lane < size; lane += 8) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(states + lane));
        __m256i table = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(found + lane)));
        table = _mm256_or_si256(_mm256_sll_epi32(table, by), _mm256_and_si256(x, mask));
        _mm256_storeu_si256((__m256i *)(slots + lane), table);
    }
    for (int32_t lane = 0; lane < size; lane += 8) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(states + lane)), entry = eight(entries, slots + lane);
        __m256i share = _mm256_sub_epi32(_mm256_and_si256(entry, twelve), _mm256_set1_epi32(-1));
        x = _mm256_mullo_epi32(share, _mm256_srl_epi32(x, by));
        x = _mm256_add_epi32(x, _mm256_and_si256(_mm256_srli_epi32(entry, 12), twelve));
        __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
        unsigned few = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));
        __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at));
        next = _mm256_permutevar8x32_epi32(next, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)order[few])));
        next = _mm256_or_si256(_mm256_slli_epi32(x, 16), next);
        _mm256_storeu_si256((__m256i *)(states + lane), _mm256_blendv_epi8(x, next, low));
        at += 2 * __builtin_popcount(few);
        entry = _mm256_shuffle_epi8(entry, last);
        __m128i symbols = _mm_unpacklo_epi32(_mm256_castsi256_si128(entry), _mm256_extracti128_si256(entry, 1));
        _mm_storel_epi64((__m128i *)(found + lane), symbols);
    }
    return at;
}
#endif

#if defined(__AVX512VBMI2__)
/* The same of a multiple of 16 lanes. */
ALWAYS const uint8_t *decode_wide(
    uint8_t *restrict found, int32_t size, const uint32_t *restrict entries, uint32_t *restrict states, int32_t bits,
    const uint8_t *restrict at
) {
    const __m512i mask = _mm512_set1_epi32((1 << bits) - 1), twelve = _mm512_set1_epi32(0xFFF), one = _mm512_set1_epi32(1);
    const __m128i by = _mm_cvtsi32_si128(bits);
    uint32_t slots[MOST_LANES];
    for (int32_t lane = 0; lane < size; lane += 16) {
        __m512i x = _mm512_loadu_si512(states + lane), table = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(found + lane)));
        _mm512_storeu_si512(slots + lane, _mm512_or_si512(_mm512_sll_epi32(table, by), _mm512_and_si512(x, mask)));
    }
    for (int32_t lane = 0; lane < size; lane += 16) {
        __m512i x = _mm512_loadu_si512(states + lane);
        __m512i entry = _mm512_inserti64x4(_mm512_castsi256_si512(eight(entries, slots + lane)), eight(entries, slots + lane + 8), 1);
        __m512i share = _mm512_add_epi32(_mm512_and_si512(entry, twelve), one);
        x = _mm512_mullo_epi32(share, _mm512_srl_epi32(x, by));
        x = _mm512_add_epi32(x, _mm512_and_si512(_mm512_srli_epi32(entry, 12), twelve));
        const __mmask16 few = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOWEST));
        __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
        x = _mm512_mask_or_epi32(x, few, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(few, next));
        _mm512_storeu_si512(states + lane, x);
        at += 2 * __builtin_popcount(few);
        _mm_storeu_si128((__m128i *)(found + lane), _mm512_cvtepi32_epi8(_mm512_srli_epi32(entry, 24)));
    }
    return at;
}
#endif

/* Symbols of n elements, in place of their tables. */
static void decode_symbols(
    uint8_t *found, int64_t n, const uint32_t *entries, uint32_t *states, int32_t lanes, int32_t bits, stream *from,
    const uint8_t (*order)[8]
) {
    for (int64_t start = 0; start < n && !from->over; start += lanes, found += lanes) {
        int32_t size = (int32_t)TS_MIN(n - start, lanes), lane = 0;
        if (!from->last && from->left < lanes) {
            memset(from->tail, 0, sizeof from->tail);
            memcpy(from->tail, from->at, (size_t)from->left * 2);
            from->at = from->tail, from->last = true;
        }
        const uint8_t *at = from->at;
        (void)order;
#if defined(__AVX2__)
#if defined(__AVX512VBMI2__)
        lane = size & ~15;
        at = decode_wide(found, lane, entries, states, bits, at);
#endif
        const int32_t eights = size & ~7;
        at = decode_lanes(found + lane, eights - lane, entries, states + lane, bits, at, order);
        lane = eights;
#endif
        for (; lane < size; lane++) {
            uint32_t x = states[lane], entry = entries[(uint32_t)found[lane] << bits | (x & ((1u << bits) - 1))];
            x = ((entry & 0xFFF) + 1) * (x >> bits) + (entry >> 12 & 0xFFF);
            bool low = x < LOWEST;
            states[lane] = low ? x << 16 | at[0] | (uint32_t)at[1] << 8 : x;
            at += 2 * low;
            found[lane] = (uint8_t)(entry >> 24);
        }
        from->left -= (at - from->at) / 2, from->at = at, from->over = from->left < 0;
    }
}

/* By table and slot: frequency − 1, 12 bits; the slot's place in the symbol, 12 bits; the symbol, 8 bits. `kinds`: symbols
 * 0, +1, −1, +2, … of a table that have weights. */
static void fill_entries(uint32_t *entries, const uint8_t *weights, int32_t tables, int32_t kinds, int32_t bits) {
    for (int32_t table = 0; table < tables; table++, weights += kinds) {
        uint32_t share[KINDS];
        fill_shares(share, weights, kinds, bits);
        for (int32_t a = 0; a < kinds; a++) {
            uint32_t symbol = (uint32_t)(uint8_t)(a & 1 ? (a + 1) / 2 : -(a / 2)) << 24;
            for (uint32_t place = 0; place < share[a]; place++) *entries++ = (share[a] - 1) | place << 12 | symbol;
        }
    }
}

/* A word moved by what a symbol says, of which `done` was done before. */
ALWAYS uint32_t moved(uint32_t word, int8_t symbol, int32_t done, bit_reader *extra, int32_t bits) {
    uint32_t size = size_of(symbol);
    if (size >= DIRECT) {
        int32_t open = 3 + (int32_t)(size - DIRECT) / 2;
        size = (2 + (size & 1)) << open;
        size += get_bits(extra, open);
    }
    return turned(turned(word, bits) + (symbol < 0 ? 0u - size : size) - (uint32_t)done, bits);
}

/* `turned`, as compilers make vectors of words of it. */
ALWAYS uint16_t turned_word(uint16_t word) { return (uint16_t)(word ^ ((uint16_t)((int16_t)word >> 15) >> 1)); }

ALWAYS void apply(void *restrict words, const int8_t *restrict symbols, int64_t n, bit_reader *extra, int32_t bits) {
    int64_t i = 0;
    for (; bits == 16 && i + 64 <= n; i += 64) {
        uint16_t *at = (uint16_t *)words + i;
        uint8_t large[64], any = 0;
        for (int k = 0; k < 64; k++) at[k] = turned_word((uint16_t)(turned_word(at[k]) + (uint16_t)symbols[i + k]));
        for (int k = 0; k < 64; k++) any |= large[k] = (uint8_t)(symbols[i + k] + DIRECT - 1) > 2 * (DIRECT - 1);
        uint64_t left = 0;
        for (int k = 0; any && k < 64; k += 8) left |= ts_gathered(ts_load64(large + k)) << k;
        for (; left; left &= left - 1) {
            const int one = __builtin_ctzll(left);
            at[one] = (uint16_t)moved(at[one], symbols[i + one], symbols[i + one], extra, 16);
        }
    }
    for (; i < n; i++) put_word(words, i, bits, moved(word_at(words, i, bits), symbols[i], 0, extra, bits));
}

/* order[few][lane]: how many of the lanes in front of this one are among `few`. */
ALWAYS void fill_order(uint8_t (*order)[8]) {
    for (int few = 0; few < 256; few++)
        for (int lane = 0; lane < 8; lane++) order[few][lane] = (uint8_t)__builtin_popcount((unsigned)few & ((1u << lane) - 1));
}

ALWAYS uint8_t largest(const uint8_t *of, int64_t n) {
    uint8_t found = 0;
    for (int64_t i = 0; i < n; i++) found = TS_MAX(found, of[i]);
    return found;
}

/* What is said of a decoder that is done: 0; 1 if the stream does not end with the elements; 2 if the open bits do not. */
static int32_t ended(const stream *from, const bit_reader *open, const uint32_t *states, int32_t lanes) {
    bool all = !from->over && !from->left;
    for (int lane = 0; lane < lanes; lane++) all = all && states[lane] == LOWEST;
    if (!all) return 1;
    const bool zero = !(open->at & 7) || !(open->bytes && open->data[open->bytes - 1] >> (open->at & 7));
    return open->over || (open->at + 7) / 8 != open->bytes || !zero ? 2 : 0;
}

#endif
