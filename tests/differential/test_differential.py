"""Every way to decode gives the bits of the reader that was written from the specification alone.

Archives are what hypothesis makes up (zoos that are packed, and archives put together from raw pieces) and the
conformance vectors. `TALLSTORE_EXAMPLES` says how many of them are made: more than here in a long run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decode_ways import WAYS, Asked, Found, Plain, as_torch, digests, due, read_plain, switched, whole_tasks
from generated_zoos import Zoo, archives, write_archive, zoos
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from loopback import Hub, Repository, serving
from processes import child_args, child_env
from spec.second_reader import Archive
from support import bytes_of, near, noise

import tallstore
from spec.vectors import VALID, valid
from tallstore.errors import CheckpointError, WrongBaseError
from tallstore.kernels.native import library
from tallstore.kernels.native.build import library_path

EXAMPLES = int(os.environ.get("TALLSTORE_EXAMPLES", "6"))
Truth = dict[tuple[str, str], Plain]
LIGHT = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


def truth_of(asked: Asked) -> Truth:
    """What the specification's reader gives."""
    archive = Archive(asked.archive, read_plain(asked.base) if asked.base else None)
    found: Truth = {}
    for task, facts in archive.manifest["tasks"].items():
        found[task, "task"] = as_torch(archive.decode(task))
        if "exact" in facts["parts"]:
            found[task, "exact"] = as_torch(archive.decode(task, exact=True))
    return found


def check(found: Found, truth: Truth, way: str) -> int:
    """Compare all that a way gives; how many tensors that were."""
    count = 0
    for task, form, tensors in found:
        wanted = due(truth[task, "exact" if form == "exact" else "task"], form, tensors)
        assert list(tensors) == list(wanted), f"{way}: {task}"
        wrong = [name for name in wanted if tensors[name] != wanted[name]]
        assert not wrong, f"{way}: {task} ({form}): {wrong}"
        count += len(wanted)
    return count


class WithoutCompiled:
    """A process in which the compiled kernels are off, and which decodes in every way that there is."""

    def __init__(self) -> None:
        code = f"import runpy; runpy.run_path({str(Path(__file__).with_name('decode_ways.py'))!r}, run_name='__main__')"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(
            child_args(code), env=child_env({"TALLSTORE_KERNELS": "reference"}), text=True, **pipes
        )

    def begin(self, asked: Asked) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(asked.archive), str(asked.base) if asked.base else None]) + "\n")
        self._process.stdin.flush()

    def check(self, truth: Truth) -> int:
        """Of the archive that was begun with."""
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        assert not answer["compiled"]
        count = 0
        for way, task, form, found in answer["found"]:
            wanted = due(truth[task, "exact" if form == "exact" else "task"], form, found)
            assert found == digests(wanted), f"{way}, not compiled: {task} ({form})"
            count += len(found)
        return count

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def by_triton(asked: Asked) -> Found:
    """The switcher, its kernels those for a GPU: interpreted here, where there is none."""
    pytest.importorskip("triton")
    from tallstore.kernels.gpu import decode

    launched: Counter[str] = Counter()

    class Counting:
        def __getattr__(self, name: str) -> Callable[..., None]:
            launched[name] += 1
            return getattr(decode, name)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("tallstore.") and hasattr(module, "kernels_for"):
                patch.setattr(module, "kernels_for", lambda _: Counting())
        with asked.open() as zoo:
            facts = {task: zoo.tensors(task).values() for task in zoo.tasks}
        for task, form, found in switched(asked):
            yield task, form, found
            if any(f.kind in {"binary", "signed"} and f.bytes for f in facts[task]):
                assert launched["apply_packed_mask"], "the kernels for a GPU were not asked"


@pytest.fixture(scope="module")
def plain_process() -> Iterator[WithoutCompiled]:
    process = WithoutCompiled()
    yield process
    process.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving() as running:
        yield running


def from_afar(asked: Asked, server: Hub) -> Iterator[tuple[str, Found]]:
    """The same archive on a web server, and as a repository of a Hub, read by range."""
    folder = asked.archive.is_dir()
    server.repos["user/zoo"] = Repository()
    files = bytes_of(asked.archive) if folder else {"zoo.tall": asked.archive.read_bytes()}
    server.repos["user/zoo"].add("main", files, "zoo")
    web = f"{server.cdn}/cdn/user/zoo/{server.commit('user/zoo')}"
    places: dict[str, dict[str, Any]] = {web if folder else f"{web}/zoo.tall": {}}
    if folder:
        places["hf://user/zoo"] = {"endpoint": server.url, "lazy": True}
    for url, how in places.items():
        with tallstore.open(url, base=asked.base, **how) as zoo:
            yield url.split(":")[0], whole_tasks(zoo)


class Comparison:
    """One archive, decoded in every way there is."""

    def __init__(self, plain_process: WithoutCompiled, server: Hub) -> None:
        self._plain, self._server = plain_process, server
        self.archives = self.tensors = 0

    def __call__(self, archive: Path, base: Path | None) -> None:
        asked = Asked(archive, base)
        with np.errstate(all="ignore"):
            truth = truth_of(asked)
            with asked.open() as zoo:
                zoo.verify()
            self._plain.begin(asked)
            try:
                for way, run in WAYS.items():
                    self.tensors += check(run(asked), truth, way)
                self.tensors += check(by_triton(asked), truth, "Triton")
                for way, found in from_afar(asked, self._server):
                    self.tensors += check(found, truth, way)
            finally:
                self.tensors += self._plain.check(truth)
        self.archives += 1


@pytest.fixture(scope="module")
def compare(plain_process: WithoutCompiled, server: Hub) -> Iterator[Comparison]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.stores.retries.FIRST_WAIT", 0.002)
        comparison = Comparison(plain_process, server)
        yield comparison
    print(f"\n{comparison.archives} archives, {comparison.tensors} tensors compared", file=sys.stderr)


@LIGHT
@given(zoo=zoos())
def test_packed_zoos(zoo: Zoo, compare: Comparison, small_chunks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            written = zoo.write(Path(folder))
        except (WrongBaseError, CheckpointError):  # no tensor of it has a counterpart, or the base's are empty
            reject()
        compare(*written)


@LIGHT
@given(made=archives(), folder=st.booleans())
def test_archives_from_raw_pieces(made: Any, folder: bool, compare: Comparison) -> None:
    with tempfile.TemporaryDirectory() as root:
        compare(*write_archive(made, Path(root), folder=folder))


@pytest.mark.parametrize("name", VALID)
def test_conformance_vectors(name: str, compare: Comparison) -> None:
    vector = valid(name)
    compare(vector.archive, vector.base)


@pytest.mark.parametrize("options", [{"recipe": "emr", "mask": "bits"}, {"bits": 3.0}], ids=str)
def test_a_tensor_that_threads_share(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More elements than a thread writes at a time, in chunks of a scale or table of their own."""
    monkeypatch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", 1 << 18)
    base = {"w": noise(1100, 1000, seed=1)}
    base["w"] *= torch.linspace(0.1, 2, 1100)[:, None]
    tasks = {f"t{seed}": {"w": near(base["w"], seed, 0.01 * seed)} for seed in (2, 3)}
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", base_codec="raw", **options)
    asked = Asked(tmp_path / "zoo.tall")
    truth = truth_of(asked)
    for way in ("mapped, five threads", "plain reads, one thread", "loaded into a model", "switched to, five threads"):
        check(WAYS[way](asked), truth, way)


def test_one_of_the_processes_has_the_native_library(plain_process: WithoutCompiled) -> None:
    """Where it was built, the two differ."""
    assert (library.chosen() is not None) == library_path().exists()
    assert torch.get_num_threads() == 1
