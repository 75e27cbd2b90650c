"""What pack takes: every kind of checkpoint that is around, and clear refusals of what is none."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import State, assert_same, near, noise, same_bits, tiny_base, write_folder
from torch import nn

import tallstore
from tallstore.checkpoints import open_checkpoint
from tallstore.errors import CheckpointError

Writer = Callable[[Path, State], Path]


def one_file(folder: Path, state: State) -> Path:
    return write_folder(folder, state)


def shards(folder: Path, state: State) -> Path:
    """Two shards and an index, as `save_pretrained` writes them; neither is called model.safetensors."""
    folder.mkdir()
    names = sorted(state)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, folder / file)
    table = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


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
    assert set(found.files) == {"config.json", "vocab.txt"}
    assert set(found.left_out) == {"notes.docx", "README.md"}
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


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


REFUSED = {
    "missing folder": (lambda f: f / "nothing", "no such folder or file"),
    "empty folder": (lambda f: f, "holds no checkpoint"),
    "text": (lambda f: wrote(f / "x.txt", b"hello"), "not a checkpoint"),
    "folder of text": (lambda f: wrote(f / "x.txt", b"hello").parent, "holds no checkpoint"),
    "empty safetensors": (lambda f: wrote(f / "model.safetensors", b""), "safetensors"),
    "cut safetensors": (lambda f: cut(f, -5), "safetensors"),
    "cut header": (lambda f: cut(f, 40), "safetensors"),
    "html": (lambda f: wrote(f / "model.safetensors", b"<!doctype html><html>404 not found</html>"), "safetensors"),
    "lfs pointer": (lambda f: wrote(f / "model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "safetensors"),
    "empty bin": (lambda f: wrote(f / "pytorch_model.bin", b""), "cannot be read"),
    "garbage bin": (lambda f: wrote(f / "pytorch_model.bin", b"\x80\x04garbage"), "cannot be read"),
    "html bin": (lambda f: wrote(f / "pytorch_model.bin", b"<html>"), "cannot be read"),
    "cut bin": (lambda f: cut_bin(f), "cannot be read"),
    "pickle with code": (lambda f: evil(f), "refers to posix.mkdir"),
    "module in a pickle": (lambda f: saved(f, nn.Linear(2, 2)), "save the model's state_dict()"),
    "list": (lambda f: saved(f, [torch.ones(3)]), "list"),
    "tensor": (lambda f: saved(f, torch.ones(3)), "Tensor"),
    "numbers": (lambda f: saved(f, {"lr": 0.1}), "'lr' is a float"),
    "no tensors": (lambda f: saved(f, {}), "holds no tensor"),
    "numbered": (lambda f: saved(f, {3: torch.ones(3)}), "tensor name 3"),
    "sparse": (lambda f: saved(f, {"s": torch.ones(3).to_sparse()}), "'s'"),
    "adapter": (lambda f: adapter(f), "merge it into its base"),
    "two files": (lambda f: two(f), "which of a.safetensors, b.safetensors is meant"),
    "shard missing": (lambda f: shard_missing(f), "model-00002-of-00002.safetensors: missing"),
    "index of nothing": (lambda f: wrote(f / "model.safetensors.index.json", b"{}").parent, "not an index of shards"),
    "index leaves the folder": (lambda f: escaping(f), "not an index of shards"),
    "index names more": (lambda f: lying(f), "'ghost', which no shard holds"),
}  # fmt: skip


def wrote(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def saved(folder: Path, value: object) -> Path:
    torch.save(value, folder / "x.pt")
    return folder / "x.pt"


def cut(folder: Path, at: int) -> Path:
    save_file(tiny_base(), folder / "model.safetensors")
    return wrote(folder / "model.safetensors", (folder / "model.safetensors").read_bytes()[:at])


def cut_bin(folder: Path) -> Path:
    torch.save(tiny_base(), folder / "x.bin")
    return wrote(folder / "x.bin", (folder / "x.bin").read_bytes()[:-500])


def evil(folder: Path) -> Path:
    return wrote(folder / "pytorch_model.bin", pickle.dumps({"w": Evil()}, protocol=2))


def adapter(folder: Path) -> Path:
    save_file({"lora_A": torch.ones(3)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    return folder


def two(folder: Path) -> Path:
    save_file(tiny_base(), folder / "a.safetensors")
    save_file(tiny_base(), folder / "b.safetensors")
    return folder


def shard_missing(folder: Path) -> Path:
    shards(folder / "m", tiny_base())
    (folder / "m" / "model-00002-of-00002.safetensors").unlink()
    return folder / "m"


def escaping(folder: Path) -> Path:
    save_file(tiny_base(), folder / "x.safetensors")
    (folder / "m").mkdir()
    wrote(folder / "m" / "model.safetensors.index.json", b'{"weight_map": {"fc.weight": "../x.safetensors"}}')
    return folder / "m"


def lying(folder: Path) -> Path:
    shards(folder / "m", tiny_base())
    table = json.loads((folder / "m" / "model.safetensors.index.json").read_bytes())
    table["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    wrote(folder / "m" / "model.safetensors.index.json", json.dumps(table).encode())
    return folder / "m"


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("role", ["base", "task"])
def test_what_is_no_checkpoint_is_refused(
    case: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = REFUSED[case]
    (tmp_path / "in").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    source = make(tmp_path / "in")
    base, task = (source, tiny_base()) if role == "base" else (tiny_base(), source)
    with pytest.raises(CheckpointError) as caught:
        tallstore.pack(base, {"t": task}, "zoo.tall")
    assert message in str(caught.value)
    assert str(tmp_path / "in") in str(caught.value), "the message names the file"
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "work").iterdir()) == [], "nothing was written, no code of the pickle was run"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds no tensor"),
        ({"w": 3}, "'w' is a int"),
        ({"w": torch.ones(3, device="meta")}, "'w'"),
        ({"w": torch.ones(3).to_sparse()}, "'w'"),
        ({"w": torch.ones(3, dtype=torch.complex128)}, "'w'"),
        ({"state_dict": {"w": torch.ones(3)}}, "give a plain state dict"),
        ({"": torch.ones(3)}, "tensor name ''"),
        ({"a\nb": torch.ones(3)}, "control character"),
        ({"x" * 2000: torch.ones(3)}, "longer than"),
        ({"\ud800": torch.ones(3)}, "not Unicode"),
    ],
)
def test_a_state_dict_of_other_things_is_refused(state: State, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        tallstore.pack(tiny_base(), {"t": state}, tmp_path / "zoo.tall")
    assert message in str(caught.value)
    assert str(caught.value).startswith("t (in memory): ")
    assert list(tmp_path.iterdir()) == []


def test_no_damaged_pickle_escapes_as_another_error(tmp_path: Path) -> None:
    """Flip and cut a `.bin` all over: it is read, or refused as a checkpoint; never anything else."""
    rng = torch.Generator().manual_seed(1)
    torch.save({"w": noise(40), "n": {"x": 3}}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.bin").read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for at in torch.randint(0, len(data), (2,), generator=rng).tolist():
            data[at] ^= 1 << int(torch.randint(0, 8, (1,), generator=rng))
        try:
            open_checkpoint(wrote(tmp_path / "y.bin", bytes(data)))
        except CheckpointError:
            continue
