/* Rows on levels of their own, and the indices of codebooks. */
#define _POSIX_C_SOURCE 200809L
#include "rows.h"
#include "sums.h"

enum { RUN = 1 << 14, TURNS = 4, INDICES = 256 };

/* The level of each magnitude of a block: 0, then each level of +, then each of −. Less than INDICES in all. */
static inline void place(uint8_t *restrict indices, float *restrict size, const float *restrict tau, int64_t m,
                         const float *bounds, int32_t count, float width, uint32_t first) {
    float shifted[TS_BLOCK];
    int32_t cell[TS_BLOCK];
    for (int64_t k = 0; k < m; k++) size[k] = shifted[k] = ts_float(ts_bits(tau[k]) & 0x7FFFFFFFu);
    if (width > 0)
        for (int64_t k = 0; k < m; k++) shifted[k] -= ts_uniform(first + (uint32_t)k) * width;
    for (int64_t k = 0; k < m; k++) cell[k] = 0;
    for (int32_t j = 0; j < count; j++) {
        const float bound = bounds[j];
        for (int64_t k = 0; k < m; k++) cell[k] += shifted[k] >= bound;
    }
    for (int64_t k = 0; k < m; k++) {
        const int32_t here = size[k] > 0 ? cell[k] : 0;
        indices[k] = (uint8_t)((tau[k] < 0) & (here > 0) ? here + count : here);
    }
}

/* ‖τ‖² of a block, added up in float64. */
static inline double squares(const float *tau, int64_t m) {
    float room[TS_BLOCK];
    double sums[TS_QUARTER];
    if (m < TS_BLOCK) {
        memset(room, 0, sizeof room);
        memcpy(room, tau, (size_t)m * sizeof *tau);
        tau = room;
    }
    for (int k = 0; k < TS_QUARTER; k++) {
        const double a = tau[k], b = tau[k + 256], c = tau[k + 512], d = tau[k + 768];
        sums[k] = TS_FOUR(a * a, b * b, c * c, d * d);
    }
    return ts_halve_f64(sums);
}

/* Indices of n magnitudes, how many elements have each, and the sums of their magnitudes; see `encoder.quantize`.
 *   numbers, totals: 1 + 2 · count each; set. Totals are added up in four tables by turns.
 *   bounds: ascending, where levels begin; raised by width · u if width is above 0
 *   first: the unmixed place of element 0
 *   room: ts_power(blocks) numbers
 * Returns ‖τ‖². */
TS_KERNEL(double, levels)
(uint8_t *indices, int64_t *numbers, double *totals, const float *tau, int64_t n, const float *bounds, int32_t count,
 float width, uint32_t first, double *room) {
    int64_t number[TURNS][INDICES] = {{0}};
    double total[TURNS][INDICES] = {{0}};
    float size[TS_BLOCK];
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        uint8_t *own = indices + a;
        place(own, size, tau + a, m, bounds, count, width, first + (uint32_t)a);
        room[a / TS_BLOCK] = squares(tau + a, m);
        for (int64_t k = 0; k < m; k++) {
            number[k & 3][own[k]]++;
            total[k & 3][own[k]] += (double)size[k];
        }
    }
    for (int32_t i = 0; i <= 2 * count; i++) {
        numbers[i] = number[0][i] + number[1][i] + number[2][i] + number[3][i];
        totals[i] = (total[0][i] + total[2][i]) + (total[1][i] + total[3][i]);
    }
    return ts_add_blocks(room, ts_blocks(n));
}

/* Levels with dither by what a decoder returns: see `encoder.rounded_levels`. A tile of at most TS_BLOCK elements.
 *   low, width: of a level's beginning, relative; factor: k */
static inline void place_rounded(uint8_t *restrict indices, const float *restrict tau, const float *restrict base, int64_t m,
                                 const float *values, int32_t count, float low, float width, float factor, uint32_t first,
                                 int32_t form) {
    float share[TS_BLOCK], before[TS_BLOCK], after[TS_BLOCK];
    uint16_t words[TS_BLOCK];
    int32_t cell[TS_BLOCK];
    for (int64_t k = 0; k < m; k++) share[k] = ts_uniform(first + (uint32_t)k) * width + low;
    for (int64_t k = 0; k < m; k++) before[k] = 0, cell[k] = 0;
    for (int32_t j = 0; j < count; j++) {
        const uint32_t value = ts_bits(values[j]);
        for (int64_t k = 0; k < m; k++) after[k] = base[k] + ts_float(value | (ts_bits(tau[k]) & 0x80000000u));
        ts_narrow(words, after, m, form);
        ts_widen(after, words, m, form);
        for (int64_t k = 0; k < m; k++) {
            const float size = ts_float(ts_bits(tau[k]) & 0x7FFFFFFFu), moved = ts_float(ts_bits(after[k] - base[k]) & 0x7FFFFFFFu);
            const float least = (before[k] + share[k] * (moved - before[k])) * factor;
            cell[k] = (size >= least) & (moved > before[k]) ? j + 1 : cell[k];
            before[k] = moved;
        }
    }
    for (int64_t k = 0; k < m; k++) {
        const int32_t here = tau[k] != 0 ? cell[k] : 0;
        indices[k] = (uint8_t)((tau[k] < 0) & (here > 0) ? here + count : here);
    }
}

/* Indices of n elements, as `levels` numbers them. values: what levels add, `count` of them; base: finite numbers of type
 * `form`. */
TS_KERNEL(void, place_rounded)
(uint8_t *indices, const float *tau, const float *base, int64_t n, const float *values, int32_t count, float low, float width,
 float factor, uint32_t first, int32_t form) {
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        int32_t moved = 0;
        for (int64_t k = 0; k < m; k++) moved |= tau[a + k] != 0;
        if (moved) place_rounded(indices + a, tau + a, base + a, m, values, count, low, width, factor, first + (uint32_t)a, form);
        else memset(indices + a, 0, (size_t)m);
    }
}

/* τ = θt − θ0 of runs of a row, one behind the other; runs[2k], runs[2k + 1]: a run's first element and the one behind
 * its last. Returns how many elements could be read. */
TS_KERNEL(int64_t, subtract)
(float *tau, ts_seen *seen, const ts_row *row, const int64_t *runs, int64_t count, const float *base) {
    uint16_t words[RUN];
    int64_t done = 0;
    for (int64_t i = 0; i < count; i++) {
        for (int64_t a = runs[2 * i]; a < runs[2 * i + 1]; a += RUN) {
            const int64_t m = TS_MIN(runs[2 * i + 1] - a, RUN);
            float *own = tau + done;
            const float *before = base + done;
            if (!ts_fetch(own, words, row, a, m)) return done;
            ts_notice(seen, own, before, m);
            for (int64_t k = 0; k < m; k++) own[k] -= before[k];
            done += m;
        }
    }
    return done;
}

/* out[k] = the index of the nearest level: order[how many edges are below values[k]]; edges ascend, at most INDICES − 1. */
TS_KERNEL(void, nearest)
(uint8_t *out, const float *values, int64_t n, const float *edges, int64_t count, const uint8_t *order) {
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        int32_t below[TS_BLOCK] = {0};
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        for (int64_t i = 0; i < count; i++) {
            const float edge = edges[i];
            for (int64_t k = 0; k < m; k++) below[k] += values[a + k] > edge;
        }
        for (int64_t k = 0; k < m; k++) out[a + k] = order[below[k]];
    }
}

/* counts[v] = how often each byte comes. */
TS_KERNEL(void, count_bytes)(int64_t *counts, const uint8_t *values, int64_t n) {
    uint32_t turn[TURNS][INDICES] = {{0}};
    memset(counts, 0, INDICES * sizeof *counts);
    for (int64_t a = 0; a < n; a += 1 << 30) { /* 32 bits hold so many */
        const int64_t m = TS_MIN(n - a, 1 << 30);
        for (int64_t k = 0; k < m; k++) turn[k & 3][values[a + k]]++;
        for (int i = 0; i < INDICES; i++) {
            counts[i] += (int64_t)turn[0][i] + turn[1][i] + turn[2][i] + turn[3][i];
            turn[0][i] = turn[1][i] = turn[2][i] = turn[3][i] = 0;
        }
    }
}

/* order[index] of n indices, one to a byte (bits 8), or two, the first in the low half (bits 4). */
TS_KERNEL(void, pack_indices)(uint8_t *out, const uint8_t *indices, int64_t n, const uint8_t *order, int32_t bits) {
    if (bits == 8) {
        for (int64_t k = 0; k < n; k++) out[k] = order[indices[k]];
        return;
    }
    for (int64_t k = 0; k < n >> 1; k++) out[k] = (uint8_t)(order[indices[2 * k]] | order[indices[2 * k + 1]] << 4);
    if (n & 1) out[n >> 1] = order[indices[n - 1]];
}

/* The bytes that are not 0, one behind the other: `rest` has room for one more than there are. */
TS_KERNEL(void, without_zeros)(uint8_t *rest, const uint8_t *indices, int64_t n) {
    int64_t at = 0;
    for (int64_t k = 0; k < n; k++) {
        rest[at] = indices[k]; /* not a branch: what is 0 is written too, and the next one over it */
        at += indices[k] != 0;
    }
}
