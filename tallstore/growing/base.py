"""The base of an archive that grows: its own, or one that is given where it only references it."""

from __future__ import annotations

from collections.abc import Mapping

from tallstore.archive.bases import base_needed
from tallstore.archive.checkpoint import ArchiveBase
from tallstore.archive.reader import Reader
from tallstore.checkpoints import Checkpoint, Source, open_checkpoint
from tallstore.errors import BaseNeededError, WrongBaseError
from tallstore.format.manifest import BaseTensor, Manifest


def base_of(reader: Reader, given: Source | None) -> Checkpoint:
    """What an archive was packed against: its own parts, or what is given where it only references it.

    Raises BaseNeededError where it must be given and is not; WrongBaseError, by tensor, for names, types or shapes
    that are not the base's. That its bytes are is for `check_same` to say, when it was read.
    """
    manifest = reader.manifest
    if manifest.base.storage == "embed":
        return ArchiveBase(reader)
    if given is None:
        raise BaseNeededError(base_needed(reader.store.url, manifest))
    found = open_checkpoint(given, "base (in memory)")
    known = {name: BaseTensor(dtype=i.dtype, shape=i.shape, sha256="") for name, i in found.tensors.items()}
    _check(found, known, reader)
    return found


def check_same(base: Checkpoint, packed: Manifest, reader: Reader) -> None:
    """Raise WrongBaseError if what was packed against a base has another base than the archive, by the first tensor."""
    _check(base, packed.base.tensors, reader)


def _check(base: Checkpoint, tensors: Mapping[str, BaseTensor], reader: Reader) -> None:
    due = reader.manifest.base.tensors
    for name in dict.fromkeys([*due, *tensors]):
        one, other = due.get(name), tensors.get(name)
        if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
            why = "is in one of them alone" if one is None or other is None else "has another type or shape"
        elif other.sha256 and one.sha256 != other.sha256:
            why = "differs (another version of it, perhaps)"
        else:
            continue
        raise WrongBaseError(
            f"{base.where}: not the base of {reader.store.url}: tensor {name!r} {why}; give the base that the zoo was "
            "packed with"
        )
