"""Every archive that must be refused, in a process that is bounded: what it raises, and what memory that takes.

Each is opened, decoded or verified in a process forked for it, which is ended if it uses more processor seconds than
any honest archive of that size could, and which measures its own memory.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from processes import child_args, child_env

from spec.vectors import INVALID

CPU_SECONDS = 20
MEMORY = 48 << 20
"""Bytes beyond those of a process that has everything loaded."""


@dataclass(frozen=True)
class Outcome:
    """What became of one vector, or of one of several spoiled things in one."""

    vector: str
    key: str
    error: str
    """Class; empty if nothing was raised, or what the process ended with."""
    text: str
    memory: int
    """Most resident bytes beyond those at the start."""
    fits: bool
    """Whether it is the error that the vector says, with its words, in one line."""


WORKER = """
import json, os, resource, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import tallstore
from tallstore import errors
from spec.vectors import invalid, valid

# Everything is loaded and compiled before memory is measured.
for name in ("adaptive-gaps", "masks-signed", "vectors", "planes", "zstd-frames"):
    with tallstore.open(valid(name).archive, threads=1) as zoo:
        for task in zoo.tasks:
            zoo.state_dict(task)

def attempt(vector, step, key):
    expected = vector.expected if key is None else vector.expected[step][key]
    with tallstore.open(vector.archive, base=vector.base, threads=1) as zoo:
        if step == "tasks":
            zoo.state_dict(key)
        elif step == "tensors":
            zoo.state_dict("a", names=[key])
        elif step == "verify":
            zoo.verify()
        elif step == "decode":
            for task in zoo.tasks:
                zoo.state_dict(task)

def judged(vector, step, key):
    expected = vector.expected if key is None else vector.expected[step][key]
    try:
        attempt(vector, step, key)
        name, text = "", ""
    except BaseException as error:
        name, text = type(error).__name__, str(error)
    fits = name == expected["error"] and expected["mentions"] in text and chr(10) not in text
    return [key or "", name, text[:300], fits]

def run(name):
    vector = invalid(name)
    keys = [(step, key) for step in ("tasks", "tensors") for key in vector.expected.get(step, ())]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = [judged(vector, step, key) for step, key in keys or [(vector.expected["at"], None)]]
    return found, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

for line in sys.stdin:
    seconds, name = json.loads(line)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with os.fdopen(writing, "w") as out:
            json.dump(run(name), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as got:
        text = got.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(text if text and not code else json.dumps([[["", f"ended with {code}", "", False]], 0]), flush=True)
"""


@contextmanager
def prison(kernels: str = "reference") -> Iterator[Any]:
    """A function: name of a vector → its outcomes. `kernels`: of TALLSTORE_KERNELS."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        child_args(WORKER), env=child_env({"TALLSTORE_KERNELS": kernels}), text=True, **pipes
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def outcomes(name: str) -> list[Outcome]:
            stdin.write(json.dumps([CPU_SECONDS, name]) + "\n")
            stdin.flush()
            found, memory = json.loads(stdout.readline())
            return [Outcome(name, key, error, text, memory, fits) for key, error, text, fits in found]

        yield outcomes
        stdin.close()


def run_attacks() -> bool:
    """All of them; whether each was refused as it must be. Prints counts by the kind of error, and the most memory."""
    with prison("") as outcomes:
        found = [outcome for name in INVALID for outcome in outcomes(name)]
    wrong = [o for o in found if not o.fits or o.memory > MEMORY]
    most = max(found, key=lambda o: o.memory)
    print(f"{len(INVALID)} archives, {len(found)} attacks, {len(found) - len(wrong)} refused as they must be")
    for error in sorted({o.error for o in found}):
        print(f"  {error or 'nothing'}: {sum(o.error == error for o in found)}")
    print(f"most memory beyond what is loaded: {most.memory / 2**20:.1f} MiB ({most.vector})")
    print("\n".join(map(str, wrong[:20])))
    return not wrong
