"""The same bytes from threads, processes and a cluster; from workers that die; and from runs that are cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Forks
from support import State, bytes_of, leftovers, near, noise, write_folder

import tallstore
from tallstore.encoder import batches, driver, encode_item, items
from tallstore.encoder import engine as engines
from tallstore.errors import CheckpointError, InputError, OptionError, UnreachableError, WorkerError
from tallstore.recipes import RECIPES

CHUNK = 1 << 12


def zoo() -> tuple[State, dict[str, State]]:
    """Every way in which a tensor can be stored, in several chunks."""
    base = {f"layer{i}": noise(40, 500, seed=i) for i in range(3)} | {
        "emb": noise(30, 400, seed=9),
        "small": noise(8),
        "table": torch.arange(9000),
        "ids": torch.arange(9000),
    }
    tasks = {}
    for seed, task in enumerate("abc", 7):
        tasks[task] = {name: near(tensor, seed) for name, tensor in base.items() if tensor.is_floating_point()}
        tasks[task] |= {"table": base["table"], "ids": base["ids"].flip(0), "head": noise(3, 5000, seed=seed)}
        tasks[task]["layer0"][0, 0] = float("nan")
        tasks[task]["layer1"] = base["layer1"].clone()
        tasks[task]["emb"] = torch.cat([tasks[task]["emb"], noise(5, 400, seed=seed)])
    return base, tasks


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "CHUNK_ELEMENTS", CHUNK)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    base, tasks = zoo()
    folder = tmp_path_factory.mktemp("sources")
    torch.save(tasks["b"], folder / "b.pt")
    kept = {name: str(write_folder(folder / name, state)) for name, state in tasks.items() if name != "b"}
    return str(write_folder(folder / "base", base)), {"a": kept["a"], "b": str(folder / "b.pt"), "c": kept["c"]}


@pytest.fixture(scope="module")
def whole(sources: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one thread makes of it."""
    path = tmp_path_factory.mktemp("whole") / "zoo.tall"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "CHUNK_ELEMENTS", CHUNK)
        tallstore.pack(*sources, path, workers=1)
    return path.read_bytes()


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    found = engines.Processes(2)
    yield found.executor()
    found.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_processes_give_the_same_bytes(
    recipe: str, sources: tuple[str, dict[str, str]], processes: Executor, tmp_path: Path
) -> None:
    for name, engine in (("threads", "threads"), ("processes", processes)):
        tallstore.pack(*sources, tmp_path / name, recipe=recipe, exact="c", engine=engine)
    assert bytes_of(tmp_path / "threads") == bytes_of(tmp_path / "processes")
    assert {name.split("/")[0] for name in leftovers(tmp_path)} == {"threads", "processes"}


def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(
    sources: tuple[str, dict[str, str]], whole: bytes, tmp_path: Path
) -> None:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        with Client(cluster) as client:
            pids = list(client.run(os.getpid).values())
        killed: list[int] = []

        def kill(text: str, done: int, total: int) -> None:
            if not killed and not text.startswith("statistics"):
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        tallstore.pack(*sources, tmp_path / "zoo.tall", engine=f"dask:{cluster.scheduler_address}", progress=kill)
    assert killed
    assert (tmp_path / "zoo.tall").read_bytes() == whole
    assert leftovers(tmp_path) == ["zoo.tall"]


def dies_once(context: batches.Context, number: int) -> None:
    """Work during which the process is killed, the first time."""
    died = context.folder / "died"
    if number == 5 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    batches.run(context, number)


def test_processes_that_are_killed_change_no_byte(
    sources: tuple[str, dict[str, str]], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    make = engines.Processes.make_executor

    def note(workers: int) -> Executor:
        made.append(make(workers))
        return made[-1]

    monkeypatch.setattr(engines.Processes, "make_executor", staticmethod(note))
    monkeypatch.setattr(driver, "run", dies_once)
    tallstore.pack(*sources, tmp_path / "zoo.tall", engine="processes", workers=2)
    assert len(made) == 2, "a new pool took the broken one's place"
    assert (tmp_path / "zoo.tall").read_bytes() == whole
    assert leftovers(tmp_path) == ["zoo.tall"]


class LetsGo(engines.Engine, Executor):
    """Its first worker dies with the first batch; what had not begun by then is cancelled."""

    workers = 2

    def __init__(self) -> None:
        self.first: list[Future[int]] | None = []

    def bind(self, work: engines.Work[int], context: Any) -> Callable[[int], int]:
        return partial(work, context)

    def executor(self) -> Executor:
        return self

    def submit(self, work: Callable[..., int], /, *numbers: int) -> Future[int]:  # type: ignore[override]
        future: Future[int] = Future()
        if self.first is None:
            future.set_result(work(*numbers))
            return future
        self.first.append(future)
        if len(self.first) == self.workers:
            self.first[0].set_exception(BrokenExecutor())
        return future

    def restart(self) -> None:
        assert self.first is not None
        self.first[-1].cancel()
        self.first = None


def test_what_a_broken_executor_cancels_is_given_out_again() -> None:
    with LetsGo() as engine:
        assert list(engine.run(lambda _, number: number**2, None, range(5), ahead=1)) == [0, 1, 4, 9, 16]  # type: ignore[arg-type]


class Breaks(Executor):
    """Loses its first batch, and is found broken when the second one is given to it; or works."""

    def __init__(self, *, broken: bool) -> None:
        self.broken, self.given = broken, 0

    def submit(self, work: Callable[..., int], /, *numbers: int) -> Future[int]:  # type: ignore[override]
        self.given += 1
        if self.broken and self.given > 1:
            raise BrokenExecutor
        future: Future[int] = Future()
        if self.broken:
            future.set_exception(BrokenExecutor())
        else:
            future.set_result(work(*numbers))
        return future


class BreaksOnce(LetsGo):
    """An engine whose first executor breaks while batches are given out."""

    def __init__(self) -> None:
        self.made = [Breaks(broken=True)]

    def executor(self) -> Executor:
        return self.made[-1]

    def restart(self) -> None:
        self.made.append(Breaks(broken=False))


def test_an_executor_that_broke_while_work_was_given_out_is_replaced_once() -> None:
    engine = BreaksOnce()
    assert list(engine.run(lambda _, number: number**2, None, range(5), ahead=1)) == [0, 1, 4, 9, 16]  # type: ignore[arg-type]
    assert [each.given for each in engine.made] == [2, 5]


def dies(context: batches.Context, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_batch_that_kills_every_worker_is_given_up(
    sources: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "run", dies)
    with pytest.raises(WorkerError, match="again and again"):
        tallstore.pack(*sources, tmp_path / "zoo.tall", engine="processes", workers=1)
    assert leftovers(tmp_path) == []


def test_a_script_that_workers_cannot_import_is_told_so(sources: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    how = {"engine": "processes", "workers": 1}
    script.write_text(f"import tallstore\ntallstore.pack(*{sources!r}, {str(tmp_path / 'zoo')!r}, **{how!r})\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tallstore.errors.WorkerError: workers died with batch 0")
    assert last.endswith('belongs under `if __name__ == "__main__":`')
    assert leftovers(tmp_path) == ["script.py"]


def test_what_workers_cannot_see_is_said(
    sources: tuple[str, dict[str, str]], processes: Executor, tmp_path: Path
) -> None:
    _, tasks = zoo()
    with pytest.raises(CheckpointError, match=r"a \(in memory\): lies in the memory of this process.*save it"):
        tallstore.pack(sources[0], {"a": tasks["a"]}, tmp_path / "zoo.tall", engine=processes)
    with pytest.raises(OptionError, match="engine 'gpu' is unknown; there are threads, processes, dask"):
        tallstore.pack(*sources, tmp_path / "zoo.tall", engine="gpu")
    with pytest.raises(OptionError, match="workers 0"):
        tallstore.pack(*sources, tmp_path / "zoo.tall", workers=0)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("which", ["input", "other", "output", "version"])
def test_a_worker_that_cannot_see_the_input(
    which: str, sources: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine: the driver sees it, the worker does not."""
    folder = write_folder(tmp_path / "in" / "d", zoo()[1]["a"])
    publish = batches.publish

    def hide(context: batches.Context) -> batches.Ref:
        ref = publish(context)
        if which == "input":
            (folder / "model.safetensors").rename(folder / "elsewhere")
        elif which == "other":
            os.utime(folder / "model.safetensors", (1, 1))
        elif which == "output":
            ref.path.unlink()
        else:
            ref = batches.Ref(ref.path, ref.sha256, "tallstore 0.0.0")
        return ref

    monkeypatch.setattr(engines, "publish", hide)
    said = {
        "input": "worker on .*: cannot see the input: .*model.safetensors.*; all workers need it",
        "other": "worker on .*is not the file there that the driver has",
        "output": "worker on .*: cannot see .*all workers need the folder of the output",
        "version": r"worker on .*: has tallstore 0\.1\.0, and the driver tallstore 0\.0\.0: install",
    }
    with ThreadPoolExecutor(1) as pool, pytest.raises(WorkerError, match=said[which]):
        tallstore.pack(sources[0], {"d": str(folder)}, tmp_path / "zoo.tall", engine=pool)
    assert not (tmp_path / "zoo.tall").exists()


def test_no_scheduler(sources: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATIENCE", 0.2)
    with pytest.raises(UnreachableError, match=r"no scheduler with workers answers at tcp://127\.0\.0\.1:9"):
        tallstore.pack(*sources, tmp_path / "zoo.tall", engine="dask:tcp://127.0.0.1:9")


# Runs that are cut off.

PACK = """
import os, signal, tallstore
from tallstore.encoder import driver, result_files
from tallstore.stores import local
driver.CHUNK_ELEMENTS = args[3]
moment, left = args[4:]
owner, name = {"results": (result_files.ResultFile, "end"), "parts": (local.FileSink, "put")}[moment]
method = getattr(owner, name)

def counted(self, *given):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return method(self, *given)

setattr(owner, name, counted)
tallstore.pack(args[0], args[1], args[2], workers=2, resume=True)
"""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The items that are coded."""
    done: list[tuple[str, int]] = []
    do = encode_item.do

    def note(item: items.Item, tools: items.Tools) -> items.Done:
        done.append((item.name, item.start))
        return do(item, tools)

    monkeypatch.setattr(batches, "do", note)
    return done


class Stopped(Exception):
    pass


def stop_after(tensor: str) -> Callable[[str, int, int], None]:
    """A progress that ends the run at a tensor."""

    def progress(text: str, done: int, total: int) -> None:
        if text == tensor:
            raise Stopped

    return progress


@pytest.mark.parametrize("name", ["zoo", "zoo.tall"])
def test_a_run_that_failed_is_taken_up(
    name: str, sources: tuple[str, dict[str, str]], counted: list[tuple[str, int]], tmp_path: Path
) -> None:
    target = tmp_path / name
    tallstore.pack(*sources, tmp_path / "reference" / name)
    every = len(counted)
    assert every > 15
    counted.clear()
    with pytest.raises(Stopped):
        tallstore.pack(*sources, target, resume=True, workers=1, progress=stop_after("layer1"))
    first = list(counted)
    assert not target.exists()
    counted.clear()
    report = tallstore.pack(*sources, target, resume=True)
    assert report.taken_up >= 5
    assert set(first) >= {("layer0", at) for at in range(0, 20000, CHUNK)}
    assert not {item for item in counted if item[0] == "layer0"}, "no finished tensor was done again"
    assert every <= len(first) + len(counted) <= every + 2
    assert read(target) == read(tmp_path / "reference" / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reference", name]


def test_without_resume_nothing_of_it_is_used(
    sources: tuple[str, dict[str, str]], counted: list[tuple[str, int]], whole: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "zoo.tall"
    with pytest.raises(Stopped):
        tallstore.pack(*sources, target, workers=1, progress=stop_after("layer1"))
    assert leftovers(tmp_path) == [], "a run that is not to be resumed leaves nothing"
    with pytest.raises(Stopped):
        tallstore.pack(*sources, target, resume=True, workers=1, progress=stop_after("layer1"))
    assert leftovers(tmp_path)
    counted.clear()
    report = tallstore.pack(*sources, target)
    assert report.taken_up == 0
    assert len(set(counted)) == len(counted) > 15
    assert target.read_bytes() == whole
    assert leftovers(tmp_path) == ["zoo.tall"]


def change_input(folder: Path, options: dict[str, Any], results: list[Path]) -> None:
    os.utime(folder / "model.safetensors", (1, 1))


def change_behind_its_times(folder: Path, options: dict[str, Any], results: list[Path]) -> None:
    """Of the same size and time: as archives are unpacked, and files copied with `cp -p`."""
    path = folder / "model.safetensors"
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_options(folder: Path, options: dict[str, Any], results: list[Path]) -> None:
    options["quality"] = "small"


def damage(folder: Path, options: dict[str, Any], results: list[Path]) -> None:
    for number, path in enumerate(results):
        data = bytearray(path.read_bytes())
        data[(number * 1009) % len(data)] ^= 1
        path.write_bytes(data)


def cut_off(folder: Path, options: dict[str, Any], results: list[Path]) -> None:
    for path in results:
        path.write_bytes(path.read_bytes()[:-1])


def foreign(folder: Path, options: dict[str, Any], results: list[Path]) -> None:
    """Results of another job, under the names of this one's."""
    for path in results:
        data = path.read_bytes()
        path.write_bytes(data[:-24] + bytes(16) + data[-8:])


CHANGES: Mapping[str, Callable[[Path, dict[str, Any], list[Path]], None]] = {
    "input": change_input,
    "same times": change_behind_its_times,
    "options": change_options,
    "damage": damage,
    "cut": cut_off,
    "foreign": foreign,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stale_foreign_or_damaged_is_not_used(
    change: str, sources: tuple[str, dict[str, str]], counted: list[tuple[str, int]], tmp_path: Path
) -> None:
    target = tmp_path / "zoo.tall"
    folder = write_folder(tmp_path / "in", zoo()[1]["a"])
    options: dict[str, Any] = {}
    with pytest.raises(Stopped):
        tallstore.pack(
            sources[0], {"a": folder}, target, resume=True, workers=1, progress=stop_after("layer2"), **options
        )
    results = sorted(tmp_path.glob(".zoo.tall.partial/work/*/coded-*"))
    assert results
    CHANGES[change](folder, options, results)
    counted.clear()
    report = tallstore.pack(sources[0], {"a": folder}, target, resume=True, **options)
    assert report.taken_up == 0
    assert len(counted) > 15
    warned = [line for line in report.warnings if "not used" in line]
    assert len(warned) == (1 if change in {"input", "same times", "options"} else 0)
    tallstore.pack(sources[0], {"a": folder}, tmp_path / "again.tall", **options)
    assert target.read_bytes() == (tmp_path / "again.tall").read_bytes()


def test_killed_at_any_moment_and_taken_up(
    sources: tuple[str, dict[str, str]], whole: bytes, forks: Forks, tmp_path: Path
) -> None:
    target = tmp_path / "zoo.tall"
    taken = []
    for moment, left in (("results", 1), ("results", 4), ("results", 4), ("results", 6), ("parts", 1), ("parts", 4)):
        code, text = forks.run(PACK, *sources, str(target), CHUNK, moment, left)
        assert code == -signal.SIGKILL, text
        assert [p.name for p in tmp_path.iterdir()] == [".zoo.tall.partial"]
        taken.append(len(list(tmp_path.glob(".zoo.tall.partial/work/*/coded-*"))))
    assert taken == sorted(taken), "what was finished stays"
    assert taken[0] < taken[1] < taken[2] < taken[3] < taken[4] == taken[5]
    report = tallstore.pack(*sources, target, resume=True)
    assert report.taken_up >= taken[-1]
    assert target.read_bytes() == whole
    assert leftovers(tmp_path) == ["zoo.tall"]


def test_the_command_line(sources: tuple[str, dict[str, str]], whole: bytes, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tallstore.cli import pack as pack_verb
    from tallstore.cli.app import app

    assert pack_verb._ENGINES.split(", ") == list(engines.NAMES)
    words = ["pack", sources[0], *(f"{name}={path}" for name, path in sources[1].items())]
    done = CliRunner().invoke(
        app, [*words, "-o", str(tmp_path / "zoo.tall"), "--engine", "threads", "--workers", "2", "--resume", "-q"]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "zoo.tall").read_bytes() == whole


# Parts of a bounded size.


def test_large_parts_are_cut(sources: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    tallstore.pack(*sources, tmp_path / "one")
    tallstore.pack(*sources, tmp_path / "many", max_shard_size="60KB")
    files = bytes_of(tmp_path / "many")
    parts = {name: data for name, data in files.items() if name.endswith(".safetensors")}
    assert "base/base-00001-of-00005.safetensors" in parts
    large = {name for name, data in parts.items() if len(data) > 60_000}
    with tallstore.open(tmp_path / "many") as many, tallstore.open(tmp_path / "one") as one:
        many.verify()
        for name in large:
            assert len(many._reader.header(name).offsets) == 1, "only a tensor that is larger by itself"
        for task in one.tasks:
            left, right = one.state_dict(task), many.state_dict(task)
            assert list(left) == list(right)
            assert all(left[n].numpy().tobytes() == right[n].numpy().tobytes() for n in left)
    assert large
    with pytest.raises(InputError, match="max_shard_size '5 apples' is not a size"):
        tallstore.pack(*sources, tmp_path / "zoo", max_shard_size="5 apples")


def read(path: Path) -> object:
    return path.read_bytes() if path.is_file() else bytes_of(path)


def test_turns_are_as_long_as_before_when_the_last_of_several_engines_is_closed() -> None:
    before = sys.getswitchinterval()
    first, second = engines.Threads(1), engines.Threads(2)
    assert sys.getswitchinterval() < before
    first.close()
    assert sys.getswitchinterval() < before
    second.close()
    assert sys.getswitchinterval() == before
