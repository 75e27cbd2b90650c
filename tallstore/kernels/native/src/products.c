/* Layers of a mixed batch: what tasks add to the outputs, and their own rows, straight from packed rows. */
#include "half.h"

enum { GAPS, BITMAP, CODES };
/* Tokens side by side, and rows whose sums are kept before they are written. */
enum { TOKENS = 32, TILE_ROWS = 16 };
/* Marks from which on rows of a tile are not found together with those before. */
enum { TOGETHER = 512 };

/* `kernels.packed_rows.PackedRows`; `kernels.native.products` declares the same. */
typedef struct {
    int32_t form, bits, type, steps; /* type: D, as forms are numbered */
    int64_t rows, width, block, shift; /* rows: those that are held; shift: log2 of elements a chunk */
    const uint8_t *places, *levels;
    int64_t gaps, gap_bits; /* how many there are, continued ones counted again; bits of one */
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

/* Where a walk is: bits of gaps and marks behind it, and the element that the next gap counts from. */
typedef struct {
    int64_t at, mark, place;
} ts_walk;

typedef float ts_eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ts_eight_words __attribute__((vector_size(32), aligned(4), may_alias));

static inline unsigned field(const uint8_t *codes, int64_t i, int32_t bits) {
    const int64_t bit = i * bits;
    return (codes[bit >> 3] >> (bit & 7)) & ((1u << bits) - 1);
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

static int64_t places_by_gaps(int32_t *places, const ts_packed_rows *p, ts_walk *w, int64_t start, int64_t own) {
    const int64_t bits = p->gap_bits, most = ((int64_t)1 << bits) - 1, end = p->gaps * bits, last = own + p->width;
    int64_t n = 0, at = w->at, place = w->place - start + own;
    while (at < end) {
        const int64_t gap = (int64_t)(ts_load32(p->places + (at >> 3)) >> (at & 7)) & most, next = place + gap;
        if (next >= last && gap != most) break;
        places[n] = (int32_t)next;
        n += gap != most, place = next + (gap != most), at += bits;
    }
    w->at = at, w->place = place + start - own;
    return n;
}

/* Places of a row's marks, in order, counted from `own` at the row's beginning; `row` counts those that are held. Returns
 * how many. Up to 7 elements behind them are written too. */
static int64_t places_of(int32_t *places, const ts_packed_rows *p, ts_walk *w, int64_t row, int64_t own) {
    const int64_t start = row * p->width, end = start + p->width;
    int64_t n = 0;
    if (p->form == GAPS) n = places_by_gaps(places, p, w, start, own);
    else
        for (int64_t at = start & ~(int64_t)7; at < end; at += 64) {
            uint64_t bits = ts_load64(p->places + (at >> 3));
            if (at < start) bits &= ~(uint64_t)0 << (start - at);
            if (end - at < 64) bits &= ~(~(uint64_t)0 << (end - at));
            for (int32_t k = 0; k < 64; k += 8, bits >>= 8) {
                put_places(places + n, p->order, bits & 255, (int32_t)(at - start + own) + k);
                n += __builtin_popcount(bits & 255);
            }
        }
    w->mark += n;
    return n;
}

/* What marks, from number `mark` on, stand for. start: the element that places are counted from; size: how many elements
 * they are of. Up to 7 values behind them are written too. */
static void values_of(float *values, const int32_t *places, int64_t n, const ts_packed_rows *p, int64_t start, int64_t size,
                      int64_t mark) {
    if (p->bits == 16) { /* steps */
        for (int64_t k = 0; k < n; k++) {
            int16_t step;
            memcpy(&step, p->levels + 2 * (mark + k), sizeof step);
            values[k] = step;
        }
        return;
    }
    const bool alone = start >> p->shift == (start + size - 1) >> p->shift;
    const float *table = p->tables + (start >> p->shift << p->bits);
    if (alone && p->bits <= 1) {
        const uint32_t low = ts_bits(table[0]), turned = p->bits ? low ^ ts_bits(table[1]) : 0;
        const ts_eight_words each = {1, 2, 4, 8, 16, 32, 64, 128};
        for (int64_t k = 0; k < n; k += 8) {
            const int32_t bits = p->bits ? (int32_t)(ts_load64(p->levels + ((mark + k) >> 3)) >> ((mark + k) & 7)) : 0;
            *(ts_eight_words *)(void *)(values + k) = (((bits & each) != 0) & (int32_t)turned) ^ (int32_t)low;
        }
        return;
    }
    for (int64_t k = 0; k < n; k++) {
        if (!alone) table = p->tables + ((start + places[k]) >> p->shift << p->bits);
        values[k] = table[p->bits ? field(p->levels, mark + k, p->bits) : 0];
    }
}

static inline int64_t number_of(const ts_packed_rows *p, int64_t row) { return p->numbers ? p->numbers[row] : row; }

/* Marks of rows [row, last) of those that are held, or of the first of them, as many as go together: places, counted from
 * the first row's beginning in the tensor, and what is added to the base there (of codes: those that are not 0). ends: how
 * many there are up to each row's end. Returns the row behind the last. */
static int64_t marks_of(int32_t *places, float *values, int64_t *ends, const ts_packed_rows *p, ts_walk *w, int64_t row,
                        int64_t last) {
    const int64_t first = row, width = p->width, start = number_of(p, row) * width, mark = w->mark;
    int64_t n = 0;
    do {
        const int64_t own = number_of(p, row) * width - start;
        if (p->form == CODES)
            for (int64_t c = own; c < own + width; c++) {
                const float *table = p->tables + ((start + c) >> p->shift << p->bits);
                const float value = table[field(p->places, start + c, p->bits)];
                places[n] = (int32_t)c, values[n] = value;
                n += value != 0;
            }
        else n += places_of(places + n, p, w, row, own);
        ends[row++ - first] = n;
    } while (row < last && n < TOGETHER);
    if (p->form != CODES) values_of(values, places, n, p, start, (number_of(p, row - 1) + 1) * width - start, mark);
    if (p->vector)
        for (int64_t k = 0; k < n; k++) {
            const int64_t i = start + places[k];
            values[k] *= p->vector_bits == 32
                             ? ((const float *)p->vector)[i]
                             : p->vector_tables[(i >> p->shift << p->vector_bits) + field(p->vector, i, (int32_t)p->vector_bits)];
        }
    return row;
}

/* Of marks of a type D narrower than float32, what they add once it is rounded: task's element − base's. */
static void round_marks(float *restrict values, float *restrict before, const int32_t *places, int64_t n,
                        const ts_packed_rows *p, const void *base, int64_t start, int32_t form) {
    if (form == TS_FLOAT32) for (int64_t k = 0; k < n; k++) before[k] = ((const float *)base + start)[places[k]];
    else for (int64_t k = 0; k < n; k++) before[k] = base_at(base, start + places[k], form);
    if (!p->steps && p->type == TS_BFLOAT16)
        for (int64_t k = 0; k < n; k++) {
            const uint32_t bits = ts_bits(before[k] + values[k]);
            values[k] = ts_float((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u) - before[k];
        }
    else
        for (int64_t k = 0; k < n; k++) values[k] = moved(before[k], values[k], p) - before[k];
}

/* Where a row of the tensor is among those that are held, or where it would be. */
static inline int64_t held_at(const ts_packed_rows *p, int64_t number) {
    if (!p->numbers) return number;
    int64_t low = 0, high = p->rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (p->numbers[middle] < number) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* A walk before row `row` of those that are held; `w` is before row `next`, or anywhere where that is below 0. */
static void walk_to(ts_walk *w, const ts_packed_rows *p, int64_t next, int64_t row, int32_t *places) {
    if (p->form == CODES) return;
    const int64_t block = row / p->block * p->block;
    if (next > row || next < block) {
        const int64_t *entry = p->index + 3 * (row / p->block);
        *w = (ts_walk){entry[0] * p->gap_bits, entry[1], entry[2]};
        next = block;
    }
    for (; next < row; next++) places_of(places, p, w, next, 0);
}

/* Rows of a task's tensor, in the model's type: those of `index`, in any order, or with NULL n from `first` on.
 * base: all rows; places, values: room for a row. */
TS_KERNEL(void, packed_rows)
(void *out, const void *base, int32_t form, const ts_packed_rows *p, const int64_t *index, int64_t first, int64_t n,
 int32_t *places, float *values) {
    const size_t item = form == TS_FLOAT32 ? 4 : 2, size = (size_t)p->width * item;
    int64_t next = -1, count;
    ts_walk w = {0, 0, 0};
    for (int64_t k = 0; k < n; k++) {
        const int64_t number = index ? index[k] : first + k, row = held_at(p, number);
        char *own = (char *)out + (size_t)k * size;
        memcpy(own, (const char *)base + (size_t)number * size, size);
        if (row >= p->rows || (p->numbers && p->numbers[row] != number)) continue;
        walk_to(&w, p, next, row, places);
        marks_of(places, values, &count, p, &w, row, row + 1);
        for (int64_t j = 0; j < count; j++) {
            const float value = moved(base_at(own, places[j], form), values[j], p);
            if (form == TS_FLOAT32) ((float *)(void *)own)[places[j]] = value;
            else ((uint16_t *)(void *)own)[places[j]] = narrow(value, form);
        }
        next = row + 1;
    }
}

static inline int64_t padded(int64_t count) { return (count + 7) & ~(int64_t)7; }

/* Columns of each run's tokens, TOKENS (or what is left, padded to 8) side by side. */
TS_KERNEL(void, token_columns)(float *out, const float *x, int64_t width, const ts_run *runs, int64_t count) {
    for (int64_t r = 0; r < count; r++) {
        if (runs[r].columns < 0) continue;
        float *to = out + runs[r].columns;
        for (int64_t a = 0; a < runs[r].count; a += TOKENS) {
            const int64_t size = TS_MIN(runs[r].count - a, TOKENS), side = padded(size);
            const float *from = x + (runs[r].first + a) * width;
            for (int64_t c = 0; c < width; c++)
                for (int64_t j = 0; j < side; j++) to[c * side + j] = j < size ? from[j * width + c] : 0;
            to += width * side;
        }
    }
}

/* sums[0 … 8·N) = Σ value · column, over a row's marks, two at a time; places of columns are counted from `own`. */
#define DEFINE_SUM(N)                                                                                              \
    static void sum_##N(float *sums, const float *x, const int32_t *places, const float *values, int64_t n, int64_t own) { \
        ts_eight even[N] = {{0}}, odd[N] = {{0}};                                                                  \
        for (int64_t k = 0; k < n; k += 2) {                                                                       \
            const int64_t second = k + 1 < n ? k + 1 : k;                                                          \
            const float one = values[k], two = k + 1 < n ? values[k + 1] : 0;                                      \
            const ts_eight *first = (const ts_eight *)(const void *)(x + (places[k] - own) * (8 * N));             \
            const ts_eight *other = (const ts_eight *)(const void *)(x + (places[second] - own) * (8 * N));        \
            for (int j = 0; j < N; j++) even[j] += first[j] * one;                                                 \
            for (int j = 0; j < N; j++) odd[j] += other[j] * two;                                                  \
        }                                                                                                          \
        for (int j = 0; j < N; j++) ((ts_eight *)(void *)sums)[j] = even[j] + odd[j];                              \
    }
DEFINE_SUM(1)
DEFINE_SUM(2)
DEFINE_SUM(3)
DEFINE_SUM(4)

static inline float sum_of(ts_eight x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* The same of one token. 7 marks behind the row's may be read, and add nothing: their places are of rows that follow. */
static float sum_alone(const float *x, const int32_t *places, const float *values, int64_t n, int64_t own) {
    float sum = 0;
    int64_t k = 0;
#if defined(__AVX2__)
    const __m256i from = _mm256_set1_epi32((int32_t)own), eight = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    ts_eight sums = {0};
    for (; k < n; k += 8) {
        const __m256i within = _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)(n - k)), eight);
        const __m256i at = _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(places + k)), from);
        const __m256 own_x = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), x, at, _mm256_castsi256_ps(within), 4);
        sums += (ts_eight)_mm256_mul_ps(_mm256_and_ps(_mm256_castsi256_ps(within), _mm256_loadu_ps(values + k)), own_x);
    }
    sum = sum_of(sums);
#endif
    for (; k < n; k++) sum += values[k] * x[places[k] - own];
    return sum;
}

/* Sums of one row's marks with every token of a run, into sums[token · TILE_ROWS]. */
static void sum_row(float *sums, const ts_run *run, const float *x, const float *turned, int64_t width,
                    const int32_t *places, const float *values, int64_t n, int64_t own) {
    if (run->columns < 0) {
        for (int64_t j = 0; j < run->count; j++)
            sums[j * TILE_ROWS] = sum_alone(x + (run->first + j) * width, places, values, n, own);
        return;
    }
    const float *from = turned + run->columns;
    float each[TOKENS];
    for (int64_t a = 0; a < run->count; a += TOKENS) {
        const int64_t size = TS_MIN(run->count - a, TOKENS), side = padded(size);
        if (side == 8) sum_1(each, from, places, values, n, own);
        else if (side == 16) sum_2(each, from, places, values, n, own);
        else if (side == 24) sum_3(each, from, places, values, n, own);
        else sum_4(each, from, places, values, n, own);
        for (int64_t j = 0; j < size; j++) sums[(a + j) * TILE_ROWS] = each[j];
        from += width * side;
    }
}

/* The base's own outputs of a tile, for so few tokens that reading the base is what takes the time: two rows and four
 * tokens at once. row: room for two, where the base is narrow. */
static void base_outputs(float *y, int64_t stride, const float *x, int64_t tokens, const void *base, int32_t form,
                         const float *bias, int64_t a, int64_t size, int64_t width, float *row) {
    for (int64_t i = 0; i < size; i += 2) {
        const int64_t rows = TS_MIN(size - i, 2), start = (a + i) * width;
        const float *one = (const float *)base + start;
        if (form != TS_FLOAT32) {
            for (int64_t c = 0; c < rows * width; c++) row[c] = base_at(base, start + c, form);
            one = row;
        }
        const float *two = one + (rows - 1) * width;
        for (int64_t t = 0; t < tokens; t += 4) {
            const float *each[4];
            for (int j = 0; j < 4; j++) each[j] = x + TS_MIN(t + j, tokens - 1) * width;
            ts_eight sums[8] = {{0}};
            int64_t c = 0;
            for (; c + 8 <= width; c += 8)
                for (int j = 0; j < 4; j++) {
                    const ts_eight own = *(const ts_eight *)(const void *)(each[j] + c);
                    sums[j] += own * *(const ts_eight *)(const void *)(one + c);
                    sums[4 + j] += own * *(const ts_eight *)(const void *)(two + c);
                }
            for (int64_t j = 0; j < TS_MIN(tokens - t, 4); j++)
                for (int64_t k = 0; k < rows; k++) {
                    float sum = sum_of(sums[4 * k + j]) + (bias ? bias[a + i + k] : 0);
                    for (int64_t rest = c; rest < width; rest++) sum += each[j][rest] * (k ? two : one)[rest];
                    y[(t + j) * stride + a + i + k] = sum;
                }
        }
    }
}

/* y += x · (θ̂ − θ0)ᵀ and what the bias is more than the base's, of runs of tokens, for outputs [first, last); `first`
 * is a multiple of TILE_ROWS. Where `tokens` is not 0, y is the base's outputs first: there are so many tokens in all. y:
 * outputs `stride` apart; x: shape (tokens, width); turned: what token_columns made of it; base: θ0, of type `form`.
 * walks: room for one of each run; sums: for TILE_ROWS of as many tokens as a run has; places: for TOGETHER and a row;
 * values: for twice as many. */
TS_KERNEL(void, packed_product)
(float *y, int64_t stride, const float *x, const float *turned, const void *base, int32_t form, const float *bias,
 const ts_run *runs, int64_t count, int64_t tokens, int64_t first, int64_t last, int64_t width, ts_walk *walks,
 int32_t *places, float *values, float *sums) {
    int64_t ends[TILE_ROWS];
    for (int64_t a = first; a < last; a += TILE_ROWS) {
        const int64_t tile = a / TILE_ROWS, size = TS_MIN(TILE_ROWS, last - a);
        if (tokens) base_outputs(y, stride, x, tokens, base, form, bias, a, size, width, values);
        for (int64_t r = 0; r < count; r++) {
            const ts_run *run = runs + r;
            const ts_packed_rows *p = run->packed;
            const int64_t from = !p ? 0 : p->numbers ? p->tiles[tile] : a, to = !p ? 0 : p->numbers ? p->tiles[tile + 1] : a + size;
            if (from == to && !run->bias) continue;
            memset(sums, 0, (size_t)run->count * TILE_ROWS * sizeof *sums);
            if (from < to) walk_to(walks + r, p, a == first ? -1 : from, from, places);
            for (int64_t row = from, next; row < to; row = next) {
                next = marks_of(places, values, ends, p, walks + r, row, to);
                const int64_t start = number_of(p, row), n = ends[next - row - 1];
                if (p->steps || p->type != TS_FLOAT32)
                    round_marks(values, values + TOGETHER + width + 16, places, n, p, base, start * width, form);
                for (int64_t k = n; k < n + 8; k++) places[k] = 0, values[k] = 0;
                for (int64_t own = row, k = 0; own < next; k = ends[own++ - row]) {
                    const int64_t number = number_of(p, own);
                    sum_row(sums + (number - a), run, x, turned, width, places + k, values + k, ends[own - row] - k,
                            (number - start) * width);
                }
            }
            for (int64_t j = 0; j < run->count; j++) {
                float *own = y + (run->first + j) * stride + a;
                for (int64_t k = 0; k < size; k++) own[k] += sums[j * TILE_ROWS + k];
                for (int64_t k = 0; run->bias && k < size; k++) own[k] += run->bias[a + k] - bias[a + k];
            }
        }
    }
}
