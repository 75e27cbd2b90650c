/* Codes of masks and planes: lists of gaps from packed marks, and bytes of equal place together. */
#include "half.h"

#if defined(__AVX512VBMI2__)
#include <immintrin.h>
#endif

/* How many bits are set. */
TS_KERNEL(int64_t, bits_on)(const uint8_t *packed, int64_t size) { return ts_bits_on(packed, size); }

/* A walk through marks, and what it has written. */
typedef struct {
    uint8_t *gaps;
    uint64_t *signs;
    int64_t at, marks, last; /* bytes of gaps; marks; the place of the last mark */
    uint64_t held;           /* signs that do not fill a word yet */
} walk;

/* The even bits of a word, next to each other. */
static inline uint64_t evens(uint64_t word) {
#if defined(__BMI2__)
    return __builtin_ia32_pext_di(word, 0x5555555555555555u);
#else
    word &= 0x5555555555555555u;
    word = (word | word >> 1) & 0x3333333333333333u;
    word = (word | word >> 2) & 0x0F0F0F0F0F0F0F0Fu;
    word = (word | word >> 4) & 0x00FF00FF00FF00FFu;
    word = (word | word >> 8) & 0x0000FFFF0000FFFFu;
    return (word | word >> 16) & 0xFFFFFFFFu;
#endif
}

/* The bits of a word at the places that are set in `on`, of which there are `count`, next to each other. */
static inline uint64_t squeeze(uint64_t word, uint64_t on) {
#if defined(__BMI2__)
    return __builtin_ia32_pext_di(word, on);
#else
    uint64_t found = 0;
    for (int k = 0; on; k++, on &= on - 1) found |= (word >> __builtin_ctzll(on) & 1) << k;
    return found;
#endif
}

/* 64 symbols from element `begin` on: a bit each where they are on, and where they are negative. */
static inline void step(walk *w, int64_t begin, uint64_t on, uint64_t negative) {
    if (!on) return;
    const int count = __builtin_popcountll(on), filled = (int)(w->marks & 63);
    int64_t before = w->last - begin;
    for (int64_t gap = __builtin_ctzll(on) - before - 1; gap >= 255; gap -= 255) { /* within 64 there are no such gaps */
        w->gaps[w->at++] = 255;
        before += 255;
    }
    w->last = begin + 63 - __builtin_clzll(on);
    const uint64_t own = squeeze(negative, on);
    w->held |= own << filled;
    if (filled + count >= 64) {
        w->signs[w->marks >> 6] = w->held;
        w->held = filled ? own >> (64 - filled) : 0;
    }
#if defined(__AVX512VBMI2__)
    static const uint8_t each[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                     22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
                                     44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    static const uint8_t shifted[64] = {0,  0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                                        21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42,
                                        43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62};
    const __m512i places = _mm512_maskz_compress_epi8(on, _mm512_loadu_si512(each));
    __m512i previous = _mm512_permutexvar_epi8(_mm512_loadu_si512(shifted), places);
    previous = _mm512_mask_set1_epi8(previous, 1, (char)before);
    _mm512_storeu_si512(w->gaps + w->at, _mm512_sub_epi8(_mm512_sub_epi8(places, previous), _mm512_set1_epi8(1)));
#else
    uint8_t *out = w->gaps + w->at;
    int previous = (int)before;
    for (int done = 0; done < count; done += 4) { /* more than there are is written, and then written over */
        for (int j = 0; j < 4; j++) {
            const int place = __builtin_ctzll(on | (uint64_t)1 << 63);
            on &= on - 1;
            out[done + j] = (uint8_t)(place - previous - 1);
            previous = place;
        }
    }
#endif
    w->at += count, w->marks += count;
}

/* Gaps (255 is a continuation byte) and signs of packed symbols of `bits` bits.
 *   gaps: room for marks + symbols / 255 + 1 + 64 bytes, of which those behind the last gap hold anything
 *   signs: room for a bit per mark, and one word more
 *   packed: `size` bytes; behind the last symbol their bits are 0
 * Returns the bytes of gaps. */
TS_KERNEL(int64_t, packed_to_gaps)(uint8_t *gaps, uint64_t *signs, const uint8_t *packed, int64_t size, int32_t bits) {
    walk w = {gaps, signs, 0, 0, -1, 0};
    for (int64_t i = 0; i < size; i += 8 * bits) { /* 64 symbols */
        uint64_t words[2] = {0, 0};
        if (size - i >= (int64_t)sizeof words) memcpy(words, packed + i, sizeof words);
        else memcpy(words, packed + i, (size_t)TS_MIN(size - i, 8 * bits));
        if (bits == 1) {
            step(&w, 8 * i, words[0], 0);
        } else if (words[0] | words[1]) {
            const uint64_t negative = evens(words[0] >> 1) | evens(words[1] >> 1) << 32;
            step(&w, 4 * i, evens(words[0]) | evens(words[1]) << 32 | negative, negative);
        }
    }
    if (w.marks & 63) signs[w.marks >> 6] = w.held;
    return w.at;
}

#define TS_SPLIT(TYPE)                                                                                                 \
    {                                                                                                                  \
        const TYPE *own = words;                                                                                       \
        const int last = 8 * (int)sizeof(TYPE) - 1;                                                                    \
        for (int64_t a = 0; a < n; a += RUN) {                                                                         \
            const int64_t m = TS_MIN(n - a, RUN);                                                                      \
            for (int place = 0; place < (int)sizeof(TYPE); place++) {                                                  \
                uint8_t *restrict plane = planes + place * n + a;                                                      \
                const TYPE *restrict run = own + a;                                                                    \
                const int shift = 8 * place;                                                                           \
                if (rotated)                                                                                           \
                    for (int64_t k = 0; k < m; k++)                                                                    \
                        plane[k] = (uint8_t)((TYPE)((TYPE)(run[k] << 1) | (TYPE)(run[k] >> last)) >> shift);           \
                else                                                                                                   \
                    for (int64_t k = 0; k < m; k++) plane[k] = (uint8_t)(run[k] >> shift);                             \
            }                                                                                                          \
        }                                                                                                              \
        return;                                                                                                        \
    }

enum { RUN = 1024 };

/* Bytes of equal place of n words of `item` bytes, the least significant first: item · n bytes. rotated: words are rotated
 * left by one bit before. */
TS_KERNEL(void, split)(uint8_t *planes, const void *words, int64_t n, int32_t item, int32_t rotated) {
    if (item == 1) TS_SPLIT(uint8_t)
    if (item == 2) TS_SPLIT(uint16_t)
    if (item == 4) TS_SPLIT(uint32_t)
    TS_SPLIT(uint64_t)
}

/* θt − θ0 of n elements of a type of 16 bits, in float32. */
TS_KERNEL(void, changes)(float *restrict out, const uint16_t *restrict weights, const uint16_t *restrict base, int64_t n, int32_t form) {
    enum { SOME = 512 };
    float start[SOME];
    for (int64_t at = 0, size; at < n; at += size) {
        size = TS_MIN(n - at, SOME);
        ts_widen(out + at, weights + at, size, form), ts_widen(start, base + at, size, form);
        for (int64_t i = 0; i < size; i++) out[at + i] -= start[i];
    }
}
