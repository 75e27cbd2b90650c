#!/usr/bin/env bash
# zipnn 0.5.4: compressing a bytearray of bfloat16 leaves other bytes in it
#
# Expected: a compressor reads its input.
# Observed: ZipNN.compress moves the sign bits in the caller's own bytearray, in place. What it returns decompresses to
#   the bytes as they were, so a test of the round trip passes if it compares with a copy, and fails if it compares with
#   the array that was compressed. Weights that are still in use afterwards (a buffer that a model is mapped on) are
#   then other weights. Hand it a copy.
# Output, 2026-11-29:
#   round trip right: True; input changed: True
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" \
  torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0 zipnn==0.5.4
seen=$(PYTHONPATH="$work/packages" python3 -W ignore - <<'PY' 2>/dev/null
import ml_dtypes
import numpy as np
from zipnn import ZipNN

weights = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(ml_dtypes.bfloat16).tobytes()
given = bytearray(weights)
coder = ZipNN(bytearray_dtype="bfloat16", input_format="byte")
packed = coder.compress(given)
print(f"round trip right: {bytes(coder.decompress(packed)) == weights}; input changed: {bytes(given) != weights}")
PY
)
echo "$seen"
[ "$seen" = "round trip right: True; input changed: True" ] || { echo "changed"; exit 1; }
