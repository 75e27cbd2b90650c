"""Benchmark scripts still run: `--help` of all, and at a tiny size those that make their own input or take a tiny zoo.

What they measure here means nothing. Scripts that need a real zoo, test sets, a GPU or gigabytes are in `NOT_RUN`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from processes import Forks
from safetensors.torch import save_file
from support import ROOT, noise

import tallstore

BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "ArgumentParser(" in path.read_text(encoding="utf-8"))
HELPERS = {"common"}

RUNS = {
    "plan": "{out} --constants {root}/benchmarks/results/plan.json --plot {out}/plan.svg",
    "mask_statistics": "--tasks 2 --parameters 1e5 --threads 1",
    "codec_speed": "{zoo}/base/model.safetensors",
    "mask_contexts": "{archive}",
    "exactness": "{zoo}",
    "lossless": "{zoo}/base mr={zoo}/mr --no-peers",
    "other_names": "{zoo}/base {zoo}/mr",
    "relatives": "{zoo}/base {zoo}/mr {zoo}/trec --merges 1 --turns 1",
    "pack_memory": "{out} --tasks 1 --layers 1 --scale 0.02 --delete",
    "regress": "--rounds 1 --size 64 --most 1e9",
    "wide": "{zoo}/base {zoo}/mr --chunks 12 --samples 14 --bits 1 --without",
    "large": "{out} --gigabytes 0.01 --width 64 --tasks 1 --workers 1",
}
"""Script → its arguments at a tiny size."""
QUICK = {"plan", "mask_statistics", "codec_speed"}

NOT_RUN = {
    "conv_retention": "fetches a package's weights and tunes three networks",
    "decode": "gigabytes of synthetic checkpoints",
    "engines": "vLLM; .ci/vllm tries the same",
    "finetune": "trains twelve models on text sets",
    "first_wait": "transformers models, and a minute of commands in fresh processes",
    "gpu": "a GPU",
    "groups": "a zoo of text classifiers",
    "growing": "a zoo of text classifiers and their test sets",
    "headline": "gigabytes of synthetic checkpoints",
    "hub": "a zoo of text classifiers",
    "lm_kinds": "a zoo of language models",
    "lm_retention": "a zoo of language models",
    "lm_zoo": "trains language models",
    "merging": "a zoo of text classifiers and their test sets",
    "multitask": "a zoo of transformers models; tests/serving has tiny ones",
    "picture": "a zoo of text classifiers and their test sets",
    "rate_distortion": "a zoo of text classifiers and their test sets",
    "real_zoo": "a zoo of text classifiers and their test sets",
    "report": "draws reports of large zoos; tests/report draws a small one",
    "versions": "another checkout to compare with",
    "synthetic": "makes the checkpoints of pack_memory, which is run",
}
"""Script → what it needs, or why it is left out."""

HELP = """
import contextlib, io, json, runpy, sys
said = {}
sys.path.insert(0, args[0])
for path in args[1:]:
    sys.argv = [path, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, path
    said[path] = out.getvalue()
print(json.dumps(said))
"""


RUN = """
import os, runpy, sys
sys.argv, folder, place = args
os.chdir(folder)
sys.path.insert(0, place)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code
"""


def child(forks: Forks, code: str, *args: Any) -> str:
    """What a job prints: in a process of its own that has imported torch already."""
    status, said = forks.run(code, *args, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{BENCHMARKS}"})
    assert status == 0, said[-3000:]
    return said


def test_every_script_is_run_or_said_not_to_be() -> None:
    assert not RUNS.keys() & NOT_RUN.keys()
    assert {*RUNS, *NOT_RUN, *HELPERS} >= set(SCRIPTS)
    assert {*RUNS, *NOT_RUN} <= {path.stem for path in BENCHMARKS.glob("*.py")}


def test_every_script_is_listed_in_the_read_me() -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert set(SCRIPTS) - HELPERS - {"synthetic"} <= set(re.findall(r"^\| `(\w+)\.py`", page, re.MULTILINE))


def test_every_script_has_help_with_an_example(forks: Forks) -> None:
    paths = [str(BENCHMARKS / f"{name}.py") for name in SCRIPTS if name not in HELPERS]
    said = json.loads(child(forks, HELP, str(BENCHMARKS), *paths).splitlines()[-1])
    for path in paths:
        assert "usage:" in said[path], path
        assert f"python benchmarks/{Path(path).name}" in said[path], path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two tasks, as folders."""
    home = tmp_path_factory.mktemp("zoo")
    base = {f"layer.{n}.weight": noise(128, 96, size=0.05, seed=n) for n in range(3)}
    for seed, name in enumerate(("base", "mr", "trec")):
        state = {n: t + noise(*t.shape, size=0.002 * seed, seed=10 * seed) for n, t in base.items()}
        (home / name).mkdir()
        save_file(state, home / name / "model.safetensors", {"format": "pt"})
        (home / name / "config.json").write_text('{"model_type": "bert"}')
    return home


@pytest.fixture(scope="module")
def archive(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "zoo.tall"
    tallstore.pack(zoo / "base", {task: zoo / task for task in ("mr", "trec")}, path, recipe="fit", mask="bits")
    return path


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS]
)
def test_a_script_runs_at_a_tiny_size(script: str, zoo: Path, archive: Path, tmp_path: Path, forks: Forks) -> None:
    words = RUNS[script].format(out=tmp_path, root=ROOT, zoo=zoo, archive=archive).split()
    said = child(forks, RUN, [str(BENCHMARKS / f"{script}.py"), *words], str(tmp_path), str(BENCHMARKS))
    assert re.search(r"\d", said), said
