/* Layers of a mixed batch: what tasks add to the outputs, and their own rows, straight from packed rows. */
#include "bit_rows.h"

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

/* Rows of a task's tensor, in the model's type: those of `index`, in any order, or with NULL n from `first` on.
 * base: all rows; places, values: room for a row. */
TS_KERNEL(void, packed_rows)
(void *out, const void *base, int32_t form, const ts_packed_rows *p, const int64_t *index, int64_t first, int64_t n,
 int32_t *places, float *values) {
    const size_t item = form == TS_FLOAT32 ? 4 : 2, size = (size_t)p->width * item;
    int64_t count;
    ts_walk w = {0};
    if (!index && ts_goes_by_bits(p, form)) {
        const int64_t from = held_at(p, first), to = held_at(p, first + n);
        if (to - from < n) memcpy(out, (const char *)base + (size_t)first * size, (size_t)n * size);
        if (from < to) walk_to(&w, p, from), rows_by_bits(out, p->width, base, p, &w, first, from, to);
        return;
    }
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
            if (a == first) walks[r] = (ts_walk){0}; /* before tiles are passed over: the room holds another call's */
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
