"""Merges and children that are found by themselves, and tasks that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spec.second_reader import Archive
from support import State, assert_same, noise, same_bits

import tallstore
from tallstore.errors import NoSuchTaskError, OptionError
from tallstore.format.adapter import CONFIG, WEIGHTS
from tallstore.tensors import as_bytes

SHAPES = {"emb.weight": (400, 256), "fc.weight": (256, 512), "out.weight": (256, 256), "norm.weight": (256,)}


def base_of(dtype: torch.dtype) -> State:
    return {name: noise(*shape, size=0.05, seed=n, dtype=dtype) for n, (name, shape) in enumerate(SHAPES.items())}


def tuned(base: State, seed: int, size: float = 0.004, share: float = 1.0) -> State:
    """A fine-tune, with a head of its own."""
    out = {}
    for n, (name, tensor) in enumerate(base.items()):
        step = noise(*tensor.shape, size=size, seed=100 * seed + n)
        if share < 1:
            step *= (noise(*tensor.shape, seed=100 * seed + n + 50).abs() < share).float()
        out[name] = (tensor.float() + step).to(tensor.dtype)
    return out | {
        "head.weight": base.get("head.weight", noise(2 + seed % 3, 256, seed=seed, dtype=base["emb.weight"].dtype))
    }


def summed(states: list[State], weights: list[float]) -> State:
    """As a merge tool does it; a head that others have not is the first one's."""
    out = {}
    for name, tensor in states[0].items():
        if all(state[name].shape == tensor.shape for state in states):
            total = torch.zeros(tensor.shape)
            for state, weight in zip(states, weights, strict=True):
                total += state[name].float() * weight
            out[name] = total.to(tensor.dtype)
        else:
            out[name] = tensor.clone()
    return out


def zoo_with_merges(dtype: torch.dtype) -> tuple[State, dict[str, State]]:
    base = base_of(dtype)
    a, b, c = (tuned(base, seed) for seed in (1, 2, 4))
    return base, {
        "half": summed([a, b], [0.5, 0.5]),
        "a": a,
        "three": summed([c, b, a], [0.25, 0.35, 0.4]),
        "b": b,
        "c": c,
        "more": {
            n: (base[n].float() + 0.7 * (a[n].float() - base[n].float())).to(dtype) if n in base else a[n] for n in a
        },
    }


def test_by_default_what_is_left_of_a_merge_is_coded_where_its_tasks_lose_nothing(tmp_path: Path) -> None:
    """Of one that was tuned on by a unit in places, no weights give back every bit."""
    base = base_of(torch.bfloat16)
    tasks = {"a": tuned(base, 1), "b": tuned(base, 2)}
    mix = summed([tasks["a"], tasks["b"]], [0.4, 0.6])
    for n, name in enumerate(base):
        touched = noise(*mix[name].shape, seed=900 + n) > 1
        mix[name] = (mix[name].view(torch.int16) + touched.to(torch.int16)).view(torch.bfloat16)
    tasks["mix"] = mix
    sizes = {}
    for name, relatives in (("with", True), ("without", False)):
        report = tallstore.pack(base, tasks, tmp_path / f"{name}.tall", relatives=relatives)
        sizes[name] = report.tasks["mix"].bytes
    with tallstore.open(tmp_path / "with.tall") as zoo:
        related = zoo.manifest.tasks["mix"].relatives
        assert related is not None
        assert set(related.tasks) == {"a", "b"}
        facts = zoo.info()["tasks"]
        assert all(facts[task]["bit_for_bit"] for task in tasks)
        for task, state in tasks.items():
            assert_same(zoo.state_dict(task), state)
    assert sizes["with"] < 0.7 * sizes["without"]


@pytest.mark.parametrize("quality", ["balanced", "lossless"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merges_are_found_among_tasks_in_any_order(dtype: torch.dtype, quality: str, tmp_path: Path) -> None:
    base, tasks = zoo_with_merges(dtype)
    alone = tallstore.pack(base, {name: tasks[name] for name in "abc"}, tmp_path / "alone.tall", quality=quality)
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", quality=quality)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()
        assert zoo.tasks == tuple(tasks)
        found = {n: task.relatives for n, task in zoo.manifest.tasks.items() if task.relatives is not None}
        assert set(found) == {"half", "three", "more"}
        half = found["half"]
        assert half is not None
        assert dict(zip(half.tasks, half.merge.weights, strict=True)) == {"a": 0.5, "b": 0.5}
        for name, state in tasks.items():
            decoded = zoo.state_dict(name)
            assert list(decoded) == list(state)
            assert same_bits(decoded["head.weight"], state["head.weight"])
            if quality == "lossless":
                assert_same(decoded, state)
    assert (
        report.bytes["total"]
        < (1.5 if dtype == torch.float32 and quality == "lossless" else 1.1) * alone.bytes["total"]
    )


def test_unrelated_tasks_are_packed_to_the_same_bytes_with_the_search_and_without(tmp_path: Path) -> None:
    base = base_of(torch.bfloat16)
    tasks = {f"t{n}": tuned(base, n + 1, share=0.3 if n % 2 else 1.0) for n in range(8)}
    tallstore.pack(base, tasks, tmp_path / "on.tall", quality="lossless")
    tallstore.pack(base, tasks, tmp_path / "off.tall", quality="lossless", relatives=False)
    assert (tmp_path / "on.tall").read_bytes() == (tmp_path / "off.tall").read_bytes()


@pytest.mark.parametrize("form", ["zoo", "zoo.tall"])
def test_a_merge_of_what_is_there_is_found_when_it_is_added(form: str, tmp_path: Path) -> None:
    base, tasks = zoo_with_merges(torch.bfloat16)
    path = tmp_path / form
    tallstore.pack(base, {name: tasks[name] for name in "abc"}, path, quality="lossless")
    report = tallstore.add(path, {"half": tasks["half"], "own": tuned(base, 9)})
    with tallstore.open(path) as zoo:
        zoo.verify()
        assert zoo.manifest.tasks["half"].relatives is not None
        assert zoo.manifest.tasks["own"].relatives is None
        assert zoo.tasks == ("a", "b", "c", "half", "own")
        assert_same(zoo.state_dict("half"), tasks["half"])
    assert report.added["half"].bytes < 2000


def test_a_later_version_of_a_task_is_coded_against_it(tmp_path: Path) -> None:
    base = base_of(torch.bfloat16)
    first = tuned(base, 1)
    second = tuned(first, 2, size=0.002, share=0.05)
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, {"v1": first}, path, quality="lossless")
    plain = tallstore.add(path, {"v2": second}, relatives=False).added["v2"].bytes
    tallstore.remove(path, "v2")
    report = tallstore.add(path, {"v2": second})
    assert report.added["v2"].bytes < 0.5 * plain
    with tallstore.open(path) as zoo:
        zoo.verify()
        relatives = zoo.manifest.tasks["v2"].relatives
        assert relatives is not None
        assert relatives.parent == "v1"
        assert_same(zoo.state_dict("v2"), second)
    tallstore.add(path, {"v3": tuned(second, 3, size=0.002, share=0.05)}, parent="v2", relatives=False)
    before = {}
    with tallstore.open(path) as zoo:
        relatives = zoo.manifest.tasks["v3"].relatives
        assert relatives is not None
        assert relatives.parent == "v2"
        before = {task: zoo.state_dict(task) for task in zoo.tasks}
    tallstore.remove(path, "v1", recode=True)
    with tallstore.open(path) as zoo:
        zoo.verify()
        assert zoo.tasks == ("v2", "v3")
        for task in zoo.tasks:
            assert_same(zoo.state_dict(task), before[task])


def test_with_some_loss_children_build_on_what_their_parents_decode_to(tmp_path: Path) -> None:
    base = base_of(torch.float32)
    first = tuned(base, 1)
    second = tuned(first, 2, size=0.001, share=0.05)
    third = tuned(second, 3, size=0.001, share=0.05)
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, {"v1": first}, path, bits=8)
    plain = tallstore.add(path, {"v2": second}, relatives=False).added["v2"]
    tallstore.remove(path, "v2")
    v2 = tallstore.add(path, {"v2": second}, parent="v1").added["v2"]
    tallstore.add(path, {"v3": third}, parent="v2")
    with tallstore.open(path) as zoo:
        zoo.verify()
        for name, parent in (("v2", "v1"), ("v3", "v2")):
            relatives = zoo.manifest.tasks[name].relatives
            assert relatives is not None
            assert relatives.parent == parent
        lost = {
            task: torch.cat([(zoo.state_dict(task)[n] - state[n]).flatten() for n in SHAPES]).norm()
            for task, state in (("v1", first), ("v2", second), ("v3", third))
        }
        moved = torch.cat([(second[n] - base[n]).flatten() for n in SHAPES]).norm()
    assert v2.relative_error == pytest.approx(float(lost["v2"] / moved), rel=0.05)
    assert plain.relative_error is not None
    assert v2.relative_error <= plain.relative_error
    assert lost["v3"] <= lost["v1"]  # nothing adds up
    with tallstore.open(path) as zoo:
        for name, (_, _, data) in Archive(path).decode("v3").items():
            assert as_bytes(zoo.state_dict("v3")[name].contiguous()).tobytes() == data
    before = lost["v2"]
    tallstore.remove(path, "v1", recode=True)
    with tallstore.open(path) as zoo:
        assert torch.cat([(zoo.state_dict("v2")[n] - second[n]).flatten() for n in SHAPES]).norm() == before


def test_parents_that_cannot_be_are_refused(tmp_path: Path) -> None:
    base = base_of(torch.bfloat16)
    tasks = {"a": tuned(base, 1)}
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, tasks, path, quality="lossless")
    new = {"v1": tuned(tasks["a"], 2, share=0.05)}
    for parent, error, words in (
        ("z", NoSuchTaskError, "no task 'z' to be a parent"),
        ({"x": "a"}, OptionError, "'x', which is not added"),
    ):
        data = path.read_bytes()
        with pytest.raises(error, match=words):
            tallstore.add(path, new, parent=parent)
        assert path.read_bytes() == data
    for number in range(1, 4):
        new = {f"v{number}": tuned(next(iter(new.values())), number, share=0.05)}
        tallstore.add(path, new, parent="a" if number == 1 else f"v{number - 1}")
    with pytest.raises(OptionError, match="end of a chain of 3"):
        tallstore.add(path, {"v4": tasks["a"]}, parent="v3")


def test_a_chain_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    base = base_of(torch.bfloat16)
    v1 = tuned(base, 1)
    v2 = tuned(v1, 2, share=0.05)
    v3 = tuned(v2, 3, share=0.05)
    path = tmp_path / "zoo"
    tallstore.pack(base, {"v1": v1}, path, quality="lossless")
    tallstore.add(path, {"v2": v2}, parent="v1")
    tallstore.add(path, {"v3": v3}, parent="v2")
    part = path / "tasks/v2/mask.safetensors"
    data = bytearray(part.read_bytes())
    data[-100] ^= 1
    part.write_bytes(data)
    with tallstore.open(path) as zoo:
        assert_same(zoo.state_dict("v1"), v1)
        for task in ("v2", "v3"):
            with pytest.raises(tallstore.errors.DamagedError, match="tasks/v2/mask"):
                zoo.state_dict(task)


def test_parents_may_come_with_their_children_and_not_in_a_circle(tmp_path: Path) -> None:
    base = {"emb.weight": noise(64, 64, dtype=torch.bfloat16)}
    tasks = {"a": tuned(base, 1)}
    tasks["b"] = tuned(tasks["a"], 2, share=0.05)
    tasks["c"] = tuned(tasks["b"], 3, share=0.05)
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, {"first": tuned(base, 9)}, path, quality="lossless")
    data = path.read_bytes()
    with pytest.raises(OptionError, match="a, b, a go round in a circle"):
        tallstore.add(path, tasks, parent={"a": "b", "b": "a"})
    assert path.read_bytes() == data
    tallstore.add(path, tasks, parent={"c": "b", "b": "a"})
    with tallstore.open(path) as zoo:
        assert [zoo.manifest.tasks[name].relatives is None for name in "abc"] == [True, False, False]
        for name, state in tasks.items():
            assert_same(zoo.state_dict(name), state)


def test_a_step_between_two_others_is_no_merge_of_them(tmp_path: Path) -> None:
    base = {n: t for n, t in base_of(torch.bfloat16).items() if n != "norm.weight"}
    states = [base]
    for step in range(3):  # few weights move, by less than rounding hides
        moved = {n: (t.float() * (1 + 0.004 * (noise(*t.shape, seed=step) > 1.3))).bfloat16() for n, t in base.items()}
        last = states[-1]
        states.append({n: torch.where(moved[n] != base[n], moved[n], last[n]) for n in base})
    tallstore.pack(base, {f"s{n}": state for n, state in enumerate(states[1:])}, tmp_path / "zoo", quality="lossless")
    with tallstore.open(tmp_path / "zoo") as zoo:
        made = [task.relatives for task in zoo.manifest.tasks.values() if task.relatives is not None]
        assert made
        assert all(each.parent is not None for each in made)
        for n, state in enumerate(states[1:]):
            assert_same(zoo.state_dict(f"s{n}"), state)


@pytest.mark.parametrize("seed", range(4))
def test_the_first_steps_of_a_run_are_no_merge_of_those_behind_them(seed: int, tmp_path: Path) -> None:
    """Eight that all lie in one direction explain what little the first one has; decoding would take eight times."""
    draw = torch.Generator().manual_seed(seed)
    base = {f"w{n}": (0.05 * torch.randn(256, 300, generator=draw)).bfloat16() for n in range(5)}
    exact, run = {n: t.float() for n, t in base.items()}, {}
    way = {n: torch.randn(t.shape, generator=draw) for n, t in base.items()}
    for step in range(1, 9):
        for n in exact:
            exact[n] += 5e-7 * min(step, 4) * (way[n] + 0.7 * torch.randn(way[n].shape, generator=draw))
        run[f"s{step}"] = {n: t.bfloat16() for n, t in exact.items()}
    tallstore.pack(base, run, tmp_path / "zoo", quality="lossless")
    with tallstore.open(tmp_path / "zoo") as zoo:
        made = [task.relatives for task in zoo.manifest.tasks.values() if task.relatives is not None]
        assert len(made) > 4
        assert all(each.parent is not None for each in made)


def test_an_adapter_is_no_parent_and_has_none(tmp_path: Path) -> None:
    base = {"emb.weight": noise(64, 64, dtype=torch.bfloat16)}
    path, adapter = tmp_path / "zoo.tall", tmp_path / "lora"
    tallstore.pack(base, {"first": tuned(base, 9)}, path, quality="lossless")
    adapter.mkdir()
    sides = {"lora_A": torch.ones(4, 64), "lora_B": torch.ones(64, 4)}
    save_file({f"base_model.model.emb.{side}.weight": each for side, each in sides.items()}, adapter / WEIGHTS)
    (adapter / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["emb"]}))
    data = path.read_bytes()
    for parents in ({"child": "side"}, {"side": "child"}, {"side": "first"}):
        with pytest.raises(OptionError, match="'side' is an adapter"):
            tallstore.add(path, {"side": adapter, "child": tuned(base, 1)}, parent=parents)
    assert path.read_bytes() == data


def test_a_parent_that_explains_nothing_is_said(tmp_path: Path) -> None:
    base = {"emb.weight": noise(64, 64, dtype=torch.bfloat16)}
    path, task = tmp_path / "zoo.tall", tuned(base, 1)
    tallstore.pack(base, {"first": tuned(base, 9)}, path, quality="lossless")
    report = tallstore.add(path, {"child": task}, parent="first")
    assert [each for each in report.warnings if "child: coded against the base, since parent 'first'" in each]
    with tallstore.open(path) as zoo:
        assert zoo.manifest.tasks["child"].relatives is None
        assert_same(zoo.state_dict("child"), task)
