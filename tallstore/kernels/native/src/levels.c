/* Rows on levels of their own, and the indices of codebooks. */
#define _POSIX_C_SOURCE 200809L
#include "place_hash.h"
#include "rows.h"
#include "sums.h"

#if defined(__AVX2__) && defined(__BMI2__)
#include <immintrin.h>
#endif

enum { RUN = 1 << 14, TURNS = 4, INDICES = 256 };
typedef double pair __attribute__((vector_size(16))); /* a sum, and of how many: one addition for both */

/* The numbers in [0, 1) of a block's elements, which are at `places`, or else follow each other from `at` on. */
static inline void draw(float *restrict drawn, const uint32_t *places, int64_t at, int64_t m, uint32_t first) {
    if (places)
        for (int64_t k = 0; k < m; k++) drawn[k] = ts_uniform(first + places[at + k]);
    else
        for (int64_t k = 0; k < m; k++) drawn[k] = ts_uniform(first + (uint32_t)(at + k));
}

/* The level of each magnitude of a block: 0, then each level of +, then each of −. Less than INDICES in all. */
static inline void place(uint8_t *restrict indices, float *restrict size, const float *restrict tau, int64_t m,
                         const float *bounds, int32_t count, float width, const float *restrict drawn) {
    float shifted[TS_BLOCK];
    int32_t cell[TS_BLOCK];
    for (int64_t k = 0; k < m; k++) size[k] = shifted[k] = ts_float(ts_bits(tau[k]) & 0x7FFFFFFFu);
    if (width > 0)
        for (int64_t k = 0; k < m; k++) shifted[k] -= drawn[k] * width;
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

/* Which of 64 bytes, or fewer, are not 0. */
static inline uint64_t not_zero(const uint8_t *from, int64_t count) {
    uint8_t all[64] = {0};
    uint64_t found = 0;
    if (count < 64) from = memcpy(all, from, (size_t)count);
#if defined(__AVX512BW__)
    found = _mm512_test_epi8_mask(_mm512_loadu_si512(from), _mm512_set1_epi8(-1));
#else
    for (int k = 0; k < 64; k += 8) {
        uint64_t eight;
        memcpy(&eight, from + k, 8);
        eight = (((eight & 0x7F7F7F7F7F7F7F7Fu) + 0x7F7F7F7F7F7F7F7Fu) | eight) >> 7 & 0x0101010101010101u;
        found |= (eight * 0x0102040810204080u >> 56) << k; /* a bit of each byte */
    }
#endif
    return found;
}

/* Indices of n magnitudes, how many elements have each, and the sums of their magnitudes; see `encoder.quantize`.
 *   numbers, totals: 1 + 2 · count each; set. Totals are added up in four tables by turns; that of index 0 is 0.
 *   bounds: ascending, where levels begin; raised by width · u if width is above 0
 *   first: what is mixed for the element at 0; places: where elements are, or NULL where they follow each other
 *   room: ts_power(blocks) numbers
 * Returns ‖τ‖². */
TS_KERNEL(double, levels)
(uint8_t *indices, int64_t *numbers, double *totals, const float *tau, int64_t n, const float *bounds, int32_t count,
 float width, const uint32_t *places, uint32_t first, double *room) {
    pair sums[TURNS][INDICES] = {{{0}}};
    int64_t some = 0;
    float size[TS_BLOCK], drawn[TS_BLOCK];
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        uint8_t *own = indices + a;
        if (ts_still(tau + a, m)) { /* rows of an embedding that never came up */
            memset(own, 0, (size_t)m);
            room[a / TS_BLOCK] = 0;
            continue;
        }
        if (width > 0) draw(drawn, places, a, m, first);
        place(own, size, tau + a, m, bounds, count, width, drawn);
        room[a / TS_BLOCK] = squares(tau + a, m);
        for (int64_t k = 0; k < m; k += 64) { /* most are on no level, and would wait for each other at one place */
            uint64_t on = not_zero(own + k, TS_MIN(m - k, 64));
            some += __builtin_popcountll(on);
            for (; on; on &= on - 1) {
                const int64_t one = k + __builtin_ctzll(on);
                sums[one & 3][own[one]] += (pair){(double)size[one], 1.0};
            }
        }
    }
    for (int32_t i = 0; i <= 2 * count; i++) {
        const pair all = (sums[0][i] + sums[2][i]) + (sums[1][i] + sums[3][i]);
        totals[i] = all[0], numbers[i] = (int64_t)all[1];
    }
    numbers[0] = n - some;
    return ts_add_blocks(room, ts_blocks(n));
}

/* Levels with dither by what a decoder returns: see `encoder.rounded_levels`. Indices of n elements, as `levels` numbers
 * them; none of these has τ = 0.
 *   found: ‖τ − τ̂‖², ‖τ‖², ‖τ̂‖², ⟨τ, τ̂⟩, and how many have a level
 *   base: finite numbers of type `form`; places, first: as above
 *   values: what levels add, `count` of them
 *   low, width: of a level's beginning, relative; factor: k
 *   room: 4 · ts_power(blocks) numbers */
TS_KERNEL(void, place_rounded)
(double *found, uint8_t *indices, const float *tau, const float *base, const uint32_t *places, int64_t n, const float *values,
 int32_t count, float low, float width, float factor, uint32_t first, int32_t form, double *room) {
    const int64_t size = ts_power(ts_blocks(n));
    int64_t on = 0;
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        const float *own = tau + a, *begin = base + a;
        float share[TS_BLOCK], before[TS_BLOCK], after[TS_BLOCK], kept[TS_BLOCK];
        uint16_t words[TS_BLOCK];
        int32_t cell[TS_BLOCK];
        draw(share, places, a, m, first);
        for (int64_t k = 0; k < m; k++) share[k] = share[k] * width + low, before[k] = kept[k] = 0, cell[k] = 0;
        for (int32_t j = 0; j < count; j++) {
            const uint32_t value = ts_bits(values[j]);
            for (int64_t k = 0; k < m; k++) after[k] = begin[k] + ts_float(value | (ts_bits(own[k]) & 0x80000000u));
            ts_narrow(words, after, m, form);
            ts_widen(after, words, m, form);
            for (int64_t k = 0; k < m; k++) {
                const float magnitude = ts_float(ts_bits(own[k]) & 0x7FFFFFFFu), step = after[k] - begin[k];
                const float moved = ts_float(ts_bits(step) & 0x7FFFFFFFu);
                const float least = (before[k] + share[k] * (moved - before[k])) * factor;
                const bool taken = (magnitude >= least) & (moved > before[k]);
                cell[k] = taken ? j + 1 : cell[k];
                kept[k] = taken ? step : kept[k];
                before[k] = moved;
            }
        }
        for (int64_t k = 0; k < m; k++) {
            indices[a + k] = (uint8_t)((own[k] < 0) & (cell[k] > 0) ? cell[k] + count : cell[k]);
            on += cell[k] > 0;
        }
        ts_agree_f32(room + a / TS_BLOCK, size, own, kept, m);
    }
    for (int j = 0; j < 4; j++) found[j] = ts_add_blocks(room + j * size, ts_blocks(n));
    found[4] = (double)on;
}

/* The elements of a row that moved, one behind the other: where they are, from 0 on, their τ and θ0. There is room for n of
 * each. base: θ0 of n elements from `start` on. Returns how many moved; −1 where not all of the row could be read. */
TS_KERNEL(int64_t, moved)
(uint32_t *restrict places, float *restrict tau, float *restrict before, ts_seen *seen, const ts_row *row, int64_t start,
 const float *base, int64_t n) {
    float own[RUN];
    uint16_t words[RUN];
    int64_t at = 0;
    for (int64_t a = 0; a < n; a += RUN) {
        const int64_t m = TS_MIN(n - a, RUN);
        int64_t k = 0;
        if (!ts_fetch(own, words, row, start + a, m)) return -1;
        ts_notice(seen, own, base + a, m);
#if defined(__AVX2__) && defined(__BMI2__)
        for (; k + 8 <= m; k += 8) { /* lanes that moved go to the front; what is behind them is written over */
            const __m256 begin = _mm256_loadu_ps(base + a + k), step = _mm256_sub_ps(_mm256_loadu_ps(own + k), begin);
            const uint32_t on = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(step, _mm256_setzero_ps(), _CMP_NEQ_UQ));
            const uint64_t lanes = _pext_u64(0x0706050403020100u, _pdep_u64(on, 0x0101010101010101u) * 255);
            const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)lanes));
            const __m256i place = _mm256_add_epi32(order, _mm256_set1_epi32((int32_t)(a + k)));
            _mm256_storeu_si256((__m256i *)(places + at), place);
            _mm256_storeu_ps(tau + at, _mm256_permutevar8x32_ps(step, order));
            _mm256_storeu_ps(before + at, _mm256_permutevar8x32_ps(begin, order));
            at += __builtin_popcount(on);
        }
#endif
        for (; k < m; k++) {
            places[at] = (uint32_t)(a + k), before[at] = base[a + k], tau[at] = own[k] - base[a + k];
            at += tau[at] != 0;
        }
    }
    return at;
}

/* Symbols of `bits` bits (2 or 8) at places, zeros between them: `size` bytes. */
TS_KERNEL(void, scatter)
(uint8_t *out, int64_t size, const uint32_t *places, const uint8_t *symbols, int64_t count, int32_t bits) {
    memset(out, 0, (size_t)size);
    if (bits == 8)
        for (int64_t k = 0; k < count; k++) out[places[k]] = symbols[k];
    else
        for (int64_t k = 0; k < count; k++) out[places[k] >> 2] |= (uint8_t)(symbols[k] << 2 * (places[k] & 3));
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

/* Indices into 0, the levels of +, then those of −, `count` of each, as numbers. */
TS_KERNEL(void, signed_levels)(int8_t *restrict numbers, const uint8_t *restrict indices, int64_t n, uint8_t count) {
    for (int64_t k = 0; k < n; k++) {
        const uint8_t of = indices[k];
        numbers[k] = (int8_t)(of > count ? count - of : of);
    }
}

/* The bytes that are not 0, one behind the other: `rest` has room for one more than there are. */
TS_KERNEL(void, without_zeros)(uint8_t *rest, const uint8_t *indices, int64_t n) {
    int64_t at = 0;
    for (int64_t k = 0; k < n; k++) {
        rest[at] = indices[k]; /* not a branch: what is 0 is written too, and the next one over it */
        at += indices[k] != 0;
    }
}
