/* Counts of steps by drift, and their range coding: the encoder of codec `drift`. */
#include "drift.h"
#include "lattice_coder.h"

/* Grades and signs of n elements that start at `words`. */
TS_KERNEL(void, drift_grades)(
    uint8_t *grade, int8_t *negative, const void *words, const void *base, int64_t n, int32_t bits, int32_t unit,
    const uint8_t *grades
) {
    const lattice of = {bits, 0, 0, 0};
    fill_grades_of(grade, negative, NULL, words, base, n, unit, grades, &of);
}

/* counts[segment][level][class] of one element in so many, of those of grade 0: all of it is written. */
TS_KERNEL(void, drift_count_still)(
    int16_t *counts, const int8_t *symbols, const uint8_t *levels, const uint8_t *grade, int64_t n, int64_t width,
    int64_t first, int64_t one_in
) {
    for (int64_t begin = 0, segment = 0; begin < n; segment++) {
        int64_t stop = TS_MIN(n, end_of(segment, width, first));
        int16_t *to = counts + segment * LEVELS * CLASSES;
        memset(to, 0, sizeof(int16_t) * LEVELS * CLASSES);
        for (int64_t i = begin; i < stop; i += one_in) {
            uint32_t class = TS_MIN(size_of(symbols[i]), CLASSES - 1);
            to[levels[i] * CLASSES + class] = (int16_t)(to[levels[i] * CLASSES + class] + !grade[i]);
        }
        begin = stop;
    }
}

/* counts[context][symbol], symbols being 0, +1, −1, +2, … as drift has them: all of it is written. */
TS_KERNEL(void, drift_count_symbols)(
    int64_t *counts, const int8_t *symbols, const uint8_t *levels, const uint8_t *grade, const int8_t *negative, int64_t n,
    const ts_drift *by
) {
    uint32_t some[2][MAP * KINDS]; /* two: one need not wait for the other */
    uint8_t row[BLOCK];
    int8_t turned_over[BLOCK];
    uint16_t place[BLOCK];
    memset(some, 0, sizeof some);
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK), segment = segment_of(start, by->width, by->first), i = 0;
        turn_symbols(turned_over, symbols + start, negative + start, size);
        for (int64_t at = 0; at < size; segment++) {
            int64_t stop = TS_MIN(size, end_of(segment, by->width, by->first) - start);
            const int32_t shift = by->shifts[segment], rest = by->contexts - LEVELS;
            for (; at < stop; at++) {
                int32_t of = grade[start + at];
                row[at] = (uint8_t)(levels[start + at] + of * LEVELS + (of ? rest : shift));
            }
        }
        fill_places(place, row, turned_over, size, KINDS);
        for (; i + 1 < size; i += 2) some[0][place[i]]++, some[1][place[i + 1]]++;
        if (i < size) some[0][place[i]]++;
    }
    const int32_t contexts = by->contexts + (DRIFT_GRADES - 1) * LEVELS;
    for (int32_t at = 0; at < contexts * KINDS; at++) counts[at] = (int64_t)some[0][at] + some[1][at];
}

/* Code n symbols. `words` has room for n + 4; those that are used are the last of it. `places` and `odd`: of the `exceptions`
 * still elements that moved nevertheless, in order. Returns how many words there are. */
TS_KERNEL(int64_t, drift_encode)(
    uint16_t *words, uint32_t *states, uint32_t *places, int8_t *odd, int64_t exceptions, const int8_t *symbols,
    const uint8_t *levels, const uint8_t *grade, const int8_t *negative, int64_t n, int32_t lanes, int32_t bits,
    const ts_drift *by, const uint8_t *weights, int32_t tables, int32_t kinds
) {
    coder coders[MOST_TABLES * KINDS];
    uint8_t found[BLOCK];
    lookups look;
    int8_t own[BLOCK];
    uint16_t place[BLOCK], *out = words + n + 4;
    for (int table = 0; table < tables; table++) fill_coders(coders + table * kinds, weights + table * kinds, kinds, bits);
    fill_lookups(&look, coders, tables * kinds, lanes, bits);
    for (int lane = 0; lane < lanes; lane++) states[lane] = LOWEST;
    for (int64_t start = n ? (n - 1) / BLOCK * BLOCK : -1; start >= 0; start -= BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK), coded = 0;
        uint8_t any = 0;
        memcpy(found, levels + start, (size_t)size);
        fill_maps(found, grade + start, start, size, by);
        turn_symbols(own, symbols + start, negative + start, size);
        fill_places(place, found, own, size, (uint16_t)kinds);
        for (int64_t i = 0; i < size; i++) any |= (uint8_t)((found[i] == STILL) & (own[i] != 0));
        for (int64_t i = size - 1; any && i >= 0; i--)
            if (found[i] == STILL && own[i]) exceptions--, places[exceptions] = (uint32_t)(start + i), odd[exceptions] = own[i];
        for (int64_t i = 0; i < size; i++) {
            place[coded] = place[i];
            coded += found[i] != STILL;
        }
        out = encode_some(out, states, place, coded, coders, lanes, bits, &look);
    }
    return words + n + 4 - out;
}

enum { POINT = 1 << 12, KIND_BITS = 10 };

/* Bits of information of one in so many, as in lattice_choices.c. */
ALWAYS int64_t log_of(uint64_t count, const uint16_t *logs) {
    int32_t octave = 63 - __builtin_clzll(count | 1);
    return (int64_t)POINT * octave + logs[(count << 10 >> octave) & 1023];
}

/* What so many symbols take with a table of their own, in parts of a bit. */
static int64_t joint_cost(const int64_t *a, const int64_t *b, int32_t kinds, const uint16_t *logs) {
    int64_t total = 0, saved = 0, used = 0;
    for (int32_t at = 0; at < kinds; at++) {
        const int64_t count = a[at] + (b ? b[at] : 0);
        if (count) total += count, saved += count * log_of((uint64_t)count, logs), used++;
    }
    return (total ? total * log_of((uint64_t)total, logs) : 0) - saved + POINT * KIND_BITS * used;
}

/* Join tables, at most MOST_TABLES of counts[table][kinds], which are used up, two by two while that saves: joined[table] is
 * the first of those that it is joined with. `cost`: what all of it takes. */
TS_KERNEL(void, drift_join)(
    uint8_t *joined, int64_t *cost, int64_t *counts, int32_t tables, int32_t kinds, const uint16_t *logs
) {
    int64_t both[MOST_TABLES][MOST_TABLES], own[MOST_TABLES];
    bool there[MOST_TABLES];
    for (int32_t a = 0; a < tables; a++) {
        own[a] = joint_cost(counts + a * kinds, NULL, kinds, logs), there[a] = true, joined[a] = (uint8_t)a;
        for (int32_t b = 0; b < a; b++) both[b][a] = joint_cost(counts + b * kinds, counts + a * kinds, kinds, logs);
    }
    for (;;) {
        int32_t left = 0, right = 0;
        int64_t least = 0;
        for (int32_t a = 0; a < tables; a++)
            for (int32_t b = a + 1; there[a] && b < tables; b++)
                if (there[b] && both[a][b] - own[a] - own[b] < least) left = a, right = b, least = both[a][b] - own[a] - own[b];
        if (!least) break;
        for (int32_t at = 0; at < kinds; at++) counts[left * kinds + at] += counts[right * kinds + at];
        own[left] = both[left][right], there[right] = false;
        for (int32_t at = 0; at < tables; at++) joined[at] = joined[at] == right ? (uint8_t)left : joined[at];
        for (int32_t at = 0; at < tables; at++)
            if (there[at] && at != left)
                both[TS_MIN(at, left)][TS_MAX(at, left)] = joint_cost(counts + left * kinds, counts + at * kinds, kinds, logs);
    }
    *cost = 0;
    for (int32_t at = 0; at < tables; at++) *cost += there[at] ? own[at] : 0;
}
