/* Histograms of |τ| by the upper bits of float32: see `recipes.histogram.magnitudes`. */
#define _POSIX_C_SOURCE 200809L
#include "rows.h"
#include "sums.h"

enum { RUN = 1 << 14, TURNS = 4, SHORT = 1 << 14 };

/* Where a tile is counted. Memory is the caller's; it may hold anything. */
typedef struct {
    uint32_t *tables; /* TURNS · bins: counted on by turns, so that equal ones need not wait for each other */
    int64_t bins;
    double *sums; /* ts_power(blocks) numbers: Σ θ0² of each block, where τ is not 0 */
    int32_t shift; /* of |τ| as a word, to its bin */
    int32_t turns; /* of a few elements one table does */
} ts_tally;

static ts_tally begun(uint32_t *tables, int64_t bins, double *sums, int32_t shift, int64_t n) {
    const ts_tally tally = {tables, bins, sums, shift, n < SHORT ? 1 : TURNS};
    memset(tables, 0, (size_t)(tally.turns * bins) * sizeof *tables);
    return tally;
}

/* Elements from a whole block on; zeros are not counted. */
static void count_on(const ts_tally *tally, int64_t from, const float *tau, const float *base, int64_t n) {
    uint32_t *tables[TURNS];
    for (int j = 0; j < TURNS; j++) tables[j] = tally->tables + (tally->turns == 1 ? 0 : j * tally->bins);
    uint32_t still = 0;
    for (int64_t a = 0; a < n; a += TS_BLOCK) {
        const int64_t m = TS_MIN(n - a, TS_BLOCK);
        uint32_t bins[TS_BLOCK];
        float there[TS_BLOCK];
        double squares[TS_QUARTER];
        for (int64_t k = 0; k < m; k++) {
            const uint32_t word = ts_bits(tau[a + k]) & 0x7FFFFFFFu;
            bins[k] = word >> tally->shift;
            there[k] = word ? base[a + k] : 0.0f;
            still += word == 0;
        }
        for (int64_t k = m; k < TS_BLOCK; k++) there[k] = 0;
        for (int k = 0; k < TS_QUARTER; k++) {
            const double p = there[k], q = there[k + 256], r = there[k + 512], s = there[k + 768];
            squares[k] = TS_FOUR(p * p, q * q, r * r, s * s);
        }
        tally->sums[(from + a) / TS_BLOCK] = ts_halve_f64(squares);
        for (int64_t k = 0; k < m; k++) tables[k & 3][bins[k]]++;
    }
    tables[0][0] -= still; /* below 0 it goes round, until all tables are added up */
}

/* counts[0 … returned] = how many of the n elements are in each bin from the first to the last that has any, that first
 * bin to *first, and Σ θ0² of these elements to *energy. */
static int64_t ended(double *counts, int64_t *first, double *energy, const ts_tally *tally, int64_t n) {
    uint32_t *all = tally->tables;
    for (int j = 1; j < tally->turns; j++)
        for (int64_t k = 0; k < tally->bins; k++) all[k] += tally->tables[j * tally->bins + k];
    int64_t low = 0, high = tally->bins;
    while (high > 0 && all[high - 1] == 0) high--;
    while (low < high && all[low] == 0) low++;
    for (int64_t k = low; k < high; k++) counts[k - low] = all[k];
    *first = low, *energy = n ? ts_add_blocks(tally->sums, ts_blocks(n)) : 0;
    return high - low;
}

/* The histogram of a task vector in memory. counts: `bins` numbers; tables: 4 · bins; room: ts_power(blocks) numbers. */
TS_KERNEL(int64_t, tally)
(double *counts, int64_t *first, double *energy, const float *tau, const float *base, int64_t n, int32_t shift,
 uint32_t *tables, int64_t bins, double *room) {
    const ts_tally tally = begun(tables, bins, room, shift, n);
    count_on(&tally, 0, tau, base, n);
    return ended(counts, first, energy, &tally, n);
}

/* The same of runs of a row against the base, n elements, one behind the other; runs[2k], runs[2k + 1]: a run's first
 * element and the one behind its last. Returns −1 where not all of them could be read. */
TS_KERNEL(int64_t, tally_row)
(double *counts, int64_t *first, double *energy, ts_seen *seen, const ts_row *row, const int64_t *runs, int64_t count,
 const float *base, int64_t n, int32_t shift, uint32_t *tables, int64_t bins, double *room) {
    float tau[RUN];
    uint16_t words[RUN];
    const ts_tally tally = begun(tables, bins, room, shift, n);
    int64_t done = 0, filled = 0;
    for (int64_t i = 0; i < count; i++) {
        for (int64_t a = runs[2 * i]; a < runs[2 * i + 1];) {
            const int64_t m = TS_MIN(RUN - filled, runs[2 * i + 1] - a);
            if (done + filled + m > n || !ts_fetch(tau + filled, words, row, a, m)) return -1;
            a += m, filled += m;
            if (filled < RUN && done + filled < n) continue;
            ts_notice(seen, tau, base + done, filled);
            for (int64_t k = 0; k < filled; k++) tau[k] -= base[done + k];
            count_on(&tally, done, tau, base + done, filled);
            done += filled, filled = 0;
        }
    }
    return done == n ? ended(counts, first, energy, &tally, n) : -1;
}
