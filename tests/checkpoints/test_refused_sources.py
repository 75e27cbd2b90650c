"""What is no checkpoint is refused: by name, with a remedy, and without running what it holds."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import State, noise, shards, tiny_base
from torch import nn

import tallstore
from tallstore.checkpoints import open_checkpoint
from tallstore.errors import CheckpointError


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
    "adapter without its type": (lambda f: adapter(f), "no type of an adapter"),
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


@pytest.mark.parametrize("role", ["base", "task"])
def test_an_object_that_is_no_model_is_refused_by_its_kind(role: str, tmp_path: Path) -> None:
    """A pipeline in memory, say: several modules, none of which is meant."""
    base, task = (object(), tiny_base()) if role == "base" else (tiny_base(), object())
    with pytest.raises(CheckpointError, match=r"a object is no checkpoint: .* one of its components"):
        tallstore.pack(base, {"t": task}, tmp_path / "zoo.tall")  # type: ignore[arg-type,dict-item]
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_refused_with_the_way_to_its_weights(tmp_path: Path) -> None:
    data = {"x/data.pkl": b"", "x/constants.pkl": b"", "x/code/__torch__.py": b"", "x/version": b"6"}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name, content in data.items():
            file.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"x\.pt: a TorchScript program .*state_dict\(\)"):
        tallstore.pack(tiny_base(), {"t": tmp_path / "x.pt"}, tmp_path / "zoo.tall")


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
