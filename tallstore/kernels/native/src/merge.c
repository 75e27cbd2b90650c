/* Models merged from several tasks' vectors: rows are summed while they are in the cache. */
#include "steps.h"

enum { RUN = 4096 };

/* Rows of one window by the gaps between their marks, all rows' behind each other. A row without any is 0. */
typedef struct {
    int64_t count;
    const uint8_t *gaps;
    const int64_t *gap_at; /* count + 1: where each row's begin */
    const uint8_t *signs;
    const int64_t *sign_at;
    const void *scales; /* of the type that is computed in */
} ts_rows;

#define REAL float
#define NAMED(name) name##_f32
#include "merge_rows.h"
#undef REAL
#undef NAMED
#define REAL double
#define NAMED(name) name##_f64
#include "merge_rows.h"
