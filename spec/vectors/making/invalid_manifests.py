"""Manifests, paths and names that every reader must refuse when it opens the archive."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from .build import Archive, Facts, Part, dumps, identity, sha256, signed
from .invalid import CASES, MASK, Case, Files, add, bare
from .numbers import floats

FILE = "tasks/a/files/x"


def empty() -> Archive:
    """A task without parts: the least that a manifest can hold."""
    return Archive(groups=[("0", ["a"], {})], tasks={"a": {"mask": {}}})


def alone(archive: Archive) -> Files:
    """A folder that holds nothing but a manifest: no reader gets further."""
    return {"tall.json": archive.build()["tall.json"]}


def edited(spoil: Callable[[Facts], Any], archive: Archive | None = None) -> Files:
    """A manifest changed before its hash is taken."""
    archive = archive or empty()
    archive.on_manifest = lambda facts: spoil(facts) and None
    return alone(archive)


def ending(text: bytes) -> Files:
    """A manifest that ends otherwise, its hash taken after that."""
    archive = empty()
    made: list[Facts] = []
    archive.on_manifest = lambda facts: made.append(copy.deepcopy(facts))
    archive.build()
    return {"tall.json": signed(dumps(made[0])[:-1] + text)}


def with_base(spoil: Callable[[Facts], Any], storage: str) -> Files:
    """A manifest with a base, its tensor `w` or all of it changed, and its identity taken after that."""
    archive = empty()
    archive.base, archive.storage = {"w": floats("F32", [1.0])}, storage
    if storage == "embed":
        archive.base_parts = {"base/b": Part("base", "", {})}

    def both(facts: Facts) -> None:
        spoil(facts["base"])
        facts["base"]["identity"] = identity(facts["base"]["tensors"])

    return edited(both, archive)


def _json() -> None:
    for name, about, mentions, files in (
        ("json-broken", "a comma too many", "JSON", ending(b",}")),
        ("json-empty", "a manifest of no bytes", "JSON", {"tall.json": b""}),
        (
            "json-cut-off",
            "the manifest's second half is missing",
            "JSON",
            {"tall.json": alone(empty())["tall.json"][:300]},
        ),
        ("json-trailing", "something behind the manifest", "JSON", ending(b"}{}")),
        ("json-bom", "a byte order mark", "JSON", {"tall.json": b"\xef\xbb\xbf" + alone(empty())["tall.json"]}),
        ("json-not-utf8", "a byte that is not UTF-8", "JSON", ending(b',"x":"\xff"}')),
        ("json-half-a-pair", "half a surrogate pair", "JSON", ending(b',"x":"\\ud800"}')),
        ("json-doubled-key", "a member twice", "twice", ending(b',"parts":{}}')),
        ("json-doubled-escaped", "a member twice, once in escapes", "twice", ending(b',"\\u0070arts":{}}')),
        (
            "json-utf16",
            "a manifest in UTF-16",
            "JSON",
            {"tall.json": alone(empty())["tall.json"].decode().encode("utf-16")},
        ),
        ("json-infinity", "Infinity as a number", "finite", ending(b',"x":-Infinity}')),
        ("json-overflow", "1e400", "range", ending(b',"x":1e400}')),
        ("json-comment", "a comment", "JSON", ending(b',/**/"x":1}')),
        ("json-zero-byte", "a zero byte behind the manifest", "JSON", ending(b"}\0")),
        ("json-nan", "NaN as a number", "finite", ending(b',"x":NaN}')),
        ("json-huge-integer", "2^53", "range", ending(b',"x":9007199254740992}')),
        ("json-long-integer", "an integer of 400 digits", "range", ending(b',"x":' + b"9" * 400 + b"}")),
        ("json-deep", "arrays nested 33 deep", "nested", ending(b',"x":' + b"[" * 32 + b"]" * 32 + b"}")),
        ("json-very-deep", "300 brackets that never close", "nested", ending(b',"x":' + b"[" * 300)),
        ("json-open-string", "escaped quotes in a string that never ends", "JSON", ending(b',"x":"' + b'\\"' * 200)),
    ):
        add(name, about, "FormatError", "open", mentions, files)


def _hash_late() -> Files:
    made: list[Facts] = []
    archive = empty()
    archive.on_manifest = lambda facts: made.append(copy.deepcopy(facts))
    archive.build()
    facts = made[0]
    return {"tall.json": signed(dumps({"format": facts.pop("format"), "x": {"sha256": "1" * 64}} | facts))}


def _header() -> None:
    CASES["manifest-missing"] = Case(
        "a folder without tall.json", "NotAnArchiveError", "open", "tall.json", files={"README.md": b"nothing here\n"}
    )
    files = bare().build()
    del files["tall.json"]
    add("manifest-missing-in-file", "a zip without tall.json", "NotAnArchiveError", "open", "tall.json", files)
    flipped = alone(empty())["tall.json"].replace(b'"0"', b'"1"')
    for name, about, error, mentions, files_ in (
        (
            "manifest-other-format",
            "another format",
            "FormatError",
            "manifest",
            edited(lambda m: m.update(format="zip")),
        ),
        ("manifest-lacks-member", "no tasks", "FormatError", "tasks", edited(lambda m: m.pop("tasks"))),
        (
            "manifest-hash-wrong",
            "a group renamed, the hash as it was",
            "DamagedError",
            "sha256",
            {"tall.json": flipped},
        ),
        ("manifest-hash-missing", "no hash of its own", "FormatError", "sha256", edited(lambda m: m.pop("sha256"))),
        ("manifest-hash-not-first", "another hash stands before its own", "FormatError", "sha256", _hash_late()),
        ("version-newer-major", "version 2.0", "VersionError", "2.0", edited(lambda m: m.update(version="2.0"))),
        ("version-malformed", "version 1", "FormatError", "version", edited(lambda m: m.update(version="1"))),
    ):
        add(name, about, error, "open", mentions, files_)


def _renamed(path: str) -> Files:
    def rename(facts: Facts) -> None:
        facts["parts"][path] = facts["parts"].pop(MASK)
        facts["tasks"]["a"]["parts"]["mask"] = [path]

    return edited(rename, bare())


def _listed(*paths: str) -> Files:
    return edited(lambda m: m["parts"].update(dict.fromkeys(paths, {"size": 0, "sha256": sha256(b"")})))


def _paths() -> None:
    for name, about, path in (
        ("path-traversal", "a part outside the archive", "tasks/a/../../../outside.safetensors"),
        ("path-absolute", "an absolute path", "/tasks/a/mask.safetensors"),
        ("path-double-slash", "an empty segment", "tasks/a//mask.safetensors"),
        ("path-backslash", "backslashes", "tasks\\a\\mask.safetensors"),
        ("path-drive", "a drive", "C:/tasks/a/mask.safetensors"),
        ("path-device", "a device of Windows", "tasks/a/NUL.safetensors"),
        ("path-address", "an address on the web", "https://example.org/mask.safetensors"),
        ("path-home", "a path that climbs from inside", "tasks/a/x/../../../../.ssh/id"),
        ("path-stream", "a file's second stream", "tasks/a/mask.safetensors:x"),
    ):
        add(name, about, "FormatError", "open", "path", _renamed(path))
    for name, about, path in (
        ("path-git", "a version control system's own folder", "common/.Git/hooks"),
        ("path-not-normal", "not in normal form C", "common/e\u0301"),
        ("path-control", "a control character", "common/x\n"),
        ("path-direction", "a character that turns the direction of text", "common/\u202etxt"),
        ("path-zero-width", "a character without width", "common/x\u200b"),
        ("path-tag", "a character for private use", "common/x\ue000"),
        ("path-superscript-device", "a device of Windows, with a superscript", "common/com¹.txt"),
        ("path-space-in-device", "a device of Windows, with a space before its ending", "common/con .txt"),
        ("path-bracket", "a pattern for file names", "common/[a-z]"),
        ("path-segment-long", "a segment of 256 bytes", "common/" + "m" * 256),
        ("path-space", "a space at a segment's end", "common/x "),
        ("path-dot-at-end", "a dot at a segment's end", "common/x."),
        ("path-long", "a path of 1,025 bytes", "common/" + "m/" * 508 + "mm"),
    ):
        add(name, about, "FormatError", "open", "path", _listed(path))
    for name, about, paths, mentions in (
        ("path-empty", "an empty path", ("",), "path"),
        ("paths-letter-case", "two paths that differ in letter case", ("common/a.txt", "common/A.txt"), "twice"),
        (
            "paths-case-folded",
            "two paths that are one as Unicode folds case",
            ("common/straße", "common/STRASSE"),
            "twice",
        ),
        ("paths-file-below-file", "a file below a file", ("common/a", "common/a/b"), "below"),
        ("paths-manifest-listed", "the manifest lists itself", ("Tall.json",), "twice"),
    ):
        add(name, about, "FormatError", "open", mentions, _listed(*paths))


def _files() -> None:
    for name, about, table, mentions in (
        ("file-as-weights", "a small file named as a model's weights", {"model.safetensors": FILE}, "weights"),
        ("file-as-pickle", "a small file named as a pickle", {"sub/Model.PKL": FILE}, "weights"),
        ("file-outside", "a small file's name leaves the model's folder", {"../x": FILE}, "path"),
        ("file-absolute", "a small file's name is absolute", {"/etc/passwd": FILE}, "path"),
        ("file-drive", "a small file's name is on a drive", {"C:/x": FILE}, "path"),
        ("file-hidden", "a small file's name is in a repository's own folder", {".git/config": FILE}, "path"),
        ("file-names-collide", "two names in letter case", {"a": FILE, "A": FILE}, "twice"),
        ("file-of-another-task", "a file of another task", {"x": "tasks/b/files/x"}, "tasks/b"),
        ("file-unlisted", "a file that the manifest does not list", {"x": "common/y"}, "common/y"),
        ("file-of-the-base", "a file in the base's folder", {"x": "base/x"}, "base/x"),
    ):
        archive = empty()
        archive.files, archive.task_files = dict.fromkeys(table.values(), b""), {"a": table}
        archive.files.pop("common/y", None)
        add(name, about, "FormatError", "open", mentions, alone(archive))
    archive = empty()
    archive.files, archive.task_files = {FILE: b""}, {"a": {"x": FILE}}
    made = edited(lambda m: m["parts"][FILE].update(size=(1 << 28) + 1), archive)
    add("file-over-cap", "a small file of 256 MiB and a byte", "FormatError", "open", "cap", made)


def _named(*tasks: str) -> Files:
    def rename(facts: Facts) -> None:
        facts["tasks"] = dict.fromkeys(tasks, facts["tasks"]["a"])
        facts["groups"][0]["tasks"] = list(tasks)

    return edited(rename)


def _structure() -> None:
    for name, task in {
        "empty": "", "slash": "x/y", "dots": "a..b", "device": "com1.x", "not-ascii": "ä", "long": "a" * 97,
    }.items():  # fmt: skip
        mentions = "com1" if name == "device" else "name"
        add(f"task-name-{name}", f"the task name {task[:8]!r}", "FormatError", "open", mentions, _named(task))
    add("task-names-letter-case", "two tasks in letter case", "FormatError", "open", "'A'", _named("a", "A"))
    for name, about, mentions, spoil in (
        ("tasks-none", "no task", "tasks", lambda m: (m.update(tasks={}), m["groups"][0].update(tasks=[]))),
        ("group-lacks-task", "a group does not list its task", "groups", lambda m: m["groups"][0].update(tasks=[])),
        ("group-lists-stranger", "a group lists a task that is not there", "groups",
         lambda m: m["groups"][0].update(tasks=["a", "z"])),
        ("group-other", "a task names another group", "groups", lambda m: m["tasks"]["a"].update(group="1")),
        ("group-twice", "two groups with one id", "one id",
         lambda m: m["groups"].append({"id": "0", "tasks": [], "parts": []})),
        ("task-in-two-groups", "a task in two groups", "groups",
         lambda m: m["groups"].append({"id": "1", "tasks": ["a"], "parts": []})),
        ("part-of-another-task", "a task's part lies in another task's folder", "tasks/a/",
         lambda m: (m["parts"].update({"tasks/b/m": m["parts"][MASK]}), m["tasks"]["a"]["parts"].update(mask=["tasks/b/m"]))),
        ("part-unlisted", "a part that the manifest does not list", "not a part",
         lambda m: m["tasks"]["a"]["parts"].update(mask=["tasks/a/other.safetensors"])),
        ("part-without-header", "a part whose header has no hash", "not a part", lambda m: m["parts"][MASK].pop("header")),
        ("part-twice", "a part listed twice by one task", "distinct",
         lambda m: m["tasks"]["a"]["parts"].update(mask=[MASK, MASK])),
        ("part-kind-unknown", "a kind of part that 1.x does not have", "kinds",
         lambda m: m["tasks"]["a"]["parts"].update(extra=[MASK])),
        ("part-kind-missing", "a task without mask parts", "mask", lambda m: m["tasks"]["a"].update(parts={})),
        ("part-size-negative", "a negative size", "size", lambda m: m["parts"][MASK].update(size=-1)),
        ("part-size-fraction", "a size with a fraction", "size", lambda m: m["parts"][MASK].update(size=1.0)),
        ("part-size-text", "a size as text", "size", lambda m: m["parts"][MASK].update(size="1")),
        ("part-size-true", "true as a size", "size", lambda m: m["parts"][MASK].update(size=True)),
        ("part-hash-malformed", "a hash in upper case", "sha256", lambda m: m["parts"][MASK].update(sha256="A" * 64)),
        ("part-header-longer", "a header longer than its part", "header",
         lambda m: m["parts"][MASK]["header"].update(size=1 << 20)),
        ("base-identity-wrong", "an identity of other tensors", "identity",
         lambda m: m["base"].update(identity="0" * 63 + "1")),
    ):  # fmt: skip
        archive = bare() if name.startswith("part-") else empty()
        add(name, about, "FormatError", "open", mentions, edited(spoil, archive))


def _base() -> None:
    for name, about, mentions, spoil in (
        ("base-storage-unknown", "an unknown storage", "storage", lambda b: b.update(storage="cloud")),
        ("base-referenced-with-parts", "a referenced base with parts", "parts", lambda b: b.update(storage="reference")),
        ("base-without-parts", "a base in the archive without parts", "parts", lambda b: b.update(parts=[])),
        ("base-dtype-unknown", "an unknown element type", "F5", lambda b: b["tensors"]["w"].update(dtype="F5")),
        ("base-too-many-elements", "2^49 elements", "elements", lambda b: b["tensors"]["w"].update(shape=[1 << 49])),
        ("base-product-overflows", "sizes whose product is 2^64", "elements",
         lambda b: b["tensors"]["w"].update(shape=[1 << 32, 1 << 32])),
        ("base-product-hidden", "a size of 0 beside one of 2^49", "elements",
         lambda b: b["tensors"]["w"].update(shape=[0, 1 << 49])),
        ("base-rank", "17 dimensions", "shape", lambda b: b["tensors"]["w"].update(shape=[1] * 17)),
        ("base-shape-negative", "a negative size", "shape", lambda b: b["tensors"]["w"].update(shape=[-8])),
        ("base-shape-true", "true as a size", "shape", lambda b: b["tensors"]["w"].update(shape=[True])),
        ("base-shape-fraction", "a size with a fraction", "shape", lambda b: b["tensors"]["w"].update(shape=[8.0])),
        ("base-source-number", "a source that is no text", "source", lambda b: b.update(source={"repo": 1})),
        ("base-name-empty", "an empty tensor name", "name", lambda b: _rename(b, "")),
        ("base-name-control", "a control character in a tensor name", "control", lambda b: _rename(b, "w\0")),
        ("base-name-long", "a tensor name of 1,025 bytes", "longer", lambda b: _rename(b, "w" * 1025)),
    ):  # fmt: skip
        storage = "embed" if mentions in {"parts", "storage"} else "reference"
        add(name, about, "FormatError", "open", mentions, with_base(spoil, storage))


def _rename(base: Facts, name: str) -> None:
    base["tensors"] = {name: base["tensors"]["w"]}


def make() -> None:
    """Register them all."""
    for step in (_json, _header, _paths, _files, _structure, _base):
        step()
