/* Layers of a mixed batch with each task's own rows: a tile of them at a time is made and multiplied, and never written.
 * For tasks that move so much of a layer that their marks are better put into rows once than walked with every token. */
#include "bit_rows.h"

/* Columns whose products are added up by themselves: sums of so many, added up, are nearer than one of all. */
enum { ADDED = 128 };
/* Elements between rows of a tile: rows of a power of two would push each other out of the cache. */
enum { APART = 16 };

/* sums[row · TOKENS + token] = Σ rows · columns, ROWS rows and N vectors of tokens side by side; each sum is in the columns'
 * order, whatever other tokens there are. rows: `pitch` apart. Of column k, vector j begins at columns[j · NEXT + k · STEP],
 * and its sums at sums[j · BESIDE]. A block of columns is met by all rows while it is near the processor. */
#define DEFINE_PRODUCT(NAME, VECTOR, ROWS, N, NEXT, STEP, BESIDE, FUSED)                                             \
    static void NAME(float *sums, const float *tile, int64_t pitch, int64_t width, const float *columns) {            \
        const VECTOR none = {0};                                                                                      \
        for (int64_t j = 0; j < N; j++)                                                                               \
            for (int64_t row = 0; row < TILE_ROWS; row++) *(VECTOR *)(void *)(sums + row * TOKENS + BESIDE * j) = none; \
        for (int64_t a = 0; a < width; a += ADDED)                                                                    \
            for (int64_t row = 0; row < TILE_ROWS; row += ROWS) {                                                     \
                const float *rows = tile + row * pitch;                                                               \
                const int64_t end = TS_MIN(a + ADDED, width);                                                         \
                VECTOR each[ROWS][N] = {{{0}}};                                                                       \
                for (int64_t k = a; k < end; k++)                                                                     \
                    for (int i = 0; i < ROWS; i++)                                                                    \
                        for (int j = 0; j < N; j++) {                                                                 \
                            const VECTOR at = *(const VECTOR *)(const void *)(columns + j * (NEXT) + k * STEP);      \
                            each[i][j] = FUSED(each[i][j], at, rows[i * pitch + k] - none);                           \
                        }                                                                                             \
                for (int i = 0; i < ROWS; i++)                                                                        \
                    for (int j = 0; j < N; j++) *(VECTOR *)(void *)(sums + (row + i) * TOKENS + BESIDE * j) += each[i][j]; \
            }                                                                                                         \
    }
#if defined(__AVX512F__)
typedef float ts_sixteen __attribute__((vector_size(64), aligned(4), may_alias));

static inline ts_sixteen plus_product_16(ts_sixteen sum, ts_sixteen a, ts_sixteen b) {
    return (ts_sixteen)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}
enum { AT_ONCE = 2 }; /* groups of TOKENS that registers hold the sums of */
DEFINE_PRODUCT(product_32, ts_sixteen, 8, 2, width *TOKENS, TOKENS, TILE_ROWS *TOKENS, plus_product_16)
DEFINE_PRODUCT(product_16, ts_sixteen, 8, 1, 0, TOKENS, 0, plus_product_16)
#else
enum { AT_ONCE = 1 };
DEFINE_PRODUCT(product_16, ts_eight, 4, 2, 8, TOKENS, 8, plus_product)
#define product_32 product_16
#endif
DEFINE_PRODUCT(product_8, ts_eight, 8, 1, 0, 8, 0, plus_product)

/* Rows [a, a + size) of a tensor, `pitch` apart in the tile: the base's, and the marks of rows [from, to) of those that the task
 * holds put into them. p: NULL for the base's alone. */
static void own_rows(float *tile, int64_t pitch, const float *base, int64_t width, const ts_packed_rows *p, ts_walk *w, int64_t a,
                     int64_t size, int64_t from, int64_t to, int32_t *places, float *values) {
    int64_t ends[TILE_ROWS];
    const bool plain = p && p->type == TS_FLOAT32 && !p->steps;
    if (from < to) walk_to(w, p, from);
    const bool by_bits = p && ts_goes_by_bits(p, TS_FLOAT32);
    for (int64_t k = 0; k < size && !(by_bits && to - from == size); k++)
        memcpy(tile + k * pitch, base + (a + k) * width, (size_t)width * sizeof *tile);
    if (by_bits) {
        if (from < to) rows_by_bits(tile, pitch, base, p, w, a, from, to);
        return;
    }
    for (int64_t row = from, next; row < to; row = next) {
        next = marks_of(places, values, ends, p, w, row, to);
        for (int64_t each = row, k = 0; each < next; each++) { /* places are counted from the first row's beginning */
            const int64_t number = number_of(p, each), n = ends[each - row];
            float *own = tile + (number - a) * pitch - (number - number_of(p, row)) * p->width;
            if (plain)
                for (; k < n; k++) own[places[k]] += values[k];
            else
                for (; k < n; k++) own[places[k]] = moved(own[places[k]], values[k], p);
        }
    }
}

/* y = x · θ̂ᵀ + bias of runs of tokens, for outputs [first, last); `first` is a multiple of TILE_ROWS. y: outputs `stride`
 * apart; turned: what token_columns made of every run; base: θ0; bias: the base's, or NULL. walks: room for one of each
 * run; places, values: for TOGETHER, a row and 16 more; tile: for TILE_ROWS rows, and APART more of each. */
TS_KERNEL(void, own_outputs)
(float *y, int64_t stride, const float *turned, const float *base, const float *bias, const ts_run *runs, int64_t count,
 int64_t first, int64_t last, int64_t width, ts_walk *walks, int32_t *places, float *values, float *tile) {
    const int64_t pitch = width + APART;
    float sums[AT_ONCE * TILE_ROWS * TOKENS];
    for (int64_t a = first; a < last; a += TILE_ROWS) {
        const int64_t number = a / TILE_ROWS, size = TS_MIN(TILE_ROWS, last - a);
        memset(tile + size * pitch, 0, (size_t)((TILE_ROWS - size) * pitch) * sizeof *tile);
        for (int64_t r = 0; r < count; r++) {
            const ts_run *run = runs + r;
            const ts_packed_rows *p = run->packed;
            const float *more = run->bias ? run->bias : bias, *from = turned + run->columns;
            if (a == first) walks[r] = (ts_walk){0};
            own_rows(tile, pitch, base, width, p, walks + r, a, size, !p ? 0 : p->numbers ? p->tiles[number] : a,
                     !p ? 0 : p->numbers ? p->tiles[number + 1] : a + size, places, values);
            for (int64_t j = 0, tokens; j < run->count; j += tokens, from += width * padded(tokens)) {
                tokens = TS_MIN(run->count - j, AT_ONCE * TOKENS);
                if (tokens <= 8) product_8(sums, tile, pitch, width, from);
                else if (tokens > 24 && AT_ONCE > 1) product_32(sums, tile, pitch, width, from);
                else {
                    tokens = TS_MIN(tokens, TOKENS);
                    product_16(sums, tile, pitch, width, from);
                }
                for (int64_t i = 0; i < tokens; i++) {
                    const float *found = sums + i / TOKENS * (TILE_ROWS * TOKENS) + i % TOKENS;
                    float *out = y + (run->first + j + i) * stride + a;
                    for (int64_t k = 0; k < size; k++) out[k] = found[k * TOKENS] + (more ? more[a + k] : 0);
                }
            }
        }
    }
}
