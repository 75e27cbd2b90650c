/* What it costs to keep a share of a tensor's changes: the numbers of `recipes.sampled_changes` and `codecs.dare_contexts`.
 * Sums are of whole numbers, or added up one after the other. */
#include "logarithm.h"

enum { LEVELS = 16, SYMBOLS = 8, CONTEXTS = 16, DOWN = 5 };

/* c · log2 c of each. */
static void times_log2(double *restrict out, const int64_t *restrict counts, int64_t n, const ts_logarithm *l) {
    for (int64_t i = 0; i < n; i++) {
        const double count = (double)(counts[i] > 1 ? counts[i] : 1);
        out[i] = count * log_2(l, count);
    }
}

static double added(const double *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += values[i];
    return sum;
}

/* Bits of levels `start` to `stop` that share contexts, by how far classes are shifted down: costs[down][start][stop], the
 * others as they are. `upto`: of the first 0 … n levels their elements by context and magnitude. */
TS_KERNEL(void, context_costs)(double *costs, const int64_t *upto, int64_t n, double table, const ts_logarithm *l) {
    enum { SIZE = CONTEXTS * SYMBOLS };
    for (int64_t start = 0; start < n; start++)
        for (int64_t stop = start + 1; stop <= n; stop++) {
            int64_t counts[SIZE], each[CONTEXTS];
            double told[SIZE], known[CONTEXTS];
            for (int k = 0; k < SIZE; k++) counts[k] = upto[stop * SIZE + k] - upto[start * SIZE + k];
            for (int down = 0; down < DOWN; down++) {
                const int contexts = CONTEXTS >> down;
                double bits = 0;
                for (int c = 0; c < contexts; c++) {
                    each[c] = 0;
                    for (int k = 0; k < SYMBOLS; k++) {
                        if (down) counts[c * SYMBOLS + k] = counts[2 * c * SYMBOLS + k] + counts[(2 * c + 1) * SYMBOLS + k];
                        each[c] += counts[c * SYMBOLS + k];
                    }
                }
                times_log2(told, counts, contexts * SYMBOLS, l), times_log2(known, each, contexts, l);
                for (int c = 0; c < contexts; c++) bits += known[c] - added(told + c * SYMBOLS, SYMBOLS);
                costs[(down * (n + 1) + start) * (n + 1) + stop] = bits + table * contexts;
            }
        }
}

/* Count changes by level and bin, 32 of these to the octave from 2^-16 on: sixteenths and what lies between them, by turns; and
 * behind these those that are 0. Adds to `counts`, of LEVELS · (bins + 1), and to `power`, their squares by that of a unit. */
TS_KERNEL(void, count_changes)(
    int32_t *restrict counts, double *restrict power, const uint8_t *restrict levels, const float *restrict change, int64_t n,
    const double *restrict per_unit, int64_t bins
) {
    enum { FEW = 1024, TURNS = 4 };
    int32_t all[TURNS][LEVELS] = {{0}}; /* of elements: by turns, as the same level comes again and again */
    for (int64_t from = 0; from < n; from += FEW, levels += FEW, change += FEW) {
        const int64_t size = TS_MIN(n - from, FEW);
        int64_t moved = 0;
        uint16_t at[FEW];
        for (int64_t i = 0; i < size; i++) at[moved] = (uint16_t)i, moved += change[i] != 0, all[i % TURNS][levels[i]]++;
        for (int64_t k = 0; k < moved; k++) {
            const uint32_t level = levels[at[k]];
            const double exact = (double)change[at[k]] * per_unit[level];
            uint64_t word;
            memcpy(&word, &exact, sizeof word);
            int64_t bin = (int64_t)(word >> 48) - ((1023 - 16) << 4);
            bin = 2 * bin + ((word & (((uint64_t)1 << 48) - 1)) != 0);
            counts[level * (bins + 1) + TS_MIN(TS_MAX(bin, 0), bins - 1)]++;
            all[0][level]--;
            power[level] += exact * exact;
        }
    }
    for (int k = 0; k < TURNS * LEVELS; k++) counts[(k % LEVELS) * (bins + 1) + bins] += all[k / LEVELS][k % LEVELS];
}

/* Bits of a multiple of n elements, signs too, by how many are beyond each bound: see `recipes.sampled_changes._entropy`. */
enum { DIRECT = 16, CLASSES = 8, TRIED = 2, HALVES = 21, BOUNDS = DIRECT * CLASSES * TRIED + HALVES };
static double entropy_of(const int64_t *more, int64_t n, const ts_logarithm *l) {
    int64_t direct[(DIRECT + 1) * CLASSES], each[DIRECT * CLASSES], beyond[CLASSES], rest[HALVES], open = 0, far = 0;
    double told[DIRECT * CLASSES + CLASSES + HALVES + 1];
    for (int k = 0; k < CLASSES; k++) direct[k] = TRIED * n;
    for (int k = 0; k < DIRECT * CLASSES; k++) direct[CLASSES + k] = more[TRIED * k] + more[TRIED * k + 1];
    for (int k = 0; k < DIRECT * CLASSES; k++) each[k] = direct[k] - direct[k + CLASSES];
    const int64_t *halves = more + DIRECT * CLASSES * TRIED;
    for (int k = 0; k < CLASSES; k++) {
        beyond[k] = direct[DIRECT * CLASSES + k] - TRIED * halves[0];
        open += direct[CLASSES + k] + 3 * beyond[k];
    }
    for (int k = 0; k < HALVES; k++) {
        rest[k] = TRIED * (halves[k] - (k + 1 < HALVES ? halves[k + 1] : 0));
        far += rest[k] * (3 + (k + 1) / 2);
    }
    double *by_beyond = told + DIRECT * CLASSES, *by_rest = by_beyond + CLASSES, *all = by_rest + HALVES;
    const int64_t every = TRIED * n;
    times_log2(told, each, DIRECT * CLASSES, l), times_log2(by_beyond, beyond, CLASSES, l);
    times_log2(by_rest, rest, HALVES, l), times_log2(all, &every, 1, l);
    double known = added(told, DIRECT * CLASSES) + added(by_beyond, CLASSES);
    known += CLASSES * added(by_rest, HALVES);
    return (*all + ((double)(open + CLASSES * far) - known) / CLASSES) / TRIED;
}

/* Of each level and step the bits of an element that is kept, and the mean of r(1 - r), r being what is left of a change by the
 * step, or, where it is rounded to the `nearest` beyond one, of the square of what is left then; of steps beyond the level's first `tried` ones nothing is set but that mean.
 *   counts: of levels · bins; values: what each bin stands for; n: elements of each level
 *   size: of levels · steps; above: of phases · BOUNDS, and of each step its phase and how many bins that is shifted by */
TS_KERNEL(void, costs_of_steps)(
    double *restrict bits, double *restrict rounding, const int64_t *restrict counts, const double *restrict values, const int64_t *restrict n,
    int64_t levels, int64_t bins, const double *restrict size, const int64_t *restrict above, const int64_t *restrict shift,
    const int64_t *restrict tried, int64_t steps, int64_t phases, int32_t nearest, int64_t *restrict upto,
    const ts_logarithm *l
) {
    for (int64_t level = 0; level < levels; level++, counts += bins) {
        int64_t more[BOUNDS], whole[64] = {0};
        upto[0] = 0;
        for (int64_t b = 0; b < bins; b++) {
            upto[b + 1] = upto[b] + counts[b];
            if (!counts[b]) continue;
            for (int64_t s = 0; s < steps; s++) {
                double left = values[b] / size[level * steps + s];
                const int32_t beyond = nearest && left >= 1;
                left -= (double)(int64_t)left;
                const double least = TS_MIN(left, 1 - left), noise = beyond ? least * least : left * (1 - left);
                whole[s] += (int64_t)(noise * (1 << 20)) * counts[b];
            }
        }
        for (int64_t s = 0; s < steps; s++) {
            const int64_t at = level * steps + s, *bound = above + s % phases * BOUNDS;
            rounding[at] = (double)whole[s] / ((double)n[level] * 0x1p20);
            for (int64_t k = 0; k < BOUNDS && s < tried[level]; k++) {
                const int64_t first = bound[k] + shift[at];
                more[k] = upto[bins] - upto[TS_MIN(TS_MAX(first, 0), bins)];
            }
            if (s < tried[level]) bits[at] = entropy_of(more, n[level], l) / (double)n[level];
        }
    }
}
