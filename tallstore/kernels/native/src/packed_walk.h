/* Packed rows of a task, and walks over their marks: what kernels of mixed batches are made of. */
#ifndef TS_PACKED_WALK_H
#define TS_PACKED_WALK_H

#include "half.h"

enum { GAPS, BITMAP, CODES };
/* Tokens side by side, and rows whose sums are kept before they are written. */
enum { TOKENS = 16, TILE_ROWS = 16 };
/* Marks from which on rows of a tile are not found together with those before. */
enum { TOGETHER = 512 };
/* Elements that a walk may be away from a row: `kernels.native.products` takes no rows that are half as wide. */
enum { FAR = 1 << 30 };

/* `kernels.packed_rows.PackedRows`; `kernels.native.products` declares the same. */
typedef struct {
    int32_t form, bits, type, steps; /* type: D, as forms are numbered */
    int64_t rows, width, block, shift; /* rows: those that are held; shift: log2 of elements a chunk */
    const uint8_t *places, *levels;
    int64_t gaps, gap_bits; /* how many there are, continued ones counted again; bits of one */
    const uint8_t *rare;    /* of marks with rare levels: fields of a gap, counted in marks, and a level above it */
    int64_t rare_count, rare_gap_bits, table_bits; /* how many fields; bits of their gaps, and of their levels */
    const int32_t *numbers; /* of the rows that are held; NULL: all */
    const int32_t *tiles;   /* rows that are held before each TILE_ROWS of the tensor's */
    const float *tables;
    const int64_t *index;
    const void *vector; /* or NULL */
    const float *vector_tables;
    const uint64_t *order; /* of each byte: the places of its bits that are 1, in order, as bytes */
    int64_t vector_bits;   /* 4, 8 or 32 */
} ts_packed_rows;

/* A run of tokens of one task. */
typedef struct {
    const ts_packed_rows *packed; /* NULL: only the bias */
    const float *bias;            /* the task's, of every output, or NULL */
    int64_t first, count, columns; /* tokens; where the run's columns begin, or below 0 */
} ts_run;

/* Where a walk is: gaps and marks behind it, and the element, of rows that are held, that the next gap counts from; fields of
 * rare levels behind it, and the mark that the next one's gap counts from. */
typedef struct {
    int64_t at, mark, place, rare, common;
} ts_walk;

typedef float ts_eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ts_eight_words __attribute__((vector_size(32), aligned(4), may_alias));

static inline unsigned field(const uint8_t *codes, int64_t i, int32_t bits) {
    const int64_t bit = i * bits;
    return (codes[bit >> 3] >> (bit & 7)) & ((1u << bits) - 1);
}

/* The same where fields may lie across bytes; 4 bytes are read. */
static inline unsigned wide_field(const uint8_t *codes, int64_t i, int64_t bits) {
    return (ts_load32(codes + (i * bits >> 3)) >> (i * bits & 7)) & ((1u << bits) - 1);
}

static inline float base_at(const void *base, int64_t i, int32_t form) {
    if (form == TS_FLOAT32) return ((const float *)base)[i];
    const uint16_t word = ((const uint16_t *)base)[i];
    return form == TS_BFLOAT16 ? ts_from_bfloat16(word) : ts_from_float16(word);
}

static inline uint16_t narrow(float value, int32_t type) {
    if (value != value) return type == TS_BFLOAT16 ? 0x7FC0 : 0x7E00;
    return type == TS_BFLOAT16 ? ts_to_bfloat16(value) : ts_to_float16(value);
}

static inline float wide(uint16_t word, int32_t type) {
    return type == TS_BFLOAT16 ? ts_from_bfloat16(word) : ts_from_float16(word);
}

/* The task's element: the base's, moved by what a mark stands for, in D. */
static inline float moved(float base, float value, const ts_packed_rows *p) {
    if (!p->steps) return p->type == TS_FLOAT32 ? base + value : wide(narrow(base + value, p->type), p->type);
    int32_t word = (int16_t)narrow(base, p->type);
    word = (word < 0 ? word ^ 0x7FFF : word) + (int32_t)value;
    word = (int16_t)word < 0 ? word ^ 0x7FFF : word;
    return wide((uint16_t)word, p->type);
}

/* The places of a byte's bits that are 1, in order, counted from `from`; 8 elements are written. */
static inline void put_places(int32_t *out, const uint64_t *order, unsigned bits, int32_t from) {
#if defined(__AVX2__)
    const __m256i own = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(order + bits)));
    _mm256_storeu_si256((__m256i *)(void *)out, _mm256_add_epi32(own, _mm256_set1_epi32(from)));
#else
    for (uint64_t own = order[bits], k = 0; k < 8; k++, own >>= 8) out[k] = from + (int32_t)(own & 255);
#endif
}

/* Places of the marks of rows [row, last) of those that are held, or of the first of them, as many as go together; they are
 * counted from the first row's beginning, as if those that are held were all. ends: how many there are up to each row's
 * end. Returns the row behind the last; `w` is where a walk may go on, and `mark` the first one's number. Up to 7
 * elements behind the places are written too. */
static int64_t places_by_gaps(int32_t *places, int64_t *ends, const ts_packed_rows *p, ts_walk *w, int64_t row, int64_t last,
                              int64_t *mark) {
    const int64_t bits = p->gap_bits, most = ((int64_t)1 << bits) - 1, start = row * p->width, first = row;
    int64_t n = 0, at = w->at, end = p->width, place = w->place - start, before = w->mark;
    *mark = -1;
    for (; place < -FAR && at < p->gaps; at++) { /* what follows counts in 32 bits */
        const int64_t gap = wide_field(p->places, at, bits);
        place += gap + (gap != most), before += gap != most;
    }
#if defined(__AVX2__)
    /* Eight gaps take as many bytes as one takes bits: where they begin in their bytes is the same for every eight. */
    const __m256i eight = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), one = _mm256_set1_epi32(1);
    const __m256i bit = _mm256_add_epi32(_mm256_mullo_epi32(eight, _mm256_set1_epi32((int32_t)bits)),
                                         _mm256_set1_epi32((int32_t)(at * bits & 7)));
    const __m256i bytes = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32(bit, 3), _mm256_set1_epi32(0x01010101)),
                                           _mm256_set1_epi32(0x03020100));
    const __m256i shift = _mm256_and_si256(bit, _mm256_set1_epi32(7)), long_gap = _mm256_set1_epi32((int32_t)most);
    const uint8_t *from = p->places + (at * bits >> 3);
    __m256i next = _mm256_set1_epi32((int32_t)place - 1);
    for (; at < p->gaps; at += 8, from += bits) {
        const __m256i raw = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)from));
        const __m256i gap = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(raw, bytes), shift), long_gap);
        const __m256i goes_on = _mm256_cmpeq_epi32(gap, long_gap);
        __m256i sum = _mm256_add_epi32(_mm256_add_epi32(gap, one), goes_on);
        sum = _mm256_add_epi32(sum, _mm256_slli_si256(sum, 4));
        sum = _mm256_add_epi32(sum, _mm256_slli_si256(sum, 8));
        const __m256i half = _mm256_permutevar8x32_epi32(sum, _mm256_set1_epi32(3));
        sum = _mm256_add_epi32(sum, _mm256_blend_epi32(_mm256_setzero_si256(), half, 0xF0));
        const __m256i own = _mm256_add_epi32(sum, next);
        unsigned on = ~(unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(goes_on)) & 255;
        if (p->gaps - at < 8) on &= (1u << (p->gaps - at)) - 1;
        const unsigned ahead = on & (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(own)); /* below 0: of rows before */
        unsigned left = on & ~ahead;
        if (*mark < 0 && left) *mark = before + __builtin_popcount(ahead);
        const __m256i in_order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p->order + left)));
        _mm256_storeu_si256((__m256i *)(void *)(places + n), _mm256_permutevar8x32_epi32(own, in_order));
        for (;;) {
            const __m256i over = _mm256_cmpgt_epi32(own, _mm256_set1_epi32((int32_t)end - 1));
            const unsigned behind = left & (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(over));
            n += __builtin_popcount(left ^ behind), left = behind;
            if (!left) break;
            ends[row++ - first] = n, end += p->width;
            if (row == last || n >= TOGETHER) {
                place = (int64_t)_mm256_extract_epi32(next, 0) + 1;
                goto done;
            }
        }
        before += __builtin_popcount(on);
        next = _mm256_permutevar8x32_epi32(own, _mm256_set1_epi32(7));
    }
    place = (int64_t)_mm256_extract_epi32(next, 0) + 1;
#else
    for (; at < p->gaps; at++) {
        const int64_t gap = wide_field(p->places, at, bits), own = place + gap;
        if (gap != most) {
            while (own >= end) {
                ends[row++ - first] = n, end += p->width;
                if (row == last || n >= TOGETHER) goto done;
            }
            if (own >= 0 && *mark < 0) *mark = before;
            places[n] = (int32_t)own;
            n += own >= 0, before++;
        }
        place = own + (gap != most);
    }
#endif
    while (row < last) ends[row++ - first] = n;
done:
    w->at = at, w->mark = before, w->place = place + start;
    return row;
}

/* The same of a bitmap. */
static int64_t places_by_bits(int32_t *places, int64_t *ends, const ts_packed_rows *p, ts_walk *w, int64_t row, int64_t last,
                              int64_t *mark) {
    const int64_t first = row, start = row * p->width;
    int64_t n = 0, at = w->place;
    *mark = w->mark;
    for (int64_t end = start, size; at < end || (row < last && n < TOGETHER); at += size) {
        if (at == end) end += p->width;
        size = TS_MIN(64 - (at & 7), (at < start ? start : end) - at);
        uint64_t bits = ts_load64(p->places + (at >> 3)) >> (at & 7);
        if (size < 64) bits &= ~(~(uint64_t)0 << size);
        if (at < start) *mark += __builtin_popcountll(bits);
        else {
            for (int32_t k = (int32_t)(at - start); bits; k += 8, bits >>= 8) {
                put_places(places + n, p->order, bits & 255, k);
                n += __builtin_popcount(bits & 255);
            }
            if (at + size == end) ends[row++ - first] = n;
        }
    }
    w->mark = *mark + n, w->place = at;
    return row;
}

/* Values of marks [mark, mark + n) whose levels are rare. A walk before these goes on as far as its marks have gone, which may
 * be less: it finds some of a row's again. */
static void put_rare(float *values, const int32_t *places, int64_t n, const ts_packed_rows *p, ts_walk *w, int64_t start,
                     int64_t mark) {
    const int64_t bits = p->rare_gap_bits + p->table_bits, most = ((int64_t)1 << p->rare_gap_bits) - 1;
    for (int64_t i = w->rare, common = w->common; i < p->rare_count; i++) {
        const int64_t own = wide_field(p->rare, i, bits), gap = own & most, at = common + gap - mark;
        if (at >= n) break;
        common += gap + (gap != most);
        if (gap != most && at >= 0)
            values[at] = p->tables[((start + places[at]) >> p->shift << p->table_bits) + (own >> p->rare_gap_bits)];
        if (common <= w->mark) w->rare = i + 1, w->common = common;
    }
}

/* What marks, from number `mark` on, stand for. start: the element that places are counted from; size: how many elements
 * they are of. Up to 7 values behind them are written too. */
static void values_of(float *values, const int32_t *places, int64_t n, const ts_packed_rows *p, ts_walk *w, int64_t start,
                      int64_t size, int64_t mark) {
    if (p->bits == 16) { /* steps */
        for (int64_t k = 0; k < n; k++) {
            int16_t step;
            memcpy(&step, p->levels + 2 * (mark + k), sizeof step);
            values[k] = step;
        }
        return;
    }
    const bool alone = start >> p->shift == (start + size - 1) >> p->shift;
    const float *table = p->tables + (start >> p->shift << p->table_bits);
    if (alone && p->bits <= 1) {
        const uint32_t low = ts_bits(table[0]), turned = p->bits ? low ^ ts_bits(table[1]) : 0;
        const ts_eight_words each = {1, 2, 4, 8, 16, 32, 64, 128};
        for (int64_t k = 0; k < n; k += 8) {
            const int32_t bits = p->bits ? (int32_t)(ts_load64(p->levels + ((mark + k) >> 3)) >> ((mark + k) & 7)) : 0;
            *(ts_eight_words *)(void *)(values + k) = (((bits & each) != 0) & (int32_t)turned) ^ (int32_t)low;
        }
    } else
        for (int64_t k = 0; k < n; k++) {
            if (!alone) table = p->tables + ((start + places[k]) >> p->shift << p->table_bits);
            values[k] = table[p->bits ? field(p->levels, mark + k, p->bits) : 0];
        }
    put_rare(values, places, n, p, w, start, mark);
}

static inline int64_t number_of(const ts_packed_rows *p, int64_t row) { return p->numbers ? p->numbers[row] : row; }

/* Marks of rows [row, last) of those that are held, or of the first of them, as many as go together; the walk is in or
 * before these. Places are counted from the first row's beginning in the tensor; values: what is added to the base there (of
 * codes: those that are not 0). ends: how many there are up to each row's end. Returns the row behind the last. */
static int64_t marks_of(int32_t *places, float *values, int64_t *ends, const ts_packed_rows *p, ts_walk *w, int64_t row,
                        int64_t last) {
    const int64_t first = row, width = p->width, start = number_of(p, row) * width;
    int64_t n = 0, mark = 0;
    if (p->form == CODES)
        do {
            for (int64_t own = (row - first) * width, c = own; c < own + width; c++) {
                const float *table = p->tables + ((start + c) >> p->shift << p->table_bits);
                const float value = table[field(p->places, start + c, p->bits)];
                places[n] = (int32_t)c, values[n] = value;
                n += value != 0;
            }
            ends[row++ - first] = n;
        } while (row < last && n < TOGETHER);
    else {
        row = (p->form == GAPS ? places_by_gaps : places_by_bits)(places, ends, p, w, row, last, &mark);
        n = ends[row - first - 1];
        for (int64_t k = ends[0], own = first + 1; p->numbers && own < row; own++) {
            const int64_t more = (p->numbers[own] - own - (p->numbers[first] - first)) * width;
            for (; k < ends[own - first]; k++) places[k] += (int32_t)more;
        }
        values_of(values, places, n, p, w, start, (number_of(p, row - 1) + 1) * width - start, mark);
    }
    if (p->vector)
        for (int64_t k = 0; k < n; k++) {
            const int64_t i = start + places[k];
            values[k] *= p->vector_bits == 32
                             ? ((const float *)p->vector)[i]
                             : p->vector_tables[(i >> p->shift << p->vector_bits) + field(p->vector, i, (int32_t)p->vector_bits)];
        }
    return row;
}

/* Bring a walk nearer to a row of those that are held: to the index's entry, if that is nearer than where it is. */
static void walk_to(ts_walk *w, const ts_packed_rows *p, int64_t row) {
    const int64_t *entry = p->index + 5 * (row / p->block);
    if (p->form != CODES && (w->place > row * p->width || entry[2] > w->place)) memcpy(w, entry, sizeof *w);
}

static inline int64_t padded(int64_t count) { return (count + 7) & ~(int64_t)7; }

static inline ts_eight plus_product(ts_eight sum, ts_eight a, ts_eight b) {
#if defined(__FMA__)
    return (ts_eight)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return sum + a * b;
#endif
}

#endif
