/* The product of two thin matrices, added to a chunk's elements: what `tallstore.kernels.low_rank` does. Sums are whole
 * numbers below 2^24: they are exact, in whatever order and type they are added up. */
#include "half.h"

/* A `number` is what a lane of a vector of WIDE bytes holds of components. x86 multiplies pairs of 16 bits and adds the
 * products: there it is two of them. TILE: vectors of one row that are summed up at once, as registers allow. */
#if defined(__SSE2__)
#include <immintrin.h>
typedef int32_t number;
#if defined(__AVX512BW__)
enum { WIDE = 64, PER = 2, TILE = 4 };
#define ADDED(sum, a, b) ((sum) + (lanes)_mm512_madd_epi16((__m512i)(a), (__m512i)(b)))
#elif defined(__AVX2__)
enum { WIDE = 32, PER = 2, TILE = 2 };
#define ADDED(sum, a, b) ((sum) + (lanes)_mm256_madd_epi16((__m256i)(a), (__m256i)(b)))
#else
enum { WIDE = 16, PER = 2, TILE = 2 };
#define ADDED(sum, a, b) ((sum) + (lanes)_mm_madd_epi16((__m128i)(a), (__m128i)(b)))
#endif
#else
typedef float number;
enum { WIDE = 16, PER = 1, TILE = 4 };
#if defined(__aarch64__) && !defined(TS_SCALAR)
#define ADDED(sum, a, b) vfmaq_f32(sum, a, b)
#else
#define ADDED(sum, a, b) ((sum) + (a) * (b))
#endif
#endif
typedef number lanes __attribute__((vector_size(WIDE)));

enum { SOME = 192, ROWS = 4, MOST = 64 / PER }; /* columns and rows that are worked on at a time; numbers of 64 components */
enum { LANES = WIDE / 4, ACROSS = SOME / LANES };

#define NUMBER(one, two) (PER == 1 ? (number)(one) : (number)((uint16_t)(one) | (uint32_t)(uint16_t)(two) << 16))

/* Sums of products of ROWS rows and `size` columns, of `parts` numbers each. */
static void fill_sums(
    lanes (*restrict sums)[ACROSS], const number (*by)[MOST], const lanes (*of)[ACROSS], int32_t parts, int64_t size
) {
    for (int64_t c = 0; c * LANES < size; c += TILE) {
        lanes sum[ROWS * TILE]; /* in registers: nothing but single vectors is ever assigned */
        for (int j = 0; j < ROWS * TILE; j++) sum[j] = (lanes){0};
        for (int32_t k = 0; k < parts; k++)
            for (int j = 0; j < ROWS * TILE; j++) sum[j] = ADDED(sum[j], of[k][c + j % TILE], by[j / TILE][k] - (lanes){0});
        for (int j = 0; j < ROWS * TILE; j++) sums[j / TILE][c + j % TILE] = sum[j];
    }
}

/* Add scale · sums[from + i], where that is not 0, to each of `size` words. */
static void add_sums(uint8_t *restrict out, const number *sums, int64_t from, int64_t size, float scale, int32_t form) {
    uint16_t *words = (uint16_t *)out;
    if (form == TS_FLOAT32) {
        uint32_t *wide = (uint32_t *)out;
        for (int64_t i = 0; i < size; i++) {
            const float value = ts_float(wide[i]) + scale * (float)sums[from + i];
            const uint32_t found = value == value ? ts_bits(value) : 0x7FC00000u;
            wide[i] = sums[from + i] != 0 ? found : wide[i];
        }
        return;
    }
    if (form == TS_BFLOAT16) {
        for (int64_t i = 0; i < size; i++) { /* at once: most of the time goes to memory */
            const float value = ts_from_bfloat16(words[i]) + scale * (float)sums[from + i];
            const uint16_t found = value == value ? ts_to_bfloat16(value) : 0x7FC0;
            words[i] = sums[from + i] != 0 ? found : words[i];
        }
        return;
    }
    float value[SOME];
    uint16_t own[SOME] = {0}, found[SOME];
    memcpy(own + from, words, (size_t)size * sizeof *own);
    ts_widen_float16(value, own, SOME); /* always as many: compilers need no code for a rest of vectors */
    for (int64_t i = 0; i < SOME; i++) value[i] += scale * (float)sums[i];
    ts_narrow_float16(found, value, SOME);
    for (int64_t i = 0; i < SOME; i++) own[i] = sums[i] == 0 ? own[i] : value[i] == value[i] ? found[i] : 0x7E00;
    memcpy(words, own + from, (size_t)size * sizeof *own);
}

/* Add scale · across[row] · along[:, column], where that is not 0, to each of n words, the first of which is `gone` elements
 * behind the beginning of its row. `across`: (rows, rank), and a 0 behind each row of an odd rank, of 12 bits and a sign;
 * `along`: (rank, width); rank is at most 64. */
TS_KERNEL(void, add_product)(
    uint8_t *restrict words, int64_t n, const int16_t *restrict across, const int8_t *restrict along, int32_t rank,
    int64_t rows, int64_t width, int64_t gone, float scale, int32_t form
) {
    const int32_t parts = (rank + PER - 1) / PER, even = rank + rank % 2, item = form == TS_FLOAT32 ? 4 : 2;
    for (int64_t column = 0; column < width; column += SOME) {
        const int64_t size = TS_MIN(SOME, width - column);
        lanes some[MOST][ACROSS]; /* one behind the other: as far apart as they were, they push each other out of the cache */
        if (size < SOME) memset(some, 0, sizeof some);
        for (int32_t k = 0; k < parts; k++) {
            const int8_t *one = along + k * PER * width + column, *two = k * PER + 1 < rank ? one + width : one;
            for (int64_t i = 0; i < size; i++) ((number *)some[k])[i] = NUMBER(one[i], two[i]);
        }
        for (int64_t row = 0; row < rows; row += ROWS) {
            number by[ROWS][MOST];
            lanes sums[ROWS][ACROSS];
            for (int64_t r = 0; r < ROWS; r++) {
                const int16_t *own = across + TS_MIN(row + r, rows - 1) * even;
                for (int32_t k = 0; k < parts; k++) by[r][k] = NUMBER(own[k * PER], own[k * PER + PER - 1]);
            }
            fill_sums(sums, (const number (*)[MOST])by, (const lanes (*)[ACROSS])some, parts, size);
            for (int64_t r = 0; r < TS_MIN(ROWS, rows - row); r++) {
                const int64_t begin = (row + r) * width + column - gone, from = TS_MAX(-begin, 0), to = TS_MIN(size, n - begin);
                if (from < to) add_sums(words + (begin + from) * item, (const number *)sums[r], from, to - from, scale, form);
            }
        }
    }
}
