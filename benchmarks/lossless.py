"""What keeping fine-tunes without loss takes: bits per parameter against entropies and peers; encode and decode speed.

Per fine-tune, in bits per parameter of the tensors that the base has too, all of them decoded and compared:

- ours: the chunks of codec `lattice` (floats of up to 32 bits), nothing else of the archive;
- H(d): the entropy of d, the difference in units of the last place, per tensor;
- H(d|e): the entropy of d given the base's exponent, per tensor: what a coder that knows the base, and as many tables
  as there are exponents, takes at least if the tables cost nothing and rows are all alike;
- xor: both xored, byte planes, zstd 3 (in kind what ZipLLM's BitX does); zigzag: d zigzagged, byte planes, zstd 3;
- whole: `planes+zstd` of the fine-tune itself;
- z4ai: its `compress_delta`; zipnn, of the fine-tune and of both xored; reminis: a delta pack of two of its databases:
  where these packages are installed (PYTHONPATH).

Speed is in GB per processor second of one thread, the base at hand in memory, all of them by turns; with `--archives`,
whole archives are packed, and decoding a task with two threads is compared with a load of its safetensors file, every
page touched. With `--plot`, a picture of bits and speeds.

example:
  python benchmarks/lossless.py BASE trec=RUNS/trec sums=RUNS/sums --save lossless.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe_machine, table
from lossless_peers import Peer, file_peers, tensor_peers

import tallstore
from tallstore.checkpoints import Checkpoint, open_checkpoint
from tallstore.codecs import LOSSLESS, WHOLE
from tallstore.kernels.lattice import LATTICES, Lattice
from tallstore.tensors import as_bytes

CHUNK = 1 << 20
ENTROPIES = ("H(d)", "H(d|e)")
PEERS = ("xor", "zigzag", "whole", "z4ai", "zipnn", "zipnn of xor", "reminis", "bigsmall")
COLUMNS = ("ours", "ours / H(d|e)", *ENTROPIES, *PEERS)


def pairs(base: Checkpoint, task: Checkpoint) -> Iterator[tuple[str, tuple[int, ...], np.ndarray, np.ndarray]]:
    """Type, shape and bytes, of base and task, of every tensor that both have."""
    for name, info in task.tensors.items():
        start = name if name in base.tensors else name.partition(".")[2]  # a head's model has a prefix
        if name in task.ties or base.tensors.get(start) != info or info.dtype not in LATTICES:
            continue
        before, after = as_bytes(base.read(start, 0, info.numel)), as_bytes(task.read(name, 0, info.numel))
        yield info.dtype, info.shape, before, after


def entropy(counts: np.ndarray) -> float:
    """Bits that so many of each take."""
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * np.log2(counts.sum() / counts)).sum())


def entropies(lattice: Lattice, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Bits of d, and of d given the base's exponent."""
    word = lattice.word
    d = lattice.turned(after.view(word)) - lattice.turned(before.view(word))
    keys = lattice.keys(before.view(word))
    joint = np.unique(keys << lattice.bits | d.astype(np.int64), return_counts=True)[1]
    return entropy(np.unique(d, return_counts=True)[1]), entropy(joint) - entropy(np.bincount(keys))


def zigzag(lattice: Lattice, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """d as small unsigned numbers."""
    words = lattice.turned(after.view(lattice.word)) - lattice.turned(before.view(lattice.word))
    d = words.view(words.dtype.str.replace("u", "i"))
    found: np.ndarray = ((d << 1) ^ (d >> (lattice.bits - 1))).view(lattice.word)
    return found


class Clock:
    """Processor seconds of this thread, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """What the work gives; its seconds are added up."""
        start = time.thread_time()
        found = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - start
        return found


def ours(dtype: str, shape: tuple[int, ...], before: np.ndarray, after: np.ndarray, clock: Clock) -> int:
    """Bytes of all chunks. Raises AssertionError for what does not come back."""
    codec, item, size = LOSSLESS["lattice"], LATTICES[dtype].bits // 8, 0
    length = int(np.prod(shape[1:], dtype=np.int64)) if len(shape) > 1 else 0
    for start in range(0, len(after) // item, CHUNK):
        old, new = (each[start * item : (start + CHUNK) * item] for each in (before, after))
        row = (length, start % length) if length else (0, 0)
        coded = clock.time("encode", lambda old=old, new=new, row=row: codec.encode(new, old, dtype, row))
        out = old.copy()
        clock.time("decode", lambda coded=coded, out=out: codec.decode(coded, out, dtype))
        assert np.array_equal(out, new), "what was coded does not come back"
        size += len(coded)
    return size


def theirs(name: str, peer: Peer, dtype: str, before: np.ndarray, after: np.ndarray, clock: Clock) -> int:
    """Bytes that a peer takes. Raises AssertionError for what does not come back."""
    coded = clock.time(f"{name} encode", lambda: peer.encode(after, before, dtype))
    out = clock.time(f"{name} decode", lambda: peer.decode(coded, before, dtype))
    assert np.array_equal(np.frombuffer(out, np.uint8), after), f"what {name} coded does not come back"
    return peer.size(coded)


def measure(base: Checkpoint, task: Checkpoint, *, others: bool) -> dict[str, Any]:
    """Bits per parameter by name, and GB per second. `others`: of other packages too."""
    bits: dict[str, float] = {}
    clock, total, moved, read = Clock(), 0, 0, 0
    peers = tensor_peers(others=others)
    for dtype, shape, before, after in pairs(base, task):
        lattice = LATTICES[dtype]
        of_d, given = entropies(lattice, before, after)
        old, new = before.view(lattice.word), after.view(lattice.word)
        changed = zigzag(lattice, before, after).view(np.uint8)
        found = {
            "ours": 8 * ours(dtype, shape, before, after, clock),
            "H(d)": of_d,
            "H(d|e)": given,
            "zigzag": 8 * peers["xor"].size(peers["xor"].encode(changed, np.zeros_like(changed), dtype)),
            "whole": 8 * len(WHOLE["planes+zstd"].encode(after, dtype)),
        }
        for name, peer in peers.items():
            found[name] = 8 * theirs(name, peer, dtype, before, after, clock)
        for name, value in found.items():
            bits[name] = bits.get(name, 0.0) + value
        total, read = total + len(new), read + len(after)
        moved += int(np.count_nonzero(old != new))
    return {
        "parameters": total,
        "bytes": read,
        "moved": moved / total,
        "bits": {name: value / total for name, value in bits.items()}
        | {"ours / H(d|e)": bits["ours"] / bits["H(d|e)"]},
        "GB/s per core": {name: read / seconds / 1e9 for name, seconds in clock.seconds.items()},
    }


def measure_files(found: dict[str, Any], base: Path, task: Path) -> None:
    """Add what peers make of whole files, of one each."""
    files = [next(iter(sorted(each.glob("*.safetensors")))) for each in (base, task)]
    for name, size, encode, decode in file_peers(*files):
        found["bits"][name] = 8 * size / found["parameters"]
        found["GB/s per core"] |= {f"{name} encode": found["bytes"] / encode / 1e9}
        found["GB/s per core"] |= {f"{name} decode": found["bytes"] / decode / 1e9}


def plot(found: dict[str, Any], path: Path) -> None:
    """Bits a parameter of each coding beside its encoding speed, one panel a fine-tune."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    columns = min(3, len(found["tasks"]))
    rows = -(-len(found["tasks"]) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False)
    for panel in panels.flat[len(found["tasks"]) :]:
        panel.set_visible(False)
    for panel, (task, one) in zip(panels.flat, found["tasks"].items(), strict=False):
        speeds = one["GB/s per core"]
        for name in ("ours", *PEERS):
            speed = speeds.get("encode" if name == "ours" else f"{name} encode")
            if speed is not None and name in one["bits"]:
                panel.scatter(speed, one["bits"][name], marker="*" if name == "ours" else "o")
                panel.annotate(name, (speed, one["bits"][name]), textcoords="offset points", xytext=(4, 4), fontsize=8)
        panel.axhline(one["bits"]["H(d|e)"], linestyle=":", linewidth=1)
        panel.set(xscale="log", yscale="log", title=task, xlabel="encode, GB/s a core", ylabel="bits a parameter")
        panel.margins(x=0.3, y=0.15)  # names stand to the right of their points
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter(NullFormatter())
    figure.tight_layout()
    figure.savefig(path)


def archives(base: Path, tasks: dict[str, Path]) -> dict[str, Any]:
    """A whole zoo: its size, and decoding a task with two threads against plain loads, by turns.

    These are one of which a byte of every page is looked at where it is mapped, and one into memory of its own, as
    `decode.py` has it, which like what is decoded may be written to.
    """
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zoo.tall"
        start = time.perf_counter()
        report = tallstore.pack(base, tasks, path, quality="lossless", base_codec="raw")
        packed = time.perf_counter() - start
        name, source = next(iter(tasks.items()))
        file = next(source.glob("*.safetensors"))
        loads, copies, decodes, busy = [], [], [], [0.0, 0.0]
        with tallstore.open(path, threads=2) as zoo:
            for _ in range(7):
                start, work = time.perf_counter(), time.process_time()
                loaded = load_file(file)
                for tensor in loaded.values():
                    tensor.view(-1).view(torch.uint8)[::4096].sum()
                loads.append(time.perf_counter() - start)
                busy[0] += time.process_time() - work
                del loaded
                start = time.perf_counter()
                copied = {key: tensor.clone() for key, tensor in load_file(file).items()}
                copies.append(time.perf_counter() - start)
                del copied
                start, work = time.perf_counter(), time.process_time()
                state = zoo.state_dict(name)
                decodes.append(time.perf_counter() - start)
                busy[1] += time.process_time() - work
                del state
        return {
            "pack seconds": packed,
            "bits per parameter, all in": report.bits_per_parameter,
            "load seconds": min(loads),
            "load into own memory, seconds": min(copies),
            "decode seconds": min(decodes),
            "decode / load": min(decodes) / min(loads),
            "decode / load into own memory": min(decodes) / min(copies),
            "decode / load, processor seconds": busy[1] / busy[0],
        }


def main() -> int:
    """Print a table, and perhaps write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("tasks", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--no-peers", action="store_true", help="leave other packages out")
    parser.add_argument("--archives", action="store_true", help="pack whole archives and time loading, too")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--save", type=Path, metavar="JSON")
    given = parser.parse_args()
    tasks = {name: Path(path) for name, _, path in (word.partition("=") for word in given.tasks)}
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": describe_machine(), "tasks": {}}
    base = open_checkpoint(given.base, "base")
    for name, path in tasks.items():
        task = open_checkpoint(path, name)
        found["tasks"][name] = measure(base, task, others=not given.no_peers)
        task.close()
        if not given.no_peers:
            measure_files(found["tasks"][name], given.base, path)
        print(f"{name}: done", file=sys.stderr)
    if given.archives:
        found["archive"] = archives(given.base, tasks)
    rows = [
        [name, f"{100 * one['moved']:.1f} %"]
        + [f"{one['bits'][column]:.3f}" if column in one["bits"] else "–" for column in COLUMNS]
        + [f"{one['GB/s per core'][verb]:.2f}" for verb in ("encode", "decode")]
        for name, one in found["tasks"].items()
    ]
    print(table(["fine-tune", "moved", *COLUMNS, "encode GB/s", "decode GB/s"], rows))
    speeds = [
        [name, peer, f"{one['GB/s per core'][peer + 'encode']:.3f}", f"{one['GB/s per core'][peer + 'decode']:.3f}"]
        for name, one in found["tasks"].items()
        for peer in sorted({key[: -len("encode")] for key in one["GB/s per core"] if key.endswith("encode")})
    ]
    print(table(["fine-tune", "", "encode GB/s", "decode GB/s"], speeds))
    if given.plot:
        plot(found, given.plot)
    if "archive" in found:
        print(json.dumps(found["archive"], indent=1))
    if given.save:
        given.save.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
