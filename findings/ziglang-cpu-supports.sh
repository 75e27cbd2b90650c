#!/usr/bin/env bash
# ziglang 0.17.1 (PyPI): __builtin_cpu_supports() is 0 for every feature in programs built by `zig cc`
#
# Expected: what the same C file prints when gcc or clang builds it: the builtin agrees with the cpuid instruction
#   (libgcc and compiler-rt both fill the table it reads in __builtin_cpu_init).
# Observed: it compiles and links without a warning, and the builtin answers 0 for sse4.2 and popcnt on a processor
#   whose cpuid reports both. A library that picks its kernels this way always runs the slow ones, with right results,
#   so no test notices. Ask cpuid (and xgetbv for wide registers) instead.
# Output, 2026-11-29, x86-64 Linux, for the native, glibc 2.17 and musl targets alike:
#   cpuid 1 1, builtin 0 0
set -euo pipefail
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || { echo "for x86-64 Linux only"; exit 2; }
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" ziglang==0.17.1
cat >"$work/features.c" <<'C'
#include <cpuid.h>
#include <stdio.h>
int main(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 1;
    printf("cpuid %d %d, builtin %d %d\n", !!(c & bit_SSE4_2), !!(c & bit_POPCNT),
           !!__builtin_cpu_supports("sse4.2"), !!__builtin_cpu_supports("popcnt"));
}
C
for target in native x86_64-linux-gnu.2.17 x86_64-linux-musl; do
  PYTHONPATH="$work/packages" python3 -m ziglang cc -target "$target" -O2 "$work/features.c" -o "$work/features"
  seen=$("$work/features")
  echo "$target: $seen"
  [ "$seen" = "cpuid 1 1, builtin 0 0" ] || { echo "changed"; exit 1; }
done
