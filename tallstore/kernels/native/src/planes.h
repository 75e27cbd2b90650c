/* Words from planes of their bytes, least significant first, rotated right by one bit. */
#ifndef TS_PLANES_H
#define TS_PLANES_H

#include "common.h"

static inline void ts_join_2(uint16_t *restrict out, const uint8_t *restrict low, const uint8_t *restrict high, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t word = (uint16_t)(low[i] | high[i] << 8);
        out[i] = (uint16_t)(word >> 1 | word << 15);
    }
}

static inline void ts_join_4(uint32_t *restrict out, const uint8_t *restrict first, const uint8_t *restrict second,
                             const uint8_t *restrict third, const uint8_t *restrict fourth, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t word = first[i] | (uint32_t)second[i] << 8 | (uint32_t)third[i] << 16 | (uint32_t)fourth[i] << 24;
        out[i] = word >> 1 | word << 31;
    }
}

#endif
