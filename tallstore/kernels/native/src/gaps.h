/* Marks by the gaps between them: a gap is the number of zeros before a mark, bytes 255 (a continuation byte each) and
 * then one below 255. Signs are a bit per mark, 1 for minus; none at all where every mark is plus. */
#ifndef TS_GAPS_H
#define TS_GAPS_H

#include "half.h"

/* Where a walk through a list of gaps is. All 0 at a chunk's beginning; each run of elements goes on from the last. */
typedef struct {
    int64_t at;    /* gap bytes behind */
    int64_t mark;  /* marks behind */
    int64_t place; /* the element that the next gap counts from */
    int64_t first; /* the run's first element */
} ts_cursor;

typedef struct {
    const uint8_t *gaps;
    int64_t count; /* bytes of gaps */
    const uint8_t *signs;
    int64_t sign_bytes; /* 0: no signs */
} ts_marks;

static inline uint16_t ts_add_bfloat16(uint16_t word, float step) {
    float sum = ts_from_bfloat16(word) + step;
    return sum != sum ? 0x7FC0 : ts_to_bfloat16(sum);
}

static inline uint16_t ts_add_float16(uint16_t word, float step) {
#if defined(__F16C__)
    return _cvtss_sh(_cvtsh_ss(word) + step, _MM_FROUND_TO_NEAREST_INT);
#else
    return ts_to_float16(ts_from_float16(word) + step);
#endif
}

#define TS_ADD_FLOAT(element, step) ((element) + (step))

static inline bool ts_has_255(uint64_t word) { /* whether a byte of it is 255: ~word has a zero byte */
    return ((~word - 0x0101010101010101u) & word & 0x8080808080808080u) != 0;
}

static inline int64_t ts_sum_of_bytes(uint64_t word) {
    const uint64_t pairs = (word & 0x00FF00FF00FF00FFu) + ((word >> 8) & 0x00FF00FF00FF00FFu);
    return (int64_t)((pairs * 0x0001000100010001u) >> 48);
}

/* add_gaps_NAME(out, n, marks, cursor, plus, minus): out[i] = ADD(out[i], plus or minus) at every mark of the run of n
 * elements. Eight marks at a time as long as none of their gaps goes on and all of them are sure to lie in the run. */
#define TS_DEFINE_ADD_GAPS(NAME, TYPE, STEP, ADD)                                                                      \
    static inline void add_gaps_##NAME(TYPE *out, int64_t n, const ts_marks *m, ts_cursor *c, STEP plus, STEP minus) {      \
        const int64_t end = c->first + n;                                                                              \
        const bool is_signed = m->sign_bytes > 0;                                                                      \
        const STEP steps[2] = {plus, minus};                                                                           \
        const int64_t first = c->first;                                                                                \
        int64_t at = c->at, mark = c->mark, place = c->place;                                                          \
        while (at < m->count) {                                                                                        \
            if (at + 8 <= m->count && (!is_signed || (mark >> 3) + 8 <= m->sign_bytes)) {                              \
                uint64_t word = ts_load64(m->gaps + at);                                                               \
                if (!ts_has_255(word) && place + ts_sum_of_bytes(word) + 8 <= end) {                                   \
                    uint64_t negative = is_signed ? ts_load64(m->signs + (mark >> 3)) >> (mark & 7) : 0;               \
                    for (int k = 0; k < 8; k++, word >>= 8, negative >>= 1) {                                          \
                        place += (int64_t)(word & 255);                                                                \
                        out[place - first] = ADD(out[place - first], steps[negative & 1]);                             \
                        place++;                                                                                       \
                    }                                                                                                  \
                    at += 8, mark += 8;                                                                                \
                    continue;                                                                                          \
                }                                                                                                      \
            }                                                                                                          \
            const int64_t gap = m->gaps[at];                                                                           \
            if (place + gap >= end) break;                                                                             \
            at++, place += gap;                                                                                        \
            if (gap == 255) continue;                                                                                  \
            if (is_signed && (mark >> 3) >= m->sign_bytes) break;                                                      \
            const int negative = is_signed ? (m->signs[mark >> 3] >> (mark & 7)) & 1 : 0;                              \
            out[place - first] = ADD(out[place - first], steps[negative]);                                             \
            place++, mark++;                                                                                           \
        }                                                                                                              \
        c->at = at, c->mark = mark, c->place = place, c->first = end;                                                  \
    }

TS_DEFINE_ADD_GAPS(f32, float, float, TS_ADD_FLOAT)
TS_DEFINE_ADD_GAPS(f64, double, double, TS_ADD_FLOAT)
TS_DEFINE_ADD_GAPS(bfloat16, uint16_t, float, ts_add_bfloat16)
TS_DEFINE_ADD_GAPS(float16, uint16_t, float, ts_add_float16)
#endif
