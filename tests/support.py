"""What the tests of this folder share: tiny zoos, model folders, a store that records its reads, the formula in numpy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from spec.second_codecs import decode_vector
from torch import Tensor, nn

import tallstore
from tallstore.cli import main
from tallstore.kernels.native import library
from tallstore.stores import Store, open_store
from tallstore.zoo import Zoo

ROOT = Path(__file__).parents[1]
State = dict[str, Tensor]
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def examples(n: int, least: int = 20) -> int:
    """How many examples hypothesis makes of the n that a test is worth: a third, and all where TALLSTORE_THOROUGH is set.

    Each run makes others, so what runs every day sees as many before long. `least`: where each takes long, fewer than 20.
    """
    return n if os.environ.get("TALLSTORE_THOROUGH") else max(-(-n // 3), min(n, least))


@dataclass(frozen=True)
class ImportedLater:
    """A module that is imported when something of it is first asked for: collecting tests does not wait for it."""

    name: str

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # those that look for tests ask whatever a file holds for marks of theirs
            raise AttributeError(attribute)
        return getattr(import_module(self.name), attribute)


def import_later(name: str) -> Any:
    """As `pytest.importorskip` of a whole file, of a module that takes seconds to import: here it is only looked for."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    return ImportedLater(name)


def noise(*shape: int, size: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def near(tensor: Tensor, seed: int, size: float = 0.01) -> Tensor:
    """What fine-tuning makes of a tensor: a little noise on it, in its own type."""
    return (tensor.double() + noise(*tensor.shape, size=size, seed=seed).double()).to(tensor.dtype)


def tiny_base(dtype: torch.dtype = torch.float32) -> State:
    """Three tensors that are masked, and a small one."""
    shapes = {"emb.weight": (40, 16), "fc.weight": (16, 32), "fc.bias": (32,), "norm.weight": (300,)}
    return {name: noise(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items(), 1)}


def tiny_zoo(n_tasks: int = 3, dtype: torch.dtype = torch.float32) -> tuple[State, dict[str, State]]:
    """A base and tasks `a`, `b`, `c`, …, each with every tensor moved a little."""
    base = tiny_base(dtype)
    tasks = {
        chr(ord("a") + t): {name: near(tensor, seed=100 * (t + 1) + i) for i, (name, tensor) in enumerate(base.items())}
        for t in range(n_tasks)
    }
    return base, tasks


def aligned_zoo(
    n_tasks: int = 2, dtype: torch.dtype = torch.bfloat16, size: int = 160, layers: int = 4
) -> tuple[State, dict[str, State]]:
    """Matrices of few bits that moved by one size, to one end: of such changes `quality="small"` keeps a share."""
    step = 1e-4 if dtype == torch.bfloat16 else 1e-4 / 8
    base = {f"l{n}.weight": noise(size, size, size=0.05, seed=n, dtype=dtype) for n in range(layers)}
    tasks: dict[str, State] = {}
    for task in "abcdef"[:n_tasks]:
        tasks[task] = {}
        for n, (name, tensor) in enumerate(base.items()):
            seed = 100 * ord(task) + 2 * n
            pull = noise(size, 4, seed=seed) @ noise(4, size, seed=seed + 1)
            tasks[task][name] = (tensor.float() + step * pull.sign()).to(dtype)
    return base, tasks


class ThinNet(nn.Module):
    """A table, a convolution, and layers, the rows of which begin and end within small chunks."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(300, 96)
            self.near = nn.Conv1d(96, 128, 3, padding=1)
            self.inner = nn.Linear(128, 260)
            self.outer = nn.Linear(260, 128, bias=False)
            self.head = nn.Linear(128, 4)
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        seen: Tensor = self.near(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        return self.head(torch.tanh(self.outer(torch.tanh(self.inner(seen)))).mean(1))


def thin_zoo(tasks: str = "ab") -> tuple[State, dict[str, State]]:
    """float32 matrices moved along three directions, and by noise: kind `sampled`, with products."""
    base = dict(ThinNet().state_dict())
    return base, {
        task: {name: moved_thinly(tensor, 1000 * ord(task) + 10 * n) for n, (name, tensor) in enumerate(base.items())}
        for task in tasks
    }


def moved_thinly(tensor: Tensor, seed: int) -> Tensor:
    own = tensor + noise(*tensor.shape, size=0.001, seed=seed)
    if tensor.dim() < 2:
        return own
    pull = noise(len(tensor), 3, seed=seed + 1) @ noise(3, tensor[0].numel(), seed=seed + 2)
    return own + 0.002 * pull.view(tensor.shape)


def drawn_zoo() -> tuple[State, State]:
    """float32 of few bits, moved along one direction: marks and levels are drawn. Half the rows of `words` did not."""
    base = {name: (noise(*shape, seed=seed) * 16).round() / 256
            for seed, (name, shape) in enumerate({"matrix": (112, 112), "words": (640, 64)}.items(), 1)}  # fmt: skip
    base |= {"little": noise(300, seed=3), "tiny": noise(40, seed=4)}
    task = {name: tensor + noise(*tensor.shape, size=0.001, seed=5) for name, tensor in base.items()}
    task["matrix"] = base["matrix"] + 0.0007 * noise(112, 1, seed=6) @ noise(1, 112, seed=7)
    task["words"] = base["words"].clone()
    task["words"][100:400] += 0.0012 * noise(300, 1, seed=8) @ noise(1, 64, seed=9)
    return base, task


def write_folder(folder: Path, state: Mapping[str, Tensor], **config: Any) -> Path:
    """A model folder as `save_pretrained` writes it: `model.safetensors` and `config.json`."""
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", **config}))
    return folder


def shards(folder: Path, state: State) -> Path:
    """Two shards and an index, as `save_pretrained` writes them; neither is called model.safetensors."""
    folder.mkdir()
    names = sorted(state)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, folder / file)
    table = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in type, shape and every bit: a NaN is itself, −0 is not 0."""
    return left.dtype == right.dtype and left.shape == right.shape and raw(left).tobytes() == raw(right).tobytes()


def raw(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().cpu().contiguous().resolve_conj().reshape(-1)
    if len(flat) == 1:  # whose stride may be anything
        flat = flat.as_strided((1,), (1,))
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []


def nothing_dropped(patch: pytest.MonkeyPatch) -> None:
    """As if float32 tensors had no kind `sampled`: what tests of masks and levels are about, whatever is chosen by default."""
    patch.setattr("tallstore.encoder.measure_item.may_be_sampled", lambda dtype: dtype != "F32")


def without_kernels(patch: pytest.MonkeyPatch) -> None:
    """The reference path, for everything."""
    patch.setenv(library.VARIABLE, "reference")


def both(work: Callable[[], Any]) -> tuple[Any, Any]:
    """What comes of it with kernels and without."""
    quick = work()
    with pytest.MonkeyPatch.context() as patch:
        without_kernels(patch)
        return quick, work()


@contextmanager
def packed(base: Any, tasks: Mapping[str, Any], path: Path, **options: Any) -> Iterator[Zoo]:
    """Pack, open, and verify."""
    tallstore.pack(base, tasks, path, **options)
    with tallstore.open(path) as zoo:
        zoo.verify()
        yield zoo


@contextmanager
def packed_in_chunks(
    base: Any, tasks: Mapping[str, Any], path: Path, elements: int, **options: Any
) -> Iterator[tuple[Zoo, Path]]:
    """Pack so many elements a chunk, and open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", elements)
        tallstore.pack(base, tasks, path, **options)
    with tallstore.open(path) as zoo:
        yield zoo, path


def check_that_all_loading_agrees(
    opened: Zoo, path: Path, folder: Path, name: str, runs: Sequence[tuple[int, int]], rows: list[int]
) -> None:
    """Whichever way a task is loaded, its tensors are `state_dict`'s: whole, one, by rows, by columns, as files, of a part.

    Args:
        opened: the archive.
        path: its file.
        folder: for files.
        name: a matrix, of more than 43 columns.
        runs: of its rows.
        rows: of it, one by one.
    """
    for task in opened.tasks:
        state = opened.state_dict(task)
        exported = load_file(opened.export(task, folder / task) / "model.safetensors")
        assert all(same_bits(exported[each], tensor) for each, tensor in state.items())
        assert_same(opened.state_dict(task, names=[name]), {name: state[name]})
        weights = opened.weights(task)
        assert all(same_bits(weights.get_tensor(each), tensor) for each, tensor in state.items())
        lazy, wanted = weights.get_slice(name), state[name]
        assert all(same_bits(lazy[first:last], wanted[first:last]) for first, last in runs)
        assert same_bits(lazy[:, 40:43], wanted[:, 40:43])
        assert same_bits(lazy[rows], wanted[rows])
        opened.write_subset([task], folder / f"{task}.tall")
        with tallstore.open(folder / f"{task}.tall") as part:
            part.verify()
            assert_same(part.state_dict(task), state)
    with pytest.raises(SystemExit, match="0"):
        main(["extract", str(path), "a", "-o", str(folder / "by hand")])
    by_hand = (folder / "by hand" / "model.safetensors").read_bytes()
    assert by_hand == (folder / "a" / "model.safetensors").read_bytes()


def check_that_models_are_switched(
    opened: Zoo, model_of: Callable[[torch.dtype], nn.Module], dtype: torch.dtype
) -> None:
    """Models of a type and of float32 get what `state_dict` has of the tasks a and b, one after the other and at once."""
    for of_model in (dtype, torch.float32):
        model = model_of(of_model)
        switcher = opened.switcher(model)
        for task in ("a", "b", "a"):
            wanted = {name: tensor.to(of_model) for name, tensor in opened.state_dict(task).items()}
            switcher.switch(task)
            assert_same(dict(model.named_parameters()), wanted)
            other = model_of(of_model)
            opened.load_into(other, task)
            assert_same(dict(other.named_parameters()), wanted)


def kinds(zoo: Zoo, task: str) -> dict[str, str]:
    """How each tensor of a task is stored."""
    return {name: facts.kind for name, facts in zoo.tensors(task).items()}


def spoilt(tensor: Tensor, value: float, at: int = 7) -> Tensor:
    """A copy with one element changed."""
    out = tensor.clone()
    out.view(-1)[at] = value
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    """Everything below a folder, staging folders of interrupted writes too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def read_all(path: Path) -> dict[str, bytes]:
    """Every file of an archive, folder or single file."""
    with open_store(path) as store:
        return {name: bytes(store.read(name, 0, store.size(name))) for name in sorted(store.paths())}


@dataclass
class RecordingStore(Store):
    """A store that passes everything on and writes down every range that is read."""

    inner: Store
    ranges: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.url = self.inner.url
        self.open_ended = self.inner.open_ended

    def paths(self) -> list[str]:
        return self.inner.paths()

    def size(self, path: str) -> int:
        return self.inner.size(path)

    def read(self, path: str, start: int, length: int) -> memoryview:
        self.ranges.append((path, start, start + length))
        return self.inner.read(path, start, length)

    def close(self) -> None:
        self.inner.close()


def slots(part: bytes) -> tuple[int, dict[str, tuple[int, int]]]:
    """Of a safetensors file: where its data begins, and the byte range of each tensor in the file."""
    begin = 8 + int.from_bytes(part[:8], "little")
    header = json.loads(part[8:begin])
    header.pop("__metadata__", None)
    return begin, {name: (begin + v["data_offsets"][0], begin + v["data_offsets"][1]) for name, v in header.items()}


# The formula of design section 1, in numpy and on its own: only tensors' bytes are taken from torch.


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A float tensor's values, flat: float64 as it is, any other as float32 (which holds each of them exactly)."""
    data = raw(tensor)
    if tensor.dtype == torch.bfloat16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if tensor.dtype == torch.float16:
        return data.view(np.float16).astype(np.float32)
    return data.view({torch.float32: np.float32, torch.float64: np.float64}[tensor.dtype])


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Round to a type, ties to even: the bytes that such a tensor has."""
    if dtype != torch.bfloat16:
        target = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}[dtype]
        with np.errstate(over="ignore"):
            return values.astype(target).view(np.uint8)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    up = bits + 0x7FFF + ((bits >> 16) & 1)
    return (up >> 16).astype(np.uint16).view(np.uint8)


def formula(zoo: Zoo, task: str, name: str) -> np.ndarray:
    """The bytes of one tensor that comes from the base, by design section 1.

    θ̂ = round_D(f32(θ0) + f32(s·v)) where the bit is 1, θ0 where it is 0; and round_D(f32(θ0) + d) for a delta.
    """
    facts = zoo.tensors(task)[name]
    dtype = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "F16": torch.float16}[facts.dtype]
    wide = np.float64 if dtype == torch.float64 else np.float32
    n = int(np.prod(facts.shape, dtype=np.int64))
    assert facts.rows in {None, *facts.shape[:1]}, "a tensor with rows of its own is no single formula"
    base = to_numpy(zoo.base(name))[:n]
    with np.errstate(over="ignore"):
        start = base.astype(wide)
    if facts.kind == "delta":
        return rounded(start + delta(zoo, task, name).astype(wide), dtype)
    mask = raw(zoo.mask(task, name)).view(np.int8)[:n]
    scales = np.ones(n, wide)
    if facts.scales is not None:
        scales = np.repeat(np.array(facts.scales, wide), facts.chunk)[:n]
    step = to_numpy(zoo.vector(name))[:n].astype(wide) * scales
    moved = rounded(start + mask.astype(wide) * step, dtype)
    kept = rounded(base, dtype)
    return np.where(np.repeat(mask != 0, len(kept) // max(n, 1)), moved, kept)


def delta(zoo: Zoo, task: str, name: str) -> np.ndarray:
    """A tensor's own delta, read from the part's bytes by the second reader of the format."""
    (path,) = zoo.manifest.tasks[task].parts["mask"]
    part = read_all(Path(zoo.url))[path]
    _, places = slots(part)
    entry = json.loads(json.loads(part[8 : 8 + int.from_bytes(part[:8], "little")])["__metadata__"]["tallstore"])[
        "entries"
    ][name]
    n, at, out = int(np.prod(entry["shape"], dtype=np.int64)), places[name][0], []
    for index, (length, _) in enumerate(entry["chunks"]):
        count = min(entry["chunk"], n - index * entry["chunk"])
        out.append(decode_vector(part[at : at + length], count, entry["codec"]))
        at += length
    return np.concatenate(out)
