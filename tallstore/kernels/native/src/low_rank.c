/* The product of two thin matrices, added to a chunk's elements: what `tallstore.kernels.low_rank` does. */
#include "half.h"

enum { SOME = 64, MOST = 64 }; /* columns that are worked on at a time, and components: all numbers of these fit the first cache */

/* a · b + c, of whole numbers whose sum is below 2^24: exact, whether it is rounded once or twice. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define EXACT(a, b, c) __builtin_fmaf(a, b, c)
#else
#define EXACT(a, b, c) ((a) * (b) + (c))
#endif

/* Add scale · across · along, where that is not 0, to a run of one row, of at most SOME words. `along`: (rank, SOME). */
static void add_run(
    uint16_t *restrict words, int64_t size, const float *restrict across, const float *restrict along, int32_t rank, float scale,
    int32_t form
) {
    const uint16_t none = form == TS_BFLOAT16 ? 0x7FC0 : 0x7E00;
    float sum[SOME] = {0}, value[SOME];
    uint16_t found[SOME];
    int32_t k = 0;
    for (; k + 4 <= rank; k += 4) { /* sums are exact: four at a time are the same */
        const float *const by = across + k, *const p = along + k * SOME, *const q = p + SOME, *const r = q + SOME;
        const float *const s = r + SOME;
        for (int64_t i = 0; i < size; i++)
            sum[i] = EXACT(by[0], p[i], EXACT(by[1], q[i], EXACT(by[2], r[i], EXACT(by[3], s[i], sum[i]))));
    }
    for (; k < rank; k++)
        for (int64_t i = 0; i < size; i++) sum[i] = EXACT(across[k], along[k * SOME + i], sum[i]);
    ts_widen(value, words, size, form);
    bool all = true;
    for (int64_t i = 0; i < size; i++) {
        value[i] += scale * sum[i];
        all &= value[i] == value[i];
    }
    ts_narrow(found, value, size, form);
    for (int64_t i = 0; !all && i < size; i++)
        if (value[i] != value[i]) found[i] = none;
    for (int64_t i = 0; i < size; i++) words[i] = sum[i] != 0 ? found[i] : words[i];
}

/* Add scale · across[row] · along[:, column], where that is not 0, to each of n words, the first of which is `gone` elements
 * behind the beginning of its row. `across`: (rows, rank), `along`: (rank, width), whole numbers both;
 * rank is at most MOST. */
TS_KERNEL(void, add_product)(
    uint16_t *restrict words, int64_t n, const float *restrict across, const float *restrict along, int32_t rank, int64_t rows,
    int64_t width, int64_t gone, float scale, int32_t form
) {
    for (int64_t column = 0; column < width; column += SOME) {
        const int64_t size = TS_MIN(SOME, width - column);
        float some[MOST * SOME]; /* one behind the other: as far apart as they were, they would push each other out of the cache */
        for (int32_t k = 0; k < rank; k++) memcpy(some + k * SOME, along + k * width + column, (size_t)size * sizeof *some);
        for (int64_t row = 0; row < rows; row++) {
            const int64_t begin = row * width + column - gone, first = TS_MAX(begin, 0), end = TS_MIN(begin + size, n);
            if (first < end) add_run(words + first, end - first, across + row * rank, some + (first - begin), rank, scale, form);
        }
    }
}
