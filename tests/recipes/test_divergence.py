"""Outputs come as near to the fine-tune's as is predicted, whatever the shapes; what bits forbid is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tallstore
from tallstore.recipes.coherence import gain, picked
from tallstore.recipes.divergence import TensorShare, predicted_divergence, read_as_it_comes, task_gain
from tallstore.recipes.histogram import magnitudes
from tallstore.recipes.sensitivity import sensitivity
from tallstore.recipes.steps import steps

State = dict[str, Tensor]


def noisy(state: State, share: float, seed: int) -> State:
    """Every tensor moved by a share of its spread, at random."""
    make = torch.Generator().manual_seed(seed)
    return {n: w + share * w.float().std() * torch.randn(w.shape, generator=make) for n, w in state.items()}


def network(width: int, depth: int) -> State:
    make = torch.Generator().manual_seed(0)
    return {f"{n}.weight": torch.randn(width, width, generator=make) * width**-0.5 for n in range(depth)} | {
        f"{n}.bias": torch.randn(width, generator=make) * 0.02 for n in range(depth)
    }


def outputs(state: State, x: Tensor) -> Tensor:
    for n in range(len(state) // 2):
        x = functional.gelu(functional.linear(x, state[f"{n}.weight"], state[f"{n}.bias"])) + x
    return x


def off(decoded: Tensor, task: Tensor, base: Tensor) -> float:
    return float((decoded - task).norm() / (base - task).norm())


def unpacked(base: State, task: State, path: Path, **options: object) -> tuple[State, tallstore.PackReport]:
    report = tallstore.pack(base, {"a": task}, path, **options)
    with tallstore.open(path) as zoo:
        return zoo.state_dict("a"), report


@pytest.mark.parametrize("quality", ["small", "balanced", "high"])
@pytest.mark.parametrize(("width", "depth"), [(32, 3), (64, 6), (128, 2)])
def test_narrow_models_come_back_near(width: int, depth: int, quality: str, tmp_path: Path) -> None:
    base = network(width, depth)
    task = noisy(base, 0.05, 1)
    decoded, report = unpacked(base, task, tmp_path / "zoo", quality=quality)
    x = torch.randn(64, width, generator=torch.Generator().manual_seed(2))
    assert off(outputs(decoded, x), outputs(task, x), outputs(base, x)) < 0.25
    assert not report.warnings
    for name, weights in task.items():
        assert off(decoded[name], weights, base[name]) < 0.35


def test_convolutions_come_back_near(tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    base = {f"{n}": torch.randn(32, 32, 3, 3, generator=make) / 17 for n in range(4)}
    task = noisy(base, 0.05, 1)
    decoded, _ = unpacked(base, task, tmp_path / "zoo", quality="small")

    def run(state: State) -> Tensor:
        x = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(2))
        for w in state.values():
            x = functional.relu(functional.conv2d(x, w, padding=1)) + x
        return x

    assert off(run(decoded), run(task), run(base)) < 0.25


def test_a_table_that_nothing_reads_is_kept_as_it_comes(tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    base = {"embedding.weight": torch.randn(3000, 64, generator=make)}
    along = torch.randn(3000, 2, generator=make) @ torch.randn(2, 64, generator=make)  # coherent, and read by nobody
    task = {"embedding.weight": base["embedding.weight"] + 0.05 * along}
    decoded, _ = unpacked(base, task, tmp_path / "zoo", quality="small")
    rows = torch.randint(0, 3000, (50, 6), generator=make)
    means = [state["embedding.weight"][rows].mean(1) for state in (decoded, task, base)]
    assert off(*means) < 0.25


def test_a_table_is_one_by_its_shape_and_by_who_reads_it() -> None:
    assert read_as_it_comes("e", {"e": (1000, 64)})
    assert not read_as_it_comes("e", {"e": (1000, 64), "w": (256, 64)})
    assert not read_as_it_comes("w", {"w": (64, 64)})
    assert not read_as_it_comes("c", {"c": (64, 3, 3, 3)})
    assert read_as_it_comes("b", {"b": (64,), "w": (64, 64)})


@pytest.mark.parametrize("step", [2.6e-7, 1.3e-6])
def test_few_moved_elements_in_bf16_come_back(step: float, tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    base = {f"{n}": (0.02 * torch.randn(1024, 512, generator=make)).bfloat16() for n in range(3)}
    task = {n: (w.float() + step * torch.randn(w.shape, generator=make)).bfloat16() for n, w in base.items()}
    decoded, report = unpacked(base, task, tmp_path / "zoo")
    for name, weights in task.items():
        assert off(decoded[name].double(), weights.double(), base[name].double()) < 0.25
    assert report.bits_per_parameter < 0.3


def test_more_bits_are_never_further_off(tmp_path: Path) -> None:
    base = network(64, 4)
    task = noisy(base, 0.05, 1)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    found = []
    for n, bits in enumerate((2.5, 3.0, 4.0, 5.0)):
        decoded, _ = unpacked(base, task, tmp_path / f"{n}", bits=bits)
        found.append(off(outputs(decoded, x), outputs(task, x), outputs(base, x)))
    assert found == sorted(found, reverse=True)


def test_what_bits_forbid_is_said_with_what_would_do(tmp_path: Path) -> None:
    base = network(64, 6)
    _, report = unpacked(base, noisy(base, 0.05, 1), tmp_path / "zoo", bits=2.0)
    (warning,) = report.warnings
    assert "more than 0.25, at bits=2; bits=" in warning
    assert (report.tasks["a"].divergence or 0) > 0.25
    assert json.loads(json.dumps(report.to_json()))["tasks"]["a"]["divergence"] == report.tasks["a"].divergence
    with tallstore.open(tmp_path / "zoo") as zoo:
        assert zoo.info()["tasks"]["a"]["divergence"] == report.tasks["a"].divergence
    enough = float(warning.rpartition("bits=")[2].split()[0])
    _, report = unpacked(base, noisy(base, 0.05, 1), tmp_path / "enough", bits=enough * 1.1)
    assert not report.warnings


def test_wide_and_coherent_tensors_take_fewer_bits_than_noise(tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    base = {f"{n}": torch.randn(256, 512, generator=make) for n in range(4)}
    along = {
        n: w + 0.002 * torch.randn(256, 2, generator=make) @ torch.randn(2, 512, generator=make)
        for n, w in base.items()
    }
    _, coherent = unpacked(base, along, tmp_path / "along")
    _, noise = unpacked(base, noisy(base, 0.003, 1), tmp_path / "noise")
    assert coherent.bits_per_parameter < noise.bits_per_parameter / 3


def test_a_norm_of_which_one_value_moved_from_nothing_costs_no_other_tensor_bits(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(3)
    base = {f"{i}.weight": (torch.randn(256, 256, generator=rng) * 0.05).bfloat16() for i in range(6)}
    base["norm.weight"] = torch.ones(256, dtype=torch.bfloat16)
    base["norm.weight"][5] = 1e-9
    task = dict(base)
    for name in list(base)[:6]:
        along = torch.randn(256, 2, generator=rng) @ torch.randn(2, 256, generator=rng)
        task[name] = (base[name] + 3e-4 * along).bfloat16()
    still = tallstore.pack(base, {"a": task}, tmp_path / "still.tall")
    task["norm.weight"] = base["norm.weight"].clone()
    task["norm.weight"][5] = 1e-4
    moved = tallstore.pack(base, {"a": task}, tmp_path / "moved.tall")
    assert moved.bits_per_parameter == pytest.approx(still.bits_per_parameter, rel=0.1)


def test_the_gain_is_one_of_noise_and_n_of_rank_one() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((64, 300)).astype(np.float32)
    along = np.outer(rng.standard_normal(64), rng.standard_normal(300)).astype(np.float32)
    assert gain(noise) == pytest.approx(1, abs=0.05)
    assert gain(along) == pytest.approx(300, rel=0.01)
    assert 1.5 < gain(noise + along) < 150
    assert gain(along * np.float32(1e-30)) == pytest.approx(300, rel=0.01)
    assert gain(noise[:1]) == gain(np.zeros((5, 5), np.float32)) == 1
    assert gain(np.full((4, 4), np.inf, np.float32)) == 1
    shuffled = rng.permutation(300)
    assert gain(noise[:, shuffled]) == gain(noise)


def test_rows_are_picked_evenly() -> None:
    assert picked(3) == [0, 1, 2]
    assert picked(128) == list(range(0, 128, 2))
    assert len(picked(30522)) == 256
    assert picked(30522)[-1] < 30522


def test_a_task_of_noise_has_no_gain() -> None:
    noise = [TensorShare(change=0.01, weight=1, gain=1)] * 10
    along = [TensorShare(change=0.01, weight=1, gain=11)] * 10
    most = [TensorShare(change=0.01, weight=1, gain=100)] * 10
    assert task_gain(noise) == 1
    assert task_gain(along) == pytest.approx(201)
    assert task_gain(most) == 240
    assert predicted_divergence([(part, 0.04) for part in noise]) == pytest.approx(0.2)
    assert predicted_divergence([]) == 0


def test_steps_cost_and_leave_what_they_say() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_t(4, 100_000).astype(np.float32)
    found = magnitudes(values, np.ones_like(values))
    tried, _, harms = steps(found)
    assert len(tried) >= 4
    for levels, harm in zip(tried, harms, strict=True):
        cell = np.searchsorted(levels, np.abs(values), side="right")
        number, total = np.bincount(cell), np.bincount(cell, np.abs(values))
        total[0] = 0
        kept = (total**2 / np.maximum(number, 1)).sum()
        assert harm == pytest.approx(float(np.square(values, dtype=np.float64).sum()) / kept - 1, rel=0.1, abs=2e-3)
    few = magnitudes(np.array([1, 1, 2, 0, 0, -5] * 100, np.float32), np.ones(600, np.float32))
    assert min(steps(few)[2]) < 1e-3


def test_of_few_bits_a_tensor_loses_nothing_where_that_is_cheaper(tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    base = {n: (torch.randn(128, 256, generator=make) * 0.05).bfloat16() for n in ("slight", "far")}
    # Of one, few elements move at all; the other moves by many steps of bf16.
    moves = {"slight": 1e-6, "far": 0.01}
    task = {n: (w.float() + moves[n] * torch.randn(w.shape, generator=make)).bfloat16() for n, w in base.items()}
    decoded, report = unpacked(base, task, tmp_path / "zoo", quality="balanced")
    assert torch.equal(decoded["slight"].view(torch.int16), task["slight"].view(torch.int16))
    assert not torch.equal(decoded["far"], task["far"])
    assert report.notes == ("a: 1 of 2 tensors bit for bit, since that is cheaper",)

    decoded, report = unpacked({"slight": base["slight"]}, {"slight": task["slight"]}, tmp_path / "one", bits=8)
    assert torch.equal(decoded["slight"], task["slight"])
    assert report.tasks["a"].relative_error == 0
    with tallstore.open(tmp_path / "one") as zoo:
        assert zoo.manifest.tasks["a"].bit_for_bit


LLAMA = {
    f"model.layers.0.{name}.weight": (64, 64) for name in ("self_attn.v_proj", "self_attn.q_proj", "mlp.down_proj")
}
LLAMA |= {"model.embed_tokens.weight": (500, 64), "model.norm.weight": (64,)}


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("model.layers.0.self_attn.v_proj.weight", 3.0),
        ("model.layers.0.self_attn.q_proj.weight", 1.0),
        ("model.layers.0.mlp.down_proj.weight", 2.0),
        ("model.embed_tokens.weight", 4.0),
        ("model.norm.weight", 10.0),
        ("encoder.layer.1.attention.self.value.bias", 1.0),
        ("encoder.layer.1.attention.self.value.weight", 3.0),
        ("embeddings.position_embeddings.weight", 16.0),
        ("embeddings.word_embeddings.weight", 1.0),
        ("visual.pos_embed", 16.0),
    ],
)
def test_what_tensors_are_for_is_told_by_their_names(name: str, factor: float) -> None:
    shape = LLAMA.get(name, (64,) if name.endswith("bias") else (64, 64))
    assert sensitivity(name, shape, LLAMA) == factor


def test_a_table_that_is_not_the_output_matrix_counts_as_others() -> None:
    names = {**LLAMA, "lm_head.weight": (500, 64)}
    assert sensitivity("model.embed_tokens.weight", (500, 64), names) == 1
    assert sensitivity("lm_head.weight", (500, 64), names) == 4
