"""A real zoo in memory, and the judge who measures what an approximation of it is worth.

The error of the weights says little about a model: what is judged is what its outputs do. Beside the accuracy kept
(`retention`, noisy on small test sets) there are smooth measures against the original's logits: mean KL divergence, on
the task and on texts of other tasks, relative error of the logits, and the share of predictions that changed.
"""

from __future__ import annotations

import math
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
    kl_error: float
    """Standard error; `other`: on texts of the other tasks."""
    kl_other: float
    kl_other_error: float
    logit_error: float
    flips: float
    relative_error: float
    cosine: float


def average(scores: Sequence[Score]) -> dict[str, float]:
    """Means, the standard errors of means, and the worst retention."""
    found = {name: mean(getattr(s, name) for s in scores) for name in Score.__dataclass_fields__}
    for name in ("kl_error", "kl_other_error"):
        found[name] = math.hypot(*(getattr(s, name) for s in scores)) / len(scores)
    return found | {"worst": min(s.retention for s in scores)}


_Batches = list[tuple[list[int], Tensor]]
"""Places of texts of one length, and their tokens."""


@dataclass
class _Case:
    model: Any
    batches: _Batches
    other: _Batches
    """Texts of other tasks."""
    labels: Tensor
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    other_logits: Tensor = field(default_factory=lambda: torch.empty(0))


class Judge:
    """Evaluates text classifiers on `DATA/<task>/test.tsv`: label, tab, text. Originals are evaluated once."""

    def __init__(self, zoo: Zoo, data: Path, examples: int | None, other: int) -> None:
        self._zoo, self._cases = zoo, list[_Case]()
        lines = {task: _lines(data / task / "test.tsv") for task in zoo.tasks}
        for task in zoo.tasks:
            texts = [text for each in zoo.tasks if each != task for _, text in lines[each][:other]]
            case = _load_case(zoo.folder / task, lines[task][:examples], texts)
            case.logits, case.other_logits = _logits(case.model, case.batches), _logits(case.model, case.other)
            self._cases.append(case)

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
        logits = _logits(case.model, case.batches)
        kl, kl_error = _divergence(case.logits, logits)
        kl_other, kl_other_error = _divergence(case.other_logits, _logits(case.model, case.other))
        gap = norm = dot = kept = 0.0
        for name, true in tau.items():
            got = hat.get(name, torch.zeros_like(true))
            gap += float((got - true).double().square().sum())
            norm += float(true.double().square().sum())
            kept += float(got.double().square().sum())
            dot += float((got.double() * true.double()).sum())
        before, after = case.logits.argmax(1), logits.argmax(1)
        return Score(
            retention=float((after == case.labels).sum() / (before == case.labels).sum()),
            kl=kl,
            kl_error=kl_error,
            kl_other=kl_other,
            kl_other_error=kl_other_error,
            logit_error=float((logits - case.logits).norm() / case.logits.norm()),
            flips=float((after != before).float().mean()),
            relative_error=(gap / norm) ** 0.5,
            cosine=dot / max((norm * kept) ** 0.5, 1e-30),
        )


def _lines(file: Path) -> list[tuple[str, str]]:
    lines = (line.partition("\t") for line in file.read_text(encoding="utf-8").splitlines())
    return [(label, text) for label, _, text in lines]


def _load_case(folder: Path, lines: Sequence[tuple[str, str]], other: Sequence[str]) -> _Case:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = torch.tensor([int(label) for label, _ in lines])
    return _Case(model, _batches(tokenizer, [text for _, text in lines]), _batches(tokenizer, other), labels)


def _batches(tokenizer: Any, texts: Sequence[str]) -> _Batches:
    """Batches of one length need no padding: the result does not depend on how they are cut."""
    if not texts:
        return []
    tokens = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    lengths: dict[int, list[int]] = {}
    for n, ids in enumerate(tokens):
        lengths.setdefault(len(ids), []).append(n)
    cuts = [same[a : a + BATCH] for _, same in sorted(lengths.items()) for a in range(0, len(same), BATCH)]
    return [(cut, torch.tensor([tokens[n] for n in cut])) for cut in cuts]


def _logits(model: Any, batches: _Batches) -> Tensor:
    """Shape (texts, labels)."""
    parts: list[Tensor] = []
    where: list[int] = []
    with torch.inference_mode():
        for cut, ids in batches:
            parts.append(model(input_ids=ids).logits)
            where += cut
    order = torch.empty(len(where), dtype=torch.long)
    order[torch.tensor(where, dtype=torch.long)] = torch.arange(len(where))
    return torch.cat(parts)[order] if parts else torch.empty(0, 1)


def _divergence(original: Tensor, found: Tensor) -> tuple[float, float]:
    """KL(original ‖ found) in nats an example, the mean and its standard error; 0 without examples."""
    if not len(original):
        return 0.0, 0.0
    p, q = original.double().log_softmax(1), found.double().log_softmax(1)
    each = (p.exp() * (p - q)).sum(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)
