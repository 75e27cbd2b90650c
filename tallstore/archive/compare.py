"""Compare what an archive gives back of a task with the original checkpoint."""

from __future__ import annotations

import math
from functools import partial

import torch

from tallstore.archive.binding import shapes_of
from tallstore.archive.decode import Decoder
from tallstore.archive.verify import Against
from tallstore.checkpoints import Checkpoint, respelled, same_share
from tallstore.errors import ModelMismatchError
from tallstore.format.dtypes import MASKABLE
from tallstore.tensors import TORCH

__all__ = ["compare"]

_COMPUTED = frozenset(TORCH[dtype] for dtype in MASKABLE)


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
        own = place.entry.kind in {"private", "tied"} or (place.entry.start is not None and place.entry.base is None)
        if codes or own or theirs.dtype not in _COMPUTED:
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
