"""Every kind of checkpoint × everything that is done with an archive: each cell right, or refused with its reason.

A zoo of each kind is a base and two fine-tunes of it, saved by the library that owns the kind. Right means: what comes
back opens in that library, is nearer to the fine-tune than a quarter of the base's distance (bit for bit where it was
packed without loss), and every way of getting a task gives the same bits.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import tallstore
from matrix.kinds import KINDS, Kind, parameters_of
from matrix.vision import import_vision
from tallstore.errors import OptionError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
"""Libraries of models warn of each other's deprecations; that is theirs to mend."""

NEAR = 0.25
"""How far what comes back may be from the fine-tune, in units of the base's distance."""


State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Zoo:
    """A base, its fine-tunes `a` and `b`, and their archive."""

    kind: Kind
    folder: Path
    states: dict[str, State] = field(default_factory=dict)
    """What the library loads of each folder, by its name: loading takes longer than anything else here."""
    loaded: list[Any] = field(default_factory=list)
    """The base as the library loads it, once it was."""

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def archive(self) -> Path:
        return self.folder / "zoo.tall"

    def base(self) -> Any:
        """A model of the base, to be changed."""
        return copy.deepcopy(self._base())

    def state(self, name: str) -> State:
        if name not in self.states:
            model = self._base() if name == "base" else self.kind.load(self.path(name))
            self.states[name] = parameters_of(model)
        return self.states[name]

    def _base(self) -> Any:
        if not self.loaded:
            self.loaded.append(self.kind.load(self.path("base")))
        return self.loaded[0]

    def decoded(self, task: str) -> State:
        """The state of a task's extracted folder."""
        name = f"decoded-{task}"
        if not self.path(name).exists():
            extract(self.archive, task, self.path(name))
        return self.state(name)


def extract(archive: Path, task: str, out: Path) -> None:
    with tallstore.open(archive) as opened:
        opened.export(task, out)


def tuned(model: Any, seed: int) -> Any:
    """Every parameter moved by noise of a tenth of its spread."""
    noise = torch.Generator().manual_seed(seed)
    parts = [model] if isinstance(model, torch.nn.Module) else model.components.values()
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
                if parameter.numel() > 1:
                    step = torch.randn(parameter.shape, generator=noise)
                    parameter.add_((0.1 * parameter.float().std() * step).to(parameter.dtype))
    return model


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    kind: Kind = request.param
    if kind.vision:
        import_vision(kind.library)
    else:
        pytest.importorskip(kind.library)
    made = Zoo(kind, tmp_path_factory.mktemp("zoo"))
    for name, seed in (("base", 0), ("a", 1), ("b", 2)):
        torch.manual_seed(0)
        model = kind.make()
        kind.save((kind.tune or tuned)(model, seed) if seed else model, made.path(name))
    tallstore.pack(made.path("base"), {"a": made.path("a"), "b": made.path("b")}, made.archive)
    return made


def distance(left: State, right: State) -> float:
    assert left.keys() == right.keys()
    moved = [name for name, tensor in left.items() if tensor.is_floating_point()]
    return float(sum((left[n].double() - right[n].double()).square().sum() for n in moved)) ** 0.5


def assert_near(zoo: Zoo, found: State, task: str) -> None:
    """What came back is the fine-tune, much more than the base."""
    right = zoo.state(task)
    assert distance(found, right) < NEAR * distance(zoo.state("base"), right)


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("task", ["a", "b"])
def test_what_is_extracted_opens_in_its_library(zoo: Zoo, task: str) -> None:
    assert_near(zoo, zoo.decoded(task), task)


def test_a_folder_comes_back_whole(zoo: Zoo) -> None:
    """Every file of the fine-tune's folder but its weights, which may be written another way, is there again."""
    zoo.decoded("a")
    weights = {".safetensors", ".bin", ".pt"}
    before = {path.relative_to(zoo.path("a")): path for path in zoo.path("a").rglob("*") if path.is_file()}
    for name, path in before.items():
        if path.suffix not in weights and not path.name.endswith(".index.json"):
            assert (zoo.path("decoded-a") / name).read_bytes() == path.read_bytes(), name


def test_into_a_model(zoo: Zoo) -> None:
    if not zoo.kind.module:
        pytest.skip("a pipeline is several modules: each is loaded by itself")
    model = zoo.base()
    with tallstore.open(zoo.archive) as opened:
        opened.load_into(model, "a")
    assert_same(parameters_of(model), zoo.decoded("a"))


def test_switching(zoo: Zoo) -> None:
    if not zoo.kind.module:
        pytest.skip("a pipeline is several modules: each is switched by itself")
    model = zoo.base()
    with tallstore.open(zoo.archive) as opened:
        switcher = opened.switcher(model)
        for task in ("a", "b", "a"):
            switcher.switch(task)
            assert_same(parameters_of(model), zoo.decoded(task))


def test_from_pretrained(zoo: Zoo) -> None:
    if zoo.kind.auto is None:
        pytest.skip("from_pretrained is for transformers models")
    import transformers

    cls = getattr(transformers, zoo.kind.auto)
    model = tallstore.from_pretrained(zoo.archive, task="b", model_class=cls)
    assert_same(parameters_of(model), zoo.decoded("b"))


def test_adding(zoo: Zoo, tmp_path: Path) -> None:
    target = tmp_path / "zoo.tall"
    shutil.copy(zoo.archive, target)
    tallstore.remove(target, "b")
    tallstore.add(target, {"b": zoo.path("b")})
    extract(target, "b", tmp_path / "b")
    assert_near(zoo, parameters_of(zoo.kind.load(tmp_path / "b")), "b")


def test_merging(zoo: Zoo, tmp_path: Path) -> None:
    """Half of each task vector is the mean of both models."""
    if (why := zoo.kind.refused.get("merge")) is not None:
        with tallstore.open(zoo.archive) as opened, pytest.raises(OptionError, match=why):
            opened.export_merged(tmp_path / "merged", "arithmetic", alpha=0.5, heads="a")
        assert not (tmp_path / "merged").exists()
        return
    with tallstore.open(zoo.archive) as opened:
        opened.export_merged(tmp_path / "merged", "arithmetic", alpha=0.5, heads="a")
    found = parameters_of(zoo.kind.load(tmp_path / "merged"))
    left, right = zoo.state("a"), zoo.state("b")
    middle = {n: (left[n] + right[n]) / 2 if left[n].is_floating_point() else left[n] for n in left}
    assert distance(found, middle) < NEAR * distance(zoo.state("base"), left)


def test_verifying(zoo: Zoo) -> None:
    with tallstore.open(zoo.archive) as opened:
        compared = opened.verify(against={"a": zoo.path("a")}).against["a"]
    assert compared.relative_error is not None
    assert compared.relative_error < NEAR


def test_without_loss(zoo: Zoo, tmp_path: Path) -> None:
    target = tmp_path / "zoo.tall"
    tallstore.pack(zoo.path("base"), {"a": zoo.path("a"), "b": zoo.path("b")}, target, quality="lossless")
    extract(target, "a", tmp_path / "a")
    assert_same(parameters_of(zoo.kind.load(tmp_path / "a")), zoo.state("a"))
