"""Recipe `solo`: bits within the budget, scales without bias, choices that no other price of a bit could better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples, noise, nothing_dropped

import tallstore
from tallstore.codecs.known_dither import DitheredMask
from tallstore.kernels.place_hash import first_of
from tallstore.kernels.reference import pack
from tallstore.recipes.allocation import allocate
from tallstore.recipes.dither import seed_of, uniform
from tallstore.recipes.histogram import magnitudes
from tallstore.recipes.quantizers import HARD, is_mask, levels_of
from tallstore.recipes.rate_distortion import Choices, choices, hard
from tallstore.recipes.solo import Solo


def tail(n: int, seed: int, still: float = 0.0) -> np.ndarray:
    """Heavy-tailed values, as task vectors are, a share of them exactly 0."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(4, n).astype(np.float32) * 1e-3
    values[rng.random(n) < still] = 0
    return values


@pytest.mark.parametrize("still", [0.0, 0.4, 0.999])
def test_counted_magnitudes_are_those_of_the_values(still: float) -> None:
    values = tail(200_000, 1, still)
    base = tail(200_000, 2) * 30
    whole = magnitudes(values, base)
    halves = magnitudes(values[:77_777], base[:77_777])
    halves.add(magnitudes(values[77_777:], base[77_777:]))
    assert (whole.counts == halves.counts).all()
    assert whole.moved == np.count_nonzero(values)
    assert whole.energy == pytest.approx(float(np.square(values, dtype=np.float64).sum()), rel=0.01)
    assert whole.base_energy == pytest.approx(float(np.square(base[values != 0], dtype=np.float64).sum()), rel=1e-6)
    assert halves.base_energy == pytest.approx(whole.base_energy, rel=1e-6)


def test_harm_is_what_an_unbiased_scale_leaves_and_bits_are_what_the_coder_takes() -> None:
    values = tail(1 << 20, 3)
    found = magnitudes(values, np.ones_like(values))
    for choice in choices(found):
        if not is_mask(choice.ladder):
            continue
        (threshold,) = levels_of(choice.ladder, found.rms).bounds
        marks = np.where(np.abs(values) >= threshold, np.sign(values), 0)
        scale = float(values @ values) / float(values @ marks)
        left = np.square(values - scale * marks, dtype=np.float64).sum() / np.square(values, dtype=np.float64).sum()
        assert choice.harm == pytest.approx(left, rel=0.03, abs=0.01)
        symbols = np.where(marks < 0, 2, marks != 0).astype(np.uint8)
        coded = 8 * len(tallstore.codecs.MASK["adaptive"].encode(symbols, "signed"))
        assert choice.bits == pytest.approx(coded, rel=0.05)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 50)), min_size=1, max_size=6), min_size=1, max_size=8),
    st.floats(0, 4e6),
)
def test_what_is_allocated_fits_the_budget_if_anything_does(
    offers: list[list[tuple[float, float]]], budget: float
) -> None:
    table = {
        n: Choices(np.zeros(len(offered), np.intp), *map(np.array, zip(*offered, strict=True)))
        for n, offered in enumerate(offers)
    }
    chosen = allocate(table, dict.fromkeys(table, 1.0), budget)
    assert set(chosen) == set(table)
    least = sum(min(choice.bits for choice in offered) for offered in table.values())
    spent = sum(choice.bits for choice in chosen.values())
    assert spent <= max(budget, least) * (1 + 1e-9)


def test_bits_that_one_price_leaves_over_are_spent() -> None:
    alike = Choices(np.zeros(3, np.intp), np.array([100.0, 200.0, 400.0]), np.array([1.0, 0.5, 0.1]))
    for budget, finest in ((2000.0, 0), (2400.0, 2), (2900.0, 4), (4100.0, 10)):
        chosen = allocate(dict.fromkeys(range(10), alike), dict.fromkeys(range(10), 1.0), budget)
        bits = [choice.bits for choice in chosen.values()]
        assert sum(bits) <= budget
        assert sum(bits) > budget - 200
        assert bits.count(400.0) == finest


def test_of_several_hard_levels_bias_is_what_lies_below_the_first() -> None:
    """And is counted so many times; of one level, all that it is off by."""
    values = tail(1 << 18, 6)
    found, energy = magnitudes(values, np.ones_like(values)), float(np.square(values, dtype=np.float64).sum())
    (_, once), (_, weighed) = hard(found, 1.0), hard(found, 6.0)
    for ladder, least, most in zip(HARD, once, weighed, strict=True):
        first = levels_of(ladder, found.rms).bounds[0]
        below = float(np.square(values[np.abs(values) < first], dtype=np.float64).sum()) / energy
        if np.isfinite(least):
            assert most == pytest.approx(6 * least if is_mask(ladder) else least + 5 * below, rel=0.02, abs=1e-3)


def test_the_choices_offered_are_a_convex_hull() -> None:
    offered = choices(magnitudes(tail(100_000, 4), np.ones(100_000, np.float32)))
    bits, harm = np.array([c.bits for c in offered]), np.array([c.harm for c in offered])
    slopes = np.diff(harm) / np.diff(bits)
    assert (np.diff(bits) > 0).all()
    assert (slopes < 0).all()
    assert (np.diff(slopes) >= -1e-15).all()
    assert len(offered) > 5


@pytest.mark.parametrize("bits", [0.3, 0.7, 1.5, 3.0])
@pytest.mark.parametrize("n_tasks", [1, 3])
def test_an_archive_keeps_within_its_bits(
    bits: float, n_tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And masks and levels have the scale that what they stand for has."""
    nothing_dropped(monkeypatch)
    base = {f"w{i}": torch.randn(600, 500, generator=torch.Generator().manual_seed(i)) for i in range(2)}
    tasks = {
        f"t{t}": {
            n: w + torch.from_numpy(tail(w.numel(), 10 * t + i)).reshape(w.shape)
            for i, (n, w) in enumerate(base.items())
        }
        for t in range(n_tasks)
    }
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", bits=bits)
    assert 0.85 * bits <= report.bits_per_parameter <= bits
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        for task, state in tasks.items():
            decoded = zoo.state_dict(task)
            for name, start in base.items():
                tau, kept = (state[name] - start).double(), (decoded[name] - start).double()
                assert float((tau * kept).sum()) == pytest.approx(float((tau * tau).sum()), rel=1e-4)


def test_more_bits_leave_less_error(tmp_path: Path) -> None:
    base = {"w": torch.randn(500, 400, generator=torch.Generator().manual_seed(0))}
    task = {"w": base["w"] + torch.from_numpy(tail(200_000, 5)).reshape(500, 400)}
    errors = []
    for n, bits in enumerate((0.2, 0.5, 1.0, 2.0, 3.5)):
        report = tallstore.pack(base, {"a": task}, tmp_path / f"{n}.tall", bits=bits)
        errors.append(report.tasks["a"].relative_error or 0.0)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15


def test_a_recipe_of_no_sense_is_refused() -> None:
    for options in ({"bits": 0.0}, {"bits": -1.0}, {"bits": 33.0}):
        with pytest.raises(tallstore.errors.OptionError, match="bits a parameter"):
            Solo(**options)
    for kappa in (0.5, float("nan"), float("inf")):
        with pytest.raises(tallstore.errors.OptionError, match="kappa"):
            Solo(kappa=kappa)


def test_numbers_of_a_place_do_not_depend_on_where_one_begins() -> None:
    whole = uniform(0, 5000, 7)
    assert (uniform(1234, 3766, 7) == whole[1234:]).all()
    assert (whole >= 0).all()
    assert (whole < 1).all()
    over = uniform((1 << 32) - 100, 200, 7)
    assert (over[100:] == uniform(1 << 32, 100, 7)).all()
    assert not np.isin(uniform(1 << 32, 1000, 7), uniform(0, 1000, 7)).any()
    assert seed_of(0, "a") != seed_of(1, "a") != seed_of(1, "b")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**32 - 1))
def test_numbers_are_spread_evenly_and_not_like_their_neighbours(start: int, seed: int) -> None:
    u = uniform(start, 1 << 16, seed).astype(np.float64)
    counts = np.histogram(u, 64, (0, 1))[0]
    assert np.square(counts - 1024).sum() / 1024 < 130  # chi-squared with 63 degrees of freedom: 1 in 10^6 is 128
    for other in (np.roll(u, 1), uniform(start, 1 << 16, seed + 1)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.025


@pytest.mark.parametrize(("bits", "kind"), [(0.3, "signed"), (1.4, "delta")])
def test_with_dither_every_magnitude_is_right_on_the_average(
    bits: float, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_dropped(monkeypatch)
    base = {"w": torch.zeros(1500, 1400)}
    tau = torch.from_numpy(tail(base["w"].numel(), 8)).reshape(base["w"].shape)
    for name, kappa in (("hard", 1.0), ("dithered", 1000.0)):
        tallstore.pack(base, {"a": {"w": tau}}, tmp_path / name, bits=bits, kappa=kappa, allow_distant=True)
    slopes = {}
    rms = float(tau.square().mean().sqrt())
    for name in ("hard", "dithered"):
        with tallstore.open(tmp_path / name) as zoo:
            assert zoo.tensors("a")["w"].kind == kind
            decoded = zoo.state_dict("a")["w"]
        kept = [
            float((decoded * tau.sign())[there].mean() / tau.abs()[there].mean())
            for low in (0.1, 0.4, 0.8, 1.2, 1.8)
            if (there := (tau.abs() > low * rms) & (tau.abs() < (low + 0.3) * rms)).any()
        ]
        slopes[name] = max(abs(k - 1) for k in kept)
    assert slopes["dithered"] < 0.25
    assert slopes["hard"] > 2 * slopes["dithered"]


def test_the_price_of_dither_is_what_it_costs_and_spoils() -> None:
    values = tail(1 << 19, 3)
    found = magnitudes(values, np.ones_like(values))
    u = uniform(0, len(values), 1)
    tried = 0
    for choice in choices(found, 19.0):
        levels = levels_of(choice.ladder, found.rms)
        if not levels.width or not is_mask(choice.ladder) or choice.harm > 40:  # fewer marks are a matter of luck
            continue
        tried += 1
        marks = np.where(np.abs(values) >= levels.bounds[0] + u * levels.width, np.sign(values), 0)
        energy = float(np.square(values, dtype=np.float64).sum())
        scale = energy / float(values @ marks)
        mean = scale * np.clip((np.abs(values) - levels.bounds[0]) / levels.width, 0, 1)
        noise = np.square(scale * np.abs(marks) - mean, dtype=np.float64).sum() / energy
        bias = np.square(mean - np.abs(values), dtype=np.float64).sum() / energy
        assert choice.harm == pytest.approx(noise + 19 * bias, rel=0.05)
        symbols = np.where(marks < 0, 2, marks != 0).astype(np.uint8)
        coded = 8 * len(DitheredMask().encode_drawn(pack(symbols, "signed"), len(symbols), first_of(0, 1)))
        assert choice.bits == pytest.approx(coded, rel=0.06)
        undrawn = 8 * len(tallstore.codecs.MASK["adaptive"].encode(symbols, "signed"))
        assert coded < 0.9 * undrawn, "that the dither is known is worth a tenth at least"
    assert tried > 5


def low_rank(rows: int, columns: int, seed: int) -> torch.Tensor:
    """What a few gradients leave, and noise of the same norm."""
    make = torch.Generator().manual_seed(seed)
    left, right = torch.randn(rows, 4, generator=make), torch.randn(4, columns, generator=make)
    return 1e-3 * (left @ right / 2 + torch.randn(rows, columns, generator=make))


def test_less_error_is_there_for_who_wants_it(tmp_path: Path) -> None:
    names = [f"w{n}" for n in range(6)]
    base = {n: torch.randn(500, 400, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(names)}
    task = {n: base[n] + low_rank(500, 400, 10 + i) for i, n in enumerate(names)}
    report = tallstore.pack(base, {"a": task}, tmp_path / "plain.tall", quality="small")
    hard = tallstore.pack(base, {"a": task}, tmp_path / "hard.tall", quality="small", kappa=1.0)
    promised = tallstore.pack(base, {"a": task}, tmp_path / "promised.tall", quality="small", max_error=0.9)
    error, least = report.tasks["a"].relative_error, hard.tasks["a"].relative_error
    assert error is not None
    assert least is not None
    assert least < 0.9 < error
    assert promised.tasks["a"].relative_error == least
    assert abs(hard.bits_per_parameter - report.bits_per_parameter) < 0.1


@pytest.mark.parametrize("bits", [0.3, 2.5, None])
def test_at_kappa_one_no_other_scale_has_less_error(bits: float | None, tmp_path: Path) -> None:
    base = {"w": torch.randn(500, 400, generator=torch.Generator().manual_seed(0))}
    tau = torch.from_numpy(tail(200_000, 5)).reshape(500, 400)
    tallstore.pack(base, {"a": {"w": base["w"] + tau}}, tmp_path / "zoo", bits=bits, kappa=1.0)
    with tallstore.open(tmp_path / "zoo") as zoo:
        kept = (zoo.state_dict("a")["w"] - base["w"]).double()
    assert float((kept * tau).sum() / kept.square().sum()) == pytest.approx(1, abs=1e-3)


def test_one_huge_change_among_small_ones_has_a_finite_scale(tmp_path: Path) -> None:
    """Where marks miss it, no factor makes up for it."""
    change = noise(40, 50, seed=1) * 1e-3
    change[3, 4] = 1e30
    tallstore.pack({"w": torch.zeros(40, 50)}, {"a": {"w": change}}, tmp_path / "zoo", bits=0.5, allow_distant=True)
    with tallstore.open(tmp_path / "zoo") as zoo:
        assert bool(zoo.state_dict("a")["w"].isfinite().all())


def test_changes_too_small_to_square_are_packed_with_an_exact_part(tmp_path: Path) -> None:
    base = torch.full((300, 96), 1e-40)
    task = base + noise(300, 96, seed=2) * 1e-41
    tallstore.pack({"w": base}, {"a": {"w": task}}, tmp_path / "zoo", exact=True, allow_distant=True)
    with tallstore.open(tmp_path / "zoo") as zoo:
        assert torch.equal(zoo.state_dict("a", exact=True)["w"], task)


def errors_of(base: dict[str, torch.Tensor], path: Path, **options: Any) -> dict[str, float]:
    """Of each tensor, by what it changed: of a task that changed all of them by as much, in float32."""
    task = {name: each + torch.from_numpy(tail(each.numel(), 8)).view(each.shape) for name, each in base.items()}
    tallstore.pack(base, {"a": task}, path, **options)
    with tallstore.open(path) as zoo:
        found = zoo.state_dict("a")
    return {name: float((found[name] - task[name]).norm() / (task[name] - base[name]).norm()) for name in base}


@pytest.mark.parametrize("kappa", [None, 1.0])
def test_vectors_are_the_finer_the_more_bits_there_are(kappa: float | None, tmp_path: Path) -> None:
    """Noise in a bias averages over nothing: with bits to spare it must not be what is left of all errors."""
    base = {"weight": torch.from_numpy(tail(1 << 16, 7)).view(256, 256) * 1e3, "bias": torch.zeros(256)}
    few, some, many = (errors_of(base, tmp_path / f"{bits}.tall", bits=bits, kappa=kappa) for bits in (0.5, 2.0, 4.0))
    assert few["bias"] < 0.3
    assert some["bias"] <= few["bias"]
    assert many["bias"] < 0.6 * few["bias"]
    if kappa is None:
        assert some["bias"] < few["bias"] / 2
        assert many["bias"] < some["bias"]
        assert many["bias"] < many["weight"], "at least as fine as what averages over many"


def test_what_all_of_an_output_is_multiplied_by_is_finer_than_what_is_added_to_it(tmp_path: Path) -> None:
    norms = {"norm.weight": torch.ones(256), "norm.bias": torch.ones(256)}
    base = norms | {f"w{n}": torch.from_numpy(tail(1 << 16, n)).view(256, 256) * 1e3 for n in range(4)}
    found = errors_of(base, tmp_path / "zoo.tall")
    assert found["norm.weight"] < found["norm.bias"] < 0.03
    worse = [errors_of(base, tmp_path / f"{bits}.tall", bits=bits) for bits in (0.7, 1.5, 2.5, 3.5)]
    assert all(each["norm.weight"] <= each["norm.bias"] for each in worse)
    assert any(each["norm.weight"] < each["norm.bias"] for each in worse)


@pytest.mark.parametrize("options", [{}, {"quality": "small"}, {"bits": 0.3}], ids=str)
@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-23, 1e-21])
def test_changes_whose_squares_are_too_small_for_a_number_keep_their_size(
    size: float, options: dict[str, Any], tmp_path: Path
) -> None:
    """Of a module that decayed, or was never reached: not ±1, and not less by far than it was."""
    chance = torch.Generator().manual_seed(3)
    base = {"w": torch.randn(256, 256, generator=chance) * 0.05, "dead": torch.zeros(256, 256)}
    task = {
        "w": base["w"] + 0.003 * torch.randn(256, 256, generator=chance),
        "dead": size * torch.randn(256, 256, generator=chance),
    }
    tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall", **options)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        found = zoo.state_dict("a")["dead"].double()
    wanted = task["dead"].double()
    assert 0.1 < float(found.abs().max() / wanted.abs().max()) < 3
    if size >= 1e-30:  # of subnormal numbers only the largest may come back
        assert float((found * wanted).sum() / wanted.square().sum()) == pytest.approx(1, abs=0.9)
