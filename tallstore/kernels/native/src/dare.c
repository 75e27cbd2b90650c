/* Drop, rescale and round on the lattice of a float type: what `tallstore.kernels.dare` does, and tells about. */
#include "half.h"
#include "lattice.h"
#include "place_hash.h"

enum { FEW = 512, BEHIND = 7 }; /* elements that are rounded at a time; bits behind a bfloat16's exponent */

/* What codec `lattice` is to start from. */
ALWAYS uint16_t start_of(uint8_t tag) { return (uint16_t)(((tag >> 4) + 1) << BEHIND); }

/* order[some]: of eight, where those are of which a bit is set in `some`. */
typedef uint16_t orders[256][8];

ALWAYS void fill_orders(orders order) {
    for (int some = 0; some < 256; some++)
        for (int lane = 0, at = 0; lane < 8; at += some >> lane & 1, lane++) order[some][at] = (uint16_t)lane;
}

/* MANY elements, a lane each: their levels, what is drawn for them, and what a table has of levels. `pack` writes what is
 * told of those that are drawn `below`, one behind the other, and returns their number; it may write MANY of each. */
#if defined(__AVX512VBMI2__)
enum { MANY = 16 };
typedef uint32_t many __attribute__((vector_size(64)));
ALWAYS many levels_at(const uint8_t *level) { return (many)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)level)); }
ALWAYS many drawn(uint32_t first) { return (many)ts_drawn16(first); }
ALWAYS many of_level(const uint32_t *t, many at) { return (many)_mm512_permutexvar_epi32((__m512i)at, _mm512_loadu_si512(t)); }
ALWAYS int pack(uint32_t *places, uint8_t *tags, uint16_t *kept, many place, many tag, many x, many below, const orders order) {
    const __mmask16 some = _mm512_cmplt_epu32_mask((__m512i)x, (__m512i)below);
    (void)order;
    tag = (many)_mm512_maskz_compress_epi32(some, (__m512i)tag);
    _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(some, (__m512i)place));
    _mm_storeu_si128((__m128i *)tags, _mm512_cvtepi32_epi8((__m512i)tag));
    _mm256_storeu_si256((__m256i *)kept, _mm512_cvtepi32_epi16((__m512i)(((tag >> 4) + 1) << BEHIND)));
    return __builtin_popcount(some);
}
#elif defined(__AVX2__)
enum { MANY = 8 };
typedef uint32_t many __attribute__((vector_size(32)));
ALWAYS many levels_at(const uint8_t *level) { return (many)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)level)); }
ALWAYS many drawn(uint32_t first) { return (many)ts_drawn8(first); }
ALWAYS many of_level(const uint32_t *table, many at) {
    const __m256i low = _mm256_loadu_si256((const __m256i *)table), high = _mm256_loadu_si256((const __m256i *)(table + 8));
    const __m256i few = _mm256_permutevar8x32_epi32(low, (__m256i)at), more = _mm256_permutevar8x32_epi32(high, (__m256i)at);
    return (many)_mm256_blendv_epi8(few, more, _mm256_cmpgt_epi32((__m256i)at, _mm256_set1_epi32(7)));
}
ALWAYS int pack(uint32_t *places, uint8_t *tags, uint16_t *kept, many place, many tag, many x, many below, const orders order) {
    const int some = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32((__m256i)below, (__m256i)x)));
    const __m256i by = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)order[some]));
    const __m256i all = _mm256_permutevar8x32_epi32((__m256i)tag, by);
    const __m128i two = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm256_storeu_si256((__m256i *)places, _mm256_permutevar8x32_epi32((__m256i)place, by));
    _mm_storel_epi64((__m128i *)tags, _mm_packus_epi16(two, two));
    _mm_storeu_si128((__m128i *)kept, _mm_slli_epi16(_mm_add_epi16(_mm_srli_epi16(two, 4), _mm_set1_epi16(1)), BEHIND));
    return __builtin_popcount((unsigned)some);
}
#endif

/* Of n words the places of those that are kept, their tags, and what codec `lattice` is to start from; each of the three
 * has room for n + 16. Of each level, what is drawn below `share` is kept; `factor` makes its class, whose context is `begin`
 * and the class by 2^`down`. Returns their number. */
TS_KERNEL(int64_t, dare_select)(
    uint32_t *restrict places, uint8_t *restrict tags, uint16_t *restrict kept, const void *restrict words, int64_t n, int32_t bits,
    int32_t shift, int32_t mask, int32_t low, uint32_t first, const uint32_t *share, const uint32_t *factor, const uint32_t *begin,
    const uint32_t *down
) {
    const lattice of = {bits, shift, mask, low};
    uint8_t level[BLOCK + 16] = {0}; /* where no exponent is above `low`, nothing is read */
    int64_t count = 0;
#if defined(__AVX2__)
    many lane;
    uint32_t told[LEVELS]; /* factor, begin and down: one is looked up faster than three */
    orders order = {0};
    for (int l = 0; l < LEVELS; l++) told[l] = factor[l] << 8 | begin[l] << 4 | down[l];
    fill_orders(order);
    for (int k = 0; k < MANY; k++) lane[k] = (uint32_t)k;
#endif
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t size = TS_MIN(n - start, BLOCK);
        if (low < mask) fill_levels(level, (const uint8_t *)words + start * (bits / 8), size, &of, bits);
#if defined(__AVX2__)
        for (int64_t i = 0; i < size; i += MANY) {
            const many at = levels_at(level + i), by = of_level(told, at), x = drawn(first + (uint32_t)(start + i));
            const many class = (x >> 8) * (by >> 8) >> 16 >> (by & 15), tag = (((class << 4) + (by & 0xF0)) | at) & 0xFF;
            const many place = (uint32_t)(start + i) + lane;
            count += pack(places + count, tags + count, kept + count, place, tag, x, of_level(share, at), order);
        }
#else
        uint32_t x[BLOCK], some = 0;
        uint16_t at[BLOCK];
        for (int64_t i = 0; i < size; i++) x[i] = ts_drawn(first + (uint32_t)(start + i));
        for (int64_t i = 0; i < size; i++) at[some] = (uint16_t)i, some += x[i] < share[level[i]];
        for (int64_t i = 0; i < some; i++, count++) {
            const uint32_t l = level[at[i]], class = (x[at[i]] >> 8) * factor[l] >> 16;
            places[count] = (uint32_t)start + at[i], tags[count] = (uint8_t)(l | (begin[l] + (class >> down[l])) << 4);
            kept[count] = start_of(tags[count]);
        }
#endif
    }
    while (count && places[count - 1] >= n) count--; /* behind the last element */
    return count;
}

/* The numbers of some words. */
static void gather(float *restrict out, const void *restrict words, const uint32_t *restrict places, int64_t n, int32_t form) {
    uint16_t own[FEW];
    if (form == TS_FLOAT32) {
        for (int64_t i = 0; i < n; i++) out[i] = ((const float *)words)[places[i]];
        return;
    }
    for (int64_t i = 0; i < n; i++) own[i] = ((const uint16_t *)words)[places[i]];
    ts_widen(out, own, n, form);
}

/* What the changes of elements that are kept are rounded to. Returns whether all of it is safe. */
TS_KERNEL(int32_t, dare_multiples)(
    int16_t *restrict out, const void *restrict words, const void *restrict after, const uint32_t *restrict places,
    const uint8_t *restrict tags, int64_t count, int32_t form, int32_t nearest, uint32_t first, const uint32_t *share,
    const double *step, const float *width
) {
    const float least = 0x1p-100f;
    const float most = form == TS_FLOAT32 ? 0x1.FFFFFEp127f : form == TS_BFLOAT16 ? 0x1.FEp127f : 65504.0f;
    int32_t safe = 1;
    for (int64_t from = 0; from < count; from += FEW, places += FEW, tags += FEW, out += FEW) {
        int64_t size = TS_MIN(count - from, FEW);
        float start[FEW], stop[FEW], wide[FEW];
        int32_t drawn[FEW], below[FEW];
        double fine[FEW];
        gather(start, words, places, size, form), gather(stop, after, places, size, form);
        for (int64_t i = 0; i < size; i++) drawn[i] = (int32_t)ts_drawn(first + places[i]);
        for (int64_t i = 0; i < size; i++) {
            uint32_t l = tags[i] & 15;
            fine[i] = step[l], wide[i] = width[l], below[i] = (int32_t)share[l];
        }
        for (int64_t i = 0; i < size; i++) { /* without a branch */
            float change = stop[i] - start[i], far = ts_float(ts_bits(change) & 0x7FFFFFFFu);
            double exact = (double)far / fine[i], by = (double)drawn[i] / (double)below[i];
            exact -= nearest && exact >= 1 ? 0.5 : by;
            int32_t few = exact <= 16384.0, whole = (int32_t)(few ? exact : 0.0);
            whole += (double)whole < exact; /* rounded up; what is above −1 becomes 0 */
            int32_t times = change < 0 ? -whole : whole;
            float reached = ts_float(ts_bits(start[i] + (float)times * wide[i]) & 0x7FFFFFFFu);
            int32_t enough = (far >= least) | (ts_bits(start[i]) == ts_bits(stop[i])), room = (reached <= most) & ((float)whole * wide[i] >= least);
            out[i] = (int16_t)times;
            safe &= few & enough & (room | (whole == 0));
        }
    }
    return safe;
}

/* Turn the base's elements that are kept into the task's, in place. */
TS_KERNEL(void, dare_apply)(
    void *restrict words, const uint32_t *restrict places, const uint8_t *restrict tags, const uint16_t *restrict after,
    int64_t count, int32_t form, const float *width
) {
    const uint16_t nan = form == TS_BFLOAT16 ? 0x7FC0 : 0x7E00; /* narrowing may make anything of one */
    orders order = {0};
    fill_orders(order);
    for (int64_t from = 0; from < count; from += FEW, places += FEW, tags += FEW, after += FEW) {
        int64_t size = TS_MIN(count - from, FEW), some = 0, i = 0;
        uint16_t moved[FEW + 8], rounded[FEW]; /* `moved`: those of a multiple that is not 0 */
        uint8_t other[FEW];
        uint32_t at[FEW];
        float sum[FEW], step[FEW];
        for (; i < size; i++) other[i] = after[i] != start_of(tags[i]);
        for (i = 0; i + 8 <= size; i += 8) {
            const uint64_t flags = ts_load64(other + i);
            const uint16_t *by = order[ts_gathered(flags)];
            for (int k = 0; k < 8; k++) moved[some + k] = (uint16_t)(i + by[k]);
            some += (int64_t)(flags * 0x0101010101010101u >> 56); /* as many as are set */
        }
        for (; i < size; i++) moved[some] = (uint16_t)i, some += after[i] != start_of(tags[i]);
        for (i = 0; i < some; i++) {
            uint8_t tag = tags[moved[i]];
            step[i] = (float)(int16_t)(turned(after[moved[i]], 16) - start_of(tag)) * width[tag & 15];
            at[i] = places[moved[i]];
        }
        gather(sum, words, at, some, form);
        for (i = 0; i < some; i++) sum[i] += step[i];
        if (form == TS_FLOAT32) {
            for (i = 0; i < some; i++) ((uint32_t *)words)[at[i]] = sum[i] == sum[i] ? ts_bits(sum[i]) : 0x7FC00000u;
            continue;
        }
        ts_narrow(rounded, sum, some, form);
        for (i = 0; i < some; i++) ((uint16_t *)words)[at[i]] = sum[i] == sum[i] ? rounded[i] : nan;
    }
}
