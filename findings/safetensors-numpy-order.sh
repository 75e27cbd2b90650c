#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6: save() of a transposed or strided numpy array stores other values, without an error
#
# Expected: the values of the array, or an error that it is not contiguous, as safetensors.torch gives for tensors.
# Observed: the array's memory is written in the order in which it lies, under the array's shape. A transposed weight
#   comes back scrambled, `w[:, ::2]` as the first half of the memory. Right: numpy.ascontiguousarray before saving.
# Output, 2026-11-29:
#   transposed [[0, 3], [1, 4], [2, 5]] -> [[0, 1], [2, 3], [4, 5]]
#   strided [[0, 2], [4, 6]] -> [[0, 1], [2, 3]]
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" safetensors==0.8.0 numpy==2.4.6
seen=$(PYTHONPATH="$work/packages" python3 - <<'PY'
import numpy as np
from safetensors.numpy import load, save

for name, array in {
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "strided": np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2],
}.items():
    loaded = load(save({name: array}))[name]
    print(name, array.astype(int).tolist(), "->", loaded.astype(int).tolist())
PY
)
echo "$seen"
[ "$seen" = "transposed [[0, 3], [1, 4], [2, 5]] -> [[0, 1], [2, 3], [4, 5]]
strided [[0, 2], [4, 6]] -> [[0, 1], [2, 3]]" ] || { echo "changed"; exit 1; }
