"""The base elsewhere: identified by the archive, given by the user, checked tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import State, assert_same, near, noise, read_all, same_bits, spoilt, tiny_zoo, write_folder

import tallstore
from tallstore.errors import BaseNeededError, WrongBaseError


@pytest.fixture
def referencing(tmp_path: Path) -> tuple[Path, State, dict[str, State]]:
    base, tasks = tiny_zoo(2)
    base["ids"] = torch.arange(10)
    for state in tasks.values():
        state |= {"ids": base["ids"].clone(), "head": noise(4, 4), "norm.weight": base["norm.weight"].clone()}
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", base_storage="reference", recipe="fit")
    return tmp_path / "zoo.tall", base, tasks


def test_a_referenced_base_is_not_in_the_archive(referencing: tuple[Path, State, dict[str, State]]) -> None:
    path, base, tasks = referencing
    assert not any(name.startswith("base/") for name in read_all(path))
    tallstore.pack(base, tasks, path.with_name("whole.tall"), recipe="fit")
    with tallstore.open(path, base=base) as zoo, tallstore.open(path.with_name("whole.tall")) as whole:
        zoo.verify(against=tasks)
        assert zoo.manifest.base.identity == whole.manifest.base.identity
        for task in tasks:
            assert_same(zoo.state_dict(task), whole.state_dict(task))
        assert_same({"x": zoo.base("emb.weight")}, {"x": base["emb.weight"]})


def test_without_its_base_it_says_so(referencing: tuple[Path, State, dict[str, State]], tmp_path: Path) -> None:
    path, _, tasks = referencing
    with tallstore.open(path) as zoo:
        zoo.verify()
        assert same_bits(zoo.state_dict("a", names=["head"])["head"], tasks["a"]["head"]), "this one needs no base"
        for ask in (
            lambda: zoo.state_dict("a"),
            lambda: zoo.state_dict("a", names=["norm.weight"]),
            lambda: zoo.state_dict("a", names=["ids"]),
            lambda: zoo.base("emb.weight"),
            lambda: zoo.export("a", tmp_path / "out"),
            lambda: zoo.verify(against=tasks),
        ):
            with pytest.raises(BaseNeededError, match=r"zoo\.tall: holds no base, .* base=… \(--base\)"):
                ask()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["zoo.tall"]


def test_the_base_may_come_in_any_form(referencing: tuple[Path, State, dict[str, State]], tmp_path: Path) -> None:
    path, base, _ = referencing
    with tallstore.open(path, base=base) as zoo:
        wanted = zoo.state_dict("b")
    torch.save(base, tmp_path / "base.pt")
    for source in (write_folder(tmp_path / "folder", base), tmp_path / "base.pt", dict(reversed(base.items()))):
        with tallstore.open(path, base=source, threads=3) as zoo:
            assert_same(zoo.state_dict("b"), wanted)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fc.weight", lambda t: near(t, 9)),
        ("fc.weight", lambda t: spoilt(t, -0.0)),
        ("norm.weight", lambda t: t + 1),
        ("ids", lambda t: t + 1),
        ("ids", lambda t: t.to(torch.int32)),
        ("emb.weight", lambda t: t[:-1]),
        ("emb.weight", lambda t: t.to(torch.bfloat16)),
        ("emb.weight", lambda t: t.reshape(16, 40)),
        ("fc.weight", None),
    ],
)
def test_a_wrong_base_is_refused_by_the_name_of_the_tensor(
    referencing: tuple[Path, State, dict[str, State]], name: str, change: object, tmp_path: Path
) -> None:
    path, base, tasks = referencing
    wrong = {n: (change(t) if n == name and callable(change) else t) for n, t in base.items() if n != name or change}
    with tallstore.open(path, base=wrong) as zoo:
        for ask in (lambda: zoo.state_dict("a"), lambda: zoo.export("a", tmp_path / "out"), lambda: zoo.base(name)):
            with pytest.raises(WrongBaseError) as caught:
                ask()
            assert repr(name) in str(caught.value)
            assert "zoo.tall" in str(caught.value)
        assert same_bits(zoo.state_dict("a", names=["head"])["head"], tasks["a"]["head"])
    assert not (tmp_path / "out").exists()


def test_an_embedded_base_may_be_given_too_and_is_checked(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    tallstore.pack(base, tasks, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        wanted = zoo.state_dict("a")
    with tallstore.open(tmp_path / "zoo.tall", base=base) as zoo:
        assert_same(zoo.state_dict("a"), wanted)
    with tallstore.open(tmp_path / "zoo.tall", base=base | {"emb.weight": near(base["emb.weight"], 4)}) as zoo:
        with pytest.raises(WrongBaseError, match=r"emb\.weight"):
            zoo.state_dict("a")
