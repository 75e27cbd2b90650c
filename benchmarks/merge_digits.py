"""The stress: tasks that overlap in meaning. Two fine-tunes of one question, each on its own half of the examples.

The paper names this as where localisation breaks: such tasks need the same weights. The text zoo comes without its
training data, so the demo's digits serve: one base, four questions, each asked of two disjoint halves of the training
images; 200 training images are kept for choosing α, the demo's held-out images are the test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import tallstore
from tallstore.demo import zoo as demo
from tallstore.demo.digits import Split, held_out, load_digits
from tallstore.demo.model import Classifier, Shape

QUESTIONS = ("digit", "mirrored", "rotated", "swapped")
CHOOSING = 200
STEPS = 140
RECIPES: Mapping[str, dict[str, Any]] = {
    "solo": {},
    "fit": {"recipe": "fit", "vector": "f32"},
    "tall": {"recipe": "tall", "vector": "f32"},
}
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StressRow:
    """One set of tasks, by one recipe."""

    tasks: str
    count: int
    recipe: str
    cosine: float
    """Between the task vectors, mean over pairs."""
    unused: float
    alone: float
    jaccard: float
    error: float
    retention: float
    """Of the decoded tasks, mean."""
    original: float
    merged: dict[str, float]
    """Mean test accuracy: `k=0` is the plain sum; α chosen on the 200 images."""
    alphas: dict[str, float]


def run(out: Path) -> list[StressRow]:
    """Train, pack, merge and measure."""
    base, tasks = _train(out)
    halves = {q: (f"{q}-1", f"{q}-2") for q in QUESTIONS}
    sets = {f"{q}, two halves": halves[q] for q in QUESTIONS}
    sets |= {f"{a} and {b}": (halves[a][0], halves[b][1]) for a, b in (("digit", "mirrored"), ("rotated", "swapped"))}
    sets["four questions, one half each"] = tuple(h[0] for h in halves.values())
    sets["four questions, both halves"] = tuple(t for h in halves.values() for t in h)
    return [_measure(label, names, recipe, base, tasks, out) for label, names in sets.items() for recipe in RECIPES]


def _train(out: Path) -> tuple[State, dict[str, State]]:
    file = out / "digits.pt"
    if file.exists():
        found = torch.load(file, weights_only=True)
        return found["base"], found["tasks"]
    train, _ = load_digits()
    train = Split(train.images[CHOOSING:], train.digits[CHOOSING:])
    plan = demo.Plan(task_steps=STEPS)
    with demo._one_thread():
        body = demo._pretrain(plan, train, 0, demo.silent)
        tasks = {}
        for n, question in enumerate(QUESTIONS):
            for half in (0, 1):
                own = Split(train.images[half::2], train.digits[half::2])
                task, seed = demo.demo_task(question), 10 * n + half + 1
                model = demo._fine_tune(body, task, plan=plan, train=own, seed=seed, progress=demo.silent)
                tasks[f"{question}-{half + 1}"] = dict(model.state_dict())
    torch.save({"base": dict(body.state_dict()), "tasks": tasks}, file)
    return dict(body.state_dict()), tasks


def _measure(
    label: str, names: Sequence[str], recipe: str, base: State, tasks: Mapping[str, State], out: Path
) -> StressRow:
    chosen = {name: tasks[name] for name in names}
    archive = out / "stress.tall"
    tallstore.pack(base, chosen, archive, overwrite=True, **RECIPES[recipe])
    with tallstore.open(archive) as zoo:
        masks, info = zoo.mask_statistics(), zoo.info()["tasks"]
        original = [accuracy(tasks[name], name, test=True) for name in names]
        decoded = [accuracy(zoo.state_dict(name), name, test=True) for name in names]
        merged, alphas = {}, {}
        for k in range(min(3, len(names)) + 1):
            report = zoo.merged(k=k, evaluator=lambda state, name: accuracy(state, name, test=False)).report
            states = [zoo.merged(k=k, alpha=report.alpha, heads=name) for name in names]
            merged[f"k={k}"] = mean(accuracy(s, name, test=True) for s, name in zip(states, names, strict=True))
            alphas[f"k={k}"] = report.alpha
    jaccard = masks.agreement.jaccard
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    return StressRow(
        tasks=label,
        count=len(names),
        recipe=recipe,
        cosine=mean(_cosine(base, tasks[names[i]], tasks[names[j]]) for i, j in pairs),
        unused=masks.catastrophic,
        alone=masks.agreement.selfish,
        jaccard=mean(float(jaccard[i, j]) for i, j in pairs),
        error=mean(info[name]["relative_error"] for name in names),
        retention=mean(after / before for after, before in zip(decoded, original, strict=True)),
        original=mean(original),
        merged=merged,
        alphas=alphas,
    )


def accuracy(state: Mapping[str, Tensor], name: str, *, test: bool) -> float:
    """Of a fine-tune on the held-out images, or on those that choose α."""
    task = demo.demo_task(name.partition("-")[0])
    model = Classifier(Shape.of(state), task.classes)
    model.load_state_dict(dict(state))
    images, answers = held_out(task) if test else _choosing(task)
    with torch.inference_mode():
        return float((model(images).argmax(-1) == answers).double().mean())


def _choosing(task: Any) -> tuple[Tensor, Tensor]:
    train, _ = load_digits()
    generator = torch.Generator().manual_seed(1)
    found: tuple[Tensor, Tensor] = task.examples(train.images[:CHOOSING], train.digits[:CHOOSING], generator)
    return found


def _cosine(base: State, one: State, two: State) -> float:
    taus = [torch.cat([(s[n] - base[n]).flatten().double() for n in base if n in one]) for s in (one, two)]
    return float(torch.nn.functional.cosine_similarity(taus[0], taus[1], dim=0))
