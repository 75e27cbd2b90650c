from __future__ import annotations

import atexit
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # imported where they are used: the process that hands tests to workers runs none, and needs no torch
    from processes import Forks, Shared

# The Hub's client reads these when it is imported. No test sees the user's token or cache, or leaves this machine.
_HOME = tempfile.mkdtemp(prefix="tallstore-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {
    "HF_HOME": _HOME,
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_PROXY": "127.0.0.1,localhost",
}
os.environ.pop("HF_TOKEN", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of child processes: as here, small tensors gain nothing from threads


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With `-n` alone, each worker takes neighbours: what a file's tests share, and the libraries it needs, load once."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    """Looking for garbage in all that libraries and tests hold takes a second each time: it is done more rarely."""
    gc.set_threshold(50_000, 50, 50)
    if not getattr(config.option, "numprocesses", None):
        import torch

        if not torch.cuda.is_available():
            # Triton's kernels run in its interpreter, which is decided when triton is imported, by whichever test is first.
            os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a pool of threads, and lose much on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few_objects() -> Iterator[None]:
    """Collecting garbage looks at what these tests make alone: all that libraries hold takes it a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def quiet_transformers() -> Iterator[None]:
    """transformers without its bars and remarks, which would be warnings; skipped where it is not installed."""
    transformers = pytest.importorskip("transformers")
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of the fewest elements that the format allows, so that small tensors have several."""
    from tallstore.encoder import driver

    monkeypatch.setattr(driver, "CHUNK_ELEMENTS", 1024)
    return 1024


@pytest.fixture(params=["zoo", "zoo.tall"], ids=["folder", "file"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where an archive goes: once as a folder, once as a single file."""
    return tmp_path / str(request.param)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes for jobs that are to be killed, limited, or told of another Hub before anything is imported."""
    from processes import FORKS, Forks, child_args, child_env

    folder = tmp_path_factory.mktemp("forks")
    folder.chmod(0o777)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(child_args(FORKS), env=child_env(), text=True, **pipes) as process:
        yield Forks(process, folder)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """What takes long to make, made once for all workers."""
    from processes import Shared

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return Shared(folder)


@pytest.fixture(scope="session")
def compiler(shared: Shared) -> str:
    """A C compiler for builds of the native library that are looked at, not waited for."""
    from processes import quick_compiler

    return quick_compiler(shared.folder)
