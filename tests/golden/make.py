"""Write the golden archives of the format's newest version; those that are there are left alone. Run by hand."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spec" / "vectors"))
import pytest
import torch
from making.build import write_safetensors
from making.numbers import Tensor
from spec.second_reader import Archive
from support import aligned_zoo, drawn_zoo, noise, nothing_dropped, packed_in_chunks
from trust.small_zoos import write

import tallstore
from spec.vectors import read_plain
from tallstore.format.version import NEWEST
from tallstore.recipes.low_rank import matrix_of

HERE = Path(__file__).resolve().parent
CODES = "codes and directions"
FAMILY = "family"
RUN = "run"
SHARE = "share"
DRAWN = "drawn"
LOW_RANK = "low rank"
FLOAT32 = "float32"
KINDS = {
    "1.0": ("defaults", "high", "three bits", "referenced", "fit q4", "fit q8", "fit bf16", "emr"),
    "1.1": ("lossless", CODES),
    "1.2": (FAMILY, f"{FAMILY} with loss"),
    "1.3": (RUN,),
    "1.4": (SHARE, DRAWN, LOW_RANK, FLOAT32),
}
"""By the version that they need."""


def write_codes(_kind: str, root: Path, *, suffix: str) -> tuple[Path, Path | None]:
    """Types of few bits, codes, and a matrix whose elements moved together: what came with 1.1."""
    base = {
        "matrix": noise(256, 256, seed=1, dtype=torch.bfloat16),
        "half": noise(40, 30, seed=2, dtype=torch.float16),
        "f8": noise(40, 30, seed=3).to(torch.float8_e4m3fn),
        "codes": torch.arange(1200, dtype=torch.int32).remainder(17).to(torch.int8).reshape(40, 30),
    }
    pull = torch.outer(noise(256, seed=4), noise(256, seed=5))
    task = {
        "matrix": (base["matrix"].float() + 0.02 * pull.sign()).bfloat16(),
        "half": (base["half"].float() * 1.001).half(),
        "f8": (base["f8"].float() * 1.1).to(torch.float8_e4m3fn),
        "codes": base["codes"] + (noise(40, 30, seed=6) > 1).to(torch.int8),
    }
    out = root / f"zoo{suffix}"
    tallstore.pack(base, {"a": task}, out, quality="lossless", base_codec="raw")
    return out, None


def write_family(kind: str, root: Path, *, suffix: str) -> tuple[Path, Path | None]:
    """Merges by every method, and in the archive without loss a child and its child."""
    base = {"w": noise(40, 30, size=0.1, seed=1, dtype=torch.bfloat16), "b": noise(300, seed=2, dtype=torch.bfloat16)}

    def near(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        return {n: (t.float() + noise(*t.shape, size=0.01, seed=seed + len(n))).bfloat16() for n, t in state.items()}

    tasks = {name: near(base, 10 * seed) for seed, name in enumerate("abc", 1)}
    for rows, state in enumerate(tasks.values(), 2):
        state["head"] = noise(rows, 30, seed=rows)
    out = root / f"zoo{suffix}"
    tallstore.pack(base, tasks, out, quality="balanced" if kind != FAMILY else "lossless")
    tallstore.add_merge(out, "linear", "0.6*a + 0.4*b", head="a")
    tallstore.add_merge(out, "arithmetic", "0.5*a + 0.5*b - 0.25*c", head="c")
    tallstore.add_merge(out, "consensus", "a + b + c", method="consensus", k=2, head="b")
    tallstore.add_merge(out, "ties", "a + b", method="ties", head="b")
    tallstore.add_merge(out, "slerp", "0.3*linear + 0.7*c", method="slerp", head="c")
    if kind == FAMILY:
        tallstore.add(out, {"child": near(tasks["a"], 70)}, parent="a")
        tallstore.add(out, {"grandchild": near(tasks["a"], 80)}, parent="child")
    return out, None


def write_run(_kind: str, root: Path, *, suffix: str) -> tuple[Path, Path | None]:
    """A chain of two links of checkpoints that go on and come back, and a merge of its ends."""
    base = {"w": noise(60, 50, size=0.1, seed=1, dtype=torch.bfloat16), "b": noise(600, seed=2, dtype=torch.bfloat16)}
    pull = {name: noise(*tensor.shape, size=0.0001, seed=3) for name, tensor in base.items()}

    def at(step: int) -> dict[str, torch.Tensor]:
        return {name: (tensor.float() + step * pull[name]).bfloat16() for name, tensor in base.items()}

    out = root / f"zoo{suffix}"
    tallstore.pack(base, {"six": at(6)}, out, quality="lossless")
    tallstore.add(out, {"nine": at(9)}, parent="six")
    tallstore.add(out, {"three": at(3)}, parent="nine")
    tallstore.add_merge(out, "mix", "0.5*three + 0.5*six")
    return out, None


def write_share(_kind: str, root: Path, *, suffix: str) -> tuple[Path, Path | None]:
    """Tensors of whose changes a share is kept, of both types that may be; one with rows of its own."""
    base: dict[str, torch.Tensor] = {}
    task: dict[str, torch.Tensor] = {}
    for dtype, name in ((torch.bfloat16, "brain"), (torch.float16, "half")):
        origin, tasks = aligned_zoo(1, dtype, 144, layers=2)
        base |= {f"{name}.{each}": tensor for each, tensor in origin.items()}
        task |= {f"{name}.{each}": tensor for each, tensor in tasks["a"].items()}
    task["brain.l0.weight"] = torch.cat([task["brain.l0.weight"], noise(2, 144, seed=9, dtype=torch.bfloat16)])
    out = root / f"zoo{suffix}"
    tallstore.pack(base, {"a": task}, out, quality="small")
    with tallstore.open(out) as zoo:
        kinds = {name: facts.kind for name, facts in zoo.tensors("a").items()}
    assert {kinds[name] for name in ("brain.l0.weight", "half.l0.weight")} == {"sampled"}, kinds
    return out, None


def write_drawn(_kind: str, root: Path, *, suffix: str) -> tuple[Path, Path | None]:
    """float32 whose marks, at `small`, and levels, by default, a dither drew; half the rows of one tensor never moved."""
    out = root / f"zoo{suffix}"
    base, task = drawn_zoo()
    with pytest.MonkeyPatch.context() as patch:
        nothing_dropped(patch)
        tallstore.pack(base, {"a": task}, out)
        tallstore.add(out, {"b": task}, quality="small")
    with tallstore.open(out) as zoo:
        codecs = [zoo.tensors(task)[name].codec for task, name in (("a", "matrix"), ("b", "matrix"), ("b", "words"))]
    assert codecs == ["dither-levels", "dither", "dither-levels"], codecs
    return out, None


def write_low_rank(_kind: str, root: Path, *, suffix: str) -> tuple[Path, Path | None]:
    """Matrices of both types, of several chunks, that moved by few directions and a little noise; one has rows of its own."""
    base, task = {}, {}
    for seed, (dtype, name) in enumerate(((torch.bfloat16, "brain"), (torch.float16, "half")), 1):
        base[name] = noise(140, 120, size=0.05, seed=seed, dtype=dtype)
        pull = noise(140, 3, seed=10 * seed) @ noise(3, 120, seed=10 * seed + 1)
        own = noise(140, 120, size=0.0005, seed=10 * seed + 2)
        task[name] = (base[name].float() + 0.002 * pull + own).to(dtype)
    task["brain"] = torch.cat([task["brain"], noise(2, 120, seed=9, dtype=torch.bfloat16)])
    out = root / f"zoo{suffix}"
    with packed_in_chunks(base, {"a": task}, out, 1 << 13, quality="balanced") as (zoo, _):
        assert {zoo.tensors("a")[name].codec for name in base} == {"dare"}
    parts, _ = Archive(out)._entries("a")
    for name in base:
        modes = [data[0] for _, _, data in parts.chunks(name)]
        assert modes == [3, 3, 3], "their chunks' modes"
    return out, None


def write_float32(_kind: str, root: Path, *, suffix: str) -> tuple[Path, Path | None]:
    """float32 of several chunks behind products, a later version of it, rows of its own, long kernels, what is no number."""
    shapes = {"matrix": (90, 80), "filters": (24, 20, 3, 3), "kernels": (8, 16, 64), "odd": (90, 80)}
    base = {name: noise(*shape, size=0.05, seed=seed) for seed, (name, shape) in enumerate(shapes.items(), 1)}

    def moved(state: dict[str, torch.Tensor], seed: int, part: float = 1.0) -> dict[str, torch.Tensor]:
        found = {}
        for n, (name, shape) in enumerate(shapes.items()):
            rows, columns = matrix_of(shape)
            pull = noise(rows, 3, seed=seed + 10 * n) @ noise(3, columns, seed=seed + 10 * n + 1)
            own = noise(*shape, size=0.0005, seed=seed + 10 * n + 2)
            found[name] = state[name] + part * (0.002 * pull.reshape(shape) + own)
        return found

    task = moved(base, 100)
    task["odd"][-1, -3:] = torch.tensor([float("nan"), float("inf"), -0.0])
    task["matrix"] = torch.cat([task["matrix"], noise(2, 80, seed=9)])
    out = root / f"zoo{suffix}"
    with packed_in_chunks(base, {"a": task}, out, 1 << 12, bits=4.0, allow_distant=True) as (zoo, _):
        kinds = {(facts.dtype, facts.kind) for facts in zoo.tensors("a").values()}
        back = zoo.state_dict("a")
    later = moved(back | {"matrix": back["matrix"][:90]}, 200, 0.2)
    tallstore.add(out, {"later": later}, parent="a", bits=2.0, allow_distant=True)
    assert kinds == {("F32", "sampled")}, kinds
    parts, _ = Archive(out)._entries("a")
    modes = {name: [data[0] for _, _, data in parts.chunks(name)] for name in base}
    assert modes == {"matrix": [3, 3], "filters": [3, 3], "kernels": [3, 3], "odd": [3, 0]}, modes
    with tallstore.open(out) as zoo:
        started = [facts.kind for facts in zoo.tensors("later").values() if facts.start is not None]
    assert "sampled" in started, started
    return out, None


def main() -> None:
    """All kinds, and the list of hashes."""
    out = HERE / NEWEST
    kinds = {kind: out / re.sub(r"\W+", "-", kind) for kind in KINDS[NEWEST]}
    if all(folder.exists() for folder in kinds.values()):
        raise SystemExit(f"{out} is there: what was released is not written again")
    for kind, folder in kinds.items():
        if folder.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            write_one = {
                CODES: write_codes,
                RUN: write_run,
                SHARE: write_share,
                DRAWN: write_drawn,
                LOW_RANK: write_low_rank,
                FLOAT32: write_float32,
            }.get(kind, write_family if kind.startswith(FAMILY) else write)
            archive, base = write_one(kind, Path(scratch), suffix=".tall")
            folder.mkdir(parents=True)
            shutil.copyfile(archive, folder / "zoo.tall")
            if base is not None:
                shutil.copyfile(base, folder / "base.safetensors")
        given = read_plain(folder / "base.safetensors") if base is not None else None
        reader = Archive(folder / "zoo.tall", given)
        for task, facts in reader.manifest["tasks"].items():
            forms = {"decoded": reader.decode(task)}
            if "exact" in facts["parts"]:
                forms["exact"] = reader.decode(task, exact=True)
            for form, tensors in forms.items():
                made = {name: Tensor(dtype, shape, data) for name, (dtype, shape, data) in tensors.items()}
                write_safetensors(made, folder / form / f"{task}.safetensors")
    paths = sorted(p for p in HERE.rglob("*") if p.is_file() and p.parent != HERE)
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(HERE).as_posix()}\n" for p in paths]
    (HERE / "SHA256SUMS").write_text("".join(line for line in lines if "__pycache__" not in line), encoding="utf-8")


if __name__ == "__main__":
    main()
