"""A model of several modules, saved as folders: each folder's tensors go into the module that its name tells of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tallstore
from tallstore.archive.binding import bind
from tallstore.errors import ModelMismatchError


class Body(nn.Module):
    """A module that holds its model under a name of its own, as the first of a sentence-transformers model does."""

    def __init__(self) -> None:
        super().__init__()
        self.auto_model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sub_modules = nn.ModuleDict({"query": nn.Sequential(Dense()), "document": nn.Sequential(Dense())})


def test_each_folder_has_its_module(tmp_path: Path) -> None:
    model = nn.Sequential(Body(), nn.Identity(), Dense())
    names = {"0.auto_model.": "", "2.linear.": "2_Dense/linear."}
    state = {}
    for name, tensor in model.state_dict().items():
        old = next(prefix for prefix in names if name.startswith(prefix))
        state[names[old] + name.removeprefix(old)] = tensor.clone()
    task = {name: tensor + 0.01 for name, tensor in state.items()}
    tallstore.pack(state, {"a": task}, tmp_path / "z.tall", quality="lossless")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        zoo.load_into(model, "a")
    found = model.state_dict()
    assert torch.equal(found["2.linear.weight"], task["2_Dense/linear.weight"])
    assert torch.equal(found["0.auto_model.1.bias"], task["1.bias"])


@pytest.mark.parametrize("root", ["", "0_Router/"])
def test_routes_keep_apart(root: str) -> None:
    model = nn.Sequential(Router(), nn.Identity())
    shapes: dict[str, tuple[int, ...]] = {}
    for route in ("query", "document"):
        shapes |= {f"{root}{route}_0_Dense/linear.weight": (32, 32), f"{root}{route}_0_Dense/linear.bias": (32,)}
    owners = bind(model, shapes, "a").owners
    assert owners[f"{root}query_0_Dense/linear.bias"] == "0.sub_modules.query.0.linear.bias"
    assert owners[f"{root}document_0_Dense/linear.weight"] == "0.sub_modules.document.0.linear.weight"


def test_a_folder_without_its_module_is_refused() -> None:
    model = nn.Sequential(Dense(), Dense())
    shapes: dict[str, tuple[int, ...]] = {}
    for folder in ("", "3_Dense/"):
        shapes |= {f"{folder}linear.weight": (32, 32), f"{folder}linear.bias": (32,)}
    with pytest.raises(ModelMismatchError, match="nothing was written"):
        bind(model, shapes, "a")
