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


@pytest.mark.parametrize("bits", [0.3, 0.6])
def test_a_budget_of_bits_is_spent(bits: float, tmp_path: Path) -> None:
    base, task = tuned()
    report = tallstore.pack(base, {"t": task}, tmp_path / "zoo", bits=bits, base_storage="reference")
    assert report.bits_per_parameter == pytest.approx(bits, rel=0.1)


@pytest.mark.parametrize("bits", [0.2, 0.5, 0.8])
def test_what_is_kept_is_about_as_large_as_what_changed(bits: float, tmp_path: Path) -> None:
    base, task = tuned()
    with packed(base, {"t": task}, tmp_path / "zoo", bits=bits) as zoo:
        state = zoo.state_dict("t")
    for name, start in base.items():
        tau, kept = (each[name].double() - start.double() for each in (task, state))
        # What is drawn has an error: the fewer are kept, the larger.
        assert float((tau * kept).sum() / (tau * tau).sum()) == pytest.approx(1, abs=0.04 if bits < 0.4 else 0.02)


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
