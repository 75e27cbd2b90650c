"""What is said of tensors that are packed without loss for what they are: quantized, or of a type that no mask fits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tallstore.checkpoints import Checkpoint
from tallstore.checkpoints.quantized import Quantized
from tallstore.format.dtypes import MASKABLE, size_of

__all__ = ["WithoutLoss", "count_without_loss", "warnings_of"]

_TOLD = 0.01
"""Share of a checkpoint's bytes from which on tensors of other types than floats are spoken of."""
_SAVED = 0.6
"""What is left of codes must be below this share: of the bytes of codes by themselves, coding leaves more."""


@dataclass(frozen=True, kw_only=True)
class WithoutLoss:
    """Tensors of one task that are packed without loss for what they are."""

    form: str | None
    """Of quantization; None where they are but of types that no mask fits."""
    tensors: int
    bytes: int
    """In the checkpoint."""
    coded_bytes: int
    """In the archive."""
    strange: int = 0
    """Those whose place in the base has another type, or none."""


def count_without_loss(
    checkpoint: Checkpoint,
    quantized: Quantized | None,
    whole: Mapping[str, int],
    coded: Mapping[str, int],
    at_home: Collection[str],
) -> WithoutLoss | None:
    """Sum up one task.

    Args:
        checkpoint: the task's.
        quantized: its quantized tensors.
        whole: the coded bytes of tensors that are stored whole, by name.
        coded: those of tensors that are coded against the base's for what they are, 0 where they are the base's.
        at_home: tensors that have a place of their type in the base.

    Returns:
        what there is to say; None where that is nothing.
    """
    infos = {name: info for name, info in checkpoint.tensors.items() if name not in checkpoint.ties}
    if quantized is not None:
        names = [name for name in infos if name in quantized.tensors]
    else:
        names = [name for name in infos if name in coded and infos[name].dtype not in MASKABLE]
    sizes = {name: size_of(infos[name].dtype, infos[name].shape) for name in names}
    total = sum(size_of(info.dtype, info.shape) for info in infos.values())
    if not names or (quantized is None and sum(sizes.values()) < _TOLD * total):
        return None
    return WithoutLoss(
        form=None if quantized is None else quantized.form,
        tensors=len(names),
        bytes=sum(sizes.values()),
        coded_bytes=sum(coded.get(name, 0) + whole.get(name, 0) for name in names),
        strange=sum(name not in at_home and infos[name].numel > 1 for name in names),
    )


def warnings_of(counts: WithoutLoss) -> Iterator[str]:
    """What a packer could do better."""
    if counts.form is not None and counts.strange and counts.coded_bytes > _SAVED * counts.bytes:
        yield (
            f"it is quantized ({counts.form}), and {counts.strange} of its tensors have no place of their type and "
            "shape in the base, so that little is saved: give the base quantized in the same way, or fine-tunes that "
            "are not quantized"
        )
