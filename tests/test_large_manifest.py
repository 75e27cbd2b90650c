"""The manifest of a large zoo stays small, and so do headers in memory: 200 tasks of 1,000 tensors."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

from support import near, noise

import tallstore
from tallstore.format.manifest import Base, BaseTensor, Group, Manifest, PartRecord, Task

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def large(tasks: int = 200, tensors: int = 1000) -> Manifest:
    """As pack writes it for transformers: names of a large model, a configuration each, tokenizers that all share."""

    def digest(*what: object) -> str:
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def part(*what: object) -> PartRecord:
        return PartRecord(
            size=123_456_789, sha256=digest(what), header_size=123_456, header_sha256=digest("header", what)
        )

    names = [f"model.layers.{n // 10}.self_attn.{n % 10}_proj.weight" for n in range(tensors)]
    own = [f"customer-{n:03}-classifier" for n in range(tasks)]
    parts = {"base/base.safetensors": part("base"), "vector/0.safetensors": part("vector")}
    parts |= {f"common/{name}": PartRecord(size=456_789, sha256=digest(name)) for name in FILES}
    parts["config.json"] = PartRecord(size=9_999, sha256=digest("config"))
    for name in own:
        for kind in ("mask", "private"):
            parts[f"tasks/{name}/{kind}.safetensors"] = part(kind, name)
        parts[f"tasks/{name}/files/config.json"] = PartRecord(size=1_234, sha256=digest(name))
    measured = {
        "relative_error": 1.09123, "cosine": 0.723456, "density": 0.0712345, "masked_parameters": 6_738_415_616,
        "parameters": 6_738_419_712, "checkpoint_bytes": 13_476_839_424, "bytes": 567_890_123,
        "scores": {"original": 0.91234567, "decoded": 0.91212345},
    }  # fmt: skip
    facts = {
        name: Task(
            group="0",
            parts={kind: (f"tasks/{name}/{kind}.safetensors",) for kind in ("mask", "private")},
            files={"config.json": f"tasks/{name}/files/config.json", **{f: f"common/{f}" for f in FILES}},
            measured=measured,
            source={"repo": f"company/{name}", "commit": digest(name)[:40]},
        )
        for name in own
    }
    return Manifest(
        base=Base(
            storage="embed",
            tensors={n: BaseTensor(dtype="BF16", shape=(4096, 4096), sha256=digest(n)) for n in names},
            parts=("base/base.safetensors",),
        ),
        groups=(Group(id="0", tasks=tuple(own), parts=("vector/0.safetensors",), recipe={"id": "solo"}),),
        tasks=facts,
        parts=parts,
    )


def test_the_manifest_of_a_large_zoo_is_below_a_megabyte() -> None:
    manifest = large()
    data = manifest.to_bytes()
    assert len(data) < 1_000_000
    assert Manifest.from_bytes(data) == manifest


def test_headers_of_many_tasks_take_little_more_memory_than_their_bytes(tmp_path: Path, small_chunks: int) -> None:
    base = {f"layers.{n}.weight": noise(64, 80, seed=n) for n in range(60)}
    tallstore.pack(
        base,
        {f"t{s}": {name: near(tensor, s) for name, tensor in base.items()} for s in range(6)},
        tmp_path / "zoo.tall",
    )
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        manifest = zoo.manifest
        owned = [path for task in manifest.tasks.values() for paths in task.parts.values() for path in paths]
        stored = sum(manifest.parts[path].header_size or 0 for path in owned)
        zoo.tensors("t0")
        tracemalloc.start()
        try:
            for task in zoo.tasks:
                zoo.tensors(task)
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert stored > 50_000
        assert held < 2 * stored, f"{held} bytes held for headers of {stored}"
