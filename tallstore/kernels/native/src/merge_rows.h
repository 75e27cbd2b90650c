/* Merging for one type of numbers: included by merge.c with REAL and NAMED(name). Sums of many rows are added up in four
 * levels of 16, as `tallstore.recipes.ordered_sum` does. */

static void NAMED(carry)(REAL levels[4][RUN], int64_t count, int64_t n) {
    for (int level = 0; count % 16 == 0 && level < 3; count /= 16, level++)
        for (int64_t i = 0; i < n; i++) levels[level + 1][i] += levels[level][i], levels[level][i] = 0;
}

static void NAMED(begin)(REAL levels[4][RUN], int32_t *users, int64_t count) {
    memset(levels, 0, (count >= 16 ? 4 : 1) * sizeof levels[0]);
    memset(users, 0, RUN * sizeof *users);
}

static void NAMED(total)(REAL levels[4][RUN], int64_t count, int64_t n) {
    if (count < 16) return;
    for (int level = 1; level < 4; level++)
        for (int64_t i = 0; i < n; i++) levels[0][i] += levels[level][i];
}

/* The sum of rows, `stride` elements apart, into levels[0], and how many of them are not 0. */
static void NAMED(sum_rows)(REAL levels[4][RUN], int32_t *users, const REAL *rows, int64_t stride, int64_t count, int64_t n) {
    NAMED(begin)(levels, users, count);
    for (int64_t t = 0; t < count; t++) {
        const REAL *row = rows + t * stride;
        for (int64_t i = 0; i < n; i++) levels[0][i] += row[i], users[i] += row[i] != 0;
        NAMED(carry)(levels, t + 1, n);
    }
    NAMED(total)(levels, count, n);
}

static void NAMED(move)(REAL *out, const REAL *total, const int32_t *users, int64_t n, int32_t least, REAL inner, REAL outer) {
    for (int64_t i = 0; i < n; i++) {
        const REAL step = total[i] * inner * (REAL)(users[i] >= least) * outer;
        const REAL moved = out[i] + step;
        out[i] = step == 0 ? out[i] : moved;
    }
}

static double NAMED(squares)(const REAL *values, int64_t n) {
    double sums[8] = {0}, total = 0;
    const int64_t whole = n & ~(int64_t)7;
    for (int64_t i = 0; i < whole; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += (double)values[i + j] * (double)values[i + j];
    for (int64_t i = whole; i < n; i++) sums[0] += (double)values[i] * (double)values[i];
    for (int j = 0; j < 8; j++) total += sums[j];
    return total;
}

/* out += outer · (inner · Σ rows where at least so many of T rows are not 0, else 0); to elements to which 0 is added it
 * adds nothing. rows: shape (T, n). */
TS_EXPORT void TS_NAME(NAMED(merge_rows))
(REAL *out, const REAL *rows, int64_t count, int64_t n, int32_t least, double inner, double outer) {
    REAL levels[4][RUN];
    int32_t users[RUN];
    for (int64_t a = 0; a < n; a += RUN) {
        const int64_t size = TS_MIN(n - a, RUN);
        NAMED(sum_rows)(levels, users, rows + a, n, count, size);
        NAMED(move)(out + a, levels[0], users, size, least, (REAL)inner, (REAL)outer);
    }
}

static double NAMED(measure)(double *squares, const REAL *rows, int64_t stride, int64_t count, int64_t n, int32_t least, REAL inner) {
    REAL levels[4][RUN];
    int32_t users[RUN];
    for (int64_t t = 0; t < count; t++) squares[t] += NAMED(squares)(rows + t * stride, n);
    NAMED(sum_rows)(levels, users, rows, stride, count, n);
    for (int64_t i = 0; i < n; i++) levels[0][i] = levels[0][i] * inner * (REAL)(users[i] >= least);
    return NAMED(squares)(levels[0], n);
}

/* The sum of squares of what merge_rows adds, outer factor 1; those of the rows are added to squares[T]. */
TS_EXPORT double TS_NAME(NAMED(measure_rows))
(double *squares, const REAL *rows, int64_t count, int64_t n, int32_t least, double inner) {
    double total = 0;
    for (int64_t a = 0; a < n; a += RUN)
        total += NAMED(measure)(squares, rows + a, n, count, TS_MIN(n - a, RUN), least, (REAL)inner);
    return total;
}

/* The next n elements of rows that are ± s at marks. */
static void NAMED(next_rows)(REAL *rows, int64_t n, const ts_rows *given, ts_cursor *cursors) {
    for (int64_t t = 0; t < given->count; t++) {
        const ts_marks marks = {
            given->gaps + given->gap_at[t], given->gap_at[t + 1] - given->gap_at[t],
            given->signs + given->sign_at[t], given->sign_at[t + 1] - given->sign_at[t],
        };
        const REAL scale = ((const REAL *)given->scales)[t];
        memset(rows + t * RUN, 0, RUN * sizeof *rows);
        if (marks.count) NAMED(add_gaps)(rows + t * RUN, n, &marks, &cursors[t], scale, -scale);
    }
}

/* What merge_rows does, of rows by their gaps. rows: room for T · RUN numbers; cursors: T of them, all 0. */
TS_EXPORT void TS_NAME(NAMED(merge_gaps))
(REAL *out, int64_t n, const ts_rows *given, REAL *rows, ts_cursor *cursors, int32_t least, double inner, double outer) {
    REAL levels[4][RUN];
    int32_t users[RUN];
    for (int64_t a = 0; a < n; a += RUN) {
        const int64_t size = TS_MIN(n - a, RUN);
        NAMED(next_rows)(rows, size, given, cursors);
        NAMED(sum_rows)(levels, users, rows, RUN, given->count, size);
        NAMED(move)(out + a, levels[0], users, size, least, (REAL)inner, (REAL)outer);
    }
}

/* What measure_rows does, of such rows. Behind the last element there are zeros, which add nothing. */
TS_EXPORT double TS_NAME(NAMED(measure_gaps))
(double *squares, int64_t n, const ts_rows *given, REAL *rows, ts_cursor *cursors, int32_t least, double inner) {
    double total = 0;
    for (int64_t a = 0; a < n; a += RUN) {
        NAMED(next_rows)(rows, TS_MIN(n - a, RUN), given, cursors);
        total += NAMED(measure)(squares, rows, RUN, given->count, RUN, least, (REAL)inner);
    }
    return total;
}

/* The same of rows s·m·v, still packed: shape (T, row_bytes). Those that are on are counted, whatever v is. whole: v
 * itself is added, in place of the sum of the rows. */
TS_EXPORT void TS_NAME(NAMED(merge_masks))
(REAL *out, const REAL *vector, int64_t n, const uint8_t *packed, int64_t row_bytes, int64_t count, int32_t bits,
 const REAL *scales, int32_t whole, int32_t least, double inner, double outer) {
    REAL levels[4][RUN];
    int32_t users[RUN];
    for (int64_t a = 0; a < n; a += RUN) {
        const int64_t size = TS_MIN(n - a, RUN);
        NAMED(begin)(levels, users, count);
        for (int64_t t = 0; t < count; t++) {
            const uint8_t *row = packed + t * row_bytes;
            for (int64_t i = 0; i < size; i++) {
                const unsigned symbol = ts_symbol(row, a + i, bits);
                const REAL kept = scales[t] * vector[a + i];
                levels[0][i] += symbol == 1 ? kept : symbol ? -kept : 0;
                users[i] += symbol != 0;
            }
            if (!whole) NAMED(carry)(levels, t + 1, size);
        }
        if (whole) memcpy(levels[0], vector + a, (size_t)size * sizeof *vector);
        else NAMED(total)(levels, count, size);
        NAMED(move)(out + a, levels[0], users, size, least, (REAL)inner, (REAL)outer);
    }
}
