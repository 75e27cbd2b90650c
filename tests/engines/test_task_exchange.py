"""Exchanging tasks in an engine's model: a small engine that fuses tensors and shares them out, as vLLM's workers do.

vLLM itself is tried by `tests/engines/real_vllm.py`, where it is installed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import near, noise, spoilt, write_folder

import tallstore
from tallstore.engines.decode_ahead import ahead
from tallstore.engines.lazy_tensor import LazyWeight
from tallstore.engines.task_exchange import Exchange
from tallstore.engines.vllm import engine_options, serving, switch, switch_async
from tallstore.engines.worker_catalogue import ArchiveSource, Catalogue, layer_of
from tallstore.errors import (
    CheckpointError,
    DamagedError,
    EngineError,
    ModelChangedError,
    ModelMismatchError,
    NoSuchTaskError,
    OptionError,
)

from .small_engine import CONFIG, OPEN, PARTS, Engine, Served, base_state, task_states

STATES = task_states()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3.self_attn"),
        ("model.layers.3.mlp.experts.5.w1.weight", "model.layers.3.mlp"),
        ("model.layers.12.input_layernorm.weight", "model.layers.12.input_layernorm"),
        ("transformer.h.0.attn.c_attn.bias", "transformer.h.0.attn"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("0.weight", "0"),
        ("weight", ""),
    ],
)
def test_what_belongs_to_one_layer(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_only_layers_that_differ_are_given_and_those_whole(zoo: Path) -> None:
    OPEN.append(catalogue := Catalogue(ArchiveSource(archive=str(zoo))))
    first = [f"model.layers.0.self_attn.{part}.weight" for part in PARTS]
    assert sorted(catalogue.differing("none", "one")) == sorted(first)
    assert catalogue.differing("one", "one") == []
    assert set(catalogue.differing("one", "all")) == set(STATES["all"])
    assert set(catalogue.differing(None, "none")) == set(STATES["none"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_order_of_tasks_is_right_and_each_has_one_digest(ranks: int, zoo: Path) -> None:
    engine = Engine(*(Served(zoo, rank=rank, ranks=ranks) for rank in range(ranks)))
    digests: dict[str, set[str]] = {"all": {serving(engine)["digest"]}}
    order = random.Random(1)
    for task in [order.choice(("all", "one", "none")) for _ in range(8)]:
        told = switch(engine, task)
        assert told["task"] == serving(engine)["task"] == task
        assert all(rank.holds(STATES[task]) for rank in engine.ranks)
        digests.setdefault(task, set()).add(told["digest"])
        assert told["digest"] == serving(engine)["digest"]
    assert [len(found) for found in digests.values()] == [1, 1, 1]
    assert len(set.union(*digests.values())) == 3
    assert engine.cleared == 24
    for before, after in zip(engine.ranks[0].reloads, engine.ranks[-1].reloads, strict=True):
        assert before == after


def test_the_digest_is_that_of_the_tensors_themselves(zoo: Path, tmp_path: Path) -> None:
    tallstore.pack(base_state(), {"all": STATES["all"]}, tmp_path / "one.tall", quality="lossless")
    engine = Engine(Served(zoo))
    switch(engine, "one")
    found = Served(tmp_path / "one.tall")
    assert found.loaded is not None
    assert Exchange(found).serving()["digest"] == switch(engine, "all")["digest"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_fails_in_the_middle_is_taken_back_by_all(ranks: int, zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo, tmp_path / "zoo")
    engine = Engine(*(Served(tmp_path / "zoo", "one", rank=rank, ranks=ranks) for rank in range(ranks)))
    part = next((tmp_path / "zoo" / "tasks" / "all").glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-40] ^= 1
    part.write_bytes(data)
    for _ in range(2):
        with pytest.raises(DamagedError, match=part.name):
            switch(engine, "all")
        assert all(rank.holds(STATES["one"]) for rank in engine.ranks)
        assert serving(engine)["task"] == "one"
    assert engine.cleared == 0
    switch(engine, "none")
    assert all(rank.holds(STATES["none"]) for rank in engine.ranks)


def test_one_rank_that_fails_stops_all(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo, tmp_path / "zoo")
    engine = Engine(Served(zoo, "one", 0, 2), Served(tmp_path / "zoo", "one", 1, 2))
    part = next((tmp_path / "zoo" / "tasks" / "all").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-40] + bytes(40))
    with pytest.raises(DamagedError, match="rank 1: "):
        switch(engine, "all")
    assert all(rank.holds(STATES["one"]) for rank in engine.ranks)
    assert {each.serving()["task"] for each in engine.exchanges} == {"one"}
    switch(engine, "none")
    assert all(rank.holds(STATES["none"]) for rank in engine.ranks)


def test_what_cannot_be_taken_back_is_said_from_then_on(zoo: Path) -> None:
    engine = Engine(Served(zoo))
    real = engine.ranks[0].reload

    def broken(weights: Any) -> None:
        real(weights)
        raise RuntimeError("no such kernel")

    engine.ranks[0].reload = broken  # type: ignore[method-assign] # an engine that is broken
    for _ in range(2):
        with pytest.raises(EngineError, match=r"could not be taken back \(no such kernel\).*start it again"):
            switch(engine, "one")


def test_weights_that_somebody_else_changed_are_not_overwritten(zoo: Path) -> None:
    engine = Engine(Served(zoo))
    switch(engine, "one")
    with torch.no_grad():
        engine.ranks[0].module["model_norm"] += 1
    with pytest.raises(ModelChangedError, match="changed by someone else"):
        switch(engine, "all")
    assert serving(engine)["task"] == "one"


def test_two_at_once(zoo: Path) -> None:
    engine = Engine(Served(zoo, "one"))
    assert engine.exchanges[0].prepare("mine", "all", None)["ok"]
    with pytest.raises(EngineError, match="another exchange of tasks is under way"):
        switch(engine, "none")
    assert engine.exchanges[0].apply("mine")["ok"]
    assert not engine.exchanges[0].apply("yours")["ok"]
    assert engine.ranks[0].holds(STATES["all"])
    assert engine.exchanges[0].settle("mine", keep=False) == {"ok": True, "task": "one"}
    assert engine.ranks[0].holds(STATES["one"])
    switch(engine, "none")
    assert engine.ranks[0].holds(STATES["none"])


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("five", NoSuchTaskError, r"no task 'five'; there are all, one, none"),
        ("wide", ModelMismatchError, r"'model\.embed_tokens\.weight' is \[40, 16\] there and \[80, 16\] here"),
        ("other", ModelMismatchError, r"rope_theta: 5\.0, expected None"),
        ("words", ModelMismatchError, r"different tokenizers \(vocab\.txt\)"),
    ],
)
def test_what_does_not_fit(task: str, error: type[Exception], message: str, zoo: Path) -> None:
    engine = Engine(Served(zoo, "one"))
    with pytest.raises(error, match=message):
        switch(engine, task)
    assert engine.ranks[0].holds(STATES["one"])
    switch(engine, "all")


def test_an_engine_that_is_not_ready(zoo: Path) -> None:
    engine = Engine(Served(zoo, "one"))
    engine.unfinished = True
    with pytest.raises(EngineError, match="requests are in flight"):
        switch(engine, "all")
    engine.unfinished, engine.busy_cache = False, True
    with pytest.raises(EngineError, match="cache of prefixes is in use"):
        switch(engine, "all")
    assert engine.ranks[0].holds(STATES["one"])
    engine.busy_cache = False
    engine.ranks[0].refused = "it has a draft model of its own"  # type: ignore[assignment]
    with pytest.raises(EngineError, match="cannot be exchanged: it has a draft"):
        switch(engine, "all")
    engine.dead = True
    with pytest.raises(EngineError, match="the engine died"):
        switch(engine, "all")
    with pytest.raises(OptionError, match="switch_async"):
        switch(object(), "all")


def opened(path: Path) -> bool:
    """Whether this process has a file open."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("no list of open files here")
    found = [folder / each for each in os.listdir(folder)]  # noqa: PTH208 - names alone
    return any(each.exists() and each.resolve() == path.resolve() for each in found)


def test_an_engine_that_was_started_plainly_and_another_archive(zoo: Path, tmp_path: Path) -> None:
    engine = Engine(Served(None))
    with pytest.raises(EngineError, match="was not started from an archive"):
        switch(engine, "all")
    with pytest.raises(OptionError, match="exact is an option of another archive"):
        switch(engine, "all", exact=True)
    with pytest.raises(ModelMismatchError, match="rope_theta"):
        switch(engine, "other", source=str(zoo))
    switch(engine, "all", source=str(zoo))
    assert engine.ranks[0].holds(STATES["all"])
    moved = {name: spoilt(tensor, 3.0) for name, tensor in base_state().items()}
    write_folder(tmp_path / "moved", moved, **CONFIG)
    write_folder(tmp_path / "small", {"model.norm.weight": near(noise(300), seed=3)}, **CONFIG)
    tallstore.pack(base_state(), {"moved": tmp_path / "moved"}, tmp_path / "second.tall", quality="lossless")
    tallstore.pack({"model.norm.weight": noise(300)}, {"small": tmp_path / "small"}, tmp_path / "third.tall")
    with pytest.raises(EngineError, match="its base is not the engine's model"):
        switch(engine, "small", source=str(tmp_path / "third.tall"))
    switch(engine, "moved", source=str(tmp_path / "second.tall"))
    assert engine.ranks[0].holds(moved)
    assert serving(engine)["tasks"] == ["moved"]
    assert not opened(zoo), "of archives that the engine was not started from, only the last is kept"
    assert opened(tmp_path / "second.tall")
    switch(engine, "one", source=str(zoo))
    assert engine.ranks[0].holds(STATES["one"])


class Silent(Engine):
    """An engine in a process of its own that was killed: its answer never comes."""

    def __init__(self, *ranks: Served) -> None:
        super().__init__(*ranks)
        self.engine_core = SimpleNamespace(resources=SimpleNamespace(engine_dead=False))
        self.ended, self.silent, self.calls_off = threading.Event(), "", False

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        if self.silent and method.startswith(self.silent):
            if self.calls_off:
                threading.Timer(0.1, setattr, (self.engine_core.resources, "engine_dead", True)).start()
                raise RuntimeError("Call to collective_rpc method failed: cancelled")
            self.engine_core.resources.engine_dead = True
            self.ended.wait(60)
        return super().collective_rpc(method, args)


@pytest.mark.parametrize("calls_off", [False, True])
@pytest.mark.parametrize("step", ["tallstore_prepare", "tallstore_apply", "tallstore_settle"])
def test_the_end_of_an_engine_is_noticed_whether_it_answers_or_not(step: str, calls_off: bool, zoo: Path) -> None:
    engine = Silent(Served(zoo, "all"))
    assert switch(engine, "one")["task"] == "one"
    with pytest.raises(NoSuchTaskError):
        switch(engine, "five")
    engine.silent, engine.calls_off = step, calls_off
    with pytest.raises(EngineError, match="the engine died, a worker with it"):
        switch(engine, "all")
    engine.ended.set()

    async def without_answer() -> None:
        engine = Asynchronous(Served(zoo, "all"))
        engine.stuck = asyncio.Event()
        with pytest.raises(EngineError, match="the engine died"):
            await switch_async(engine, "one")
        engine.stuck.set()

    asyncio.run(without_answer())


class Asynchronous(Engine):
    """What `switch_async` needs of vLLM's `AsyncLLM`."""

    errored = False

    def __init__(self, *ranks: Served) -> None:
        super().__init__(*ranks)
        self.said: list[str] = []
        self.stuck: asyncio.Event | None = None

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> Any:  # type: ignore[override]
        await asyncio.sleep(0)
        if self.stuck is not None:
            self.errored = True
            await self.stuck.wait()
        return super().collective_rpc(method, args)

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.said.append(f"pause {mode} {clear_cache}")

    async def resume_generation(self) -> None:
        self.said.append("resume")

    async def reset_prefix_cache(self) -> bool:  # type: ignore[override]
        return super().reset_prefix_cache()

    async def reset_encoder_cache(self) -> None:  # type: ignore[override]
        super().reset_encoder_cache()

    async def reset_mm_cache(self) -> None:  # type: ignore[override]
        super().reset_mm_cache()


def test_an_asynchronous_engine_is_paused_and_goes_on_whatever_happens(zoo: Path) -> None:
    async def all_of_it() -> None:
        engine = Asynchronous(Served(zoo, "one"))
        first, second = await asyncio.gather(
            switch_async(engine, "all", in_flight="abort"), switch_async(engine, "none"), return_exceptions=True
        )
        assert isinstance(first, dict)
        assert isinstance(second, EngineError)
        assert "under way" in str(second)
        assert engine.said == ["pause abort True", "resume"]
        assert engine.ranks[0].holds(STATES["all"])
        with pytest.raises(NoSuchTaskError):
            await switch_async(engine, "five")
        assert engine.said == ["pause abort True", "resume", "resume"]  # not held back for what cannot be
        with pytest.raises(OptionError, match="there are wait, abort"):
            await switch_async(engine, "one", in_flight="drop")
        await switch_async(engine, "one")
        assert engine.ranks[0].holds(STATES["one"])

    asyncio.run(all_of_it())


def test_a_tensor_is_read_where_it_is_taken_and_no_more(zoo: Path) -> None:
    read: list[Any] = []
    with tallstore.open(zoo) as opened:
        wanted = opened.state_dict("all")["model.layers.1.mlp.up_proj.weight"]
        stored = opened.weights("all").get_slice("model.layers.1.mlp.up_proj.weight")
        lazy = LazyWeight.of(stored, lambda ranges, _: read.append(ranges))
        assert lazy.shape == (24, 16)
        torch.empty(8, 16, device="meta").copy_(lazy.narrow(0, 8, 8))
        assert read == []
        out = torch.empty(8, 4)
        out.copy_(lazy.narrow(0, 8, 8)[:, 2:6].detach())
        assert torch.equal(out, wanted[8:16, 2:6])
        assert read == [((8, 16), (2, 6))]
        with torch.inference_mode():
            assert torch.equal(lazy[-4:] + 0, wanted[-4:])
            assert torch.equal(lazy.t().contiguous(), wanted.t())
            assert torch.equal(torch.cat([lazy[20:40], lazy[:0]]), wanted[20:])
            assert torch.equal(lazy[3], wanted[3])


def test_items_come_ahead_in_order_and_errors_at_their_place() -> None:
    def failing() -> Iterator[int]:
        yield from range(20)
        raise ValueError("the 21st")

    items = ahead(failing())
    assert [next(items) for _ in range(20)] == list(range(20))
    with pytest.raises(ValueError, match="the 21st"):
        next(items)
    many = ahead(iter(range(1000)))
    assert [next(many), next(many)] == [0, 1]
    many.close()
    assert not [each for each in threading.enumerate() if each.name == "tallstore-ahead"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "which task"),
        ({"task": 3}, "which task"),
        ({"task": "a", "tasks": []}, "no option 'tasks'; it has task, archive"),
        ({"task": "a", "exact": "yes"}, "exact 'yes' makes no sense"),
        ({"task": "a", "archive": None}, "archive None makes no sense"),
    ],
)
def test_options_of_the_loader(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ArchiveSource.parse(given, "zoo")


def test_what_an_engine_is_started_with(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(zoo.parent)
    options = engine_options("zoo", "one", exact=False)
    folder = Path(options["model"])
    assert folder.is_relative_to(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"config.json", "vocab.txt"}
    assert json.loads((folder / "config.json").read_text())["_name_or_path"] == "one"
    assert options["load_format"] == "tallstore"
    source, task = ArchiveSource.parse(options["model_loader_extra_config"], "elsewhere")
    assert (source.archive, task) == (str(zoo.resolve()), "one")
    (folder / "config.json").write_text("{}")
    assert engine_options(zoo, "one") == options
    assert json.loads((folder / "config.json").read_text())["_name_or_path"] == "one"
    with pytest.raises(NoSuchTaskError):
        engine_options(zoo, "five")
    with pytest.raises(OptionError, match="word"):
        engine_options(zoo, "one", word=1)
    tallstore.pack(base_state(), {"bare": STATES["all"]}, tmp_path / "bare.tall")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        engine_options(tmp_path / "bare.tall", "bare")
