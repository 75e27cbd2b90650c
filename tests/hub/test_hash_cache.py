"""Checksums that are kept of a referenced base: quick where they hold, and never believed against the bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Hub
from support import assert_same, slots, tiny_zoo

import tallstore
from tallstore.checkpoints.hash_cache import HashCache


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_matched_once_is_known_again(tmp_path: Path) -> None:
    place = tmp_path / "seals" / "one.json"
    seals = HashCache(place)
    assert seals.match(memoryview(b"base"), digest(b"base"))
    assert not seals.match(memoryview(b"other"), digest(b"base"))
    seals.save()
    assert list(json.loads(place.read_bytes())) == [digest(b"base")]
    assert [path.name for path in place.parent.iterdir()] == ["one.json"]
    again = HashCache(place)
    assert again.match(memoryview(b"base"), digest(b"base"))
    assert not again.match(memoryview(b"bas\xe4"), digest(b"base"))
    place.unlink()
    again.save()
    assert not place.exists(), "nothing new, nothing written"


@given(st.binary(max_size=80) | st.recursive(st.text(), st.lists).map(lambda v: json.dumps(v).encode()))
def test_rubbish_in_place_of_seals_changes_nothing(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    place = tmp_path_factory.mktemp("rubbish") / "one.json"
    place.write_bytes(text)
    assert HashCache(place).match(memoryview(b"base"), digest(b"base"))
    assert not HashCache(place).match(memoryview(b"other"), digest(b"base"))


def test_where_nothing_can_be_kept_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    seals = HashCache(tmp_path / "file" / "one.json")
    assert seals.match(memoryview(b"base"), digest(b"base"))
    seals.save()


@pytest.mark.usefixtures("referencing")
def test_a_base_in_the_cache_is_sealed_and_its_damage_found_all_the_same(hub: Hub, tmp_path: Path) -> None:
    base, _ = tiny_zoo(2)
    cache = tmp_path / "cache"
    where = {"endpoint": hub.url, "cache_dir": cache}
    with tallstore.open("hf://user/small", **where) as opened:
        wanted = opened.state_dict("a")
    (kept,) = cache.glob("models--user--base/.tallstore/*.json")
    assert kept.stem == hub.commit("user/base")
    known = json.loads(kept.read_bytes())
    assert set(known) <= {digest(tensor.numpy().tobytes()) for tensor in base.values()}
    assert len(known) >= 1
    found = huggingface_hub.scan_cache_dir(cache)
    assert found.warnings == []
    assert {repo.repo_id for repo in found.repos} == {"user/base", "user/small"}

    kept.write_text(json.dumps(dict.fromkeys(known, "0" * 32)))
    with tallstore.open("hf://user/small", **where) as opened:
        assert_same(opened.state_dict("a"), wanted)
    assert json.loads(kept.read_bytes()) == known, "wrong seals are made anew"

    (weights,) = cache.glob("models--user--base/snapshots/*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[slots(bytes(data))[1]["fc.weight"][0] + 1] ^= 1
    weights.resolve().write_bytes(data)
    with tallstore.open("hf://user/small", **where) as opened:
        with pytest.warns(UserWarning, match="user/base@.*: model.safetensors: damaged in the local cache"):
            assert_same(opened.state_dict("a"), wanted)
