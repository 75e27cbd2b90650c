"""What pack takes: every kind of checkpoint that is around, and clear refusals of what is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import State, assert_same, near, noise, same_bits, shards, tiny_base, write_folder
from torch import nn

import tallstore
from tallstore.checkpoints import open_checkpoint

Writer = Callable[[Path, State], Path]


def one_file(folder: Path, state: State) -> Path:
    return write_folder(folder, state)


def bin_shards(folder: Path, state: State) -> Path:
    folder.mkdir()
    names = sorted(state)
    files = {"pytorch_model-00001-of-00002.bin": names[:1], "pytorch_model-00002-of-00002.bin": names[1:]}
    for file, held in files.items():
        torch.save({name: state[name] for name in held}, folder / file)
    table = {name: file for file, held in files.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


def index_itself(folder: Path, state: State) -> Path:
    return shards(folder, state) / "model.safetensors.index.json"


def safetensors_file(folder: Path, state: State) -> Path:
    return write_folder(folder, state) / "model.safetensors"


def odd_name(folder: Path, state: State) -> Path:
    folder.mkdir()
    save_file(state, folder / "best_epoch.safetensors")
    return folder


def open_clip(folder: Path, state: State) -> Path:
    folder.mkdir()
    save_file(state, folder / "open_clip_model.safetensors")
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder


def pytorch_bin(folder: Path, state: State) -> Path:
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def pt_file(folder: Path, state: State) -> Path:
    folder.mkdir()
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def legacy(folder: Path, state: State) -> Path:
    """torch's format before 1.6."""
    folder.mkdir()
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def nested(folder: Path, state: State) -> Path:
    """A training checkpoint: weights beside other things."""
    folder.mkdir()
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, folder / "last.ckpt")
    return folder / "last.ckpt"


def nested_model(folder: Path, state: State) -> Path:
    folder.mkdir()
    torch.save({"model": state, "step": torch.tensor(3)}, folder / "model.pt")
    return folder / "model.pt"


def parameters(folder: Path, state: State) -> Path:
    """Tensors that are parameters, on a tape."""
    folder.mkdir()
    torch.save(
        {name: nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) for name, tensor in state.items()},
        folder / "p.pt",
    )
    return folder / "p.pt"


WRITERS = (
    one_file, shards, bin_shards, index_itself, safetensors_file, odd_name, open_clip, pytorch_bin, pt_file, legacy, nested,
    nested_model, parameters,
)  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("as_text", [False, True], ids=["path", "str"])
def test_every_kind_of_file_is_read_to_the_bit(write: Writer, as_text: bool, tmp_path: Path) -> None:
    state = tiny_base() | {
        "half": noise(300, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
    }
    source = write(tmp_path / "model", state)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    checkpoint = open_checkpoint(str(source) if as_text else source)
    assert checkpoint.tensors.keys() == state.keys()
    for name, tensor in state.items():
        n = tensor.numel()
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert same_bits(checkpoint.read(name, 0, n), tensor.reshape(-1)), name
        assert same_bits(checkpoint.read(name, n // 3, n // 2), tensor.reshape(-1)[n // 3 : n // 2]), name
    assert str(tmp_path / "model") in checkpoint.where
    checkpoint.close()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, "originals are only read"


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_kind_of_file_packs_as_base_and_as_task(write: Writer, tmp_path: Path) -> None:
    base = tiny_base()
    task = {name: near(tensor, 9) for name, tensor in base.items()} | {"head": noise(7, 3)}
    tallstore.pack(base, {"t": task}, tmp_path / "memory.tall")
    tallstore.pack(write(tmp_path / "b", base), {"t": write(tmp_path / "t", task)}, tmp_path / "files.tall")
    with tallstore.open(tmp_path / "memory.tall") as ours, tallstore.open(tmp_path / "files.tall") as theirs:
        found, wanted = theirs.state_dict("t"), ours.state_dict("t")
        assert {name: same_bits(found[name], wanted[name]) for name in wanted} == dict.fromkeys(wanted, True)
        assert ours.manifest.base.identity == theirs.manifest.base.identity, (
            "sharding does not change the base's identity"
        )


def test_a_module_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, tuned = (
        nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30)),
        nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30)),
    )
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        tuned[0].weight += 0.01 * torch.randn(30, 20)
        tuned[1].num_batches_tracked += 5
    tallstore.pack(base, {"t": tuned}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        found = zoo.state_dict("t")
        assert list(found) == list(tuned.state_dict())
        fresh = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
        zoo.load_into(fresh, "t")
    assert_same(fresh.state_dict(), found)
    assert int(found["1.num_batches_tracked"]) == 5
    assert not found["0.weight"].requires_grad


def test_views_of_any_stride_are_taken(tmp_path: Path, small_chunks: int) -> None:
    whole = noise(60, 80, seed=1)
    base = {"turned": whole.T, "cut": whole[::2, 1::3], "grown": whole[:1].expand(20, 80), "tail": whole[30:]}
    base["comb"], base["cube"] = noise(900, seed=2)[::2], noise(4, 5, 30, seed=3).permute(2, 0, 1)
    task = {name: near(tensor, 5) for name, tensor in base.items()} | {
        "own": whole.T[3:9],
        "own comb": torch.arange(99)[::3],
    }
    tallstore.pack(base, {"t": task}, tmp_path / "zoo.tall", recipe="fit", vector="f32")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify(against={"t": task})
        for name, tensor in base.items():
            assert same_bits(zoo.base(name), tensor)
        assert same_bits(zoo.state_dict("t")["own"], task["own"])


def test_lazily_conjugated_and_negated_tensors_are_taken(tmp_path: Path) -> None:
    """Views whose conjugation or sign is a mark on the tensor and not in its memory."""
    number = torch.complex(noise(400, seed=1), noise(400, seed=2))
    base = {"w": noise(400, seed=3), "c": number, "i": noise(400, seed=4)}
    task = {"w": near(base["w"], 5), "c": number.conj(), "i": number.conj().imag}
    assert task["i"].is_neg()
    tallstore.pack(base, {"t": task}, tmp_path / "zoo.tall", allow_distant=True, recipe="fit")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert torch.equal(zoo.state_dict("t")["c"], task["c"].resolve_conj())


def test_weights_are_preferred_to_what_else_lies_there(tmp_path: Path) -> None:
    """What a trainer leaves: its own state, earlier checkpoints, other frameworks' weights, a log."""
    state = tiny_base()
    folder = write_folder(tmp_path / "model", state)
    torch.save({"w": torch.zeros(3)}, folder / "pytorch_model.bin")
    torch.save({"lr": 1}, folder / "optimizer.pt")
    torch.save({"lr": 1}, folder / "training_args.bin")
    write_folder(folder / "checkpoint-500", {"w": torch.zeros(3)})
    (folder / "tf_model.h5").write_bytes(b"h5")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "notes.docx").write_text("notes")
    (folder / "README.md").write_text("# hello")
    found = open_checkpoint(folder)
    assert set(found.tensors) == set(state)
    assert set(found.files) == {"config.json", "vocab.txt", "README.md"}
    assert set(found.left_out) == {
        "notes.docx", "pytorch_model.bin", "optimizer.pt", "training_args.bin", "tf_model.h5",
        "checkpoint-500/model.safetensors", "checkpoint-500/config.json",
    }  # fmt: skip
    found.close()


def test_other_weights_in_the_folder_are_not_dropped_silently(tmp_path: Path) -> None:
    """A projector beside the model, a dense layer in a folder of its own: not the same weights in another form."""
    base = tiny_base()
    folder = write_folder(tmp_path / "t", base)
    save_file({"p": noise(3)}, folder / "projector.safetensors")
    (folder / "other.safetensors.index.json").write_text("{}")
    (folder / "model.txt").write_text("no weights, whatever its name")
    write_folder(folder / "2_Dense", {"linear.weight": noise(3, 3)})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    found = open_checkpoint(folder)
    assert set(found.files) == {"config.json", "1_Pooling/config.json", "2_Dense/config.json", "model.txt"}
    assert set(found.left_out) == {"other.safetensors.index.json"}
    assert {"p", "linear.weight"} == {name.rpartition("/")[2] for name in found.tensors.keys() - base.keys()}
    found.close()
    report = tallstore.pack(base, {"t": folder}, tmp_path / "zoo.tall")
    assert any("other.safetensors.index.json" in warning for warning in report.warnings)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert zoo.manifest.version == "1.1"
        zoo.export("t", tmp_path / "out")
    for name in ("projector.safetensors", "2_Dense/model.safetensors"):
        assert_same(load_file(tmp_path / "out" / name), load_file(folder / name))


@pytest.mark.parametrize(("write", "name"), [(shards, "model.safetensors"), (bin_shards, "pytorch_model.bin")])
def test_a_whole_file_is_preferred_to_shards_as_transformers_does(write: Writer, name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tiny_base())
    whole = {"only": noise(3)}
    save_file(whole, folder / name) if name.endswith("safetensors") else torch.save(whole, folder / name)
    found = open_checkpoint(folder)
    assert set(found.tensors) == {"only"}
    found.close()


def test_files_left_out_are_told(tmp_path: Path) -> None:
    base = tiny_base()
    folder = write_folder(tmp_path / "t", base)
    (folder / "notes.docx").write_text("notes")
    report = tallstore.pack(base, {"t": folder}, tmp_path / "zoo.tall")
    assert any("notes.docx" in warning and str(folder) in warning for warning in report.warnings)


def test_files_come_back(tmp_path: Path, target: Path) -> None:
    base = tiny_base()
    tasks = {t: write_folder(tmp_path / t, base, task=t) for t in "ab"}
    for folder in tasks.values():
        (folder / "vocab.txt").write_text("one\ntwo\n")
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text("{}")
    (tasks["b"] / "merges.txt").write_bytes(bytes(range(256)))
    tallstore.pack(base, tasks, target)
    with tallstore.open(target) as zoo:
        assert zoo.manifest.tasks["a"].files["vocab.txt"] == "common/vocab.txt", (
            "what all tasks have alike is stored once"
        )
        for task, folder in tasks.items():
            zoo.export(task, tmp_path / "out" / task)
            for path in folder.rglob("*"):
                if path.is_file() and path.suffix != ".safetensors":
                    assert (tmp_path / "out" / task / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_files_whose_names_differ_in_case_alone_do_not_spoil_the_archive(tmp_path: Path) -> None:
    base = tiny_base()
    folder = write_folder(tmp_path / "t", base)
    (folder / "vocab.txt").write_text("lower")
    (folder / "Vocab.txt").write_text("upper")
    report = tallstore.pack(base, {"t": folder}, tmp_path / "zoo.tall")
    assert any("ocab.txt" in warning for warning in report.warnings)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()
