"""Every way from an archive to a task's tensors, through public interfaces alone, in one table.

A way takes an archive and yields, for each task, tensors as `Plain`: what the specification's reader gives too. The
table is run in this process and in one where the compiled kernels are switched off: `python decode_ways.py` answers
requests on its standard input.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tallstore
from tallstore.format.part import CONDITIONAL_KINDS
from tallstore.kernels import reference
from tallstore.kernels.native import library
from tallstore.tensors import NAME, TORCH, as_bytes, shape_of

Plain = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Tensor name → element type, shape, bytes."""
Found = Iterator[tuple[str, str, Plain]]
"""Task, form, tensors. Form: `task`, `exact`, `model` for what a model holds, or `leading` for the elements that come
from the base alone."""


@dataclass(frozen=True)
class Asked:
    """An archive, and the base where it is to be given."""

    archive: Path
    base: Path | None = None

    def open(self, **how: Any) -> tallstore.Zoo:
        return tallstore.open(self.archive, **{"base": self.base, "threads": 1} | how)


def plain(tensors: Mapping[str, Tensor]) -> Plain:
    return {name: (NAME[t.dtype], tuple(t.shape), as_bytes(t.contiguous()).tobytes()) for name, t in tensors.items()}


def as_torch(found: Plain) -> Plain:
    """Types whose elements share bytes as torch has them: it counts by bytes, and has no type of six bits."""
    return {n: ("U8" if d[:3] == "F6_" else d, shape_of(d, s), b) for n, (d, s, b) in found.items()}


def due(truth: Plain, form: str, found: Mapping[str, Sequence[Any]]) -> Plain:
    """What a form of a task must be. `found`: of each tensor type, shape, and bytes or how many."""
    if form == "leading":
        sizes = {n: f[2] if isinstance(f[2], int) else len(f[2]) for n, f in found.items()}
        return {n: (d, s, b[: sizes[n]]) for n, (d, s, b) in truth.items() if n in sizes}
    if form == "model":  # torch's copy makes of a BOOL that is neither 0 nor 1 the 1 that it means
        return {n: (d, s, bytes(map(bool, b)) if d == "BOOL" else b) for n, (d, s, b) in truth.items()}
    return truth


def read_plain(path: Path) -> Plain:
    """A safetensors file."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    return {
        name: (f["dtype"], tuple(f["shape"]), data[begin + f["data_offsets"][0] : begin + f["data_offsets"][1]])
        for name, f in header.items()
    }


def state_dicts(asked: Asked, **how: Any) -> Found:
    with asked.open(**how) as zoo:
        yield from whole_tasks(zoo)


def whole_tasks(zoo: tallstore.Zoo) -> Found:
    for task, facts in zoo.manifest.tasks.items():
        yield task, "task", plain(zoo.state_dict(task))
        if "exact" in facts.parts:
            yield task, "exact", plain(zoo.state_dict(task, exact=True))


def tensor_by_tensor(asked: Asked) -> Found:
    """From the last to the first, each in a reader of its own state."""
    with asked.open() as zoo:
        for task, facts in zoo.manifest.tasks.items():
            for form, exact in (("task", False), ("exact", True)):
                if not exact or "exact" in facts.parts:
                    names = list(zoo.tensors(task))
                    found = {n: plain(zoo.state_dict(task, names=[n], exact=exact))[n] for n in reversed(names)}
                    yield task, form, {n: found[n] for n in names}


def given_base(asked: Asked) -> Found:
    """The base comes from outside, also where the archive holds one."""
    beside = asked.archive.parent / "base.safetensors"
    if beside.is_file():
        yield from state_dicts(Asked(asked.archive, beside), threads=3)


def exported(asked: Asked) -> Found:
    with asked.open() as zoo, tempfile.TemporaryDirectory() as folder:
        for task, facts in zoo.manifest.tasks.items():
            for form, exact in (("task", False), ("exact", True)):
                if not exact or "exact" in facts.parts:
                    out = zoo.export(task, Path(folder) / f"{task}-{form}", exact=exact)
                    stored = as_torch(read_plain(next(out.glob("*.safetensors"))))
                    yield task, form, {name: stored[name] for name in zoo.tensors(task)}


def subsets(asked: Asked) -> Found:
    """Each task in an archive of its own, in the other kind of container."""
    with asked.open() as zoo, tempfile.TemporaryDirectory() as folder:
        for task in zoo.tasks:
            name = "one" if asked.archive.is_file() else "one.tall"
            out = zoo.write_subset([task], Path(folder) / task / name)
            yield from state_dicts(Asked(out, asked.base))


# Into models.


class Holder(nn.Module):
    """A model with any state dict."""


def model_of(state: Mapping[str, Tensor], *, turned: bool = False) -> nn.Module | None:
    """A model that a task's tensors fit, filled with other values; None where their names cannot be a module's.

    `turned`: matrices whose rows are not contiguous.
    """
    model, made = Holder(), {}
    names = set(state)
    for name, tensor in state.items():
        path = name.split(".")
        if not all(path) or any(".".join(path[:i]) in names for i in range(1, len(path))):
            return None
        if any(hasattr(Holder, part) for part in path):
            return None
        place: nn.Module = model
        for part in path[:-1]:
            if part not in place._modules:
                place.add_module(part, Holder())
            place = place.get_submodule(part)
        if id(tensor) not in made:
            made[id(tensor)] = _other(tensor, turned)
        own = made[id(tensor)]
        if isinstance(own, nn.Parameter):
            place.register_parameter(path[-1], own)
        else:
            place.register_buffer(path[-1], own)
    return model


def _other(tensor: Tensor, turned: bool) -> Tensor:
    out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    if turned and out.dim() > 1:
        out = out.mT.contiguous().mT
    if out.dtype == torch.float4_e2m1fn_x2:  # which torch can hold, and not fill
        out.view(torch.uint8).fill_(1)
    else:
        out.copy_(torch.ones((), dtype=torch.uint8).to(out.dtype))
    return nn.Parameter(out) if out.is_floating_point() and out.element_size() > 1 else out


def held(model: nn.Module, names: Iterable[str]) -> Plain:
    found = plain(model.state_dict())
    return due({name: found[name] for name in names}, "model", {})


def models_of(zoo: tallstore.Zoo) -> list[str]:
    """Tasks whose tensors are a model's: an adapter is written into a model of its base, merged."""
    return [task for task in zoo.tasks if zoo.manifest.tasks[task].adapter is None]


def loaded(asked: Asked, *, turned: bool = False, threads: int = 1) -> Found:
    with asked.open(threads=threads) as zoo:
        for task in models_of(zoo):
            state = zoo.state_dict(task)
            model = model_of(state, turned=turned)
            if model is not None:
                zoo.load_into(model, task)
                yield task, "model", held(model, state)


def switched(asked: Asked, *, threads: int = 1) -> Found:
    """Each task alone; and where one model can be all of them, from each to the next and back."""
    with asked.open(threads=threads) as zoo:
        states = {task: zoo.state_dict(task) for task in models_of(zoo)}
        if not states:
            return
        for task, state in states.items():
            model = model_of(state)
            if model is not None:
                zoo.switcher(model, [task]).switch(task)
                yield task, "model", held(model, state)
        first = next(iter(states.values()))
        model = model_of(first)
        if model is None or len(states) < 2 or not all(_alike(zoo, states, task) for task in states):
            return
        switcher = zoo.switcher(model)
        for task in (*states, None, *reversed(list(states))):
            switcher.switch(task)
            if task is not None:
                yield task, "model", held(model, states[task])


def _alike(zoo: tallstore.Zoo, states: Mapping[str, Mapping[str, Tensor]], task: str) -> bool:
    """Whether a model of the first task can become this one: names, types, ties; and shapes but of what is whole."""
    first, *_ = states
    one, other = states[first], states[task]
    if list(one) != list(other) or any(one[n].dtype != other[n].dtype for n in one):
        return False
    kinds = [{n: f.kind for n, f in zoo.tensors(t).items()} for t in (first, task)]
    ties = [[n for n in names if names[n] == "tied"] for names in kinds]
    loose = {n for n in one if all(names[n] == "private" for names in kinds)}
    return ties[0] == ties[1] and all(one[n].shape == other[n].shape for n in set(one) - loose)


# From the ingredients, with the reference kernels.


def by_reference(asked: Asked) -> Found:
    """θ0, v, symbols, scales and deltas as the archive gives them one by one, put together by `kernels.reference`."""
    with asked.open() as zoo:
        for task in zoo.tasks:
            group = zoo.manifest.tasks[task].group
            found = {}
            for name, facts in zoo.tensors(task).items():
                # What is coded given the base, or builds on other tasks, has no ingredients of its own.
                if facts.base is None or facts.kind in CONDITIONAL_KINDS or facts.start is not None:
                    continue
                pieces = _ingredients(zoo, task, group, name, facts)
                flat = [(t if facts.rows is None else t[: facts.rows]).reshape(-1) for t in pieces]
                out = torch.empty(len(flat[0]), dtype=TORCH[facts.dtype])
                if facts.kind == "base":
                    out.copy_(flat[0])
                elif facts.kind == "delta":
                    reference.apply_delta(out, *flat)
                else:
                    base, vector, symbols, scales = flat
                    for a in range(0, len(out), int(facts.chunk or 1)):
                        run = slice(a, a + int(facts.chunk or 1))
                        reference.apply_mask(out[run], base[run], vector[run], symbols[run], float(scales[a]))
                found[name] = (facts.dtype, facts.shape, as_bytes(out).tobytes())
            yield task, "leading", as_torch(found)


def _ingredients(zoo: tallstore.Zoo, task: str, group: str, name: str, facts: Any) -> list[Tensor]:
    base = zoo.base(facts.base)
    if facts.kind == "base":
        return [base]
    if facts.kind == "delta":
        return [base, zoo.delta(task, name)]
    mask = zoo.mask(task, name)
    symbols = torch.where(mask == -1, 2, mask.to(torch.int8)).to(torch.uint8)
    return [base, zoo.vector(facts.base, group=group), symbols, zoo.scales(task, name)]


WAYS: dict[str, Callable[[Asked], Found]] = {
    "mapped, one thread": lambda asked: state_dicts(asked),
    "plain reads, one thread": lambda asked: state_dicts(asked, mapped=False),
    "mapped, five threads": lambda asked: state_dicts(asked, threads=5),
    "tensor by tensor": tensor_by_tensor,
    "base given": given_base,
    "exported": exported,
    "subsets": subsets,
    "loaded into a model": lambda asked: loaded(asked, threads=3),
    "loaded into turned matrices": lambda asked: loaded(asked, turned=True),
    "switched to": switched,
    "switched to, five threads": lambda asked: switched(asked, threads=5),
    "reference kernels": by_reference,
}


def digests(found: Plain) -> dict[str, list[Any]]:
    """As JSON: what it takes to say that two are the same; bytes by number and hash."""
    return {name: [d, list(s), len(b), hashlib.sha256(b).hexdigest()] for name, (d, s, b) in found.items()}


def main() -> None:
    """For every line, `[archive, base or null]`, one line: whether kernels are compiled, and all that the ways give."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    for line in sys.stdin:
        archive, base = json.loads(line)
        asked = Asked(Path(archive), Path(base) if base else None)
        found = [[way, task, form, digests(tensors)] for way, run in WAYS.items() for task, form, tensors in run(asked)]
        print(json.dumps({"compiled": library.chosen() is not None, "found": found}), flush=True)


if __name__ == "__main__":
    main()
