/* A row of weights: elements of a tensor in a file, or in memory, as float32 whatever narrower type they have. */
#ifndef TS_ROWS_H
#define TS_ROWS_H

#include <unistd.h>

#include "half.h"

/* `kernels.native.encode` declares the same. */
typedef struct {
    int32_t form;     /* of its elements: float32, bfloat16 or float16 */
    int32_t handle;   /* the file's descriptor; below 0: in memory */
    int64_t at;       /* the file's byte that is element 0's first */
    const void *data; /* element 0 */
} ts_row;

static inline int64_t ts_size_of(const ts_row *row) { return row->form == TS_FLOAT32 ? 4 : 2; }

static inline bool ts_read_all(void *out, int64_t size, int handle, int64_t at) {
    char *to = out;
    while (size > 0) {
        const ssize_t got = pread(handle, to, (size_t)size, (off_t)at);
        if (got <= 0) return false;
        to += got, at += got, size -= got;
    }
    return true;
}

/* Elements [a, a + n) as float32, and the bits of a narrow row in `words`. Whether they were there. */
static inline bool ts_fetch(float *out, uint16_t *words, const ts_row *row, int64_t a, int64_t n) {
    const int64_t size = ts_size_of(row);
    void *to = row->form == TS_FLOAT32 ? (void *)out : (void *)words;
    if (row->handle < 0) memcpy(to, (const char *)row->data + a * size, (size_t)(n * size));
    else if (!ts_read_all(to, n * size, row->handle, row->at + a * size)) return false;
    if (row->form != TS_FLOAT32) ts_widen(out, words, n, row->form);
    return true;
}

/* What was seen of a row beside its base: whether any bit differs, and the largest magnitude as bits. */
typedef struct {
    uint32_t differs, largest;
} ts_seen;

static inline void ts_notice(ts_seen *seen, const float *own, const float *base, int64_t n) {
    uint32_t differs = 0, largest = 0;
    for (int64_t k = 0; k < n; k++) {
        const uint32_t word = ts_bits(own[k]), size = word & 0x7FFFFFFFu;
        differs |= word ^ ts_bits(base[k]);
        largest = largest > size ? largest : size;
    }
    seen->differs |= differs != 0;
    seen->largest = seen->largest > largest ? seen->largest : largest;
}

#endif
