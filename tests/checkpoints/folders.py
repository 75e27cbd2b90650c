"""What the tests of checkpoints share: zoos of folders that real libraries saved, and what each of them loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tallstore
from tallstore.encoder import PackReport


def nudged(model: nn.Module, seed: int, share: float = 0.05) -> nn.Module:
    """What fine-tuning makes of a model: noise of a share of each parameter's spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((share * parameter.float().std() * noise).to(parameter.dtype))
    return model


def saved(root: Path, make: Callable[[], Any], save: Callable[[Any, Path], object]) -> tuple[Path, dict[str, Path]]:
    """Folders of a base and of two fine-tunes."""
    out = []
    for name, seed in (("base", 0), ("a", 1), ("b", 2)):
        torch.manual_seed(0)
        model = make()
        for part in model if isinstance(model, list) else [model]:
            if seed:
                nudged(part, seed)
        save(model, root / name)
        out.append(root / name)
    return out[0], {"a": out[1], "b": out[2]}


def around(base: Any, tasks: Mapping[str, Path], root: Path, **options: Any) -> tuple[PackReport, dict[str, Path]]:
    """Pack exactly, extract every task exactly; the report and the folders."""
    report = tallstore.pack(base, tasks, root / "zoo.tall", exact=True, **options)
    out = {}
    with tallstore.open(root / "zoo.tall") as zoo:
        assert zoo.verify().tasks == zoo.tasks
        for task in zoo.tasks:
            out[task] = zoo.export(task, root / "out" / task, exact=True)
    return report, out


def files_of(folder: Path) -> set[str]:
    """Every file of a folder, by name."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_same_weights(original: Path, back: Path) -> None:
    """The same safetensors files, to the bit."""
    for path in original.rglob("*.safetensors"):
        one, two = load_file(path), load_file(back / path.relative_to(original))
        assert one.keys() == two.keys()
        assert all(same(one[name], two[name]) for name in one), path


def same(one: Tensor, two: Tensor) -> bool:
    """To the bit."""
    return one.dtype == two.dtype and torch.equal(one.view(-1).view(torch.uint8), two.view(-1).view(torch.uint8))


def copied(folder: Path, to: Path) -> Path:
    """A folder to be changed."""
    return Path(shutil.copytree(folder, to))


def put(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Weights as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), path, dict(metadata) if metadata is not None else {"format": "pt"})
    return path
