/* Numbers that were rounded with a known dither: what `tallstore.kernels.known_dither` does, and tells about. */
#include "lattice.h"
#include "place_hash.h"

enum { EXPONENT = 7, RUN = 1024 };

TS_KERNEL(void, unpack_numbers)(int8_t *restrict out, const uint8_t *restrict packed, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const uint32_t byte = packed[i >> 2];
        const uint32_t four = (byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303u; /* symbols 0, 1, 2 */
        const uint32_t two = (four >> 1 & 0x01010101u) * 0xFFu;                            /* all bits of a 2 */
        memcpy(out + i, &(uint32_t){four ^ (two & 0xFDFDFDFDu)}, 4);
    }
    for (; i < n; i++) {
        const int symbol = packed[i >> 2] >> 2 * (i & 3) & 3;
        out[i] = (int8_t)(symbol == 2 ? -1 : symbol);
    }
}

TS_KERNEL(void, pack_numbers)(uint8_t *restrict packed, const int8_t *restrict numbers, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        memcpy(&eight, numbers + i, 8);
        const uint64_t minus = eight >> 7 & 0x0101010101010101u;
        uint64_t symbols = (eight & 0x0303030303030303u) - minus; /* −1 is 3 of two bits */
        symbols |= symbols >> 6, symbols &= 0x000F000F000F000Fu;
        symbols |= symbols >> 12, symbols &= 0x000000FF000000FFu;
        packed[i >> 2] = (uint8_t)symbols, packed[(i >> 2) + 1] = (uint8_t)(symbols >> 32);
    }
    for (; i < n; i++) {
        const int symbol = numbers[i] < 0 ? 2 : numbers[i];
        packed[i >> 2] = (uint8_t)((i & 3 ? packed[i >> 2] : 0) | symbol << 2 * (i & 3));
    }
}

/* counts[drawn / 2^(24 − bits)] of those that are not 0, RUN elements of every so many; added to. */
TS_KERNEL(void, count_bins)(int64_t *counts, const int8_t *numbers, int64_t n, uint32_t first, int32_t bits, int64_t every) {
    for (int64_t start = 0; start < n; start += every) {
        const int64_t stop = TS_MIN(n, start + RUN);
        int64_t i = start;
        for (; i + 8 <= stop; i += 8) {
            uint64_t on;
            memcpy(&on, numbers + i, 8);
            while (on) {
                const int at = __builtin_ctzll(on) >> 3;
                on &= ~((uint64_t)0xFF << 8 * at);
                counts[ts_drawn(first + (uint32_t)(i + at)) >> (24 - bits)]++;
            }
        }
        for (; i < stop; i++)
            if (numbers[i]) counts[ts_drawn(first + (uint32_t)i) >> (24 - bits)]++;
    }
}

#if defined(__AVX2__)
/* of[few][k]: which of eight is the k-th among `few`; and for bytes where each of eight finds its own. */
typedef struct {
    uint8_t packed[256][8], spread[256][8];
} orders;

static void fill_orders(orders *of) {
    for (unsigned few = 0; few < 256; few++)
        for (int at = 0, k = 0; at < 8; at++) {
            of->spread[few][at] = (uint8_t)(few >> at & 1 ? k : 0x80);
            if (few >> at & 1) of->packed[few][k++] = (uint8_t)at;
            if (at == 7)
                for (; k < 8; k++) of->packed[few][k] = 0x80;
        }
}
#endif

/* Of each element a bit, whether it is coded, in whole words of 64; of those the word. It has room for n + 64. Returns how
 * many these are. `live`: of each 2^block elements a bit, block being 6 or more; NULL if all are. */
TS_KERNEL(int64_t, pick)(
    uint8_t *picked, uint16_t *words, int64_t n, uint32_t first, int32_t shift, int32_t classes, const uint8_t *live, int32_t block
) {
    int64_t count = 0;
#if defined(__AVX2__) && !defined(__AVX512VBMI2__)
    orders order;
    fill_orders(&order);
#endif
    for (int64_t start = 0; start < n; start += 64) {
        uint64_t some = 0;
        if (!live || live[start >> block >> 3] >> (start >> block & 7) & 1) {
            const uint64_t all = n - start >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << (n - start)) - 1;
            const uint32_t begin = first + (uint32_t)start;
#if defined(__AVX512VBMI2__)
            const __m128i by = _mm_cvtsi32_si128(shift);
            for (int k = 0; k < 64; k += 16) {
                __m512i x = _mm512_srl_epi32(ts_drawn16(begin + (uint32_t)k), by);
                const __mmask16 few = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(classes)) & (__mmask16)(all >> k);
                const __m256i word = _mm512_cvtepi32_epi16(_mm512_slli_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(1)), EXPONENT));
                _mm256_storeu_si256((__m256i *)(words + count), _mm256_maskz_compress_epi16(few, word));
                count += __builtin_popcount(few), some |= (uint64_t)few << k;
            }
#elif defined(__AVX2__)
            const __m128i by = _mm_cvtsi32_si128(shift);
            for (int k = 0; k < 64; k += 8) {
                __m256i x = _mm256_srl_epi32(ts_drawn8(begin + (uint32_t)k), by);
                unsigned few = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(classes), x)));
                few &= (unsigned)(all >> k) & 0xFF;
                x = _mm256_slli_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(1)), EXPONENT);
                const __m256i own = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)order.packed[few]));
                x = _mm256_permutevar8x32_epi32(x, own); /* of 0x80 the lowest three bits: whichever, behind the last */
                const __m128i word = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
                _mm_storeu_si128((__m128i *)(words + count), word); /* words behind the last are saturated, and written over */
                count += __builtin_popcount(few), some |= (uint64_t)few << k;
            }
#else
            for (int k = 0; k < 64; k++) {
                const uint32_t of = ts_drawn(begin + (uint32_t)k) >> shift;
                const uint64_t here = (uint64_t)(of < (uint32_t)classes) & all >> k & 1;
                words[count] = (uint16_t)((of + 1) << EXPONENT);
                count += (int64_t)here, some |= here << k;
            }
#endif
        }
        memcpy(picked + (start >> 3), &some, 8);
    }
    return count;
}

/* The bits of 64 elements, from `start` on, of n. */
ALWAYS uint64_t bits_at(const uint8_t *picked, int64_t start, int64_t n) {
    uint64_t some = 0;
    const int64_t left = n - start;
    memcpy(&some, picked + (start >> 3), left >= 64 ? 8 : (size_t)((left + 7) >> 3));
    return left >= 64 ? some : some & (((uint64_t)1 << left) - 1);
}

/* `words` and `rest` hold copies of the words and of the numbers. */
TS_KERNEL(void, take_out)(uint16_t *restrict words, int8_t *restrict rest, const int8_t *restrict numbers, int64_t n, const uint8_t *picked) {
    int64_t at = 0;
    for (int64_t start = 0; start < n; start += 64) {
        uint64_t some = bits_at(picked, start, n);
#if defined(__AVX512VBMI2__)
        if (n - start >= 64) {
            const __m512i here = _mm512_loadu_si512(numbers + start), own = _mm512_maskz_compress_epi8(some, here);
            const int many = __builtin_popcountll(some);
            _mm512_storeu_si512(rest + start, _mm512_mask_mov_epi8(here, some, _mm512_setzero_si512()));
            const uint64_t there = many == 64 ? ~(uint64_t)0 : ((uint64_t)1 << many) - 1;
            for (int h = 0; h < 64; h += 32) {
                const __mmask32 half = (__mmask32)(there >> h);
                const __m256i bytes = h ? _mm512_extracti64x4_epi64(own, 1) : _mm512_castsi512_si256(own);
                const __m512i word = _mm512_maskz_loadu_epi16(half, words + at + h);
                _mm512_mask_storeu_epi16(words + at + h, half, _mm512_add_epi16(word, _mm512_cvtepi8_epi16(bytes)));
            }
            at += many;
            continue;
        }
#endif
        for (; some; some &= some - 1) {
            const int64_t i = start + __builtin_ctzll(some);
            words[at] = (uint16_t)(words[at] + (uint16_t)(int16_t)numbers[i]);
            rest[i] = 0, at++;
        }
    }
}

/* Set numbers of those that are coded. Returns whether all were in range, and none of them there. */
TS_KERNEL(int32_t, put_back)(int8_t *restrict rest, const uint8_t *picked, int64_t n, const uint16_t *restrict words, const uint16_t *restrict after, int32_t most) {
    int64_t at = 0;
    int32_t wrong = 0;
#if defined(__AVX2__) && !defined(__AVX512VBMI2__)
    orders order;
    fill_orders(&order);
#endif
    for (int64_t start = 0; start < n; start += 64) {
        uint64_t some = bits_at(picked, start, n);
        const int many = __builtin_popcountll(some);
        int8_t moved[64 + 8];
        for (int k = 0; k < many; k++) {
            const int16_t by = (int16_t)(uint16_t)(after[at + k] - words[at + k]);
            wrong |= by > most || by < -most;
            moved[k] = (int8_t)by;
        }
        at += many;
#if defined(__AVX512VBMI2__)
        if (n - start >= 64) {
            const __m512i here = _mm512_loadu_si512(rest + start), own = _mm512_maskz_expand_epi8(some, _mm512_loadu_si512(moved));
            wrong |= _mm512_mask_test_epi8_mask(some, here, here) != 0;
            _mm512_storeu_si512(rest + start, _mm512_or_si512(here, own));
            continue;
        }
#elif defined(__AVX2__)
        if (n - start >= 64) {
            for (int k = 0, from = 0; k < 64; k += 8) {
                const unsigned few = (unsigned)(some >> k) & 0xFF;
                const __m128i to = _mm_loadl_epi64((const __m128i *)order.spread[few]);
                const __m128i own = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)(moved + from)), to);
                const __m128i here = _mm_loadl_epi64((const __m128i *)(rest + start + k));
                const __m128i there = _mm_andnot_si128(_mm_srai_epi16(_mm_unpacklo_epi8(to, to), 15), _mm_unpacklo_epi8(here, here));
                wrong |= !_mm_testz_si128(there, there);
                _mm_storel_epi64((__m128i *)(rest + start + k), _mm_or_si128(here, own));
                from += __builtin_popcount(few);
            }
            continue;
        }
#endif
        for (int k = 0; some; some &= some - 1, k++) {
            int8_t *to = rest + start + __builtin_ctzll(some);
            wrong |= *to;
            *to = moved[k];
        }
    }
    return !wrong;
}
