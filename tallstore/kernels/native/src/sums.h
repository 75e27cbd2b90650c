/* Sums in the order of additions that `encoder.metrics` sets: 1024 products at a time, the second half added to the first
 * until one is left; then the blocks' sums in the same way, zeros filling them up to a power of two. */
#ifndef TS_SUMS_H
#define TS_SUMS_H

#include "common.h"

enum { TS_BLOCK = 1024, TS_QUARTER = TS_BLOCK / 4 };

#define TS_HALVE_(HALF)                                                                                                \
    for (int k = 0; k < (HALF); k++) v[k] += v[k + (HALF)];

/* What is left of 256 values, which are used up. */
#define TS_DEFINE_HALVE(NAME, TYPE)                                                                                    \
    static inline TYPE ts_halve_##NAME(TYPE *v) {                                                                      \
        TS_HALVE_(128) TS_HALVE_(64) TS_HALVE_(32) TS_HALVE_(16) TS_HALVE_(8) TS_HALVE_(4) TS_HALVE_(2)                 \
        return v[0] + v[1];                                                                                            \
    }

TS_DEFINE_HALVE(f32, float)
TS_DEFINE_HALVE(f64, double)

/* Four products of a block that lie a quarter apart, as two halvings add them up. */
#define TS_FOUR(a, b, c, d) (((a) + (c)) + ((b) + (d)))

/* Whether all of them are 0, of whichever sign. */
static inline bool ts_still(const float *tau, int64_t m) {
    uint32_t bits = 0;
    for (int64_t k = 0; k < m; k++) bits |= ts_bits(tau[k]);
    return (bits & 0x7FFFFFFFu) == 0;
}

static inline int64_t ts_blocks(int64_t n) { return (n + TS_BLOCK - 1) / TS_BLOCK; }

static inline int64_t ts_power(int64_t count) { /* the least power of two that is not less */
    int64_t found = 1;
    while (found < count) found *= 2;
    return found;
}

/* The sum of the blocks' sums; `sums` has room for ts_power(count) and is used up. */
static inline double ts_add_blocks(double *sums, int64_t count) {
    const int64_t size = ts_power(count);
    for (int64_t k = count; k < size; k++) sums[k] = 0;
    for (int64_t half = size >> 1; half; half >>= 1) {
        double *restrict low = sums;
        const double *restrict high = sums + half;
        for (int64_t k = 0; k < half; k++) low[k] += high[k];
    }
    return sums[0];
}

/* ‖τ − τ̂‖², ‖τ‖², ‖τ̂‖², ⟨τ, τ̂⟩ of one block of m elements, to found[0], found[stride], …: products have the type of τ. */
#define TS_DEFINE_AGREE(NAME, TYPE)                                                                                    \
    static inline void ts_agree_##NAME(double *found, int64_t stride, const TYPE *tau, const TYPE *kept, int64_t m) {  \
        TYPE room[2][TS_BLOCK], sums[4][TS_QUARTER];                                                                   \
        if (m < TS_BLOCK) {                                                                                            \
            memset(room, 0, sizeof room);                                                                              \
            memcpy(room[0], tau, (size_t)m * sizeof *tau), memcpy(room[1], kept, (size_t)m * sizeof *kept);            \
            tau = room[0], kept = room[1];                                                                             \
        }                                                                                                              \
        for (int k = 0; k < TS_QUARTER; k++) {                                                                         \
            const TYPE a = tau[k], b = tau[k + 256], c = tau[k + 512], d = tau[k + 768];                               \
            const TYPE e = kept[k], f = kept[k + 256], g = kept[k + 512], h = kept[k + 768];                           \
            sums[0][k] = TS_FOUR((a - e) * (a - e), (b - f) * (b - f), (c - g) * (c - g), (d - h) * (d - h));          \
            sums[1][k] = TS_FOUR(a * a, b * b, c * c, d * d);                                                          \
            sums[2][k] = TS_FOUR(e * e, f * f, g * g, h * h);                                                          \
            sums[3][k] = TS_FOUR(a * e, b * f, c * g, d * h);                                                          \
        }                                                                                                              \
        for (int j = 0; j < 4; j++) found[j * stride] = (double)ts_halve_##NAME(sums[j]);                              \
    }

TS_DEFINE_AGREE(f32, float)
TS_DEFINE_AGREE(f64, double)

#endif
