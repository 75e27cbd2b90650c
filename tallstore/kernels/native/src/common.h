/* What every kernel includes: names, and the few words of C that all of them need. The rules are in ../__init__.py. */
#ifndef TS_COMMON_H
#define TS_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* TS_KERNEL(int64_t, add_gaps)(…) { … } defines ts_add_gaps_avx2 where the variant is avx2. A function that another file
 * of the same variant calls is named by TS_NAME; everything else is static. */
#define TS_JOIN_(name, variant) ts_##name##_##variant
#define TS_JOIN(name, variant) TS_JOIN_(name, variant)
#define TS_NAME(name) TS_JOIN(name, TS_VARIANT)
#define TS_EXPORT __attribute__((visibility("default")))
#define TS_KERNEL(type, name) TS_EXPORT type TS_NAME(name)

#define TS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TS_MAX(a, b) ((a) > (b) ? (a) : (b))

enum { TS_FLOAT32 = 0, TS_BFLOAT16 = 1, TS_FLOAT16 = 2, TS_FLOAT64 = 3 };
/* As `tallstore.kernels.native_types` numbers types. */

/* xxhash's own XXH3-64, which Python finds in the package `xxhash` and hands over when it loads the library. All are NULL
 * where the package does not show them: no kernel that needs a hash is called then. A state is made, reset, fed, asked
 * and freed by these alone. */
typedef struct {
    uint64_t (*hash)(const void *data, size_t size);
    void *(*create)(void);
    int (*destroy)(void *state);
    int (*reset)(void *state);
    int (*update)(void *state, const void *data, size_t size);
    uint64_t (*digest)(const void *state);
} ts_hashing;
extern ts_hashing ts_xxh3;

static inline uint32_t ts_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float ts_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t ts_load32(const uint8_t *data) {
    uint32_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

static inline uint64_t ts_load64(const uint8_t *data) { /* little-endian, as every machine that this is built for is */
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* The lowest bits of eight bytes that have no others. */
static inline uint64_t ts_gathered(uint64_t bytes) { return bytes * 0x0102040810204080u >> 56; }

static inline int64_t ts_bits_on(const uint8_t *data, int64_t size) { /* how many bits are set */
    int64_t found = 0, k = 0;
    for (; k + 8 <= size; k += 8) found += __builtin_popcountll(ts_load64(data + k));
    for (; k < size; k++) found += __builtin_popcount(data[k]);
    return found;
}

#endif
