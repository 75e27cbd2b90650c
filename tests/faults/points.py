"""A job at a point: run with a fault, looked at, run again without, looked at again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from loopback import Hub, serving
from processes import Forks
from support import bytes_of, leftovers

from .jobs import INPUTS, JOBS, TOKEN, Job, write_inputs

FAULTS = {
    "kill": ("write", "kill"),
    "full": ("write", "ENOSPC"),
    "broken": ("write", "EIO"),
    "unread": ("read", "EIO"),
    "cut": ("send", "kill"),
    "reset": ("send", "ECONNRESET"),
}
"""Name → what is counted, and what then happens."""
ENDS = {0: "done all the same", 1: "refused"}
QUIET = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
RUN = """
import json, sys, warnings
from pathlib import Path
from faults.jobs import JOBS
from faults.layer import Layer
root, out, url, name, kind, fault, at = args
warnings.filterwarnings("ignore", "hf.*to be fetched again", UserWarning)
warnings.filterwarnings("ignore", ".*its decoded weights", UserWarning)
warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
layer = Layer(root, kind, fault, at)
layer.install()
try:
    JOBS[name].run(Path(root), Path(out), url=url)
finally:
    layer.at = 0
    sys.__stdout__.write(f"operations {json.dumps(layer.counts)}\\n")
    sys.__stdout__.flush()
"""


@dataclass
class Bench:
    """A folder with inputs, and what a job makes of them when nothing goes wrong."""

    root: Path
    name: str
    forks: Forks
    _stack: ExitStack = field(default_factory=ExitStack)
    hub: Hub | None = None

    def __enter__(self) -> Self:
        self.job: Job = JOBS[self.name]
        self.target = self.root / "work" / self.job.name
        write_inputs(self.root)
        if self.job.hub:
            files = bytes_of(self.root / INPUTS / "zoo")
            self.hub = self._stack.enter_context(serving({"user/zoo": files}, {TOKEN: "user"}))
        self.inputs = bytes_of(self.root / INPUTS)
        (self.root / "before").mkdir()
        if self.job.older is not None:
            self.job.older(self.root / "before" / self.job.name)
        self.reset()
        self.older = self.seen()
        code, self.counts, text = self.run("write", "EIO", 0)
        assert code == 0, text
        self.whole = self.seen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def reset(self) -> None:
        """As it was before the job."""
        for folder in ("work", "cache"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        shutil.copytree(self.root / "before", self.target.parent)
        if self.hub is not None:
            self.hub.repos.pop("user/pushed", None)
            self.hub.stored.clear()

    def seen(self) -> dict[str, bytes]:
        """What others see: no names that begin with a dot, and what the Hub shows."""
        found = {n: d for n, d in bytes_of(self.target.parent).items() if not n.startswith(".")}
        if self.hub is not None and (repo := self.hub.repos.get("user/pushed")) is not None:
            pushed = self.hub.files("user/pushed") if repo.branches else {}
            found |= {f"hub/{path}": data for path, data in pushed.items() if path != ".gitattributes"}
        return found

    def run(self, kind: str, fault: str, at: int) -> tuple[int, dict[str, int], str]:
        """The job; gives its exit code, how many operations of each kind it did, and what it said."""
        url = self.hub.url if self.hub is not None else ""
        env = {"HF_ENDPOINT": url, "HF_HOME": str(self.root / "cache"), **QUIET} if url else {}
        code, text = self.forks.run(RUN, str(self.root), str(self.target), url, self.name, kind, fault, at, env=env)
        counted = [line.partition(" ")[2] for line in text.splitlines() if line.startswith("operations ")]
        return code, json.loads(counted[-1]) if counted else {}, text

    def operations(self, fault: str) -> int:
        """How many operations of a fault's kind the job does."""
        return self.counts[FAULTS[fault][0]]

    def check(self, fault: str, at: int) -> str:
        """The job with a fault at its `at`-th operation, and what must hold; gives how it ended."""
        self.reset()
        before = leftovers(self.root / "work")
        code, _, text = self.run(*FAULTS[fault], at)
        where = f"{self.name}, {fault} at operation {at}: exit {code}: {text}"
        assert code in ({-9, 0} if FAULTS[fault][1] == "kill" else {0, 1}), where
        found = self.seen()
        assert found in (self.older, self.whole), f"neither what was there nor what is to come: {where}"
        assert code != 0 or found == self.whole, f"it said it was done: {where}"
        assert bytes_of(self.root / INPUTS) == self.inputs, f"an original was touched: {where}"
        if fault in {"full", "unread"} and found == self.older:
            assert leftovers(self.root / "work") == before, f"litter: {where}"
        again, _, text = self.run("write", "EIO", 0)
        where = f"{where}; then again: exit {again}: {text}"
        assert again == 0, where
        assert self.seen() == self.whole, f"a second run makes something else: {where}"
        assert not [n for n in leftovers(self.root / "work") if "partial" in n or n.startswith(".")], where
        return ENDS.get(code, "killed")


@contextmanager
def bench(root: Path, name: str, forks: Forks) -> Iterator[Bench]:
    """A bench in a folder of its own."""
    folder = root / name
    folder.mkdir()
    with Bench(folder, name, forks) as made:
        yield made
