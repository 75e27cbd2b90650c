/* Layers of a mixed batch: what tasks add to the outputs, and their own rows, straight from packed rows. */
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

/* Where a walk is: gaps and marks behind it, and the element, of rows that are held, that the next gap counts from. */
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
        const int64_t gap = (int64_t)(ts_load32(p->places + (at * bits >> 3)) >> (at * bits & 7)) & most;
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
        const int64_t gap = (int64_t)(ts_load32(p->places + (at * bits >> 3)) >> (at * bits & 7)) & most, own = place + gap;
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
                const float *table = p->tables + ((start + c) >> p->shift << p->bits);
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
        values_of(values, places, n, p, start, (number_of(p, row - 1) + 1) * width - start, mark);
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

/* Of marks of a type D narrower than float32, what they add once it is rounded: task's element − base's. Of marks behind,
 * up to 7 are computed too. */
static void round_marks(float *restrict values, const int32_t *restrict places, int64_t n, const ts_packed_rows *p,
                        const void *base, int64_t start, int32_t form) {
    int64_t k = 0;
#if defined(__AVX2__)
    const __m256i half = _mm256_set1_epi32(0x7FFF), high = _mm256_set1_epi32((int32_t)0xFFFF0000u);
    const bool plain = form == TS_FLOAT32 && p->type == TS_BFLOAT16 && !p->steps;
    for (; plain && k < n; k += 8) {
        const __m256i at = _mm256_loadu_si256((const __m256i *)(const void *)(places + k));
        const __m256 before = _mm256_i32gather_ps((const float *)base + start, at, 4);
        const __m256i sum = _mm256_castps_si256(_mm256_add_ps(before, _mm256_loadu_ps(values + k)));
        const __m256i odd = _mm256_srli_epi32(_mm256_slli_epi32(sum, 15), 31);
        const __m256i after = _mm256_and_si256(_mm256_add_epi32(_mm256_add_epi32(sum, half), odd), high);
        _mm256_storeu_ps(values + k, _mm256_sub_ps(_mm256_castsi256_ps(after), before));
    }
#endif
    for (; k < n; k++) {
        const float before = base_at(base, start + places[k], form);
        values[k] = moved(before, values[k], p) - before;
    }
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

/* Bring a walk nearer to a row of those that are held: to the index's entry, if that is nearer than where it is. */
static void walk_to(ts_walk *w, const ts_packed_rows *p, int64_t row) {
    const int64_t *entry = p->index + 3 * (row / p->block);
    if (p->form != CODES && (w->place > row * p->width || entry[2] > w->place)) *w = (ts_walk){entry[0], entry[1], entry[2]};
}

/* Rows of a task's tensor, in the model's type: those of `index`, in any order, or with NULL n from `first` on.
 * base: all rows; places, values: room for a row. */
TS_KERNEL(void, packed_rows)
(void *out, const void *base, int32_t form, const ts_packed_rows *p, const int64_t *index, int64_t first, int64_t n,
 int32_t *places, float *values) {
    const size_t item = form == TS_FLOAT32 ? 4 : 2, size = (size_t)p->width * item;
    int64_t count;
    ts_walk w = {0, 0, 0};
    for (int64_t k = 0; k < n; k++) {
        const int64_t number = index ? index[k] : first + k, row = held_at(p, number);
        char *own = (char *)out + (size_t)k * size;
        memcpy(own, (const char *)base + (size_t)number * size, size);
        if (row >= p->rows || (p->numbers && p->numbers[row] != number)) continue;
        walk_to(&w, p, row);
        marks_of(places, values, &count, p, &w, row, row + 1);
        for (int64_t j = 0; j < count; j++) {
            const float value = moved(base_at(own, places[j], form), values[j], p);
            if (form == TS_FLOAT32) ((float *)(void *)own)[places[j]] = value;
            else ((uint16_t *)(void *)own)[places[j]] = narrow(value, form);
        }
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
            for (int64_t c = 0; c < width; c += 16) /* as much as a line of memory has */
                for (int64_t j = 0; j < side; j++)
                    for (int64_t k = c; k < TS_MIN(c + 16, width); k++) to[k * side + j] = j < size ? from[j * width + k] : 0;
            to += width * side;
        }
    }
}

static inline ts_eight plus_product(ts_eight sum, ts_eight a, ts_eight b) {
#if defined(__FMA__)
    return (ts_eight)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return sum + a * b;
#endif
}

/* sums[0 … 8·N) = Σ value · column, over a row's marks, four at a time; places of columns are counted from `own`. */
#define DEFINE_SUM(N)                                                                                             \
    static void sum_##N(float *sums, const float *x, const int32_t *places, const float *values, int64_t n, int64_t own) {\
        const ts_eight none = {0};                                                                                \
        ts_eight each[4][N] = {{{0}}};                                                                            \
        int64_t k = 0;                                                                                            \
        for (; k + 4 <= n; k += 4)                                                                                \
            for (int i = 0; i < 4; i++) {                                                                         \
                const ts_eight *at = (const ts_eight *)(const void *)(x + (places[k + i] - own) * (8 * N));       \
                for (int j = 0; j < N; j++) each[i][j] = plus_product(each[i][j], at[j], values[k + i] - none);   \
            }                                                                                                     \
        for (; k < n; k++) {                                                                                      \
            const ts_eight *at = (const ts_eight *)(const void *)(x + (places[k] - own) * (8 * N));               \
            for (int j = 0; j < N; j++) each[0][j] = plus_product(each[0][j], at[j], values[k] - none);           \
        }                                                                                                         \
        for (int j = 0; j < N; j++)                                                                               \
            ((ts_eight *)(void *)sums)[j] = (each[0][j] + each[1][j]) + (each[2][j] + each[3][j]);                \
    }
DEFINE_SUM(1)
DEFINE_SUM(2)

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

/* Sums of marks of rows [row, next) of those that are held with every token of a run, into sums[token · TILE_ROWS], by the
 * row's place in the tile that begins with row `a` of the tensor. `lines` lines of memory behind `ahead` are asked for with
 * each row: what is read next comes while this is computed. */
static void sum_rows(float *sums, const ts_run *run, const float *x, const float *turned, const int32_t *places,
                     const float *values, const int64_t *ends, int64_t row, int64_t next, int64_t a, const char *ahead,
                     int64_t lines) {
    const ts_packed_rows *p = run->packed;
    const int64_t width = p->width, start = number_of(p, row);
    const float *from = turned + run->columns;
    for (int64_t j = 0, size, side; j < run->count; j += size, from += width * side) {
        size = run->columns < 0 ? 1 : TS_MIN(run->count - j, TOKENS), side = padded(size);
        for (int64_t own = row, k = 0; own < next; k = ends[own++ - row]) {
            const int64_t number = number_of(p, own), n = ends[own - row] - k, at = (number - start) * width;
            float *to = sums + j * TILE_ROWS + (number - a), each[TOKENS];
            for (int64_t line = 0; !j && line < lines; line++, ahead += 64) __builtin_prefetch(ahead);
            if (run->columns < 0) *to = sum_alone(x + (run->first + j) * width, places + k, values + k, n, at);
            else {
                (side == 8 ? sum_1 : sum_2)(each, from, places + k, values + k, n, at);
                for (int64_t i = 0; i < size; i++) to[i * TILE_ROWS] = each[i];
            }
        }
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
            ts_eight sums[8], in_registers[8] = {{0}};
            int64_t c = 0;
            for (; c + 8 <= width; c += 8)
                for (int j = 0; j < 4; j++) {
                    const ts_eight own = *(const ts_eight *)(const void *)(each[j] + c);
                    in_registers[j] = plus_product(in_registers[j], own, *(const ts_eight *)(const void *)(one + c));
                    in_registers[4 + j] = plus_product(in_registers[4 + j], own, *(const ts_eight *)(const void *)(two + c));
                }
            for (int j = 0; j < 8; j++) sums[j] = in_registers[j];
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
 * walks: room for one of each run; sums: for TILE_ROWS of as many tokens as a run has; places, values: for TOGETHER, a row
 * and 16 more, and values for two rows at least. */
TS_KERNEL(void, packed_product)
(float *y, int64_t stride, const float *x, const float *turned, const void *base, int32_t form, const float *bias,
 const ts_run *runs, int64_t count, int64_t tokens, int64_t first, int64_t last, int64_t width, ts_walk *walks,
 int32_t *places, float *values, float *sums) {
    int64_t ends[TILE_ROWS];
    const int64_t item = form == TS_FLOAT32 ? 4 : 2, lines = tokens && count ? (width * item + 64 * count - 1) / (64 * count) : 0;
    for (int64_t a = first; a < last; a += TILE_ROWS) {
        const int64_t tile = a / TILE_ROWS, size = TS_MIN(TILE_ROWS, last - a);
        const char *ahead = (const char *)base + (a + TILE_ROWS) * width * item; /* what is read in the next tile */
        if (tokens) base_outputs(y, stride, x, tokens, base, form, bias, a, size, width, values);
        for (int64_t r = 0; r < count; r++) {
            const ts_run *run = runs + r;
            const ts_packed_rows *p = run->packed;
            const int64_t from = !p ? 0 : p->numbers ? p->tiles[tile] : a, to = !p ? 0 : p->numbers ? p->tiles[tile + 1] : a + size;
            if (a == first) walks[r] = (ts_walk){0, 0, 0}; /* before tiles are passed over: the room holds another call's */
            if (from == to && !run->bias) continue;
            memset(sums, 0, (size_t)run->count * TILE_ROWS * sizeof *sums);
            if (from < to) walk_to(walks + r, p, from);
            for (int64_t row = from, next; row < to; row = next) {
                next = marks_of(places, values, ends, p, walks + r, row, to);
                const int64_t start = number_of(p, row), n = ends[next - row - 1];
                for (int64_t k = n; k < n + 8; k++) places[k] = 0, values[k] = 0;
                if (p->steps || p->type != TS_FLOAT32) round_marks(values, places, n, p, base, start * width, form);
                sum_rows(sums, run, x, turned, places, values, ends, row, next, a, ahead, lines);
                ahead += 64 * lines * (next - row);
            }
            for (int64_t j = 0; j < run->count; j++) {
                float *own = y + (run->first + j) * stride + a;
                for (int64_t k = 0; k < size; k++) own[k] += sums[j * TILE_ROWS + k];
                for (int64_t k = 0; run->bias && k < size; k++) own[k] += run->bias[a + k] - bias[a + k];
            }
        }
    }
}
