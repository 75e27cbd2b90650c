"""Merging from an archive: against the reference's masks, and against the formula in numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge_support import RECIPES, moved, summed, tau, two_groups, zoo_with_heads
from safetensors.torch import load_file
from support import FLOATS, State, leftovers, near, noise, nothing_dropped, packed, same_bits, tiny_zoo, write_folder

import tallstore
from tallstore.errors import (
    BaseNeededError,
    DamagedError,
    EvaluatorError,
    NoSuchTaskError,
    OptionError,
    OutputExistsError,
)

GOLDEN = Path(__file__).parent.parent / "recipes" / "golden"
NAMES = ("balanced-4", "coarse-6", "minilm-8", "random-20", "random-5")


def golden_zoo(name: str) -> tuple[State, dict[str, State], dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    weights = torch.from_numpy(golden["weights"])
    return {"w": torch.from_numpy(golden["base"])}, {f"t{n}": {"w": row} for n, row in enumerate(weights)}, golden


@pytest.mark.parametrize("name", NAMES)
def test_consensus_of_an_archive_is_the_references(name: str, tmp_path: Path) -> None:
    base, tasks, golden = golden_zoo(name)
    n = len(base["w"])
    with packed(
        base, tasks, tmp_path / "z", recipe="tall", lam=0.6, vector="f32", mask="bits", allow_distant=True
    ) as zoo:
        for k in range(len(tasks) + 2):
            agreed = np.unpackbits(golden[f"consensus/{k}"], count=n, bitorder="little")
            found = zoo.merged("consensus", k=k, alpha=0.4)
            step = (golden["tall/vector"] * agreed) * np.float32(0.4)
            assert same_bits(found["w"], moved(base["w"], step)), k
            assert found.report.approximate is None
        assert same_bits(zoo.merged(k=0, alpha=1.0)["w"], zoo.merged("task_arithmetic", alpha=1.0)["w"])
        assert same_bits(zoo.merged(k=len(tasks) + 1)["w"], base["w"])


@pytest.mark.parametrize("name", NAMES)
def test_ties_of_an_archive_that_stores_it_is_the_references(name: str, tmp_path: Path) -> None:
    base, tasks, golden = golden_zoo(name)
    with packed(base, tasks, tmp_path / "z", recipe="ties", lam=0.6, vector="f32", allow_distant=True) as zoo:
        found = zoo.merged("ties", alpha=0.5)
    assert same_bits(found["w"], moved(base["w"], golden["ties-sum/vector"] * np.float32(0.5)))
    assert found.report.approximate is None


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_recipes_archive_merges_by_the_formula(
    recipe: str, dtype: torch.dtype, tmp_path: Path, small_chunks: int
) -> None:
    base, tasks = zoo_with_heads(dtype)
    base["big"] = noise(60, 50, seed=50, dtype=dtype)
    for n, state in enumerate(tasks.values()):
        state["body.big"] = near(base["big"], seed=60 + n)
    options: dict[str, Any] = {"bits": 6.0} if recipe == "solo" else {}
    with packed(base, tasks, tmp_path / "z", recipe=recipe, **options) as zoo:
        plain = zoo.merged("arithmetic", alpha=0.3)
        agreed = zoo.merged("consensus", k=2, alpha=0.3) if recipe != "ties" else None
        kinds = {zoo.tensors(t)[n].kind for t in zoo.tasks for n in zoo.tensors(t)}
        assert kinds >= {"solo": {"delta", "private"}}.get(recipe, {"binary", "private"})
        for name, tensor in base.items():
            own = f"body.{name}"
            rows = [tau(zoo, task, own, tasks[task][own]) for task in zoo.tasks]
            total = summed(zoo, recipe, own, rows)
            alpha = total.dtype.type(0.3)
            assert same_bits(plain[own], moved(tensor, total * alpha)), name
            if agreed is not None:
                used = sum((row != 0).astype(int) for row in rows) >= 2
                assert same_bits(agreed[own], moved(tensor, (total * used) * alpha)), name
        assert [n for n, t in plain.items() if t.dtype != dtype] == []


def test_solo_merges_masks_and_deltas_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_dropped(monkeypatch)
    base, tasks = {"w": noise(300, 300, seed=1)}, {}
    for n in range(4):
        tasks[f"t{n}"] = {"w": base["w"] + noise(300, 300, seed=10 + n, size=0.01) * (n != 2)}
    tasks["t3"]["w"][:, :290] = base["w"][:, :290]
    with packed(base, tasks, tmp_path / "z", recipe="solo", bits=0.6) as zoo:
        kinds = {task: zoo.tensors(task)["w"].kind for task in zoo.tasks}
        assert set(kinds.values()) == {"signed", "delta", "base"}
        rows = [tau(zoo, task, "w", tasks[task]["w"]) for task in zoo.tasks]
        found = zoo.merged("arithmetic", alpha=1.0)["w"]
        assert same_bits(found, moved(base["w"], summed(zoo, "solo", "w", rows)))
        parts = zoo.merged("arithmetic", alpha=1.0, tasks=["t3", "t0"])["w"]
        assert same_bits(parts, moved(base["w"], summed(zoo, "solo", "w", [rows[3], rows[0]])))


@pytest.mark.parametrize("method", ["arithmetic", "ties", "consensus"])
@pytest.mark.parametrize("recipe", ["solo", "tall"])
def test_threads_and_chunks_change_nothing(
    method: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tasks = tiny_zoo(4)
    found = []
    for n, chunk in enumerate((1 << 20, 1024) if recipe == "tall" else (1024,)):
        monkeypatch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", chunk)
        tallstore.pack(base, tasks, tmp_path / f"{n}", recipe=recipe, vector=None if recipe == "solo" else "f32")
        for threads in (1, 3):
            with tallstore.open(tmp_path / f"{n}", threads=threads) as zoo:
                found.append(zoo.merged(method, alpha=0.7))
    assert all(same_bits(other[name], found[0][name]) for other in found[1:] for name in base)


def test_merges_side_by_side(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with packed(*tiny_zoo(4), tmp_path / "z", recipe="fit") as zoo, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: zoo.merged("ties"), range(8)))
            assert all(same_bits(other["fc.weight"], found[0]["fc.weight"]) for other in found)
            zoo.merged()
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_tiles_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = tiny_zoo(4)
    with packed(base, tasks, tmp_path / "z", recipe="emr") as zoo:
        before = zoo.merged("ties")
        monkeypatch.setattr("tallstore.archive.merging.tiles.TILE", 100)
        after = zoo.merged("ties")
    assert all(same_bits(after[name], before[name]) for name in base)
    assert after.report.alpha == pytest.approx(before.report.alpha, rel=1e-6)


def test_ties_of_decoded_task_vectors_is_said_to_be_approximate(tmp_path: Path) -> None:
    with packed(*tiny_zoo(3), tmp_path / "z", recipe="fit") as zoo:
        assert "the true ones are not in it" in str(zoo.merged("ties").report.approximate)
    with packed(*tiny_zoo(3), tmp_path / "y", recipe="tall", vector="bf16") as zoo:
        assert "rounded (codec bf16)" in str(zoo.merged("arithmetic").report.approximate)
        assert "trimmed and elected" in str(zoo.merged("ties").report.approximate)
        assert "decodes to" in str(zoo.merged("arithmetic", tasks=["a", "b"]).report.approximate)


# Names and heads.


def test_heads_are_kept_apart_and_said_so(tmp_path: Path) -> None:
    base, tasks = zoo_with_heads()
    with packed(base, tasks, tmp_path / "z") as zoo:
        found = zoo.merged()
        assert list(found) == [f"body.{name}" for name in base]
        assert found.report.names == "tasks"
        assert found.report.left_out == {"head.weight": "each task's own: a [2, 16], b [3, 16], c [4, 16]"}
        dressed = zoo.merged(heads="b")
        assert list(dressed) == list(tasks["b"])
        assert same_bits(dressed["head.weight"], tasks["b"]["head.weight"])
        assert all(same_bits(dressed[name], found[name]) for name in found)
        assert dressed.report.left_out == {"head.weight": "each task's own: a [2, 16], c [4, 16]"}


def test_names_are_the_bases_where_the_tasks_differ(tmp_path: Path) -> None:
    base, tasks = zoo_with_heads()
    tasks["c"] = {name.replace("body.", "model.x."): tensor for name, tensor in tasks["c"].items()}
    base["unused"] = noise(40, 40, seed=8)
    with packed(base, tasks, tmp_path / "z") as zoo:
        found = zoo.merged()
        assert list(found) == list(base)
        assert found.report.names == "base"
        assert same_bits(found["unused"], base["unused"])
        assert "model.x.fc.weight" in zoo.merged(heads="c")
        assert zoo.merged(tasks=["a", "b"]).report.names == "tasks"
        assert "no task has" in zoo.merged(tasks=["a", "b"]).report.left_out["unused"]


def test_what_all_tasks_have_alike_is_kept(tmp_path: Path) -> None:
    base, tasks = zoo_with_heads()
    for state in tasks.values():
        state["steps"] = torch.arange(7)
        state["copy"] = state["body.fc.weight"]
    with packed(base, tasks, tmp_path / "z") as zoo:
        found = zoo.merged()
        assert same_bits(found["steps"], torch.arange(7))
        assert found["copy"] is found["body.fc.weight"]
        dressed = zoo.merged(heads="a")
        assert dressed["copy"] is dressed["body.fc.weight"]
    tasks["b"]["steps"] = torch.arange(1, 8)
    with packed(base, tasks, tmp_path / "y") as zoo:
        assert "steps" in zoo.merged().report.left_out
        assert zoo.merged(heads="b")["steps"].tolist() == list(range(1, 8))


def test_rows_beyond_the_bases_are_the_heads_own(tmp_path: Path, small_chunks: int) -> None:
    base, tasks = tiny_zoo(3)
    base["emb.weight"] = noise(90, 16, seed=1)
    for n, rows in enumerate((90, 100, 80)):
        tasks["abc"[n]]["emb.weight"] = torch.cat([near(base["emb.weight"], seed=n + 9), noise(20, 16, seed=n)])[:rows]
    with packed(base, tasks, tmp_path / "z", recipe="fit") as zoo:
        found = zoo.merged("arithmetic", alpha=0.5)
        assert found["emb.weight"].shape == (90, 16)
        assert found.report.left_out == {"emb.weight": "rows beyond the base's are each task's own: b"}
        longer = zoo.merged("arithmetic", alpha=0.5, heads="b")["emb.weight"]
        assert same_bits(longer, torch.cat([found["emb.weight"], tasks["b"]["emb.weight"][90:]]))
        assert same_bits(zoo.merged("arithmetic", alpha=0.5, heads="c")["emb.weight"], found["emb.weight"][:80])
        rows = [np.zeros(90 * 16, np.float32) for _ in range(3)]
        for n, task in enumerate("abc"):
            have = min(len(tasks[task]["emb.weight"]), 90) * 16
            step = zoo.scales(task, "emb.weight").reshape(-1)[:have] * zoo.vector("emb.weight").reshape(-1)[:have]
            rows[n][:have] = (zoo.mask(task, "emb.weight").reshape(-1)[:have] * step).numpy()
        step = (np.zeros_like(rows[0]) + rows[0] + rows[1] + rows[2]) * np.float32(0.5)
        assert same_bits(found["emb.weight"], moved(base["emb.weight"], step))


def test_what_cannot_be_computed_with_is_not_merged(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    tasks["b"]["fc.weight"][3, 3] = float("nan")
    tasks["b"]["fc.bias"][3] = float("inf")
    with packed(base, tasks, tmp_path / "z", recipe="tall", vector="f32") as zoo:
        found = zoo.merged("arithmetic", alpha=1.0)
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())
        assert [note.split(" is not")[0] for note in found.report.notes] == [
            "b: tensor 'fc.weight'",
            "b: tensor 'fc.bias'",
        ]
        wanted = base["fc.bias"] + (
            (tasks["a"]["fc.bias"] - base["fc.bias"]) + (tasks["c"]["fc.bias"] - base["fc.bias"])
        )
        assert torch.allclose(found["fc.bias"], wanted)


def test_a_base_in_another_type_and_whole_numbers(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    base["ids"] = torch.arange(400)
    for n, state in enumerate(tasks.values()):
        for name in state:
            state[name] = state[name].bfloat16()
        state["ids"] = torch.arange(400) + (n == 1)
    with packed(base, tasks, tmp_path / "z", recipe="fit") as zoo:
        found = zoo.merged()
        assert {t.dtype for n, t in found.items() if n != "ids"} == {torch.float32}
        assert same_bits(found["ids"], base["ids"])
        assert zoo.merged(heads="b")["ids"][0] == 1


def test_several_groups_are_merged_from_their_decoded_task_vectors(tmp_path: Path) -> None:
    path, base = two_groups(tmp_path)
    with tallstore.open(path) as zoo:
        zoo.verify()
        found = zoo.merged("arithmetic", alpha=0.5)
        for name, tensor in base.items():
            total = np.zeros(tensor.numel(), np.float32)
            for task in "abcd":
                there = zoo.state_dict(task)[name]
                exact = zoo.tensors(task)[name].kind == "private"
                group = zoo.manifest.tasks[task].group
                if exact:
                    moving = there - tensor
                else:
                    moving = zoo.mask(task, name) * (zoo.scales(task, name) * zoo.vector(name, group=group))
                total = total + moving.reshape(-1).numpy()
            assert same_bits(found[name], moved(tensor, total * np.float32(0.5))), name
        assert not torch.equal(zoo.merged(k=2, alpha=0.5)["fc.weight"], found["fc.weight"])
        assert zoo.mask_statistics().density.keys() == {"a", "b", "c", "d"}


def test_a_base_elsewhere(tmp_path: Path) -> None:
    base, tasks = zoo_with_heads()
    tallstore.pack(base, tasks, tmp_path / "here")
    tallstore.pack(base, tasks, tmp_path / "there", base_storage="reference")
    with tallstore.open(tmp_path / "here") as one, tallstore.open(tmp_path / "there", base=base) as two:
        left, right = one.merged(), two.merged()
    assert all(same_bits(left[name], right[name]) for name in left)
    with tallstore.open(tmp_path / "there") as zoo, pytest.raises(BaseNeededError):
        zoo.merged()


def test_damage_is_found(tmp_path: Path) -> None:
    tallstore.pack(*tiny_zoo(3), tmp_path / "z", recipe="fit")
    part = tmp_path / "z" / "tasks" / "b" / "mask.safetensors"
    data = bytearray(part.read_bytes())
    data[-40] ^= 1
    part.write_bytes(data)
    with tallstore.open(tmp_path / "z") as zoo:
        with pytest.raises(DamagedError, match="tasks/b"):
            zoo.merged()
        with pytest.raises(DamagedError, match="tasks/b"):
            zoo.mask_statistics()
        assert zoo.merged(tasks=["a", "c"])


# α.


def test_the_evaluator_chooses_alpha_and_sees_each_tasks_head(tmp_path: Path) -> None:
    base, tasks = zoo_with_heads()
    with packed(base, tasks, tmp_path / "z", recipe="tall", vector="f32") as zoo:
        full = zoo.merged("arithmetic", alpha=1.0)["body.fc.weight"] - base["fc.weight"]
        seen: list[tuple[float, str]] = []

        def score(state: dict[str, torch.Tensor], task: str) -> float:
            assert list(state) == list(tasks[task])
            assert same_bits(state["head.weight"], tasks[task]["head.weight"])
            gone = state["body.fc.weight"] - base["fc.weight"]
            alpha = round(float((gone * full).sum() / (full * full).sum()), 1)
            seen.append((alpha, task))
            return -abs(alpha - 0.7) + (0.2 if task == "c" and alpha == 0.6 else 0)

        found = zoo.merged("arithmetic", evaluator=score)
        assert seen == [(n / 10, task) for n in range(1, 11) for task in "abc"]
        assert (found.report.alpha, found.report.alpha_from) == (0.7, "evaluator")
        assert found.report.scores["0.6"]["c"] == pytest.approx(0.1)
        assert all(same_bits(found[n], zoo.merged("arithmetic", alpha=0.7)[n]) for n in found)
        assert zoo.merged("consensus", k=4, evaluator=lambda *_: 1.0).report.alpha == 0.1


def test_without_an_evaluator_alpha_is_of_the_right_length(tmp_path: Path) -> None:
    base = {"w": noise(100, 100, seed=1)}
    steps = [noise(100, 100, seed=n + 2, size=0.01) for n in range(4)]
    tasks = {f"t{n}": {"w": base["w"] + step} for n, step in enumerate(steps)}
    with packed(base, tasks, tmp_path / "z", recipe="tall", vector="f32", lam=1e-9) as zoo:
        assert zoo.merged("arithmetic").report.alpha_from == "length"
        assert zoo.merged("arithmetic").report.alpha == pytest.approx(1.0, rel=0.02)
    with packed(base, tasks, tmp_path / "y", max_error=1e-3) as zoo:
        assert zoo.merged("arithmetic").report.alpha == pytest.approx(0.5, rel=0.02)
        assert zoo.merged("arithmetic", tasks=["t1"]).report.alpha == pytest.approx(1.0, rel=1e-3)
        assert zoo.merged("consensus", k=5).report.alpha == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "good", None])
def test_an_evaluator_that_gives_no_number(bad: object, tmp_path: Path) -> None:
    with packed(*tiny_zoo(3), tmp_path / "z") as zoo, pytest.raises(EvaluatorError, match="'b'"):
        zoo.merged(evaluator=lambda _, task: bad if task == "b" else 1.0)  # type: ignore[arg-type, return-value]


def test_an_evaluator_that_raises_or_is_not_found(tmp_path: Path) -> None:
    def fail(state: Mapping[str, torch.Tensor], task: str) -> float:
        raise RuntimeError("no data")

    with packed(*tiny_zoo(3), tmp_path / "z") as zoo:
        with pytest.raises(EvaluatorError, match=r"'a'.*no data"):
            zoo.merged(evaluator=fail)
        with pytest.raises(EvaluatorError, match="no_such_module"):
            zoo.merged(evaluator="no_such_module:score")
        before = leftovers(tmp_path)
        with pytest.raises(EvaluatorError):
            zoo.export_merged(tmp_path / "out", evaluator=fail)
        assert leftovers(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k is a number of tasks"),
        ({"k": 1.5}, "k is a number of tasks"),
        ({"method": "ties", "k": 1}, "no option 'k'"),
        ({"method": "magic"}, "no merging method 'magic'"),
        ({"topk": 3}, "no option 'topk'"),
        ({"method": "ties", "topk": 0}, "percentage"),
        ({"alpha": float("nan")}, "α"),
        ({"alpha": "1"}, "α"),
        ({"alpha": 1.0, "evaluator": max}, "leave one of them out"),
        ({"source": "magic"}, "source"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["a", "a"]}, "each once"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with packed(*tiny_zoo(3), tmp_path / "z") as zoo, pytest.raises(OptionError, match=message):
        zoo.merged(**options)


def test_more_users_than_tasks_leave_the_base_and_it_is_said(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    with packed(base, tasks, tmp_path / "z") as zoo:
        merged = zoo.merged("consensus", k=4)
        assert any("no weight is used by 4 of 3 tasks" in note for note in merged.report.notes)
        assert all(torch.equal(tensor, base[name]) for name, tensor in merged.items() if name in base)
        assert zoo.merged("consensus", k=3).report.notes == ()


def test_tasks_that_there_are_not(tmp_path: Path) -> None:
    with packed(*tiny_zoo(3), tmp_path / "z") as zoo:
        with pytest.raises(NoSuchTaskError, match="'x'; there are a, b, c"):
            zoo.merged(tasks=["a", "x"])
        with pytest.raises(NoSuchTaskError, match="head's task 'c'"):
            zoo.merged(tasks=["a", "b"], heads="c")
        with pytest.raises(NoSuchTaskError):
            zoo.mask_statistics(["x"])


# Folders.


def folders(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    base, tasks = zoo_with_heads()
    made = {
        task: write_folder(tmp_path / task, state, labels=len(state["head.weight"])) for task, state in tasks.items()
    }
    for folder in made.values():
        (folder / "tokenizer.json").write_text("{}")
    return write_folder(tmp_path / "base", base), made


def test_a_folder_with_a_head(tmp_path: Path) -> None:
    base, tasks = folders(tmp_path)
    with packed(base, tasks, tmp_path / "z.tall") as zoo:
        report = zoo.export_merged(tmp_path / "out", k=1, alpha=0.3, heads="b")
        wanted = zoo.merged(k=1, alpha=0.3, heads="b")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(same_bits(found[name], wanted[name]) for name in wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["labels"] == 3
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "out" / "merge.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert report == wanted.report


def test_a_folder_without_a_head(tmp_path: Path) -> None:
    base, tasks = folders(tmp_path)
    with packed(base, tasks, tmp_path / "z.tall") as zoo:
        report = zoo.export_merged(tmp_path / "out")
        with pytest.raises(OutputExistsError):
            zoo.export_merged(tmp_path / "z.tall")
        zoo.export_merged(tmp_path / "out", overwrite=True)
    assert "head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["labels"] == 2
    assert "config.json is that of task a" in report.notes[0]
    assert (tmp_path / "out" / "tokenizer.json").exists()
