"""Memory and time of packing many synthetic checkpoints of the shape of CLIP's ViT-B/32.

Each checkpoint is fp32, with the names of an open_clip image classifier: an image encoder that is fine-tuned (87.8 M
parameters) and the rest of the text side that is not (25.8 M; the vocabulary is padded to 49,792 rows to make the
count). Twenty tasks and the base take 9.5 GB of FOLDER; checkpoints that are there already are used again.

Packing runs in a process of its own. Its peak memory is the highest resident set during `tallstore.pack`, above that of
the same process when it had imported torch and nothing else. Inputs leave the system's cache before they are read and
before they are packed, so that both begin at the disk (`--warm` leaves them in it).

example:
  python benchmarks/pack_memory.py /tmp/synthetic
  python benchmarks/pack_memory.py /tmp/synthetic --tasks 8 --scale 0.25 --layers 6 12 24
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    MIB,
    MemorySampler,
    add_pack_options,
    describe_machine,
    forget,
    memory_of,
    pack_options,
    progress_to_stderr,
    reset_peak,
    sole_user,
    table,
)

WEIGHTS = "model.safetensors"
BLOCK = 8 * MIB
CHILD = "--child"
HEAD_WIDTH = 64
WIDTH, TEXT_WIDTH, VOCABULARY, CONTEXT, PATCH, POSITIONS = 768, 512, 49_792, 77, 32, 50


@dataclass(frozen=True)
class Figures:
    """How a tensor of one sort looks, in the base and in how tasks move it."""

    center: float
    """Mean of θ0."""
    spread: float
    """Standard deviation of θ0."""
    moved: float
    """Root mean square of τ; 0 for a frozen tensor."""
    shared: float
    """Mean correlation between two tasks' τ."""
    unmoved: float
    """Share of elements where τ is exactly 0."""


# Measured on the project's real zoo (MiniLM-L6, eight text classifiers, fp32, two passes), means over its tensors of
# each sort. Tails there are hardly heavier than a normal distribution's: kurtosis 3.2, |τ|/rms at 99.9 % 3.4.
FIGURES = {
    "weight": Figures(center=0.0, spread=0.064, moved=1.8e-3, shared=0.026, unmoved=0.0035),
    "bias": Figures(center=0.0, spread=0.080, moved=1.4e-3, shared=0.19, unmoved=0.0025),
    "norm.weight": Figures(center=0.61, spread=0.08, moved=2.4e-3, shared=0.11, unmoved=0.0020),
    "norm.bias": Figures(center=0.0, spread=0.073, moved=1.2e-3, shared=0.20, unmoved=0.0028),
    "embedding": Figures(center=0.0, spread=0.024, moved=8.6e-4, shared=0.054, unmoved=0.50),
    "frozen": Figures(center=0.0, spread=0.040, moved=0.0, shared=0.0, unmoved=1.0),
}
KURTOSIS = 3.2


@dataclass(frozen=True)
class Spec:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    sort: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def vit_b32(layers: int = 12, scale: float = 1.0) -> list[Spec]:
    """The tensors of the model, its widths and vocabulary times `scale`."""
    width, text = _scaled(WIDTH, scale), _scaled(TEXT_WIDTH, scale)
    visual = "model.visual."
    found = [
        Spec("model.positional_embedding", (CONTEXT, text), "frozen"),
        Spec("model.text_projection", (text, text), "frozen"),
        Spec("model.logit_scale", (), "frozen"),
        Spec(f"{visual}class_embedding", (width,), "embedding"),
        Spec(f"{visual}positional_embedding", (POSITIONS, width), "embedding"),
        Spec(f"{visual}proj", (width, text), "weight"),
        Spec(f"{visual}conv1.weight", (width, 3, PATCH, PATCH), "weight"),
        *_norm(f"{visual}ln_pre", width),
    ]
    for layer in range(layers):
        found += _block(f"{visual}transformer.resblocks.{layer}.", width)
    found += _norm(f"{visual}ln_post", width)
    found.append(Spec("model.token_embedding.weight", (_scaled(VOCABULARY, scale), text), "frozen"))
    return [*found, Spec("model.ln_final.weight", (text,), "frozen"), Spec("model.ln_final.bias", (text,), "frozen")]


def _scaled(width: int, scale: float) -> int:
    return max(HEAD_WIDTH, round(width * scale / HEAD_WIDTH) * HEAD_WIDTH)


def _norm(prefix: str, width: int) -> list[Spec]:
    return [Spec(f"{prefix}.weight", (width,), "norm.weight"), Spec(f"{prefix}.bias", (width,), "norm.bias")]


def _linear(prefix: str, out: int, width: int) -> list[Spec]:
    return [Spec(f"{prefix}.weight", (out, width), "weight"), Spec(f"{prefix}.bias", (out,), "bias")]


def _block(prefix: str, width: int) -> list[Spec]:
    return [
        *_norm(f"{prefix}ln_1", width),
        Spec(f"{prefix}attn.in_proj_weight", (3 * width, width), "weight"),
        Spec(f"{prefix}attn.in_proj_bias", (3 * width,), "bias"),
        *_linear(f"{prefix}attn.out_proj", width, width),
        *_norm(f"{prefix}ln_2", width),
        *_linear(f"{prefix}mlp.c_fc", 4 * width, width),
        *_linear(f"{prefix}mlp.c_proj", width, 4 * width),
    ]


def base_tensor(spec: Spec) -> Any:
    """θ0 of a tensor."""
    figures = FIGURES[spec.sort]
    return figures.center + figures.spread * _noise(spec, "base")


def tuned_tensor(spec: Spec, task: str) -> Any:
    """θt: θ0 plus a part that all tasks share and a part of the task's own."""
    import torch

    figures, base = FIGURES[spec.sort], base_tensor(spec)
    if not figures.moved:
        return base
    tau = math.sqrt(1 - figures.shared) * _noise(spec, task) + math.sqrt(figures.shared) * _noise(spec, "shared")
    tau += (KURTOSIS - 3) / 24 * (tau**3 - 3 * tau)  # Cornish-Fisher: the tails' weight, the variance as before
    chance = torch.rand(spec.shape, generator=_generator(spec, f"{task} unmoved"))
    return torch.where(chance < figures.unmoved, base, base + figures.moved / math.sqrt(1 - figures.unmoved) * tau)


def _noise(spec: Spec, what: str) -> Any:
    import torch

    return torch.randn(spec.shape, generator=_generator(spec, what))


def _generator(spec: Spec, what: str) -> Any:
    import torch

    return torch.Generator().manual_seed(zlib.crc32(f"{what}\0{spec.name}".encode()))


def make_checkpoints(folder: Path, specs: list[Spec], tasks: int) -> tuple[Path, dict[str, Path]]:
    """Write the base and the tasks, but for those that are there."""
    names = [f"task{n:02}" for n in range(tasks)]
    progress_to_stderr("making checkpoints", 0, tasks + 1)
    _write(folder / "base", specs, base_tensor)
    for n, name in enumerate(names, start=1):
        progress_to_stderr("making checkpoints", n, tasks + 1)
        _write(folder / name, specs, lambda spec, name=name: tuned_tensor(spec, name))
    progress_to_stderr("making checkpoints", tasks + 1, tasks + 1)
    return folder / "base", {name: folder / name for name in names}


def _write(folder: Path, specs: list[Spec], tensor: Callable[[Spec], Any]) -> None:
    from safetensors.torch import save_file

    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file({spec.name: tensor(spec) for spec in specs}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["ImageEncoder"]}), encoding="utf-8")


def read_all(paths: list[Path]) -> float:
    """Seconds to read files from start to end, one after the other."""
    block = bytearray(BLOCK)
    began = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - began


def pack_here(base: str, tasks: Mapping[str, str], archive: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: pack, and say what it took."""
    import torch  # noqa: F401 - memory is counted above an interpreter that has imported it

    before = memory_of()["VmRSS"]
    import tallstore

    reset_peak()
    began, cpu = time.perf_counter(), time.process_time()
    report = tallstore.pack(base, tasks, archive, overwrite=True, **options)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "torch_bytes": before,
        "peak_bytes": memory_of()["VmHWM"] - before,
        "archive_bytes": Path(archive).stat().st_size,
        "bits_per_parameter": report.bits_per_parameter,
    }


def measure(arguments: argparse.Namespace, layers: int) -> dict[str, Any]:
    """One model size: make what is missing, read it, pack it."""
    folder = arguments.folder / f"layers{layers}-scale{arguments.scale:g}"
    specs = vit_b32(layers, arguments.scale)
    base, tasks = make_checkpoints(folder, specs, arguments.tasks)
    files = [path / WEIGHTS for path in (base, *tasks.values())]
    prepare = (lambda: None) if arguments.warm else (lambda: forget(files))
    prepare()
    read_seconds = read_all(files)
    prepare()
    job = {"base": base, "tasks": tasks, "archive": folder / "zoo.tall", "options": pack_options(arguments)}
    packed = _run_child(json.dumps(job, default=str))
    if arguments.delete:
        shutil.rmtree(folder)
    return {
        "layers": layers,
        "tasks": arguments.tasks,
        "tensors": len(specs),
        "parameters": sum(spec.numel for spec in specs),
        "frozen_parameters": sum(spec.numel for spec in specs if spec.sort == "frozen"),
        "input_bytes": sum(4 * spec.numel for spec in specs) * (arguments.tasks + 1),
        "read_seconds": read_seconds,
        **packed,
    }


def _run_child(job: str) -> dict[str, Any]:
    command = [sys.executable, __file__, CHILD, job]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child, MemorySampler(child.pid) as sampler:
        out, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"packing failed with exit code {child.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found | {"peak_anonymous_bytes": sampler.peaks["RssAnon"], "peak_mapped_bytes": sampler.peaks["RssFile"]}


def _rows(found: list[dict[str, Any]]) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    yield "tasks", lambda r: str(r["tasks"])
    yield "tensors", lambda r: str(r["tensors"])
    yield "parameters, M", lambda r: f"{r['parameters'] / 1e6:.1f}"
    yield "of these frozen, M", lambda r: f"{r['frozen_parameters'] / 1e6:.1f}"
    yield "input, GB", lambda r: f"{r['input_bytes'] / 1e9:.2f}"
    yield "archive, GB", lambda r: f"{r['archive_bytes'] / 1e9:.3f}"
    yield "input / archive", lambda r: f"{r['input_bytes'] / r['archive_bytes']:.2f}"
    yield "bits a parameter and task", lambda r: f"{r['bits_per_parameter']:.3f}"
    yield "seconds to read the input", lambda r: f"{r['read_seconds']:.1f}"
    yield "seconds to pack it", lambda r: f"{r['seconds']:.1f}"
    yield "pack / read", lambda r: f"{r['seconds'] / r['read_seconds']:.2f}"
    yield "processor seconds to pack it", lambda r: f"{r['cpu_seconds']:.1f}"
    yield "GB of input a second", lambda r: f"{r['input_bytes'] / 1e9 / r['seconds']:.2f}"
    yield "**peak memory above torch, MiB** (goal at 12 layers: ≤ 1536)", lambda r: f"{r['peak_bytes'] / MIB:.0f}"
    yield "peak of the process's own memory, MiB", lambda r: f"{r['peak_anonymous_bytes'] / MIB:.0f}"
    yield "peak of mapped files, MiB", lambda r: f"{r['peak_mapped_bytes'] / MIB:.0f}"
    yield "torch imported, MiB", lambda r: f"{r['torch_bytes'] / MIB:.0f}"
    if len(found) > 1:
        yield "peak against the first column", lambda r: f"{r['peak_bytes'] / found[0]['peak_bytes']:.2f}"


def parse() -> argparse.Namespace:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the checkpoints and the archive go")
    parser.add_argument("--tasks", type=int, default=20, help="fine-tuned checkpoints (default: 20)")
    parser.add_argument("--layers", type=int, nargs="+", default=[12], help="one or more depths (default: 12)")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink widths and vocabulary (default: 1)")
    parser.add_argument("--warm", action="store_true", help="leave the inputs in the system's cache")
    parser.add_argument("--delete", action="store_true", help="delete checkpoints and archive when measured")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_pack_options(parser)
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(pack_here(**json.loads(sys.argv[2]))))
        return
    arguments = parse()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sole_user(arguments.folder):
        found = [measure(arguments, layers) for layers in arguments.layers]
    if arguments.json:
        print(json.dumps({"machine": describe_machine(), "runs": found}, indent=1))
        return
    cache = "inputs in the system's cache" if arguments.warm else "inputs not in the system's cache"
    head = ["", *(f"{r['layers']} layers" for r in found)]
    print(f"{describe_machine()}; {cache}\n")
    print(table(head, [(label, *map(cell, found)) for label, cell in _rows(found)]))


if __name__ == "__main__":
    main()
