#!/usr/bin/env bash
# ml_dtypes 0.6.0, numpy 2.4.6: the sum of 10,000 bfloat16 ones is 256, and their mean 0.0256
#
# Expected: 9984, the bfloat16 nearest to 10,000. numpy sums its own float16 in pairs and in wider registers, torch
#   sums bfloat16 in float32.
# Observed: numpy's reduction runs ml_dtypes' addition element after element and rounds each partial sum to 8 bits, so
#   it stops growing at 256, where adding 1 changes nothing. A dot product of the same array with itself accumulates
#   in float32 and returns it. Norms and means of bf16 weights have to be asked for with dtype=float32.
# Output, 2026-11-29:
#   sum 256, mean 0.0256, dot 10000, float32 10000, float16 10000
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" ml_dtypes==0.6.0 numpy==2.4.6
seen=$(PYTHONPATH="$work/packages" python3 - <<'PY'
import ml_dtypes
import numpy as np

ones = np.ones(10_000, ml_dtypes.bfloat16)
print(f"sum {float(ones.sum()):g}, mean {float(ones.mean()):.4f}, dot {int(ones @ ones)},", end=" ")
print(f"float32 {int(ones.sum(dtype=np.float32))}, float16 {int(ones.astype(np.float16).sum())}")
PY
)
echo "$seen"
[ "$seen" = "sum 256, mean 0.0256, dot 10000, float32 10000, float16 10000" ] || { echo "changed"; exit 1; }
