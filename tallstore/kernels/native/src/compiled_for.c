/* What a variant was compiled for: a test asks. */
#include "common.h"

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
