/* The product of two thin matrices, added to a chunk's elements: what `tallstore.kernels.low_rank` does. */
#include "half.h"

enum { SOME = 256 }; /* elements that are worked on at a time */

/* Add scale · across[:, row] · along[:, column], where that is not 0, to each of n words, the first of which is `gone` elements
 * behind the beginning of its row. `across`: (rank, rows), `along`: (rank, width), whole numbers both. */
TS_KERNEL(void, add_product)(
    uint16_t *restrict words, int64_t n, const float *restrict across, const float *restrict along, int32_t rank, int64_t rows,
    int64_t width, int64_t gone, float scale, int32_t form
) {
    const uint16_t none = form == TS_BFLOAT16 ? 0x7FC0 : 0x7E00;
    for (int64_t at = 0, size; at < n; at += size) {
        const int64_t row = (gone + at) / width, column = (gone + at) % width;
        size = TS_MIN(TS_MIN(n - at, width - column), SOME);
        float sum[SOME] = {0}, value[SOME];
        uint16_t found[SOME];
        int32_t k = 0;
        for (; k + 4 <= rank; k += 4) { /* sums are exact: four at a time are the same */
            const float *const by = across + k * rows + row, *const of = along + k * width + column;
            const float a = by[0], b = by[rows], c = by[2 * rows], d = by[3 * rows];
            const float *const p = of, *const q = of + width, *const r = of + 2 * width, *const s = of + 3 * width;
            for (int64_t i = 0; i < size; i++) sum[i] += (a * p[i] + b * q[i]) + (c * r[i] + d * s[i]);
        }
        for (; k < rank; k++) {
            const float times = across[k * rows + row], *const other = along + k * width + column;
            for (int64_t i = 0; i < size; i++) sum[i] += times * other[i];
        }
        ts_widen(value, words + at, size, form);
        bool all = true;
        for (int64_t i = 0; i < size; i++) {
            value[i] += scale * sum[i];
            all &= value[i] == value[i];
        }
        ts_narrow(found, value, size, form);
        for (int64_t i = 0; !all && i < size; i++)
            if (value[i] != value[i]) found[i] = none;
        for (int64_t i = 0; i < size; i++) words[at + i] = sum[i] != 0 ? found[i] : words[at + i];
    }
}
