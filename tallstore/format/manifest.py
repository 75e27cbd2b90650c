"""`tall.json`: what an archive holds. Written last, so that a folder without it is not an archive.

The manifest names every part with its size and hashes, the base's identity, the groups and the tasks. It carries
its own hash, and the hash of every part's header, so that a reader who checks what it reads, piece by piece, can be
led astray by no flipped bit anywhere.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tallstore.errors import DamagedError, FormatError, TaskNameError
from tallstore.format import limits, strict_json
from tallstore.format.adapter import Adapter
from tallstore.format.data_files import is_data_name
from tallstore.format.dtypes import check_count, check_dtype, count, size_of
from tallstore.format.layout import WeightsFile, check_layout
from tallstore.format.names import check_file_names, check_paths, check_task_names, check_tensor_name
from tallstore.format.part import is_hex
from tallstore.format.relatives import Relatives, check_relatives
from tallstore.format.safetensors import check_shape, is_count
from tallstore.format.version import VERSION, check_version, needed, newest

MANIFEST = "tall.json"
FORMAT = "tallstore"
STORAGES = ("embed", "reference")
TASK_PARTS = ("mask", "private", "exact")

_DIGITS = 64
_SELF_HASH = re.compile(rb'"sha256": ?"([0-9a-f]{64})"')


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """A file of the archive: bytes, sha256, and for parts the same of prefix and header (None for plain files)."""

    size: int
    sha256: str
    header_size: int | None = None
    header_sha256: str | None = None
    version: str = field(default=VERSION, compare=False)
    """Of the format, that a part says itself; known to whoever writes it. The manifest has no record of it."""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        out: dict[str, Any] = {"size": self.size, "sha256": self.sha256}
        if self.header_size is not None:
            out["header"] = {"size": self.header_size, "sha256": self.header_sha256}
        return out

    @classmethod
    def from_json(cls, value: Any, where: str) -> PartRecord:
        """Parse and validate."""
        size, sha256 = _sized(value, where)
        header = value.get("header")
        if header is None:
            return cls(size=size, sha256=sha256)
        header_size, header_sha256 = _sized(header, f"{where}: header")
        if header_size > size:
            raise FormatError(f"{where}: the header is longer than the part")
        return cls(size=size, sha256=sha256, header_size=header_size, header_sha256=header_sha256)


@dataclass(frozen=True, kw_only=True)
class BaseTensor:
    """Identity of one base tensor: type, shape, and sha256 of its bytes (little-endian, row-major)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def numel(self) -> int:
        """Elements; bytes of packed types."""
        return count(self.dtype, self.shape)

    @classmethod
    def from_json(cls, value: Any, where: str) -> BaseTensor:
        """Parse and validate."""
        if not isinstance(value, dict) or not is_hex(value.get("sha256"), _DIGITS):
            raise FormatError(f"{where}: not a tensor's identity")
        dtype, shape = check_dtype(value.get("dtype"), where), check_shape(value.get("shape"), where)
        check_count(dtype, shape, where)
        return cls(dtype=dtype, shape=shape, sha256=value["sha256"])


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base: where it is, what it is, tensor by tensor."""

    storage: str
    """`embed`: in the archive's own parts. `reference`: elsewhere; identified, not contained."""
    tensors: Mapping[str, BaseTensor]
    parts: tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    """Where it came from if that is known to others: `repo`, `commit`."""

    @property
    def bytes(self) -> int:
        """What the base's tensors take in memory."""
        return sum(size_of(t.dtype, t.shape) for t in self.tensors.values())

    @property
    def identity(self) -> str:
        """sha256 over name, dtype, shape and hash of every tensor, sorted by name: sharding does not change it."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors, key=lambda n: n.encode()):
            tensor = self.tensors[name]
            shape = ",".join(map(str, tensor.shape))
            digest.update(f"{name}\0{tensor.dtype}\0{shape}\0{tensor.sha256}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tasks that share one multi-task vector, and the parts that hold it."""

    id: str
    tasks: tuple[str, ...]
    parts: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How the encoder made it: information, never needed to decode."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: its group, its parts by kind, its files, and what was measured when it was packed."""

    group: str
    parts: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str] = field(default_factory=dict)
    """Name in the model's folder → path in the archive (under the task, a relative, or `common/`). Those whose names
    end as pickles' may are in a member of their own there, `data`."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """relative_error, cosine, density, parameters, bytes, …: information, never needed to decode."""
    source: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[WeightsFile, ...] = ()
    """Where its tensors are in the model's folder; none if that is one `model.safetensors`."""
    adapter: Adapter | None = None
    """What is said of a task that is an adapter: its tensors are the adapter's, all stored whole."""
    relatives: Relatives | None = None
    """The tasks that it is made of; None where that is the base alone."""

    @property
    def bit_for_bit(self) -> bool:
        """Whether every tensor decodes to the original's to the last bit, as the packer says."""
        return self.measured.get("bit_for_bit") is True

    def number(self, *keys: str) -> float | None:
        """A measured number; None where there is none. What stands there is anybody's JSON, so it is looked at."""
        value: Any = self.measured
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if isinstance(value, bool) or not isinstance(value, int | float) else finite(float(value))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of `tall.json`."""

    base: Base
    groups: tuple[Group, ...]
    tasks: Mapping[str, Task]
    parts: Mapping[str, PartRecord]
    writer: str = "tallstore"
    options: Mapping[str, Any] = field(default_factory=dict)
    """The encoder's options: information, never needed to decode."""
    version: str = VERSION
    """At least what it needs that it says, and what its parts need if they were just written."""

    def __post_init__(self) -> None:
        words = {tensor.dtype for tensor in self.base.tensors.values()}
        for task in self.tasks.values():
            words |= task.parts.keys()
            words |= {"task.weights"} if task.weights else set()
            words |= {"task.adapter"} if task.adapter is not None else set()
            words |= {"task.relatives"} if task.relatives is not None else set()
            words |= {"task.data"} if any(map(is_data_name, task.files)) else set()
        parts = {record.version for record in self.parts.values()}
        object.__setattr__(self, "version", newest((self.version, needed(words), *parts)))

    def warned(self, sentences: Mapping[str, Sequence[str]]) -> Manifest:
        """With sentences added to those that whoever uses a task should know; tasks that are not there have none."""
        tasks = dict(self.tasks)
        for name in sentences.keys() & tasks.keys():
            if sentences[name]:
                measured = tasks[name].measured
                told = {**measured, "warnings": [*measured.get("warnings", ()), *sentences[name]]}
                tasks[name] = replace(tasks[name], measured=told)
        return replace(self, tasks=tasks)

    def bytes_by_kind(self, manifest_bytes: int) -> dict[str, int]:
        """Bytes on disk: base, vector, masks, private, exact, files, manifest, total."""
        kinds: dict[str, Sequence[str]] = {"base": self.base.parts, "vector": [p for g in self.groups for p in g.parts]}
        for kind, key in (("masks", "mask"), ("private", "private"), ("exact", "exact")):
            kinds[kind] = [p for t in self.tasks.values() for p in t.parts.get(key, ())]
        sizes = {kind: sum(self.parts[path].size for path in paths) for kind, paths in kinds.items()}
        sizes["files"] = sum(record.size for record in self.parts.values()) - sum(sizes.values())
        sizes["manifest"] = manifest_bytes
        return sizes | {"total": sum(sizes.values())}

    def bits_per_parameter(self, manifest_bytes: int) -> float:
        """Bits a parameter and task: vector, masks and private tensors, over the parameters of all tasks."""
        by_kind = self.bytes_by_kind(manifest_bytes)
        parameters = sum(int(task.number("parameters") or 0) for task in self.tasks.values())
        return 8 * (by_kind["vector"] + by_kind["masks"] + by_kind["private"]) / parameters if parameters else 0.0

    def to_bytes(self) -> bytes:
        """As written to disk: indented JSON, the file's own sha256 (taken with its digits as zeros) filled in."""
        facts = {
            "format": FORMAT,
            "version": self.version,
            "sha256": "0" * _DIGITS,
            "writer": self.writer,
            "base": {
                "storage": self.base.storage,
                "identity": self.base.identity,
                "source": dict(self.base.source),
                "parts": list(self.base.parts),
                "tensors": {name: asdict(tensor) for name, tensor in self.base.tensors.items()},
            },
            "groups": [asdict(group) for group in self.groups],
            "tasks": {name: _task_to_json(task) for name, task in self.tasks.items()},
            "parts": {path: record.to_json() for path, record in self.parts.items()},
            "options": dict(self.options),
        }
        data = strict_json.dumps(facts, indent=1) + b"\n"
        return data.replace(b"0" * _DIGITS, hashlib.sha256(data).hexdigest().encode(), 1)

    @classmethod
    def from_bytes(cls, data: bytes, where: str = MANIFEST) -> Manifest:
        """Parse and validate everything: hash, version, names, and that every reference within meets its target."""
        if len(data) > limits.MANIFEST_BYTES:
            raise FormatError(f"{where}: {len(data)} bytes are over the cap of {limits.MANIFEST_BYTES}")
        facts = strict_json.loads(data, where)
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise FormatError(f"{where}: not a tallstore manifest")
        version = check_version(facts.get("version"), where)
        _check_self_hash(data, facts, where)
        for key, kind in (("base", dict), ("groups", list), ("tasks", dict), ("parts", dict)):
            if not isinstance(facts.get(key), kind):
                raise FormatError(f"{where}: {key!r} is missing or of the wrong type")
        manifest = cls(
            version=version,
            base=_base(facts["base"], f"{where}: base"),
            groups=tuple(_group(g, f"{where}: group {n}") for n, g in enumerate(facts["groups"])),
            tasks={name: _task(value, f"{where}: task {name!r}") for name, value in facts["tasks"].items()},
            parts=_parts(facts["parts"], where),
            writer=str(facts.get("writer", "")),
            options=_object(facts.get("options", {}), f"{where}: options"),
        )
        manifest._check(where, facts["base"])
        return manifest

    def _check(self, where: str, base: Mapping[str, Any]) -> None:
        if not 1 <= len(self.tasks) <= limits.TASKS:
            raise FormatError(f"{where}: {len(self.tasks)} tasks, where 1 to {limits.TASKS} are allowed")
        try:
            check_task_names(self.tasks)
        except TaskNameError as error:
            raise FormatError(f"{where}: {error}") from error
        if base.get("identity") != self.base.identity:
            raise FormatError(f"{where}: the base's identity is not that of its tensors")
        if len({group.id for group in self.groups}) != len(self.groups):
            raise FormatError(f"{where}: two groups have one id")
        self._check_groups(where)
        self._check_references(where)
        relatives = {name: task.relatives for name, task in self.tasks.items() if task.relatives is not None}
        check_relatives(relatives, self.tasks, where)

    def _check_groups(self, where: str) -> None:
        home = {task: group.id for group in self.groups for task in group.tasks}
        listed = [task for group in self.groups for task in group.tasks]
        if sorted(listed) != sorted(self.tasks) or any(task.group != home[n] for n, task in self.tasks.items()):
            raise FormatError(f"{where}: groups and tasks disagree on who belongs where")

    def _check_references(self, where: str) -> None:
        for path in self.base.parts:
            self._part(path, "base/", where)
        for group in self.groups:
            for path in group.parts:
                self._part(path, "vector/", where)
        for name, task in self.tasks.items():
            for paths in task.parts.values():
                for path in paths:
                    self._part(path, f"tasks/{name}/", where)
            others = task.relatives.tasks if task.relatives is not None else ()
            folders = ("common/", *(f"tasks/{each}/files/" for each in (name, *others)))
            for path in task.files.values():
                if path not in self.parts or not path.startswith(folders):
                    raise FormatError(f"{where}: task {name!r} names the file {path!r}, which is not one of its own")
                if self.parts[path].size > limits.FILE_BYTES:
                    raise FormatError(f"{where}: file {path!r} is over the cap of {limits.FILE_BYTES} bytes")

    def _part(self, path: str, folder: str, where: str) -> None:
        if path not in self.parts or self.parts[path].header_size is None or not path.startswith(folder):
            raise FormatError(f"{where}: {path!r} is not a part in {folder}")


def _check_self_hash(data: bytes, facts: Mapping[str, Any], where: str) -> None:
    match = _SELF_HASH.search(data)
    if match is None or facts.get("sha256") != match[1].decode():
        raise FormatError(f"{where}: the manifest's own sha256 is missing")
    if not is_intact(data):
        raise DamagedError(f"{where}: damaged: its bytes differ from its own sha256; fetch or pack it again")


def is_intact(data: bytes) -> bool:
    """Whether a manifest's bytes are those that its own sha256 was taken of, whatever they say."""
    match = _SELF_HASH.search(data)
    if match is None:
        return False
    zeroed = data[: match.start(1)] + b"0" * _DIGITS + data[match.end(1) :]
    return hashlib.sha256(zeroed).hexdigest() == match[1].decode()


def _sized(value: Any, where: str) -> tuple[int, str]:
    if not isinstance(value, dict) or not is_count(value.get("size")) or not is_hex(value.get("sha256"), _DIGITS):
        raise FormatError(f"{where}: not a size and a sha256")
    return value["size"], value["sha256"]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{where}: not an object")
    return value


def _strings(value: Any, where: str) -> dict[str, str]:
    entries = _object(value, where)
    if not all(isinstance(v, str) for v in entries.values()):
        raise FormatError(f"{where}: not a map of strings")
    return entries


def _list(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or len(set(value)) != len(value):
        raise FormatError(f"{where}: not a list of distinct strings")
    return tuple(value)


def _parts(value: Mapping[str, Any], where: str) -> dict[str, PartRecord]:
    if len(value) > limits.PARTS:
        raise FormatError(f"{where}: {len(value)} files are over the cap of {limits.PARTS}")
    check_paths([MANIFEST, *value])
    return {path: PartRecord.from_json(record, f"{where}: part {path!r}") for path, record in value.items()}


def _base(value: Any, where: str) -> Base:
    facts = _object(value, where)
    if facts.get("storage") not in STORAGES:
        raise FormatError(f"{where}: storage {facts.get('storage')!r} is none of {', '.join(STORAGES)}")
    tensors = _object(facts.get("tensors"), f"{where}: tensors")
    if len(tensors) > limits.TENSORS:
        raise FormatError(f"{where}: more than {limits.TENSORS} tensors")
    parts = _list(facts.get("parts"), f"{where}: parts")
    if bool(parts) != (facts["storage"] == "embed" and bool(tensors)):
        raise FormatError(f"{where}: storage {facts['storage']!r} with {len(parts)} parts")
    return Base(
        storage=facts["storage"],
        tensors={check_tensor_name(n): BaseTensor.from_json(t, f"{where}: tensor {n!r}") for n, t in tensors.items()},
        parts=parts,
        source=_strings(facts.get("source", {}), f"{where}: source"),
    )


def _group(value: Any, where: str) -> Group:
    facts = _object(value, where)
    if not isinstance(facts.get("id"), str):
        raise FormatError(f"{where}: no id")
    return Group(
        id=facts["id"],
        tasks=_list(facts.get("tasks"), f"{where}: tasks"),
        parts=_list(facts.get("parts"), f"{where}: parts"),
        recipe=_object(facts.get("recipe", {}), f"{where}: recipe"),
    )


def _task_to_json(task: Task) -> dict[str, Any]:
    data = {name: path for name, path in task.files.items() if is_data_name(name)}
    return {
        "group": task.group,
        "parts": {kind: list(paths) for kind, paths in task.parts.items()},
        "files": {name: path for name, path in task.files.items() if name not in data},
        **({"data": data} if data else {}),
        **({"weights": [file.to_json() for file in task.weights]} if task.weights else {}),
        **({"adapter": task.adapter.to_json()} if task.adapter is not None else {}),
        **({"relatives": task.relatives.to_json()} if task.relatives is not None else {}),
        "source": dict(task.source),
        "measured": dict(task.measured),
    }


def _task(value: Any, where: str) -> Task:
    facts = _object(value, where)
    if not isinstance(facts.get("group"), str):
        raise FormatError(f"{where}: no group")
    parts = {k: _list(v, f"{where}: {k} parts") for k, v in _object(facts.get("parts"), f"{where}: parts").items()}
    if "mask" not in parts or not set(parts) <= set(TASK_PARTS):
        raise FormatError(f"{where}: parts of kinds {sorted(parts)}, expected mask and perhaps private, exact")
    files = _strings(facts.get("files", {}), f"{where}: files")
    data = _strings(facts.get("data", {}), f"{where}: data")
    if odd := next((name for name in data if not is_data_name(name)), None):
        raise FormatError(f"{where}: data: {odd!r} belongs in files")
    check_file_names(files, data)
    relatives = Relatives.from_json(facts["relatives"], f"{where}: relatives") if "relatives" in facts else None
    if relatives is not None and not parts["mask"]:
        raise FormatError(f"{where}: is made of other tasks, and has no part that says so")
    weights = _weights(facts.get("weights", []), f"{where}: weights")
    check_layout(weights, [*files, *data], where)
    return Task(
        group=facts["group"],
        parts=parts,
        files={**files, **data},
        weights=weights,
        adapter=Adapter.from_json(facts["adapter"], f"{where}: adapter") if "adapter" in facts else None,
        relatives=relatives,
        measured=_object(facts.get("measured", {}), f"{where}: measured"),
        source=_strings(facts.get("source", {}), f"{where}: source"),
    )


def _weights(value: Any, where: str) -> tuple[WeightsFile, ...]:
    if not isinstance(value, list):
        raise FormatError(f"{where}: not a list")
    return tuple(WeightsFile.from_json(each, f"{where}: file {number}") for number, each in enumerate(value))


def finite(value: float) -> float | None:
    """A measured number for the manifest: None where it is not finite (JSON has no NaN)."""
    return value if math.isfinite(value) else None


def names_of(tasks: Sequence[str]) -> str:
    """Task names for a message: all of them, or the first twenty and how many more."""
    shown = ", ".join(tasks[:20])
    return shown if len(tasks) <= 20 else f"{shown} and {len(tasks) - 20} more"


def depth_of(manifest: Manifest, task: str) -> int:
    """How long the longest chain is that a task is the end of."""
    relatives = manifest.tasks[task].relatives
    return 0 if relatives is None else 1 + max(depth_of(manifest, other) for other in relatives.tasks)
