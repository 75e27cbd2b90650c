"""Runs targets, one after the other: so many executions with a fixed seed, or so many seconds.

    PYTHONPATH=.:tests python -m fuzz --runs 300                            # all of them, as CI does
    PYTHONPATH=.:tests python -m fuzz archive --seconds 3600 --corpus DIR   # long, from a corpus that grows
    PYTHONPATH=.:tests python -m fuzz archive --input FILE                  # one input again

Prints a line a target: executions, coverage (edges of tallstore's own code), the corpus, seconds, memory, findings. A
finding's input is kept, with its traceback, under --findings.
Where atheris is not installed, or with --blind, the same targets and mutators run without the guidance of coverage.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import blind
from .base import ROOT, Target, guarded

TIMEOUT = 20
"""Seconds that one input may take: none that is so small takes a tenth of one."""
MEMORY = 2048
"""MiB that the whole process may take."""
_STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/\S+.*?exec/s: (\d+) rss: (\d+)Mb")


@dataclass
class Outcome:
    """What became of a target."""

    name: str
    executions: int = 0
    coverage: int = 0
    corpus: int = 0
    memory: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"| {self.name} | {self.executions:,} | {self.coverage} | {self.corpus} | {self.seconds:.0f} "
            f"| {self.memory} | {len(self.findings)} |"
        )


def guide() -> Any:
    """atheris, or None where it is not installed or not wanted."""
    if "--blind" in sys.argv:
        return None
    try:
        import atheris
    except ImportError:
        return None
    return atheris


def instrumented() -> dict[str, Target]:
    """The targets, with tallstore's own code instrumented where coverage guides."""
    if (atheris := guide()) is None:
        from .targets import TARGETS

        return dict(TARGETS)
    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["tallstore"]):
        from .targets import TARGETS
    return dict(TARGETS)


def fuzz(name: str, target: Target, flags: Sequence[str]) -> int:
    """One run in a process of its own; gives its exit code. Does not return in that process."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        _fuzz(name, target, flags[:-1], os.open(flags[-1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    except SystemExit:
        ctypes.CDLL(None).exit(1)  # C's own: libFuzzer then keeps the input, and nothing of this process's parent runs
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _fuzz(name: str, target: Target, flags: Sequence[str], log: int) -> None:
    """Never returns: the fuzzer ends the process, with 0 if it found nothing."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    if (atheris := guide()) is None:
        blind.fuzz(target, flags)
        os._exit(0)

    def custom(data: bytes, most: int, seed: int) -> bytes:
        assert target.mutate is not None
        try:
            return target.mutate(data, most, random.Random(seed), atheris.Mutate)[:most]
        except (TypeError, LookupError, ValueError, AttributeError):  # built so oddly that it cannot be taken apart
            return atheris.Mutate(data, most)

    how = {} if target.mutate is None else {"custom_mutator": custom}
    atheris.Setup([name, *flags], guarded(target.run), **how)
    atheris.Fuzz()


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Where all temporary files go, in memory if there is such a place; cleared away here, however children end."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    kept, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield folder
    finally:
        tempfile.tempdir = kept
        shutil.rmtree(folder)


def run(name: str, target: Target, args: argparse.Namespace) -> Outcome:
    """A target until its executions or seconds are used up, begun anew behind every finding."""
    found, begun = Outcome(name), time.monotonic()
    with scratch_folder() as scratch:
        corpus = Path(args.corpus or scratch) / name
        seeds = Path(scratch) / "seeds"
        corpus.mkdir(parents=True, exist_ok=True)
        seeds.mkdir()
        for number, data in enumerate(dict.fromkeys(target.seeds())):
            (seeds / f"{number:04}").write_bytes(data)
        kept = Path(args.findings) / name
        for attempt in range(1 if args.runs else 100):
            left = args.seconds - (time.monotonic() - begun)
            if left < 1:
                break
            artifacts, log = Path(scratch) / "artifacts", Path(scratch) / "log"
            artifacts.mkdir(exist_ok=True)
            flags = [
                f"-seed={args.seed + attempt}", f"-max_len={target.max_len}", f"-timeout={TIMEOUT}",
                f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={artifacts}/", "-print_final_stats=1", "-reload=0",
                f"-runs={args.runs}" if args.runs else f"-max_total_time={int(left)}", str(corpus), str(seeds),
            ]  # fmt: skip
            code = fuzz(name, target, [*flags, str(log)])
            text = log.read_text(errors="replace")
            _add(found, text)
            if code == 0:
                break
            found.findings.append(_keep(artifacts, kept, text))
            if args.runs:
                break
    found.seconds = time.monotonic() - begun
    return found


def _add(found: Outcome, text: str) -> None:
    for match in _STATUS.finditer(text):
        found.coverage = max(found.coverage, int(match[2]))
        found.corpus = max(found.corpus, int(match[4]))
        found.memory = max(found.memory, int(match[6]))
    executed = re.search(r"stat::number_of_executed_units: (\d+)", text)
    last = [int(match[1]) for match in _STATUS.finditer(text)]
    found.executions += int(executed[1]) if executed else max(last, default=0)


def _keep(artifacts: Path, kept: Path, text: str) -> str:
    """Keep a finding's input beside what was said of it; gives the end of that."""
    kept.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in artifacts.iterdir()] or [f"without-input-{len(list(kept.iterdir()))}"]
    for name in names:
        (kept / f"{name}.txt").write_text(text[-20_000:])
    for path in artifacts.iterdir():
        shutil.move(path, kept / path.name)
    said = text[text.find("=== Uncaught Python exception") :] if "=== Uncaught" in text else text
    return said[-6_000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them by default")
    parser.add_argument("--runs", type=int, default=0, help="executions a target")
    parser.add_argument("--seconds", type=float, default=60, help="seconds a target (60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", help="a folder to begin from and to add to")
    parser.add_argument("--findings", default=str(ROOT / ".cache" / "fuzz"), help="where findings are kept")
    parser.add_argument("--blind", action="store_true", help="without the guidance of coverage")
    parser.add_argument("--input", help="run one input, and let its error show")
    parser.add_argument("--list", action="store_true", help="name the targets")
    args = parser.parse_args()
    targets = instrumented()
    if args.list:
        print("\n".join(targets))
        return 0
    if unknown := set(args.targets) - set(targets):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(targets)}")
    if args.input:
        with scratch_folder():
            guarded(targets[args.targets[0]].run)(Path(args.input).read_bytes())
        return 0
    print("| target | executions | edges | corpus | seconds | MiB | findings |\n|---|---:|---:|---:|---:|---:|---:|")
    findings = []
    for name in args.targets or targets:
        outcome = run(name, targets[name], args)
        print(outcome.line(), flush=True)
        findings += [f"{name}: {text}" for text in outcome.findings]
    print(*findings, sep="\n\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
