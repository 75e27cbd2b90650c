#!/usr/bin/env bash
# torch 2.13.0 (CPU), ml_dtypes 0.6.0: three rules for values that do not fit in a float8, two of them in torch
#
# Expected: one rule: saturate, or overflow to the type's infinity or NaN, in both libraries or at least for
#   both float8 types of one.
# Observed: torch saturates float8_e4m3fn, infinity too (inf becomes 448), and lets float8_e5m2 overflow to inf;
#   ml_dtypes makes NaN of the same float8_e4m3fn values. A checkpoint quantized without clamping is finite if torch
#   made it and has NaN if jax did; and a NaN check after quantizing with torch does not see an infinity any more.
# Output, 2026-11-29:
#   torch e4m3fn: 500 -> 448.0, inf -> 448.0; e5m2: 70000 -> inf
#   ml_dtypes e4m3fn: 500 -> nan, inf -> nan; e5m2: 70000 -> inf
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0
seen=$(PYTHONPATH="$work/packages" python3 -W ignore - <<'PY'
import ml_dtypes
import numpy as np
import torch

def of_torch(value, name):
    return torch.tensor(value).to(getattr(torch, f"float8_{name}")).float().item()

def of_ml_dtypes(value, name):
    return float(np.float32(value).astype(getattr(ml_dtypes, f"float8_{name}")))

for library, cast in {"torch": of_torch, "ml_dtypes": of_ml_dtypes}.items():
    small = ", ".join(f"{value} -> {cast(float(value), 'e4m3fn')}" for value in ("500", "inf"))
    print(f"{library} e4m3fn: {small}; e5m2: 70000 -> {cast(70000.0, 'e5m2')}")
PY
)
echo "$seen"
[ "$seen" = "torch e4m3fn: 500 -> 448.0, inf -> 448.0; e5m2: 70000 -> inf
ml_dtypes e4m3fn: 500 -> nan, inf -> nan; e5m2: 70000 -> inf" ] || { echo "changed"; exit 1; }
