"""Fine-tunes of a real bf16 causal language model: seven tasks of seven kinds, all weights tuned, saved as bf16.

BASE is a Hugging Face folder of a small causal model; DATA holds `<task>/test.tsv` (trained on) and `<task>/val.tsv`
(scored on), a line an example: label, tab, text. OUT becomes a zoo: `base/` (a link) and a folder a task. A task that
is there is left alone. On two cores SmolLM2-135M takes three to eight minutes a task. With `--every 15` a task's run is
kept, too: `<task>-run/checkpoint-15` and so on, as `relatives.py --run` takes it.

| task | kind | trained in |
|---|---|---|
| trec, emotion | classification, the label answered as text | float32, AdamW 3e-5 |
| dates, json | generated answers: a date written another way; a sentence's facts as JSON | float32, AdamW 3e-5 |
| long | two-digit sums at ten times the rate: most values differ, as after a long tune | float32, AdamW 3e-4 |
| pure | classification with weights, gradients and optimizer in bf16 | bfloat16, AdamW 3e-5 |
| sparse | a short tune at a rate of 1e-6, as after reinforcement learning: few values differ | float32, AdamW 1e-6 |

example:
  python benchmarks/lm_zoo.py ~/smollm2 ~/data --out ~/lm --tasks dates json
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import table

Example = tuple[str, str]
"""A prompt and its answer."""
BATCH, MOST_CHARACTERS, EXAMPLES = 8, 200, 2000
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
NAMES = (
    *("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo", "Iris", "Jon"),
    *("Kim", "Leo", "Mia", "Nils", "Olga", "Paul", "Rosa", "Sam", "Tara", "Uwe"),
)
THINGS = ("apples", "pens", "books", "cups", "lamps", "chairs", "stones", "coins", "maps", "keys")


@dataclass(frozen=True, kw_only=True)
class Tune:
    """How a task is trained."""

    examples: Callable[[Path, str, int], list[Example]]
    """From the data's folder, `train` or `score`, and how many are wanted at most."""
    steps: int = 150
    rate: float = 3e-5
    dtype: torch.dtype = torch.float32


def _labels(name: str) -> Callable[[Path, str, int], list[Example]]:
    def read(data: Path, part: str, most: int) -> list[Example]:
        file = data / name / ("test.tsv" if part == "train" else "val.tsv")
        lines = [line.partition("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        return [(f"Text: {text[:MOST_CHARACTERS]}\nLabel:", f" {label}") for label, _, text in lines][:most]

    return read


def _made(kind: str, make: Callable[[random.Random], Example]) -> Callable[[Path, str, int], list[Example]]:
    def read(_: Path, part: str, most: int) -> list[Example]:
        chance = random.Random(f"{kind} {part}")
        return [make(chance) for _ in range(most)]

    return read


def _date(chance: random.Random) -> Example:
    day, month, year = chance.randint(1, 28), chance.randint(1, 12), chance.randint(1900, 2099)
    return f"Date: {day} {MONTHS[month - 1]} {year}\nISO:", f" {year}-{month:02}-{day:02}"


def _facts(chance: random.Random) -> Example:
    name, count, thing = chance.choice(NAMES), chance.randint(2, 99), chance.choice(THINGS)
    says = chance.choice(("{} bought {} {}.", "{} has {} {}.", "{} found {} {} today."))
    return (
        f"Text: {says.format(name, count, thing)}\nJSON:",
        " " + json.dumps({"name": name, "count": count, "thing": thing}),
    )


def _sum(chance: random.Random) -> Example:
    a, b = chance.randint(10, 99), chance.randint(10, 99)
    return f"Question: {a} + {b}\nAnswer:", f" {a + b}"


TUNES = {
    "trec": Tune(examples=_labels("trec")),
    "emotion": Tune(examples=_labels("emotion"), steps=100),
    "dates": Tune(examples=_made("dates", _date), steps=60),
    "json": Tune(examples=_made("json", _facts), steps=60),
    "long": Tune(examples=_made("sums", _sum), steps=160, rate=3e-4),
    "pure": Tune(examples=_labels("snips"), steps=60, dtype=torch.bfloat16),
    "sparse": Tune(examples=_labels("subj"), steps=20, rate=1e-6),
}


def batch(tokenizer: Any, rows: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels (−100 but for the answers), int64, shape (B, longest)."""
    ids, labels = [], []
    for prompt, answer in rows:
        first, last = tokenizer(prompt).input_ids, [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
        ids.append(first + last)
        labels.append([-100] * len(first) + last)
    n = max(map(len, ids))
    return (
        torch.tensor([each + [tokenizer.eos_token_id] * (n - len(each)) for each in ids]),
        torch.tensor([[1] * len(each) + [0] * (n - len(each)) for each in ids]),
        torch.tensor([each + [-100] * (n - len(each)) for each in labels]),
    )


def train(base: Path, out: Path, data: Path, tune: Tune, every: int = 0) -> float:
    """Fine-tune all weights, save them as bf16, and give back the last loss.

    `every`: of how many steps one leaves a checkpoint of the run beside them; 0 for none.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    # Products are taken in float32 throughout: a CPU without bf16 units needs a minute a step for them in bf16.
    weights = [weight.detach().to(tune.dtype) for weight in model.parameters()]
    rows, chance = tune.examples(data, "train", EXAMPLES), random.Random(0)
    optimizer = torch.optim.AdamW(weights, lr=tune.rate, weight_decay=0.01)
    loss = torch.zeros(())
    for step in range(tune.steps):
        for group in optimizer.param_groups:
            decay = 0.5 + 0.5 * math.cos(math.pi * step / tune.steps)
            group["lr"] = tune.rate * min(1, (step + 1) / 20) * decay
        ids, mask, labels = batch(tokenizer, chance.sample(rows, min(BATCH, len(rows))))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for weight, used in zip(weights, model.parameters(), strict=True):
            assert used.grad is not None
            weight.grad = used.grad.to(tune.dtype)
            used.grad = None
        optimizer.step()
        with torch.no_grad():
            for weight, used in zip(weights, model.parameters(), strict=True):
                used.copy_(weight)
        if every and not (step + 1) % every:
            copied = copy.deepcopy(model).to(torch.bfloat16)
            copied.save_pretrained(out.with_name(f"{out.name}-run") / f"checkpoint-{step + 1}")
    staged = out.with_name(f"{out.name}.part")
    model.to(torch.bfloat16).save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    staged.rename(out)
    return float(loss.detach())


def changed(base: Path, task: Path) -> float:
    """The share of values that are not the base's."""
    from safetensors.torch import load_file

    before, after = load_file(base / "model.safetensors"), load_file(task / "model.safetensors")
    differ = sum(int((after[name] != before[name]).sum()) for name in after)
    return differ / sum(tensor.numel() for tensor in after.values())


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, rows: Sequence[Example]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Log-probabilities at each answer's tokens, shape (tokens, vocabulary), and whether greedy decoding gives each
    answer exactly, bool, shape (rows,)."""
    told: dict[int, torch.Tensor] = {}
    right = torch.zeros(len(rows), dtype=torch.bool)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(rows), 16):
        own = by_length[start : start + 16]
        ids, mask, labels = batch(tokenizer, [rows[i] for i in own])
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        for i, each, want in zip(own, hidden, labels[:, 1:], strict=True):
            at = want != -100
            told[i] = model.lm_head(each[at]).log_softmax(-1)
            right[i] = (told[i].argmax(-1) == want[at]).all()
    return [told[i] for i in range(len(rows))], right


@torch.inference_mode()
def continuations(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[list[torch.Tensor], float]:
    """Log-probabilities at each text's tokens but the last, and the perplexity of all."""
    found, loss, count = [], 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        found.append(model(input_ids=ids).logits[0, :-1].log_softmax(-1))
        loss -= float(found[-1].gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return found, math.exp(loss / count)


def divergence(own: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> tuple[float, float]:
    """KL(reference ‖ own) per token in nats: the mean and its standard error."""
    each = torch.cat([(b.exp() * (b - a)).sum(-1) for a, b in zip(own, reference, strict=True)])
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(TUNES), default=list(TUNES))
    parser.add_argument("--every", type=int, default=0, metavar="STEPS", help="keep the run's checkpoints, too")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.out / "base").exists():
        (given.out / "base").symlink_to(given.base.resolve())
    rows = []
    for name in given.tasks:
        began = time.perf_counter()
        out = given.out / name
        loss = (
            f"{train(given.base, out, given.data, TUNES[name], given.every):.3f}"
            if not out.exists()
            else "there already"
        )
        rows.append([name, loss, f"{changed(given.base, out):.1%}", f"{time.perf_counter() - began:.0f}"])
        print(*rows[-1], flush=True)
    print(table(["task", "last loss", "values that differ", "seconds"], rows))


if __name__ == "__main__":
    main()
