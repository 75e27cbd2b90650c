/* How coherent rows of τ are: the sums of `recipes.coherence.gain`. Products of integers add up exactly in any order. */
#define _POSIX_C_SOURCE 200809L
#include "rows.h"

enum { FEW = 4, LANES = 4 };
typedef double lanes __attribute__((vector_size(LANES * sizeof(double))));

/* 2^exponent, which is within the range of normal numbers. */
static double power_of(int exponent) {
    const uint64_t word = (uint64_t)(exponent + 1023) << 52;
    double value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Products of one row and FEW others, n numbers apart: what is loaded of the one serves all. */
static inline void dots(double *out, const double *restrict one, const double *restrict others, int64_t n) {
    lanes sums[FEW] = {{0}};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) {
        lanes mine, own;
        memcpy(&mine, one + k, sizeof mine);
        for (int i = 0; i < FEW; i++) {
            memcpy(&own, others + i * n + k, sizeof own);
            sums[i] += mine * own;
        }
    }
    for (int i = 0; i < FEW; i++) {
        out[i] = 0;
        for (int64_t l = k; l < n; l++) out[i] += one[l] * others[i * n + l];
        for (int j = 0; j < LANES; j++) out[i] += sums[i][j];
    }
}

/* Reads `count` rows of τ = θt − θ0, each of n elements and none of them longer than a run may be; `firsts`: the element of
 * the row that each begins with. Those that moved, as integers of `bits` bits, have products p of pairs and norms:
 *   sums: Σ of the products of norms, q; Σ p²; Σ (p² − Σp²/Σq · q)²; Σ q². Over pairs i ≠ j, added up one after the other
 *   base: θ0 of the same elements; tau: room for as many; words: room for n
 *   whole: room for (count + 3) · n numbers; products: for count · count
 * Returns how many rows moved; 0 where any number is not finite; −1 where not all could be read. */
TS_KERNEL(int64_t, coherence)
(double *sums, const ts_row *row, const int64_t *firsts, int64_t count, int64_t n, const float *base, int32_t bits, float *tau,
 uint16_t *words, double *whole, double *products) {
    int64_t rows = 0;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        float *own = tau + rows * n;
        uint32_t here = 0;
        if (!ts_fetch(own, words, row, firsts[i], n)) return -1;
        for (int64_t k = 0; k < n; k++) {
            own[k] -= base[i * n + k];
            const uint32_t size = ts_bits(own[k]) & 0x7FFFFFFFu;
            here = here > size ? here : size;
        }
        largest = largest > here ? largest : here;
        rows += here != 0;
    }
    if (largest >= 0x7F800000u) return 0;
    if (rows < 2) return rows;
    /* largest < 2^exponent, and no less than half of it */
    const int exponent = largest >> 23 ? (int)(largest >> 23) - 126 : -117 - __builtin_clz(largest);
    const double scale = power_of(bits - exponent), round = 0x1.8p52;
    for (int64_t k = 0; k < rows * n; k++) whole[k] = ((double)tau[k] * scale + round) - round;
    memset(whole + rows * n, 0, (size_t)((FEW - 1) * n) * sizeof *whole);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j <= i; j += FEW) {
            double found[FEW];
            dots(found, whole + i * n, whole + j * n, n);
            for (int64_t k = j; k < TS_MIN(j + FEW, rows); k++) products[i * rows + k] = products[k * rows + i] = found[k - j];
        }
    }
    double pairs = 0, shared = 0, apart = 0, chance = 0;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < rows; j++) {
            if (i == j) continue;
            const double p = products[i * rows + j];
            pairs += products[i * rows + i] * products[j * rows + j];
            shared += p * p;
        }
    }
    const double mean = pairs > 0 ? shared / pairs : 0;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < rows; j++) {
            if (i == j) continue;
            const double p = products[i * rows + j], q = products[i * rows + i] * products[j * rows + j];
            const double off = p * p - mean * q;
            apart += off * off;
            chance += q * q;
        }
    }
    sums[0] = pairs, sums[1] = shared, sums[2] = apart, sums[3] = chance;
    return rows;
}
