"""Check an archive: every byte against every hash, every reference against its target, every code for sense."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from tallstore.archive.binding import shapes_of
from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Reader, RenewedError, once_more
from tallstore.checkpoints import Checkpoint, respelled, same_share
from tallstore.errors import DamagedError, FormatError, ModelMismatchError
from tallstore.format import limits
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import MANIFEST
from tallstore.tensors import TORCH, as_bytes

_UNLISTED = ("README.md", ".gitattributes", ".git/", ".cache/")
"""What may lie in an archive's folder beside what the manifest lists: a model card, and the Hub client's own."""


_COMPUTED = frozenset(TORCH[dtype] for dtype in MASKABLE)


@dataclass(frozen=True, kw_only=True)
class Against:
    """One task compared with its original."""

    relative_error: float | None
    """‖θ̂ − θ‖ / ‖θ − θ0‖ over the tensors that have a base; None if the original did not move."""
    cosine: float | None
    """⟨τ̂, τ⟩ / (‖τ̂‖·‖τ‖) over the same; None if either did not move."""
    exact: bool
    """Whether every tensor is the original's to the last bit."""
    whole_tensors_exact: bool
    """Whether the tensors that are stored whole are."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked. Anything wrong is raised, not reported."""

    files: int
    bytes: int
    tasks: tuple[str, ...]
    unlisted: tuple[str, ...] = ()
    """Files in the folder that the manifest does not list: no part of the archive."""
    against: Mapping[str, Against] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def verify_archive(
    reader: Reader, decoder: Decoder, *, embedded: bool, progress: Callable[[str, int, int], None] | None
) -> VerifyReport:
    """Check hashes of all files, then the sense of every entry and every chunk."""
    manifest = reader.manifest
    total = sum(record.size for record in manifest.parts.values())
    done = 0
    for path, record in manifest.parts.items():
        if (size := reader.store.size(path)) != record.size:
            raise DamagedError(
                f"{reader.where(path)}: {size} bytes, and the manifest says {record.size}: fetch it again"
            )
        try:
            _check_whole(reader, path, done, total, progress)
        except RenewedError:
            once_more(_check_whole, reader, path, done, total, progress)
        done += record.size
        if record.header_size is not None:
            reader.check_padding(path)
    for group in manifest.groups:
        decoder.check_vector(group.id)
    for task in manifest.tasks:
        decoder.check(task)
        decoder.check_codes(task)
    unlisted = tuple(
        path
        for path in reader.store.paths()
        if path != MANIFEST and path not in manifest.parts and not path.startswith(_UNLISTED)
    )
    if unlisted and not reader.store.open_ended:
        raise FormatError(f"{reader.store.url}: holds {unlisted[0]!r}, which the manifest does not list")
    if embedded:
        _check_base(reader, decoder)
    return VerifyReport(files=len(manifest.parts) + 1, bytes=total, tasks=tuple(manifest.tasks), unlisted=unlisted)


def _check_whole(
    reader: Reader, path: str, done: int, total: int, progress: Callable[[str, int, int], None] | None
) -> None:
    for piece in reader.whole(path):
        done += len(piece)
        if progress is not None:
            progress(path, done, total)


def _check_base(reader: Reader, decoder: Decoder) -> None:
    for name, facts in reader.manifest.base.tensors.items():
        decoder.check_base(name)
        digest, total = hashlib.sha256(), facts.numel
        for start in range(0, total, limits.CHUNK_MAX):
            digest.update(as_bytes(decoder.base_range(name, start, min(start + limits.CHUNK_MAX, total))).data)
        if digest.hexdigest() != facts.sha256:
            raise DamagedError(f"{reader.store.url}: base tensor {name!r} is not the one that the manifest identifies")


def compare(decoder: Decoder, task: str, original: Checkpoint) -> Against:
    """Decode a task tensor by tensor and compare it with its original checkpoint."""
    places = decoder.task(task)
    original = respelled(original, None, partial(same_share, shapes=shapes_of(places)))
    if odd := sorted(set(places) ^ set(original.tensors)):
        raise ModelMismatchError(f"{original.where}: not the original of {task!r}: tensor {odd[0]!r} is in one alone")
    error = norm = kept = dot = 0.0
    exact = whole = True
    for name, place in places.items():
        ours = decoder.tensors(task, [name])[name].reshape(-1)
        info = original.tensors[name]
        theirs = original.read(name, 0, info.numel)
        if (ours.dtype, ours.numel()) != (theirs.dtype, theirs.numel()):
            raise ModelMismatchError(
                f"{original.where}: not the original of {task!r}: tensor {name!r} differs in shape"
            )
        same = not ours.numel() or torch.equal(ours.view(torch.uint8), theirs.contiguous().view(torch.uint8))
        exact &= same
        codes = place.entry.kind == "lossless" and place.entry.dtype not in MASKABLE
        if codes or place.entry.kind in {"private", "tied"} or theirs.dtype not in _COMPUTED:
            whole &= same
            continue
        n = place.entry.covered
        start = decoder.base_tensor(str(place.entry.base)).reshape(-1)[:n].to(theirs.dtype)
        tau, back = _apart(theirs[:n], start), _apart(ours[:n], start)
        if not same:
            error += float(_apart(ours[:n], theirs[:n]).square_().sum())
        norm += float(tau @ tau)
        kept += float(back @ back)
        dot += float(tau @ back)
    return Against(
        relative_error=(math.sqrt(error / norm) if error else 0.0) if norm else None,
        cosine=(1.0 if exact else dot / math.sqrt(norm * kept)) if norm and kept else None,
        exact=bool(exact),
        whole_tensors_exact=bool(whole),
    )


def _apart(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left − right, in float64. What is no number in both is no difference: NaN and Inf come back as they were."""
    a, b = left.double(), right.double()
    return (a - b).masked_fill_((a == b) | (a.isnan() & b.isnan()), 0.0)
