"""Several vectors: who shares one is measured, and the archive is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import State, assert_same, near, noise, read_all, tiny_zoo

import tallstore
from tallstore.encoder import Options
from tallstore.encoder.groups import choose_groups
from tallstore.errors import OptionError

from .conftest import Models, decoded, verified


def families(count: int, each: int, *, alike: float = 0.9) -> tuple[State, dict[str, State]]:
    """Tasks in families whose task vectors have a part in common; their names say which, and alternate."""
    base = {"w": noise(200, 100, seed=1), "u": noise(100, 50, seed=2)}
    tasks = {}
    for member in range(each):
        for family in range(count):
            own = {
                n: noise(*w.shape, size=1 - alike, seed=1000 * family + 10 * member + len(w)) for n, w in base.items()
            }
            shared = {n: noise(*w.shape, size=alike, seed=7000 + family + len(w)) for n, w in base.items()}
            tasks[f"f{family}m{member}"] = {n: w + 0.01 * (own[n] + shared[n]) for n, w in base.items()}
    return base, tasks


def test_families_are_found_whatever_their_order() -> None:
    base, tasks = families(3, 4)
    found = choose_groups(base, tasks, Options(recipe="fit", groups=3))
    assert sorted(sorted(group) for group in found.groups) == [[f"f{f}m{m}" for m in range(4)] for f in range(3)]
    assert found.cost.error < choose_groups(base, tasks, Options(recipe="fit", groups=1)).cost.error
    assert choose_groups(base, tasks, Options(recipe="fit", groups=3)) == found, "the same again"


def test_auto_takes_the_fewest_that_keep_the_error_of_eight() -> None:
    base, unlike = families(20, 1)
    found = choose_groups(base, unlike, Options(recipe="fit", groups="auto"))
    assert found.bound is not None
    assert found.cost.error <= 1.01 * found.bound
    assert 2 <= len(found.groups) <= 4
    fewer = choose_groups(base, unlike, Options(recipe="fit", groups=len(found.groups) - 1))
    assert fewer.cost.error > 1.01 * found.bound
    few = choose_groups(base, dict(list(unlike.items())[:6]), Options(recipe="fit", groups="auto"))
    assert len(few.groups) == 1


@pytest.mark.parametrize("form", ["zoo", "zoo.tall"])
@pytest.mark.parametrize("recipe", ["fit", "tall", "ties", "emr", "mean"])
def test_an_archive_of_several_vectors(form: str, recipe: str, tmp_path: Path) -> None:
    base, tasks = families(2, 3)
    path = tmp_path / form
    report = tallstore.pack(base, tasks, path, recipe=recipe, groups=2, exact=["f0m0"])
    assert list(report.tasks) == list(tasks)
    assert report.bytes["total"] == sum(map(len, read_all(path).values()))
    with verified(path) as zoo:
        assert zoo.tasks == tuple(tasks)
        assert sorted(task for group in zoo.manifest.groups for task in group.tasks) == sorted(tasks)
        assert len(zoo.manifest.groups) == 2
        assert zoo.manifest.options["groups"] == 2
        assert zoo.manifest.options["exact"] == ["f0m0"]
        assert_same(zoo.state_dict("f0m0", exact=True), tasks["f0m0"])
        (home,) = [group for group in zoo.manifest.groups if "f1m0" in group.tasks]
    own = {name: tasks[name] for name in home.tasks}
    tallstore.pack(base, own, tmp_path / "alone", recipe=recipe)
    with verified(tmp_path / "alone") as alone:
        assert_same(decoded(path)["f1m0"], alone.state_dict("f1m0"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([form, "alone"])


def test_one_group_is_the_archive_that_it_was(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    tallstore.pack(base, tasks, tmp_path / "plain", recipe="fit")
    tallstore.pack(base, tasks, tmp_path / "auto", recipe="fit", groups="auto")
    plain, auto = read_all(tmp_path / "plain"), read_all(tmp_path / "auto")
    assert {n: d for n, d in plain.items() if n != "tall.json"} == {n: d for n, d in auto.items() if n != "tall.json"}


def test_a_recipe_that_shares_nothing_says_so(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    report = tallstore.pack(base, tasks, tmp_path / "zoo", groups="auto")
    assert "groups change nothing" in report.warnings[0]
    with verified(tmp_path / "zoo") as zoo:
        assert len(zoo.manifest.groups) == 1


def test_promises_are_kept_in_every_group(tmp_path: Path) -> None:
    base, tasks = families(2, 2)
    report = tallstore.pack(base, tasks, tmp_path / "zoo", recipe="fit", groups=2, max_error=0.1)
    assert all((task.relative_error or 0) <= 0.1 for task in report.tasks.values())


def test_files_and_heads_of_several_groups(models: Models) -> None:
    path = models.pack("zoo", "abcd", recipe="fit", groups=2)
    with verified(path) as zoo:
        assert {zoo.manifest.tasks[task].files["vocab.txt"] for task in zoo.tasks} == {"common/vocab.txt"}
        assert {zoo.manifest.tasks[task].files["config.json"] for task in zoo.tasks} == {
            f"tasks/{task}/files/config.json" for task in zoo.tasks
        }
        assert zoo.merged("consensus", k=2)
    more = tallstore.add(path, {"e": {n: near(w, 9) for n, w in tiny_zoo()[0].items()}})
    assert set(more.groups) == {"0", "1", "2"}


@pytest.mark.parametrize("groups", [0, -1, 2.5, "three", True, None])
def test_numbers_that_are_none(groups: object) -> None:
    with pytest.raises(OptionError, match="neither a number of groups nor 'auto'"):
        Options(recipe="fit", groups=groups)  # type: ignore[arg-type]


def test_more_groups_than_tasks(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    with pytest.raises(OptionError, match="4 groups for 3 tasks"):
        tallstore.pack(base, tasks, tmp_path / "zoo", recipe="fit", groups=4)
    assert list(tmp_path.iterdir()) == []


def test_a_rounded_base_is_one_for_all_groups(tmp_path: Path) -> None:
    base, tasks = families(2, 2)
    tallstore.pack(base, tasks, tmp_path / "zoo", recipe="fit", groups=2, base_storage="bf16")
    tallstore.add(tmp_path / "zoo", {"more": tasks["f0m0"]})
    with verified(tmp_path / "zoo") as zoo:
        assert zoo.base("w").dtype == torch.bfloat16
        for task in ("f0m0", "f1m1", "more"):
            found = zoo.verify(against={task: tasks["f0m0" if task == "more" else task]}).against[task]
            measured = zoo.info()["tasks"][task]["relative_error"]
            assert found.relative_error == pytest.approx(measured, rel=1e-3)
