"""What is done to the layer: everything that writes, and everything that reads, on zoos of a few kilobytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support import State, noise, tiny_zoo, write_folder

import tallstore
from tallstore.hub.decoded_cache import DecodedCache
from tallstore.hub.resolve import open_named
from tallstore.stores import Access

TOKEN = "hf_goodgoodgood"
INPUTS = "in"
OUT = "out"


def zoo(n: int = 0) -> tuple[State, dict[str, State]]:
    """Generation n: base and two tasks, one of them with a head."""
    base, tasks = tiny_zoo(2)
    tasks = {name: {t: value + 0.01 * n for t, value in state.items()} for name, state in tasks.items()}
    tasks["b"]["head.weight"] = noise(3, 16, seed=9)
    return base, tasks


def write_inputs(root: Path) -> None:
    """Checkpoints as files (a folder, a pickle), archives of them in both forms, and another base."""
    base, tasks = zoo()
    write_folder(root / INPUTS / "base", base)
    write_folder(root / INPUTS / "a", tasks["a"], task="a")
    (root / INPUTS / "b").mkdir()
    torch.save(tasks["b"], root / INPUTS / "b" / "pytorch_model.bin")
    (root / INPUTS / "b" / "config.json").write_text(json.dumps({"task": "b"}))
    for name in ("zoo", "zoo.tall"):
        tallstore.pack(base, {n: root / INPUTS / n for n in tasks}, root / INPUTS / name, exact="all")


def write_older(target: Path) -> None:
    """An archive of another generation in the target's place."""
    tallstore.pack(*zoo(1), target)


def write_older_model(target: Path) -> None:
    """A model of another generation in the target's place."""
    write_folder(target, zoo(1)[1]["a"])


def pack(root: Path, out: Path, **_: Any) -> None:
    tasks = {name: root / INPUTS / name for name in ("a", "b")}
    tallstore.pack(root / INPUTS / "base", tasks, out, overwrite=True, exact=["b"])


def export(root: Path, out: Path, **_: Any) -> None:
    with tallstore.open(root / INPUTS / "zoo", threads=1) as opened:
        opened.export("b", out, overwrite=True, exact=True)


def merged(root: Path, out: Path, **_: Any) -> None:
    with tallstore.open(root / INPUTS / "zoo.tall", threads=1) as opened:
        opened.export_merged(out, "consensus", heads="a", overwrite=True)


def write_parents(target: Path) -> None:
    """An archive without loss, for tasks that build on others."""
    tallstore.pack(*zoo(1), target, quality="lossless")


def child(root: Path, out: Path, **_: Any) -> None:
    """A task that is coded against another one."""
    with suppress(tallstore.errors.TaskNameError):  # of an attempt before
        tallstore.add(out, {"c": zoo(2)[1]["a"]}, parent="a")


def subset(root: Path, out: Path, **_: Any) -> None:
    with tallstore.open(root / INPUTS / "zoo.tall", threads=1) as opened:
        opened.write_subset(["b"], out, overwrite=True)


def pull(root: Path, out: Path, url: str, **_: Any) -> None:
    tallstore.pull("user/zoo", out, tasks="a", endpoint=url, cache_dir=root / "cache", overwrite=True)


def keep(root: Path, out: Path, url: str, **_: Any) -> None:
    """Decoded weights that are kept in the cache, and mapped the second time: nothing of them may be wrong."""
    shelf: Path | None = None
    for _ in range(2):
        with open_named("user/zoo", Access(endpoint=url, cache_dir=root / "cache")) as opened:
            kept, due = DecodedCache(opened, "a", exact=False), opened.state_dict("a")
            shelf = opened.store.derived_cache
            found = kept.load()
            if found is None:
                kept.keep(due)
            elif kept.right():
                assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in due.items()}
            else:
                kept.drop()
    with suppress(OSError):
        assert shelf is None or not [path for path in shelf.iterdir() if "partial" in path.name]


def push(root: Path, out: Path, url: str, **_: Any) -> None:
    tallstore.push(root / INPUTS / "zoo", "user/pushed", endpoint=url, token=TOKEN)


def read(root: Path, out: Path, **_: Any) -> None:
    """Decode, and put what came out beside: nothing of it may be wrong."""
    for name in ("zoo", "zoo.tall"):
        for mapped in (True, False):
            with tallstore.open(root / INPUTS / name, threads=1, mapped=mapped) as opened:
                for task in opened.tasks:
                    found = opened.state_dict(task, exact=True)
                    due = zoo()[1][task]
                    assert all(torch.equal(found[n], due[n]) for n in due)
                opened.verify()


@dataclass(frozen=True)
class Job:
    """One kind of work."""

    run: Callable[..., None]
    name: str = OUT
    """What the output is called."""
    older: Callable[[Path], None] | None = None
    """Puts something in the output's place before."""
    hub: bool = False
    """Whether it needs a Hub."""


JOBS: Mapping[str, Job] = {
    "pack-folder": Job(pack, "zoo"),
    "pack-file": Job(pack, "zoo.tall"),
    "pack-over-folder": Job(pack, "zoo", write_older),
    "pack-over-file": Job(pack, "zoo.tall", write_older),
    "export": Job(export, "model"),
    "export-over": Job(export, "model", write_older_model),
    "merge": Job(merged, "model"),
    "child-folder": Job(child, "zoo", write_parents),
    "child-file": Job(child, "zoo.tall", write_parents),
    "subset-folder": Job(subset, "zoo"),
    "subset-over-file": Job(subset, "zoo.tall", write_older),
    "pull-model": Job(pull, "model", hub=True),
    "pull-over-file": Job(pull, "zoo.tall", write_older, hub=True),
    "keep": Job(keep, hub=True),
    "push": Job(push, hub=True),
    "read": Job(read),
}
