"""An archive with adapters on the Hub: pushed, pulled, loaded as the models that they make, and kept so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapters.conftest import CASES, Made, made
from loopback import Hub, serving
from safetensors.torch import load_file
from support import bytes_of

import tallstore
from tallstore.hub.card import model_card

TOKEN = "hf_goodgoodgood"


@pytest.fixture
def adapter(tmp_path: Path) -> Made:
    pytest.importorskip("peft", reason="adapters are made with PEFT")
    return made(CASES["lora"], tmp_path / "made")


@pytest.fixture
def zoo(adapter: Made, tmp_path: Path) -> Path:
    full = {name: value + 0.01 for name, value in adapter.model().state_dict().items()}
    tallstore.pack(adapter.base, {"full": full, "a": adapter.adapter}, tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def hub(zoo: Path) -> Iterator[Hub]:
    with serving({"user/zoo": bytes_of(zoo)}, {TOKEN: "user"}) as running:
        yield running


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_pushed_and_pulled(hub: Hub, adapter: Made, zoo: Path, tmp_path: Path) -> None:
    where = {"endpoint": hub.url, "token": TOKEN, "cache_dir": tmp_path / "cache"}
    tallstore.push(zoo, "user/new", endpoint=hub.url, token=TOKEN)
    tallstore.pull("user/new", tmp_path / "whole", archive=True, **where)
    tallstore.pull("user/new", tmp_path / "folder", tasks="a", **where)
    original = load_file(adapter.adapter / "adapter_model.safetensors")
    assert same(load_file(tmp_path / "folder" / "adapter_model.safetensors"), original)
    assert same(adapter.merged(tmp_path / "folder"), adapter.merged())
    with tallstore.open(tmp_path / "whole") as opened:
        assert same(opened.state_dict("a", merged=True), adapter.merged())


def test_the_merged_model_is_loaded_and_kept(hub: Hub, adapter: Made, tmp_path: Path) -> None:
    where = {"endpoint": hub.url, "token": TOKEN, "cache_dir": tmp_path / "cache"}
    expected = adapter.merged()
    for _ in range(2):
        model = tallstore.from_pretrained("user/zoo", task="a", keep_decoded=True, **where)
        assert same(dict(model.state_dict()), expected)
    kept = list((tmp_path / "cache").glob("models--*/.tallstore/decoded-*/model.safetensors"))
    assert len(kept) == 1
    for part in (tmp_path / "cache").glob("models--*/snapshots/*/**/*.safetensors"):
        part.unlink()
    model = tallstore.from_pretrained("user/zoo", task="a", keep_decoded=True, local_files_only=True, **where)
    assert same(dict(model.state_dict()), expected)


def test_the_card_tells_adapters_from_models(zoo: Path) -> None:
    with tallstore.open(zoo) as opened:
        text = model_card(opened.info(), "user/zoo")
    assert "1 fine-tuned model and 1 adapter of" in text
    assert "| a (adapter: LORA) | bit for bit |" in text
    assert "for PEFT or diffusers" in text
