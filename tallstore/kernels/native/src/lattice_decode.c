/* The decoder of codec `lattice`: range-coded steps, applied to the base's elements. */
#include "lattice_stream.h"

/* A chunk of mode 3, its model beside it: what `codecs.lattice` reads. */
typedef struct {
    ts_rows by;
    lattice of;
    coded_steps steps;
    int32_t tables, kinds;
    const uint8_t *weights;
    uint8_t both[MOST_TABLES * KINDS]; /* weights of both signs, where those of magnitudes are written */
} chunk;

ALWAYS bool within(const int8_t *of, int64_t n, int8_t most) {
    bool found = true;
    for (int64_t i = 0; i < n; i++) found &= of[i] <= most && of[i] >= -most;
    return found;
}

/* Where the parts of a model of `size` bytes lie; false if anything is out of range. */
static bool read_model(chunk *to, const uint8_t *told, int64_t size, int64_t n) {
    ts_rows *by = &to->by;
    const int64_t segments = by->width ? 1 + (TS_MAX(n - by->first, 0) + by->width - 1) / by->width : 1;
    if (size < 3) return false;
    const int32_t tables = told[0], magnitudes = told[1], rank = told[2], grades = rank ? GRADES : 1;
    if (!tables || tables > MOST_TABLES || !magnitudes || magnitudes > DIRECT + 2 * (to->of.bits - 5) + 1) return false;
    if (rank > MOST_RANK || (rank && (!by->width || by->width > n))) return false;
    const int32_t kinds = 2 * magnitudes - 1, written = rank ? kinds : magnitudes;
    to->weights = told + 3, to->tables = tables, to->kinds = kinds, by->rank = rank;
    by->shifts = to->weights + tables * written, by->table = by->shifts + segments;
    if (by->table - told > size) return false;
    const uint8_t shift = largest(by->shifts, segments);
    if (shift >= LEVELS) return false;
    by->contexts = LEVELS + shift;
    const uint8_t *marks = by->table + grades * by->contexts;
    by->across = (const int8_t *)marks + (rank ? 2 * (GRADES - 1) : 0), by->along = by->across + segments * rank;
    if ((const uint8_t *)by->along - told + rank * by->width != size) return false;
    for (int m = 0; rank && m < GRADES - 1; m++) {
        by->marks[m] = marks[2 * m] | marks[2 * m + 1] << 8;
        if (by->marks[m] >= 1 << 15 || by->marks[m] < (m ? by->marks[m - 1] : 1)) return false;
    }
    if (!within(by->across, segments * rank, LARGEST) || !within(by->along, rank * by->width, LARGEST)) return false;
    if (largest(by->table, grades * by->contexts) >= tables || largest(to->weights, tables * written) >= 64) return false;
    for (int32_t table = 0; table < tables; table++) {
        const uint8_t *own = to->weights + table * written;
        if (!largest(own, written)) return false;
        for (int32_t a = 0; !rank && a < kinds; a++) to->both[table * kinds + a] = own[(a + 1) / 2];
    }
    if (!rank) to->weights = to->both;
    return true;
}

/* Where the parts of a chunk lie, its first byte the mode; false if they do not fit it. */
static bool read_chunk(chunk *to, const uint8_t *data, int64_t size, const uint8_t *told, int64_t told_size, int64_t n) {
    if (!read_steps(&to->steps, &to->of, &to->by.width, &to->by.first, data, size)) return false;
    return to->steps.rest == data + size && read_model(to, told, told_size, n);
}

/* Turn n of the base's elements into the task's, by a chunk and what its model holds. `entries` has room for all that there
 * can be. Returns 0; 1 if the stream does not end with the elements; 2 if the open bits do not; 3 if the chunk is none. */
TS_KERNEL(int32_t, lattice_decode)(
    void *words, int64_t n, int32_t bits_of_word, int32_t shift, int32_t mask, const uint8_t *data, int64_t size,
    const uint8_t *told_data, int64_t told_size, uint32_t *entries
) {
    chunk of;
    of.of = (lattice){bits_of_word, shift, mask, 0};
    if (!read_chunk(&of, data, size, told_data, told_size, n)) return 3;
    bit_reader open = {of.steps.open, of.steps.open_bytes, 0, false};
    stream from;
    uint32_t states[MOST_LANES];
    uint8_t found[BLOCK], order[256][8];
    ts_told told;
    const ts_rows *by = &of.by;
    memcpy(states, of.steps.states, (size_t)of.steps.lanes * 4);
    from.at = of.steps.words, from.left = of.steps.coded, from.last = from.over = false;
    fill_entries(entries, of.weights, of.tables, of.kinds, of.steps.bits);
    fill_order(order);
    for (int64_t start = 0; start < n && !from.over; start += BLOCK) {
        int64_t some = TS_MIN(n - start, BLOCK);
        char *here = (char *)words + start * (bits_of_word / 8);
        if (bits_of_word == 16) fill_levels(found, here, some, &of.of, 16);
        else fill_levels(found, here, some, &of.of, bits_of_word);
        if (by->rank) predict(&told, start, some, by);
        fill_tables(found, by->rank ? told.grade : NULL, start, some, by);
        decode_symbols(found, some, entries, states, of.steps.lanes, of.steps.bits, &from, (const uint8_t (*)[8])order);
        if (by->rank) turn_symbols((int8_t *)found, (const int8_t *)found, told.negative, some);
        if (bits_of_word == 16) apply(here, (const int8_t *)found, some, &open, 16);
        else if (bits_of_word == 32) apply(here, (const int8_t *)found, some, &open, 32);
        else apply(here, (const int8_t *)found, some, &open, 8);
    }
    return ended(&from, &open, states, of.steps.lanes);
}
