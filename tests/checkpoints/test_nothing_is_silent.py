"""Whatever a folder holds is in the archive, in the warning, or in the error: on folders that are made at random."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from support import examples

import tallstore
from tallstore.errors import CheckpointError, TallstoreError

from .folders import files_of

FOLDERS = (
    "", "unet/", "2_Dense/", "language_model/", "checkpoint-5/", "checkpoint-5/unet/", "__pycache__/", "onnx/", ".cache/",
    "a/b/", "wandb/x/",
)  # fmt: skip
NAMES = (
    "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "projector.safetensors",
    "model-00001-of-00002.safetensors", "model.safetensors.index.json", "optimizer.pt", "trainer_state.json", "last.ckpt",
    "config.json", "README.md", "LICENSE", "vocab.txt", "Vocab.txt", "bpe.codes", "5gram.bin", "vocab.pkl", "mean.npy",
    "adapter_model.safetensors", "model.ema.safetensors", "weights.safetensors", "extra.pt", "consolidated.00.pth",
    "tf_model.h5", "sample.png", "events.out.tfevents.1", ".gitattributes", "modules.json", "model_index.json", "con.txt",
)  # fmt: skip
STATE = {"w.weight": torch.linspace(-1, 1, 1200).reshape(40, 30), "b": torch.ones(300)}


def write(path: Path, kind: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor + 0.001 * kind for name, tensor in STATE.items()}
    if path.name.startswith(("projector", "extra")) or kind == 3:
        state = {"p": state["w.weight"]}
    if kind == 2 and path.name in {"model.safetensors", "weights.safetensors"}:
        state |= {f"ema.{name}": tensor + 0.0001 for name, tensor in state.items()}
    if path.name.endswith(".safetensors"):
        save_file(state, path, {"format": "pt"})
    elif path.suffix in {".bin", ".ckpt", ".pth", ".pt"} and "optimizer" not in path.name and "5gram" not in path.name:
        torch.save({"model": state, "ema": state, "epoch": 3} if kind == 1 else state, path)
    elif path.name == "modules.json":
        path.write_text(json.dumps([{"path": "2_Dense", "type": "x.Dense"}] if kind else [{"path": "", "type": "T"}]))
    elif path.name == "model_index.json":
        path.write_text(json.dumps({"_class_name": "P", "unet": ["diffusers", "U"]}))
    elif path.suffix == ".json":
        path.write_text("{}")
    else:
        path.write_bytes((b"words", b"\x80\x04K\x01.", b"cos\nsystem\n(S'true'\ntR.", b"")[kind])


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES)), st.integers(0, 3), min_size=1, max_size=9
    )
)
@example({("checkpoint-5/", "model.safetensors"): 0, ("checkpoint-5/unet/", "model.safetensors"): 2})
@example({("unet/", "pytorch_model.bin"): 0, ("unet/", "config.json"): 0})
def test_every_file_is_taken_or_named(content: Mapping[tuple[str, str], int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for (folder, name), kind in content.items():
            write(root / "t" / folder / name, kind)
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        try:
            report = tallstore.pack(STATE, {"t": root / "t"}, root / "zoo.tall", allow_distant=True)
        except TallstoreError as error:
            assert str(root / "t") in str(error), "an error names the folder"
            assert not (root / "zoo.tall").exists()
            return
        assert {path: path.read_bytes() for path in before} == before, "originals are only read"
        said = " ".join(report.warnings)
        with tallstore.open(root / "zoo.tall") as zoo:
            zoo.verify()
            out = files_of(zoo.export("t", root / "out"))
            out |= {file.saved for file in zoo.manifest.tasks["t"].weights if file.saved}
        facts = report.to_json()
        left = facts["tasks"]["t"]["left_out"]
        assert all(name in said for name in left), "each is in the warning"
        assert list(report.warnings) == list(facts["warnings"]) == strict_json(facts)["warnings"]
        with tallstore.open(root / "zoo.tall") as zoo:
            assert zoo.info()["tasks"]["t"].get("left_out", {}) == left, "and stays in the archive"
            _assert_sets_are_told(root / "t", zoo.tensors("t"), left)
        for name in files_of(root / "t"):
            hidden = any(name.startswith(each.removeprefix("../")) for each in left if each.endswith("/"))
            as_safe = name.replace("pytorch_model.bin", "model.safetensors").rpartition(".")[0] + ".safetensors"
            names = {name, name.replace("-00001-of-00002", ""), as_safe}
            back = bool(out & (names | {each.removeprefix("checkpoint-5/") for each in names}))
            assert back or name in left or hidden or _below(name, left, out) or _below(as_safe, left, out), name


def strict_json(facts: Any) -> Any:
    return json.loads(json.dumps(facts, allow_nan=False))


def _assert_sets_are_told(folder: Path, tensors: Mapping[str, Any], left: Mapping[str, str]) -> None:
    """A second set of weights in a file that was taken is in the archive, or named."""
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            several = any(name.startswith("ema.") for name in file.keys())  # noqa: SIM118 - no mapping
        name = path.relative_to(folder).as_posix()
        below = name.removeprefix("checkpoint-5/")  # where that folder is the model, names are told from there
        unread = below in left or any(name in each or each.endswith("/") for each in left)
        if several and not unread:
            assert any("ema" in each for each in (*tensors, *left)), name


def _below(name: str, left: Mapping[str, str], out: set[str]) -> bool:
    """Whether a file is told of from the one folder below that is the model, or went back as that folder's own."""
    last = name.rpartition("/")[2]
    return f"../{name}" in left or any(each.rpartition("/")[2] == last for each in (*left, *out))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: torch.save(STATE, f / "model-rank-0-part-0.pt"), "one process of several"),
        (lambda f: (f / "__0_0.distcp").write_bytes(b"x"), "dcp_to_torch"),
        (lambda f: (f / "zero_to_fp32.py").write_text(""), "zero_to_fp32.py"),
        (lambda f: save_file(STATE, f / "model-00002-of-00003.safetensors"), "1 of 3 shards"),
        (lambda f: [torch.save({"a": 1, "student": STATE, "teacher": STATE}, f / "x.pt")], "--weights student"),
    ],
)
def test_what_is_not_whole_is_refused_with_the_way_to_make_it_so(make: object, message: str, tmp_path: Path) -> None:
    assert callable(make)
    (tmp_path / "t").mkdir()
    make(tmp_path / "t")
    with pytest.raises(CheckpointError, match=message) as caught:
        tallstore.pack(STATE, {"t": tmp_path / "t"}, tmp_path / "zoo.tall")
    assert str(tmp_path / "t") in str(caught.value)
    assert not (tmp_path / "zoo.tall").exists()


@pytest.mark.parametrize("role", ["base", "task"])
def test_tensors_that_a_sharded_save_left_empty_are_refused(role: str) -> None:
    half = {name: tensor if tensor.ndim == 1 else torch.empty(0) for name, tensor in STATE.items()}
    base, task = (half, STATE) if role == "base" else (STATE, half)
    with tempfile.TemporaryDirectory() as place, pytest.raises(CheckpointError, match=r"'w\.weight'.*zero_to_fp32"):
        tallstore.pack(base, {"t": task}, Path(place) / "zoo.tall")


def test_header_metadata_of_all_shards_comes_back(tmp_path: Path) -> None:
    for number, name in enumerate(STATE, 1):
        (tmp_path / "t").mkdir(exist_ok=True)
        meta = {"format": "pt", f"layout of {name}": "x"}
        save_file({name: STATE[name] + 0.001}, tmp_path / "t" / f"model-{number:05}-of-00002.safetensors", meta)
    tallstore.pack(STATE, {"t": tmp_path / "t"}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        out = zoo.export("t", tmp_path / "out")
        assert zoo.manifest.version == "1.1"
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "layout of w.weight": "x", "layout of b": "x"}


def test_a_pickle_that_runs_code_is_never_written(tmp_path: Path) -> None:
    """What an archive's maker put there in place of data is refused when it would be written, not only when packed."""
    from tallstore.errors import FormatError
    from tallstore.format.data_files import check_data_file, is_harmless

    evil = b"cos\nsystem\n(S'true'\ntR."
    assert not is_harmless(evil)
    assert is_harmless(b"words")
    with pytest.raises(FormatError, match=r"vocab\.pkl"):
        check_data_file("vocab.pkl", evil, "zoo")
