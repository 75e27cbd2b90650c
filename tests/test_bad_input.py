"""Bad input: one clear error of the right class each, that names the culprit and a remedy; nothing is written."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from processes import child
from support import bytes_of, leftovers, near, noise, tiny_base, tiny_zoo, write_folder

import tallstore
from tallstore.errors import (
    CheckpointError,
    CodecError,
    DamagedError,
    DeviceError,
    FormatError,
    InputError,
    NoSuchTaskError,
    NoSuchTensorError,
    NotAnArchiveError,
    OptionError,
    TaskNameError,
    VersionError,
    WrongBaseError,
)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 500
    return text


# Task names.

BAD_NAMES = (
    "", " ", "a/b", "a\\b", "/", "..", ".", ".hidden", "a..b", "a*", "a?", "[a]", "a b", "a:b", "-a", "_a", "é", "a\n", "a\0",
    "con", "NUL.txt", "lpt1", "a.", "x" * 97, "名", "a%b", "~", "hf://a", "*",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_task_name_that_cannot_be_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    with pytest.raises(TaskNameError) as caught:
        tallstore.pack(base, {"fine": tasks["a"], name: tasks["a"]}, tmp_path / "zoo.tall")
    assert repr(name[:40]) in one_line(caught.value) or not name
    assert re.search(r"use letters|choose another|longer than", str(caught.value))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["a", "0", "mnist", "CoLA", "sst-2", "v1.5", "a_b", "x" * 96, "common", "base", "tall.json"]
)
def test_other_names_are_taken(name: str, target: Path) -> None:
    base, tasks = tiny_zoo(1)
    tallstore.pack(base, {name: tasks["a"]}, target)
    with tallstore.open(target) as zoo:
        zoo.verify()
        assert zoo.tasks == (name,)


def test_names_that_are_one_folder_on_some_systems_are_refused(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    with pytest.raises(TaskNameError, match=r"'Mnist' and 'mnist' are the same on some file systems: rename one"):
        tallstore.pack(base, {"Mnist": tasks["a"], "mnist": tasks["b"]}, tmp_path / "zoo.tall")
    assert leftovers(tmp_path) == []


def test_no_task_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name at least one fine-tuned model"):
        tallstore.pack(tiny_base(), {}, tmp_path / "zoo.tall")
    assert leftovers(tmp_path) == []


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "best"}, "'best' is unknown; there are"),
        ({"recipe": "fit", "vector": "q3"}, "'q3' is unknown; there are f32, bf16, q8, q5, q4"),
        ({"recipe": "fit", "vector": "ones"}, "'ones' is unknown; there are f32, bf16, q8, q5, q4"),
        ({"mask": "rle"}, "'rle' is unknown; there are"),
        ({"base_codec": "zip"}, "'zip' is unknown; there are"),
        ({"base_storage": "cloud"}, "'cloud' is unknown; there are"),
        ({"colour": "blue"}, "no such option: colour; there are"),
        ({"recipe": "tall", "lam": -1.0}, "λ must be a positive number"),
        ({"recipe": "tall", "lam": float("nan")}, "λ must be a positive number"),
        ({"recipe": "fit", "lam": 0.4}, "takes no lam (--lambda)"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        tallstore.pack(*tiny_zoo(1), tmp_path / "zoo.tall", **options)
    assert message in one_line(caught.value)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "", "gpu"])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        tallstore.pack(*tiny_zoo(1), tmp_path / "zoo.tall", device=device)
    assert repr(device) in one_line(caught.value)
    assert "use 'cpu' or 'auto'" in str(caught.value)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_decoding_to_a_device_that_is_not_there(tmp_path: Path) -> None:
    tallstore.pack(*tiny_zoo(1), tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo, pytest.raises(DeviceError, match="'cuda'"):
        zoo.state_dict("a", device="cuda")


# The wrong base.


def test_a_base_of_another_architecture_is_refused_by_a_tensor(tmp_path: Path) -> None:
    _, tasks = tiny_zoo(1)
    other = {"encoder.weight": noise(30, 30), "decoder.weight": noise(50, 30)}
    folders = {"a": write_folder(tmp_path / "in" / "a", tasks["a"])}
    base = write_folder(tmp_path / "in" / "base", other)
    with pytest.raises(WrongBaseError) as caught:
        tallstore.pack(base, folders, tmp_path / "out" / "zoo.tall")
    text = one_line(caught.value)
    assert str(base) in text
    assert str(folders["a"]) in text
    assert "no tensor 'emb.weight'" in text
    assert "give the model that this task was fine-tuned from" in text
    assert leftovers(tmp_path / "out") == []


def test_a_base_of_another_size_is_refused_with_both_shapes(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    wide = {name: noise(*(2 * n for n in tensor.shape)) for name, tensor in base.items()}
    with pytest.raises(
        WrongBaseError, match=r"tensor 'emb.weight' is \[40, 16\] in the task and \[80, 32\] in the base"
    ):
        tallstore.pack(wide, tasks, tmp_path / "zoo.tall")
    assert leftovers(tmp_path) == []


def test_a_base_with_other_weights_is_refused_unless_that_is_meant(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    stranger = {name: noise(*tensor.shape, seed=999 + i) for i, (name, tensor) in enumerate(base.items())}
    with pytest.raises(
        WrongBaseError, match=r"as far away as an unrelated model's \(tensor '.*': ‖τ‖/‖θ0‖ = 1\."
    ) as caught:
        tallstore.pack(stranger, tasks, tmp_path / "zoo.tall")
    assert "allow_distant=True (--allow-distant)" in one_line(caught.value)
    assert leftovers(tmp_path) == []
    tallstore.pack(stranger, tasks, tmp_path / "zoo.tall", allow_distant=True)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()


def test_one_wrong_task_among_right_ones_is_named(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    tasks["b"] = {name: noise(*tensor.shape, seed=77) for name, tensor in base.items()}
    with pytest.raises(WrongBaseError, match=r"^b \(in memory\): "):
        tallstore.pack(base, tasks, tmp_path / "zoo.tall")


def test_a_large_head_is_no_wrong_base(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    tasks["a"]["head.weight"] = noise(9000, 16)
    tallstore.pack(base, tasks, tmp_path / "zoo.tall")


# Archives that are none.

NO_ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda p: None, "there is nothing there"),
    "empty folder": (lambda p: p.mkdir(), "a folder without tall.json"),
    "folder of files": (lambda p: (p.mkdir(), (p / "x").write_text("x")), "a folder without tall.json"),
    "model folder": (lambda p: write_folder(p, tiny_base()), "a folder without tall.json"),
    "manifest is a folder": (lambda p: (p / "tall.json").mkdir(parents=True), "a folder without tall.json"),
    "empty file": (lambda p: p.write_bytes(b""), "not a .tall file, or cut off"),
    "text": (lambda p: p.write_text("hello"), "not a .tall file, or cut off"),
    "zip of other things": (lambda p: foreign_zip(p), "no tall.json in it"),
    "dangling link": (lambda p: p.symlink_to(p.with_name("gone")), "there is nothing there"),
}


def foreign_zip(path: Path) -> None:
    """Aligned and stored, so that only the missing manifest is wrong."""
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.extra = b"\x35\xd9" + (64 - 30 - 1 - 4).to_bytes(2, "little") + bytes(64 - 30 - 1 - 4)
        archive.writestr(info, b"data")


@pytest.mark.parametrize("case", NO_ARCHIVES)
@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "plain"])
def test_what_is_no_archive_is_not_opened(case: str, mapped: bool, tmp_path: Path) -> None:
    make, message = NO_ARCHIVES[case]
    make(tmp_path / "zoo.tall")
    with pytest.raises(NotAnArchiveError) as caught:
        tallstore.open(tmp_path / "zoo.tall", mapped=mapped)
    assert message in one_line(caught.value)
    assert str(tmp_path / "zoo.tall") in str(caught.value)


def test_a_device_file_is_no_archive() -> None:
    with pytest.raises(NotAnArchiveError, match="neither a folder nor a file"):
        tallstore.open("/dev/null")


# Archives of another time. Parts and manifest are forged so that every hash is right and only the one thing is wrong.


def forge_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads((root / "tall.json").read_bytes())
    change(facts)
    facts["sha256"] = "0" * 64
    data = json.dumps(facts, ensure_ascii=False, indent=1).encode()
    (root / "tall.json").write_bytes(data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1))


def forge_part(root: Path, path: str, change: Callable[[dict[str, Any]], object]) -> None:
    data = (root / path).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    facts = json.loads(header["__metadata__"]["tallstore"])
    change(facts)
    header["__metadata__"]["tallstore"] = json.dumps(facts)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    front = len(text).to_bytes(8, "little") + text
    whole = front + data[end:]
    (root / path).write_bytes(whole)

    def update(manifest: dict[str, Any]) -> None:
        hashed = {"size": len(front), "sha256": hashlib.sha256(front).hexdigest()}
        manifest["parts"][path] = {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest(), "header": hashed}

    forge_manifest(root, update)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    base, tasks = tiny_zoo(2)
    for state in tasks.values():
        state["head"] = noise(5, 5)
    tallstore.pack(base, tasks, tmp_path / "zoo", recipe="fit")
    return tmp_path / "zoo"


def forge_chunk(root: Path, path: str, name: str, first: int) -> None:
    """Another first byte in the first chunk of a tensor."""
    data = bytearray((root / path).read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    at = end + header[name]["data_offsets"][0]
    length = json.loads(header["__metadata__"]["tallstore"])["entries"][name]["chunks"][0][0]
    data[at] = first
    (root / path).write_bytes(data)
    digest = xxhash.xxh3_64_hexdigest(data[at : at + length])
    forge_part(root, path, lambda facts: facts["entries"][name]["chunks"].__setitem__(0, [length, digest]))


VERIFY = """
import sys
from tallstore.cli import main
try:
    main(["verify", sys.argv[1]])
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("of_base", [torch.bfloat16, torch.float32], ids=["same type", "another type"])
@pytest.mark.parametrize("storage", ["embed", "reference"])
def test_a_lossless_code_that_makes_no_sense_is_found_with_any_base(
    storage: str, of_base: torch.dtype, tmp_path: Path
) -> None:
    """Every hash is right, and the codec has no such mode: Zoo.verify and the command line, without torch, say so."""
    base, tasks = {"w": noise(60, 50, dtype=of_base)}, {"a": {"w": noise(60, 50, seed=1, dtype=torch.bfloat16)}}
    tasks["a"]["w"] = (base["w"].float() * (1 + 0.01 * tasks["a"]["w"].float())).bfloat16()
    path = tmp_path / "zoo"
    tallstore.pack(base, tasks, path, quality="lossless", base_storage=storage)
    forge_chunk(path, "tasks/a/mask.safetensors", "w", 77)
    with tallstore.open(path, base=base) as zoo, pytest.raises(FormatError) as caught:
        zoo.verify()
    assert "tensor 'w': a chunk coded against the base, of mode 77" in str(caught.value)
    done = child(VERIFY, str(path))
    with tallstore.open(path) as zoo:
        if storage == "reference":  # there is nothing to decode it with
            assert zoo.verify().tasks == ("a",)
            assert not done.returncode, done.stderr
            return
        with pytest.raises(FormatError) as again:
            zoo.verify()
    assert str(again.value) == str(caught.value)
    assert done.returncode == 1
    assert " ".join(str(caught.value).split()) in " ".join(done.stderr.split())


def test_forging_keeps_an_archive_whole(archive: Path) -> None:
    forge_part(archive, "tasks/a/mask.safetensors", lambda facts: facts)
    with tallstore.open(archive) as zoo:
        zoo.verify()


@pytest.mark.parametrize("version", ["2.0", "2.1", "10.0"])
def test_a_newer_major_version_is_refused_with_the_remedy(version: str, archive: Path) -> None:
    forge_manifest(archive, lambda facts: facts.update(version=version))
    with pytest.raises(VersionError) as caught:
        tallstore.open(archive)
    assert version in one_line(caught.value)
    assert "pip install -U tallstore" in str(caught.value)


def test_a_newer_major_version_is_refused_before_its_manifest_is_understood(archive: Path) -> None:
    forge_manifest(
        archive, lambda facts: (facts.clear(), facts.update(format="tallstore", version="3.0", new={"x": 1}))
    )
    with pytest.raises(VersionError, match=r"3\.0"):
        tallstore.open(archive)


def test_a_newer_minor_version_is_read(archive: Path) -> None:
    with tallstore.open(archive) as zoo:
        wanted = zoo.state_dict("a")
    forge_part(archive, "tasks/a/mask.safetensors", lambda facts: facts.update(version="1.9", novelty=True))
    forge_manifest(archive, lambda facts: facts.update(version="1.9", novelty={"x": [1]}))
    with tallstore.open(archive) as zoo:
        zoo.verify()
        assert all(torch.equal(zoo.state_dict("a")[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("version", ["", "1", "1.0.0", "x", None, 1.0, "0.1"])
def test_a_version_that_is_none_is_refused(version: object, archive: Path) -> None:
    forge_manifest(archive, lambda facts: facts.update(version=version))
    with pytest.raises((FormatError, VersionError)) as caught:
        tallstore.open(archive)
    assert str(archive) in one_line(caught.value)


@pytest.mark.parametrize(
    ("path", "tensor"),
    [
        ("base/base.safetensors", "emb.weight"),
        ("vector/0.safetensors", "emb.weight"),
        ("tasks/a/mask.safetensors", "emb.weight"),
        ("tasks/a/private.safetensors", "head"),
    ],
)
def test_an_unknown_codec_is_refused_by_name(path: str, tensor: str, archive: Path) -> None:
    forge_part(archive, path, lambda facts: facts["entries"][tensor].update(codec="brotli9"))
    with tallstore.open(archive) as zoo:
        zoo.state_dict("b", names=["norm.weight"])
        with pytest.raises(CodecError, match=rf"{re.escape(path)}: codec 'brotli9' is unknown; this tallstore knows "):
            zoo.state_dict("a", names=[tensor])


def test_an_unknown_kind_of_entry_is_refused_by_name(archive: Path) -> None:
    forge_part(archive, "tasks/a/mask.safetensors", lambda facts: facts["entries"]["emb.weight"].update(kind="fourier"))
    with tallstore.open(archive) as zoo:
        zoo.state_dict("b")
        with pytest.raises(CodecError, match=r"'emb\.weight': entry kind 'fourier' is unknown"):
            zoo.state_dict("a")


# Names that an archive does not have.


def test_what_an_archive_has_not_is_refused_with_what_it_has(archive: Path) -> None:
    with tallstore.open(archive) as zoo:
        for ask in (zoo.state_dict, zoo.tensors, lambda task: zoo.export(task, archive.with_name("out"))):
            with pytest.raises(NoSuchTaskError, match="no task 'c'; there are a, b"):
                ask("c")
        with pytest.raises(NoSuchTaskError, match="no task 'c'"):
            zoo.verify(against={"c": tiny_base()})
        for ask in (
            lambda: zoo.state_dict("a", names=["emb.weight", "nope"]),
            lambda: zoo.mask("a", "nope"),
            lambda: zoo.vector("nope"),
            lambda: zoo.base("nope"),
        ):
            with pytest.raises(NoSuchTensorError, match="'nope'"):
                ask()
    assert not archive.with_name("out").exists()


def test_many_names_are_not_all_told(tmp_path: Path) -> None:
    base = {f"layer{i}": torch.tensor(float(i)) for i in range(300)}
    tallstore.pack(base, {"a": dict(base)}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo, pytest.raises(NoSuchTensorError) as caught:
        zoo.state_dict("a", names=["nope"])
    assert "and 280 more" in one_line(caught.value)


# A task that goes wrong while it is read.


def test_a_checkpoint_that_shrinks_while_it_is_read_leaves_nothing(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    folder = write_folder(tmp_path / "in", tasks["a"])
    weights = folder / "model.safetensors"

    def shrink(_text: str, _done: int, _total: int) -> None:
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)

    base = {f"first{i}": noise(40, 40, seed=i) for i in range(20)} | base
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cut off in tensor"):
        tallstore.pack(base, {"a": folder}, tmp_path / "out" / "zoo.tall", progress=shrink)
    assert leftovers(tmp_path / "out") == []


def test_originals_are_only_read(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    folders = {task: write_folder(tmp_path / task, state) for task, state in tasks.items()}
    root = write_folder(tmp_path / "base", base)
    before = bytes_of(tmp_path)
    memory = {name: tensor.clone() for name, tensor in base.items()}
    tallstore.pack(root, folders, tmp_path / "zoo.tall")
    tallstore.pack(base, tasks, tmp_path / "memory.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify(against=folders)
    assert {name: data for name, data in bytes_of(tmp_path).items() if not name.endswith(".tall")} == before
    assert all(torch.equal(base[name], tensor) for name, tensor in memory.items())


@pytest.mark.parametrize("name", ["a", "fc.weight"])
def test_comparing_with_what_is_not_the_original_is_refused(name: str, archive: Path) -> None:
    base, tasks = tiny_zoo(2)
    other = tasks["a"] | {"head": noise(5, 5)}
    other = other | {"a": noise(3)} if name == "a" else other | {"fc.weight": near(base["fc.weight"], 1)[:4]}
    with tallstore.open(archive) as zoo, pytest.raises(tallstore.TallstoreError, match=f"'{name}'"):
        zoo.verify(against={"a": other})


def test_a_zoo_whose_base_part_lies_is_found(archive: Path) -> None:
    """All checksums right, but the base is not the one that the manifest identifies."""

    def lie(facts: dict[str, Any]) -> None:
        tensors = facts["base"]["tensors"]
        tensors["fc.weight"]["sha256"] = "0" * 63 + "1"
        digest = hashlib.sha256()
        for tensor in sorted(tensors, key=str.encode):
            shape = ",".join(map(str, tensors[tensor]["shape"]))
            digest.update(f"{tensor}\0{tensors[tensor]['dtype']}\0{shape}\0{tensors[tensor]['sha256']}\n".encode())
        facts["base"]["identity"] = digest.hexdigest()

    forge_manifest(archive, lie)
    with tallstore.open(archive) as zoo, pytest.raises(DamagedError, match=r"fc\.weight"):
        zoo.verify()
