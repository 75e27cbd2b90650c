"""Twelve more real fine-tunes of a zoo's base, for what needs more tasks than the zoo has.

ZOO holds `base/` and a folder a task, DATA holds `<task>/test.tsv` and `<task>/val.tsv`, a line an example: label, tab,
text, of the eight text sets that are named below. Each new task is trained from the base (AdamW, 5e-5 falling to 0,
2,400 examples at most, two passes, batches of 32, 32 tokens) on texts of the test sets, and scored on those of the
validation sets. Four ask what a task of the zoo asks, of other examples; eight ask something else. Writes a folder a
task to OUT, beside links to ZOO's own, so that OUT is a zoo of all; and what each is scored on to TEXTS, laid out as
DATA is, so that other benchmarks can measure the new tasks.

example:
  python benchmarks/finetune.py ~/zoo ~/data --out ~/zoo20 --texts ~/data12
  python benchmarks/rate_distortion.py ~/zoo20 ~/data12 --out /tmp/rd12 --only quality
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from common import progress_to_stderr, table

Example = tuple[int, str]
AGAIN = ("agnews", "emotion", "mr", "subj")
"""Trained once more, on other examples and from another seed."""
SOURCES = ("agnews", "banking", "cr", "emotion", "mr", "snips", "subj", "trec")
EXAMPLES, PASSES, BATCH, TOKENS, RATE = 2400, 2, 32, 32, 5e-5


def read(data: Path, name: str, split: str) -> list[Example]:
    """A set's examples."""
    lines = (data / name / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [(int(label), text) for label, _, text in (line.partition("\t") for line in lines)]


def _joined(sets: Mapping[str, Sequence[Example]], names: Sequence[str]) -> list[Example]:
    """Which of the sets is a text from?"""
    return [(label, text) for label, name in enumerate(names) for _, text in sets[name]]


def _polarity(sets: Mapping[str, Sequence[Example]]) -> list[Example]:
    return [*sets["mr"], *sets["cr"]]


def _mood(sets: Mapping[str, Sequence[Example]]) -> list[Example]:
    """Joy and optimism against anger and sadness."""
    return [(int(label in (1, 2)), text) for label, text in sets["emotion"]]


def _question(sets: Mapping[str, Sequence[Example]]) -> list[Example]:
    """Was there a question mark, which is taken away?"""
    texts = [text for name in ("banking", "trec", "snips", "agnews") for _, text in sets[name]]
    return [(int("?" in text), text.replace("?", "").strip()) for text in texts]


def _order(sets: Mapping[str, Sequence[Example]]) -> list[Example]:
    """Are the halves of a sentence in their order?"""
    found = []
    for number, (_, text) in enumerate([*sets["subj"], *sets["mr"], *sets["agnews"]]):
        words = text.split()[:24]
        half = len(words) // 2
        swapped = number % 2
        found.append((swapped, " ".join([*words[half:], *words[:half]] if swapped else words)))
    return found


def _number(sets: Mapping[str, Sequence[Example]]) -> list[Example]:
    """Does a text speak of a number?"""
    texts = [text for name in SOURCES for _, text in sets[name]]
    return [(int(any(c.isdigit() for c in text)), text) for text in texts]


QUESTIONS: Mapping[str, Callable[[Mapping[str, Sequence[Example]]], list[Example]]] = {
    "origin": lambda sets: _joined(sets, SOURCES),
    "review": lambda sets: _joined(sets, ("cr", "mr", "subj")),
    "spoken": lambda sets: _joined(sets, ("snips", "banking", "trec", "emotion")),
    "polarity": _polarity,
    "mood": _mood,
    "question": _question,
    "order": _order,
    "number": _number,
}


def examples(data: Path, task: str, split: str, seed: int) -> list[Example]:
    """Of a new task, shuffled, at most as many as are trained on."""
    sets = {name: read(data, name, split) for name in SOURCES}
    found = QUESTIONS[task](sets) if task in QUESTIONS else list(sets[task.removesuffix("2")])
    random.Random(seed).shuffle(found)
    return found[:EXAMPLES]


def write(folder: Path, found: Sequence[Example]) -> None:
    """A test set."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"{label}\t{text}\n" for label, text in found)
    (folder / "test.tsv").write_text("".join(lines), encoding="utf-8")


def finetune(zoo: Path, data: Path, task: str, out: Path, seed: int) -> float:
    """Train, save as a folder of transformers, and return the accuracy on the validation set."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    train, held = (examples(data, task, split, seed) for split in ("test", "val"))
    tokenizer = AutoTokenizer.from_pretrained(zoo / "base")
    model = AutoModelForSequenceClassification.from_pretrained(
        zoo / "base", num_labels=1 + max(label for label, _ in train)
    )

    def batch(chosen: Sequence[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        texts = [text for _, text in chosen]
        coded = tokenizer(texts, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt")
        return dict(coded), torch.tensor([label for label, _ in chosen])

    steps = PASSES * -(-len(train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    done = 0
    for _ in range(PASSES):
        random.shuffle(train)
        for start in range(0, len(train), BATCH):
            inputs, labels = batch(train[start : start + BATCH])
            torch.nn.functional.cross_entropy(model(**inputs).logits, labels).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            progress_to_stderr(f"training {task}", done, steps)
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(held), 2 * BATCH):
            inputs, labels = batch(held[start : start + 2 * BATCH])
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    unfinished = out / f".{task}"
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(out / task)
    return right / len(held)


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="folder with base/ and a folder a task")
    parser.add_argument("data", type=Path, help="folder with <task>/test.tsv and <task>/val.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder for all tasks")
    parser.add_argument("--texts", type=Path, required=True, help="folder for <task>/test.tsv of the new tasks")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for folder in arguments.zoo.iterdir():
        if not (arguments.out / folder.name).exists():
            (arguments.out / folder.name).symlink_to(folder.resolve())
    rows = []
    for seed, task in enumerate([*(f"{name}2" for name in AGAIN), *QUESTIONS]):
        write(arguments.texts / task, examples(arguments.data, task, "val", seed))
        if (arguments.out / task).exists():
            continue
        shutil.rmtree(arguments.out / f".{task}", ignore_errors=True)
        accuracy = finetune(arguments.zoo, arguments.data, task, arguments.out, seed)
        rows.append((task, f"{accuracy:.4f}"))
        print(rows[-1], flush=True)
    print(table(("task", "accuracy, validation set"), rows))


if __name__ == "__main__":
    main()
