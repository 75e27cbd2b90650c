"""Archives to report on: scored ones, large ones, and one by a stranger who means harm."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from support import State, near, noise, tiny_zoo

import tallstore
from tallstore.format.manifest import MANIFEST, Manifest

MASKED = ("layers", "agreement", "overlap")
EVERY = ("bytes", "tasks", *MASKED)
HARM = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'>\"'&amp;]]>--></style></svg>"
TURNED = "turn\u202eed\ufffe<b>.weight"
VOID = {"meta", "link", "input", "br", "img"}


def deep_zoo(tasks: int, layers: int = 4) -> tuple[State, dict[str, State]]:
    """Tasks that each move every layer of a base, and have a head."""
    base = {f"net.layer.{n}.fc.weight": noise(24, 24, seed=n) for n in range(layers)}
    base |= {"net.emb.weight": noise(30, 24, seed=99), "net.norm.bias": noise(16)}
    found = {}
    for t in range(tasks):
        state = {name: near(tensor, seed=layers * t + i) for i, (name, tensor) in enumerate(base.items())}
        found[f"task-{t:02d}"] = state | {"head.weight": noise(2 + t % 3, 24, seed=t)}
    return base, found


def edit(folder: Path, **changes: Any) -> None:
    """Write other facts into an archive's manifest. `measured` and `source` are put into every task."""
    path = folder / MANIFEST
    manifest = Manifest.from_bytes(path.read_bytes())
    of_tasks = {key: changes.pop(key) for key in ("measured", "source") if key in changes}
    tasks = {name: replace(task, **of_tasks) for name, task in manifest.tasks.items()}
    path.write_bytes(replace(manifest, tasks=tasks, **changes).to_bytes())


def scored(folder: Path, tasks: int = 3) -> Path:
    """An archive whose tasks were scored; the second one lost most."""
    tallstore.pack(*deep_zoo(tasks), folder)
    path = folder / MANIFEST
    manifest = Manifest.from_bytes(path.read_bytes())
    scores = {
        name: {"original": 0.8, "decoded": 0.8 - (0.04 if n == 1 else 0.001 * n)}
        for n, name in enumerate(manifest.tasks)
    }
    found = {n: replace(t, measured=dict(t.measured) | {"scores": scores[n]}) for n, t in manifest.tasks.items()}
    path.write_bytes(replace(manifest, tasks=found).to_bytes())
    return folder


def hostile(folder: Path) -> Path:
    """What the format allows a stranger to write, wherever he may write."""
    base, tasks = tiny_zoo(3)
    for seed, name in enumerate((HARM, TURNED), 70):  # equal ones would be stored once
        base[name] = noise(20, 20, seed=seed)
    for n, state in enumerate(tasks.values()):
        state |= {name: near(base[name], seed=n) for name in (HARM, TURNED)}
        state[f"{HARM}.$\\frac{{1}}{{2}}$.{chr(0x202E)}\u4e2d\u6587"] = torch.ones(3)
    tallstore.pack(base, tasks, folder)
    manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
    edit(
        folder,
        writer=HARM,
        base=replace(manifest.base, source={HARM: HARM, "repo": "javascript:alert(1)"}),
        groups=tuple(replace(group, recipe={HARM: [HARM, {"id": HARM}]}) for group in manifest.groups),
        options={HARM: {HARM: HARM}, "long": "x" * 100_000, "escape": "\x1b[31mred\x07"},
        measured={"relative_error": HARM, "cosine": [HARM], "density": True, "scores": HARM, "checkpoint_bytes": HARM},
        source={"repo": HARM, "commit": HARM},
    )
    return folder


class Outline(HTMLParser):
    """Elements and text of a page; fails where one is not closed, or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag}: an attribute is there twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]
