"""The peers, their mathematics written anew: what each would store for the same checkpoints, and what comes back.

Everything is data-free: BitDelta without the distillation of its scales, UltraDelta without its search. Small tensors
(biases, norms: one parameter in a thousand) are kept in float16 by every peer that has no way of its own with them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import sys
import tempfile
import types
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


def bitdelta(zoo: Zoo, everywhere: bool, coded: bool, scale: Scale = least_squares) -> Packed:
    """BitDelta (Liu et al. 2024): sign(τ) and one scale, the mean of |τ|, a matrix.

    As published embeddings stay whole; `everywhere` takes them too. `coded` leaves what did not move at 0, and
    entropy-codes the symbols.
    """
    packed = Packed.of(zoo)
    for name in zoo.names:
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name) or ("embed" in name and not everywhere):
                packed.keep_half(task, name, tau)
                continue
            w = tau.sign() if coded else torch.where(tau > 0, 1.0, -1.0)
            size = codes.mask(w, "signed") if coded else codes.packed(len(w), 1)
            packed.keep(task, name, scale(tau, w) * w, size + codes.SCALE)
    return packed


def magnitude(zoo: Zoo, c: float, scale: Scale = least_squares) -> Packed:
    """Each task alone, ternary: what exceeds c standard deviations of its tensor keeps its sign, entropy-coded."""
    packed = Packed.of(zoo)
    for name in zoo.names:
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name):
                packed.keep_half(task, name, tau)
            else:
                w = ternary(tau, c * float(tau.std()))
                packed.keep(task, name, scale(tau, w) * w, codes.mask(w, "signed") + codes.SCALE)
    return packed


def tsv(zoo: Zoo, share: float, width: int) -> Packed:
    """TSV-Compress (Gargiulo et al. 2025): each matrix by its leading singular triples, `share` of the rank."""
    packed = Packed.of(zoo)
    for name in zoo.names:
        shape = zoo.base[name].shape
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name):
                packed.keep_half(task, name, tau)
                continue
            rank = max(1, round(min(shape) * share))
            hat = _leading(tau.view(shape), rank, width)
            packed.keep(task, name, hat.flatten(), width * rank * (shape[0] + shape[1] + 1))
    return packed


def _leading(matrix: Tensor, rank: int, width: int) -> Tensor:
    """The best approximation of that rank, by the smaller Gram matrix; factors of `width` bytes a number."""
    tall = matrix.shape[0] >= matrix.shape[1]
    m = matrix if tall else matrix.T
    _, right = torch.linalg.eigh(m.double().T @ m.double())
    right = right[:, -rank:].float()
    left = m @ right
    if width == 2:
        size = left.norm(dim=0).clamp(min=1e-30)
        left, right = (left / size).half().float() * size.half().float(), right.half().float()
    found = left @ right.T
    return found if tall else found.T.contiguous()


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


def ultradelta(zoo: Zoo, drop: float, spread: float = 0.03, levels: int = 16) -> Packed:
    """UltraDelta's pipeline (2025), without its search: mixed sparsity by variance, 4-bit levels, pruning spread evenly
    over the levels, rescaling."""
    packed = Packed.of(zoo)
    matrices = [name for name in zoo.names if not is_small(zoo, name)]
    for task, taus in enumerate(zoo.taus):
        order = sorted(matrices, key=lambda name: float(taus[name].var()))
        for place, name in enumerate(order):
            # A third of the tensors, those with the largest variance, keep more; the third with the smallest, less.
            share = min(0.999, drop + spread * (1 - 3 * place // len(order)))
            hat, size = _prune_levels(taus[name], share, levels, seed=task * 1000 + place)
            packed.keep(task, name, hat, size)
        for name in zoo.names:
            if is_small(zoo, name):
                packed.keep_half(task, name, taus[name])
    return packed


def _prune_levels(tau: Tensor, drop: float, levels: int, seed: int) -> tuple[Tensor, int]:
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
    hat = torch.where(on, value / (1 - drop), torch.zeros_like(value))
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
    for name in zoo.names:
        for task, tau in enumerate(zoo.stacked(name)):
            if is_small(zoo, name):
                packed.keep_half(task, name, tau)
                continue
            options = {"approx_method": "uniform", "qp": qp, "use_dq": True, "tensor_id": "0", "verbose": False}
            stream = encode(tau.view(zoo.base[name].shape), options)
            hat = torch.from_numpy(np.array(decode(stream, "0"), np.float32)).flatten()
            size = len(stream) + (codes.SCALE if scale else 0)
            packed.keep(task, name, hat * scale(tau, hat) if scale else hat, size)
    return packed


def _nncodec() -> tuple[types.FunctionType, types.FunctionType]:
    """Its two functions. It imports packages for training that coding has no use for: absent ones are stood in for."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models", "cv2"):
        sys.modules.setdefault(name, MagicMock())
    for name in ("ptflops", "torchmetrics"):
        sys.modules.setdefault(name, MagicMock())
    try:
        module = importlib.import_module("nncodec.tensor")
    except ImportError as error:
        raise Unavailable(f"pip install nncodec pandas h5py ({error})") from error
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
        *(
            m(f"TSV-Compress, rank {share:.3g}, f{8 * width}", "TSV-Compress", partial(tsv, share=share, width=width))
            for share, width in ((1 / 8, 4), (1 / 8, 2), (1 / 32, 2), (1 / 96, 2))
        ),
        *(m(f"DARE, {drop:.0%} dropped", "DARE", partial(dare, drop=drop)) for drop in (0.9, 0.97)),
        *(m(f"UltraDelta-like, {d:.0%} dropped", "UltraDelta", partial(ultradelta, drop=d)) for d in (0.8, 0.9, 0.96)),
        m("deltatensors, int4", "deltatensors", partial(deltatensors, strategy="int4")),
        m("deltatensors, quantized", "deltatensors", partial(deltatensors, strategy="quantized")),
        m("deltatensors, sparse", "deltatensors", partial(deltatensors, strategy="sparse")),
        *(m(f"NNC, qp {qp}", "nncodec", partial(nncodec, qp=qp)) for qp in (-40, -36, -32, -28)),
        m("NNC, qp -32, unbiased scale", "peer + unbiased scale", partial(nncodec, qp=-32, scale=unbiased)),
        m("zipnn", "lossless", zipnn),
    ]
