/* Logarithms made of the four operations: see `kernels.logarithm`, whose numbers these are. */
#ifndef TS_LOGARITHM_H
#define TS_LOGARITHM_H

#include "common.h"

enum { TERMS = 12 };
/* As `kernels.logarithm` has them: the caller hands over what it computed, once per call. */
typedef struct {
    double root;          /* √½ */
    double series[TERMS]; /* 2 / ln 2 · 1/1, 1/3, 1/5, … */
} ts_logarithm;

/* log2 of a normal number above 0, or of a subnormal one. */
static inline double log_2(const ts_logarithm *l, double value) {
    uint64_t word;
    int64_t power = 0;
    memcpy(&word, &value, sizeof word);
    if (word < (uint64_t)1 << 52) { /* subnormal */
        value *= 0x1p64;
        power = -64;
        memcpy(&word, &value, sizeof word);
    }
    power += (int64_t)(word >> 52) - 1022;
    word = (word & (((uint64_t)1 << 52) - 1)) | (uint64_t)1022 << 52;
    double part;
    memcpy(&part, &word, sizeof part); /* from ½ to 1 */
    if (part < l->root) part = 2 * part, power--;
    const double z = (part - 1) / (part + 1), square = z * z;
    double series = l->series[TERMS - 1];
    for (int k = TERMS - 2; k >= 0; k--) series = series * square + l->series[k];
    return (double)power + z * series;
}

#endif
