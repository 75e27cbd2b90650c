"""What each setting keeps of a zoo of bf16 language models, and what it costs.

ZOO is what `lm_zoo.py` makes. Every task is packed in each setting, decoded and scored beside its original: greedy
answers that are exactly right, KL(original ‖ decoded) in nats per answer token of the task and per token of text that
the task never saw, each with its standard error, and the perplexity on that text. Bits are of the task's weights alone
and of all its bytes, tokenizer and all, per parameter; a setting is a quality, `default`, or a number of bits, and `@4`
behind it sets κ. `--peers` names others' methods (`rd_peers.py`), and `subsampled` of `rd_own.py`, a regular
expression: they are given the same task vectors in float32, and what comes of them is computed with as it is, or, with
`--rounded`, rounded to bf16, which is what a tune is stored in. `--save` keeps what is measured, and what is kept there
is not measured again; `--plot` draws the task that is named.

example:
  python benchmarks/lm_retention.py ~/lm ~/data --save lm.json --settings small default high lossless 0.4 0.8
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import rd_own
import rd_peers
import torch
from common import describe_machine, table
from lm_zoo import TUNES, answers, continuations, divergence
from rd_method import Method, Unavailable
from rd_plot import Point, View, draw
from rd_zoo import load_zoo

import tallstore


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One task in one setting."""

    setting: str
    family: str = "tallstore"
    task: str
    bits: float
    """Of the weights; `bits_in_all`: of everything that the task alone has."""
    bits_in_all: float
    accuracy: float
    original: float
    kept_error: float
    """Standard error of the retention: of the answers that one of both has right and the other has not."""
    kl_task: float
    kl_task_error: float
    kl_text: float
    kl_text_error: float
    perplexity: float

    @property
    def retention(self) -> float:
        """Its share of the original's accuracy."""
        return self.accuracy / self.original if self.original else math.nan


MOST_TEXTS = 150
"""Some 10,000 tokens."""
VIEWS = (
    View("answers kept, %", 80.0),
    View("KL from the original's answers, nats a token", 1e-6, log=True),
    View("KL on text that the task never saw, nats a token", 1e-6, log=True),
)


def texts_of(data: Path, most: int) -> list[str]:
    """News: no task is trained on it."""
    lines = (data / "agnews" / "val.tsv").read_text(encoding="utf-8").splitlines()
    return [line.partition("\t")[2][:300] for line in lines][:most]


def options_of(setting: str) -> dict[str, Any]:
    """Arguments of `tallstore.pack`."""
    word, _, kappa = setting.partition("@")
    options: dict[str, Any] = {"bits": float(word)} if word[0].isdigit() else {"quality": word}
    if word == "default":
        options = {}
    return options | ({"kappa": float(kappa)} if kappa else {})


def decoded(zoo: Path, task: str, setting: str) -> tuple[Any, float, float]:
    """A task as a setting leaves it, in float32; bits a parameter of its weights, and in all."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / "zoo.tall"
        tallstore.pack(zoo / "base", {task: zoo / task}, archive, base_storage="reference", **options_of(setting))
        with tallstore.open(archive, base=zoo / "base") as opened:
            model = AutoModelForCausalLM.from_pretrained(zoo / task, dtype=torch.bfloat16).eval()
            opened.load_into(model, task)
            own, parts = opened.manifest.tasks[task], opened.manifest.parts
    weights = sum(parts[path].size for paths in own.parts.values() for path in paths)
    parameters = own.measured["parameters"]
    return model.float(), 8 * weights / parameters, 8 * own.measured["bytes"] / parameters


def by_peer(zoo: Path, task: str, method: Method, *, rounded: bool) -> tuple[Any, float, float]:
    """A task as another's method leaves it, in float32, perhaps rounded to bf16; bits a parameter, twice."""
    from transformers import AutoModelForCausalLM

    loaded = load_zoo(zoo, [task])
    packed = method.make(loaded)
    model = AutoModelForCausalLM.from_pretrained(zoo / "base", dtype=torch.float32).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, hat in packed.hats[0].items():
            own[loaded.names[name]].add_(hat.view_as(own[loaded.names[name]]))
    if rounded:
        model = model.to(torch.bfloat16).to(torch.float32)
    bits = 8 * packed.bytes / loaded.parameters
    return model, bits, bits


def measure(
    zoo: Path, data: Path, task: str, settings: list[str], peers: list[Method], examples: int, *, rounded: bool
) -> Iterator[Decoded]:
    """Score one task in every setting, and by every peer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo / "base")
    rows, texts = TUNES[task].examples(data, "score", examples), texts_of(data, min(examples, MOST_TEXTS))
    model = AutoModelForCausalLM.from_pretrained(zoo / task, dtype=torch.float32).eval()
    original, due = answers(model, tokenizer, rows)
    told, _ = continuations(model, tokenizer, texts)
    ways = [(setting, "tallstore", partial(decoded, zoo, task, setting)) for setting in settings]
    ways += [(each.name, each.family, partial(by_peer, zoo, task, each, rounded=rounded)) for each in peers]
    for setting, family, way in ways:
        try:
            model, bits, bits_in_all = way()
        except Unavailable as error:
            print(f"{setting}: left out: {error}")
            continue
        own, right = answers(model, tokenizer, rows)
        kl, kl_error = divergence(own, original)
        own, perplexity = continuations(model, tokenizer, texts)
        text, text_error = divergence(own, told)
        yield Decoded(
            setting=setting,
            family=family,
            task=task,
            bits=bits,
            bits_in_all=bits_in_all,
            accuracy=float(right.double().mean()),
            original=float(due.double().mean()),
            kept_error=float((right != due).sum().sqrt() / due.sum()),
            kl_task=kl,
            kl_task_error=kl_error,
            kl_text=text,
            kl_text_error=text_error,
            perplexity=perplexity,
        )


def main() -> None:
    """Measure what is not yet, and print a table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", nargs="*", default=["small", "default", "high", "lossless"])
    parser.add_argument("--peers", metavar="REGEX", help="others' methods, too")
    parser.add_argument("--rounded", action="store_true", help="round what comes of them to bf16")
    parser.add_argument("--tasks", nargs="+", choices=list(TUNES))
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--save", type=Path, metavar="JSON")
    parser.add_argument("--plot", nargs=2, metavar=("TASK", "PNG"), help="draw what is known of a task")
    given = parser.parse_args()
    kept = json.loads(given.save.read_text()) if given.save and given.save.exists() else {"rows": []}
    scored = [Decoded(**each) for each in kept["rows"]]
    methods = [*rd_peers.methods(), *(each for each in rd_own.methods() if each.family == "subsampled")]
    peers = [each for each in methods if given.peers and re.search(given.peers, each.name)]
    if given.rounded:
        peers = [replace(each, name=f"{each.name}, in bf16") for each in peers]
    for task in given.tasks or [task for task in TUNES if (given.zoo / task).exists()]:
        known = {each.setting for each in scored if each.task == task}
        wanted = [setting for setting in given.settings if setting not in known]
        others = [each for each in peers if each.name not in known]
        if not (wanted or others):
            continue
        for each in measure(given.zoo, given.data, task, wanted, others, given.examples, rounded=given.rounded):
            scored.append(each)
            print(json.dumps(asdict(each)), flush=True)
            if given.save:
                rows = [asdict(each) for each in scored]
                given.save.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1))
    head = ["task", "setting", "bits", "in all", "kept", "±", "KL task", "±", "KL text", "±", "perplexity"]
    rows = [
        [
            *(each.task, each.setting, f"{each.bits:.3f}", f"{each.bits_in_all:.3f}", f"{each.retention:.1%}"),
            f"{each.kept_error:.1%}",
            *(f"{value:.2g}" for value in (each.kl_task, each.kl_task_error, each.kl_text, each.kl_text_error)),
            f"{each.perplexity:.2f}",
        ]
        for each in sorted(scored, key=lambda each: (each.task, each.bits))
    ]
    print(table(head, rows))
    if given.plot:
        draw(
            [
                Point(each.family, each.bits, (100 * each.retention, each.kl_task, each.kl_text))
                for each in scored
                if each.task == given.plot[0]
            ],
            VIEWS,
            Path(given.plot[1]),
        )


if __name__ == "__main__":
    main()
