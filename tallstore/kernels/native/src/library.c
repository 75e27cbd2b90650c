/* Compiled once per library, not once per variant: what the loader asks before it trusts the rest. */
#include "common.h"

ts_hashing ts_xxh3;

TS_EXPORT void ts_set_xxh3(const ts_hashing *functions) { ts_xxh3 = *functions; }

/* Of the sources that this was built from: see build.py. */
TS_EXPORT uint64_t ts_stamp(void) { return TS_STAMP; }

/* Bits, as library.py numbers them: 1 plain, 2 avx2, 4 avx512, 8 neon. Asked of the processor itself:
 * __builtin_cpu_supports answers 0 to everything in what some compilers link. */
#if defined(__x86_64__)
#include <cpuid.h>

TS_EXPORT uint32_t ts_variants(void) {
    uint32_t a, b, c, d, found = 1;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const uint32_t fma = 1u << 12, popcnt = 1u << 23, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const uint32_t basic = fma | popcnt | osxsave | avx | f16c;
    if ((c & basic) != basic) return found;
    uint32_t low, high; /* which registers the system keeps: XMM and YMM; with avx512 also masks and both kinds of ZMM */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x6) != 0x6) return found;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & (1u << 5))) return found; /* lzcnt */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const uint32_t second = 1u << 3 | 1u << 5 | 1u << 8; /* bmi1, avx2, bmi2 */
    if ((b & second) != second) return found;
    found |= 2;
    const uint32_t third = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* avx512 f, dq, bw, vl */
    const uint32_t fourth = 1u << 1 | 1u << 6;                        /* avx512 vbmi, vbmi2 */
    if ((low & 0xE6) == 0xE6 && (b & third) == third && (c & fourth) == fourth) found |= 4;
    return found;
}
#elif defined(__aarch64__)
TS_EXPORT uint32_t ts_variants(void) { return 1 | 8; } /* every such processor has NEON */
#else
TS_EXPORT uint32_t ts_variants(void) { return 1; }
#endif
