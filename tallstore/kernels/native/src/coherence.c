/* How coherent rows of τ are: the sums of `recipes.coherence.gain`. Products of integers add up exactly in any order. */
#define _POSIX_C_SOURCE 200809L
#include "rows.h"

enum { PAIR = 2, FEW = 4, COLUMNS = 512 }; /* rows of COLUMNS numbers stay in the cache until all pairs are done */
#if defined(__AVX512F__)
enum { LANES = 8 };
#elif defined(__AVX2__)
enum { LANES = 4 };
#else
enum { LANES = 2 };
#endif
typedef double lanes __attribute__((vector_size(LANES * sizeof(double))));

/* 2^exponent, which is within the range of normal numbers. */
static double power_of(int exponent) {
    const uint64_t word = (uint64_t)(exponent + 1023) << 52;
    double value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Adds the products of PAIR rows and FEW others, COLUMNS of each, to a table of `rows` · `rows`: i and j are their numbers.
 * What is loaded of the ones serves all of the others. */
static inline void add_dots(double *products, int64_t rows, int64_t i, int64_t j, const double *restrict whole) {
    lanes sums[PAIR][FEW] = {{{0}}};
    for (int k = 0; k < COLUMNS; k += LANES) {
        lanes mine[PAIR], own;
        for (int p = 0; p < PAIR; p++) memcpy(&mine[p], whole + (i + p) * COLUMNS + k, sizeof own);
        for (int q = 0; q < FEW; q++) {
            memcpy(&own, whole + (j + q) * COLUMNS + k, sizeof own);
            for (int p = 0; p < PAIR; p++) sums[p][q] += mine[p] * own;
        }
    }
    double found[PAIR][FEW] = {{0}};
    for (int p = 0; p < PAIR; p++)
        for (int q = 0; q < FEW; q++)
            for (int l = 0; l < LANES; l++) found[p][q] += sums[p][q][l];
    for (int p = 0; p < PAIR && i + p < rows; p++)
        for (int q = 0; q < FEW && j + q < rows; q++) products[(i + p) * rows + j + q] += found[p][q];
}

/* Reads `count` rows of τ = θt − θ0, each of n elements and none of them longer than a run may be; `firsts`: the element of
 * the row that each begins with. Those that moved, as integers of `bits` bits, have products p of pairs and norms:
 *   sums: Σ of the products of norms, q; Σ p²; Σ (p² − Σp²/Σq · q)²; Σ q². Over pairs i ≠ j, added up one after the other
 *   base: θ0 of the same elements; tau: room for as many; words: room for n
 *   whole: room for (count + 3) · COLUMNS numbers; products: for count · count
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
    memset(whole, 0, (size_t)((rows + FEW - 1) * COLUMNS) * sizeof *whole);
    memset(products, 0, (size_t)(rows * rows) * sizeof *products);
    for (int64_t a = 0; a < n; a += COLUMNS) {
        const int64_t m = TS_MIN(n - a, COLUMNS);
        for (int64_t i = 0; i < rows; i++) {
            double *restrict own = whole + i * COLUMNS;
            for (int64_t k = 0; k < m; k++) own[k] = ((double)tau[i * n + a + k] * scale + round) - round;
            for (int64_t k = m; k < COLUMNS; k++) own[k] = 0;
        }
        for (int64_t i = 0; i < rows; i += PAIR)
            for (int64_t j = 0; j < i + PAIR; j += FEW) add_dots(products, rows, i, j, whole);
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < i; j++) products[j * rows + i] = products[i * rows + j];
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
