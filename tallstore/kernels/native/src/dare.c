/* Drop and rescale on the lattice of a type of 16 bits: what `tallstore.kernels.dare` does, and tells about. */
#include "half.h"
#include "lattice.h"
#include "place_hash.h"

enum { FEW = 512 }; /* elements that are rescaled at a time */

#if defined(__AVX512VBMI2__)
ALWAYS __m512i drawn16(__m512i place, uint32_t first) {
    __m512i x = _mm512_add_epi32(place, _mm512_set1_epi32((int32_t)first));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(0x7FEB352D));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32((int32_t)0x846CA68Bu));
    return _mm512_srli_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), 8);
}
#endif

/* Which of 32 elements are kept: a bit each. `first` draws for the first of them. */
ALWAYS uint32_t kept_of(const uint8_t *level, uint32_t first, const uint32_t *share) {
    uint32_t kept = 0;
#if defined(__AVX2__)
    const __m256i low = _mm256_loadu_si256((const __m256i *)share), high = _mm256_loadu_si256((const __m256i *)(share + 8));
    for (int k = 0; k < 32; k += 8) {
        __m256i at = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(level + k)));
        __m256i x = _mm256_add_epi32(_mm256_set1_epi32((int32_t)(first + (uint32_t)k)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        x = _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 16)), _mm256_set1_epi32(0x7FEB352D));
        x = _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 15)), _mm256_set1_epi32((int32_t)0x846CA68Bu));
        x = _mm256_srli_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 16)), 8);
        __m256i of = _mm256_blendv_epi8(
            _mm256_permutevar8x32_epi32(low, at), _mm256_permutevar8x32_epi32(high, at), _mm256_cmpgt_epi32(at, _mm256_set1_epi32(7))
        );
        kept |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(of, x))) << k;
    }
#else
    for (uint32_t k = 0; k < 32; k++) kept |= (uint32_t)(ts_drawn(first + k) < share[level[k]]) << k;
#endif
    return kept;
}

/* Of n words the elements that are kept, how often each one's change is taken, and the words themselves; each of the three
 * has room for n. Of each level, `share` are kept of 2^24, `times` is what that goes into 2^24, and `more` what is left.
 * Returns their number. */
TS_KERNEL(int64_t, dare_select)(
    uint32_t *restrict places, uint32_t *restrict taken, uint16_t *restrict kept, const uint16_t *restrict words, int64_t n,
    int32_t shift, int32_t mask, int32_t low, uint32_t first, const uint32_t *share, const uint32_t *times, const uint32_t *more
) {
    const lattice of = {16, shift, mask, low};
    int64_t count = 0;
#if defined(__AVX512VBMI2__)
    const __m512i shares = _mm512_loadu_si512(share), whole = _mm512_loadu_si512(times), rests = _mm512_loadu_si512(more);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        uint8_t level[BLOCK + 32] = {0};
        fill_levels(level, words + start, size, &of, 16);
        int64_t i = 0;
#if defined(__AVX512VBMI2__)
        for (; i + 16 <= size; i += 16) { /* `count` is not above `start + i`: there is room for 16 */
            __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(level + i)));
            __m512i place = _mm512_add_epi32(_mm512_set1_epi32((int32_t)(start + i)), lane), x = drawn16(place, first);
            __mmask16 some = _mm512_cmplt_epu32_mask(x, _mm512_permutexvar_epi32(at, shares));
            __mmask16 over = _mm512_cmplt_epu32_mask(x, _mm512_permutexvar_epi32(at, rests));
            __m512i often = _mm512_permutexvar_epi32(at, whole);
            often = _mm512_mask_add_epi32(often, over, often, _mm512_set1_epi32(1));
            __m256i word = _mm256_loadu_si256((const __m256i *)(words + start + i));
            _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(some, place));
            _mm512_storeu_si512(taken + count, _mm512_maskz_compress_epi32(some, often));
            _mm256_storeu_si256((__m256i *)(kept + count), _mm256_maskz_compress_epi16(some, word));
            count += __builtin_popcount(some);
        }
#endif
        for (; i < size; i += 32) {
            uint32_t some = kept_of(level + i, first + (uint32_t)(start + i), share);
            if (size - i < 32) some &= (1u << (size - i)) - 1;
            for (; some; some &= some - 1, count++) {
                int64_t at = i + __builtin_ctz(some);
                places[count] = (uint32_t)(start + at), kept[count] = words[start + at];
                taken[count] = times[level[at]] + (ts_drawn(first + (uint32_t)(start + at)) < more[level[at]]);
            }
        }
    }
    return count;
}

/* Turn the base's elements that are kept into the task's, in place. */
TS_KERNEL(void, dare_rescale)(
    uint16_t *restrict words, const uint32_t *restrict places, const uint32_t *restrict taken, const uint16_t *restrict after,
    int64_t count, int32_t form
) {
    const uint16_t nan = form == TS_BFLOAT16 ? 0x7FC0 : 0x7E00; /* narrowing may make anything of one */
    for (int64_t from = 0; from < count; from += FEW, places += FEW, taken += FEW, after += FEW) {
        int64_t size = TS_MIN(count - from, FEW);
        uint16_t base[FEW], rounded[FEW], once[FEW];
        float start[FEW], stop[FEW];
        for (int64_t i = 0; i < size; i++) base[i] = words[places[i]];
        for (int64_t i = 0; i < size; i++) once[i] = taken[i] == 1 ? 0xFFFF : 0;
        ts_widen(start, base, size, form), ts_widen(stop, after, size, form);
        for (int64_t i = 0; i < size; i++) start[i] += (float)(int32_t)taken[i] * (stop[i] - start[i]);
        ts_narrow(rounded, start, size, form);
        for (int64_t i = 0; i < size; i++) rounded[i] = start[i] == start[i] ? rounded[i] : nan;
        for (int64_t i = 0; i < size; i++) { /* as masks: which it is cannot be foretold */
            uint16_t exact = (uint16_t)(once[i] | (base[i] == after[i] ? 0xFFFF : 0));
            rounded[i] = (uint16_t)((after[i] & exact) | (rounded[i] & ~exact));
        }
        for (int64_t i = 0; i < size; i++) words[places[i]] = rounded[i];
    }
}
