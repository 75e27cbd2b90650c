"""Accuracy of text classifiers given as state dicts; remembered by the hash of weights and examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

MAX_TOKENS = 32
BATCH = 64


@dataclass(frozen=True)
class _Examples:
    batches: list[tuple[Tensor, Tensor]]
    """Token ids of one length, and labels."""
    count: int
    key: str


class Judge:
    """Evaluates on `DATA/<task>/test.tsv` in float32, or on some of `val.tsv` in bfloat16 (quick, for choices)."""

    def __init__(self, zoo: Path, data: Path, known: Path, examples: int) -> None:
        self.tasks = tuple(sorted(p.name for p in zoo.iterdir() if (data / p.name / "test.tsv").is_file()))
        self._zoo, self._data, self._file, self._examples = zoo, data, known, examples
        self._known: dict[str, float] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        self._sets: dict[tuple[str, str], _Examples] = {}
        self._models: dict[tuple[str, str], Any] = {}

    def validate(self, state: Mapping[str, Tensor], task: str) -> float:
        """An evaluator as tallstore takes it."""
        return self._accuracy(state, task, "val")

    def test(self, state: Mapping[str, Tensor], task: str) -> float:
        """Accuracy on the whole test set."""
        return self._accuracy(state, task, "test")

    def _accuracy(self, state: Mapping[str, Tensor], task: str, split: str) -> float:
        digest = xxhash.xxh3_128()
        for name in sorted(state):
            digest.update(name.encode())
            digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy())
        key = f"{digest.hexdigest()} {self._set(task, split).key}"
        if key not in self._known:
            self._known[key] = self._measure(state, task, split)
            self._file.write_text(json.dumps(self._known, indent=0), encoding="utf-8")
        return self._known[key]

    def _measure(self, state: Mapping[str, Tensor], task: str, split: str) -> float:
        model = self._model(task, split)
        dtype = torch.float32 if split == "test" else torch.bfloat16
        given = {name: tensor.to(dtype) for name, tensor in state.items() if tensor.is_floating_point()}
        missing, unexpected = model.load_state_dict(given, strict=False, assign=True)
        if unexpected or any("position_ids" not in name for name in missing):
            raise SystemExit(f"{task}: the model lacks {unexpected} and the weights {missing}")
        right = 0
        with torch.inference_mode():
            for ids, labels in self._set(task, split).batches:
                right += int((model(input_ids=ids).logits.argmax(-1) == labels).sum())
        return right / self._set(task, split).count

    def _model(self, task: str, split: str) -> Any:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        if (task, split) not in self._models:
            config = AutoConfig.from_pretrained(self._zoo / task)
            self._models[task, split] = AutoModelForSequenceClassification.from_config(config).eval()
        return self._models[task, split]

    def _set(self, task: str, split: str) -> _Examples:
        from transformers import AutoTokenizer

        if (task, split) in self._sets:
            return self._sets[task, split]
        text = (self._data / task / f"{split}.tsv").read_text(encoding="utf-8")
        lines = [line.split("\t", 1) for line in text.splitlines()]
        lines = lines if split == "test" else lines[: self._examples]
        tokenizer = AutoTokenizer.from_pretrained(self._zoo / task)
        tokens = tokenizer([t for _, t in lines], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        # Batches of one length need no padding: results do not depend on how they are cut.
        lengths: dict[int, list[int]] = {}
        for n, ids in enumerate(tokens):
            lengths.setdefault(len(ids), []).append(n)
        cuts = [same[a : a + BATCH] for _, same in sorted(lengths.items()) for a in range(0, len(same), BATCH)]
        batches = [
            (torch.tensor([tokens[n] for n in cut]), torch.tensor([int(lines[n][0]) for n in cut])) for cut in cuts
        ]
        key = f"{task} {split} {xxhash.xxh3_64_hexdigest(text.encode())} {len(lines)}"
        self._sets[task, split] = _Examples(batches, len(lines), key)
        return self._sets[task, split]
