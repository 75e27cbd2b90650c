/* The hash of an element's place: 24 bits of what `kernels.place_hash.first_of` gives. See `kernels.place_hash`. */
#ifndef TS_PLACE_HASH_H
#define TS_PLACE_HASH_H

#include "common.h"

static inline uint32_t ts_drawn(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    return x >> 8;
}

/* The number in [0, 1): `recipes.dither.uniform`. */
static inline float ts_uniform(uint32_t x) { return (float)(int32_t)ts_drawn(x) * 0x1p-24f; }

#endif
