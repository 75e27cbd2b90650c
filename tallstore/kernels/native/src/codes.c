/* Codes of masks and codebooks, from one form into another. */
#include "gaps.h"

/* What gaps add up to, into totals[0], and how many marks they have, into totals[1]. */
TS_KERNEL(void, sum_gaps)(int64_t *totals, const uint8_t *gaps, int64_t n) {
    int64_t sum = 0, marks = 0;
    for (int64_t a = 0; a < n; a += 1 << 16) { /* 32 bits hold so many */
        const int64_t size = TS_MIN(n - a, 1 << 16);
        uint32_t here = 0, ends = 0;
        for (int64_t i = 0; i < size; i++) here += gaps[a + i], ends += gaps[a + i] != 255;
        sum += here, marks += ends;
    }
    totals[0] = sum, totals[1] = marks;
}

/* Packed symbols of `bits` bits from gaps and signs: `out` is all zero and has room for n symbols; marks beyond it are
 * left out. */
TS_KERNEL(void, gaps_to_packed)
(uint8_t *out, int64_t n, const uint8_t *gaps, int64_t count, const uint8_t *signs, int64_t sign_bytes, int32_t bits) {
    int64_t place = 0, mark = 0;
    for (int64_t i = 0; i < count; i++) {
        place += gaps[i];
        if (gaps[i] == 255) continue;
        if (place >= n) return;
        if (bits == 1) {
            out[place >> 3] |= (uint8_t)(1u << (place & 7));
        } else {
            const unsigned negative = (mark >> 3) < sign_bytes ? (signs[mark >> 3] >> (mark & 7)) & 1u : 0;
            out[place >> 2] |= (uint8_t)((1u + negative) << (2 * (place & 3)));
        }
        place++, mark++;
    }
}

/* Packed indices of n elements, `bits` (4 or 8) each, from those of the elements that are on, less 1. `out` is all zero;
 * `on` has a bit per element; `rest` has `rest_bytes` bytes of packed indices, and what lies behind them is left 0. */
TS_KERNEL(void, spread)
(uint8_t *out, const uint8_t *on, int64_t n, const uint8_t *rest, int64_t rest_bytes, int32_t bits) {
    int64_t at = 0;
    const int64_t end = bits == 8 ? rest_bytes : 2 * rest_bytes;
    for (int64_t a = 0; a < n; a += 8) {
        unsigned flags = on[a >> 3];
        while (flags) {
            const int64_t i = a + __builtin_ctz(flags);
            flags &= flags - 1;
            if (i >= n || at >= end) return;
            if (bits == 8) {
                out[i] = (uint8_t)(rest[at] + 1);
            } else {
                const unsigned index = ((rest[at >> 1] >> (4 * (at & 1))) & 15u) + 1;
                out[i >> 1] |= (uint8_t)((index & 15u) << (4 * (i & 1)));
            }
            at++;
        }
    }
}
