/* What is chosen of a chunk before it is coded, in whole numbers: shifts of rows, directions, tables and their weights. It is
 * what `tallstore.kernels.lattice_choices` does, and tells about. */
#include "lattice.h"

enum { PLACES = LEVELS * CLASSES, SHIFTS = 4, FEWEST = 64 };
enum { MOST_ROWS = 144, POINT = 1 << 12, WEIGHT_BITS = 4, MASS = 1 << 17, FINEST = 127 };

/* Bits of information of one in so many, in parts of a bit; 0 counts as 1. `logs`: from 1 to 2, in 1024 steps. */
ALWAYS int32_t log_of(uint64_t count, const uint16_t *logs) {
    int32_t octave = 63 - __builtin_clzll(count | 1);
    return POINT * octave + logs[(count << 10 >> octave) & 1023];
}

/* -------------------------------------------------------------------------------------------------- shifts of rows */

/* What each class takes in each context, in 64 parts of a bit; contexts that hardly occur are taken for the nearest that
 * does. */
static void class_costs(int16_t *costs, const int32_t *counts, int32_t contexts, const uint16_t *logs) {
    int64_t all[LEVELS + SHIFTS];
    for (int32_t at = 0; at < contexts; at++) {
        const int32_t *of = counts + at * CLASSES;
        all[at] = (int64_t)of[0] + of[1] + of[2] + of[3];
    }
    for (int32_t at = 0; at < contexts; at++) {
        int32_t from = at;
        for (int32_t far = 0, near = 0; far < contexts && !near; far++) {
            near = at >= far && all[at - far] >= FEWEST ? -far : at + far < contexts && all[at + far] >= FEWEST ? far : 0;
            if (near || all[at] >= FEWEST) from = at + near, near = 1;
        }
        for (int32_t class = 0; class < CLASSES; class++)
            costs[at * CLASSES + class] = (int16_t)((log_of(2 * (uint64_t)all[from] + CLASSES, logs) -
                                                     log_of(2 * (uint64_t)counts[from * CLASSES + class] + 1, logs)) >> 6);
    }
}

/* The shift of each segment; counts[segment][level][class], at most 2^13 in a segment and 2^31 in all. */
TS_KERNEL(void, lattice_shifts)(
    uint8_t *found, const int16_t *counts, int64_t segments, int32_t rounds, const uint16_t *logs
) {
    memset(found, (SHIFTS - 1) / 2, (size_t)segments);
    for (int32_t round = 0; round < rounds; round++) {
        int32_t totals[PLACES + SHIFTS * CLASSES] = {0};
        int16_t costs[PLACES + SHIFTS * CLASSES];
        for (int64_t s = 0; s < segments; s++) {
            int32_t *to = totals + found[s] * CLASSES;
            for (int32_t at = 0; at < PLACES; at++) to[at] += counts[s * PLACES + at];
        }
        class_costs(costs, totals, LEVELS + SHIFTS - 1, logs);
        for (int64_t s = 0; s < segments; s++) {
            int32_t least = INT32_MAX;
            for (int32_t shift = 0; shift < SHIFTS; shift++) {
                int32_t sum = 0;
                for (int32_t at = 0; at < PLACES; at++) sum += costs[shift * CLASSES + at] * counts[s * PLACES + at];
                if (sum < least) least = sum, found[s] = (uint8_t)shift;
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------------ directions */

/* Product of the signs of n symbols with as many numbers of at most 127. */
ALWAYS int32_t signs_times(const int8_t *symbols, const int8_t *by, int64_t n) {
    int32_t sum = 0;
    int64_t i = 0;
#if defined(__AVX2__)
    const __m256i ones = _mm256_set1_epi8(1), wide = _mm256_set1_epi16(1);
    __m256i all = _mm256_setzero_si256();
    while (i + 32 <= n) {
        __m256i some = _mm256_setzero_si256(); /* of 128 times two numbers at most: less than 2^15 */
        for (int64_t stop = TS_MIN(n - 31, i + 128 * 32); i < stop; i += 32) {
            __m256i signs = _mm256_loadu_si256((const __m256i *)(symbols + i));
            __m256i turned = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)(by + i)), signs);
            some = _mm256_add_epi16(some, _mm256_maddubs_epi16(ones, turned));
        }
        all = _mm256_add_epi32(all, _mm256_madd_epi16(some, wide));
    }
    int32_t each[8];
    _mm256_storeu_si256((__m256i *)each, all);
    for (int k = 0; k < 8; k++) sum += each[k];
#endif
    for (; i < n; i++) sum += ((symbols[i] > 0) - (symbols[i] < 0)) * by[i];
    return sum;
}

/* sums[segment][direction]: products of the signs of a segment's steps with each direction; all of it is written. */
TS_KERNEL(void, lattice_project)(
    int32_t *sums, const int8_t *symbols, int64_t n, const int8_t *along, int32_t rank, int64_t width, int64_t first
) {
    for (int64_t i = 0, segment = 0; i < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, width, first)), place = (i + width - first) % width;
        for (int32_t k = 0; k < rank; k++)
            sums[segment * rank + k] = signs_times(symbols + i, along + k * width + place, stop - i);
        i = stop;
    }
}

/* Vectors of whole numbers, v[rank][n], as small ones, each with what those in front of it have in common taken out. */
static void set_apart(int8_t *out, const int32_t *v, int64_t n, int32_t rank, double *each) {
    for (int32_t at = 0; at < rank; at++, v += n) {
        double top = 0;
        for (int64_t i = 0; i < n; i++) each[i] = v[i];
        for (int32_t k = 0; k < at; k++) {
            const int8_t *before = out + k * n;
            int64_t norm = 0, dot = 0;
            for (int64_t i = 0; i < n; i++) norm += before[i] * before[i], dot += (int64_t)v[i] * before[i];
            double times = norm ? (double)dot / (double)norm : 0;
            for (int64_t i = 0; i < n; i++) each[i] -= times * before[i];
        }
        for (int64_t i = 0; i < n; i++) top = TS_MAX(top, each[i] < 0 ? -each[i] : each[i]);
        double scale = top > 0 ? FINEST / top : 0;
        for (int64_t i = 0; i < n; i++) out[at * n + i] = (int8_t)((each[i] * scale + 0x1.8p52) - 0x1.8p52);
    }
}

/* Turns of subspace iteration: along[rank][width] is where it begins and ends. Symbols are of `rows` rows, at most 256, and
 * their signs are left in their place. Room: `across` for rank · rows, `sums` for rank times the longer side, `each` for it. */
TS_KERNEL(void, lattice_along)(
    int8_t *along, int8_t *symbols, int64_t rows, int64_t width, int32_t rank, int32_t turns, int8_t *across, int32_t *sums,
    double *each
) {
    for (int64_t i = 0; i < rows * width; i++) symbols[i] = (int8_t)((symbols[i] > 0) - (symbols[i] < 0));
    for (int32_t turn = 0; turn < turns; turn++) {
        for (int64_t r = 0; r < rows; r++)
            for (int32_t k = 0; k < rank; k++)
                sums[k * rows + r] = signs_times(symbols + r * width, along + k * width, width);
        set_apart(across, sums, rows, rank, each);
        for (int64_t at = 0; at < width; at += BLOCK) {
            int64_t n = TS_MIN(width - at, BLOCK);
            for (int32_t k = 0; k < rank; k++) {
                int16_t total[BLOCK] = {0}; /* of at most 256 numbers of up to 127 */
                for (int64_t r = 0; r < rows; r++) {
                    const int16_t by = across[k * rows + r];
                    const int8_t *row = symbols + r * width + at;
                    for (int64_t j = 0; j < n; j++) total[j] = (int16_t)(total[j] + by * row[j]);
                }
                for (int64_t j = 0; j < n; j++) sums[k * width + at + j] = total[j];
            }
        }
        set_apart(along, sums, width, rank, each);
    }
}

/* ---------------------------------------------------------------------------------------------------------- tables */

/* What so many symbols take with a table of their own, in parts of a bit. */
static int64_t table_cost(const int64_t *a, const int64_t *b, int32_t kinds, bool with_signs, const uint16_t *logs) {
    int64_t total = 0, saved = 0;
    int32_t longest = 0;
    for (int32_t at = 0; at < kinds; at++) {
        int64_t count = a[at] + (b ? b[at] : 0);
        total += count, saved += count * log_of((uint64_t)count, logs);
        longest = count ? at + 1 : longest;
    }
    int64_t signs = with_signs ? 0 : total - a[0] - (b ? b[0] : 0);
    return total * log_of((uint64_t)total, logs) - saved + POINT * (signs + longest * WEIGHT_BITS);
}

/* Weights nearest to the counts, and so large that every symbol that occurs has a frequency. `twice`: of both signs. */
static void fill_weights(uint8_t *weights, const int64_t *counts, int32_t kinds, int32_t bits, bool twice) {
    int64_t total = 0;
    for (int32_t at = 0; at < kinds; at++) total += counts[at];
    for (int32_t at = 0; at < kinds; at++) {
        uint64_t share = (uint64_t)(counts[at] * MASS / (twice && at ? 2 : 1) / total);
        share = TS_MAX(share, (uint64_t)MASS >> bits);
        uint32_t octave = 63 - (uint32_t)__builtin_clzll(share), q = 4 * (octave - 2) + (share >> (octave - 2) & 3);
        weights[at] = (uint8_t)(counts[at] ? q + ((scaled_of(q) + scaled_of(q + 1)) / 2 < share) : 0);
    }
    for (bool again = true; again;) {
        uint64_t sum = scaled_of(weights[0]), left = 1u << bits;
        uint8_t few[KINDS] = {0};
        for (int32_t at = 1; at < kinds; at++) sum += scaled_of(weights[at]) << twice;
        for (int32_t at = 1; at < kinds; at++) {
            uint64_t frequency = (scaled_of(weights[at]) << bits) / sum;
            few[at] = weights[at] && !frequency, left -= frequency << twice;
        }
        few[0] = weights[0] && !left, again = false;
        for (int32_t at = 0; at < kinds; at++) weights[at] = (uint8_t)(weights[at] + few[at]), again = again || few[at];
    }
}

/* The table of each context, at most MOST_ROWS, and the weights of each table; neighbours are merged while that saves. counts[context][stride]
 * are used up; a symbol occurs in one context at least. weights[table][kinds], `kinds` up to the last symbol that occurs.
 * Returns how many tables there are; `cost`: what all of it takes. */
TS_KERNEL(int32_t, lattice_tables)(
    uint8_t *table, uint8_t *weights, int64_t *cost, int64_t *counts, int32_t contexts, int32_t stride, int32_t with_signs,
    int32_t bits, const uint16_t *logs, int32_t *kinds_found
) {
    int32_t kinds = 0;
    for (int64_t at = 0; at < (int64_t)contexts * stride; at++)
        if (counts[at] && at % stride >= kinds) kinds = (int32_t)(at % stride) + 1;
    if (with_signs) kinds = TS_MIN(kinds | 1, stride);
    *kinds_found = kinds;
    int64_t *rows[MOST_ROWS], costs[MOST_ROWS], joined[MOST_ROWS];
    int32_t begins[MOST_ROWS], n = 0;
    for (int32_t at = 0; at < contexts; at++) {
        int64_t *row = counts + (int64_t)at * stride, any = 0;
        for (int32_t a = 0; a < kinds; a++) any |= row[a];
        if (any) begins[n] = at, rows[n] = row, costs[n++] = table_cost(row, NULL, kinds, with_signs, logs);
    }
    for (int32_t at = 0; at + 1 < n; at++) joined[at] = table_cost(rows[at], rows[at + 1], kinds, with_signs, logs);
    while (n > 1) {
        int32_t best = 0;
        int64_t gain = INT64_MAX;
        for (int32_t at = 0; at + 1 < n; at++)
            if (joined[at] - costs[at] - costs[at + 1] < gain) best = at, gain = joined[at] - costs[at] - costs[at + 1];
        if (gain >= 0 && n <= MOST_TABLES) break;
        for (int32_t a = 0; a < kinds; a++) rows[best][a] += rows[best + 1][a];
        costs[best] = joined[best], n--;
        for (int32_t at = best + 1; at < n; at++)
            rows[at] = rows[at + 1], costs[at] = costs[at + 1], begins[at] = begins[at + 1], joined[at] = joined[at + 1];
        for (int32_t at = TS_MAX(best - 1, 0); at <= best && at + 1 < n; at++)
            joined[at] = table_cost(rows[at], rows[at + 1], kinds, with_signs, logs);
    }
    *cost = 0;
    for (int32_t at = 0; at < n; at++) {
        *cost += costs[at];
        fill_weights(weights + at * kinds, rows[at], kinds, bits, !with_signs);
        memset(table + begins[at], at, (size_t)((at + 1 < n ? begins[at + 1] : contexts) - begins[at]));
    }
    memset(table, 0, (size_t)begins[0]);
    return n;
}
