"""What is shown fits where it is shown: pipes, narrow terminals, no colours, few letters, names that mean harm."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
from processes import child_env
from rich.cells import cell_len
from support import tiny_zoo

import tallstore
from tallstore.cli import main

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "zoo"
    base, tasks = tiny_zoo(3)
    named = {"a-task-with-a-longer-name": tasks["a"], "b": tasks["b"], "c": tasks["c"]}
    tallstore.pack(base, named, path, evaluate=lambda state, _: float(len(state)))
    return path


class Terminal(io.TextIOWrapper):
    """Takes what is written to a terminal, or to a pipe."""

    def __init__(self, encoding: str, *, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


class Show(Protocol):
    def __call__(self, *words: str | Path, columns: int = 80, letters: str = "utf-8", terminal: bool = True) -> str: ...


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """Runs a command, and gives what it writes to stdout and stderr."""

    def run(*words: str | Path, columns: int = 80, letters: str = "utf-8", terminal: bool = True) -> str:
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        if terminal:
            monkeypatch.setenv("COLUMNS", str(columns))
        out = Terminal(letters, terminal=terminal)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        with pytest.raises(SystemExit):
            main([str(word) for word in words])
        return out.text()

    return run


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_terminal_gets_bold_headings_and_a_pipe_plain_text(zoo: Path, show: Show) -> None:
    assert f"{ESCAPE}[1m" in show("info", zoo)
    assert ESCAPE not in show("info", zoo, terminal=False)


@pytest.mark.parametrize("words", [("info", "--masks"), ("verify",)])
def test_no_color_is_respected(words: tuple[str, ...], zoo: Path, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]m", show(*words, zoo))


@pytest.mark.parametrize("columns", [40, 60, 120, 140])
def test_a_narrow_terminal_gets_fewer_columns_and_is_told_so(
    columns: int, zoo: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo.parent)
    text = without_colours(show("info", "--masks", "zoo", columns=columns))
    assert max(map(cell_len, text.splitlines())) <= columns
    assert ("a-task-with-a-longer-name" in text) or columns == 40
    assert ("no room for: cosine" in text) == (columns < 140)
    assert re.search(r"0\.\d{3}.*\n", text), "the error stays"


def test_few_letters_are_enough(zoo: Path, show: Show) -> None:
    for words in (("info", "--masks", zoo), ("verify", zoo, "--help"), ("info", "nowhere \u2014 \u4e2d.tall")):
        for terminal in (True, False):
            assert show(*words, letters="ascii", terminal=terminal).isascii()
    said = show("info", "--masks", zoo, letters="ascii", terminal=False)
    assert "error |T-t|/|t|" in said
    assert "####" in said
    assert "\\u" not in said
    assert "nowhere - \\u4e2d.tall" in show("info", "nowhere \u2014 \u4e2d.tall", letters="ascii")


def test_few_letters_in_a_process_of_its_own(zoo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tallstore", "info", zoo],
        env=child_env({"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"error |T-t|/|t|" in done.stdout


def test_json_is_the_same_whatever_the_letters(zoo: Path, show: Show) -> None:
    plain, rich = (show("info", "--json", zoo, letters=letters) for letters in ("ascii", "utf-8"))
    assert json.loads(plain) == json.loads(rich)


@pytest.mark.parametrize("name", ["[red]zoo[/blue]", "\x1b[31mzoo\x07", "zoo\u202e"])
def test_names_are_no_markup_and_no_orders_to_the_terminal(name: str, zoo: Path, tmp_path: Path, show: Show) -> None:
    shutil.copytree(zoo, tmp_path / name)
    for words in (("info", "--masks"), ("verify",)):
        out = show(*words, tmp_path / name, terminal=False)
        assert not set(out) & {ESCAPE, "\x07", "\u202e"}
        assert name.replace("\x1b", "\ufffd").replace("\x07", "\ufffd").replace("\u202e", "\ufffd") in out.replace(
            "\n", ""
        )


def test_what_anybody_wrote_as_measured_is_looked_at(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from tallstore.format.manifest import MANIFEST, Manifest

    shutil.copytree(zoo, tmp_path / "zoo")
    path = tmp_path / "zoo" / MANIFEST
    manifest = Manifest.from_bytes(path.read_bytes())
    for wrong in ("text", [1], {"a": 1}, True, None, 1e308, -1):
        keys = ("relative_error", "cosine", "density", "lambda", "bytes", "checkpoint_bytes", "parameters", "scores")
        tasks = {name: replace(task, measured=dict.fromkeys(keys, wrong)) for name, task in manifest.tasks.items()}
        path.write_bytes(replace(manifest, tasks=tasks).to_bytes())
        with pytest.raises(SystemExit) as stop:
            main(["info", str(tmp_path / "zoo")])
        assert stop.value.code in {0, None}
        assert "a-task-with-a-longer-name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tallstore extract {zoo} ", {"a-task-with-a-longer-name", "b", "c"}),
        ("tallstore extract {zoo} a", {"a-task-with-a-longer-name"}),
        ("tallstore extract nowhere.tall ", set()),
        ("tallstore rep", {"report"}),
    ],
)
def test_the_shell_is_offered_tasks(typed: str, offered: set[str], zoo: Path) -> None:
    words = typed.format(zoo=zoo)
    done = subprocess.run(
        [sys.executable, "-m", "tallstore"],
        env=child_env(
            {
                "_TALLSTORE_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split(" ")) - 1),
            }
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == offered
    assert done.stderr == ""


def test_what_is_shown_of_progress_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of tensors go by: no orders to the terminal, no markup, no turned lines."""
    from tallstore.cli.output import progress

    for name in ("TERM", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    out = Terminal("utf-8", terminal=True)
    monkeypatch.setattr(sys, "stderr", out)
    with progress("decoding", quiet=False) as report:
        assert report is not None
        report("w\x1b]0;owned\x07.[red]x[/blue].\u202ey", 1, 2)
    shown = out.text()
    assert "[red]x[/blue]" in shown
    assert not {"\x07", "\u202e"} & set(shown)
    assert "\x1b]" not in shown
