/* Drop, rescale and round on the lattice of a type of 16 bits: what `tallstore.kernels.dare` does, and tells about. */
#include "half.h"
#include "lattice.h"
#include "place_hash.h"

enum { FEW = 512, BEHIND = 7 }; /* elements that are rounded at a time; bits behind a bfloat16's exponent */

/* What codec `lattice` is to start from. */
ALWAYS uint16_t start_of(uint8_t tag) { return (uint16_t)(((tag >> 4) + 1) << BEHIND); }

/* Which of 32 elements are kept: a bit each. `first` draws for the first of them. */
ALWAYS uint32_t kept_of(const uint8_t *level, uint32_t first, const uint32_t *share) {
    uint32_t kept = 0;
#if defined(__AVX2__)
    const __m256i low = _mm256_loadu_si256((const __m256i *)share), high = _mm256_loadu_si256((const __m256i *)(share + 8));
    for (int k = 0; k < 32; k += 8) {
        __m256i at = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(level + k)));
        __m256i x = ts_drawn8(first + (uint32_t)k);
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

/* Of n words the places of those that are kept, their tags, and what codec `lattice` is to start from; each of the three
 * has room for n. Of each level, what is drawn below `share` is kept; `factor` makes its class, whose context is `begin` and
 * the class by 2^`down`. Returns their number. */
TS_KERNEL(int64_t, dare_select)(
    uint32_t *restrict places, uint8_t *restrict tags, uint16_t *restrict kept, const uint16_t *restrict words, int64_t n,
    int32_t shift, int32_t mask, int32_t low, uint32_t first, const uint32_t *share, const uint32_t *factor, const uint32_t *begin,
    const uint32_t *down
) {
    const lattice of = {16, shift, mask, low};
    int64_t count = 0;
#if defined(__AVX512VBMI2__)
    const __m512i shares = _mm512_loadu_si512(share), factors = _mm512_loadu_si512(factor), begins = _mm512_loadu_si512(begin);
    const __m512i downs = _mm512_loadu_si512(down), one = _mm512_set1_epi32(1);
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
            __m512i place = _mm512_add_epi32(_mm512_set1_epi32((int32_t)(start + i)), lane), x = ts_drawn16(first + (uint32_t)(start + i));
            __mmask16 some = _mm512_cmplt_epu32_mask(x, _mm512_permutexvar_epi32(at, shares));
            __m512i class = _mm512_mullo_epi32(_mm512_srli_epi32(x, 8), _mm512_permutexvar_epi32(at, factors));
            class = _mm512_srlv_epi32(_mm512_srli_epi32(class, 16), _mm512_permutexvar_epi32(at, downs));
            class = _mm512_add_epi32(class, _mm512_permutexvar_epi32(at, begins));
            class = _mm512_maskz_compress_epi32(some, _mm512_or_si512(at, _mm512_slli_epi32(class, 4)));
            __m512i word = _mm512_slli_epi32(_mm512_add_epi32(_mm512_srli_epi32(class, 4), one), BEHIND);
            _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(some, place));
            _mm_storeu_si128((__m128i *)(tags + count), _mm512_cvtepi32_epi8(class));
            _mm256_storeu_si256((__m256i *)(kept + count), _mm512_cvtepi32_epi16(word));
            count += __builtin_popcount(some);
        }
#endif
        for (; i < size; i += 32) {
            uint32_t some = kept_of(level + i, first + (uint32_t)(start + i), share);
            if (size - i < 32) some &= (1u << (size - i)) - 1;
            for (; some; some &= some - 1, count++) {
                int64_t at = i + __builtin_ctz(some);
                uint32_t l = level[at], class = (ts_drawn(first + (uint32_t)(start + at)) >> 8) * factor[l] >> 16;
                places[count] = (uint32_t)(start + at), tags[count] = (uint8_t)(l | (begin[l] + (class >> down[l])) << 4);
                kept[count] = start_of(tags[count]);
            }
        }
    }
    return count;
}

/* What the changes of elements that are kept are rounded to. Returns whether all of it is safe. */
TS_KERNEL(int32_t, dare_multiples)(
    int16_t *restrict out, const uint16_t *restrict words, const uint16_t *restrict after, const uint32_t *restrict places,
    const uint8_t *restrict tags, int64_t count, int32_t form, uint32_t first, const uint32_t *share, const double *step,
    const float *width
) {
    const float least = 0x1p-100f, most = form == TS_BFLOAT16 ? 0x1.FEp127f : 65504.0f;
    int32_t safe = 1;
    for (int64_t from = 0; from < count; from += FEW, places += FEW, tags += FEW, out += FEW) {
        int64_t size = TS_MIN(count - from, FEW);
        uint16_t base[FEW], own[FEW];
        float start[FEW], stop[FEW], wide[FEW];
        int32_t drawn[FEW], below[FEW];
        double fine[FEW];
        for (int64_t i = 0; i < size; i++) base[i] = words[places[i]], own[i] = after[places[i]];
        ts_widen(start, base, size, form), ts_widen(stop, own, size, form);
        for (int64_t i = 0; i < size; i++) drawn[i] = (int32_t)ts_drawn(first + places[i]);
        for (int64_t i = 0; i < size; i++) {
            uint32_t l = tags[i] & 15;
            fine[i] = step[l], wide[i] = width[l], below[i] = (int32_t)share[l];
        }
        for (int64_t i = 0; i < size; i++) { /* without a branch */
            float change = stop[i] - start[i], far = ts_float(ts_bits(change) & 0x7FFFFFFFu);
            double exact = (double)far / fine[i] - (double)drawn[i] / (double)below[i];
            int32_t few = exact <= 16384.0, whole = (int32_t)(few ? exact : 0.0);
            whole += (double)whole < exact; /* rounded up; what is above −1 becomes 0 */
            int32_t times = change < 0 ? -whole : whole;
            float reached = ts_float(ts_bits(start[i] + (float)times * wide[i]) & 0x7FFFFFFFu);
            int32_t enough = (far >= least) | (base[i] == own[i]), room = (reached <= most) & ((float)whole * wide[i] >= least);
            out[i] = (int16_t)times;
            safe &= few & enough & (room | (whole == 0));
        }
    }
    return safe;
}

/* Turn the base's elements that are kept into the task's, in place. */
TS_KERNEL(void, dare_apply)(
    uint16_t *restrict words, const uint32_t *restrict places, const uint8_t *restrict tags, const uint16_t *restrict after,
    int64_t count, int32_t form, const float *width
) {
    const uint16_t nan = form == TS_BFLOAT16 ? 0x7FC0 : 0x7E00; /* narrowing may make anything of one */
#if defined(__AVX512VBMI2__)
    uint16_t each[32];
    for (int k = 0; k < 32; k++) each[k] = (uint16_t)k;
    const __m512i numbers = _mm512_loadu_si512(each);
#endif
    for (int64_t from = 0; from < count; from += FEW, places += FEW, tags += FEW, after += FEW) {
        int64_t size = TS_MIN(count - from, FEW), some = 0, i = 0;
        uint16_t moved[FEW + 32], base[FEW], rounded[FEW]; /* `moved`: those of a multiple that is not 0 */
        float sum[FEW], step[FEW];
#if defined(__AVX512VBMI2__)
        for (__m512i lane = numbers; i + 32 <= size; i += 32, lane = _mm512_add_epi16(lane, _mm512_set1_epi16(32))) {
            __m512i start = _mm512_srli_epi16(_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(tags + i))), 4);
            start = _mm512_slli_epi16(_mm512_add_epi16(start, _mm512_set1_epi16(1)), BEHIND);
            __mmask32 other = _mm512_cmpneq_epi16_mask(start, _mm512_loadu_si512(after + i));
            _mm512_storeu_si512(moved + some, _mm512_maskz_compress_epi16(other, lane));
            some += __builtin_popcount(other);
        }
#endif
        for (; i < size; i++) moved[some] = (uint16_t)i, some += after[i] != start_of(tags[i]);
        for (i = 0; i < some; i++) {
            uint8_t tag = tags[moved[i]];
            step[i] = (float)(int16_t)(turned(after[moved[i]], 16) - start_of(tag)) * width[tag & 15];
            base[i] = words[places[moved[i]]];
        }
        ts_widen(sum, base, some, form);
        for (i = 0; i < some; i++) sum[i] += step[i];
        ts_narrow(rounded, sum, some, form);
        for (i = 0; i < some; i++) words[places[moved[i]]] = sum[i] == sum[i] ? rounded[i] : nan;
    }
}
