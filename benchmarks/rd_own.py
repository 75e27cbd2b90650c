"""tallstore's own points: the package as it is, with the choices that it made switched off one by one, and settings
that lost to it, written out in torch: one threshold for every tensor, other scales, a vector that the tasks share.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import rd_codes as codes
import torch
from rd_method import Method, Packed, Scale, Unavailable, is_small, least_squares, norm_keeping, ternary, unbiased
from rd_zoo import WEIGHTS, Zoo
from torch import Tensor

import tallstore

# ---------------------------------------------------------------------------------------------- the package itself

PACKAGE: Mapping[str, Mapping[str, Any]] = {
    "tallstore, quality small": {"quality": "small"},
    "tallstore, quality balanced": {"quality": "balanced"},
    "tallstore, quality high": {"quality": "high"},
    "tallstore, quality balanced, base in bf16": {"quality": "balanced", "base_storage": "bf16"},
    **{f"tallstore, {bits} bits": {"bits": bits} for bits in (0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)},
    **{f"tallstore, {bits} bits": {"bits": bits} for bits in (1.1, 1.5, 1.7, 2.5)},
}
"""Name → options of `tallstore.pack`."""
SHARED: Mapping[str, Mapping[str, Any]] = {
    **{
        f"tallstore, {recipe}, {vector}": {"recipe": recipe, "vector": vector}
        for recipe in ("fit", "tall", "ties", "mean", "emr")
        for vector in ("f32", "bf16", "q8", "q5", "q4")
    },
    **{f"tallstore, fit, q4, {mask}": {"recipe": "fit", "mask": mask} for mask in ("bits", "bits+zstd")},
    **{f"tallstore, {mask}": {"mask": mask} for mask in ("bits", "bits+zstd")},
}
"""Every recipe with a shared vector and every codec of it; mask codecs, `adaptive` being the others'. λ as without an
evaluator."""
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    f"tallstore, {bits} bits, κ = {kappa:g}": {"bits": bits, "kappa": kappa}
    for bits in (0.15, 0.3, 0.55, 0.95)
    for kappa in (1.0, 4.0, 19.0)
}
"""κ: how much worse bias is than noise. 1: hard thresholds."""


def package(zoo: Zoo, options: Mapping[str, Any]) -> Packed:
    """Pack with tallstore, open, and count every byte of the archive but the base's."""
    if odd := sorted(set(options) - {f.name for f in fields(tallstore.Options)}):
        raise Unavailable(f"this tallstore has no option {', '.join(odd)}")
    packed = Packed([{} for _ in zoo.tasks])
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "zoo.tall"
        sources = {task: zoo.folder / task / WEIGHTS for task in zoo.tasks}
        tallstore.pack(zoo.folder / "base" / WEIGHTS, sources, archive, **options)
        with tallstore.open(archive) as opened:
            packed.bytes = archive.stat().st_size - opened.info()["bytes"]["base"]
            for hats, task in zip(packed.hats, zoo.tasks, strict=True):
                state = opened.state_dict(task)
                for start, name in zoo.names.items():
                    hats[start] = (state[name].float() - zoo.base[start].float()).flatten()
    return packed


# ------------------------------------------------------------------------------- one threshold, and a shared vector

SMALL_LEVELS = 8


def _keep_small(packed: Packed, task: int, name: str, tau: Tensor) -> None:
    """A bias or norm: the nearest of a few levels, Lloyd's."""
    level = torch.quantile(tau, torch.linspace(0, 1, 2 * SMALL_LEVELS + 1)[1::2]).unique()
    for _ in range(10):
        index = torch.bucketize(tau, (level[1:] + level[:-1]) / 2)
        number = torch.bincount(index, minlength=len(level))
        sums = torch.zeros(len(level)).index_add_(0, index, tau)
        level = torch.where(number > 0, sums / number.clamp(min=1), level).sort().values
    index = torch.bucketize(tau, (level[1:] + level[:-1]) / 2)
    packed.keep(task, name, level[index], codes.levels(index, len(level)))


def threshold(zoo: Zoo, c: float, scale: Scale) -> Packed:
    """Each task alone, one threshold c in σ of what moved in a tensor, no allocation."""
    packed = Packed.of(zoo)
    for name in zoo.names:
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name):
                _keep_small(packed, task, name, tau)
            elif bool((tau != 0).any()):
                w = ternary(tau, c * float(tau[tau != 0].square().mean().sqrt()))
                packed.keep(task, name, scale(tau, w) * w, codes.mask(w, "signed") + codes.SCALE)
    return packed


def shared_fit(zoo: Zoo, levels: int, scale: Scale) -> Packed:
    """`fit`: v of least squares in closed form, binary masks, and a scale a task and tensor."""
    packed = Packed.of(zoo)
    for name in zoo.names:
        taus = zoo.stacked(name)
        if is_small(zoo, name):
            for task, tau in enumerate(taus):
                _keep_small(packed, task, name, tau)
            continue
        v, size = _code_vector(_closed_form(taus), levels)
        packed.bytes += size
        for task, tau in enumerate(taus):
            w = v * ((tau - v).abs() < tau.abs())
            packed.keep(task, name, scale(tau, w) * w, codes.mask(w != 0, "binary") + codes.SCALE)
    return packed


def shared_signed(zoo: Zoo, c: float, levels: int, scale: Scale = unbiased) -> Packed:
    """Signed masks over one shared magnitude, the mean of those above c σ."""
    packed = Packed.of(zoo)
    for name in zoo.names:
        taus = zoo.stacked(name)
        if is_small(zoo, name):
            for task, tau in enumerate(taus):
                _keep_small(packed, task, name, tau)
            continue
        sigma = taus.square().sum(1) / (taus != 0).sum(1).clamp(min=1)
        on = taus.abs() > c * sigma.sqrt()[:, None]
        v, size = _code_vector((taus.abs() * on).sum(0) / on.sum(0).clamp(min=1), levels)
        packed.bytes += size
        for task, tau in enumerate(taus):
            mark = tau.sign() * on[task]
            packed.keep(task, name, scale(tau, mark * v) * mark * v, codes.mask(mark, "signed") + codes.SCALE)
    return packed


def _closed_form(taus: Tensor) -> Tensor:
    """Of the k largest, or k smallest, values the mean whose S²/k is largest, its sign being right."""
    ordered = taus.sort(0).values
    best, v = torch.zeros(taus.shape[1]), torch.zeros(taus.shape[1])
    for sign, sums in ((1, ordered.flip(0).cumsum(0)), (-1, ordered.cumsum(0))):
        for k, total in enumerate(sums, 1):
            gain = torch.where(total * sign > 0, total * total / k, torch.zeros_like(total))
            better = gain > best
            best, v = torch.where(better, gain, best), torch.where(better, total / k, v)
    return v


def _code_vector(v: Tensor, levels: int) -> tuple[Tensor, int]:
    """v on a few magnitudes a sign, Lloyd's over what is not 0, and its bytes."""
    magnitudes = v[v != 0].abs()
    if not len(magnitudes):
        return v, 0
    one_sided = bool((v >= 0).all())
    count = max(1, (levels - 1) // (1 if one_sided else 2))
    sample = magnitudes[:: max(1, len(magnitudes) >> 18)]
    centres = torch.quantile(sample, torch.linspace(0, 1, 2 * count + 1)[1::2])
    for _ in range(15):
        index = torch.bucketize(sample, (centres[1:] + centres[:-1]) / 2)
        number = torch.bincount(index, minlength=count)
        sums = torch.zeros(count).index_add_(0, index, sample)
        centres = torch.where(number > 0, sums / number.clamp(min=1), centres).sort().values
    index = torch.bucketize(v.abs(), (centres[1:] + centres[:-1]) / 2) + 1
    index = torch.where(v == 0, torch.zeros_like(index), index)
    table = torch.cat([torch.zeros(1), centres])
    signed = index if one_sided else index * v.sign().long() + count
    return table[index] * v.sign(), codes.levels(signed, levels)


def subsampled(zoo: Zoo, bits: float) -> Packed:
    """bf16: some elements, chosen by a seed that both sides have, so that only their values are coded; the more of an
    exponent of the base's, the further its elements move for the bits that one of them takes. What is kept is taken a
    whole number of times, on the mean as often as there are elements for each one kept: no bias, and nothing to round.

    Bytes are those of the entropy of what is kept, given the base's exponent.
    """
    packed = Packed.of(zoo)
    for task, taus in enumerate(zoo.taus):
        classes = {name: _by_exponent(zoo.base[name].flatten(), tau) for name, tau in taus.items()}
        every = [each for parts in classes.values() for each in parts]
        most = bits * sum(tau.numel() for tau in taus.values())
        low, high = 0.0, 1e9
        for _ in range(100):
            middle = (low + high) / 2
            if sum(each.bits * each.share(middle) for each in every) <= most:
                low = middle
            else:
                high = middle
        for number, (name, tau) in enumerate(taus.items()):
            random = torch.Generator().manual_seed(number * 1000 + task)
            hat, size = torch.zeros_like(tau), 0.0
            for each in classes[name]:
                share = each.share(low)
                if share:
                    on = torch.rand(len(each.at), generator=random) < share
                    times = (1 / share + torch.rand(len(each.at), generator=random)).floor()
                    hat[each.at] = torch.where(on, tau[each.at] * times, 0.0)
                    size += each.bits * share / 8
            packed.keep(task, name, hat, round(size))
    return packed


@dataclass(frozen=True)
class _Exponent:
    """Elements of a tensor whose base has one exponent."""

    at: Tensor
    bits: float
    """That all of them take, coded without loss."""
    power: float
    """Their change's mean square."""

    def share(self, slope: float) -> float:
        """How many of them are kept: noise is power · (1/share − 1), and a share costs its part of the bits."""
        return min(1.0, slope * math.sqrt(self.power * len(self.at) / max(self.bits, 1.0)))


def _by_exponent(base: Tensor, tau: Tensor) -> list[_Exponent]:
    before, after = (each.bfloat16().view(torch.int16).int() for each in (base, base.float() + tau))
    if not torch.equal(after.short().view(torch.bfloat16).float(), base.float() + tau):
        raise Unavailable("for models in bf16")
    left, right = (torch.where(bits < 0, -(bits & 0x7FFF), bits) for bits in (before, after))
    exponent = (before >> 7) & 0xFF
    found = []
    for each in exponent.unique():
        at = (exponent == each).nonzero().flatten()
        _, numbers = (right[at] - left[at]).unique(return_counts=True)
        shares = numbers.double() / len(at)
        bits = float(-(shares * shares.log2()).sum()) * len(at)
        found.append(_Exponent(at, bits, float(tau[at].double().square().mean())))
    return found


def methods() -> list[Method]:
    """The package's settings, and what lost to them."""
    m = Method
    scales = {"least squares": least_squares, "norm kept": norm_keeping, "unbiased": unbiased}
    return [
        *(m(name, "tallstore", partial(package, options=options)) for name, options in PACKAGE.items()),
        *(m(name, "recipes and codecs", partial(package, options=options)) for name, options in SHARED.items()),
        *(m(name, "ablations", partial(package, options=options)) for name, options in ABLATIONS.items()),
        *(
            m(f"alone, {c} σ, {name}", "ablations", partial(threshold, c=c, scale=scale))
            for c in (1.2, 1.8)
            for name, scale in scales.items()
        ),
        *(
            m(f"fit, {levels} levels, {name}", "shared vector", partial(shared_fit, levels=levels, scale=scales[name]))
            for levels, name in ((16, "least squares"), (16, "unbiased"), (5, "unbiased"))
        ),
        *(
            m(f"signed, {c} σ, {k} levels, unbiased", "shared vector", partial(shared_signed, c=c, levels=k))
            for c, k in ((1.0, 16), (1.5, 16), (1.5, 4), (2.0, 4))
        ),
        *(
            m(f"subsampled, {bits} bits", "subsampled", partial(subsampled, bits=bits))
            for bits in (0.1, 0.14, 0.2, 0.4)
        ),
    ]
