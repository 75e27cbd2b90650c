"""Every target for a bounded number of executions, with a fixed seed; and every input that once was a finding."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import child_env

from .base import guarded
from .targets import TARGETS

RUNS = 900 if os.environ.get("TALLSTORE_THOROUGH") else 150
"""Executions a target, the seeds among them."""
GUIDED = () if os.environ.get("TALLSTORE_THOROUGH") else ("--blind",)
"""Without coverage's guidance in daily runs: it takes longer to instrument the package than to try so few inputs."""
FOUND = Path(__file__).parent / "found"


def test_every_target_for_a_while(tmp_path: Path) -> None:
    how = [sys.executable, "-m", "fuzz", *GUIDED, "--runs", str(RUNS), "--findings", str(tmp_path)]
    env = child_env({})
    done = subprocess.run(how, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^\| (\S+) \| ([\d,]+) \|", done.stdout, re.MULTILINE)
    assert {name for name, _ in lines} == set(TARGETS)
    assert all(int(count.replace(",", "")) >= RUNS for _, count in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once(name: str) -> None:
    """`found/TARGET/NAME`: right weights, or an error of our own tree; and so it is with the first of the seeds."""
    for path in sorted((FOUND / name).glob("*")):
        guarded(TARGETS[name].run)(path.read_bytes())
    for data in itertools.islice(TARGETS[name].seeds(), 5):
        guarded(TARGETS[name].run)(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_within_the_size_that_is_mutated(name: str) -> None:
    seeds = list(TARGETS[name].seeds())
    assert seeds
    assert max(map(len, seeds)) <= TARGETS[name].max_len
