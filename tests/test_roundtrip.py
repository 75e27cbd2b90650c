"""Decoded weights are the formula of the specification, bit for bit, for every recipe, codec and type."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import FLOATS, State, delta, examples, formula, near, noise, packed, raw, read_all, same_bits, tiny_zoo

import tallstore
from tallstore import codecs
from tallstore.encoder import chunk, driver
from tallstore.recipes import RECIPES
from tallstore.zoo import Zoo

SIZES = (1, 255, 256, 257, 1023, 1024, 1025, 2047, 3000)
VECTORS = tuple(codecs.SHARED)
MASKS = tuple(codecs.ASKED)


def check_all(zoo: Zoo, tasks: dict[str, State]) -> set[str]:
    """Assert the formula for every tensor of every task; which kinds of storage there were."""
    kinds = set()
    for task, state in tasks.items():
        found = zoo.state_dict(task)
        facts = zoo.tensors(task)
        assert list(found) == list(state)
        for name, tensor in state.items():
            kinds.add(facts[name].kind)
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
            if facts[name].kind in {"private", "tied", "lossless"}:
                assert same_bits(found[name], tensor), name
            else:
                assert raw(found[name]).tobytes() == formula(zoo, task, name).tobytes(), f"{task}: {name}"
            if facts[name].kind == "base":
                assert same_bits(found[name], tensor), name
    return kinds


def mixed_zoo(
    base_types: tuple[torch.dtype, ...], task_types: tuple[torch.dtype, ...]
) -> tuple[State, dict[str, State]]:
    """Every pair of types, tensors of odd sizes; task b has one tensor frozen."""
    pairs = list(itertools.product(base_types, task_types))
    sizes = itertools.cycle((1025, 300, 2100))
    base = {f"{i}": noise(next(sizes), seed=i, dtype=b) for i, (b, _) in enumerate(pairs)}
    tasks = {
        task: {f"{i}": near(base[f"{i}"].to(t), seed=50 * seed + i, size=0.05) for i, (_, t) in enumerate(pairs)}
        for seed, task in enumerate(("a", "b"), 1)
    }
    tasks["b"]["0"] = base["0"].to(pairs[0][1])
    return base, tasks


@pytest.mark.parametrize(
    ("recipe", "vector", "mask"),
    [
        (recipe, vector, MASKS[(i + j) % len(MASKS)])
        for i, recipe in enumerate(RECIPES)
        for j, vector in enumerate((None,) * len(MASKS) if recipe == "solo" else VECTORS)
    ],
)
def test_every_recipe_and_codec_in_mixed_types(
    recipe: str, vector: str | None, mask: str, tmp_path: Path, small_chunks: int
) -> None:
    base, tasks = mixed_zoo(FLOATS[:2], FLOATS[1:])
    with packed(base, tasks, tmp_path / "zoo.tall", recipe=recipe, vector=vector, mask=mask) as zoo:
        kinds = check_all(zoo, tasks)
        assert all(facts.chunk == small_chunks for facts in zoo.tensors("a").values())
        for name, tensor in base.items():
            assert same_bits(zoo.base(name), tensor)
    assert "base" in kinds
    assert kinds & {"binary", "signed", "delta"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_pair_of_types(recipe: str, tmp_path: Path, small_chunks: int) -> None:
    base, tasks = mixed_zoo(FLOATS, FLOATS)
    with packed(base, tasks, tmp_path / "zoo", recipe=recipe) as zoo:
        check_all(zoo, tasks)


@pytest.mark.parametrize("base_codec", codecs.WHOLE)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_the_ends_of_chunks_and_bytes(
    size: int, base_codec: str, tmp_path: Path, small_chunks: int
) -> None:
    base = {"w": noise(size, seed=1), "big": noise(3000, seed=2)}
    tasks = {t: {name: near(tensor, seed) for name, tensor in base.items()} for seed, t in enumerate("ab", 5)}
    with packed(base, tasks, tmp_path / "zoo", recipe="fit", base_codec=base_codec, vector="f32", mask="bits") as zoo:
        check_all(zoo, tasks)
        facts = zoo.tensors("a")["w"]
        assert facts.kind == ("private" if size < 256 else "binary")
        assert same_bits(zoo.base("w"), base["w"])


@pytest.mark.parametrize("tile", [512, 1 << 15])
def test_tensors_of_several_tiles_and_chunks(tile: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "TILE", tile)
    monkeypatch.setattr(driver, "CHUNK_ELEMENTS", 1 << 16)
    base = {"w": noise(130, 1031, seed=1)}
    tasks = {t: {"w": near(base["w"], seed)} for seed, t in enumerate("abc", 5)}
    with packed(base, tasks, tmp_path / "zoo.tall", recipe="fit", vector="f32") as zoo:
        check_all(zoo, tasks)
        vector = raw(zoo.vector("w")).tobytes()
    with packed(base, tasks, tmp_path / "whole.tall", recipe="fit", vector="f32") as zoo:
        assert raw(zoo.vector("w")).tobytes() == vector, "v does not depend on how tensors are cut"


def test_masks_are_made_against_the_stored_vector(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    for vector in VECTORS:
        with packed(base, tasks, tmp_path / f"{vector}.tall", recipe="fit", vector=vector) as zoo:
            for task, name in itertools.product(tasks, ("emb.weight", "fc.weight", "norm.weight")):
                tau = (tasks[task][name] - base[name]).numpy()
                v = zoo.vector(name).numpy()
                assert np.array_equal(zoo.mask(task, name).numpy(), np.abs(tau) > np.abs(v - tau)), f"{vector}: {name}"


def test_float64_is_computed_in_float64(tmp_path: Path) -> None:
    base = {"w": noise(2000, seed=1, dtype=torch.float64) + 1e-12 * noise(2000, seed=2, dtype=torch.float64)}
    tasks = {"a": {"w": base["w"] + 1e-9 * noise(2000, seed=3, dtype=torch.float64)}}
    with packed(base, tasks, tmp_path / "zoo.tall", recipe="fit", vector="f32") as zoo:
        check_all(zoo, tasks)
        assert zoo.mask("a", "w").float().mean() > 0.9
        gap = (zoo.state_dict("a")["w"] - tasks["a"]["w"]).norm() / (tasks["a"]["w"] - base["w"]).norm()
        assert gap < 1e-6, "in float32 the step would be lost altogether"


def test_negative_zero_of_the_base_survives_where_the_mask_is_off(tmp_path: Path) -> None:
    base = {"w": torch.where(torch.arange(1000) % 2 == 0, -0.0, 1.0)}
    moved = base["w"].clone()
    moved[::3] += 0.5
    with packed(base, {"a": {"w": moved}}, tmp_path / "zoo.tall", recipe="fit", vector="f32") as zoo:
        assert same_bits(zoo.state_dict("a")["w"], moved)


def test_a_single_task_comes_back_exactly_with_an_exact_vector(tmp_path: Path) -> None:
    """With one task v is τ: what is added back is exact where θ0 + τ is."""
    base, tasks = tiny_zoo(1)
    base = {name: (tensor * 256).round() / 256 for name, tensor in base.items()}
    tasks = {"a": {name: base[name] + (noise(*base[name].shape, seed=9) * 64).round() / 1024 for name in base}}
    with packed(base, tasks, tmp_path / "zoo.tall", recipe="fit", vector="f32") as zoo:
        for name, tensor in tasks["a"].items():
            assert torch.equal(zoo.state_dict("a")[name], tensor)
        assert zoo.info()["tasks"]["a"]["relative_error"] == 0


def test_the_reported_error_is_the_true_one(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    for recipe in RECIPES:
        report = tallstore.pack(base, tasks, tmp_path / f"{recipe}.tall", recipe=recipe)
        with tallstore.open(tmp_path / f"{recipe}.tall") as zoo:
            against = zoo.verify(against=tasks).against
            for task, state in tasks.items():
                found = zoo.state_dict(task)
                masked = [name for name, facts in zoo.tensors(task).items() if facts.base]
                error = sum(float((found[n].double() - state[n].double()).square().sum()) for n in masked) ** 0.5
                norm = sum(float((state[n].double() - base[n].double()).square().sum()) for n in masked) ** 0.5
                kind = {n: zoo.tensors(task)[n].kind for n in masked}
                on = sum(
                    int(np.count_nonzero(delta(zoo, task, n) if kind[n] == "delta" else zoo.mask(task, n)))
                    for n in masked
                )
                told = report.tasks[task]
                assert told.relative_error == pytest.approx(error / norm, rel=1e-4)
                assert against[task].relative_error == pytest.approx(error / norm, rel=1e-4)
                assert told.density == pytest.approx(on / sum(state[n].numel() for n in masked), rel=1e-4)
                assert not against[task].exact
                assert against[task].whole_tensors_exact


def test_reported_bytes_are_those_on_disk(target: Path) -> None:
    base, tasks = tiny_zoo()
    report = tallstore.pack(base, tasks, target)
    files = {name: len(data) for name, data in read_all(target).items()}
    assert report.bytes["total"] == sum(files.values())
    for kind, prefix in (("base", "base/"), ("vector", "vector/")):
        assert report.bytes[kind] == sum(size for name, size in files.items() if name.startswith(prefix))
    for task in tasks:
        assert report.tasks[task].bytes == sum(
            size for name, size in files.items() if name.startswith(f"tasks/{task}/")
        )
    with tallstore.open(target) as zoo:
        assert zoo.info()["bytes"] == dict(report.bytes)


shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 3000)),
    st.tuples(st.integers(1, 70), st.integers(0, 70)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30)),
)
tensors = st.tuples(shapes, st.sampled_from(FLOATS), st.sampled_from([0.0, 1e-6, 0.01, 1.0]))


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    spec=st.lists(tensors, min_size=1, max_size=5),
    types=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=5),
    recipe=st.sampled_from(sorted(RECIPES)),
    vector=st.sampled_from(VECTORS),
    mask=st.sampled_from(MASKS),
    base_codec=st.sampled_from(sorted(codecs.WHOLE)),
    threads=st.sampled_from([1, 3]),
    mapped=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_zoo_comes_back_as_the_formula_says(
    spec: list[tuple[tuple[int, ...], torch.dtype, float]],
    types: list[torch.dtype],
    recipe: str,
    vector: str,
    mask: str,
    base_codec: str,
    threads: int,
    mapped: bool,
    seed: int,
    small_chunks: int,
) -> None:
    base = {f"t{i}": noise(*shape, seed=seed + i, dtype=dtype) for i, (shape, dtype, _) in enumerate(spec)}
    tasks = {
        f"task{t}": {
            f"t{i}": near(base[f"t{i}"].to(dtype), seed=seed + 31 * t + i, size=step)
            for i, (_, _, step) in enumerate(spec)
        }
        for t, dtype in enumerate(types)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("zoo.tall" if seed % 2 else "zoo")
        options = {
            "recipe": recipe,
            "vector": None if recipe == "solo" else vector,
            "mask": mask,
            "base_codec": base_codec,
        }
        tallstore.pack(base, tasks, path, allow_distant=True, **options)
        with tallstore.open(path, threads=threads, mapped=mapped) as zoo:
            zoo.verify(against=tasks)
            check_all(zoo, tasks)
