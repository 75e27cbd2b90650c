/* Narrow floats and float32, whole arrays at a time. */
#include "half.h"

/* out[i] = the float32 that a bfloat16 or float16 is. */
TS_KERNEL(void, widen)(float *out, const uint16_t *words, int64_t n, int32_t form) { ts_widen(out, words, n, form); }

/* values[i] = the nearest number that bfloat16 or float16 has, as float32; infinite where that is too large for it. No NaN. */
TS_KERNEL(void, round_values)(float *values, int64_t n, int32_t form) {
    uint16_t words[1024];
    for (int64_t a = 0; a < n; a += 1024) {
        int64_t size = TS_MIN(n - a, 1024);
        ts_narrow(words, values + a, size, form);
        ts_widen(values + a, words, size, form);
    }
}
