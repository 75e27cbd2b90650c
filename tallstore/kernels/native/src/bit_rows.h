/* Rows of a task whose marks are a bitmap of few levels, sixteen elements at a time, on processors that spread bits. */
#ifndef TS_BIT_ROWS_H
#define TS_BIT_ROWS_H

#include "packed_walk.h"

/* Whether `rows_by_bits` is for these, and a base of this type. */
static inline bool ts_goes_by_bits(const ts_packed_rows *p, int32_t form) {
#if defined(__AVX512F__) && defined(__BMI2__)
    return form == TS_FLOAT32 && p->type == TS_FLOAT32 && !p->steps && p->form == BITMAP && p->bits <= 1 && !p->vector;
#else
    (void)p, (void)form;
    return false;
#endif
}

#if defined(__AVX512F__) && defined(__BMI2__)
/* Marks with rare levels, one after the other: the next one's number and level; and where a walk may begin to find it. */
typedef struct {
    int64_t mark, level, from, common, next, behind;
} rare_marks;

static inline void next_rare(rare_marks *r, const ts_packed_rows *p) {
    const int64_t bits = p->rare_gap_bits + p->table_bits, most = ((int64_t)1 << p->rare_gap_bits) - 1;
    r->from = r->next, r->common = r->behind, r->mark = INT64_MAX;
    while (r->next < p->rare_count) {
        const int64_t own = wide_field(p->rare, r->next++, bits), gap = own & most;
        r->behind += gap + (gap != most);
        if (gap == most) continue;
        r->mark = r->behind - 1, r->level = own >> p->rare_gap_bits;
        return;
    }
}

/* Rows [from, to) of those that are held: the base's, and what marks of a bitmap with one or two common levels stand for. Row
 * `a` of the tensor is the tile's first one; rows are `pitch` apart; base: all rows. The walk is in or before row `from`. */
static void rows_by_bits(float *tile, int64_t pitch, const float *base, const ts_packed_rows *p, ts_walk *w, int64_t a, int64_t from,
                     int64_t to) {
    const int64_t width = p->width;
    rare_marks rare = {0, 0, 0, 0, w->rare, w->common};
    int64_t mark = w->mark;
    for (int64_t at = w->place, size; at < from * width; at += size) {
        size = TS_MIN(64 - (at & 7), from * width - at);
        const uint64_t bits = ts_load64(p->places + (at >> 3)) >> (at & 7);
        mark += __builtin_popcountll(size < 64 ? bits & ~(~(uint64_t)0 << size) : bits);
    }
    do next_rare(&rare, p);
    while (rare.mark < mark);
    for (int64_t row = from; row < to; row++) {
        const int64_t number = number_of(p, row), start = number * width;
        float *own = tile + (number - a) * pitch;
        for (int64_t c = 0, stop; c < width; c = stop) { /* what has one table */
            const float *table = p->tables + ((start + c) >> p->shift << p->table_bits);
            const __m512 low = _mm512_set1_ps(table[0]), high = _mm512_set1_ps(table[p->bits ? 1 : 0]);
            stop = p->shift > 60 ? width : TS_MIN(width, (((start + c) >> p->shift) + 1 << p->shift) - start);
            for (int64_t k = c; k < stop; k += 16) {
                const int64_t at = row * width + k;
                const __mmask16 all = (__mmask16)(stop - k < 16 ? (1u << (stop - k)) - 1 : 0xFFFF);
                const uint32_t bits = ts_load32(p->places + (at >> 3)) >> (at & 7) & all;
                const uint32_t levels = p->bits ? ts_load32(p->levels + (mark >> 3)) >> (mark & 7) : 0;
                const __m512 value = _mm512_mask_blend_ps((__mmask16)_pdep_u32(levels, bits), low, high);
                const __m512 before = _mm512_maskz_loadu_ps(all, base + start + k);
                _mm512_mask_storeu_ps(own + k, all, _mm512_mask_add_ps(before, (__mmask16)bits, before, value));
                const int64_t after = mark + __builtin_popcount(bits);
                for (; rare.mark < after; next_rare(&rare, p)) {
                    const int64_t place = k + __builtin_ctz(_pdep_u32(1u << (rare.mark - mark), bits));
                    own[place] = base[start + place] + table[rare.level];
                }
                mark = after;
            }
        }
    }
    w->place = to * width, w->mark = mark, w->rare = rare.from, w->common = rare.common;
}

#else

static inline void rows_by_bits(float *tile, int64_t pitch, const float *base, const ts_packed_rows *p, ts_walk *w, int64_t a,
                                int64_t from, int64_t to) {
    (void)tile, (void)pitch, (void)base, (void)p, (void)w, (void)a, (void)from, (void)to;
}

#endif
#endif
