"""Valid vectors of containers, entries and names, with what they decode to, computed here without any decoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from .build import CHUNK, Archive, Item, Part, dumps, kept, mask, vector, whole
from .numbers import (
    BYTES,
    NEWER,
    Tensor,
    bits,
    converted,
    floats,
    masked,
    narrow,
    noise,
    noise_bytes,
    shifted,
    symbols,
    wide,
)
from .valid import MASKABLE, Case, One, case, few


def _minimal() -> One:
    one = One()
    base, values = floats("F32", [1.0, -2.0, 0.5]), np.array([0.25, 0.5, -0.125], np.float32)
    marks = np.array([1, 0, 1], np.uint8)
    one.start("w", base, values)
    one.put("w", mask(marks, "binary", "F32", (3,), "w"), "F32", (3,), masked(base, "F32", values, marks))
    return one


@case
def minimal() -> Case:
    """The smallest archive with all of base, vector and mask."""
    return _minimal().case("one tensor of three F32; codecs raw, f32, bits", file=True)


@case
def minimal_folder() -> Case:
    """Files of the model, and files that the manifest does not list."""
    files = {
        "config.json": dumps({"format": "tallstore", "version": "1.0", "tasks": ["a"]}),
        "tasks/a/files/config.json": b"{}\n",
        "common/tokenizer/vocab.txt": b"a\nb\n",
        "common/unused.txt": b"",
    }
    return _minimal().case(
        "the same as a folder, manifest indented, with small files, and with files that the manifest does not list",
        files=files,
        task_files={
            "a": {"config.json": "tasks/a/files/config.json", "tokenizer/vocab.txt": "common/tokenizer/vocab.txt"}
        },
        unlisted={"README.md": b"# a model card\n", "tasks/a/stray.safetensors": b"no part of the archive"},
        indent=1,
    )


@case
def zip64() -> Case:
    """Sizes and places in ZIP64 fields."""
    return _minimal().case(
        "a file whose sizes and places are in ZIP64 fields, its end in a ZIP64 record", file=True, wide=True
    )


@case
def rows() -> Case:
    """More and fewer rows than the base has."""
    one = One(whole_codec="planes+zstd")
    base, values = few("BF16", "rows base", 1040, (260, 4)), np.full(1040, 0.0625, np.float32)
    one.start("w", base, values, codec="q4")
    for name, first, common in (("more", 261, 260), ("fewer", 90, 90), ("some", 260, 8), ("none", 3, 0), ("few", 4, 2)):
        n = common * 4
        marks = symbols(f"rows {name}", n, "binary")
        data = masked(base, "BF16", values, marks)
        own = floats("BF16", noise(f"rows own {name}", (first - common) * 4), (first - common, 4))
        if own.numel:
            one.privates[name] = whole(own)
        item = mask(marks, "binary", "BF16", (first, 4), "w", rows=common, scales=[1.0] * -(-n // CHUNK))
        one.put(name, item, "BF16", (first, 4), data + own.data)
    own = floats("F16", noise("rows kept", 8), (2, 4))
    one.privates["kept"] = whole(own)
    one.put("kept", kept("F16", (12, 4), "w", rows=10), "F16", (12, 4), converted(base, "F16", 40) + own.data)
    shift = noise("rows delta", 8, 110, 118)
    facts, coded = vector(shift, (2, 4))
    own = floats("F32", noise("rows delta own", 4), (1, 4))
    one.privates["delta"] = whole(own)
    item = facts | {"kind": "delta", "dtype": "F32", "base": "w", "rows": 2, "shape": [3, 4]}, coded
    one.put("delta", item, "F32", (3, 4), shifted(base, "F32", shift) + own.data)
    line = floats("F32", noise("rows line", 5, 118, 126))
    one.start("line", line, noise("rows line vector", 5, 110, 118))
    marks = np.array([1, 1, 0], np.uint8)
    item = mask(marks, "binary", "F32", (3,), "line", rows=3)
    one.put("line", item, "F32", (3,), masked(line, "F32", noise("rows line vector", 5, 110, 118), marks))
    return one.case(
        "tensors with more, fewer and as many rows as the base, masked, kept and shifted; rows 0", file=True
    )


@case
def tied() -> Case:
    """Tied tensors, in a task and in the base."""
    one = _minimal()
    own = floats("F16", [[1.0, 2.0]])
    one.private("head", own)
    one.put("head.tied", ({"kind": "tied", "to": "head"}, None), "F16", (1, 2), own.data)
    first = {"first": ({"kind": "tied", "to": "w"}, None)}
    one.masks = first | one.masks
    one.decoded = {"first": one.decoded["w"]} | one.decoded
    one.base["w.tied"] = one.base["w"]
    one.put("from a tied base", kept("F32", (3,), "w.tied"), "F32", (3,), one.base["w"].data)
    archive = one.archive()
    archive.base_parts["base/base.safetensors"].items["w.tied"] = ({"kind": "tied", "to": "w"}, None)
    return Case(
        "tensors tied to a masked one that comes later, to a private one, and in the base", archive, {"a": one.decoded}
    )


@case
def private() -> Case:
    """Tensors stored whole, of every type."""
    one = One()
    for dtype, size in ((dtype, size) for dtype, size in BYTES.items() if dtype not in NEWER):
        data = bytes([0, 1, 1, 0, 1]) if dtype == "BOOL" else noise_bytes(f"private {dtype}", 5 * size)
        one.private(dtype, Tensor(dtype, (5,), data))
    one.private("nan", bits("F32", [0x7FC00000, 0x7F800001, 0xFFC12345, 0x7F800000]))
    one.private("nan16", bits("F16", [0x7E00, 0x7C01, 0xFFFF]))
    one.private("scalar", Tensor("I64", (), (-3).to_bytes(8, "little", signed=True)))
    one.private("empty", Tensor("F32", (0, 3), b""))
    one.private("chunks", Tensor("U8", (41, 25), noise_bytes("private chunks", 1025)))
    return one.case("private tensors of every type; NaN payloads; a scalar, an empty tensor, two chunks", file=True)


@case
def reasons() -> Case:
    """Why tensors are stored whole: each word there is, and what is no word."""
    one = One()
    words = ["unmatched", "small", "type", "numbers", "budget"]
    for at, word in enumerate([*words, "of 2031", "<b onclick=alert(1)>", "x" * 4096, "", None, 7, ["small"], {}]):
        name = f"tensor {at}"
        one.private(name, floats("F32", [float(at)]))
        one.masks[name][0]["why"] = word
    return one.case("private tensors with the packer's reason, and with members `why` that are none")


@case
def small_shapes() -> Case:
    """Scalars and empty tensors that are masked."""
    one = One()
    for name, shape in (("scalar", ()), ("empty", (0,)), ("empty2", (3, 0)), ("ones", (1, 1, 1))):
        n = int(np.prod(shape))
        base = floats("F32", noise(f"small {name}", n, 118, 126), shape)
        values = noise(f"small v {name}", n, 110, 118)
        one.start(name, base, values)
        marks = np.ones(n, np.uint8)
        item = mask(marks, "binary", "F32", shape, name)
        one.put(name, item, "F32", shape, masked(base, "F32", values, marks))
        one.put(f"{name} kept", kept("BF16", shape, name), "BF16", shape, converted(base, "BF16"))
    return one.case("masked and unmoved tensors of no elements and of one")


@case
def base_referenced() -> Case:
    """The base lies elsewhere, and the task has other names."""
    one = One()
    for name, dtype in (("encoder.0", "F32"), ("encoder.1", "BF16")):
        base, values = floats(dtype, noise(name, 33, 118, 126), (11, 3)), noise(f"{name} v", 33, 110, 118)
        one.start(name, base, values)
        marks = symbols(name, 33, "binary")
        data = masked(base, dtype, values, marks)
        one.put(f"bert.{name}", mask(marks, "binary", dtype, (11, 3), name), dtype, (11, 3), data)
    one.start("pooler", floats("F16", [1.5, 2.5]))
    one.put("bert.pooler", kept("F16", (2,), "pooler"), "F16", (2,), one.base["pooler"].data)
    one.base["unused"] = floats("F32", [7.0])
    return one.case(
        "storage reference: the base is in base.safetensors beside the archive; the task's names have a prefix",
        file=True,
        storage="reference",
        base_parts={},
        given={**one.base, "more": floats("F32", [1.0])},
    )


@case
def groups() -> Case:
    """Two groups, each with its vector and its chunks."""
    n = 33
    base = few("BF16", "groups base", n)
    item = whole(base, "planes+zstd")
    archive = Archive(base={"w": base}, base_parts={"base/base.safetensors": Part("base", "", {"w": item})})
    decoded = {}
    for id_, names, chunk in (("0", ["b", "a"], 1024), ("later", ["c"], 2048)):
        values = np.full(n, 0.5 if id_ == "0" else -0.25, np.float32)
        item = vector(values, base.shape, "q4", chunk)
        archive.groups.append((id_, names, {f"vector/{id_}.safetensors": Part("vector", id_, {"w": item})}))
        for name in names:
            marks = symbols(f"groups {name}", n, "binary")
            coded = mask(marks, "binary", "BF16", base.shape, "w", "bits+zstd", chunk=chunk)
            archive.tasks[name] = {"mask": {f"tasks/{name}/mask.safetensors": Part("mask", name, {"w": coded})}}
            decoded[name] = {"w": Tensor("BF16", base.shape, masked(base, "BF16", values, marks))}
    return Case("two groups with a vector each, three tasks, chunks of two sizes", archive, decoded, file=True)


@case
def newer_minor() -> Case:
    """Version 1.9, with members that no reader of 1.0 knows."""
    one = _minimal()
    one.private("h", floats("F32", [2.0]))
    news = {"news": [{"sha256": 1, "kind": None}], "x.y": True}

    def manifest(facts: dict[str, Any]) -> None:
        facts |= news | {"options": {"recipe": "of 2031"}, "writer": "another writer 9"}
        for place in (facts["base"], facts["base"]["tensors"]["w"], facts["groups"][0], facts["tasks"]["a"]):
            place |= news
        facts["groups"][0]["recipe"] = {"id": "new", "λ": [1, 2.5, None]}
        facts["tasks"]["a"] |= {"measured": {"relative_error": None}, "source": {"repo": "x/y"}}
        for record in facts["parts"].values():
            record |= news
            record["header"] |= news

    def description(facts: dict[str, Any]) -> None:
        facts |= news
        for entry in facts["entries"].values():
            entry |= news | {"axis": 0}
            if entry["kind"] == "private":
                entry |= {"rows": "not a member of this kind", "chunks": 1}

    archive = one.archive(version="1.9", on_manifest=manifest)
    for part in archive.parts().values():
        part.version, part.on_description, part.metadata = "1.9", description, {"added": "later"}
    return Case("version 1.9: unknown members everywhere are ignored", archive, {"a": one.decoded}, file=True)


NAMES = (
    "модель.слой.0",
    "層/重み",
    "a b",
    'quote " and \\ backslash',
    "🙂",
    "e\u0301 is not é",
    "é is not e\u0301",
    "../tensor names are no paths",
    "__metadata__ ",
)


@case
def names() -> Case:
    """Tensor names that are not plain."""
    one = One(task="A-task_1.0")
    for number, name in enumerate(NAMES):
        base, values = floats("F32", [float(number)]), np.array([0.5 + number], np.float32)
        one.start(name, base, values)
        marks = np.array([number % 2], np.uint8)
        item = mask(marks, "binary", "F32", (1,), name)
        one.put(name, item, "F32", (1,), masked(base, "F32", values, marks))
    one.put("x" * 1024, ({"kind": "tied", "to": "🙂"}, None), "F32", (1,), one.decoded["🙂"].data)
    return one.case(
        "tensor names in several scripts, not normalised, with spaces, quotes and slashes, and 1,024 bytes long",
        file=True,
    )


@case
def several_parts() -> Case:
    """Parts of one kind and owner hold one map together."""
    one = One()
    for name in "wxyz":
        base, values = floats("F32", noise(name, 9, 118, 126)), noise(f"{name} v", 9, 110, 118)
        one.start(name, base, values)
        marks = symbols(name, 9, "binary")
        one.put(name, mask(marks, "binary", "F32", (9,), name), "F32", (9,), masked(base, "F32", values, marks))
    one.private("h", floats("F32", [1.0]))
    one.private("i", floats("F32", [2.0]))
    archive = one.archive()

    def cut(parts: dict[str, Part]) -> dict[str, Part]:
        ((path, part),) = parts.items()
        some = list(part.items.items())
        halves = (dict(some[: len(some) // 2]), dict(some[len(some) // 2 :]))
        stem = path.removesuffix(".safetensors")
        return {
            f"{stem}-{number}-of-2.safetensors": Part(part.part, part.owner, half)
            for number, half in enumerate(halves, 1)
        }

    archive.base_parts = cut(archive.base_parts)
    archive.groups = [(id_, tasks, cut(parts)) for id_, tasks, parts in archive.groups]
    archive.tasks["a"] = {kind: cut(parts) for kind, parts in archive.tasks["a"].items()}
    return Case("base, vector, mask and private in two parts each", archive, {"a": one.decoded})


@case
def unmoved() -> Case:
    """A task that is the base."""
    one = One()
    one.start("w", floats("F32", noise("unmoved", 5)))
    one.start("i", Tensor("I64", (2,), noise_bytes("unmoved", 16)))
    one.put("w", kept("F32", (5,), "w"), "F32", (5,), one.base["w"].data)
    one.put("i", kept("I64", (2,), "i"), "I64", (2,), one.base["i"].data)
    return one.case("nothing moved: no vector part, no coded byte in the mask part", file=True)


@case
def no_base() -> Case:
    """A base without tensors."""
    one = One()
    one.private("h", floats("F32", [1.0, 2.0]))
    return one.case("a base without tensors, a task of private tensors alone")


@case
def chunk_sizes() -> Case:
    """Chunks of base and private parts need not be the mask's."""
    one = One()
    for name, vector_chunk, n in (("wide", 1024, 1100), ("narrow", 2048, 1100)):
        base, values = few("BF16", f"chunks {name}", n), np.full(n, 0.25, np.float32)
        one.start(name, base, values, codec="q4", chunk=vector_chunk)
        marks = symbols(f"chunks {name}", n, "binary", 0.1)
        item = mask(marks, "binary", "BF16", (n,), name, "adaptive", chunk=vector_chunk)
        one.put(name, item, "BF16", (n,), masked(base, "BF16", values, marks))
    archive = one.archive()
    items = archive.base_parts["base/base.safetensors"].items
    items["wide"] = whole(one.base["wide"], "planes+zstd", 2048)
    items["narrow"] = whole(one.base["narrow"], "planes+zstd", 1024)
    return Case("base chunks larger and smaller than the mask's", archive, {"a": one.decoded}, file=True)


@case
def layout() -> Case:
    """White space, and coded bytes in another order than the entries."""
    one = One()
    for name in "abc":
        base, values = floats("F32", noise(f"layout {name}", 11, 118, 126)), noise(f"layout v {name}", 11, 110, 118)
        one.start(name, base, values)
        marks = symbols(f"layout {name}", 11, "binary")
        one.put(name, mask(marks, "binary", "F32", (11,), name), "F32", (11,), masked(base, "F32", values, marks))
    archive = one.archive(indent=3)
    for part in archive.parts().values():
        part.indent, part.stored = 2, ["c", "a", "b"]
    return Case("indented JSON; coded bytes in another order than the entries", archive, {"a": one.decoded})


@case
def exact() -> Case:
    """A task with an `exact` part."""
    one = One()
    originals: dict[str, Tensor] = {}
    items: dict[str, Item] = {}
    for dtype in MASKABLE:
        base = floats(dtype, noise(f"exact {dtype}", 44, 118, 126), (11, 4))
        values = noise(f"exact v {dtype}", 44, 110, 118)
        one.start(dtype, base, values)
        marks = symbols(f"exact {dtype}", 40, "binary")
        own = floats(dtype, noise(f"exact own {dtype}", 8), (2, 4))
        one.privates[dtype] = whole(own)
        data = masked(base, dtype, values, marks) + own.data
        one.put(dtype, mask(marks, "binary", dtype, (12, 4), dtype, rows=10), dtype, (12, 4), data)
        near = wide(dtype, data, dtype) * (1 + noise(f"exact near {dtype}", 48, 110, 112).astype(np.float64) ** 2)
        true = narrow(dtype, near[:40].astype(np.float64 if dtype == "F64" else np.float32)) + own.data
        true = _far(true, BYTES[dtype])
        originals[dtype] = Tensor(dtype, (12, 4), true)
        lost = _differences(true[: 40 * BYTES[dtype]], data, BYTES[dtype])
        word = Tensor({2: "U16", 4: "U32", 8: "U64"}[BYTES[dtype]], (10, 4), lost)
        items[dtype] = whole(word, "planes+zstd" if dtype != "F16" else "raw", kind="difference")
    one.private("h", floats("F32", [1.0]))
    originals["h"] = one.decoded["h"]
    archive = one.archive()
    archive.tasks["a"]["exact"] = {"tasks/a/exact.safetensors": Part("exact", "a", items)}
    return Case(
        "a task with an exact part: decoded/ is without it, exact/ with it",
        archive,
        {"a": one.decoded},
        exact={"a": originals},
    )


def _far(data: bytes, size: int) -> bytes:
    """The first two elements as far away as they can be: a NaN, and the sign bit changed."""
    return b"\xff" * size + data[size : 2 * size - 1] + bytes([data[2 * size - 1] ^ 0x80]) + data[2 * size :]


def _differences(original: bytes, decoded: bytes, size: int) -> bytes:
    """What is stored for each element, by the page's words."""
    out = b""
    for at in range(0, len(original), size):
        d = int.from_bytes(original[at : at + size], "little") - int.from_bytes(decoded[at : at + size], "little")
        half = 1 << (8 * size - 1)
        d = (d + half) % (2 * half) - half
        out += (2 * d if d >= 0 else -2 * d - 1).to_bytes(size, "little")
    return out


@case
def adapter() -> Case:
    """A task that is an adapter: whole tensors under its own names, and files of its base among its files."""
    one = One()
    one.start("fc.weight", few("F32", "adapter base", 12, (3, 4)))
    one.private("base_model.model.fc.lora_A.weight", few("F32", "adapter a", 8, (2, 4)))
    one.private("base_model.model.fc.lora_B.weight", few("BF16", "adapter b", 6, (3, 2)))
    files = {
        "tasks/a/files/adapter_config.json": dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}),
        "common/base_model/config.json": b"{}\n",
    }
    return one.case(
        "a task that is an adapter, with files of its own and of its base",
        version="1.1",
        files=files,
        task_files={
            "a": {
                "adapter_config.json": "tasks/a/files/adapter_config.json",
                "base_model/config.json": "common/base_model/config.json",
            }
        },
        task_facts={
            "a": {
                "weights": [{"path": "adapter_model.safetensors"}],
                "adapter": {"type": "LORA", "base_files": "base_model/"},
            }
        },
    )
