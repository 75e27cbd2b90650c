/* The decoder of codec `drift`: steps of elements that go on from a start, given the base. */
#include "drift.h"
#include "lattice_stream.h"

enum { PAD = 32 };

typedef struct { /* a chunk of mode 4, its model beside it: what `codecs.drift` reads */
    ts_drift by;
    lattice of;
    coded_steps steps;
    int32_t tables, kinds, unit;
    const uint8_t *grades, *weights, *gaps;
    const int8_t *odd;
    int64_t exceptions;
    bool still; /* whether there are tables that are */
    uint8_t table[MAP];
} drift_chunk;

typedef struct { /* of eight elements of which some are coded: where those are, and of each which of them it is */
    uint8_t pack[256][8], spread[256][8];
} packing;

static void fill_packing(packing *to) {
    for (int some = 0; some < 256; some++) {
        int count = 0;
        for (int at = 0; at < 8; at++) {
            to->spread[some][at] = some >> at & 1 ? (uint8_t)count : 0x80;
            if (some >> at & 1) to->pack[some][count++] = (uint8_t)at;
        }
        for (; count < 8; count++) to->pack[some][count] = 0x80;
    }
}

/* Whether a table says nothing but 0. */
static bool is_still(const uint8_t *weights, int32_t kinds) { return !largest(weights + 1, kinds - 1); }

/* Where the parts of a model of `size` bytes lie; false if anything is out of range. */
static bool read_model(drift_chunk *to, const uint8_t *told, int64_t size, int64_t n) {
    ts_drift *by = &to->by;
    const int64_t segments = by->width ? 1 + (TS_MAX(n - by->first, 0) + by->width - 1) / by->width : 1;
    if (size < 3 + DRIFT_CLASSES) return false;
    const int32_t tables = told[0], magnitudes = told[1];
    to->still = false, to->unit = told[2], to->grades = told + 3, to->weights = to->grades + DRIFT_CLASSES, to->tables = tables;
    if (!tables || tables > MOST_TABLES || !magnitudes || magnitudes > DIRECT + 2 * (to->of.bits - 5) + 1) return false;
    if (to->unit >= to->of.bits || largest(to->grades, DRIFT_CLASSES) >= DRIFT_GRADES) return false;
    to->kinds = 2 * magnitudes - 1;
    by->shifts = to->weights + tables * to->kinds;
    if (by->shifts + segments - told > size) return false;
    const uint8_t shift = largest(by->shifts, segments), *table = by->shifts + segments;
    by->contexts = LEVELS + shift;
    const int32_t every = by->contexts + (DRIFT_GRADES - 1) * LEVELS;
    if (shift >= LEVELS || table + every - told != size) return false;
    if (largest(table, every) >= tables || largest(to->weights, (int64_t)tables * to->kinds) >= 64) return false;
    bool still[MOST_TABLES];
    for (int32_t at = 0; at < tables; at++) {
        if (!largest(to->weights + at * to->kinds, to->kinds)) return false;
        still[at] = is_still(to->weights + at * to->kinds, to->kinds);
        to->still |= still[at];
    }
    for (int32_t at = 0; at < every; at++) to->table[at] = still[table[at]] ? STILL : table[at];
    by->table = to->table;
    return true;
}

/* Whether all exceptions are of elements that there are, and say symbols that there are. */
static bool read_exceptions(const drift_chunk *of, int64_t n) {
    const int32_t symbols = DIRECT + 2 * (of->of.bits - 5) + 1;
    int64_t place = -1;
    for (int64_t at = 0; at < of->exceptions; at++) {
        place += 1 + (of->gaps[2 * at] | of->gaps[2 * at + 1] << 8);
        if (place >= n || (int32_t)size_of(of->odd[at]) >= symbols) return false;
    }
    return true;
}

/* Where the parts of a chunk lie, its first byte the mode; false if they do not fit it. */
static bool read_chunk(drift_chunk *to, const uint8_t *data, int64_t size, const uint8_t *told, int64_t told_size, int64_t n) {
    if (!read_steps(&to->steps, &to->of, &to->by.width, &to->by.first, data, size)) return false;
    to->gaps = to->steps.rest;
    const int64_t left = data + size - to->gaps;
    if (left % 3) return false;
    to->exceptions = left / 3, to->odd = (const int8_t *)to->gaps + 2 * to->exceptions;
    return read_model(to, told, told_size, n) && read_exceptions(to, n);
}

/* The tables of n elements that are not still, one behind the other. Returns how many there are. Behind n, `tables` holds
 * PAD still ones; `out` has room for PAD more. */
ALWAYS int64_t pack_tables(uint8_t *restrict out, const uint8_t *restrict tables, int64_t n, const packing *by) {
    uint8_t *to = out;
    (void)by;
#if defined(__AVX2__)
    for (int64_t i = 0; i < n; i += 32) {
        uint32_t some = ~(uint32_t)_mm256_movemask_epi8(_mm256_loadu_si256((const __m256i *)(tables + i)));
        for (int k = 0; k < 4; k++, some >>= 8) {
            __m128i eight = _mm_loadl_epi64((const __m128i *)(tables + i + 8 * k));
            eight = _mm_shuffle_epi8(eight, _mm_loadl_epi64((const __m128i *)by->pack[some & 255]));
            _mm_storel_epi64((__m128i *)to, eight);
            to += __builtin_popcount(some & 255);
        }
    }
#else
    for (int64_t i = 0; i < n; i++) *to = tables[i], to += tables[i] != STILL;
#endif
    return to - out;
}

/* Symbols of n elements in place of their tables, those of still ones 0. */
ALWAYS void spread_symbols(uint8_t *restrict tables, const uint8_t *restrict symbols, int64_t n, const packing *by) {
    (void)by;
#if defined(__AVX2__)
    for (int64_t i = 0; i < n; i += 32) {
        uint32_t some = ~(uint32_t)_mm256_movemask_epi8(_mm256_loadu_si256((const __m256i *)(tables + i)));
        for (int k = 0; k < 4; k++, some >>= 8) {
            __m128i eight = _mm_loadl_epi64((const __m128i *)symbols);
            eight = _mm_shuffle_epi8(eight, _mm_loadl_epi64((const __m128i *)by->spread[some & 255]));
            _mm_storel_epi64((__m128i *)(tables + i + 8 * k), eight);
            symbols += __builtin_popcount(some & 255);
        }
    }
#else
    for (int64_t i = 0; i < n; i++) {
        const bool still = tables[i] == STILL;
        tables[i] = still ? 0 : *symbols;
        symbols += !still;
    }
#endif
}

/* Turn n of a start's elements into the task's, by a chunk, what its model holds, and the base's elements. `entries` has room
 * for all that there can be. Returns 0; 1 if the stream does not end with the elements; 2 if the open bits do not; 3 if the
 * chunk is none. */
TS_KERNEL(int32_t, drift_decode)(
    void *words, const void *base, int64_t n, int32_t bits_of_word, int32_t shift, int32_t mask, const uint8_t *data,
    int64_t size, const uint8_t *told, int64_t told_size, uint32_t *entries
) {
    drift_chunk of;
    of.of = (lattice){bits_of_word, shift, mask, 0};
    if (!read_chunk(&of, data, size, told, told_size, n)) return 3;
    bit_reader open = {of.steps.open, of.steps.open_bytes, 0, false};
    stream from;
    packing by;
    uint32_t states[MOST_LANES];
    uint8_t found[BLOCK + PAD], some_symbols[BLOCK + PAD], grade[BLOCK], order[256][8];
    int8_t negative[BLOCK];
    int64_t exception = 0, place = of.exceptions ? of.gaps[0] | of.gaps[1] << 8 : n;
    memcpy(states, of.steps.states, (size_t)of.steps.lanes * 4);
    from.at = of.steps.words, from.left = of.steps.coded, from.last = from.over = false;
    fill_entries(entries, of.weights, of.tables, of.kinds, of.steps.bits);
    fill_order(order), fill_packing(&by);
    for (int64_t start = 0; start < n && !from.over; start += BLOCK) {
        const int64_t some = TS_MIN(n - start, BLOCK);
        char *here = (char *)words + start * (bits_of_word / 8);
        const char *there = (const char *)base + start * (bits_of_word / 8);
        fill_grades_of(grade, negative, found, here, there, some, of.unit, of.grades, &of.of);
        fill_maps(found, grade, start, some, &of.by);
        memset(found + some, STILL, PAD);
        if (of.still) {
            const int64_t coded = pack_tables(some_symbols, found, some, &by);
            decode_symbols(some_symbols, coded, entries, states, of.steps.lanes, of.steps.bits, &from, (const uint8_t (*)[8])order);
            spread_symbols(found, some_symbols, some, &by);
        } else decode_symbols(found, some, entries, states, of.steps.lanes, of.steps.bits, &from, (const uint8_t (*)[8])order);
        while (place < start + some) {
            if (of.odd[exception]) found[place - start] = (uint8_t)of.odd[exception];
            exception++;
            place = exception < of.exceptions ? place + 1 + (of.gaps[2 * exception] | of.gaps[2 * exception + 1] << 8) : n;
        }
        turn_symbols((int8_t *)found, (const int8_t *)found, negative, some);
        if (bits_of_word == 16) apply(here, (const int8_t *)found, some, &open, 16);
        else if (bits_of_word == 32) apply(here, (const int8_t *)found, some, &open, 32);
        else apply(here, (const int8_t *)found, some, &open, 8);
    }
    return ended(&from, &open, states, of.steps.lanes);
}
