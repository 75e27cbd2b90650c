"""The command line as a person and as a script use it: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tallstore
from tallstore import codecs
from tallstore.cli import encoding, main
from tallstore.recipes import RECIPES

VERBS = (
    "pack", "info", "extract", "add", "remove", "compact", "push", "pull", "verify", "merge", "report", "demo",
)  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), out, err


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """`base/`, and `runs/` with two tasks that have a prefix and a head."""
    generator = torch.Generator().manual_seed(0)
    base = {
        "layer.weight": torch.randn(64, 48, generator=generator),
        "layer.bias": torch.randn(300, generator=generator),
    }
    _write(tmp_path / "base", base)
    for task in ("mr", "trec"):
        tuned = {f"m.{n}": t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        _write(tmp_path / "runs" / task, tuned | {"head.weight": torch.randn(3, 48, generator=generator)})
    return tmp_path


def _write(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": folder.name}))


@pytest.fixture
def zoo(models: Path) -> Path:
    tasks = {task: models / "runs" / task for task in ("mr", "trec")}
    tallstore.pack(models / "base", tasks, models / "zoo.tall")
    return models / "zoo.tall"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert f"tallstore {verb}" in out


def test_no_words_show_the_help_and_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert code == 2
    assert all(verb in out + err for verb in VERBS)
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith(f"tallstore {tallstore.__version__}, kernels: ")
    assert out.count("\n") == 1


def test_the_help_names_what_the_tables_hold() -> None:
    assert encoding.RECIPES.split(", ") == list(RECIPES)
    assert set(encoding.VECTORS.split(", ")) == set(codecs.SHARED)
    assert encoding.MASKS.split(", ") == list(codecs.ASKED)


@pytest.mark.parametrize(
    "words",
    [
        ("base", "mr=runs/mr", "trec=runs/trec"),
        ("base", "runs"),
        ("base", "runs/mr", "runs/trec"),
        ("base", "runs/mr", "trec=runs/trec"),
    ],
)
def test_tasks_by_name_by_folder_and_by_folder_of_folders(
    words: tuple[str, ...], models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(models)
    code, out, err = run(capsys, "pack", *words, "-o", "zoo.tall")
    assert (code, err) == (0, "")
    assert "mr" in out
    assert "trec" in out
    with tallstore.open("zoo.tall") as opened:
        assert opened.tasks == ("mr", "trec")


@pytest.mark.parametrize("kind", ["yaml", "toml"])
def test_a_zoo_file_with_options_and_words_that_win_over_it(
    kind: str, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {
        "yaml": "base: base\ntasks:\n  mr: runs/mr\n  trec: runs/trec\noutput: packed.tall\noptions:\n  recipe: tall\n  lam: 0.4\n",
        "toml": 'base = "base"\noutput = "packed.tall"\n[tasks]\nmr = "runs/mr"\ntrec = "runs/trec"\n[options]\nrecipe = "tall"\nlam = 0.4\n',
    }
    path = models / f"zoo.{kind}"
    path.write_text(texts[kind])
    code, out, _ = run(capsys, "pack", path, "--json", "--lambda", "0.3")
    assert code == 0
    assert json.loads(out)["path"] == str(models / "packed.tall")
    with tallstore.open(models / "packed.tall") as opened:
        assert opened.info()["options"]["recipe"] == "tall"
        assert opened.info()["tasks"]["mr"]["lambda"] == 0.3


def test_info_prints_a_table_or_json(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", zoo)
    assert code == 0
    assert re.search(r"mr .* %", out)
    assert "bits per parameter and task" in out
    code, out, _ = run(capsys, "info", zoo, "--json")
    facts = json.loads(out)
    assert {"version", "tasks", "bytes"} <= set(facts)
    assert {"bytes", "relative_error", "density"} <= set(facts["tasks"]["mr"])
    assert {"base", "vector", "masks", "private", "files", "total"} <= set(facts["bytes"])
    assert facts["bytes"]["total"] <= zoo.stat().st_size < facts["bytes"]["total"] + 4096


def test_extract_writes_a_folder_and_all_of_them(zoo: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "extract", zoo, "mr", "-o", models / "mr")
    assert (code, out) == (0, f"mr: {models / 'mr'}\n")
    assert json.loads((models / "mr" / "config.json").read_text()) == {"name": "mr"}
    with tallstore.open(zoo) as opened:
        state = opened.state_dict("mr")
    found = load_file(models / "mr" / "model.safetensors")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    code, _, _ = run(capsys, "extract", zoo, "--all", "-o", models / "all", "-q")
    assert code == 0
    assert sorted(p.name for p in (models / "all").iterdir()) == ["mr", "trec"]


def test_exact_gives_the_original_back(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = models / "exact.tall"
    assert run(capsys, "pack", models / "base", models / "runs", "-o", out, "--exact", "mr", "-q")[0] == 0
    assert run(capsys, "extract", out, "mr", "--exact", "-o", models / "mr")[0] == 0
    found, wanted = (load_file(folder / "model.safetensors") for folder in (models / "mr", models / "runs" / "mr"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    code, _, err = run(capsys, "extract", out, "trec", "--exact", "-o", models / "trec")
    assert code == 1
    assert "not packed with exact" in err


def test_report_writes_a_page_and_plots(zoo: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, plots = models / "look" / "report.html", models / "plots"
    code, out, err = run(capsys, "report", zoo, "-o", page, "--plots", plots)
    assert (code, out, err) == (0, f"report: {page}\nplots: {plots}\n", "")
    assert "<title>zoo.tall · tallstore report</title>" in page.read_text(encoding="utf-8")
    assert run(capsys, "report", zoo, "-o", page, "--no-masks", "--overwrite", "-q") == (0, "", "")
    assert 'id="masks"' in page.read_text(encoding="utf-8")


def test_verify_says_what_it_checked(zoo: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", zoo, "--against", f"mr={models / 'runs' / 'mr'}")
    assert code == 0
    assert "2 tasks" in out
    code, out, _ = run(capsys, "verify", zoo, "--json", "--against", f"mr={models / 'runs' / 'mr'}")
    against = json.loads(out)["against"]["mr"]
    with tallstore.open(zoo) as opened:
        recorded = opened.info()["tasks"]["mr"]["relative_error"]
    assert against["relative_error"] == pytest.approx(recorded, rel=1e-3)
    assert against["whole_tensors_exact"]
    assert run(capsys, "verify", zoo, "-q")[1] == ""
    assert run(capsys, "verify", zoo, "-q", "--against", f"mr={models / 'runs' / 'mr'}") == (0, "", "")


@pytest.mark.parametrize("how", [(), ("-q",), ("--json",)], ids=str)
def test_a_task_that_is_not_its_checkpoint_ends_verifying_with_1(
    how: tuple[str, ...], zoo: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "verify", zoo, *how, "--against", f"mr={models / 'runs' / 'trec'}")
    assert code == 1
    assert f"mr: {models / 'runs' / 'trec'} is not what was packed" in err.replace("\n", "")
    assert bool(out) == (how != ("-q",))
    assert how != ("--json",) or "mr" in json.loads(out)["against"]


WRONG = {
    "no task": (("pack", "base", "-o", "z.tall"), "add NAME=FOLDER"),
    "no output": (("pack", "base", "runs"), "add -o zoo.tall"),
    "missing base": (("pack", "nowhere", "runs", "-o", "z.tall"), "no such folder or file"),
    "missing task": (("pack", "base", "mr=nowhere", "-o", "z.tall"), "no such folder or file"),
    "a folder of nothing": (("pack", "base", "empty", "-o", "z.tall"), "neither a fine-tuned model nor a folder"),
    "twice": (("pack", "base", "mr=runs/mr", "mr=runs/trec", "-o", "z.tall"), "is given twice"),
    "bad name": (("pack", "base", "m*r=runs/mr", "-o", "z.tall"), "use letters, digits"),
    "path as name": (("pack", "base", "../mr=runs/mr", "-o", "z.tall"), "use letters, digits"),
    "unknown recipe": (("pack", "base", "runs", "-o", "z.tall", "--recipe", "magic"), "there are solo, fit"),
    "lambda without one": (
        ("pack", "base", "runs", "-o", "z.tall", "--lambda", "0.4"),
        "takes no lam (--lambda); it takes bits",
    ),
    "retention without evaluator": (("pack", "base", "runs", "-o", "z.tall", "--min-retention", "0.9"), "--evaluate"),
    "no evaluator there": (("pack", "base", "runs", "-o", "z.tall", "--evaluate", "nomodule:f"), "cannot import"),
    "no device": (("pack", "base", "runs", "-o", "z.tall", "--device", "warp:9"), "use 'cpu' or 'auto'"),
    "unknown exact": (("pack", "base", "runs", "-o", "z.tall", "--exact", "nli"), "there are mr, trec"),
    "not an archive": (("info", "base"), "not an archive"),
    "no archive": (("info", "nowhere.tall"), "nothing there"),
    "no such task": (("extract", "zoo.tall", "nli", "-o", "x"), "there are mr, trec"),
    "which task": (("extract", "zoo.tall", "-o", "x"), "which task?"),
    "target there": (("extract", "zoo.tall", "mr", "-o", "runs/mr"), "--overwrite"),
    "archive there": (("pack", "base", "runs", "-o", "zoo.tall"), "--overwrite"),
    "report there": (("report", "zoo.tall", "-o", "zoo.tall"), "--overwrite"),
    "report over something else": (("report", "zoo.tall", "-o", "zoo.tall", "--overwrite"), "is not a report"),
    "report of nothing": (("report", "nowhere.tall"), "nothing there"),
    "against what": (("verify", "zoo.tall", "--against", "mr"), "TASK=CHECKPOINT"),
    "task twice in a zoo file": (("pack", "twice.yaml", "-o", "z.tall"), "'mr' is there twice"),
    "bad zoo file": (("pack", "bad.yaml", "-o", "z.tall"), "needs `base` and `tasks`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_with_a_remedy(
    case: str, zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(zoo.parent)
    Path("empty").mkdir()
    Path("bad.yaml").write_text("tasks: {mr: runs/mr}")
    Path("twice.yaml").write_text("base: base\ntasks:\n  mr: runs/mr\n  mr: runs/trec\n")
    before = zoo.read_bytes()
    words, remedy = WRONG[case]
    code, out, err = run(capsys, *words)
    assert code == 1
    assert out == ""
    assert err.startswith("tallstore: error: ")
    assert err.count("\n") == 1
    assert remedy in err
    assert not Path("z.tall").exists()
    assert zoo.read_bytes() == before
    assert not list(Path().glob(".*partial"))


@pytest.mark.parametrize("words", [("pack",), ("info",), ("info", "zoo.tall", "--colour"), ("unpack", "zoo.tall")])
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *words)[0] == 2


def test_overwrite_replaces(zoo: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(capsys, "pack", models / "base", f"one={models / 'runs' / 'mr'}", "-o", zoo, "--overwrite", "-q")
    assert code == 0
    with tallstore.open(zoo) as opened:
        assert opened.tasks == ("one",)


def test_info_shows_lambda_and_scores_where_there_are_any(
    zoo: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "λ" not in run(capsys, "info", zoo)[1]
    (models / "scores.py").write_text("def number_of_tensors(state, task):\n    return len(state)\n")
    monkeypatch.chdir(models)
    words = (
        "pack",
        "base",
        "runs",
        "-o",
        "scored.tall",
        "--recipe",
        "tall",
        "--evaluate",
        "scores:number_of_tensors",
        "-q",
    )
    assert run(capsys, *words) == (0, "", "")
    out = run(capsys, "info", "scored.tall")[1]
    assert re.search(r"λ\s+score\s+score kept", out)
    assert re.search(r"mr .* 0\.2\s+3\.0000\s+3\.0000", out)


def test_info_tells_how_tasks_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tallstore.archive.manifests import notes_of
    from tallstore.format.adapter import Adapter
    from tallstore.format.manifest import Task

    told = {
        "without_loss": {"form": "MXFP4", "tensors": 2, "bytes": 4096, "coded_bytes": 1024},
        "cheaper_without_loss": {"tensors": 1, "of": 3},
    }
    task = Task(group="g", parts={"mask": ()}, measured=told, adapter=Adapter(type="LORA", base_files=""))
    assert list(notes_of("a", task)) == [
        "a: an adapter (LORA), kept bit for bit; extract --merged (export(…, merged=True)) makes the model of it and the base",
        "a: 2 tensors of a quantized checkpoint (MXFP4), packed without loss: 4 KiB → 1 KiB",
        "a: 1 of 3 tensors bit for bit, since that is cheaper",
    ]
    odd = {"without_loss": {"tensors": "x"}, "cheaper_without_loss": [1]}
    assert list(notes_of("a", Task(group="g", parts={"mask": ()}, measured=odd))) == []
    base = {"w": torch.ones(300, 300, dtype=torch.int8), "v": torch.linspace(0, 1, 5000)}
    task_state = {"w": base["w"] + 1, "v": base["v"] * 1.01}
    tallstore.pack(base, {"t": task_state}, tmp_path / "z.tall")
    _, out, _ = run(capsys, "info", tmp_path / "z.tall", "--json")
    (note, *_) = json.loads(out)["notes"]
    assert note.startswith("t: 1 tensor of types that no mask fits")
    _, out, _ = run(capsys, "info", tmp_path / "z.tall")
    assert note in " ".join(out.split())


def test_a_command_that_met_triton_tells_of_no_leaks() -> None:
    """Its bindings take garbage that is left at the end for leaks, and list it."""
    pytest.importorskip("triton")
    code = "import triton; from tallstore.cli import main; main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tallstore ")
    assert done.stderr == ""
