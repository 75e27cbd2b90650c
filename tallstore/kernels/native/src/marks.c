/* Rows above a threshold: signed marks over v = 1, packed, and what they keep of a task vector. */
#define _POSIX_C_SOURCE 200809L
#include "place_hash.h"
#include "rows.h"
#include "sums.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

enum { TILE = 1 << 15 }; /* elements that are read, and added up, at a time: see encoder.tile */

/* Symbols of a block: 1 where a number is above 0, 2 where it is below, four to a byte. */
static void pack_signs(uint8_t *restrict packed, const float *restrict kept) {
#if defined(__AVX512BW__) && defined(__BMI2__)
    for (int k = 0; k < TS_BLOCK; k += 16) {
        const __m512 own = _mm512_loadu_ps(kept + k), zero = _mm512_setzero_ps();
        const uint32_t above = _mm512_cmp_ps_mask(own, zero, _CMP_GT_OQ), below = _mm512_cmp_ps_mask(own, zero, _CMP_LT_OQ);
        const uint32_t word = _pdep_u32(above, 0x55555555u) | _pdep_u32(below, 0xAAAAAAAAu);
        memcpy(packed + k / 4, &word, sizeof word);
    }
#else
    uint8_t symbols[TS_BLOCK];
    uint32_t words[TS_QUARTER];
    for (int k = 0; k < TS_BLOCK; k++) symbols[k] = (uint8_t)((kept[k] > 0) | (kept[k] < 0) << 1);
    memcpy(words, symbols, sizeof words);
    for (int k = 0; k < TS_QUARTER; k++)
        packed[k] = (uint8_t)(words[k] | words[k] >> 6 | words[k] >> 12 | words[k] >> 18);
#endif
}

typedef struct {
    float low, width; /* the limit is low + u · width */
    uint32_t first;   /* what is mixed for element 0 */
} limits;

/* One whole block: τ where it is kept, else 0; and the block's ‖τ‖² and ⟨τ, w⟩. */
static inline void keep_above(float *restrict kept, double *norm, double *dot, const float *restrict own,
                              const float *restrict base, limits limit, uint32_t at, bool drawn) {
    float norms[TS_QUARTER], dots[TS_QUARTER];
    const uint32_t begin = limit.first + at;
    for (int k = 0; k < TS_QUARTER; k++) {
        float square[4], size[4];
        for (int j = 0; j < 4; j++) {
            const int i = k + j * TS_QUARTER;
            const float tau = own[i] - base[i], magnitude = ts_float(ts_bits(tau) & 0x7FFFFFFFu);
            const float least = drawn ? ts_uniform(begin + (uint32_t)i) * limit.width + limit.low : limit.low;
            const bool on = (magnitude >= least) & (magnitude > 0);
            kept[i] = on ? tau : 0.0f;
            square[j] = tau * tau;
            size[j] = on ? magnitude : 0.0f;
        }
        norms[k] = TS_FOUR(square[0], square[1], square[2], square[3]);
        dots[k] = TS_FOUR(size[0], size[1], size[2], size[3]);
    }
    *norm = (double)ts_halve_f32(norms), *dot = (double)ts_halve_f32(dots);
}

/* A tile of n elements, at most TILE, the first of which is element `at` of the row. */
static void mark_tile(uint8_t *packed, double *sums, ts_seen *seen, const float *own, const float *base, int64_t n,
                      limits limit, uint32_t at) {
    double norms[TILE / TS_BLOCK], dots[TILE / TS_BLOCK];
    int64_t marks = 0;
    for (int64_t i = 0; i < ts_blocks(n); i++) {
        float kept[TS_BLOCK], padded[2][TS_BLOCK];
        uint8_t symbols[TS_QUARTER];
        const int64_t a = i * TS_BLOCK, m = TS_MIN(n - a, TS_BLOCK);
        const float *mine = own + a, *before = base + a;
        uint8_t *out = packed + a / 4;
        norms[i] = dots[i] = 0;
        if (memcmp(mine, before, (size_t)m * sizeof *mine) == 0) { /* no mark, and nothing to add */
            memset(out, 0, (size_t)(m + 3) / 4);
            continue;
        }
        seen->differs = 1;
        if (m < TS_BLOCK) {
            memset(padded, 0, sizeof padded);
            memcpy(padded[0], mine, (size_t)m * sizeof *mine), memcpy(padded[1], before, (size_t)m * sizeof *mine);
            mine = padded[0], before = padded[1];
        }
        if (limit.width > 0) keep_above(kept, &norms[i], &dots[i], mine, before, limit, at + (uint32_t)a, true);
        else keep_above(kept, &norms[i], &dots[i], mine, before, limit, at + (uint32_t)a, false);
        pack_signs(symbols, kept);
        marks += ts_bits_on(symbols, sizeof symbols);
        memcpy(out, symbols, (size_t)(m + 3) / 4);
    }
    sums[1] += ts_add_blocks(norms, ts_blocks(n));
    sums[2] += (double)marks;
    sums[3] += ts_add_blocks(dots, ts_blocks(n));
    sums[4] += (double)marks;
}

/* Signed marks of a float32 row, where |τ| ≥ low + u · width and τ is not 0.
 *   packed: room for n symbols of two bits; set
 *   sums: five numbers, to which each tile's are added: none, ‖τ‖², ‖w‖², ⟨τ, w⟩, marks
 *   seen: whether any bit differs from the base's
 *   base: θ0, n elements
 *   own: room for TILE elements
 * Returns how many elements could be read. */
TS_KERNEL(int64_t, mark)
(uint8_t *packed, double *sums, ts_seen *seen, const ts_row *row, int64_t start, const float *base, int64_t n, float low,
 float width, uint32_t first, float *own) {
    const limits limit = {low, width, first};
    for (int64_t a = 0; a < n; a += TILE) {
        const int64_t m = TS_MIN(n - a, TILE);
        if (!ts_fetch(own, NULL, row, start + a, m)) return a;
        mark_tile(packed + a / 4, sums, seen, own, base + a, m, limit, (uint32_t)a);
    }
    return n;
}

/* found[0…4] = ‖τ − τ̂‖², ‖τ‖², ‖τ̂‖², ⟨τ, τ̂⟩ of τ and levels, table[indices[k]], which a decoder adds to the base and rounds
 * to the row's type; and how many of the levels are not 0. base: finite numbers of that type; none of a float32 row.
 * room: 4 · ts_power(blocks) numbers. */
TS_KERNEL(void, measure_levels)
(double *found, const float *tau, const float *base, const uint8_t *indices, const float *table, int64_t n, int32_t form,
 double *room) {
    const int64_t size = ts_power(ts_blocks(n));
    int64_t on = 0;
    memset(room, 0, (size_t)(4 * size) * sizeof *room);
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        float kept[TS_BLOCK];
        uint16_t words[TS_BLOCK];
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        uint8_t some = 0;
        for (int64_t k = 0; k < m; k++) some |= indices[a + k];
        if (!some && table[0] == 0 && ts_still(tau + a, m)) continue; /* nothing to add */
        for (int64_t k = 0; k < m; k++) kept[k] = table[indices[a + k]];
        for (int64_t k = 0; k < m; k++) on += kept[k] != 0;
        if (form != TS_FLOAT32) {
            for (int64_t k = 0; k < m; k++) kept[k] += base[a + k];
            ts_narrow(words, kept, m, form);
            ts_widen(kept, words, m, form);
            for (int64_t k = 0; k < m; k++) kept[k] -= base[a + k];
        }
        ts_agree_f32(room + a / TS_BLOCK, size, tau + a, kept, m);
    }
    for (int j = 0; j < 4; j++) found[j] = ts_add_blocks(room + j * size, ts_blocks(n));
    found[4] = (double)on;
}

/* found[0…3] += nothing; = the same of a task vector and what is kept of it, both float32, or both float64 (form). */
TS_KERNEL(void, agree)(double *found, const void *tau, const void *kept, int64_t n, int32_t form, double *room) {
    const int64_t size = ts_power(ts_blocks(n));
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        const int64_t m = TS_MIN(n - a, TS_BLOCK), i = a / TS_BLOCK;
        if (form == TS_FLOAT64) ts_agree_f64(room + i, size, (const double *)tau + a, (const double *)kept + a, m);
        else ts_agree_f32(room + i, size, (const float *)tau + a, (const float *)kept + a, m);
    }
    for (int j = 0; j < 4; j++) found[j] = ts_add_blocks(room + j * size, ts_blocks(n));
}

#define TS_LOOK(TYPE)                                                                                                  \
    {                                                                                                                  \
        const TYPE *own = weights, *before = base;                                                                     \
        const TYPE sign = (TYPE)((TYPE)-1 >> 1);                                                                       \
        TYPE differs = 0, largest = 0;                                                                                 \
        for (int64_t k = 0; k < n; k++) {                                                                              \
            const TYPE size = own[k] & sign;                                                                           \
            differs |= own[k] ^ before[k];                                                                             \
            largest = largest > size ? largest : size;                                                                 \
        }                                                                                                              \
        *top = largest;                                                                                                \
        return differs == 0;                                                                                           \
    }

/* Whether two arrays of n floats of `item` bytes are equal in every bit; *top: the largest magnitude of the first, as
 * bits, which are ordered as magnitudes are. */
TS_KERNEL(int32_t, look)(uint64_t *top, const void *weights, const void *base, int64_t n, int32_t item) {
    if (item == 1) TS_LOOK(uint8_t)
    if (item == 2) TS_LOOK(uint16_t)
    if (item == 4) TS_LOOK(uint32_t)
    TS_LOOK(uint64_t)
}

/* found[0] += ‖τ‖²; found[1 + i] += ‖m·v‖² of the TALL-mask at lams[i]: |τ| > λ · |θ0 + v − θt|. `merged` is θ0 + v, `energy` v²;
 * room: (1 + count) · 1024 numbers. */
TS_KERNEL(void, norms)
(double *found, const float *tau, const float *weights, const float *merged, const double *energy, int64_t n,
 const float *lams, int64_t count, double *room) {
    float moved[TS_BLOCK], distance[TS_BLOCK];
    memset(room, 0, (size_t)((1 + count) * TS_BLOCK) * sizeof *room);
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        for (int64_t k = 0; k < m; k++) {
            moved[k] = ts_float(ts_bits(tau[a + k]) & 0x7FFFFFFFu);
            distance[k] = ts_float(ts_bits(merged[a + k] - weights[a + k]) & 0x7FFFFFFFu);
            room[k] += (double)tau[a + k] * (double)tau[a + k];
        }
        for (int64_t i = 0; i < count; i++) {
            double *restrict sums = room + (1 + i) * TS_BLOCK;
            for (int64_t k = 0; k < m; k++) sums[k] += moved[k] > lams[i] * distance[k] ? energy[a + k] : 0.0;
        }
    }
    for (int64_t i = 0; i <= count; i++) found[i] += ts_add_blocks(room + i * TS_BLOCK, TS_BLOCK);
}
