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

/* The widest vectors that the compiler was allowed here: 0 those of every such processor, 1 AVX2, 2 AVX-512, 4 NEON. */
TS_KERNEL(int32_t, compiled_for)(void) {
#if defined(__AVX512VBMI2__)
    return 2;
#elif defined(__AVX2__)
    return 1;
#elif defined(__aarch64__) && !defined(TS_SCALAR)
    return 4;
#else
    return 0;
#endif
}
