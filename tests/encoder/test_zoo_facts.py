"""What is in a budget of bits beside what a recipe chooses."""

from __future__ import annotations

from pathlib import Path

import torch

import tallstore


def test_tensors_too_small_for_a_mask_are_in_the_budget(tmp_path: Path) -> None:
    """They are stored as they are: the others have what is left. Those that did not move take nothing."""
    chance = torch.Generator().manual_seed(4)
    base = {f"c{i}.weight": torch.randn(80, 80, generator=chance) * 0.05 for i in range(40)}
    base |= {f"n{i}.{each}": torch.randn(80, generator=chance) for i in range(40) for each in "wbmv"}
    task = {name: each + 0.003 * torch.randn(each.shape, generator=chance) for name, each in base.items()}
    for bits in (4.0, 6.0):
        report = tallstore.pack(base, {"a": task}, tmp_path / f"{bits}.tall", bits=bits)
        assert 0.85 * bits <= report.bits_per_parameter - 8 * report.bytes["manifest"] / 268_800 <= 1.02 * bits
    still = {name: each if each.dim() > 1 else base[name] for name, each in task.items()}
    alone, both = (
        tallstore.pack(base, {"a": each}, tmp_path / f"{name}.tall", bits=2.0).tasks["a"].relative_error
        for name, each in (("alone", still), ("both", task))
    )
    assert alone is not None
    assert both is not None
    assert alone < both / 2, "what small tensors take is not there for the others"
