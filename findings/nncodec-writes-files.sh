#!/usr/bin/env bash
# nncodec 2.1.3: coding a tensor, which gives back its bitstream, writes a file into the current folder as well
#
# Expected: `nncodec.tensor.encode(tensor, options)` returns bytes, and is done.
# Observed: the same bytes also become `TAIMP_coding_qp_<qp>_bitstream.nnc` in the current folder, whatever tensor it is,
#   so that each call writes over the one before, and calls at several rates leave a file each. A loop over a model's
#   tensors writes it all to disk, and fails in a folder that may not be written to. `"results": folder` names another.
# Output, 2026-11-30:
#   2 files: TAIMP_coding_qp_-30_bitstream.nnc TAIMP_coding_qp_-32_bitstream.nnc; the last one's bytes: the same
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$work/env/bin/pip" install --quiet --disable-pip-version-check nncodec==2.1.3 flwr==1.42.0 wandb==0.31.0
mkdir "$work/empty" && cd "$work/empty"
found=$("$work/env/bin/python" - 2>/dev/null <<'END'
import os
import torch
from nncodec.tensor import encode
make = torch.Generator().manual_seed(0)
for qp in (-32, -30):
    for _ in range(3):
        stream = encode(0.01 * torch.randn(64, 64, generator=make), {"qp": qp})
files = sorted(os.listdir())
same = bool(files) and open(files[0], "rb").read() == bytes(stream)
print(f"{len(files)} files: {' '.join(files)}; the last one's bytes: {'the same' if same else 'others'}")
END
)
echo "$found"
[ "${found%%:*}" = "2 files" ] || { echo changed; exit 1; }
