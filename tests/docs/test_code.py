"""Every block of code in README and docs is run: shell lines as the command line runs them, Python as it stands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

import tallstore
from tallstore.cli import main

pytest.importorskip("transformers")

PAGES = ROOT / "docs" / "pages"
NOT_RUN = {
    "README.md": {
        "On a fresh machine": "makes an environment; `.ci/run` does the same",
        "Adapters": "needs adapters that PEFT made; tests/adapters does the same",
        "Serve many tasks": "needs transformers' models and vLLM; tests/serving and tests/engines do the same",
        "On the Hub": "needs the Hub; tests/hub does the same against one on this machine",
    },
    "docs/pages/index.md": {"See it work": "installs; the demo has tests of its own"},
    "docs/pages/engines.md": {
        "transformers' own loader": "needs an archive of transformers' models; tests/engines does the same",
        **dict.fromkeys(("vLLM", "Exchange the task of a running engine"), "needs vLLM; .ci/vllm does the same"),
    },
    "docs/pages/tutorials/large.md": {"A cluster": "needs a scheduler; tests/encoder/test_engine.py has one"},
    "docs/pages/examples.md": dict.fromkeys(
        ("A service that answers for many tasks in one batch", "A callback that adds a finished fine-tune to a zoo"),
        "files, which test_examples.py runs",
    ),
}
"""Sections whose code is not run here, and why."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, the heading it stands under."""

    language: str
    code: str
    section: str


def blocks(page: Path) -> list[Block]:
    found, section = [], ""
    pattern = re.compile(r"^(?:#+ ([^\n]+)|```(\w*)\n(.*?)^```)$", re.MULTILINE | re.DOTALL)
    for match in pattern.finditer(page.read_text(encoding="utf-8")):
        if match[1] is not None:
            section = match[1]
        else:
            found.append(Block(match[2], match[3], section))
    return found


def to_run(page: Path) -> list[Block]:
    skipped = NOT_RUN.get(page.relative_to(ROOT).as_posix(), {})
    for section in skipped:
        assert f"# {section}\n" in page.read_text(encoding="utf-8"), "a section that is no more"
    return [block for block in blocks(page) if block.section not in skipped]


def run_shell(code: str) -> None:
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "tallstore", line
        out, err = io.StringIO(), io.StringIO()
        with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(words[1:])
        assert stop.value.code in {0, None}, f"{line}\n{err.getvalue()}"


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def run(page: Path, known: dict[str, Any], *, fresh: bool = False) -> dict[str, Any]:
    """Run a page's blocks in order, in the folder where we are. `fresh`: each command finds no output of an earlier."""
    before = {path.name for path in Path().iterdir()}
    for block in to_run(page):
        assert block.language in {"sh", "python"}, f"{page}: {block.language!r} is neither run nor exempt"
        if block.language == "python":
            for left in {path.name for path in Path().iterdir()} - before if fresh else ():
                remove(Path(left))
            exec(compile(block.code, f"{page}: {block.section}", "exec"), known)
            continue
        for line in block.code.splitlines():
            words = shlex.split(line, comments=True)
            if fresh and "-o" in words:
                remove(Path(words[words.index("-o") + 1]))
            run_shell(line)
    return known


@pytest.fixture(autouse=True, scope="module")
def _own_scores() -> Iterator[None]:
    """Evaluators are modules called `scores`, here as in other tests: none may find another's."""
    before = sys.modules.pop("scores", None)
    yield
    sys.modules.pop("scores", None)
    if before is not None:
        sys.modules["scores"] = before


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first tutorial was followed; the others begin with what it leaves."""
    home = tmp_path_factory.mktemp("tutorial")
    with contextlib.chdir(home):
        run(PAGES / "tutorials" / "pack.md", {"__name__": "tutorial"})
    return home


def test_the_first_tutorial(packed: Path) -> None:
    made = {path.name for path in packed.iterdir()}
    assert {"zoo.tall", "report.html", "topic", "close.tall", "scored.tall", "scored.html", "mood-exact"} <= made
    assert "score kept" in (packed / "scored.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [
        *("tutorials/grow.md", "tutorials/serve.md", "tutorials/merge.md", "tutorials/large.md"),
        *("index.md", "examples.md", "serving.md"),
    ],
)
def test_the_other_pages(
    page: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "runs"):
        shutil.copytree(packed / name, tmp_path / name)
    if page != "index.md":
        shutil.copy(packed / "zoo.tall", tmp_path)
    monkeypatch.chdir(tmp_path)
    known = run(PAGES / page, {"__name__": "tutorial"})
    if page == "tutorials/serve.md":
        assert "topic torch.Size([1, 5])" in capsys.readouterr().out
        assert known["zoo"].tasks == ("intent", "mood", "topic")
    if page == "serving.md":
        assert known["logits"].shape == (3, 5)
        known["zoo"].close()
    if page == "tutorials/grow.md":
        assert known["report"].tasks == ("intent", "mood", "topic", "tone")
        assert capsys.readouterr().out.endswith("('intent', 'topic', 'tone')\n")


def test_the_readme(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `minilm/` and `runs/` are, as it assumes, with an evaluator, a list of tasks, and a model to load into."""
    from transformers import AutoModelForSequenceClassification

    shutil.copytree(packed / "base", tmp_path / "minilm")
    for task, name in {"topic": "trec", "mood": "mr"}.items():
        shutil.copytree(packed / "runs" / task, tmp_path / "runs" / name)
    shutil.copytree(packed / "runs" / "intent", tmp_path / "new" / "cr")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("scores.py").write_text("def accuracy(state, task):\n    return 0.9\n")
    Path("zoo.yaml").write_text("base: minilm\ntasks: {trec: runs/trec, mr: runs/mr}\noutput: from-yaml.tall\n")
    sys.modules.pop("scores", None)
    with tallstore.open(packed / "zoo.tall") as zoo:
        name = next(name for name, facts in zoo.tensors("topic").items() if facts.kind == "signed")
    given = {"model": AutoModelForSequenceClassification.from_pretrained("runs/trec"), "name": name}
    known = run(ROOT / "README.md", given, fresh=True)
    assert known["zoo"].tasks == ("trec", "mr")


def test_every_page_is_run() -> None:
    with_code = {page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md") if blocks(page)}
    assert with_code == {
        "index.md",
        "examples.md",
        "engines.md",
        "serving.md",
        "tutorials/pack.md",
        "tutorials/grow.md",
        "tutorials/serve.md",
        "tutorials/merge.md",
        "tutorials/large.md",
    }
