"""Archives with tasks made of others that every reader must refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .build import Archive, Facts, Item, Part
from .invalid import add
from .valid_relatives import Family, plain

LINEAR: Facts = {"method": "linear", "weights": [0.5, 0.5]}
TIES: Facts = {"method": "ties", "weights": [1, 1], "thresholds": [0, 0], "sign": 1, "average": True}


def family() -> Family:
    """Tasks a, b, c and a merge of two."""
    found = plain(types=("F32",))
    found.made_of("mix", ["a", "b"], LINEAR, "a")
    return found


def edited(spoil: Callable[[Facts], Any], archive: Archive) -> dict[str, bytes]:
    """The same with the manifest's tasks changed before the hash is taken."""
    archive.on_manifest = lambda facts: spoil(facts["tasks"]) and None
    return archive.build()


def _manifests() -> None:
    def relatives(**more: Any) -> Callable[[Facts], Any]:
        return lambda tasks: tasks["mix"]["relatives"].update(more)

    cases: tuple[tuple[str, str, str, str, Callable[[Facts], Any]], ...] = (
        ("not-there", "a task that is not there", "FormatError", "'z'", relatives(tasks=["a", "z"])),
        ("itself", "a task made of itself", "FormatError", "made of", relatives(tasks=["a", "mix"])),
        ("twice", "a task named twice", "FormatError", "different", relatives(tasks=["a", "a"])),
        ("none", "no tasks", "FormatError", "tasks", relatives(tasks=[])),
        ("head-stranger", "a head that is none of the tasks", "FormatError", "head", relatives(head="c")),
        ("method-unknown", "an unknown method", "CodecError", "dare", relatives(merge=LINEAR | {"method": "dare"})),
        ("weights-few", "a weight too few", "FormatError", "weights", relatives(merge=LINEAR | {"weights": [1]})),
        ("weight-text", "a weight as text", "FormatError", "weights", relatives(merge=LINEAR | {"weights": ["1", 1]})),
        ("weight-large", "a weight that no F32 holds", "FormatError", "float32",
         relatives(merge=LINEAR | {"weights": [1e39, 0]})),
        ("k-missing", "consensus without k", "FormatError", "k None",
         relatives(merge=LINEAR | {"method": "consensus"})),
        ("threshold-double", "a threshold that is no F32", "FormatError", "thresholds",
         relatives(merge=TIES | {"thresholds": [0.1, 0]})),
        ("threshold-negative", "a negative threshold", "FormatError", "thresholds",
         relatives(merge=TIES | {"thresholds": [-1, 0]})),
        ("sign-other", "a sign of 2", "FormatError", "sign", relatives(merge=TIES | {"sign": 2})),
        ("average-number", "average as a number", "FormatError", "average", relatives(merge=TIES | {"average": 1})),
        ("without-parts", "no part that says so", "FormatError", "part", lambda t: t["mix"]["parts"].update(mask=[])),
    )  # fmt: skip
    for name, about, error, mentions, spoil in cases:
        add(f"relatives-{name}", about, error, "open", mentions, edited(spoil, family().archive()))
    circle = family()
    circle.made_of("other", ["mix"], {"method": "linear", "weights": [1]})
    made = edited(lambda t: t["mix"]["relatives"].update(tasks=["a", "other"]), circle.archive())
    add("relatives-circle", "two tasks made of each other", "FormatError", "open", "made of", made)
    chain, before = family(), "mix"
    for number in range(8):
        chain.made_of(f"m{number}", [before], {"method": "linear", "weights": [1]})
        before = f"m{number}"
    add("relatives-deep", "a chain of nine", "FormatError", "open", "chain", chain.archive().build())
    wide_, before_ = plain(types=("F32",)), ["a", "b", "c"]
    for level in range(7):
        names = [f"l{level}{side}" for side in "xyz"]
        for name in names:
            wide_.made_of(name, before_, {"method": "linear", "weights": [1, 1, 1]})
        before_ = names
    add("relatives-much", "3^7 tasks in all", "FormatError", "open", "in all", wide_.archive().build())


def _tasks() -> None:
    """Spoiled tasks, each beside sound ones; `a` is sound."""
    found = plain(types=("F32",))
    shape = list(found.base["F32"].shape)
    tasks: dict[str, tuple[str, str, str]] = {}

    def spoilt(name: str, about: str, error: str, mentions: str, item: Item, merge: Facts = LINEAR) -> None:
        found.made_of(name, ["a", "b"], merge)
        found.items[name] = {"F32": item}
        tasks[name] = about, error, mentions

    entry: Facts = {"kind": "base", "dtype": "F32", "shape": shape, "base": "F32"}
    more: Facts = {"method": "arithmetic", "weights": [1, 1]}
    spoilt("few", "a start of one weight", "FormatError", "weights", (entry | {"start": [1]}, None))
    spoilt("zeros", "a start of zeros", "FormatError", "nothing", (entry | {"start": [0, 0]}, None))
    spoilt("text", "a start that is no array", "FormatError", "weights", (entry | {"start": "merge"}, None))
    spoilt("shape", "another shape", "FormatError", "shape", (entry | {"shape": [10, 250], "start": []}, None))
    spoilt("type", "a type that is not merged", "FormatError", "I32", (entry | {"dtype": "I32", "start": []}, None))
    spoilt("rows", "more rows than there are", "FormatError", "rows", (entry | {"rows": 251, "start": []}, None))
    bare = {key: value for key, value in entry.items() if key != "base"}
    spoilt("baseless", "by differences from nothing", "FormatError", "base", (bare | {"start": []}, None), more)
    spoilt("no-start", "neither base nor start", "FormatError", "lacks base", (bare, None))
    found.made_of("lacking", ["a", "b"], LINEAR)
    found.items["lacking"] = {"other": (bare | {"start": []}, None)}
    tasks["lacking"] = "a tensor that the others lack", "FormatError", "no such tensor"
    found.made_of("counted", ["a", "b"], LINEAR)
    found.items["counted"] = {"count": ({"kind": "base", "dtype": "I64", "shape": [2], "start": []}, None)}
    tasks["counted"] = "whole numbers merged", "FormatError", "I64"
    archive = found.archive()
    part = Part("mask", "plain-part", {"F32": found.items["a"]["F32"]})
    archive.tasks["plain-part"] = {"mask": {"tasks/plain-part/m": part}}
    archive.task_facts["plain-part"] = {"relatives": {"tasks": ["a", "b"], "merge": LINEAR}}
    archive.groups[0][1].append("plain-part")
    tasks["plain-part"] = "a mask part in place of a relative one", "FormatError", "relative"
    add("relatives", "tasks that their relatives do not fit", "FormatError", "decode", "", archive.build(), tasks=tasks)


def make() -> None:
    """Register them all."""
    _manifests()
    _tasks()
