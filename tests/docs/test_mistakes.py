"""The page of mistakes: each is made here, and what it says is what the page promises."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT, noise, tiny_base

import tallstore
from tallstore.cli import main
from tallstore.format.manifest import MANIFEST, Manifest

PAGE = ROOT / "docs" / "pages" / "mistakes.md"


@dataclass(frozen=True)
class Mistake:
    """What is typed, what is done before, and the exit code."""

    words: str
    before: Callable[[], object] = lambda: None
    code: int = 1


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("boom",))


def stranger() -> None:
    Path("strange").mkdir()
    Path("strange/pytorch_model.bin").write_bytes(pickle.dumps({"w": Bomb()}))


def newer() -> None:
    tallstore.pack("base", {"mr": "runs/mr"}, "newer")
    path = Path("newer") / MANIFEST
    path.write_bytes(replace(Manifest.from_bytes(path.read_bytes()), version="2.0").to_bytes())


def cut_off() -> None:
    data = Path("zoo.tall").read_bytes()
    Path("half.tall").write_bytes(data[: len(data) // 2])


def flipped() -> None:
    tallstore.pack("base", {"mr": "runs/mr"}, "flipped")
    path = Path("flipped/tasks/mr/mask.safetensors")
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 2] ^= 1
    path.write_bytes(data)


def falling() -> None:
    Path("falling.py").write_text(
        "seen = []\ndef score(state, task):\n    seen.append(task)\n    return 1 / len(seen)\n"
    )


def adapter() -> None:
    Path("adapter").mkdir()
    save_file({"layer.lora_A.weight": torch.ones(4, 16)}, "adapter/adapter_model.safetensors")
    Path("adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')


def quantized() -> None:
    """Two weights a byte, as bitsandbytes saves them."""
    Path("packed").mkdir()
    state = load_file("base/model.safetensors")
    halves = {n: torch.zeros(t.numel() // 2, 1, dtype=torch.uint8) for n, t in state.items() if t.dim() > 1}
    save_file(state | halves, "packed/model.safetensors")


def unrelated() -> None:
    Path("other").mkdir()
    state = {name: noise(*tensor.shape, seed=99) for name, tensor in load_file("base/model.safetensors").items()}
    save_file(state, "other/model.safetensors")


MISTAKES = {
    "a path with a slip in it": Mistake("pack base mr=runs/mrr -o new.tall"),
    "a folder that the system does not read": Mistake(f"pack base {'x' * 300} -o new.tall"),
    "a folder of tasks in place of the base": Mistake("pack runs base -o new.tall"),
    "base and task swapped": Mistake("pack runs/mr base -o new.tall", code=0),
    "the base of another family": Mistake("pack other runs -o new.tall", unrelated),
    "a task's name misspelt": Mistake("extract zoo.tall tred -o x"),
    "the archive is there already": Mistake("pack base runs -o zoo.tall"),
    "no `-o`": Mistake("pack base runs"),
    "an output that ends in `.zip`": Mistake("pack base runs -o new.zip"),
    "nothing behind `NAME=`": Mistake("pack base mr= -o new.tall"),
    "an adapter (LoRA) of another base": Mistake("pack base adapter -o new.tall", adapter),
    "a quantized checkpoint, and its base in floats": Mistake("pack base packed -o new.tall", quantized, code=0),
    "a checkpoint in place of an archive": Mistake("info runs/mr"),
    "a checkpoint of pickles that runs code": Mistake("pack base strange -o new.tall", stranger),
    "an extra is missing": Mistake("report zoo.tall", lambda: sys.modules.__setitem__("matplotlib", None)),  # type: ignore[arg-type]
    "an archive of a newer major version": Mistake("info newer", newer),
    "a download that was cut off": Mistake("info half.tall", cut_off),
    "a flipped bit": Mistake("verify flipped", flipped),
    "a promise that cannot be kept": Mistake(
        "pack base runs -o new.tall --evaluate falling:score --min-retention 0.9", falling
    ),
    "a task is added that is there": Mistake("add zoo.tall mr=runs/mr"),
    "a merge of heads of different shapes": Mistake(
        "add heads.tall mix --merge 0.5*mr+0.5*other",
        lambda: tallstore.pack(
            "base",
            {"mr": "runs/mr", "other": load_file("base/model.safetensors") | {"head.weight": torch.ones(2, 16)}},
            "heads.tall",
        ),
    ),
    "a task is removed that others are made of": Mistake(
        "remove zoo.tall mr", lambda: tallstore.add_merge("zoo.tall", "mix", "0.5*mr + 0.5*trec")
    ),
    "the last task is removed": Mistake("remove zoo.tall mr trec"),
    "a refit without one of the originals": Mistake("add zoo.tall mr=runs/mr --refit"),
    "the base is only referenced": Mistake(
        "extract named.tall mr -o x",
        lambda: tallstore.pack("base", {"mr": "runs/mr"}, "named.tall", base_storage="reference"),
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tiny_base()
    Path(tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    for seed, task in enumerate(("mr", "trec")):
        (tmp_path / "runs" / task).mkdir(parents=True)
        state = {name: tensor + noise(*tensor.shape, size=0.01, seed=seed) for name, tensor in base.items()}
        save_file(state | {"head.weight": torch.ones(3, 16)}, tmp_path / "runs" / task / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "matplotlib", __import__("matplotlib"))
    monkeypatch.delitem(sys.modules, "falling", raising=False)
    tallstore.pack("base", {"mr": "runs/mr", "trec": "runs/trec"}, "zoo.tall")
    return tmp_path


def promised() -> dict[str, str]:
    """By mistake, what the page says one is told; the words in backticks are a part of the message."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {what: told for what, told in rows if not set(what) <= {"-"}}


def test_the_page_lists_what_is_made_here() -> None:
    assert list(promised())[1:] == list(MISTAKES)


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_met_with_the_words_that_the_page_promises(
    what: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mistake = MISTAKES[what]
    mistake.before()
    before = sorted(path.name for path in here.iterdir())
    with pytest.raises(SystemExit) as stop:
        main(mistake.words.split())
    out, err = capfd.readouterr()
    assert (stop.value.code or 0) == mistake.code, err
    assert err.count("\n") == 1, err
    assert "boom" not in out
    quoted = re.findall(r"`([^`]+)`", promised().get(what, ""))
    print(what, "->", err)
    assert quoted
    assert [words for words in quoted if words not in err] == [], err
    if mistake.code:
        after = {path.name for path in here.iterdir()} - {"__pycache__"}
        assert sorted(after) == before
