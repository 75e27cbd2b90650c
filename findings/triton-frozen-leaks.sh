#!/usr/bin/env bash
# triton 3.9.0: a program that leaves its garbage at exit has a screenful of "leaked" instances, types and functions
#
# Expected: `gc.freeze()` before the interpreter ends, which spares long-lived programs a last look through all objects
#   (PyTorch's are half a million), changes nothing but the time that the end takes.
# Observed: where Triton was imported, if only by torch.compile's modules, its bindings (nanobind) write some thirty
#   lines to stderr, "nanobind: leaked 4 instances!", "… 64 types!", and that a reference counting issue is likely.
#   Nothing leaks. Command-line tools whose errors are read by others print it for every user with a GPU build.
# Output, 2026-11-30:
#   collected: 0 lines; frozen: 27 lines
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check triton==3.9.0
cd "$work"
lines() { { "$work/env/bin/python" -c "$1" 2>&1 || true; } | grep -c leaked || true; }
collected=$(lines 'import triton')
frozen=$(lines 'import atexit, gc; atexit.register(gc.freeze); import triton')
echo "collected: $collected lines; frozen: $frozen lines"
[ "$collected" -eq 0 ] && [ "$frozen" -gt 0 ] || { echo changed; exit 1; }
