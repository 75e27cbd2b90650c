"""How much noise in each kind of a language model's tensors counts: one kind is decoded at a time.

ZOO is what `lm_zoo.py` makes. A task is packed in a setting. Then, for every kind of tensor (queries, values, what
leads out of a block, …), those alone are the decoded ones, and KL(original ‖ that) is told in nats a token, of the
task's answers and of text that the task never saw, in all and for each million bits that the kind takes. Bits are best
shared out where the last is the same for all kinds: `recipes/sensitivity.py` comes of it.

example:
  python benchmarks/lm_kinds.py ~/lm ~/data --task long --setting 0.53
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from common import table
from lm_retention import options_of, texts_of
from lm_zoo import TUNES, answers, continuations, divergence
from torch import Tensor

import tallstore

KINDS = ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm")


def decoded(zoo: Path, task: str, setting: str) -> tuple[dict[str, Tensor], Mapping[str, int]]:
    """A task as a setting leaves it, in float32, and the bits that each of its tensors takes."""
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / "zoo.tall"
        tallstore.pack(zoo / "base", {task: zoo / task}, archive, base_storage="reference", **options_of(setting))
        with tallstore.open(archive, base=zoo / "base") as opened:
            state = {name: tensor.float() for name, tensor in opened.state_dict(task).items()}
            entries = {name: place.entry for name, place in opened._decoder.task(task).items()}
    coded = {name: entry.coded for name, entry in entries.items() if entry.coded is not None}
    return state, {name: 8 * each.size for name, each in coded.items()}


def main() -> None:
    """Decode, score and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=list(TUNES), default="long")
    parser.add_argument("--setting", default="0.53")
    parser.add_argument("--examples", type=int, default=30)
    given = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.zoo / "base")
    texts = texts_of(given.data, given.examples)
    asked = TUNES[given.task].examples(given.data, "score", given.examples)
    model = AutoModelForCausalLM.from_pretrained(given.zoo / given.task, dtype=torch.float32).eval()
    due, told = answers(model, tokenizer, asked)[0], continuations(model, tokenizer, texts)[0]
    own = dict(model.named_parameters())
    lossy, bits = decoded(given.zoo, given.task, given.setting)
    rows = []
    for kind in KINDS:
        names = [name for name in own if kind in name]
        kept = {name: own[name].detach().clone() for name in names}
        with torch.no_grad():
            for name in names:
                own[name].copy_(lossy[name])
            on_task = divergence(answers(model, tokenizer, asked)[0], due)
            on_text = divergence(continuations(model, tokenizer, texts)[0], told)
            for name in names:
                own[name].copy_(kept[name])
        spent, count = sum(bits[name] for name in names), sum(own[name].numel() for name in names)
        each = [f"{kl:.1e} ± {error:.0e}" for kl, error in (on_task, on_text)]
        rows.append([kind, f"{count / 1e6:.1f}", f"{spent / count:.3f}", *each, f"{on_text[0] / spent * 1e6:.1e}"])
        print(rows[-1], flush=True)
    print(table(["kind", "10⁶", "bits each", "KL task", "KL text", "KL text / 10⁶ bits"], rows))


if __name__ == "__main__":
    main()
