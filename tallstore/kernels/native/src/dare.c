/* Drop and rescale on the lattice of a type of 16 bits: what `tallstore.kernels.dare` does, and tells about. */
#include "half.h"
#include "lattice.h"
#include "place_hash.h"

/* Of n words the elements that are kept, how often each one's change is taken, and the words themselves; each of the three
 * has room for n + 1. `share` is of each level, of 2^24; `times` and `more` its reciprocal, whole and what is left. Returns
 * their number. */
TS_KERNEL(int64_t, dare_select)(
    uint32_t *restrict places, uint32_t *restrict taken, uint16_t *restrict kept, const uint16_t *restrict words, int64_t n,
    int32_t shift, int32_t mask, int32_t low, uint32_t first, const uint32_t *share, const uint32_t *times, const uint32_t *more
) {
    const lattice of = {16, shift, mask, low};
    int64_t count = 0;
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = TS_MIN(n - start, BLOCK);
        uint8_t level[BLOCK];
        uint32_t drawn[BLOCK];
        fill_levels(level, words + start, size, &of, 16);
        for (int64_t i = 0; i < size; i++) drawn[i] = ts_drawn(first + (uint32_t)(start + i));
        for (int64_t i = 0; i < size; i++) { /* the one behind the last kept is overwritten */
            places[count] = (uint32_t)(start + i), kept[count] = words[start + i];
            taken[count] = times[level[i]] + (drawn[i] < more[level[i]]);
            count += drawn[i] < share[level[i]];
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
    for (int64_t from = 0; from < count; from += BLOCK) {
        int64_t size = TS_MIN(count - from, BLOCK);
        uint16_t base[BLOCK], rounded[BLOCK];
        float start[BLOCK], stop[BLOCK];
        for (int64_t i = 0; i < size; i++) base[i] = words[places[from + i]];
        ts_widen(start, base, size, form), ts_widen(stop, after + from, size, form);
        for (int64_t i = 0; i < size; i++) start[i] += (float)(int32_t)taken[from + i] * (stop[i] - start[i]);
        ts_narrow(rounded, start, size, form);
        for (int64_t i = 0; i < size; i++) {
            bool exact = taken[from + i] == 1 || base[i] == after[from + i];
            uint16_t moved = start[i] != start[i] ? nan : rounded[i];
            words[places[from + i]] = exact ? after[from + i] : moved;
        }
    }
}
