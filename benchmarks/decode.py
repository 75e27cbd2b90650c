"""How long it takes to load one task, to write it into a model, and to switch: beside plain files, floors and peers.

A synthetic zoo of the shape of CLIP's ViT-B/32 (see `synthetic.py`), fp32. Every row loads the same task in a process
of its own, several times; rows take turns, round by round, so that what else the machine does meets all of them. Peak
memory is the highest resident set above what the process had before (libraries imported, models made). Files are in the
system's cache (`--cold` drops them before each load: FOLDER must then be on a disk).

Tensors that a process loads again and again may get the memory that the last ones had (`touched`, by the allocator's
luck; `fresh`), where a process that loads once gets all of it from the system (`touched, new memory`; `once`). `into`
writes into a model, from an archive that this process read before; `first`: from one that it
did not.

Floors: a copy of the tensors in memory, and `torch.add(a, b, out=c)` over all of them. Peers, their formats written and
read as their own loaders do it, in torch: BitDelta (packed signs, one scale a matrix, added to the base's file),
deltatensors-like (int4 in groups of 128, outliers apart), and zipnn (lossless, its own package).

example:
  python benchmarks/decode.py /dev/shm/vit
  python benchmarks/decode.py /tmp/vit --cold --rounds 3
  python benchmarks/decode.py /dev/shm/vit --growth
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import MIB, describe_machine, forget, memory_of, reset_peak, sole_user, table
from synthetic import WEIGHTS, make_checkpoints, vit_b32

CHILD = "--child"
TASK = "task00"
NEW = "touched, new memory"
"""The same load where what it had before goes back to the system: as in a process that loads a model once."""
OPTIONS: Mapping[str, dict[str, Any]] = {
    "raw": {"base_codec": "raw"},
    "default": {},
    "high": {"base_codec": "raw", "quality": "high"},
    "fit": {"base_codec": "raw", "recipe": "fit"},
}
"""Archives: name → options of pack."""
LOADS = ("fresh", "once", "into", "first", "switch", "merged")


def archives(folder: Path, tasks: int) -> dict[str, Path]:
    """The zoo packed, as often as it takes."""
    import tallstore

    base, sources = make_checkpoints(folder, vit_b32(), tasks)
    found = {}
    for name, options in OPTIONS.items():
        found[name] = folder / f"{name}.tall"
        if not found[name].exists():
            tallstore.pack(base, sources, found[name], **options)
    return found


def make_peers(folder: Path) -> None:
    """The task in the peers' formats."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    if (folder / "int4.safetensors").exists():
        return
    base, task = (load_file(folder / name / WEIGHTS) for name in ("base", TASK))
    signs, int4 = {}, {}
    for name, start in base.items():
        tau = (task[name] - start).reshape(-1)
        if start.dim() < 2:
            signs[f"{name}:whole"] = int4[f"{name}:whole"] = task[name]
            continue
        signs[f"{name}:signs"] = torch.from_numpy(np.packbits((tau > 0).numpy(), bitorder="little"))
        signs[f"{name}:scale"] = tau.abs().mean()
        count = int(len(tau) * 0.013)
        apart = tau.abs().topk(count).indices
        int4[f"{name}:places"], int4[f"{name}:values"] = apart.int(), tau[apart].half()
        rest = tau.clone()
        rest[apart] = 0
        groups = torch.nn.functional.pad(rest, (0, -len(rest) % 128)).view(-1, 128)
        scale = (groups.abs().amax(1, keepdim=True) / 7).half().float().clamp(min=6e-8)
        nibbles = ((groups / scale).round().clamp(-8, 7) + 8).to(torch.uint8).reshape(-1, 2)
        int4[f"{name}:nibbles"], int4[f"{name}:scale"] = nibbles[:, 0] | nibbles[:, 1] << 4, scale.half()
    save_file(signs, folder / "signs.safetensors")
    try:
        from zipnn import ZipNN
    except ImportError:
        print("no zipnn here: pip install zipnn", file=sys.stderr)
    else:
        coder = ZipNN(bytearray_dtype="float32", input_format="byte")
        coded = {n: bytes(coder.compress(bytearray(t.numpy().tobytes()))) for n, t in task.items() if t.numel() > 4096}
        save_file(
            {n: torch.frombuffer(bytearray(c), dtype=torch.uint8) for n, c in coded.items()},
            folder / "zipnn.safetensors",
        )
    save_file(int4, folder / "int4.safetensors")


def ways(folder: Path, wanted: str) -> tuple[Callable[[], Any], list[Path]]:
    """What a child runs again and again, made ready; and the files that it reads."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    plain = folder / TASK / WEIGHTS

    def touched() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in load_file(plain).items()}

    kind, _, name = wanted.partition(" ")
    if kind in LOADS:
        archive = folder / f"{name}.tall"
        if kind == "first":  # its own, since it is touched: the other rows know theirs
            archive = Path(shutil.copy(archive, folder / f"first-{name}.tall"))
        return load_of(archive, kind, touched), [archive]
    if wanted in {"copy", "add"}:
        here, there = touched(), touched()
        out = {n: torch.empty_like(t) for n, t in here.items()}
        if wanted == "copy":
            return lambda: {n: t.clone() for n, t in here.items()}, []
        return lambda: [torch.add(t, there[n], out=out[n]) for n, t in here.items()], []
    if wanted == "lazy":
        return lambda: load_file(plain), [plain]
    if wanted in {"touched", NEW}:
        return touched, [plain]
    base = folder / "base" / WEIGHTS

    def signs() -> dict[str, torch.Tensor]:
        found, start = load_file(folder / "signs.safetensors"), load_file(base)
        out = {}
        for n, tensor in start.items():
            if f"{n}:whole" in found:
                out[n] = found[f"{n}:whole"].clone()
                continue
            bits = np.unpackbits(found[f"{n}:signs"].numpy(), count=tensor.numel(), bitorder="little")
            delta = torch.from_numpy(bits).to(torch.float32).mul_(2).sub_(1).mul_(found[f"{n}:scale"])
            out[n] = delta.view(tensor.shape).add_(tensor)
        return out

    def int4() -> dict[str, torch.Tensor]:
        found, start = load_file(folder / "int4.safetensors"), load_file(base)
        out = {}
        for n, tensor in start.items():
            if f"{n}:whole" in found:
                out[n] = found[f"{n}:whole"].clone()
                continue
            packed = found[f"{n}:nibbles"]
            delta = torch.stack([packed & 15, packed >> 4], 1).view(-1, 128).float().sub_(8).mul_(found[f"{n}:scale"])
            delta = delta.view(-1)[: tensor.numel()]
            delta[found[f"{n}:places"].long()] = found[f"{n}:values"].float()
            out[n] = delta.view(tensor.shape).add_(tensor)
        return out

    def zipnn() -> dict[str, torch.Tensor]:
        from zipnn import ZipNN

        coder = ZipNN(bytearray_dtype="float32", input_format="byte", threads=torch.get_num_threads())
        found, out = load_file(folder / "zipnn.safetensors"), {}
        for n, tensor in load_file(plain).items():
            if n in found:
                raw = coder.decompress(found[n].numpy().tobytes())
                out[n] = torch.frombuffer(raw, dtype=torch.float32).view(tensor.shape)
            else:
                out[n] = tensor.clone()
        return out

    peers = {"BitDelta": (signs, "signs"), "int4 + outliers": (int4, "int4"), "zipnn": (zipnn, "zipnn")}
    load, file = peers[wanted]
    return load, [folder / f"{file}.safetensors", base]


def load_of(archive: Path, kind: str, touched: Callable[[], dict[str, Any]]) -> Callable[[], Any]:
    """One of tallstore's loads."""
    import torch

    import tallstore

    class Model(torch.nn.Module):
        """Tensors under the checkpoint's names."""

        def __init__(self) -> None:
            super().__init__()
            self.own = touched()

        def state_dict(self, *_: Any, **__: Any) -> Any:
            return self.own

    def fresh() -> Any:
        with tallstore.open(archive) as zoo:
            return zoo.state_dict(TASK)

    def merged() -> Any:
        with tallstore.open(archive) as zoo:
            return zoo.merged(k=2, alpha=0.3)

    if kind in {"fresh", "once", "merged"}:
        return merged if kind == "merged" else fresh
    model = Model()
    if kind in {"into", "first"}:

        def into() -> None:
            if kind == "first":
                os.utime(archive)  # another file, as far as can be told: nothing of it is known to be right
            with tallstore.open(archive) as zoo:
                zoo.load_into(model, TASK)

        return into
    switcher = tallstore.open(archive).switcher(model)
    turn = [0]

    def switch() -> None:
        turn[0] += 1
        switcher.switch(switcher.tasks[turn[0] % 2])

    return switch


def child(folder: Path, wanted: str, *, cold: bool) -> None:
    """Load once for every line on standard input; answer with seconds and peak memory."""
    load, files = ways(folder, wanted)
    load()  # imports and compilation are not what is measured
    for _ in sys.stdin:
        if cold:
            forget(files)
        before = memory_of()["VmRSS"]
        reset_peak()
        began = time.perf_counter()
        kept = load()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "peak": memory_of()["VmHWM"] - before}), flush=True)
        del kept
        if wanted.startswith("once "):
            import tallstore.memory

            tallstore.memory.release()


class Row:
    """A child that loads when it is told to."""

    def __init__(self, folder: Path, wanted: str, *, cold: bool) -> None:
        command = [sys.executable, __file__, CHILD, str(folder), wanted, *(["--cold"] if cold else [])]
        env = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": str(MIB)} if wanted == NEW else {})}
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.seconds: list[float] = []
        self.peaks: list[int] = []

    def load(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        found = json.loads(self._child.stdout.readline())
        self.seconds.append(found["seconds"])
        self.peaks.append(found["peak"])

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def run(folder: Path, names: list[str], rounds: int, *, cold: bool) -> dict[str, Row]:
    """A few rows at a time, always with the two that the others are compared with: memory is finite."""
    found: dict[str, Row] = {}
    for first in range(0, len(names), 3):
        rows = {name: Row(folder, name, cold=cold) for name in (*names[first : first + 3], "touched", NEW, "add")}
        for _ in range(rounds):
            for row in rows.values():
                row.load()
        for name, row in rows.items():
            row.close()
            kept = found.setdefault(name, row)
            if kept is not row:
                kept.seconds += row.seconds
    return found


GROWTH = (
    (1, 0.25, "float32"),
    (4, 0.25, "float32"),
    (16, 0.25, "float32"),
    (64, 0.25, "float32"),
    (2, 0.5, "float32"),
    (2, 1.0, "float32"),
    (4, 0.25, "bfloat16"),
    (4, 0.25, "float16"),
    (4, 0.25, "float64"),
)
"""Tasks, scale of the model's widths, and type of its weights."""


def converted(folder: Path, dtype: str, sources: Mapping[str, Path]) -> dict[str, Path]:
    """Checkpoints in another type."""
    import torch
    from safetensors.torch import load_file, save_file

    if dtype == "float32":
        return dict(sources)
    found = {}
    for name, source in sources.items():
        found[name] = folder / dtype / name
        found[name].mkdir(parents=True, exist_ok=True)
        if not (found[name] / WEIGHTS).exists():
            state = load_file(source / WEIGHTS)
            save_file({n: t.to(getattr(torch, dtype)) for n, t in state.items()}, found[name] / WEIGHTS)
    return found


def growth(folder: Path) -> str:
    """Time of one task's decode, and of packing, with more tasks, larger models and other types."""
    import tallstore

    cells = []
    for tasks, scale, dtype in GROWTH:
        own = folder / f"growth-{scale}"
        base, sources = make_checkpoints(own, vit_b32(scale=scale), tasks)
        given = converted(own, dtype, {"base": base, **sources})
        archive = own / f"{tasks}-{dtype}.tall"
        began = time.perf_counter()
        tallstore.pack(given["base"], {n: given[n] for n in sources}, archive, base_codec="raw", overwrite=True)
        packed = time.perf_counter() - began
        opened, decoded = [], []
        for _ in range(7):
            began = time.perf_counter()
            zoo = tallstore.open(archive)
            opened.append(time.perf_counter() - began)
            state = zoo.state_dict(TASK)
            decoded.append(time.perf_counter() - began - opened[-1])
            size = sum(t.numel() for t in state.values())
            zoo.close()
        middle = statistics.median(decoded)
        cells.append(
            (
                tasks, dtype, f"{size / 1e6:.1f}", f"{1e9 * packed / size / tasks:.1f}",
                f"{1e3 * statistics.median(opened):.1f}", f"{1e3 * middle:.0f}", f"{1e9 * middle / size:.2f}",
            )
        )  # fmt: skip
    head = (
        "tasks", "type", "parameters, M", "pack, ns a parameter and task", "open, ms", "decode one, ms",
        "decode, ns a parameter",
    )  # fmt: skip
    return table(head, cells)


def main() -> None:
    if CHILD in sys.argv:
        child(Path(sys.argv[2]), sys.argv[3], cold="--cold" in sys.argv)
        return
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where checkpoints and archives go")
    parser.add_argument("--tasks", type=int, default=4, help="in the archives")
    parser.add_argument("--rounds", type=int, default=9, help="of every row: 2 or more (default: 9)")
    parser.add_argument("--cold", action="store_true", help="drop files from the cache before each load")
    parser.add_argument("--growth", action="store_true", help="more tasks and larger models instead")
    parser.add_argument("--only", default="", help="rows with this text in their names")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: quartiles need 2 or more")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sole_user(arguments.folder):
        if arguments.growth:
            print(f"{describe_machine()}\n\n{growth(arguments.folder)}")
            return
        archives(arguments.folder, arguments.tasks)
        make_peers(arguments.folder)
        names = ["lazy", "copy", "fresh raw", "fresh default", "fresh high", "fresh fit", "once raw", "once default"]
        names += ["into raw", "first raw", "into default", "switch raw", "switch fit", "merged raw", "merged fit"]
        names += ["BitDelta", "int4 + outliers"]
        names += ["zipnn"] if (arguments.folder / "zipnn.safetensors").exists() else []
        names = [name for name in names if arguments.only in name]
        found = run(arguments.folder, names, arguments.rounds, cold=arguments.cold)
    results = {
        name: {"seconds": row.seconds, "peak_bytes": statistics.median(row.peaks)} for name, row in found.items()
    }
    if arguments.json:
        print(json.dumps({"machine": describe_machine(), "rows": results}))
        return
    touched, new, add = (statistics.median(results[name]["seconds"]) for name in ("touched", NEW, "add"))
    cells = []
    for name in ("touched", NEW, "add", *names):
        low, middle, high = statistics.quantiles(results[name]["seconds"], n=4)
        cells.append(
            (
                name, f"{1e3 * middle:.0f}", f"{1e3 * low:.0f}-{1e3 * high:.0f}", f"{middle / touched:.2f}",
                f"{middle / new:.2f}", f"{middle / add:.2f}", f"{results[name]['peak_bytes'] / MIB:.0f}",
            )
        )  # fmt: skip
    head = ("load", "ms, median", "quartiles", "of touched", "of that in new memory", "of torch.add", "peak, MiB")
    print(f"{describe_machine()}\n\n{table(head, cells)}")


if __name__ == "__main__":
    main()
