/* Costs and harms of choices: see `recipes.rate_distortion`, whose numbers these are. Sums are added up one after the other. */
#include "logarithm.h"

enum { LEVELS = 127 };

TS_KERNEL(void, log2_each)(double *out, const double *values, int64_t n, const ts_logarithm *l) {
    for (int64_t i = 0; i < n; i++) out[i] = log_2(l, values[i]);
}

static double information(const ts_logarithm *l, double count, double moved) {
    return count > 0 ? count * log_2(l, count / moved) : 0.0;
}

static double larger(double a, double b) { return a > b ? a : b; }

/* Marks, and their entropy and signs in bits, from how many parameters there are at each level. */
static double cost_of(const ts_logarithm *l, double *marks, const double *counts, int64_t levels, double moved) {
    double all = 0, known = 0;
    for (int64_t j = 0; j < levels; j++) all += counts[j], known += information(l, counts[j], moved);
    known += information(l, larger(moved - all, 0.0), moved);
    *marks = all;
    return all - known;
}

static int64_t below(const double *edges, int64_t n, double value) { /* how many ascending edges are below a value */
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) >> 1;
        if (edges[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* A tensor's histogram: n bins. */
typedef struct {
    int64_t n;
    const double *counted; /* parameters in each bin */
    const double *middle;  /* of each bin: a magnitude, or in root mean squares */
    const double *edges;   /* the lower edge of each, ascending; of `hard` alone */
    double moved, energy, rms;
    double kappa;  /* how many times worse bias is than noise */
    double fewest; /* marks below which a choice is not offered */
} ts_histogram;

/* Choices without dither: cost in bits, and harm, infinite where a choice is not offered.
 *   bounds: choices · levels numbers: where levels begin, in root mean squares; infinite where none does
 *   room: 3 · (n + 1) + levels numbers */
TS_KERNEL(void, hard)
(double *cost, double *harm, const ts_histogram *h, const double *bounds, int64_t choices, int64_t levels,
 const ts_logarithm *l, double *room) {
    const double infinite = __builtin_inf();
    const int64_t n = h->n;
    double *tail = room, *total = room + n + 1, *under = total + n + 1, *counts = under + n + 1;
    tail[n] = total[n] = under[0] = 0;
    for (int64_t k = 0; k < n; k++) under[k + 1] = under[k] + h->counted[k] * (h->middle[k] * h->middle[k]);
    for (int64_t k = n - 1; k >= 0; k--) {
        tail[k] = tail[k + 1] + h->counted[k];
        total[k] = total[k + 1] + h->counted[k] * h->middle[k];
    }
    for (int64_t i = 0; i < choices; i++) {
        const double *own = bounds + i * levels;
        double kept = 0, marks;
        int64_t filled = 0, here = below(h->edges, n, own[0] * h->rms);
        const double left_out = under[here] / h->energy;
        for (int64_t j = 0; j < levels; j++) {
            int64_t end = n;
            if (j + 1 < levels && own[j + 1] < infinite) end = below(h->edges, n, own[j + 1] * h->rms);
            counts[j] = tail[here] - tail[end];
            const double size = total[here] - total[end];
            kept += size * size / larger(counts[j], 1e-300);
            filled += counts[j] > 0;
            here = end;
        }
        cost[i] = cost_of(l, &marks, counts, levels, h->moved);
        const bool several = levels > 1 && own[1] < infinite;
        const bool offered = marks >= h->fewest && kept > 0 && (!several || filled > 1);
        const double spread = larger(h->energy / kept - 1, 0.0);
        harm[i] = !offered ? infinite : several ? spread + (h->kappa - 1) * left_out : h->kappa * spread;
    }
}

static double spoiled(double energy, double along, double square, double biased, double kappa) {
    const double gain = energy / along;
    return larger(gain * gain * (square - biased + kappa * biased) / energy - kappa, 0.0);
}

static double share_says(const ts_logarithm *l, double share) { return -(share * log_2(l, share > 0 ? share : 1.0)); }

/* The entropy of whether an element has a mark, given its dither, is the mean of `says` over thresholds: `upto` that from 0 to
 * each bin's middle, `says` from the one before. This is the integral from 0 to t. */
static double integral(const ts_histogram *h, const double *upto, const double *says, double t) {
    const int64_t at = below(h->middle, h->n, t);
    return upto[at] + says[at] * (t - (at ? h->middle[at - 1] : 0.0));
}

/* Choices with dither: `ramps` with one level, then `evens` with several, evenly spaced; h->middle is in root mean squares.
 *   low: where marks begin, ascending; slope: how much likelier they are per root mean square more
 *   rate: levels per root mean square, of each of the evens, which have `levels` each
 *   dither: some, which stand for all
 *   room: 3 · (ramps + n + 1) + levels numbers */
TS_KERNEL(void, dithered)
(double *cost, double *harm, const ts_histogram *h, const double *low, const double *slope, int64_t ramps,
 const double *rate, int64_t evens, const double *dither, int64_t dithers, int64_t levels, const ts_logarithm *l, double *room) {
    const double infinite = __builtin_inf(), top = (double)levels;
    double *restrict ones = room, *restrict dots = room + ramps, *restrict means = dots + ramps;
    double *counts = room + 3 * ramps, *says = counts + levels, *upto = says + h->n + 1, *shares = upto + h->n + 1;
    double energy = 0, marks, above_it = 0;
    int64_t begun = 0;
    for (int64_t i = h->n - 1; i >= 0; i--) {
        above_it += h->counted[i];
        shares[i] = above_it / h->moved;
        says[i] = says[i + 1]; /* an empty bin's is that of the one above */
        if (h->counted[i] > 0 || i == h->n - 1) says[i] = share_says(l, shares[i]) + share_says(l, 1.0 - shares[i]);
    }
    upto[0] = says[h->n] = shares[h->n] = 0;
    for (int64_t i = 0; i < h->n; i++)
        upto[i + 1] = upto[i] + says[i] * (h->middle[i] - (i ? h->middle[i - 1] : 0.0));
    memset(room, 0, (size_t)(3 * ramps) * sizeof *room);
    for (int64_t i = 0; i < h->n; i++) {
        const double c = h->counted[i], x = h->middle[i], cx = c * x;
        energy += cx * x;
        while (begun < ramps && low[begun] < x) begun++;
        if (!(c > 0)) continue; /* a bin that is empty, or a choice whose marks begin later, would add 0 */
        for (int64_t k = 0; k < begun; k++) {
            const double steep = (x - low[k]) * slope[k], mean = steep < 1.0 ? steep : 1.0;
            ones[k] += mean * c;
            dots[k] += mean * cx;
            means[k] += mean * mean * c;
        }
    }
    for (int64_t i = 0; i < ramps; i++) {
        marks = ones[i];
        const double end = integral(h, upto, says, low[i] + 1 / slope[i]), begin = integral(h, upto, says, low[i]);
        cost[i] = marks + h->moved * ((end - begin) * slope[i]);
        const bool offered = marks >= h->fewest && dots[i] > 0;
        harm[i] = offered ? spoiled(energy, dots[i], marks, means[i], h->kappa) : infinite;
    }
    for (int64_t i = 0; i < evens; i++) {
        for (int64_t j = 0; j < levels; j++) counts[j] = 0;
        /* A magnitude between two levels is at one or the other, `at` or the one above: their sums so far. */
        int64_t at = 0, filled = 0;
        double level = 0, here = 0, above = 0, along = 0, biased = 0, square = 0;
        for (int64_t k = 0; k < h->n; k++) {
            const double c = h->counted[k], x = h->middle[k], steep = x * rate[i], mean = steep < top ? steep : top;
            if (!(c > 0)) continue; /* likewise */
            while (mean >= level + 1) {
                if (at) counts[at - 1] = here;
                at++, level += 1, here = above, above = 0;
            }
            here += (1.0 - (mean - level)) * c;
            above += (1.0 - __builtin_fabs(mean - (level + 1))) * c;
            along += mean * (c * x);
            biased += mean * mean * c;
        }
        if (at) counts[at - 1] = here;
        if (at < levels) counts[at] = above;
        for (int64_t j = 0; j < levels; j++) {
            const double size = (double)j + 1;
            square += counts[j] * (size * size);
            filled += counts[j] > 0;
        }
        marks = 0;
        for (int64_t j = 0; j < levels; j++) marks += counts[j];
        double known = 0;
        for (int64_t d = 0; d < dithers; d++) {
            double last = 1.0, says_it = 0;
            for (int64_t j = 0; j < levels && last > 0; j++) { /* what is empty would add 0 */
                const double next = shares[below(h->middle, h->n, ((double)j + dither[d]) / rate[i])];
                if (last > next) says_it += share_says(l, last - next);
                last = next;
            }
            known += says_it + share_says(l, last);
        }
        cost[ramps + i] = marks + h->moved * (known / (double)dithers);
        const bool offered = marks >= h->fewest && filled > 1 && along > 0;
        harm[ramps + i] = offered ? spoiled(energy, along, square, biased, h->kappa) : infinite;
    }
}

/* The choices on the lower convex hull of harm over bits, by rising bits, into `order`; returns how many these are. Harm is
 * infinite where a choice is not offered. */
TS_KERNEL(int64_t, hull)(int64_t *order, const double *bits, const double *harm, int64_t count) {
    int64_t n = 0, kept = 0;
    double least = __builtin_inf();
    for (int64_t i = count - 1; i >= 0; i--) { /* most of them are by falling bits */
        if (harm[i] == __builtin_inf()) continue;
        int64_t k = n;
        for (; k > 0; k--) {
            const int64_t before = order[k - 1];
            if (bits[before] < bits[i] || (bits[before] == bits[i] && harm[before] < harm[i])) break;
            order[k] = before;
        }
        order[k] = i;
        n++;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t right = order[i];
        if (harm[right] >= least) continue;
        least = harm[right];
        while (kept > 1) {
            const int64_t left = order[kept - 2], middle = order[kept - 1];
            const double rise = (harm[right] - harm[left]) * (bits[middle] - bits[left]);
            if ((harm[middle] - harm[left]) * (bits[right] - bits[left]) < rise) break;
            kept--;
        }
        order[kept++] = right;
    }
    return kept;
}

/* Hard levels that begin at edges of bins, κ being 1: bits, and harm, infinite where all are empty.
 *   bounds: of all choices, one behind the other; ends: where each one's end, LEVELS in one at most
 *   coder: bits for each bit of entropy; table: bits for each level
 *   room: 2 · (n + 1) numbers */
TS_KERNEL(void, price)
(double *bits, double *harm, const ts_histogram *h, const double *bounds, const int64_t *ends, int64_t choices, double coder,
 double table, const ts_logarithm *l, double *room) {
    const int64_t n = h->n;
    double *upto = room, *total = room + n + 1, counts[LEVELS];
    upto[0] = total[0] = 0;
    for (int64_t k = 0; k < n; k++) {
        upto[k + 1] = upto[k] + h->counted[k];
        total[k + 1] = total[k] + h->counted[k] * h->middle[k];
    }
    for (int64_t i = 0, begin = 0; i < choices; begin = ends[i], i++) {
        const int64_t levels = ends[i] - begin;
        double kept = 0, marks;
        int64_t here = levels ? below(h->edges, n, bounds[begin]) : n;
        for (int64_t j = 0; j < levels; j++) {
            const int64_t end = j + 1 < levels ? below(h->edges, n, bounds[begin + j + 1]) : n;
            const double size = total[end] - total[here];
            counts[j] = upto[end] - upto[here];
            kept += size * size / larger(counts[j], 1e-300);
            here = end;
        }
        bits[i] = cost_of(l, &marks, counts, levels, h->moved) * coder + table * (double)levels;
        harm[i] = kept > 0 ? larger(h->energy / kept - 1, 0.0) : __builtin_inf();
    }
}

/* Every choice on offer: `hard`, then `dithered` where κ is above 1, and of these `hull`, into `order`, which is returned.
 *   bits, harm: of all choices; bits are cost · coder + tables
 *   room: what these need: 4 · n + 3 · (choices + levels + 1) numbers */
typedef struct {
    int64_t hards, ramps, evens, dithers, levels;
    const double *bounds, *low, *slope, *rate, *dither, *tables, *coder;
} ts_ladders;

TS_KERNEL(int64_t, offers)
(int64_t *order, double *bits, double *harm, const ts_histogram *h, const ts_ladders *own, const ts_logarithm *l, double *room) {
    int64_t choices = own->hards;
    TS_NAME(hard)(bits, harm, h, own->bounds, own->hards, own->levels, l, room);
    if (h->kappa > 1) {
        ts_histogram relative = *h;
        relative.middle = room;
        for (int64_t k = 0; k < h->n; k++) room[k] = h->middle[k] / h->rms;
        TS_NAME(dithered)(bits + choices, harm + choices, &relative, own->low, own->slope, own->ramps, own->rate, own->evens,
                          own->dither, own->dithers, own->levels, l, room + h->n);
        choices += own->ramps + own->evens;
    }
    for (int64_t i = 0; i < choices; i++) bits[i] = bits[i] * own->coder[i] + own->tables[i];
    return TS_NAME(hull)(order, bits, harm, choices);
}
