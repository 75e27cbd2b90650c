"""Archives of a few kilobytes: every codec, kind of entry and kind of part among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import State, near, noise

import tallstore
from tallstore import codecs

KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "high": {"quality": "high", "exact": "all", "mask": "bits+zstd"},
    "three bits": {"bits": 3.0, "base_codec": "raw", "mask": "bits"},
    "referenced": {"recipe": "fit", "base_storage": "reference"},
    "referenced, exact": {"base_storage": "reference", "exact": "all", "base_codec": "raw"},
    **{f"fit {vector}": {"recipe": "fit", "vector": vector} for vector in codecs.SHARED},
    **{f"fit {mask}": {"recipe": "fit", "mask": mask, "vector": "f32", "base_codec": "raw"} for mask in codecs.ASKED},
    "emr": {"recipe": "emr", "exact": "all"},
    "lossless": {"quality": "lossless"},
    "tall": {"recipe": "tall", "vector": "bf16"},
    "family": {"quality": "lossless"},
}


def small_zoo() -> tuple[State, dict[str, State]]:
    """Masked, resized, tied, frozen, integer and odd-typed tensors, a head, NaN; 300 elements are the fewest masked."""
    base = {"w": noise(300, seed=1), "e": noise(80, 4, seed=2, dtype=torch.bfloat16), "ids": torch.arange(3)}
    base["kept"] = noise(5, seed=3)
    tasks = {}
    for seed, task in ((10, "a"), (20, "b")):
        state = {"w": near(base["w"], seed), "e": near(base["e"], seed), "kept": base["kept"].clone()}
        state["e"] = torch.cat([state["e"], noise(1, 4, seed=seed, dtype=torch.bfloat16)])
        state |= {"ids": base["ids"].clone(), "head": noise(3, seed=seed), "odd": torch.tensor([float("nan"), -0.0])}
        state["tied"] = state["w"]
        tasks[task] = state
    return base, tasks


@contextmanager
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", 1024)
        yield


def write(kind: str, root: Path, *, suffix: str = "", seed: int = 0) -> tuple[Path, Path | None]:
    """Pack it, with companion files; the archive, and the base where that is outside."""
    base, tasks = small_zoo()
    folders = {}
    for task, state in tasks.items():
        folders[task] = root / f"in{seed}" / task
        folders[task].mkdir(parents=True)
        state = {n: t + seed if n == "head" else t for n, t in state.items()}
        torch.save(state, folders[task] / "pytorch_model.bin")
        (folders[task] / "config.json").write_text(json.dumps({"task": task}))
        (folders[task] / "vocab.txt").write_text("a b")
    save_file(base, root / "base.safetensors")
    out = root / f"zoo{seed}{suffix}"
    with small_chunks():
        tallstore.pack(root / "base.safetensors", folders, out, allow_distant=True, **KINDS[kind])
        if kind == "family":  # a chain of two, and a merge with its end
            for number, (child, parent) in enumerate((("child", "a"), ("grandchild", "child"))):
                own = {n: near(t, number) if n in base else t for n, t in tasks["a"].items()}
                tallstore.add(out, {child: own}, parent=parent, allow_distant=True)
            tallstore.add_merge(out, "mix", "0.5*grandchild + 0.5*b", head="b")
    return out, root / "base.safetensors" if KINDS[kind].get("base_storage") == "reference" else None
