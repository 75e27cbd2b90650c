"""The README's picture: a real zoo of text classifiers packed with the package's defaults, bytes and scores measured.

ZOO and DATA are those of `real_zoo.py`. Every task is scored on its whole test set before packing and as it comes
out of the archive; `tallstore.report.card_picture` draws what the archive then says of itself.

example:
  python benchmarks/picture.py ~/zoo ~/data --out benchmarks/picture.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import describe_machine, table
from real_zoo import evaluate_text_classifier
from torch import Tensor

import tallstore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the picture; its suffix says png or svg")
    given = parser.parse_args()
    tasks = {path.name: path for path in sorted(given.zoo.iterdir()) if path.is_dir() and path.name != "base"}

    def score(state: dict[str, Tensor], task: str) -> float:
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(tasks[task])
        model.load_state_dict(state)
        return evaluate_text_classifier(model, given.data / task / "test.tsv", tasks[task])

    print(describe_machine(), end="\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "minilm-8.tall"
        tallstore.pack(given.zoo / "base", tasks, path, evaluate=score)
        with tallstore.open(path) as zoo:
            kind = "svg" if given.out.suffix == ".svg" else "png"
            given.out.write_bytes(tallstore.report.card_picture(zoo, kind=kind))
            scores = {name: task["scores"] for name, task in zoo.info()["tasks"].items()}
    rows = [
        [name, f"{s['original']:.4f}", f"{s['decoded']:.4f}", f"{s['decoded'] / s['original']:.2%}"]
        for name, s in scores.items()
    ]
    print(table(["task", "original", "decoded", "retention"], rows))


if __name__ == "__main__":
    main()
