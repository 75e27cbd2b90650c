"""`manifest.schema.json`: real manifests validate, broken ones do not, and what it cannot say is listed."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tallstore.format.dtypes import ITEM_BYTES

from .conftest import Packed
from .vectors import INVALID, ROOT, VALID, invalid, valid

Facts = dict[str, Any]
SCHEMA: Facts = json.loads((ROOT / "manifest.schema.json").read_text(encoding="utf-8"))


def validator() -> Draft202012Validator:
    return Draft202012Validator(SCHEMA)


def manifest_of(archive: Path) -> bytes:
    if archive.is_dir():
        return (archive / "tall.json").read_bytes()
    with zipfile.ZipFile(archive) as found:
        return found.read("tall.json")


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_knows_the_element_types() -> None:
    assert SCHEMA["$defs"]["dtype"]["enum"] == list(ITEM_BYTES)


@pytest.mark.parametrize("name", VALID)
def test_valid_vectors_validate(name: str) -> None:
    validator().validate(json.loads(manifest_of(valid(name).archive)))


def test_what_pack_writes_validates(packed: Packed) -> None:
    validator().validate(json.loads(manifest_of(packed.path)))


def real() -> Facts:
    """A manifest with all that one can hold."""
    found: Facts = json.loads(manifest_of(valid("exact").archive))
    found["tasks"]["one"] = found["tasks"].pop("a")
    text = json.dumps(found).replace("tasks/a/", "tasks/one/")
    facts: Facts = json.loads(text)
    facts["groups"][0]["tasks"] = ["one"]
    return facts


def _part(m: Facts) -> Facts:
    record: Facts = m["parts"]["tasks/one/mask.safetensors"]
    return record


BROKEN: dict[str, Callable[[Facts], Any]] = {
    "another format": lambda m: m.update(format="zip"),
    "version 2": lambda m: m.update(version="2.0"),
    "a short hash": lambda m: m.update(sha256="0"),
    "no base": lambda m: m.pop("base"),
    "no groups": lambda m: m.update(groups=[]),
    "no tasks": lambda m: m.update(tasks={}),
    "tasks as an array": lambda m: m.update(tasks=[]),
    "a task's name": lambda m: m["tasks"].update({"a/b": m["tasks"]["one"]}),
    "a task without a group": lambda m: m["tasks"]["one"].pop("group"),
    "a task without masks": lambda m: m["tasks"]["one"]["parts"].pop("mask"),
    "an unknown kind of part": lambda m: m["tasks"]["one"]["parts"].update(more=[]),
    "a part elsewhere": lambda m: m["tasks"]["one"]["parts"].update(mask=["base/base.safetensors"]),
    "a part twice": lambda m: m["tasks"]["one"]["parts"]["mask"].append(m["tasks"]["one"]["parts"]["mask"][0]),
    "a file elsewhere": lambda m: m["tasks"]["one"]["files"].update(x="base/x"),
    "a file as weights": lambda m: m["tasks"]["one"]["files"].update({"model.safetensors": "common/x"}),
    "a source that is no text": lambda m: m["base"].update(source={"repo": 1}),
    "an unknown storage": lambda m: m["base"].update(storage="cloud"),
    "an unknown element type": lambda m: m["base"]["tensors"]["F32"].update(dtype="I128"),
    "a negative size": lambda m: m["base"]["tensors"]["F32"].update(shape=[-1]),
    "too many dimensions": lambda m: m["base"]["tensors"]["F32"].update(shape=[1] * 17),
    "a tensor without a hash": lambda m: m["base"]["tensors"]["F32"].pop("sha256"),
    "a vector elsewhere": lambda m: m["groups"][0].update(parts=["base/base.safetensors"]),
    "a group without an id": lambda m: m["groups"][0].pop("id"),
    "the manifest as a part": lambda m: m["parts"].update({"tall.json": _part(m)}),
    "a path outside": lambda m: m["parts"].update({"../x": _part(m)}),
    "a size as text": lambda m: _part(m).update(size="1"),
    "a header over its cap": lambda m: _part(m)["header"].update(size=25_000_009),
    "a header without a hash": lambda m: _part(m)["header"].pop("sha256"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_manifests_do_not_validate(what: str) -> None:
    facts = real()
    validator().validate(facts)
    broken = copy.deepcopy(facts)
    BROKEN[what](broken)
    assert broken != facts
    assert not validator().is_valid(broken)


def test_it_is_open_to_unknown_members() -> None:
    facts = real()
    for place in (facts, facts["base"], facts["groups"][0], facts["tasks"]["one"], _part(facts)):
        place["unknown"] = {"x": [1]}
    validator().validate(facts)


BEYOND_A_SCHEMA = {
    "base-identity-wrong", "base-product-hidden", "base-product-overflows", "base-too-many-elements",
    "file-of-another-task", "file-names-collide", "file-over-cap", "file-unlisted", "group-lacks-task",
    "group-lists-stranger", "group-other", "group-twice", "manifest-hash-not-first", "manifest-hash-wrong",
    "part-header-longer", "part-of-another-task", "part-unlisted", "part-without-header", "path-direction", "path-not-normal",
    "paths-file-below-file", "paths-letter-case", "paths-manifest-listed", "task-in-two-groups",
    "task-names-letter-case", "base-shape-fraction", "part-size-fraction", "path-segment-long",
    "path-space-in-device", "path-superscript-device", "path-tag", "path-zero-width", "paths-case-folded",
}  # fmt: skip
"""Vectors that are refused when they are opened, for a reason that no schema can state."""


def test_what_the_schema_cannot_say_is_known() -> None:
    passed = set()
    for name in INVALID:
        path = invalid(name).archive / "tall.json"
        if not path.is_file() or name.startswith("json-"):
            continue
        if validator().is_valid(json.loads(path.read_bytes())):
            passed.add(name)
    assert passed == BEYOND_A_SCHEMA
