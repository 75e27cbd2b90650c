"""The peers, their mathematics written anew: what each would store for the same checkpoints, and what comes back.

Everything is data-free: scales of BitDelta and of its successor by axes without distillation, Delta-CoMe's factors
rounded to nearest in place of GPTQ on calibration texts. Small tensors (biases, norms: one parameter in a thousand) are
kept in float16 by every peer that has no way of its own with them; kernels of convolutions are matrices, a row an
output channel.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import rd_codes as codes
import torch
from rd_method import Method, Packed, Scale, Unavailable, is_small, least_squares, ternary, unbiased
from rd_zoo import Zoo
from torch import Tensor


def paper(zoo: Zoo, lam: float) -> Packed:
    """TALL-masks (Wang et al. 2024): v = Στ in float32, one bit a parameter and task where |τ| > λ|v − τ|."""
    packed = Packed.of(zoo)
    for name in zoo.names:
        taus = zoo.stacked(name)
        v = taus.sum(0)
        packed.bytes += 4 * v.numel()
        for task, tau in enumerate(taus):
            packed.keep(task, name, v * (tau.abs() > lam * (v - tau).abs()), codes.packed(v.numel(), 1))
    return packed


def emr(zoo: Zoo) -> Packed:
    """EMR-Merging (Huang et al. 2024): elected sign, largest agreeing magnitude, masks, one scale a task."""
    packed = Packed.of(zoo)
    size, kept = [0.0] * len(zoo.tasks), [0.0] * len(zoo.tasks)
    for name in zoo.names:
        taus = zoo.stacked(name)
        sign = taus.sum(0).sign()
        v = sign * (taus * sign).clamp(min=0).amax(0)
        packed.bytes += 4 * v.numel()
        for task, tau in enumerate(taus):
            hat = v * (tau * v > 0)
            packed.keep(task, name, hat, codes.packed(v.numel(), 1))
            size[task] += float(tau.abs().double().sum())
            kept[task] += float(hat.abs().double().sum())
    for task, hats in enumerate(packed.hats):
        packed.bytes += codes.SCALE
        for name in hats:
            hats[name] *= size[task] / kept[task]
    return packed


def _matrices(zoo: Zoo, packed: Packed, *, embeddings: bool = True) -> Iterator[tuple[int, str, Tensor]]:
    """Each task's change of each matrix, flat, by name; small tensors are kept whole, embeddings where asked for."""
    for name in zoo.names:
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name) or ("embed" in name and not embeddings):
                packed.keep_half(task, name, tau)
            else:
                yield task, name, tau


def bitdelta(zoo: Zoo, everywhere: bool, coded: bool, scale: Scale = least_squares) -> Packed:
    """BitDelta (Liu et al. 2024): sign(τ) and one scale, the mean of |τ|, a matrix.

    As published embeddings stay whole; `everywhere` takes them too. `coded` leaves what did not move at 0, and
    entropy-codes the symbols.
    """
    packed = Packed.of(zoo)
    for task, name, tau in _matrices(zoo, packed, embeddings=everywhere):
        w = tau.sign() if coded else torch.where(tau > 0, 1.0, -1.0)
        size = codes.mask(w, "signed") if coded else codes.packed(len(w), 1)
        packed.keep(task, name, scale(tau, w) * w, size + codes.SCALE)
    return packed


def per_axis(zoo: Zoo) -> Packed:
    """Per-Axis Weight Deltas (Kuyumdzhiev and Cholakov 2025): sign(τ) and a float16 scale, the mean of |τ|, for each
    row or for each column, whichever leaves the smaller error."""
    packed = Packed.of(zoo)
    for task, name, tau in _matrices(zoo, packed):
        matrix = _matrix(zoo, name, tau)
        sign = torch.where(matrix > 0, 1.0, -1.0)
        scales = [matrix.abs().mean(axis, keepdim=True).half().float() for axis in (0, 1)]
        scale = min(scales, key=lambda each: float((matrix - each * sign).square().sum()))
        packed.keep(task, name, (scale * sign).flatten(), codes.packed(len(tau), 1) + 2 * scale.numel())
    return packed


def magnitude(zoo: Zoo, c: float, scale: Scale = least_squares) -> Packed:
    """Each task alone, ternary: what exceeds c standard deviations of its tensor keeps its sign, entropy-coded."""
    packed = Packed.of(zoo)
    for task, name, tau in _matrices(zoo, packed):
        w = ternary(tau, c * float(tau.std()))
        packed.keep(task, name, scale(tau, w) * w, codes.mask(w, "signed") + codes.SCALE)
    return packed


def tsv(zoo: Zoo, share: float, width: int) -> Packed:
    """TSV-Compress (Gargiulo et al. 2025): each matrix by its leading singular triples, `share` of the rank."""
    packed = Packed.of(zoo)
    for task, name, tau in _matrices(zoo, packed):
        matrix = _matrix(zoo, name, tau)
        left, size, right = _singular(matrix, max(1, round(min(matrix.shape) * share)))
        if width == 2:
            left, size, right = (each.half().float() for each in (left, size, right))
        packed.keep(task, name, (left * size @ right.T).flatten(), width * len(size) * (sum(matrix.shape) + 1))
    return packed


def delta_come(zoo: Zoo, bits: float, bands: tuple[tuple[int, int], ...] = ((8, 2), (3, 32))) -> Packed:
    """Delta-CoMe (Ping et al. 2024): singular vectors in fewer bits the smaller their singular value.

    `bands` are (bits, triples), and as many further triples get 2 bits as `bits` a parameter leave room for: with 1 bit
    and matrices of 4,096 rows it is what was published, 2 of 8 bits, 32 of 3 and 968 of 2.
    """
    packed = Packed.of(zoo)
    for task, name, tau in _matrices(zoo, packed):
        matrix = _matrix(zoo, name, tau)
        room, widths = bits * len(tau) / sum(matrix.shape), list[int]()
        for width, count in (*bands, (2, min(matrix.shape))):
            own = min(count, int(room // width), min(matrix.shape) - len(widths))
            widths += [width] * own
            room -= width * own
        left, size, right = _singular(matrix, max(1, len(widths)))
        taken = 2 * len(size)
        for place, width in enumerate(widths or [2]):
            for factor in (left, right):
                factor[:, place], cost = _rounded(factor[:, place], width)
                taken += cost
        packed.keep(task, name, (left * size.half().float() @ right.T).flatten(), taken)
    return packed


def _rounded(values: Tensor, bits: int, group: int = 128) -> tuple[Tensor, int]:
    """Values to the nearest of 2^bits even steps between the least and the greatest of their group, and the bytes: a
    float16 step and a zero point a group."""
    padded = torch.nn.functional.pad(values, (0, -len(values) % group)).view(-1, group)
    low, high = padded.amin(1, keepdim=True).clamp(max=0), padded.amax(1, keepdim=True).clamp(min=0)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-7).half().float()
    zero = (-low / step).round()
    index = ((padded / step).round() + zero).clamp(0, 2**bits - 1)
    size = codes.packed(len(values) + len(padded), bits) + 2 * len(padded)
    return ((index - zero) * step).flatten()[: len(values)], size


def _matrix(zoo: Zoo, name: str, tau: Tensor) -> Tensor:
    """A tensor's change as a matrix, a row for each place of its first axis."""
    return tau.view(len(zoo.base[name]), -1)


def _singular(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triples, largest first, by the smaller Gram matrix: (m, rank), (rank,), (n, rank)."""
    tall = matrix.shape[0] >= matrix.shape[1]
    m = matrix if tall else matrix.T
    _, right = torch.linalg.eigh(m.double().T @ m.double())
    right = right[:, -rank:].flip(1).float()
    left = m @ right
    size = left.norm(dim=0).clamp(min=1e-30)
    return (left / size, size, right) if tall else (right, size, left / size)


def dare(zoo: Zoo, drop: float) -> Packed:
    """DARE (Yu et al. 2024): drop at random, rescale what is left. Positions come from a seed, values are float16."""
    packed = Packed.of(zoo)
    for number, name in enumerate(zoo.names):
        for task, tau in enumerate(zoo.stacked(name)):
            random = torch.Generator().manual_seed(number * 1000 + task)
            on = torch.rand(len(tau), generator=random) >= drop
            hat = torch.where(on, tau / (1 - drop), torch.zeros_like(tau)).half().float()
            packed.keep(task, name, hat, codes.entropy(hat[on].half().numpy().tobytes()))
    return packed


def ultradelta(zoo: Zoo, drop: float, step: float = 0.01, even: bool = False) -> Packed:
    """UltraDelta (Wang et al. 2025, version 3 and its released code): 16 even levels a tensor, pruned the more the less
    its changes vary, by thirds of the parameters, evenly over the levels; rescaled by 1/(1 − drop) and, between tasks,
    by the trace norm of what is left.

    What did not move stays where it is, which the released code's levels do not have. `even`: every tensor by its own
    share, and no trace norm: nothing that is left is too large or small on the average.
    """
    packed = Packed.of(zoo)
    matrices = [name for name in zoo.names if not is_small(zoo, name)]
    traces = list[float]()
    for task, taus in enumerate(zoo.taus):
        trace = 0.0
        for place, (name, share) in enumerate(_shares({name: taus[name] for name in matrices}, drop, step).items()):
            hat, size = _prune_levels(taus[name], share, 16, seed=task * 1000 + place)
            packed.keep(task, name, hat / (1 - (share if even else drop)), size)
            matrix = _matrix(zoo, name, hat)
            trace += float(_singular(matrix, min(matrix.shape))[1].sum()) if len(zoo.tasks) > 1 else 1.0
        traces.append(trace)
        for name in zoo.names:
            if is_small(zoo, name):
                packed.keep_half(task, name, taus[name])
    for hats, trace in zip(packed.hats, traces, strict=True):
        for name in () if even else matrices:
            hats[name] = hats[name] * (min(traces) / trace)
    return packed


def _shares(taus: Mapping[str, Tensor], drop: float, step: float) -> dict[str, float]:
    """How much of each tensor is dropped: `step` more where the deviation is among the smallest, up to a third of the
    parameters, and as much less where it is among the largest that `drop` is right of all."""
    order = sorted(taus, key=lambda name: float(taus[name].std()))
    every, before, shares = sum(len(tau) for tau in taus.values()), 0, dict[str, float]()
    for name in order:
        before += len(taus[name])
        if before > 2 * every / 3:
            break
        shares[name] = drop + step if before <= every / 3 else drop
    spent = sum(share * len(taus[name]) for name, share in shares.items())
    left = every - sum(len(taus[name]) for name in shares)
    most = min(0.99, max(0.0, (drop * every - spent) / left)) if left else drop
    return {name: shares.get(name, most) for name in order}


def _prune_levels(tau: Tensor, drop: float, levels: int, seed: int) -> tuple[Tensor, int]:
    """What is left of a tensor, not yet rescaled, and its bytes."""
    low, high = float(tau.min()), float(tau.max())
    step = (high - low) / (levels - 1) or 1.0
    index = ((tau - low) / step).round()
    value = index * step + low
    value[tau == 0] = 0
    rank = torch.rand(len(tau), generator=torch.Generator().manual_seed(seed))
    on = torch.zeros(len(tau), dtype=torch.bool)
    for level in range(levels):
        (group,) = torch.where((index == level) & (tau != 0))
        on[group[rank[group].argsort()[: math.ceil(len(group) * (1 - drop))]]] = True
    hat = torch.where(on, value, torch.zeros_like(value))
    return hat, codes.mask(on.to(torch.int8), "binary") + codes.levels(index[on].to(torch.uint8), levels)


def deltatensors(zoo: Zoo, strategy: str, **options: float) -> Packed:
    """deltatensors, by its own package: files written and read back; `int4` keeps the largest values apart."""
    try:
        package = importlib.import_module("deltatensors")
    except ImportError as error:
        raise Unavailable("pip install --no-deps deltatensors") from error
    base = {name: zoo.base[name].float().numpy() for name in zoo.names}
    packed = Packed.of(zoo)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder) / "task.wdelta"
        for hats, taus in zip(packed.hats, zoo.taus, strict=True):
            tuned = {name: base[name] + tau.numpy().reshape(base[name].shape) for name, tau in taus.items()}
            package.save_delta(file, tuned, base, strategy=strategy, use_gpu=False, **options)
            packed.bytes += file.stat().st_size
            for name, found in package.load_delta(file, base).items():
                hats[name] = torch.from_numpy(np.asarray(found, np.float32) - base[name]).flatten()
    return packed


def zipnn(zoo: Zoo) -> Packed:
    """zipnn: the fine-tuned tensors themselves, losslessly."""
    try:
        compress = importlib.import_module("zipnn").ZipNN(bytearray_dtype="float32", input_format="byte").compress
    except ImportError as error:
        raise Unavailable("pip install zipnn") from error
    packed = Packed.of(zoo)
    for task, taus in enumerate(zoo.taus):
        for name, tau in taus.items():
            raw = (zoo.base[name].float().flatten() + tau).numpy().tobytes()
            packed.keep(task, name, tau, len(compress(raw)) if len(raw) > 4096 else len(raw))
    return packed


def nncodec(zoo: Zoo, qp: int, scale: Scale | None = None) -> Packed:
    """NNC (ISO/IEC 15938-17) by its own software: DeepCABAC, dependent quantization, one step `qp` for all."""
    encode, decode = _nncodec()
    packed = Packed.of(zoo)
    options = {"approx_method": "uniform", "qp": qp, "use_dq": True, "tensor_id": "0", "verbose": False}
    for task, name, tau in _matrices(zoo, packed):
        with tempfile.TemporaryDirectory() as folder:  # it writes each stream, too
            stream = encode(_matrix(zoo, name, tau), options | {"results": folder})
        hat = torch.from_numpy(np.array(decode(stream, "0"), np.float32)).flatten()
        size = len(stream) + (codes.SCALE if scale else 0)
        packed.keep(task, name, hat * scale(tau, hat) if scale else hat, size)
    return packed


def _nncodec() -> tuple[types.FunctionType, types.FunctionType]:
    """Its two functions. It imports packages for training that coding has no use for: absent ones are stood in for."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models", "cv2"):
        sys.modules.setdefault(name, MagicMock())
    for name in ("ptflops", "torchmetrics", "flwr", "wandb"):
        sys.modules.setdefault(name, MagicMock())
    try:
        module = importlib.import_module("nncodec.tensor")
    except ImportError as error:
        raise Unavailable(f"pip install --no-deps nncodec pandas h5py ({error})") from error
    return module.encode, module.decode


def methods() -> list[Method]:
    """All of them, at the settings their authors give and a few lower rates."""
    m = Method
    return [
        *(m(f"paper: sum, λ {lam}, f32", "TALL-masks (paper)", partial(paper, lam=lam)) for lam in (0.4, 0.6)),
        m("EMR, f32", "EMR", emr),
        m("BitDelta, embeddings whole", "BitDelta", partial(bitdelta, everywhere=False, coded=False)),
        m("BitDelta, every matrix", "BitDelta", partial(bitdelta, everywhere=True, coded=False)),
        m("BitDelta, every matrix, coded", "BitDelta", partial(bitdelta, everywhere=True, coded=True)),
        m(
            "BitDelta, coded, unbiased scale",
            "peer + unbiased scale",
            partial(bitdelta, everywhere=True, coded=True, scale=unbiased),
        ),
        *(m(f"ternary {c} σ", "magnitude-pruned ternary", partial(magnitude, c=c)) for c in (0.8, 1.5, 2.0, 3.0)),
        *(
            m(f"ternary {c} σ, unbiased scale", "peer + unbiased scale", partial(magnitude, c=c, scale=unbiased))
            for c in (0.8, 1.5, 2.0, 3.0)
        ),
        m("BitDelta per axis", "BitDelta per axis", per_axis),
        *(
            m(f"TSV-Compress, rank {share:.3g}, f{8 * width}", "TSV-Compress", partial(tsv, share=share, width=width))
            for share, width in ((1 / 8, 4), (1 / 8, 2), (1 / 32, 2), (1 / 96, 2))
        ),
        *(m(f"DARE, {drop:.0%} dropped", "DARE", partial(dare, drop=drop)) for drop in (0.9, 0.97)),
        *(m(f"Delta-CoMe, {bits} bits", "Delta-CoMe", partial(delta_come, bits=bits)) for bits in (0.25, 0.5, 1.0)),
        *(m(f"UltraDelta, {d:.0%} dropped", "UltraDelta", partial(ultradelta, drop=d)) for d in (0.9, 0.95, 0.97)),
        *(
            m(f"UltraDelta, {d:.0%} dropped, even", "UltraDelta", partial(ultradelta, drop=d, step=s, even=True))
            for d, s in ((0.8, 0.03), (0.9, 0.03), (0.96, 0.03))
        ),
        m("deltatensors, int4", "deltatensors", partial(deltatensors, strategy="int4")),
        m("deltatensors, quantized", "deltatensors", partial(deltatensors, strategy="quantized")),
        m("deltatensors, sparse", "deltatensors", partial(deltatensors, strategy="sparse")),
        *(m(f"NNC, qp {qp}", "nncodec", partial(nncodec, qp=qp)) for qp in range(-44, -26, 2)),
        m("NNC, qp -32, unbiased scale", "peer + unbiased scale", partial(nncodec, qp=-32, scale=unbiased)),
        m("zipnn", "lossless", zipnn),
    ]
