"""`manifest.schema.json`: real manifests validate, broken ones do not, and what it cannot say is listed."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import save_file
from support import noise, tiny_zoo, write_folder

import tallstore
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


FREE = {"source", "options", "left_out", "metadata", "files", "data"}
"""Objects whose keys are names of things, or the packer's own words."""


def undescribed(value: Any, schema: Facts | bool, at: str = "") -> set[str]:
    """Members of a manifest that the schema does not name."""
    if isinstance(schema, bool):
        return set()
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        return {each for item in value for each in undescribed(item, schema.get("items", {}), at)}
    if not isinstance(value, dict) or at.rpartition(".")[2] in FREE:
        return set()
    named, others = schema.get("properties", {}), schema.get("additionalProperties")
    found = {f"{at}.{key}" for key in value if key not in named and others is None and at.rpartition(".")[2] != "parts"}
    for key, item in value.items():
        below = f"{at}.{key}" if key in named else at
        found |= undescribed(item, named.get(key, others if others is not None else {}), below)
    return found


def lora(folder: Path) -> Path:
    """An adapter as PEFT saves it."""
    folder.mkdir()
    state = {"base_model.model.fc.lora_A.weight": noise(2, 32), "base_model.model.fc.lora_B.weight": noise(16, 2)}
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["fc"]}))
    return folder


def varied(folder: Path) -> Iterator[Facts]:
    """Manifests with everything that a packer says: of quantized tasks, folders, torch files, scores, exact parts."""
    base, tasks = tiny_zoo(3)
    quantized = {**base, "q.weight": torch.ones(400, 400, dtype=torch.int8)}
    (folder / "c").mkdir()
    torch.save({"network_weights": tasks["a"], "epoch": 3}, folder / "c" / "checkpoint_final.pth")
    write_folder(folder / "b", {})
    save_file({**tasks["b"], "new": noise(90, 90)}, folder / "b" / "model.safetensors", {"format": "pt", "by": "x"})
    (folder / "b" / "optimizer.pt").write_bytes(b"x")
    (folder / "b" / "lm").mkdir()
    (folder / "b" / "lm" / "5gram.bin").write_bytes(b"words")
    runs: dict[str, tuple[Any, dict[str, Any], Facts]] = {
        "scored": (base, tasks, {"exact": "all", "evaluate": lambda state, task: 1.0}),
        "lossless": (base, tasks, {"quality": "lossless"}),
        "tall": (base, tasks, {"recipe": "tall"}),
        "folders": (base, {"b": folder / "b", "c": folder / "c"}, {"allow_distant": True}),
        "quantized": (quantized, {"a": {**tasks["a"], "q.weight": quantized["q.weight"] + 1}}, {}),
        "adapter": (base, {"a": lora(folder / "lora")}, {}),
    }
    for name, (origin, own, options) in runs.items():
        tallstore.pack(origin, own, folder / name, **options)
        if name == "tall":
            tallstore.add(folder / name, {"d": tasks["b"]})
        yield json.loads(manifest_of(folder / name))


@pytest.mark.filterwarnings("ignore")
def test_schema_and_page_name_every_member_that_is_written(tmp_path: Path) -> None:
    page = (ROOT / "manifest.md").read_text(encoding="utf-8")
    seen: set[str] = set()
    for facts in varied(tmp_path):
        validator().validate(facts)
        assert undescribed(facts, SCHEMA) == set()
        for task in facts["tasks"].values():
            seen |= {*task, *task["measured"]}
            own = {name: value for name, value in task["measured"].items() if name != "left_out"}
            seen |= {key for value in own.values() if isinstance(value, dict) for key in value}
            seen |= {key for file in task.get("weights", ()) for key in (*file, *file.get("saved", ()))}
        seen |= {key for group in facts["groups"] for key in (*group, *group["recipe"])}
    assert [name for name in sorted(seen) if f"`{name}`" not in page and f'"{name}"' not in page] == []
    assert seen >= {
        "saved",
        "metadata",
        "adapter",
        "data",
        "left_out",
        "scores",
        "without_loss",
        "exact_bytes",
        "lambda",
    }
    members = set(SCHEMA["$defs"]["measured"]["properties"])
    assert members - seen <= {"divergence", "unmatched", "warnings", "cheaper_without_loss", "bit_for_bit"}
    assert all(f"`{name}`" in page for name in members)
