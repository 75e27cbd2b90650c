/* Layers of a mixed batch with each task's own rows: a tile of them at a time is made and multiplied, and never written.
 * For tasks that move so much of a layer that their marks are better put into rows once than walked with every token. */
#include "packed_walk.h"

/* Columns whose products are added up by themselves: sums of so many, added up, are nearer than one of all. */
enum { ADDED = 128 };

/* sums[row · TOKENS + token] = Σ rows · columns, ROWS rows and N vectors of tokens side by side; each sum is in the columns'
 * order, whatever other tokens there are. */
#define DEFINE_PRODUCT(NAME, VECTOR, ROWS, N, FUSED)                                                                  \
    static void NAME(float *sums, const float *rows, int64_t width, const float *columns) {                           \
        enum { LANES = sizeof(VECTOR) / sizeof(float) };                                                              \
        const VECTOR none = {0};                                                                                      \
        memset(sums, 0, TILE_ROWS * TOKENS * sizeof *sums);                                                           \
        for (int64_t row = 0; row < TILE_ROWS; row += ROWS, rows += ROWS * width)                                     \
            for (int64_t a = 0, k = 0; a < width; a += ADDED) {                                                       \
                const int64_t end = TS_MIN(a + ADDED, width);                                                         \
                VECTOR each[ROWS][N] = {{{0}}};                                                                       \
                for (; k < end; k++) {                                                                                \
                    const VECTOR *at = (const VECTOR *)(const void *)(columns + k * (LANES * N));                     \
                    for (int i = 0; i < ROWS; i++)                                                                    \
                        for (int j = 0; j < N; j++) each[i][j] = FUSED(each[i][j], at[j], rows[i * width + k] - none); \
                }                                                                                                     \
                for (int i = 0; i < ROWS; i++)                                                                        \
                    for (int j = 0; j < N; j++) *(VECTOR *)(void *)(sums + (row + i) * TOKENS + LANES * j) += each[i][j]; \
            }                                                                                                         \
    }
#if defined(__AVX512F__)
typedef float ts_sixteen __attribute__((vector_size(64), aligned(4), may_alias));

static inline ts_sixteen plus_product_16(ts_sixteen sum, ts_sixteen a, ts_sixteen b) {
    return (ts_sixteen)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}
DEFINE_PRODUCT(product_16, ts_sixteen, 8, 1, plus_product_16)
#else
DEFINE_PRODUCT(product_16, ts_eight, 4, 2, plus_product)
#endif
DEFINE_PRODUCT(product_8, ts_eight, 8, 1, plus_product)

/* A tile's rows of a task: those of the base, and its marks put into them. */
static void own_rows(float *tile, const ts_packed_rows *p, ts_walk *w, int64_t a, int64_t from, int64_t to,
                     int32_t *places, float *values) {
    int64_t ends[TILE_ROWS];
    const bool plain = p->type == TS_FLOAT32 && !p->steps;
    if (from < to) walk_to(w, p, from);
    for (int64_t row = from, next; row < to; row = next) {
        next = marks_of(places, values, ends, p, w, row, to);
        float *own = tile + (number_of(p, row) - a) * p->width;
        const int64_t n = ends[next - row - 1];
        if (plain)
            for (int64_t k = 0; k < n; k++) own[places[k]] += values[k];
        else
            for (int64_t k = 0; k < n; k++) own[places[k]] = moved(own[places[k]], values[k], p);
    }
}

/* y = x · θ̂ᵀ + bias of runs of tokens, for outputs [first, last); `first` is a multiple of TILE_ROWS. y: outputs `stride`
 * apart; turned: what token_columns made of every run; base: θ0; bias: the base's, or NULL. walks: room for one of each
 * run; places, values: for TOGETHER, a row and 16 more; tile: for TILE_ROWS rows. */
TS_KERNEL(void, own_outputs)
(float *y, int64_t stride, const float *turned, const float *base, const float *bias, const ts_run *runs, int64_t count,
 int64_t first, int64_t last, int64_t width, ts_walk *walks, int32_t *places, float *values, float *tile) {
    float sums[TILE_ROWS * TOKENS];
    for (int64_t a = first; a < last; a += TILE_ROWS) {
        const int64_t number = a / TILE_ROWS, size = TS_MIN(TILE_ROWS, last - a);
        memset(tile + size * width, 0, (size_t)((TILE_ROWS - size) * width) * sizeof *tile);
        for (int64_t r = 0; r < count; r++) {
            const ts_run *run = runs + r;
            const ts_packed_rows *p = run->packed;
            const float *more = run->bias ? run->bias : bias, *from = turned + run->columns;
            memcpy(tile, base + a * width, (size_t)(size * width) * sizeof *tile);
            if (a == first) walks[r] = (ts_walk){0};
            if (p)
                own_rows(tile, p, walks + r, a, p->numbers ? p->tiles[number] : a,
                         p->numbers ? p->tiles[number + 1] : a + size, places, values);
            for (int64_t j = 0, tokens, side; j < run->count; j += tokens, from += width * side) {
                tokens = TS_MIN(run->count - j, TOKENS), side = padded(tokens);
                (side == 8 ? product_8 : product_16)(sums, tile, width, from);
                for (int64_t i = 0; i < tokens; i++) {
                    float *out = y + (run->first + j + i) * stride + a;
                    for (int64_t k = 0; k < size; k++) out[k] = sums[k * TOKENS + i] + (more ? more[a + k] : 0);
                }
            }
        }
    }
}
