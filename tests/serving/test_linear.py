"""A layer of a mixed batch: which way its rows go, heads of other sizes than the base's, and types that kernels lack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import noise
from torch import Tensor, nn

import tallstore
from tallstore.kernels.products import products
from tallstore.serving import linear

WIDTH, BASE_CLASSES, CLASSES = 256, 7, 3


class Classifier(nn.Module):
    """A layer that is wide enough to be computed in every way, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, BASE_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.body(x)))
        return logits


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


@pytest.fixture
def zoo(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tallstore.Zoo]:
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tasks = {}
    for seed, name in enumerate("ab", 1):
        state = {n: t + noise(*t.shape, size=0.01, seed=10 * seed + len(n)) for n, t in base.items()}
        head = {"head.weight": noise(CLASSES, WIDTH, size=0.1, seed=seed), "head.bias": noise(CLASSES, seed=seed)}
        tasks[name] = state | head
    path = tmp_path_factory.mktemp("zoo") / "zoo.tall"
    tallstore.pack(base, tasks, path, quality="high")
    with tallstore.open(path) as opened:
        yield opened


def alone(zoo: tallstore.Zoo, task: str, x: Tensor) -> Tensor:
    """What the task's own model says."""
    state = zoo.state_dict(task)
    body = nn.functional.linear(x, state["body.weight"], state["body.bias"])
    return nn.functional.linear(torch.tanh(body), state["head.weight"], state["head.bias"])


@torch.no_grad()
@pytest.mark.parametrize("way", ["marks", "rows", "whole"])
def test_rows_go_the_way_that_is_quickest(
    way: str, model: Classifier, zoo: tallstore.Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = products("cpu")
    monkeypatch.setattr(linear, "COPY", -1e9 if way == "rows" else 1e9)
    monkeypatch.setattr(linear, "WRITE", -1e9 if way == "whole" else 1e9)
    went: list[str] = []
    real = linear.ways

    def watched(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        went.extend(name for name, runs in found._asdict().items() for _ in runs)
        return found

    monkeypatch.setattr(linear, "ways", watched)
    x = noise(2, 5, WIDTH, seed=3)
    logits = zoo.multitask(model)(x, tasks=["a", "b"])
    there = way != "rows" or getattr(backend, "_variant", "") in {"avx2", "avx512"}
    assert went.count(way if there else "marks") == 2, went
    for row, task in enumerate("ab"):
        torch.testing.assert_close(logits[row, :, :CLASSES], alone(zoo, task, x[row]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_of_the_base_keep_its_wider_head(model: Classifier, zoo: tallstore.Zoo) -> None:
    x = noise(2, 5, WIDTH, seed=3)
    wanted = model(x[1])
    logits = zoo.multitask(model)(x, tasks=["a", None])
    assert logits.shape == (2, 5, BASE_CLASSES)
    torch.testing.assert_close(logits[0, :, :CLASSES], alone(zoo, "a", x[0]), rtol=1e-4, atol=1e-5)
    assert (logits[0, :, CLASSES:] == -torch.inf).all()
    torch.testing.assert_close(logits[1], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_activations_of_few_bits_are_not_computed_by_rows(
    model: Classifier, zoo: tallstore.Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "COPY", -1e9)
    x = noise(2, 5, WIDTH, seed=3)
    multi = zoo.multitask(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = multi(x.bfloat16(), tasks=["a", "b"])
    for row, task in enumerate("ab"):
        torch.testing.assert_close(logits[row, :, :CLASSES].float(), alone(zoo, task, x[row]), rtol=0.1, atol=0.1)
