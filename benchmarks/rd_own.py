"""tallstore's own points: the package as it is, and the research settings behind its choices, written out in torch.

`alone` is the setting that won: every task by itself, marks (or levels) drawn with a probability that rises evenly with
|τ|, the unbiased scale, and bits given to the tensors by what their noise is worth. A hard threshold makes less error,
but the error of small values then has one direction, and survives the sums of a matrix product, where noise does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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

HARD = (0.0, 0.2, 0.4, *(round(0.1 * n, 1) for n in range(5, 27)), 2.8, 3.0, 3.2, 3.5)
"""Thresholds, in σ."""
RAMPS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0, 25.0, 32.0, 40.0)
"""Magnitudes, in σ, that are marked for certain."""
FEET = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45)
"""Where a ramp begins, relative to where it ends."""
STEPS = (2.4, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2)
"""Of the multi-level quantizer, in σ."""
MAGNITUDES = 7
SMALL_LEVELS = 8
KAPPA = 19.0
"""How much worse an error is that is the same for equal |τ| (bias) than one that is not (noise), by KL divergence."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A quantizer of one tensor, what it costs and what it spoils.

    |τ| is split between two levels of `step`: below `foot` always the lower one, at the next level always the upper
    one, and between them the upper one with a probability that rises evenly. `hard` splits at `foot` instead.
    """

    step: float
    foot: float
    hard: bool
    levels: int
    bits: float
    spoiled: float

    def split(self, x: Floats) -> tuple[Floats, Floats]:
        """The lower level of each magnitude, and the probability of the upper one."""
        low = np.clip(np.floor(x / self.step), 0, self.levels - 1)
        if self.hard:
            return np.zeros_like(x), (x >= self.foot).astype(np.float64)
        foot = self.foot * self.step if self.levels == 1 else 0.0
        return low, np.clip((x - low * self.step - foot) / (self.step - 2 * foot), 0, 1)


@dataclass(frozen=True)
class Item:
    """One tensor of one task: its choices, how much what they spoil weighs, and its σ."""

    task: int
    name: str
    weight: float
    choices: tuple[Choice, ...]
    sigma: float


def histogram(tau: Tensor) -> npt.NDArray[np.int64]:
    """Counts of |τ| > 0 by bin."""
    found = tau[tau != 0].abs().view(torch.int32) >> _SHIFT
    return torch.bincount(found.long(), minlength=BINS).numpy()[:BINS]


def choices(
    counts: npt.NDArray[np.int64], candidates: Sequence[Choice], kappa: float
) -> tuple[tuple[Choice, ...], float]:
    """Everything a tensor may become and its σ, from its histogram alone."""
    (used,) = np.nonzero(counts)
    c, x = counts[used].astype(np.float64), _MIDDLES[used].astype(np.float64)
    sigma = float(((c * x * x).sum() / c.sum()) ** 0.5)
    priced = (_price(choice, c, x / sigma, kappa) for choice in candidates)
    return tuple(choice for choice in priced if choice is not None), sigma


def _price(choice: Choice, c: Floats, x: Floats, kappa: float) -> Choice | None:
    low, up = choice.split(x)
    level = low.astype(np.int64)
    number = np.bincount(level, c * (1 - up), choice.levels + 1) + np.bincount(level + 1, c * up, choice.levels + 1)
    marks, k, energy = float(number[1:].sum()), float(c.sum()), float((c * x * x).sum())
    if marks < 8:
        return None
    mean = (low + up) * choice.step
    gain = energy / float((c * mean * x).sum())
    noise = gain**2 * choice.step**2 * float((c * up * (1 - up)).sum()) / energy
    bias = float((c * (gain * mean - x) ** 2).sum()) / energy
    share = number[number > 0] / k
    bits = -k * float((share * np.log2(share)).sum()) + marks + 32 + (0 if choice.levels == 1 else 32 * 15)
    return replace(choice, bits=1.02 * bits, spoiled=noise + kappa * bias)


def _candidates(kind: str) -> list[Choice]:
    ramps = [Choice(s, foot, False, 1, 0, 0) for s in RAMPS for foot in FEET]
    steps = [Choice(s, 0, False, MAGNITUDES, 0, 0) for s in STEPS]
    hard = [Choice(1, t, True, 1, 0, 0) for t in HARD]
    return {"ramp": [*ramps, *steps], "ramp, ternary only": ramps, "hard": [*hard, *steps]}[kind]


def weigh(zoo: Zoo, name: str, tau: Tensor, power: float) -> float:
    """k·r^power: k moved parameters, and r, how far they moved relative to where they came from."""
    moved = tau != 0
    k = int(moved.sum())
    start = float(zoo.base[name].flatten()[moved].double().square().sum()) / k
    change = float(tau.double().square().sum()) / k
    return k * (min(1.0, (change / start) ** 0.5) if start else 1.0) ** power


def allocate(items: Sequence[Item], budget: float) -> list[Choice]:
    """The choices that spoil least within a budget of bits: one price λ for all, found by bisection."""
    tables = [(np.array([c.bits for c in i.choices]), np.array([c.spoiled for c in i.choices])) for i in items]
    low, high, best = -60.0, 40.0, [0] * len(items)
    for _ in range(50):
        price = (low + high) / 2
        picks = [
            int(np.argmin(item.weight * spoiled + 2**price * bits))
            for item, (bits, spoiled) in zip(items, tables, strict=True)
        ]
        if sum(bits[p] for (bits, _), p in zip(tables, picks, strict=True)) > budget:
            low = price
        else:
            high, best = price, picks
    return [item.choices[p] for item, p in zip(items, best, strict=True)]


def uniform(n: int, seed: int) -> Tensor:
    """n numbers in [0, 1) from a 32-bit hash of their places: the same on every device, in any order."""
    x = (torch.arange(n, dtype=torch.int64) + seed * 0x9E3779B1) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return ((x ^ (x >> 16)) >> 8).float() / (1 << 24)


def quantize(tau: Tensor, choice: Choice, sigma: float, seed: int) -> Tensor:
    """Signed level numbers."""
    low, up = choice.split(tau.abs().numpy().astype(np.float64) / sigma)
    level = torch.from_numpy(low).long() + (torch.from_numpy(up) > uniform(len(tau), seed))
    return level * tau.sign().long()


def alone(zoo: Zoo, bits: float, kind: str = "ramp", power: float = 1.0, kappa: float = KAPPA) -> Packed:
    """Each task by itself within `bits` a parameter and task, everything included."""
    packed = Packed.of(zoo)
    items = []
    for name in zoo.names:
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name):
                _keep_small(packed, task, name, tau)
            elif bool((tau != 0).any()):
                found, sigma = choices(histogram(tau), _candidates(kind), kappa)
                items.append(Item(task, name, weigh(zoo, name, tau, power), found, sigma))
    picked = allocate(items, bits * zoo.parameters - 8 * packed.bytes)
    for seed, (item, choice) in enumerate(zip(items, picked, strict=True)):
        tau = zoo.taus[item.task][item.name]
        level = quantize(tau, choice, item.sigma, seed)
        if choice.levels == 1:
            size = codes.mask(level, "signed")
        else:
            size = codes.levels(level + MAGNITUDES, 2 * MAGNITUDES + 1)
        w = level.float()
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


RATES = (0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.58, 0.8, 0.98)


def methods() -> list[Method]:
    """The package's settings, the winner at several rates, and what lost to it."""
    m = Method
    scales = {"least squares": least_squares, "norm kept": norm_keeping, "unbiased": unbiased}
    ablations: list[tuple[float, dict[str, Any]]] = [
        *((bits, {"kind": "hard", "kappa": 1.0}) for bits in (0.15, 0.3, 0.58, 0.98)),
        *((bits, {"power": power}) for bits in (0.15, 0.3) for power in (0.0, 2.0)),
        *((0.15, {"kappa": kappa}) for kappa in (1.0, 8.0, 60.0)),
        *((bits, {"kind": "ramp, ternary only"}) for bits in (0.3, 0.98)),
    ]
    return [
        *(m(name, "tallstore", partial(package, options=options)) for name, options in PACKAGE.items()),
        *(m(f"alone, {bits} bits", "alone, allocated", partial(alone, bits=bits)) for bits in RATES),
        *(
            m(f"alone, {bits} bits, {_words(options)}", "ablations", partial(alone, bits=bits, **options))
            for bits, options in ablations
        ),
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
    ]


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
