/* Numbers that were rounded with a known dither: what `tallstore.kernels.known_dither` does, and tells about. */
#include "lattice.h"
#include "logarithm.h"
#include "place_hash.h"

enum { EXPONENT = 7, RUN = 1024, DITHERS = 16, MOST_BINS = 1 << 12 };
#define EVENS 0x5555555555555555u

/* Copy `size` bytes, which are mostly so many: the compiler knows that number. */
ALWAYS void copy(void *to, const void *from, int64_t size, int64_t mostly) {
    if (size == mostly) memcpy(to, from, (size_t)mostly);
    else memcpy(to, from, (size_t)size);
}

/* Numbers of 64 packed symbols: 0, 1 and −1. */
ALWAYS void unpack_64(int8_t *restrict out, const uint8_t *packed) {
#if defined(__AVX512VBMI2__)
    const __m512i eights = _mm512_cvtepu16_epi64(_mm_loadu_si128((const __m128i *)packed));
    const __m512i pairs = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0E0C0A0806040200), eights);
    const __m512i symbols = _mm512_and_si512(pairs, _mm512_set1_epi8(3));
    _mm512_storeu_si512(out, _mm512_shuffle_epi8(_mm512_set1_epi32(0x00FF0100), symbols));
#elif defined(__AVX2__)
    const __m256i plus = _mm256_set1_epi32(0x40100401), minus = _mm256_slli_epi32(plus, 1);
    const __m256i own = _mm256_setr_epi64x(0x0101010100000000, 0x0303030302020202, 0x0505050504040404, 0x0707070706060606);
    for (int i = 0; i < 64; i += 32) {
        const __m256i of = _mm256_shuffle_epi8(_mm256_set1_epi64x((int64_t)ts_load64(packed + (i >> 2))), own);
        const __m256i up = _mm256_cmpeq_epi8(_mm256_and_si256(of, plus), plus), down = _mm256_cmpeq_epi8(_mm256_and_si256(of, minus), minus);
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_sub_epi8(down, up));
    }
#else
    for (int i = 0; i < 64; i += 8) {
        uint64_t x = (uint64_t)packed[i >> 2] | (uint64_t)packed[(i >> 2) + 1] << 32; /* four symbols in each half */
        x = (x | x << 12) & 0x000F000F000F000Fu, x = (x | x << 6) & 0x0303030303030303u;
        x ^= (x >> 1 & 0x0101010101010101u) * 0xFD; /* 2 is −1 */
        memcpy(out + i, &x, 8);
    }
#endif
}

TS_KERNEL(void, unpack_numbers)(int8_t *restrict out, const uint8_t *restrict packed, int64_t n) {
    uint8_t last[16] = {0};
    int8_t numbers[64];
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) unpack_64(out + i, packed + (i >> 2));
    memcpy(last, packed + (i >> 2), (size_t)((n - i + 3) >> 2));
    unpack_64(numbers, last);
    memcpy(out + i, numbers, (size_t)(n - i));
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

/* counts[drawn / 2^(24 − bits)] of symbols that are not 0, RUN elements of every so many; added to. */
TS_KERNEL(void, count_bins)(int64_t *counts, const uint8_t *packed, int64_t n, uint32_t first, int32_t bits, int64_t every) {
    for (int64_t start = 0; start < n; start += every) {
        const int64_t stop = TS_MIN(n, start + RUN);
        for (int64_t i = start; i < stop; i += 32) {
            const int64_t left = TS_MIN(stop - i, 32);
            uint64_t on = 0;
            memcpy(&on, packed + (i >> 2), (size_t)((left + 3) >> 2));
            on = (on | on >> 1) & EVENS >> (64 - 2 * left);
            for (; on; on &= on - 1) counts[ts_drawn(first + (uint32_t)(i + (__builtin_ctzll(on) >> 1))) >> (24 - bits)]++;
        }
    }
}

/* The best shift, from `least` on, and number of classes: see `kernels.known_dither.choose_classes`. Returns shift · DITHERS +
 * classes − 1. counts[2^bits]: marks by their dither; there are as many shifts as make all of it DITHERS classes. */
TS_KERNEL(int32_t, choose_classes)(
    const double *counts, int32_t bits, int64_t among, int32_t least, double gap, double frame, const ts_logarithm *l
) {
    const int32_t bins = 1 << bits, shifts = bits - 3; /* a class of the last is bins / DITHERS */
    double upto[1 + MOST_BINS], best = 0;
    int32_t chosen = -1;
    upto[0] = 0;
    for (int32_t k = 0; k < bins; k++) upto[k + 1] = upto[k] + counts[k];
    for (int32_t s = 0; s < shifts; s++) {
        const double of = (double)TS_MAX(among, 1) / bins * (1 << s);
        double sum = 0;
        for (int32_t k = 0; k < DITHERS; k++) {
            double share = (upto[(k + 1) << s] - upto[k << s]) / of, left = upto[bins] - upto[(k + 1) << s];
            share = TS_MIN(TS_MAX(share, 0.0), 1.0);
            const double on = share > 0 ? share : 1.0, off = share < 1 ? 1.0 - share : 1.0;
            sum += -of * (share * log_2(l, on) + (1.0 - share) * log_2(l, off));
            double all = sum;
            if (left > 0) all += left * (log_2(l, (double)among / TS_MAX(left, 1.0)) + gap) + frame;
            if (s && k < DITHERS / 2) continue; /* as many places as classes of half their width */
            if (chosen < 0 || all < best) chosen = s * DITHERS + k, best = all;
        }
    }
    return least * DITHERS + chosen;
}

/* packed[few][k]: which of eight is the k-th among `few`; spread: for bytes where each of eight finds its own. */
typedef struct {
    uint8_t packed[256][8], spread[256][8];
} orders;

ALWAYS void fill_orders(orders *of) {
    (void)of;
#if defined(__AVX2__) && !defined(__AVX512VBMI2__)
    for (unsigned few = 0; few < 256; few++)
        for (int at = 0, k = 0; at < 8; at++) {
            of->spread[few][at] = (uint8_t)(few >> at & 1 ? k : 0x80);
            if (few >> at & 1) of->packed[few][k++] = (uint8_t)at;
            if (at == 7)
                for (; k < 8; k++) of->packed[few][k] = 0x80;
        }
#endif
}

/* 32 bits, each in front of a 0. */
ALWAYS uint64_t spread_32(uint32_t bits) {
#if defined(__AVX512VBMI2__)
    return _pdep_u64(bits, EVENS);
#else
    uint64_t x = (bits | (uint64_t)bits << 16) & 0x0000FFFF0000FFFFu;
    x = (x | x << 8) & 0x00FF00FF00FF00FFu, x = (x | x << 4) & 0x0F0F0F0F0F0F0F0Fu;
    x = (x | x << 2) & 0x3333333333333333u;
    return (x | x << 1) & EVENS;
#endif
}

/* Classes of 64 elements, the first of which draws from `begin`, or DITHERS where they are larger; and a bit for those that are
 * coded, of `all`. */
ALWAYS uint64_t classes_of(uint8_t *class, uint32_t begin, int32_t shift, int32_t classes, uint64_t all) {
    uint64_t some = 0;
    for (int k = 0; k < 64; k++) {
        const uint32_t of = ts_drawn(begin + (uint32_t)k) >> shift;
        class[k] = (uint8_t)TS_MIN(of, DITHERS);
    }
#if defined(__AVX512VBMI2__)
    some = _mm512_cmplt_epu8_mask(_mm512_loadu_si512(class), _mm512_set1_epi8((char)classes));
#elif defined(__AVX2__)
    for (int k = 0; k < 64; k += 32) {
        const __m256i of = _mm256_loadu_si256((const __m256i *)(class + k)), above = _mm256_set1_epi8((char)classes);
        some |= (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(above, of)) << k;
    }
#else
    for (int k = 0; k < 64; k++) some |= (uint64_t)(class[k] < classes) << k;
#endif
    return some & all;
}

/* `some` of 64 bytes, one behind the other; 64 are written. */
ALWAYS void gather_64(void *to, const void *from, uint64_t some, const orders *order) {
    (void)order;
#if defined(__AVX512VBMI2__)
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(some, _mm512_loadu_si512(from)));
#elif defined(__AVX2__)
    uint8_t *out = to;
    for (int k = 0; k < 64; k += 8) {
        const unsigned few = (unsigned)(some >> k) & 0xFF;
        const __m128i eight = _mm_loadl_epi64((const __m128i *)((const uint8_t *)from + k));
        _mm_storel_epi64((__m128i *)out, _mm_shuffle_epi8(eight, _mm_loadl_epi64((const __m128i *)order->packed[few])));
        out += __builtin_popcount(few);
    }
#else
    uint8_t *out = to;
    if (!~some) memcpy(to, from, 64);
    for (int k = 0; k < 64 && ~some; k++) { /* not a branch: what is left out is written over */
        *out = ((const uint8_t *)from)[k];
        out += some >> k & 1;
    }
#endif
}

/* Which of 64 elements, from `start` on, are there and in a live block. */
ALWAYS uint64_t alive(int64_t start, int64_t n, const uint8_t *live, int32_t block) {
    if (live && !(live[start >> block >> 3] >> (start >> block & 7) & 1)) return 0;
    return n - start >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << (n - start)) - 1;
}

/* Of each element a bit, whether it is coded, in whole words of 64; of those the word. It has room for n + 64. Returns how
 * many these are. `live`: of each 2^block elements a bit, block being 6 or more; NULL if all are. */
TS_KERNEL(int64_t, pick)(
    uint8_t *picked, uint16_t *words, int64_t n, uint32_t first, int32_t shift, int32_t classes, const uint8_t *live, int32_t block
) {
    int64_t count = 0;
    orders order;
    fill_orders(&order);
    for (int64_t start = 0; start < n; start += 64) {
        uint8_t class[64], own[64];
        uint64_t some = alive(start, n, live, block);
        if (some) {
            some = classes_of(class, first + (uint32_t)start, shift, classes, some);
            gather_64(own, class, some, &order);
            for (int k = 0; k < 64; k++) words[count + k] = (uint16_t)((own[k] + 1) << EXPONENT);
            count += __builtin_popcountll(some);
        }
        memcpy(picked + (start >> 3), &some, 8);
    }
    return count;
}

/* Take out those that are coded of n numbers, or packed symbols where there are no numbers: symbols, and levels from exponent
 * `low` on, each with room for n + 64. `rest`: packed symbols without them, or NULL. `live`: of each 64 elements a bit; NULL if all
 * are. Returns how many are coded. */
TS_KERNEL(int64_t, take_out)(
    int8_t *symbols, uint8_t *levels, uint8_t *rest, const uint8_t *packed, const int8_t *numbers, int64_t n, uint32_t first,
    int32_t shift, int32_t classes, int32_t low, const uint8_t *live
) {
    const uint8_t up = (uint8_t)(1 - low);
    int64_t count = 0;
    orders order;
    fill_orders(&order);
    for (int64_t start = 0; start < n; start += 64) {
        const int64_t size = TS_MIN(n - start, 64);
        uint64_t some = alive(start, n, live, 6), words[2] = {0};
        uint8_t class[64];
        int8_t own[64];
        if (numbers) copy(own, numbers + start, size, 64);
        else copy(words, packed + (start >> 2), (size + 3) >> 2, 16), unpack_64(own, (const uint8_t *)words);
        if (some) {
            some = classes_of(class, first + (uint32_t)start, shift, classes, some);
            for (int k = 0; k < 64; k++) {
                const uint8_t level = (uint8_t)(class[k] + up);
                class[k] = level < LEVELS - 1 ? level : LEVELS - 1;
            }
            gather_64(levels + count, class, some, &order), gather_64(symbols + count, own, some, &order);
            count += __builtin_popcountll(some);
        }
        if (!rest) continue;
        for (int h = 0; h < 2; h++) words[h] &= ~(3 * spread_32((uint32_t)(some >> 32 * h)));
        copy(rest + (start >> 2), words, (size + 3) >> 2, 16);
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

/* Set numbers of those that are coded. Returns whether all were in range, and none of them there. */
TS_KERNEL(int32_t, put_back)(int8_t *restrict rest, const uint8_t *picked, int64_t n, const uint16_t *restrict words, const uint16_t *restrict after, int32_t most) {
    int64_t at = 0;
    int32_t wrong = 0;
    orders order;
    fill_orders(&order);
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
