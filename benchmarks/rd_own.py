"""tallstore's own points: the package as it is, and the research settings behind its choices, written out in torch.

`alone` is the setting that won (benchmarks/README.md has the ones that lost): every task by itself, a ternary or
multi-level quantizer a tensor, the unbiased scale, and bits given to the tensors by what their noise is worth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rd_codes as codes
import torch
from rd_method import Method, Packed, Scale, Unavailable, is_small, least_squares, norm_keeping, ternary, unbiased
from rd_zoo import WEIGHTS, Zoo
from torch import Tensor

import tallstore

# ---------------------------------------------------------------------------------------------- the package itself

PACKAGE: Mapping[str, Mapping[str, Any]] = {
    "tallstore, defaults": {},
    "tallstore, fit, q4, adaptive": {"recipe": "fit", "vector": "q4", "mask": "adaptive"},
    "tallstore, quality small": {"quality": "small"},
    "tallstore, quality balanced": {"quality": "balanced"},
    "tallstore, quality high": {"quality": "high"},
    **{f"tallstore, {bits} bits": {"bits": bits} for bits in (0.1, 0.2, 0.4, 0.6, 0.8)},
}
"""Name → options of `tallstore.pack`. Those that this version does not have are skipped."""


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


# ---------------------------------------------------------------------------------- each task alone, bits allocated

BINS = 255 << 5
"""Histogram of |τ| by the float's leading bits: 32 bins an octave, to the largest finite number. Counts are integers:
equal on every device."""
_SHIFT = 18
_MIDDLES = ((np.arange(BINS, dtype=np.int64) << _SHIFT) + (1 << (_SHIFT - 1))).astype(np.int32).view(np.float32)
_EDGES = (np.arange(BINS, dtype=np.int64) << _SHIFT).astype(np.int32).view(np.float32)

THRESHOLDS = (0.0, 0.2, 0.4, *(round(0.1 * n, 1) for n in range(5, 27)), 2.8, 3.0, 3.2, 3.5)
"""Of the ternary quantizer, in σ."""
STEPS = (2.4, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3)
"""Of the multi-level quantizer, in σ."""
DEAD_ZONE = 0.62
MAGNITUDES = 7
SMALL_LEVELS = 8


@dataclass(frozen=True)
class Choice:
    """A quantizer of one tensor: magnitudes between `edges` become `centres`. What it costs, and the noise it makes."""

    edges: tuple[float, ...]
    centres: tuple[float, ...]
    bits: float
    noise: float
    """1/ρ² − 1, ρ the cosine: what is left across τ, relative to it, when the scale is unbiased."""


@dataclass(frozen=True)
class Item:
    """One tensor of one task: its choices and how much its noise weighs."""

    task: int
    name: str
    weight: float
    choices: tuple[Choice, ...]


def histogram(tau: Tensor) -> npt.NDArray[np.int64]:
    """Counts of |τ| > 0 by bin."""
    found = tau[tau != 0].abs().view(torch.int32) >> _SHIFT
    return torch.bincount(found.long(), minlength=BINS).numpy()[:BINS]


def choices(counts: npt.NDArray[np.int64]) -> Iterator[Choice]:
    """Everything a tensor may become, from its histogram alone."""
    above = np.append(np.cumsum(counts[::-1], dtype=np.float64)[::-1], 0)
    mass = np.append(np.cumsum((counts * _MIDDLES.astype(np.float64))[::-1])[::-1], 0)
    energy = float((counts * _MIDDLES.astype(np.float64) ** 2).sum())
    sigma = (energy / above[0]) ** 0.5
    for cuts in _cuts():
        at = sorted({int(np.searchsorted(_EDGES, sigma * c)) for c in cuts})
        number = np.array([above[a] - above[b] for a, b in zip(at, [*at[1:], BINS], strict=True)])
        total = np.array([mass[a] - mass[b] for a, b in zip(at, [*at[1:], BINS], strict=True)])
        if number.sum() < 8 or (len(cuts) > 1 and (number > 0).sum() < 2):
            continue
        used = number > 0
        centres = np.where(used, total / np.maximum(number, 1), _EDGES[at])
        kept = float((total[used] ** 2 / number[used]).sum())
        if len(cuts) == 1:
            centres = np.ones(1)
        parts = np.append(number[used], max(above[0] - number.sum(), 0))
        share = parts[parts > 0] / above[0]
        bits = float(-above[0] * (share * np.log2(share)).sum() + number.sum())
        table = 0 if len(cuts) == 1 else 32 * (2 * MAGNITUDES + 1)
        yield Choice(
            tuple(float(_EDGES[a]) for a in at), tuple(map(float, centres)), bits * 1.01 + 32 + table, energy / kept - 1
        )


def _cuts() -> Iterator[tuple[float, ...]]:
    """Edges of every quantizer, in σ."""
    yield from ((t,) for t in THRESHOLDS)
    yield from (tuple(step * (DEAD_ZONE + j) for j in range(MAGNITUDES)) for step in STEPS)


def weigh(zoo: Zoo, name: str, tau: Tensor, power: float) -> float:
    """k·r^power: k moved parameters, and r, how far they moved relative to where they came from."""
    moved = tau != 0
    k = int(moved.sum())
    start = float(zoo.base[name].flatten()[moved].double().square().sum()) / k
    change = float(tau.double().square().sum()) / k
    return k * (min(1.0, (change / start) ** 0.5) if start else 1.0) ** power


def allocate(items: Sequence[Item], budget: float) -> list[Choice]:
    """The choices of least weighted noise within a budget of bits: one price λ for all, found by bisection."""
    tables = [(np.array([c.bits for c in i.choices]), np.array([c.noise for c in i.choices])) for i in items]
    low, high, best = -60.0, 40.0, [0] * len(items)
    for _ in range(50):
        price = (low + high) / 2
        picks = [
            int(np.argmin(item.weight * noise + 2**price * bits))
            for item, (bits, noise) in zip(items, tables, strict=True)
        ]
        if sum(bits[p] for (bits, _), p in zip(tables, picks, strict=True)) > budget:
            low = price
        else:
            high, best = price, picks
    return [item.choices[p] for item, p in zip(items, best, strict=True)]


def quantize(tau: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """w before its scale, and its signed level numbers."""
    level = torch.bucketize(tau.abs(), torch.tensor(choice.edges), right=True)
    level[tau == 0] = 0
    centres = torch.tensor([0.0, *choice.centres])
    return centres[level] * tau.sign(), level * tau.sign().long()


def alone(zoo: Zoo, bits: float, power: float = 1.0, multi_level: bool = True) -> Packed:
    """Each task by itself within `bits` a parameter and task, everything included."""
    packed = Packed.of(zoo)
    items = []
    for name in zoo.names:
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name):
                _keep_small(packed, task, name, tau)
            elif bool((tau != 0).any()):
                found = tuple(c for c in choices(histogram(tau)) if multi_level or len(c.edges) == 1)
                items.append(Item(task, name, weigh(zoo, name, tau, power), found))
    for item, choice in zip(items, allocate(items, bits * zoo.parameters - 8 * packed.bytes), strict=True):
        tau = zoo.taus[item.task][item.name]
        w, level = quantize(tau, choice)
        if len(choice.edges) == 1:
            size = codes.mask(level, "signed")
        else:
            size = codes.levels(level + MAGNITUDES, 2 * MAGNITUDES + 1)
        packed.keep(item.task, item.name, unbiased(tau, w) * w, size + codes.SCALE)
    return packed


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


# ------------------------------------------------------------------------------- one threshold, and a shared vector


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


RATES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.58, 0.8, 0.98)


def methods() -> list[Method]:
    """The package's settings, the winner at several rates, and what lost to it."""
    m = Method
    scales = {"least squares": least_squares, "norm kept": norm_keeping, "unbiased": unbiased}
    return [
        *(m(name, "tallstore", partial(package, options=options)) for name, options in PACKAGE.items()),
        *(m(f"alone, {bits} bits", "alone, allocated", partial(alone, bits=bits)) for bits in RATES),
        *(
            m(f"alone, {bits} bits, weight k·r^{power:g}", "ablations", partial(alone, bits=bits, power=power))
            for bits in (0.15, 0.3)
            for power in (0.0, 2.0)
        ),
        m("alone, 0.98 bits, ternary only", "ablations", partial(alone, bits=0.98, multi_level=False)),
        *(
            m(f"alone, {c} σ, {name}", "ablations", partial(threshold, c=c, scale=scale))
            for c in (1.2, 1.8)
            for name, scale in scales.items()
        ),
        *(
            m(f"fit, {levels} levels, {name}", "shared vector", partial(shared_fit, levels=levels, scale=scale))
            for levels, name, scale in (
                (16, "least squares", least_squares),
                (16, "unbiased", unbiased),
                (5, "unbiased", unbiased),
            )
        ),
        *(
            m(f"signed, {c} σ, {k} levels, unbiased", "shared vector", partial(shared_signed, c=c, levels=k))
            for c, k in ((1.0, 16), (1.5, 16), (1.5, 4), (2.0, 4))
        ),
    ]
