"""Processes that tests start: children, a process that forks for each job, what workers share, a quick compiler."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from tallstore.kernels.native import build


def child(
    code: str, *args: str, env: Mapping[str, str] | None = None, timeout: float = 180
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        child_args(code, *args), env=child_env(env), capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass(frozen=True)
class Shared:
    """A folder of all workers, and what is made there by whichever worker needs it first."""

    folder: Path

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """`folder/name`, made if it is not there yet; others wait meanwhile."""
        path = self.folder / name
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                partial = self.folder / f"{name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                partial.rename(path)
        return path


@dataclass
class Forks:
    """A process that has imported everything and forks for each job: processes of their own, without seconds of imports.

    A job is Python code. It runs with `args` (what was given, through JSON) and its own environment; it can be killed,
    may drop its rights or limit itself.
    """

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0

    def start(
        self, code: str, *args: Any, env: Mapping[str, str] | None = None, stop: tuple[float, int] | None = None
    ) -> None:
        """Start a job. `stop`: after so many seconds it is sent that signal."""
        self.count += 1
        out = str(self.folder / f"{self.count}.txt")
        self._say(json.dumps({"code": code, "args": args, "env": env or {}, "stop": stop, "out": out}))

    def wait(self) -> tuple[int, str]:
        """The end of the job: its exit code (−N for signal N), and all that it printed."""
        code = int(self._hear())
        return code, (self.folder / f"{self.count}.txt").read_text()

    def run(self, code: str, *args: Any, **how: Any) -> tuple[int, str]:
        self.start(code, *args, **how)
        return self.wait()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def stopped(forks: Forks, seconds: float, number: int, *job: str) -> int:
    """Start a job, send it a signal after so long, and wait for its end."""
    code, text = forks.run(*job, stop=(seconds, number))
    assert code in {0, -number, 130}, text
    return code


FORKS = """
import json, os, signal, sys, time, traceback
import torch
torch.set_num_threads(1)
import tallstore, support
for name in tallstore.__all__:
    getattr(tallstore, name)  # loaded when first named: here, once, and not in every job
import tallstore.cli.app
tallstore.cli.app.command(None)
# What the Hub's client needs; itself it reads its environment when it is imported.
import anyio._backends._asyncio, filelock, fsspec.implementations.local, jinja2, loopback, rich.progress, tqdm.auto, typer, yaml
try:
    import httpx2
except ImportError:
    import httpx
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

def serve(jobs, hub):
    "Forks for each job; those of another Hub are passed on to a process that has its client, while they come in a row."
    other, pid = None, 0
    for line in jobs:
        job = json.loads(line)
        if "HF_ENDPOINT" not in job["env"] or job["env"] == hub:
            run(job)
            continue
        if other is None or job["env"] != told:
            if other is not None:
                other.close()
                os.waitpid(pid, 0)
            told = job["env"]
            end, begin = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(begin)
                os.environ.update(told)
                import huggingface_hub.hf_api
                with os.fdopen(end) as passed_on:
                    serve(passed_on, told)
                os._exit(0)
            os.close(end)
            other = os.fdopen(begin, "w")
        other.write(line)
        other.flush()
    if other is not None:
        other.close()
        os.waitpid(pid, 0)

def run(job):
    out = os.open(job["out"], os.O_WRONLY | os.O_CREAT, 0o666)
    pid = os.fork()
    if not pid:
        code = 0
        try:
            os.dup2(out, 1), os.dup2(out, 2)
            os.environ.update(job["env"])
            print("started", flush=True)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            exec(job["code"], {"args": job["args"]})
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = 130
        except tallstore.TallstoreError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            code = 1
        except BaseException:
            traceback.print_exc()
            code = 99
        os._exit(code)
    os.close(out)
    if job["stop"]:
        time.sleep(job["stop"][0])
        os.kill(pid, job["stop"][1])  # it may have ended, but nobody has waited for it: the number is still its own
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

serve(sys.stdin, None)
"""


COMPILER = """#!/bin/sh
# The compiler without its optimizer, and with a memory of what it made of the same sources and flags.
out="" ; key=""
for word in "$@"; do
  [ "$last" = -o ] && out=$word
  last=$word
  case $word in -O2|-O3) word=-O0 ;; esac
  case $word in /*) ;; *) key="$key $word" ;; esac
  set -- "$@" "$word"; shift
done
case $out in *.o) ;; *) exec {compiler} "$@" ;; esac
name="{cache}/$(basename "$out").$( {{ echo "$key"; cat "{sources}"/*; }} | cksum | tr ' ' -)"
[ -f "$name" ] || {{ {compiler} "$@" && cp "$out" "$name.$$" && mv "$name.$$" "$name"; }} || exit 1
cp "$name" "$out"
"""


REMEMBERED = """#!/bin/sh
# A compiler that has met these sources: the library that the checkout was built with, of empty objects.
for word in "$@"; do
  [ "$last" = -o ] && out=$word
  last=$word
done
case $out in *.o) : > "$out" ;; *) cp {library} "$out" ;; esac
"""


def quick_compiler(folder: Path) -> str:
    """A compiler that builds the native library in no time where this checkout has it, of the very sources that are here.

    Where it has not, in few seconds, and a second time in none: that library is a slow one.
    """
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("no C compiler here")
    made = build.library_path()
    if build.sum_path(made).exists() and build.sum_path(made).read_text().split() == [
        f"{build.stamp():016x}",
        build.digest(made),
    ]:
        script = REMEMBERED.format(library=shlex.quote(str(made)))
    else:
        script = COMPILER.format(compiler=shlex.join(compiler), cache=folder, sources=build.SOURCES)
    path, own = folder / "cc", folder / f"cc-{os.getpid()}"
    own.write_text(script)
    own.chmod(0o755)
    own.replace(path)  # several workers may make it at once
    return str(path)


def child_args(code: str, *args: str) -> Sequence[str]:
    return [sys.executable, "-W", "error", "-c", code, *args]


def child_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **(env or {})}
