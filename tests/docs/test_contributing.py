"""The worked examples of CONTRIBUTING.md, each applied to a copy of the package, where its own test must pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MOST_FILES = 5


@dataclass(frozen=True)
class Change:
    """A new file's text, or what is changed of one that is there."""

    path: str
    language: str
    text: str


def changes(section: str) -> list[Change]:
    body = PAGE[PAGE.index(f"\n## Example: {section}\n") :]
    end = re.search(r"^## (?:Example: |A checkpoint)", body[2:], re.MULTILINE)
    body = body[: end.start() + 2] if end else body
    pattern = re.compile(r"^(?:New|In), `([^`]+)`|^In `([^`]+)`", re.MULTILINE)
    heads = list(pattern.finditer(body))
    found = []
    for head in heads:
        block = re.search(r"^```(\w+)\n(.*?)^```$", body[head.end() :], re.MULTILINE | re.DOTALL)
        assert block is not None, head[0]
        found.append(Change(head[1] or head[2], block[1], block[2]))
    return found


def apply(change: Change, root: Path) -> None:
    path = root / change.path
    if change.language != "diff":
        assert not path.exists(), f"{change.path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change.text, encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    for hunk in re.finditer(r"((?:^-.*\n)+)((?:^\+.*\n)+)", change.text, re.MULTILINE):
        old, new = (re.sub(r"^.", "", side, flags=re.MULTILINE) for side in hunk.groups())
        assert text.count(old) == 1, f"{change.path}: {old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def test_the_examples_work_in_a_copy(tmp_path: Path) -> None:
    """All in one: they change no file in the same place, and a process that imports torch takes seconds."""
    made = []
    for section in ("a codec", "a recipe", "a store"):
        own = changes(section)
        assert 3 <= len(own) <= MOST_FILES
        assert sum(change.path.startswith("tests/") for change in own) == 1
        made += own
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tallstore", tmp_path / "tallstore", ignore=ignored)
    for name in ("pyproject.toml", "tests/support.py", "tests/conftest.py", "tests/spec"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    for change in made:
        apply(change, tmp_path)
    tests = [change.path for change in made if change.path.startswith("tests/")]
    code = [change.path for change in made if change.path.endswith(".py")]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'tests'}"}
    for command in (
        ["ruff", "check", "--no-cache", *code],
        ["ruff", "format", "--no-cache", "--check", *code],
        ["pytest", "-p", "no:cacheprovider", *tests],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
