"""The base of an archive that grows: its own, or one that is given where it only references it."""

from __future__ import annotations

from collections.abc import Mapping

from tallstore.archive.base_tensors import base_needed
from tallstore.archive.reader import Reader
from tallstore.checkpoints import Checkpoint, Source, open_checkpoint
from tallstore.editing.companions import BaseWithFiles
from tallstore.errors import BaseNeededError, WrongBaseError
from tallstore.format.manifest import BaseTensor, Manifest


def base_of(reader: Reader, given: Source | None) -> Checkpoint:
    """What an archive was packed against: its own parts, or what is given where it only references it.

    An archive that holds its base takes the files beside its weights alone from what is given.

    Raises BaseNeededError where it must be given and is not; WrongBaseError, by tensor, for names, types or shapes
    that are not the base's (shapes alone where the archive's is rounded). That its bytes are is for `check_same` to
    say, when it was read.
    """
    manifest = reader.manifest
    embedded = manifest.base.storage == "embed"
    if given is None:
        if not embedded:
            raise BaseNeededError(base_needed(reader.store.url, manifest))
        return BaseWithFiles(reader, None)
    checkpoint = open_checkpoint(given, "base (in memory)")
    types = {name: info.dtype for name, info in checkpoint.tensors.items()}
    if embedded and manifest.options.get("base_storage") == "bf16":
        types |= {name: held.dtype for name, held in manifest.base.tensors.items() if name in types}
    known = {
        name: BaseTensor(dtype=types[name], shape=info.shape, sha256="") for name, info in checkpoint.tensors.items()
    }
    _check(checkpoint, known, reader)
    return BaseWithFiles(reader, checkpoint) if embedded else checkpoint


def check_same(base: Checkpoint, packed: Manifest, reader: Reader) -> None:
    """Raise WrongBaseError if what was packed against a base has another base than the archive, by the first tensor."""
    _check(base, packed.base.tensors, reader)


def _check(base: Checkpoint, tensors: Mapping[str, BaseTensor], reader: Reader) -> None:
    recorded = reader.manifest.base.tensors
    for name in dict.fromkeys([*recorded, *tensors]):
        one, other = recorded.get(name), tensors.get(name)
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
