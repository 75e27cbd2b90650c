"""What each setting keeps of a zoo of bf16 language models, and what it costs.

ZOO is what `lm_zoo.py` makes. Each setting is packed once; every task is decoded from it and scored beside its
original: greedy answers that are exactly right, KL(original ‖ decoded) in nats per answer token of the task and per
token of text that the task never saw, each with its standard error, and the perplexity on that text. Bits are of the
task's own bytes per parameter of the task.

example:
  python benchmarks/lm_retention.py ~/lm ~/data --out lm.json --settings small balanced high lossless
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import describe_machine, table
from lm_zoo import TUNES, accuracy, divergence, text_divergence

import tallstore


@dataclass(frozen=True, kw_only=True)
class DecodedCache:
    """One task in one setting."""

    setting: str
    task: str
    bits: float
    accuracy: float
    original: float
    kl_task: float
    kl_task_error: float
    kl_text: float
    kl_text_error: float
    perplexity: float

    @property
    def retention(self) -> float:
        return self.accuracy / self.original if self.original else float("nan")


def texts_of(data: Path, most: int) -> list[str]:
    """News: no task is trained on it."""
    lines = (data / "agnews" / "val.tsv").read_text(encoding="utf-8").splitlines()
    return [line.partition("\t")[2][:300] for line in lines][:most]


def measure(zoo: Path, data: Path, setting: str, tasks: list[str], examples: int) -> list[DecodedCache]:
    """Pack with one setting and score every task."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo / "base")
    texts = texts_of(data, examples // 2)
    options: dict[str, Any] = {"bits": float(setting)} if setting[0].isdigit() else {"quality": setting}
    if setting == "default":
        options = {}
    found = []
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / "zoo.tall"
        tallstore.pack(zoo / "base", {task: zoo / task for task in tasks}, archive, **options)
        with tallstore.open(archive) as opened:
            for task in tasks:
                original = AutoModelForCausalLM.from_pretrained(zoo / task, dtype=torch.float32).eval()
                decoded = AutoModelForCausalLM.from_pretrained(zoo / task, dtype=torch.bfloat16).eval()
                opened.load_into(decoded, task)
                decoded = decoded.float()
                rows = TUNES[task].examples(data, "score", examples)
                kl, kl_error = divergence(decoded, original, tokenizer, rows)
                text, text_error, perplexity = text_divergence(decoded, original, tokenizer, texts)
                measured = opened.manifest.tasks[task].measured
                found.append(
                    DecodedCache(
                        setting=setting,
                        task=task,
                        bits=8 * measured["bytes"] / measured["parameters"],
                        accuracy=accuracy(decoded, tokenizer, rows),
                        original=accuracy(original, tokenizer, rows),
                        kl_task=kl,
                        kl_task_error=kl_error,
                        kl_text=text,
                        kl_text_error=text_error,
                        perplexity=perplexity,
                    )
                )
                print(json.dumps(asdict(found[-1])), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", nargs="+", default=["small", "balanced", "high", "lossless"])
    parser.add_argument("--tasks", nargs="+", choices=list(TUNES))
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tasks = given.tasks or [task for task in TUNES if (given.zoo / task).exists()]
    found = [
        each for setting in given.settings for each in measure(given.zoo, given.data, setting, tasks, given.examples)
    ]
    if given.out:
        given.out.write_text(
            json.dumps({"machine": describe_machine(), "rows": [asdict(each) for each in found]}, indent=1)
        )
    head = ["setting, task", "bits", "kept", "KL task", "±", "KL text", "±", "perplexity"]
    rows = [
        [
            f"{each.setting}, {each.task}",
            f"{each.bits:.3f}",
            f"{each.retention:.1%}",
            f"{each.kl_task:.5f}",
            f"{each.kl_task_error:.5f}",
            f"{each.kl_text:.5f}",
            f"{each.kl_text_error:.5f}",
            f"{each.perplexity:.2f}",
        ]
        for each in found
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
