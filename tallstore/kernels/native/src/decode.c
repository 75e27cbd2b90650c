/* A task's tensors from the base's: chunks are read, hashed, put together and changed while they are in the cache. */
#define _POSIX_C_SOURCE 200809L
#include <unistd.h>

#include "fused.h"
#include "planes.h"

/* Elements at a time: base, steps and output stay in the first-level cache. */
enum { RUN = 2048 };
/* The same of gaps, which have no steps; the ends of runs cost them something. */
enum { GAP_RUN = 1 << 15 };
/* Bytes at a time that are read or put together: they stay in the second-level cache. */
enum { READ = 1 << 17 };

/* Where a chunk's base comes from. */
typedef struct {
    int32_t item;   /* bytes of a word in planes; 0: a file */
    int32_t handle; /* the file's descriptor */
    int64_t at;     /* the file's byte that is the chunk's first */
    const uint8_t *planes[4];
    uint64_t digest; /* set: the XXH3-64 of all that came out of the file */
} ts_source;

static bool has_nan(const void *base, int64_t n, int32_t form) {
    int odd = 0;
    if (form == TS_FLOAT32) {
        const float *values = base;
        for (int64_t i = 0; i < n; i++) odd |= values[i] != values[i];
    } else if (form == TS_FLOAT64) {
        const double *values = base;
        for (int64_t i = 0; i < n; i++) odd |= values[i] != values[i];
    } else {
        const uint16_t *words = base, infinite = form == TS_BFLOAT16 ? 0x7F80 : 0x7C00;
        for (int64_t i = 0; i < n; i++) odd |= (words[i] & 0x7FFF) > infinite;
    }
    return odd != 0;
}

static size_t item_of(int32_t form) { return form == TS_FLOAT64 ? 8 : form == TS_FLOAT32 ? 4 : 2; }

static void add_gaps(void *out, int64_t n, int32_t form, const ts_delta *d, ts_cursor *cursor) {
    const ts_marks marks = {d->codes, d->code_bytes, d->signs, d->sign_bytes};
    const float plus = (float)d->scale;
    if (form == TS_FLOAT64) add_gaps_f64(out, n, &marks, cursor, d->scale, -d->scale);
    else if (form == TS_FLOAT32) add_gaps_f32(out, n, &marks, cursor, plus, -plus);
    else if (form == TS_BFLOAT16) add_gaps_bfloat16(out, n, &marks, cursor, plus, -plus);
    else add_gaps_float16(out, n, &marks, cursor, plus, -plus);
}

/* steps of elements [i, i + n), and whether they are subtracted. */
static bool steps_f32(float *restrict out, const ts_delta *d, int64_t i, int64_t n) {
    float looked[RUN];
    if (d->kind == TS_VALUES) {
        memcpy(out, d->values + i, (size_t)n * sizeof *out);
        return false;
    }
    if (d->kind == TS_LEVELS) {
        ts_look_up(out, d->codes, d->table, i, n, d->bits);
        return false;
    }
    if (d->levels) ts_look_up(looked, d->levels, d->table, i, n, 4);
    ts_mask_f32(out, d, d->levels ? looked : d->values ? d->values + i : NULL, i, n);
    return true;
}

static bool steps_f64(double *restrict out, const ts_delta *d, int64_t i, int64_t n) {
    float looked[RUN];
    if (d->kind == TS_MASK) {
        if (d->levels) ts_look_up(looked, d->levels, d->table, i, n, 4);
        ts_mask_f64(out, d, d->levels ? looked : d->values ? d->values + i : NULL, i, n);
        return true;
    }
    if (d->kind == TS_LEVELS) ts_look_up(looked, d->codes, d->table, i, n, d->bits);
    else memcpy(looked, d->values + i, (size_t)n * sizeof *looked);
    for (int64_t k = 0; k < n; k++) out[k] = looked[k];
    return false;
}

/* out = base ± steps, rounded to 16 bits; of a sum that is no number, a quiet NaN. */
static void sum_narrow(uint16_t *out, const void *base, const float *steps, bool minus, int64_t n, int32_t form) {
    float sums[RUN];
    int odd = 0;
    ts_widen(sums, base, n, form);
    if (minus) for (int64_t k = 0; k < n; k++) sums[k] -= steps[k], odd |= sums[k] != sums[k];
    else for (int64_t k = 0; k < n; k++) sums[k] += steps[k], odd |= sums[k] != sums[k];
    ts_narrow(out, sums, n, form);
    for (int64_t k = 0; odd && k < n; k++)
        if (sums[k] != sums[k]) out[k] = form == TS_BFLOAT16 ? 0x7FC0 : 0x7E00;
}

/* One run of a mask over a vector or of a delta, in whatever way there is no faster one for. */
static void add_steps(void *out, const void *base, int64_t i, int64_t n, int32_t form, const ts_delta *d) {
    float steps[RUN];
    if (form == TS_FLOAT64) {
        double *own = out, wide[RUN];
        const double *before = base;
        const bool minus = steps_f64(wide, d, i, n);
        if (minus) for (int64_t k = 0; k < n; k++) own[k] = before[k] - wide[k];
        else for (int64_t k = 0; k < n; k++) own[k] = before[k] + wide[k];
        return;
    }
    const bool minus = steps_f32(steps, d, i, n);
    if (form != TS_FLOAT32) {
        sum_narrow(out, base, steps, minus, n, form);
        return;
    }
    float *own = out;
    const float *before = base;
    if (minus) for (int64_t k = 0; k < n; k++) own[k] = before[k] - steps[k];
    else for (int64_t k = 0; k < n; k++) own[k] = before[k] + steps[k];
}

/* One run; out may be base. Whether it was written, which is known before anything is: of a base's NaN the reference
 * says what becomes of its bits, but where types of 32 and 64 bits have them pass or add to them as everywhere. */
static bool change(void *out, const void *base, int64_t i, int64_t n, int32_t form, const ts_delta *d, ts_cursor *cursor) {
    const size_t item = item_of(form);
    if (d->kind != TS_NOTHING && (item == 2 || d->kind == TS_MASK) && has_nan(base, n, form)) return false;
    if (d->kind == TS_NOTHING || d->kind == TS_GAPS) {
        if (out != base) memcpy(out, base, (size_t)n * item);
        if (d->kind == TS_GAPS) add_gaps(out, n, form, d, cursor);
        return true;
    }
    const int64_t done = fused(out, base, i, n, d, form);
    const size_t behind = (size_t)done * item;
    if (done < n) add_steps((char *)out + behind, (const char *)base + behind, i + done, n - done, form, d);
    return true;
}

/* out = base with a task's share added, of a chunk's elements [start, start + n). `out` may be `base`; else they do not
 * overlap. `start` is a multiple of 8, and 0 or behind the last call's run where the share is gaps. Returns the elements
 * that are done: fewer than n where a run of RUN or fewer has a NaN that the reference must see; it is as it was, and
 * the cursor stands before it. */
TS_KERNEL(int64_t, apply)
(void *out, const void *base, int64_t start, int64_t n, int32_t form, const ts_delta *d, ts_cursor *cursor) {
    const size_t item = item_of(form);
    if (start < 0 || n < 0 || (d->kind != TS_GAPS && start + n > d->n)) return 0;
    if ((d->kind == TS_MASK || d->kind == TS_LEVELS) && (start + n) * d->bits > 8 * d->code_bytes) return 0;
    const int64_t run = d->kind == TS_GAPS ? GAP_RUN : RUN;
    for (int64_t a = 0; a < n; a += run) {
        const int64_t size = TS_MIN(n - a, run);
        char *own = (char *)out + (size_t)a * item;
        if (!change(own, (const char *)base + (size_t)a * item, start + a, size, form, d, cursor)) return a;
    }
    return n;
}

static bool read_all(uint8_t *out, int64_t size, int handle, int64_t at) {
    while (size > 0) {
        const ssize_t got = pread(handle, out, (size_t)size, (off_t)at);
        if (got <= 0) return false;
        out += got, at += got, size -= got;
    }
    return true;
}

static bool fetch(uint8_t *out, int64_t a, int64_t size, const ts_source *s, void *hash) {
    if (s->item == 0) return read_all(out, size, s->handle, s->at + a) && ts_xxh3.update(hash, out, (size_t)size) == 0;
    if (s->item == 2) {
        const int64_t i = a / 2;
        ts_join_2((uint16_t *)(void *)out, s->planes[0] + i, s->planes[1] + i, size / 2);
    } else {
        const int64_t i = a / 4;
        ts_join_4((uint32_t *)(void *)out, s->planes[0] + i, s->planes[1] + i, s->planes[2] + i, s->planes[3] + i, size / 4);
    }
    return true;
}

/* A whole chunk of `size` bytes into `out`, out of a source, with a task's share added (d: NULL for none). What is read
 * is hashed before it is changed. Returns whether all of it was done; where not, `out` holds anything. */
TS_KERNEL(int32_t, fill)(uint8_t *out, int64_t size, ts_source *source, int32_t form, const ts_delta *d) {
    ts_cursor cursor = {0, 0, 0, 0};
    void *hash = NULL;
    const int64_t item = d ? (int64_t)item_of(form) : 1;
    bool done = true;
    if (source->item == 0) {
        hash = ts_xxh3.create ? ts_xxh3.create() : NULL;
        if (!hash || ts_xxh3.reset(hash)) done = false;
    }
    for (int64_t a = 0; done && a < size; a += READ) {
        const int64_t length = TS_MIN(size - a, READ);
        done = fetch(out + a, a, length, source, hash);
        const int64_t n = length / item;
        if (done && d) done = TS_NAME(apply)(out + a, out + a, a / item, n, form, d, &cursor) == n;
    }
    if (hash) {
        source->digest = ts_xxh3.digest(hash);
        ts_xxh3.destroy(hash);
    }
    return done;
}

/* Only read and hash `size` bytes of a file's source. Whether they were there. */
TS_KERNEL(int32_t, check)(int64_t size, ts_source *source) {
    uint8_t room[1 << 15];
    void *hash = ts_xxh3.create ? ts_xxh3.create() : NULL;
    bool done = hash && ts_xxh3.reset(hash) == 0;
    for (int64_t a = 0; done && a < size; a += (int64_t)sizeof room)
        done = fetch(room, a, TS_MIN(size - a, (int64_t)sizeof room), source, hash);
    if (hash) {
        source->digest = ts_xxh3.digest(hash);
        ts_xxh3.destroy(hash);
    }
    return done;
}

/* Runs of a file's elements of `item` bytes, one behind the other; `first` is the file's byte that is element 0's first,
 * and runs[2k], runs[2k + 1] a run's first element and the one behind its last. Whether all were there. */
TS_KERNEL(int32_t, gather)
(uint8_t *out, int64_t size, int32_t handle, int64_t first, int64_t item, const int64_t *runs, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        const int64_t length = (runs[2 * k + 1] - runs[2 * k]) * item;
        if (length < 0 || length > size || !read_all(out, length, handle, first + runs[2 * k] * item)) return 0;
        out += length, size -= length;
    }
    return size == 0;
}

/* Words of `item` bytes, 2 or 4, from planes of their bytes. */
TS_KERNEL(void, join)(uint8_t *out, int64_t n, const ts_source *source) { fetch(out, 0, n * source->item, source, NULL); }
