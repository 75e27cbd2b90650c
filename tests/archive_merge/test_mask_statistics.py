"""Mask statistics, against masks and vectors that are unpacked whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from merge_support import RECIPES, tau
from support import State, near, noise, packed, tiny_zoo


def layered() -> tuple[State, dict[str, State]]:
    base = {f"net.layer.{n}.fc.weight": noise(40, 40, seed=n) for n in range(3)}
    base |= {"net.emb.weight": noise(50, 30, seed=9), "net.frozen.weight": noise(30, 30, seed=10)}
    tasks = {}
    for t in range(4):
        tasks["abcd"[t]] = {n: near(tensor, seed=20 * t + i) for i, (n, tensor) in enumerate(base.items())}
        tasks["abcd"[t]]["net.frozen.weight"] = base["net.frozen.weight"].clone()
    tasks["b"]["net.emb.weight"] = base["net.emb.weight"].clone()
    return base, tasks


@pytest.mark.parametrize("recipe", RECIPES)
def test_counts_are_those_of_decoded_task_vectors(recipe: str, tmp_path: Path, small_chunks: int) -> None:
    base, tasks = layered()
    with packed(base, tasks, tmp_path / "z", recipe=recipe) as zoo:
        used = np.stack(
            [np.concatenate([tau(zoo, task, name, tasks[task][name]) != 0 for name in base]) for task in zoo.tasks]
        ).astype(np.int64)
        found = zoo.mask_statistics()
    size, users = used.shape[1], used.sum(0)
    assert found.tasks == ("a", "b", "c", "d")
    assert found.agreement.parameters == size
    assert found.profile == {n: pytest.approx((users == n).mean()) for n in range(5)}
    assert found.catastrophic == pytest.approx((users == 0).mean())
    assert list(found.selfish.values()) == pytest.approx((used * (users == 1)).sum(1) / size)
    assert list(found.density.values()) == pytest.approx(used.mean(1))
    assert np.array_equal(found.agreement.both, used @ used.T)
    for number, name in enumerate(base):
        at = sum(base[n].numel() for n in list(base)[:number])
        shares = used[:, at : at + base[name].numel()].mean(1)
        assert list(found.by_tensor[name].values()) == pytest.approx(shares)
    assert list(found.layers) == ["layer.0", "layer.1", "layer.2", "emb", "frozen"]
    assert found.layers["emb"]["b"] == found.layers["frozen"]["a"] == 0
    assert found.layers["layer.1"] == found.by_tensor["net.layer.1.fc.weight"]


def test_some_tasks_and_rows_that_not_all_have(tmp_path: Path, small_chunks: int) -> None:
    base, tasks = tiny_zoo(3)
    base["emb.weight"] = noise(90, 16, seed=1)
    for n, rows in enumerate((70, 100, 80)):
        tasks["abc"[n]]["emb.weight"] = torch.cat([near(base["emb.weight"], seed=n + 9), noise(20, 16, seed=n)])[:rows]
    with packed(base, tasks, tmp_path / "z", recipe="fit") as zoo:
        found, two = zoo.mask_statistics(), zoo.mask_statistics(["c", "a"])
        masks = {t: zoo.mask(t, "emb.weight").reshape(-1)[: 90 * 16] for t in "abc"}
    rest = {n: tensor.numel() for n, tensor in base.items() if n not in {"emb.weight", "fc.bias"}}
    assert found.agreement.size.tolist() == [sum(rest.values()) + 16 * rows for rows in (70, 90, 80)]
    assert found.agreement.parameters == sum(rest.values()) + 16 * 90
    assert list(found.by_tensor["emb.weight"].values()) == pytest.approx(
        [float(masks[t].sum()) / (16 * rows) for t, rows in zip("abc", (70, 90, 80), strict=True)]
    )
    assert two.tasks == ("c", "a")
    assert two.agreement.parameters == sum(rest.values()) + 16 * 80
    assert two.agreement.on.tolist() == found.agreement.on[[2, 0]].tolist()


def test_tensors_that_are_stored_whole_are_not_counted(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    with packed(base, tasks, tmp_path / "z") as zoo:
        assert zoo.tensors("a")["fc.bias"].kind == "private"
        assert "fc.bias" not in zoo.mask_statistics().tensors


def test_json(tmp_path: Path) -> None:
    with packed(*tiny_zoo(2), tmp_path / "z") as zoo:
        found = zoo.mask_statistics()
    made = found.to_json()
    assert sum(made["profile"]) == pytest.approx(1)
    assert made["tasks"] == ["a", "b"]
    assert made["jaccard"][0][0] == 1
    assert made["density_by_tensor"]["fc.weight"].keys() == {"a", "b"}
