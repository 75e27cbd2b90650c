"""Types of few bits, with loss: what is predicted is what it takes, and scales are right of what a decoder rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import packed

import tallstore
from tallstore.encoder.metrics import settled

SHAPE = (400, 600)


def tuned(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Matrices in bfloat16 of which about a third moved, by few units, as short fine-tunes do."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"w{i}": (0.05 * torch.randn(SHAPE, generator=generator)).bfloat16() for i in range(2)}
    size = 8e-5
    task = {
        name: (each.float() + size * torch.randn(SHAPE, generator=generator)).bfloat16() for name, each in base.items()
    }
    return base, task


def test_settings_take_less_than_losing_nothing(tmp_path: Path) -> None:
    base, task = tuned()
    bits = {}
    for name in ("small", "balanced", "high", "lossless"):
        report = tallstore.pack(base, {"t": task}, tmp_path / name, quality=name, base_storage="reference")
        bits[name] = report.bits_per_parameter
    assert bits["small"] <= bits["balanced"] <= bits["high"] <= 1.02 * bits["lossless"]


@pytest.mark.parametrize("bits", [0.3, 0.65])
def test_a_budget_of_bits_is_spent(bits: float, tmp_path: Path) -> None:
    base, task = tuned()
    report = tallstore.pack(base, {"t": task}, tmp_path / "zoo", bits=bits, base_storage="reference")
    assert report.bits_per_parameter == pytest.approx(bits, rel=0.1)


@pytest.mark.parametrize("bits", [0.2, 0.5, 0.8])
def test_what_is_kept_is_about_as_large_as_what_changed(bits: float, tmp_path: Path) -> None:
    base, task = tuned()
    with packed(base, {"t": task}, tmp_path / "zoo", bits=bits) as zoo:
        state = zoo.state_dict("t")
    start, tau, kept = (torch.cat([each[name].double().reshape(-1) for name in base]) for each in (base, task, state))
    tau, kept = tau - start, kept - start
    energy = float((tau * tau).sum())
    chance = float(((kept - tau) * tau).square().sum()) ** 0.5 / energy  # of which changes were drawn
    assert chance < 0.02
    assert float((tau * kept).sum()) / energy == pytest.approx(1, abs=max(0.005, 3 * chance))


@pytest.mark.parametrize("bits", [0.8, 1.0])
def test_units_of_weights_of_every_size_are_kept_alike(bits: float, tmp_path: Path) -> None:
    """A hard threshold would leave out all steps of a unit of small weights, and take all of larger ones."""
    base, task = tuned()
    with packed(base, {"t": task}, tmp_path / "zoo", bits=bits) as zoo:
        state = zoo.state_dict("t")
    start, tau, kept = (torch.cat([each[name].double().reshape(-1) for name in base]) for each in (base, task, state))
    tau, kept = tau - start, kept - start
    sizes, counts = tau[tau != 0].abs().unique(return_counts=True)
    for size in sizes[counts >= 1000]:
        same = tau.abs() == size
        assert float((kept * tau.sign())[same].mean() / size) == pytest.approx(1, abs=0.08)


def test_more_bits_never_diverge_more_and_no_less_than_nothing_costs_more(tmp_path: Path) -> None:
    """Half of what was tuned is one direction, along which inputs lie: what errs everywhere alike shows in outputs."""
    base, _ = tuned()
    generator = torch.Generator().manual_seed(1)
    up, along = torch.randn(SHAPE[0], 1, generator=generator), torch.randn(1, SHAPE[1], generator=generator)
    task = {
        name: (each.float() + 8e-5 * (torch.randn(SHAPE, generator=generator) + 0.5 * up * along)).bfloat16()
        for name, each in base.items()
    }
    inputs = along + torch.randn(128, SHAPE[1], generator=generator)

    def divergence(state: Mapping[str, torch.Tensor]) -> float:
        off, moved = (
            sum(float((inputs @ (one[name].float() - task[name].float()).T).square().sum()) for name in base)
            for one in (state, base)
        )
        return (off / moved) ** 0.5

    def measured(**options: Any) -> tuple[float, float]:
        folder = tmp_path / "-".join(map(str, options.values()))
        with packed(base, {"t": task}, folder, **options) as zoo:
            return zoo.manifest.bits_per_parameter(0), divergence(zoo.state_dict("t"))

    settings = [measured(quality=name) for name in ("small", "balanced", "high", "lossless")]
    budgets = [measured(bits=bits) for bits in (0.1, 0.2, 0.4, 0.8, 1.4, 3.0)]
    for each in (settings, budgets):
        assert each == sorted(each, key=lambda pair: (pair[0], -pair[1]))
    assert settings[-1][1] == budgets[-1][1] == 0
    assert max(bits for bits, _ in settings + budgets) <= settings[-1][0]


@pytest.mark.parametrize(
    "kept", [lambda s: 1.3 * s, lambda s: s**2, lambda s: round(4 * s) / 3, lambda s: float("nan")]
)
def test_a_settled_scale_is_nearer_or_as_it_was(kept: Callable[[float], float]) -> None:
    def measure(scale: float) -> tuple[float, ...]:
        return (kept(scale),)

    def off(found: tuple[float, ...]) -> float:
        return 1 / found[0] if found[0] else 1.0

    scale, found = settled(measure, off)
    assert found == measure(scale) or found[0] != found[0]
    assert not abs(off(found) - 1) > abs(off(measure(1.0)) - 1)
    if kept(1.0) == 1.3:
        assert off(found) == pytest.approx(1, abs=0.003)


def short_tune(size: float, dtype: torch.dtype = torch.bfloat16) -> tuple[dict[str, Any], dict[str, Any]]:
    """Matrices and a norm that moved in about the same directions, and by little or much."""
    generator = torch.Generator().manual_seed(0)
    base, task = {}, {}
    for n in range(3):
        start = 0.05 * torch.randn(SHAPE, generator=generator)
        pull = torch.randn(SHAPE[0], 2, generator=generator) @ torch.randn(2, SHAPE[1], generator=generator)
        base[f"w{n}"] = start.to(dtype)
        task[f"w{n}"] = (base[f"w{n}"].float() + size * pull).to(dtype)
    base["norm"] = torch.rand(SHAPE[1], generator=generator).to(dtype)
    task["norm"] = (base["norm"].float() * 1.01).to(dtype)
    return base, task


@pytest.mark.parametrize(("size", "exact"), [(3e-5, True), (3e-3, False)])
def test_by_default_what_takes_little_more_without_loss_comes_back_bit_for_bit(
    size: float, exact: bool, tmp_path: Path
) -> None:
    """Norms, too; and a task that moved far, of which all bits take more than three times the level's, does not."""
    base, task = short_tune(size)
    took = {}
    for quality in ("high", "lossless"):
        report = tallstore.pack(base, {"t": task}, tmp_path / quality, quality=quality, base_storage="reference")
        took[quality] = report.bytes["masks"]
    report = tallstore.pack(base, {"t": task}, tmp_path / "zoo", base_storage="reference")
    with tallstore.open(tmp_path / "zoo", base=base) as zoo:
        state, facts = zoo.state_dict("t"), zoo.info()["tasks"]["t"]
    same = all(torch.equal(state[name].view(torch.int16), task[name].view(torch.int16)) for name in task)
    assert same == exact == bool(facts.get("bit_for_bit"))
    assert (facts["divergence"] == 0) == exact
    assert (took["high"] == took["lossless"]) == exact
    assert report.bytes["masks"] == took["high"]
    if not exact:
        assert 2.5 * took["high"] < took["lossless"]


def test_a_task_in_types_of_many_bits_as_well_is_not(tmp_path: Path) -> None:
    base, task = short_tune(5e-5)
    wide = short_tune(1e-4, torch.float32)
    base, task = base | {"wide": wide[0]["w0"]}, task | {"wide": wide[1]["w0"]}
    with packed(base, {"t": task}, tmp_path / "zoo") as zoo:
        assert not zoo.info()["tasks"]["t"].get("bit_for_bit")
        assert not torch.equal(zoo.state_dict("t")["wide"], task["wide"])


def test_the_level_is_recorded_by_its_name(tmp_path: Path) -> None:
    base, task = short_tune(5e-5)
    for options, name in (({}, "high"), ({"quality": "small"}, "small"), ({"bits": 0.5}, None)):
        with packed(base, {"t": task}, tmp_path / f"{name}.tall", **options) as zoo:
            assert zoo.manifest.options["quality"] == name
