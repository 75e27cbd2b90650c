"""What launching the kernels makes the compiler do for a GPU: it compiles, nothing is fused, accesses are wide.

No GPU is needed: everything but the launch itself is done as for an H100, with tensors that lie on the CPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from processes import Shared, child

pytest.importorskip("triton")

LAUNCH = """
import json
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

driver.set_active(Driver())
compiled = {}

def launcher(kernel, grid):
    def launch(*args, **options):
        found = kernel.run(*args, grid=grid, warmup=True, **options)
        assert not found.metadata.enable_fp_fusion
        compiled[name] = found.asm["ptx"]
    return launch

JITFunction.__getitem__ = launcher

from tallstore.kernels.gpu.decode import apply_packed_delta, apply_packed_mask
from tallstore.kernels.gpu.encode import encode, packed_stride
from tallstore.kernels.device_rows import DeviceRows
from tallstore.kernels.gpu.measure import measure
from tallstore.kernels.gpu.products import add_products
from tallstore.kernels.rules import Rule
from tallstore.recipes import make_recipe

N, CHUNK = 5000, 4096
single, half = torch.zeros(N), torch.zeros(N, dtype=torch.bfloat16)
codes = torch.zeros(N, dtype=torch.uint8)
scales, tables = torch.ones(2), torch.zeros(2, 16)
name = "mask, bfloat16"
apply_packed_mask(half, half, codes, "signed", scales, CHUNK)
name = "mask, float32"
apply_packed_mask(single, single, codes, "binary", scales, CHUNK, single)
name = "mask, 4-bit vector"
apply_packed_mask(half, half, codes, "signed", scales, CHUNK, codes, tables)
name = "mask, one chunk"
apply_packed_mask(half, single, codes, "signed", scales[:1], 8192, single)
name = "delta"
apply_packed_delta(half, half, codes, 4, tables, CHUNK)

def masks(kind, count):
    return torch.zeros(count, packed_stride(kind, N), dtype=torch.uint8)

name = "encode, best"
encode(single, [single] * 5, make_recipe("fit").rule(range(5), ""), packed=masks("binary", 5), vector=single)
name = "encode, mean of mixed types"
mixed = [single, half, single.double(), half.half()]
encode(half, mixed, make_recipe("mean", lam=0.4).rule(range(4), ""), packed=masks("binary", 4), vector=half)
name = "encode, drawn at random"
drawn = Rule(
    vector="ones", mask="above", signed=True, limits=(0.1,) * 3, widths=(0.1,) * 3, seeds=(1, 2, (1 << 32) - 1)
)
encode(single, [single] * 3, drawn, packed=masks("signed", 3), start=1 << 33)
rows = DeviceRows(codes=codes, tables=tables, bits=4, chunk=CHUNK, rows=50, width=100, dtype=half.dtype, marks=9)
name = "product, bfloat16"
add_products(torch.zeros(3, 50), torch.zeros(3, 100), half.view(50, 100), [(rows, 0, 3)])
name = "product, float32"
rows = DeviceRows(codes=codes, tables=tables, bits=2, chunk=CHUNK, rows=50, width=100, dtype=single.dtype, marks=9)
add_products(torch.zeros(3, 50), torch.zeros(3, 100), single.view(50, 100), [(rows, 0, 3)])
name = "measure"
measure(half, single, single, codes, torch.float32, signed=True)
print(json.dumps(compiled))
"""


@pytest.fixture(scope="module")
def compiled(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    def make(path: Path) -> None:
        cache = str(tmp_path_factory.mktemp("triton"))
        done = child(LAUNCH, env={"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}, timeout=240)
        assert done.returncode == 0, done.stderr
        path.write_text(done.stdout)

    found: dict[str, str] = json.loads(shared.once("ptx.json", make).read_text())
    return found


def test_nothing_is_fused_flushed_or_approximated(compiled: dict[str, str]) -> None:
    assert len(compiled) == 11
    for name, ptx in compiled.items():
        fused = r"\.ftz" if name.startswith("product") else r"\bfma\.|\.ftz"  # a product's sums may be
        assert not re.search(fused, ptx), name
        assert not re.search(r"div\.(full|approx)|rcp\.", ptx), name


def test_accesses_are_wide(compiled: dict[str, str]) -> None:
    for name, ptx in compiled.items():
        decodes = name.startswith(("mask", "delta"))
        for access in ("ld", "st") if decodes else ("ld",) if name.startswith("encode") else ():
            assert re.search(rf"{access}\.global(\.\w+)*\.(v4\.b32|v2\.b64)", ptx), (name, access)


def test_bfloat16_is_rounded_to_nearest(compiled: dict[str, str]) -> None:
    found = re.findall(r"cvt\.\S*\.bf16\S*\.f32", compiled["mask, bfloat16"])
    assert found
    assert set(found) <= {"cvt.rn.bf16.f32", "cvt.rn.bf16x2.f32"}
