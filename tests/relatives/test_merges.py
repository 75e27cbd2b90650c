"""Merges kept as recipes: what they decode to, wherever a task is asked for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import State, assert_same, bytes_of, noise, read_all, rounded, same_bits, tiny_zoo, to_numpy
from torch import nn

import tallstore
from tallstore.errors import InputError, NoSuchTaskError, OptionError, TallstoreError, TaskNameError
from tallstore.zoo import Zoo


def headed(dtype: torch.dtype = torch.float32) -> tuple[State, dict[str, State]]:
    """Three tasks, one of which has a head of another shape."""
    base, tasks = tiny_zoo(3, dtype)
    for rows, (name, state) in zip((2, 2, 3), tasks.items(), strict=True):
        state["head.weight"] = noise(rows, 16, seed=ord(name), dtype=dtype)
    return base, tasks


@pytest.fixture
def zoo_path(tmp_path: Path) -> Path:
    path = tmp_path / "zoo.tall"
    tallstore.pack(*headed(), path)
    return path


def decoded(path: Path) -> dict[str, State]:
    with tallstore.open(path) as zoo:
        zoo.verify()
        return {task: zoo.state_dict(task) for task in zoo.tasks}


@pytest.mark.parametrize("quality", ["balanced", "lossless"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_weighted_sum_is_what_a_merge_tool_saves(dtype: torch.dtype, quality: str, tmp_path: Path) -> None:
    path = tmp_path / "zoo.tall"
    tallstore.pack(*headed(dtype), path, quality=quality)
    report = tallstore.add_merge(path, "mix", "0.6*a + 0.4*b")
    found = decoded(path)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = {
        name: (found["a"][name].to(wide) * 0.6 + found["b"][name].to(wide) * 0.4).to(dtype) for name in found["a"]
    }
    assert_same(found["mix"], wanted)
    assert report.added["mix"].bytes < 400
    assert report.warnings == ()


def by_hand(method: str, base: State, states: list[State], weights: list[float], name: str, k: int = 0) -> Any:
    """The formulas of relatives.md, in numpy."""
    zero = to_numpy(base[name])
    moved = [to_numpy(state[name]) - zero for state in states]
    total = moved[0] * zero.dtype.type(weights[0])
    for each, weight in zip(moved[1:], weights[1:], strict=True):
        total = total + each * zero.dtype.type(weight)
    found = zero + total
    if method == "consensus":
        users = sum((each != 0).astype(int) for each in moved)
        found = (users >= k) * found + (users < k) * zero
    return rounded(found, base[name].dtype).tobytes()


def test_differences_from_the_base_are_summed(zoo_path: Path) -> None:
    base = headed()[0]
    tallstore.add_merge(zoo_path, "sum", "0.3*a - 0.2*b + c", head="c")
    tallstore.add_merge(zoo_path, "agreed", {"a": 0.5, "b": 0.5}, method="consensus", k=2, head="b")
    found = decoded(zoo_path)
    for name, tensor in base.items():
        assert found["sum"][name].numpy().tobytes() == by_hand(
            "arithmetic", base, [found[t] for t in "abc"], [0.3, -0.2, 1.0], name
        )
        assert found["agreed"][name].numpy().tobytes() == by_hand(
            "consensus", base, [found[t] for t in "ab"], [0.5, 0.5], name, 2
        )
        assert tensor.shape == found["sum"][name].shape
    assert same_bits(found["sum"]["head.weight"], found["c"]["head.weight"])
    assert same_bits(found["agreed"]["head.weight"], found["b"]["head.weight"])


@pytest.mark.parametrize("average", [False, True])
def test_ties_is_what_tallstore_merge_makes(average: bool, tmp_path: Path) -> None:
    path = tmp_path / "zoo.tall"
    tallstore.pack(*headed(), path, quality="lossless")
    tallstore.add_merge(path, "elected", "a + b + c", method="ties", topk=30, average=average, head="a")
    with tallstore.open(path) as zoo:
        kept = zoo.state_dict("elected")
        how = "mean" if average else "sum"
        made = zoo.merged("ties", tasks=["a", "b", "c"], alpha=1.0, topk=30, heads="a", merge=how)
        alike = [torch.isclose(kept[name], tensor, atol=1e-6).flatten() for name, tensor in made.items()]
        assert torch.cat(alike).float().mean() > 0.995  # thresholds are a thousandth lower
        assert not torch.equal(kept["fc.weight"], zoo.base("fc.weight"))


def test_slerp_keeps_the_length_of_orthogonal_task_vectors(zoo_path: Path) -> None:
    tallstore.add_merge(zoo_path, "ball", "0.5*a + 0.5*b", method="slerp", head="a")
    with tallstore.open(zoo_path) as zoo:
        base, found = headed()[0], {task: zoo.state_dict(task) for task in ("a", "b", "ball")}
        length = {
            task: float(sum((state[name] - base[name]).double().square().sum() for name in base))
            for task, state in found.items()
        }
        assert length["ball"] == pytest.approx((length["a"] + length["b"]) / 2, rel=0.05)
        assert zoo.info()["tasks"]["ball"]["relatives"]["merge"]["weights"] == pytest.approx([0.7, 0.7], abs=0.05)


class Model(nn.Module):
    """Has exactly the tensors of a task."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            at: nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if not hasattr(at, folder):
                    at.add_module(folder, nn.Module())
                at = getattr(at, folder)
            at.register_parameter(last, nn.Parameter(torch.zeros_like(tensor)))


def ways(zoo: Zoo, task: str, tmp_path: Path) -> dict[str, State]:
    """A task's tensors by every way that gives them."""
    from safetensors.torch import load_file

    first = zoo.state_dict(task)
    weights = zoo.weights(task)
    model, switched = Model(first), Model(first)
    zoo.load_into(model, task)
    switcher = zoo.switcher(switched, [task])
    switcher.switch(task)
    zoo.export(task, tmp_path / "model")
    zoo.write_subset([task], tmp_path / "subset.tall")
    with tallstore.open(tmp_path / "subset.tall") as part:
        part.verify()
        subset = part.state_dict(task)
    halves = {n: torch.cat([weights.get_slice(n)[:5], weights.get_slice(n)[5:]]) for n in weights.keys()}  # noqa: SIM118
    return {
        "one by one": {name: zoo.state_dict(task, names=[name])[name] for name in first},
        "slices": halves,
        "load_into": {name: t.detach() for name, t in model.state_dict().items()},
        "switcher": {name: t.detach() for name, t in switched.state_dict().items()},
        "export": load_file(tmp_path / "model" / "model.safetensors"),
        "subset": subset,
    }


def test_every_way_gives_the_same_bits(zoo_path: Path, tmp_path: Path) -> None:
    tallstore.add_merge(zoo_path, "mix", "0.6*a + 0.4*b")
    tallstore.add_merge(zoo_path, "again", "0.5*mix + 0.4*c", head="c")
    with tallstore.open(zoo_path) as zoo:
        wanted = zoo.state_dict("again")
        for way, found in ways(zoo, "again", tmp_path).items():
            assert {n for n in wanted if not same_bits(found[n], wanted[n])} == set(), way
        assert zoo.mask_statistics(["again"]).tensors["fc.weight"][1][0] > 0
        assert zoo.tensors("again")["fc.weight"].start == ()
        assert zoo.tensors("again")["head.weight"].start == (0.0, 1.0)
        merged = zoo.merged("arithmetic", tasks=["again", "a"], alpha=0.5, heads="a")
        base = headed()[0]
        a = zoo.state_dict("a")
        for name, tensor in base.items():
            half = tensor + 0.5 * ((wanted[name] - tensor) + (a[name] - tensor))
            assert torch.allclose(merged[name], half, atol=1e-6)


def test_a_subset_holds_what_its_tasks_are_made_of_and_no_more(zoo_path: Path, tmp_path: Path) -> None:
    tallstore.add_merge(zoo_path, "mix", "0.6*a + 0.4*b")
    with tallstore.open(zoo_path) as zoo:
        zoo.write_subset(["mix"], tmp_path / "subset.tall")
        wanted = zoo.state_dict("mix")
    with tallstore.open(tmp_path / "subset.tall") as subset:
        assert subset.tasks == ("a", "b", "mix")
        assert_same(subset.state_dict("mix"), wanted)
    assert not any(path.startswith("tasks/c/") for path in read_all(tmp_path / "subset.tall"))


def test_tensors_that_hold_no_numbers_are_the_head_s(tmp_path: Path) -> None:
    base, tasks = headed()
    tasks["a"]["norm.weight"][3] = float("nan")
    base["steps"] = torch.arange(3)
    for state in tasks.values():
        state["steps"] = torch.arange(3)
    path = tmp_path / "zoo"
    tallstore.pack(base, tasks, path)
    with pytest.raises(OptionError, match=r"norm\.weight.*NaN.*--head"):
        tallstore.add_merge(path, "mix", "0.5*a + 0.5*b")
    report = tallstore.add_merge(path, "mix", "0.5*a + 0.5*b", head="b")
    assert "norm.weight" in report.warnings[0]
    found = decoded(path)
    assert same_bits(found["mix"]["norm.weight"], found["b"]["norm.weight"])
    assert same_bits(found["mix"]["steps"], torch.arange(3))


def test_small_tensors_under_a_prefix_are_merged_too(tmp_path: Path) -> None:
    base, tasks = headed()
    prefixed = {t: {f"model.{n}": w for n, w in state.items()} for t, state in tasks.items()}
    path = tmp_path / "zoo"
    tallstore.pack(base, prefixed, path)
    tallstore.add_merge(path, "mix", "0.5*a + 0.3*b", head="a")
    found = decoded(path)
    for name, tensor in base.items():
        wanted = tensor + 0.5 * (found["a"][f"model.{name}"] - tensor) + 0.3 * (found["b"][f"model.{name}"] - tensor)
        assert torch.allclose(found["mix"][f"model.{name}"], wanted, atol=1e-6), name


@pytest.mark.parametrize(
    ("merge", "how", "error", "words"),
    [
        ("0.5*a + 0.5*z", {}, NoSuchTaskError, "no task 'z' to merge; there are a, b, c"),
        ("nan*a + b", {}, OptionError, "weight of task 'a' is nan"),
        ("1e400*a", {}, OptionError, "'a' is inf"),
        ({"a": float("inf")}, {}, OptionError, "no finite number"),
        ({}, {}, OptionError, "no tasks"),
        ("0.5*a + x*b", {}, OptionError, "'x' is no number"),
        ("a b", {}, OptionError, "no task with a weight"),
        ("a + a", {}, OptionError, "'a' twice"),
        ("0.5*a + 0.5*c", {}, OptionError, r"'head.weight'.*\[2, 16\] in a and \[3, 16\] in c.*--head"),
        ("0.5*a + 0.1*b", {}, OptionError, "'head.weight'.*the base has nothing in its place"),
        ("a + b", {"head": "c"}, OptionError, "head's task 'c'"),
        ("a + b", {"method": "dare"}, OptionError, "dare.*slerp"),
        ("a + b", {"method": "slerp"}, OptionError, "sum to 1"),
        ("a + b", {"method": "ties", "topk": 0}, OptionError, "topk"),
        ("a + b", {"method": "consensus", "k": -1}, OptionError, "k is"),
        ("0*a", {"method": "linear"}, OptionError, "every weight is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    merge: Any, how: dict[str, Any], error: type[TallstoreError], words: str, zoo_path: Path
) -> None:
    before = bytes_of(zoo_path.parent)
    with pytest.raises(error, match=words):
        tallstore.add_merge(zoo_path, "mix", merge, **how)
    assert bytes_of(zoo_path.parent) == before


@pytest.mark.parametrize("name", ["a", "A", "x/y", ""])
def test_a_name_that_cannot_be_is_refused(name: str, zoo_path: Path) -> None:
    with pytest.raises(TaskNameError):
        tallstore.add_merge(zoo_path, name, "0.5*a + 0.5*b")


def test_a_task_that_others_are_made_of_stays(zoo_path: Path) -> None:
    tallstore.add_merge(zoo_path, "mix", "0.6*a + 0.4*b")
    tallstore.add_merge(zoo_path, "again", "0.5*mix + 0.5*b")
    before = read_all(zoo_path)
    with pytest.raises(InputError, match=r"mix is made of a: remove them too.*--re-code"):
        tallstore.remove(zoo_path, "a")
    assert read_all(zoo_path) == before
    assert tallstore.remove(zoo_path, ["a", "mix", "again"]).tasks == ("b", "c")


@pytest.mark.parametrize("form", ["zoo", "zoo.tall"])
@pytest.mark.parametrize("options", [{}, {"quality": "lossless"}, {"recipe": "fit"}])
def test_or_what_is_made_of_it_is_coded_anew_to_the_bit(form: str, options: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / form
    tallstore.pack(*headed(torch.bfloat16), path, **options)  # type: ignore[arg-type]
    tallstore.add_merge(path, "mix", "0.6*a + 0.4*b")
    tallstore.add_merge(path, "again", "0.5*mix + 0.5*b")
    before = decoded(path)
    report = tallstore.remove(path, "a", recode=True)
    assert report.recoded == ("mix",)
    assert report.tasks == ("b", "c", "mix", "again")
    found = decoded(path)
    for task, state in found.items():
        assert_same(state, before[task])
    with tallstore.open(path) as zoo:
        assert zoo.manifest.tasks["mix"].relatives is None
        assert not any(name.startswith("tasks/a/") for name in zoo.manifest.parts)


def test_compacting_leaves_merges_as_they_are(tmp_path: Path) -> None:
    from support import write_folder

    base, tasks = headed()
    folders = {name: write_folder(tmp_path / name, state, name=name) for name, state in tasks.items()}
    path = tmp_path / "zoo"
    tallstore.pack(base, folders, path, recipe="tall", lam=0.4)
    tallstore.add_merge(path, "mix", "0.6*a + 0.4*b")
    tallstore.remove(path, "c")
    before = decoded(path)
    tallstore.compact(path)
    for task, state in decoded(path).items():
        assert_same(state, before[task])
    with tallstore.open(path) as zoo:
        assert (zoo.export("mix", tmp_path / "out") / "config.json").read_bytes() == (
            folders["a"] / "config.json"
        ).read_bytes()


def test_damage_to_what_a_merge_is_made_of_is_found(tmp_path: Path) -> None:
    path = tmp_path / "zoo"
    tallstore.pack(*headed(), path)
    tallstore.add_merge(path, "mix", "0.6*a + 0.4*b")
    part = path / "tasks/b/mask.safetensors"
    data = bytearray(part.read_bytes())
    data[-20] ^= 1
    part.write_bytes(data)
    with tallstore.open(path) as zoo:
        with pytest.raises(tallstore.errors.DamagedError, match="tasks/b/"):
            zoo.state_dict("mix")
        with pytest.raises(tallstore.errors.DamagedError, match="tasks/b/"):
            zoo.verify()
        zoo.state_dict("a")


def test_a_task_replaced_under_its_merge_is_found(tmp_path: Path) -> None:
    """What the manifest names is held to its hashes: another task's part is no part of it."""
    path = tmp_path / "zoo"
    tallstore.pack(*headed(), path)
    tallstore.add_merge(path, "mix", "0.6*a + 0.4*b")
    (path / "tasks/b/mask.safetensors").write_bytes((path / "tasks/c/mask.safetensors").read_bytes())
    with tallstore.open(path) as zoo, pytest.raises(tallstore.errors.DamagedError, match="tasks/b/mask"):
        zoo.state_dict("mix")


def test_an_archive_without_merges_keeps_its_version(zoo_path: Path) -> None:
    with tallstore.open(zoo_path) as zoo:
        assert zoo.info()["version"] == "1.0"
    tallstore.add_merge(zoo_path, "mix", "0.6*a + 0.4*b")
    with tallstore.open(zoo_path) as zoo:
        assert zoo.info()["version"] == "1.2"
    tallstore.remove(zoo_path, "mix")


def test_a_referenced_base_is_needed_where_it_always_was(tmp_path: Path) -> None:
    base, tasks = headed()
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, tasks, path, base_storage="reference")
    with pytest.raises(tallstore.errors.BaseNeededError):
        tallstore.add_merge(path, "mix", "0.6*a + 0.4*b")
    tallstore.add_merge(path, "mix", "0.6*a + 0.3*b", head="a", base=base)
    with tallstore.open(path, base=base) as zoo:
        zoo.verify()
        found, a, b = zoo.state_dict("mix"), zoo.state_dict("a"), zoo.state_dict("b")
        for name, tensor in base.items():
            assert torch.allclose(found[name], tensor + 0.6 * (a[name] - tensor) + 0.3 * (b[name] - tensor), atol=1e-6)
    with tallstore.open(path) as zoo, pytest.raises(tallstore.errors.BaseNeededError):
        zoo.state_dict("mix")
