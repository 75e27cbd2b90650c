"""A real zoo in memory, and the judge who measures what an approximation of it is worth.

The error of the weights says little about a model: what is judged is what its outputs do. Beside the accuracy kept
(`retention`, noisy on small test sets) there are three smooth measures against the original's logits: mean KL
divergence, relative error of the logits, and the share of predictions that changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = "model.safetensors"
MAX_TOKENS = 32
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """Task vectors, flat and float32, under the base's names; what has no base is in `private`."""

    folder: Path
    tasks: tuple[str, ...]
    base: Mapping[str, Tensor]
    names: Mapping[str, str]
    """Base name → the tasks' name."""
    taus: tuple[Mapping[str, Tensor], ...]
    private: tuple[Mapping[str, Tensor], ...]

    @property
    def parameters(self) -> int:
        """Of all tasks together."""
        shared = sum(self.base[name].numel() for name in self.names)
        return len(self.tasks) * shared + sum(t.numel() for own in self.private for t in own.values())

    def stacked(self, name: str) -> Tensor:
        """τ of one tensor for all tasks, shape (T, N)."""
        return torch.stack([tau[name] for tau in self.taus])


def tested(folder: Path, data: Path) -> list[str]:
    """Tasks that have a test set."""
    return sorted(p.name for p in folder.iterdir() if (data / p.name / "test.tsv").is_file())


def load_zoo(folder: Path, tasks: Sequence[str]) -> Zoo:
    """The folders of some tasks, beside `base/`."""
    base = {name: t for name, t in load_file(folder / "base" / WEIGHTS).items() if t.is_floating_point()}
    names: dict[str, str] = {}
    taus, private = [], []
    for task in tasks:
        tau, own = {}, {}
        for name, tensor in load_file(folder / task / WEIGHTS).items():
            start = _base_name(name, tensor, base)
            if start is None:
                own[name] = tensor
            else:
                names[start] = name
                tau[start] = (tensor.float() - base[start].float()).flatten()
        taus.append(tau)
        private.append(own)
    return Zoo(
        folder=folder,
        tasks=tuple(tasks),
        base=base,
        names=dict(sorted(names.items())),
        taus=tuple(taus),
        private=tuple(private),
    )


def _base_name(name: str, tensor: Tensor, base: Mapping[str, Tensor]) -> str | None:
    """A tensor's name in the base, which may lack a prefix that the task has."""
    parts = name.split(".")
    tails = (".".join(parts[n:]) for n in range(len(parts)))
    return next((t for t in tails if t in base and base[t].shape == tensor.shape), None)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One task's approximation beside its original."""

    retention: float
    kl: float
    logit_error: float
    flips: float
    relative_error: float
    cosine: float


def average(scores: Sequence[Score]) -> dict[str, float]:
    """Means, and the worst retention."""
    found = {name: mean(getattr(s, name) for s in scores) for name in Score.__dataclass_fields__}
    return found | {"worst": min(s.retention for s in scores)}


@dataclass
class _Case:
    model: Any
    batches: list[tuple[list[int], Tensor]]
    labels: Tensor
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class Judge:
    """Evaluates text classifiers on `DATA/<task>/test.tsv`: label, tab, text. Originals are evaluated once."""

    def __init__(self, zoo: Zoo, data: Path, examples: int | None) -> None:
        self._zoo = zoo
        self._cases = [_load_case(zoo.folder / t, data / t / "test.tsv", examples) for t in zoo.tasks]
        for case in self._cases:
            case.logits = _logits(case)

    def scores(self, hats: Sequence[Mapping[str, Tensor]]) -> list[Score]:
        """Score each task's approximate task vector; tensors that are absent from it count as 0."""
        return [self._score(n, hat) for n, hat in enumerate(hats)]

    def _score(self, index: int, hat: Mapping[str, Tensor]) -> Score:
        case, tau = self._cases[index], self._zoo.taus[index]
        own = dict(case.model.state_dict())
        with torch.no_grad():
            for start, name in self._zoo.names.items():
                value = self._zoo.base[start].float().flatten()
                own[name].copy_((value + hat[start] if start in hat else value).view_as(own[name]))
        logits = _logits(case)
        gap = norm = dot = kept = 0.0
        for name, true in tau.items():
            got = hat.get(name, torch.zeros_like(true))
            gap += float((got - true).double().square().sum())
            norm += float(true.double().square().sum())
            kept += float(got.double().square().sum())
            dot += float((got.double() * true.double()).sum())
        p, q = case.logits.log_softmax(1), logits.log_softmax(1)
        before, after = case.logits.argmax(1), logits.argmax(1)
        return Score(
            retention=float((after == case.labels).sum() / (before == case.labels).sum()),
            kl=float((p.exp() * (p - q)).sum(1).mean()),
            logit_error=float((logits - case.logits).norm() / case.logits.norm()),
            flips=float((after != before).float().mean()),
            relative_error=(gap / norm) ** 0.5,
            cosine=dot / max((norm * kept) ** 0.5, 1e-30),
        )


def _load_case(folder: Path, test: Path, examples: int | None) -> _Case:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    lines = [line.split("\t", 1) for line in test.read_text(encoding="utf-8").splitlines()][:examples]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer([text for _, text in lines], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    # Batches of one length need no padding: the result does not depend on how they are cut.
    lengths: dict[int, list[int]] = {}
    for n, ids in enumerate(tokens):
        lengths.setdefault(len(ids), []).append(n)
    cuts = [same[a : a + BATCH] for _, same in sorted(lengths.items()) for a in range(0, len(same), BATCH)]
    batches = [(cut, torch.tensor([tokens[n] for n in cut])) for cut in cuts]
    return _Case(model, batches, torch.tensor([int(label) for label, _ in lines]))


def _logits(case: _Case) -> Tensor:
    parts: list[Tensor] = []
    where: list[int] = []
    with torch.inference_mode():
        for cut, ids in case.batches:
            parts.append(case.model(input_ids=ids).logits)
            where += cut
    order = torch.empty(len(where), dtype=torch.long)
    order[torch.tensor(where)] = torch.arange(len(where))
    return torch.cat(parts)[order]
