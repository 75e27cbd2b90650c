#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata are not the same bytes from one save to the next
#
# Expected: a format of sorted tensors without timestamps gives equal files for equal input, so that stores which
#   address files by their hash (the Hub's LFS and Xet, a cache, a lock file) see one file.
# Observed: `__metadata__` is written in the order of a hash map with a random seed. With one entry, the usual
#   {"format": "pt"}, files are equal; with eight entries 20 saves in one process gave 20 different files, all of
#   one size and with equal tensors. transformers' torchao checkpoints have an entry for every quantized weight.
# Output, 2026-11-29 (the second number varies a little):
#   1 entry: 1 file; 8 entries: 20 files of 1 size
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/packages" safetensors==0.8.0 numpy==2.4.6
PYTHONPATH="$work/packages" python3 - <<'PY'
import sys
import numpy as np
from safetensors.numpy import save

def files(entries):
    metadata = {f"key{n}": f"value{n}" for n in range(entries)}
    return {save({"weight": np.zeros(4, np.float32)}, metadata=metadata) for _ in range(20)}

one, eight = files(1), files(8)
print(f"1 entry: {len(one)} file; 8 entries: {len(eight)} files of {len({len(f) for f in eight})} size")
if len(one) != 1 or len(eight) < 2 or len({len(f) for f in eight}) != 1:
    sys.exit("changed")
PY
