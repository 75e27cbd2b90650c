"""What the compiler makes of the kernels for a GPU: no fused multiply-adds, and 128 bits at a time. Needs no GPU."""

from __future__ import annotations

import json
import re

import pytest
from support import child

pytest.importorskip("triton")

COMPILE = """
import json, sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tallstore.kernels.gpu import decode, encode, measure
from tallstore.recipes.network import exchanges

def ptx(kernel, types, warps=8, **constants):
    at = kernel.arg_names.index
    pointers = [(at(name),) for name, kind in types.items() if kind[0] == "*"]
    pointers += [(at(name), i) for name, kind in types.items() if isinstance(kind, tuple) for i in range(len(kind))]
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={(at(name),): value for name, value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in pointers},
    )
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

numbers = {"n": "i64", "blocks_a_chunk": "i32"}
tensors = {"packed": "*u8", "scales": "*fp32", "vector": "*fp32", "vector_tables": "*fp32"}
found = {}
for name, kind, size in (("bf16", "*i16", 2), ("fp32", "*fp32", 4)):
    found["mask " + name] = ptx(
        decode._mask_kernel, {"out": kind, "base": kind, **tensors, **numbers},
        BITS=2, VECTOR=1, W=tl.float32, BLOCK=4096 // size,
    )
found["delta"] = ptx(
    decode._delta_kernel, {"out": "*i16", "base": "*i16", "packed": "*u8", "tables": "*fp32", **numbers},
    BITS=4, W=tl.float32, BLOCK=2048,
)
T = 5
for vector, mask, signed in (("best", "nearer", False), ("mean", "tall", False), ("ones", "above", True)):
    numbers = {"limits": "*fp32", "widths": "*fp32", "seeds": "*i64", "trims": "*fp32"}
    found["encode " + vector] = ptx(
        encode._encode_kernel,
        {"base": "*fp32", "sources": ("*fp32",) * T, "vector": "*fp32", "masks": "*i16" if signed else "*u8", **numbers,
         "n": "i64", "stride": "i64", "start": "i64"},
        warps=4, T=T, VECTOR=vector, MASK=mask, SIGNED=signed, HASHED=signed, TRIMMED=False, MAJORITY=False,
        EXCHANGES=tuple(end for pair in exchanges(T) for end in pair), FACTORS=(0.5,) * T, W=tl.float32, BLOCK=512,
    )
found["measure"] = ptx(
    measure._measure_kernel,
    {"base": "*i16", "weights": "*i16", "vector": "*fp32", "packed": "*u8", "out": "*fp64", "n": "i64", "blocks": "i32"},
    warps=1, ONES=False, BITS=2, W=tl.float32,
)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("triton"))
    done = child(COMPILE, env={"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache})
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_nothing_is_fused_flushed_or_approximated(compiled: dict[str, str]) -> None:
    for name, ptx in compiled.items():
        assert not re.search(r"\bfma\.|\.ftz", ptx), name
        assert not re.search(r"div\.(full|approx)|rcp\.", ptx), name


def test_accesses_are_wide(compiled: dict[str, str]) -> None:
    for name, ptx in compiled.items():
        for access in ("ld", "st") if name.startswith(("mask", "delta")) else ("ld",) if "encode" in name else ():
            assert re.search(rf"{access}\.global(\.\w+)*\.(v4\.b32|v2\.b64)", ptx), (name, access)


def test_bfloat16_is_rounded_to_nearest(compiled: dict[str, str]) -> None:
    assert set(re.findall(r"cvt\S*bf16\S*", compiled["mask bf16"])) <= {"cvt.rn.bf16.f32", "cvt.rn.bf16x2.f32"}
    assert re.search(r"cvt\.rn\.bf16", compiled["mask bf16"])
