"""Pack a real zoo of text classifiers, give every task back, and measure what that cost and kept.

ZOO holds `base/` and a folder a task, as Hugging Face checkpoints; DATA holds `<task>/test.tsv`, a line an example:
label, tab, text. Every task is exported, loaded with `AutoModelForSequenceClassification.from_pretrained`, and
evaluated on its whole test set, beside the original. Accuracies are remembered in OUT by the hash of weights and test
set, so a second run measures only what is new.

example:
  python benchmarks/real_zoo.py ~/zoo ~/data --out /tmp/real_zoo
  python benchmarks/real_zoo.py ~/zoo ~/data --out /tmp/real_zoo --recipe tall --lambda 0.6 --vector bf16
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import MIB, add_pack_options, describe_machine, pack_options, sole_user, table
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tallstore

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.spec.second_reader import Archive

WEIGHTS = "model.safetensors"
MAX_TOKENS = 32
BATCH = 64

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    task: str
    relative_error: float
    density: float
    bits: float
    accuracy_original: float
    accuracy_decoded: float
    tensors_equal: int
    tensors_wrong: tuple[str, ...]

    @property
    def retention(self) -> float:
        return self.accuracy_decoded / self.accuracy_original


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where one task's things are."""

    original: Path
    decoded: Path
    test: Path


def evaluate_text_classifier(model: Any, test: Path, tokenizer_folder: Path) -> float:
    """Accuracy of a sequence classifier, a folder or a loaded model, on a file of `label<TAB>text` lines."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if isinstance(model, str | Path):
        model = AutoModelForSequenceClassification.from_pretrained(model)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    lines = [line.split("\t", 1) for line in test.read_text(encoding="utf-8").splitlines()]
    labels = torch.tensor([int(label) for label, _ in lines])
    tokens = tokenizer([text for _, text in lines], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    right = 0
    order = sorted(range(len(lines)), key=lambda n: len(tokens[n]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        inputs = tokenizer.pad({"input_ids": [tokens[n] for n in batch]}, return_tensors="pt")
        with torch.inference_mode():
            right += int((model(**inputs).logits.argmax(-1) == labels[batch]).sum())
    return right / len(lines)


class Accuracies:
    """Accuracies that were measured before, by the hash of weights and test set."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def of(self, folder: Path, test: Path) -> float:
        key = f"{_sha256(folder / WEIGHTS)}:{_sha256(test)}"
        if key not in self._known:
            self._known[key] = evaluate_text_classifier(folder, test, folder)
            self._file.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
        return self._known[key]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def formula(zoo: tallstore.Zoo, task: str, name: str) -> Array:
    """θ̂ of one masked tensor in numpy alone: θ0 + s·v where the mask is on, rounded after each step; θ0 elsewhere."""
    facts = zoo.tensors(task)[name]
    base, vector, scale = zoo.base(name).numpy(), zoo.vector(name).numpy(), zoo.scales(task, name).numpy()
    if {base.dtype, vector.dtype} != {np.dtype(np.float32)} or facts.dtype != "F32" or facts.rows is not None:
        raise SystemExit(f"{task}: {name}: this benchmark's formula is for float32 tensors of the base's shape")
    mask = zoo.mask(task, name).numpy().astype(np.int8)
    product = np.multiply(scale, vector, dtype=np.float32)
    moved = np.add(base, np.where(mask < 0, -product, product), dtype=np.float32)
    return np.where(mask != 0, moved, base)


def differing(zoo: tallstore.Zoo, task: str, original: Mapping[str, Array], decoded: Mapping[str, Array]) -> list[str]:
    """Tensors that are not, bit for bit, what they must be.

    Every tensor must be what a second reader makes of the archive, which was written from `spec/` alone with numpy.
    Masked tensors must follow the formula from `zoo.base`, `vector`, `mask` and `scales` besides, kept ones be the
    base's, and those stored whole the original's.
    """
    second = Archive(Path(zoo.url)).decode(task)
    wrong = set(second) ^ set(decoded) | set(original) ^ set(decoded)
    for name, facts in zoo.tensors(task).items():
        must: list[bytes] = [second[name][2]]
        if facts.kind in {"binary", "signed"}:
            must.append(formula(zoo, task, name).tobytes())
        elif facts.kind == "base":
            must.append(zoo.base(name).numpy().tobytes())
        elif facts.kind == "private":
            must.append(original[name].tobytes())
        if any(decoded[name].tobytes() != data for data in must) or decoded[name].shape != original[name].shape:
            wrong.add(name)
    return sorted(wrong)


def relative_error(base: Mapping[str, Array], original: Mapping[str, Array], decoded: Mapping[str, Array]) -> float:
    """‖τ̂ − τ‖ / ‖τ‖ over every floating tensor that the base has too, under its name or a prefix more."""
    gap = norm = 0.0
    for name, tensor in original.items():
        tail = next((name[n:] for n in _starts(name) if name[n:] in base), None)
        if tail is None or base[tail].shape != tensor.shape or base[tail].dtype.kind != "f":
            continue
        start = base[tail].astype(np.float64)
        gap += float(((decoded[name].astype(np.float64) - tensor) ** 2).sum())
        norm += float(((tensor - start) ** 2).sum())
    return float(np.sqrt(gap / norm))


def _starts(name: str) -> list[int]:
    return [0, *(n + 1 for n, character in enumerate(name) if character == ".")]


def measure(zoo: tallstore.Zoo, task: str, files: Files, base: Mapping[str, Array], known: Accuracies) -> TaskResult:
    folder = zoo.export(task, files.decoded, overwrite=True)
    original, decoded = load_file(files.original / WEIGHTS), load_file(folder / WEIGHTS)
    wrong = differing(zoo, task, original, decoded)
    info = zoo.info()["tasks"][task]
    return TaskResult(
        task=task,
        relative_error=relative_error(base, original, decoded),
        density=info["density"],
        bits=8 * info["bytes"] / info["parameters"],
        accuracy_original=known.of(files.original, files.test),
        accuracy_decoded=known.of(folder, files.test),
        tensors_equal=len(original) - len(wrong),
        tensors_wrong=tuple(wrong),
    )


def run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    source: Path = arguments.zoo
    found = {
        folder.name: Files(original=folder, decoded=out / "decoded" / folder.name, test=test)
        for folder in sorted(source.iterdir())
        if (test := arguments.data / folder.name / "test.tsv").is_file()
    }
    tasks = {task: files.original for task, files in found.items()}
    options = pack_options(arguments)
    archive = out / "zoo.tall"
    began = time.perf_counter()
    report = tallstore.pack(source / "base", tasks, archive, overwrite=True, **options)
    seconds = time.perf_counter() - began
    again = tallstore.pack(source / "base", tasks, out / "again.tall", overwrite=True, **options)
    identical = _sha256(archive) == _sha256(again.path)
    again.path.unlink()
    base = load_file(source / "base" / WEIGHTS)
    accuracies = Accuracies(out / "accuracies.json")
    with tallstore.open(archive) as zoo:
        results = [measure(zoo, task, files, base, accuracies) for task, files in found.items()]
        info = zoo.info()
    checkpoints = sum((path / WEIGHTS).stat().st_size for path in (source / "base", *tasks.values()))
    return _summary(results, info, archive.stat().st_size, checkpoints) | {
        "options": info["options"],
        "pack_seconds": seconds,
        "packed_twice_identical": identical,
        "warnings": list(report.warnings),
        "machine": describe_machine(),
    }


def _summary(results: list[TaskResult], info: Mapping[str, Any], archive: int, checkpoints: int) -> dict[str, Any]:
    parameters = sum(task["parameters"] for task in info["tasks"].values())
    sizes = info["bytes"]
    original, decoded = mean(r.accuracy_original for r in results), mean(r.accuracy_decoded for r in results)
    return {
        "tasks": {r.task: asdict(r) | {"retention": r.retention} for r in results},
        "relative_error": mean(r.relative_error for r in results),
        "accuracy_original": original,
        "accuracy_decoded": decoded,
        "retention": decoded / original,
        "retention_mean_of_tasks": mean(r.retention for r in results),
        "retention_worst": min(r.retention for r in results),
        "bits_masks_and_vector": 8 * (sizes["masks"] + sizes["vector"]) / parameters,
        "bits_all_but_base": 8 * (sizes["total"] - sizes["base"]) / parameters,
        "bytes": sizes,
        "archive_bytes": archive,
        "checkpoints_bytes": checkpoints,
        "share_of_checkpoints": archive / checkpoints,
        "formula_holds": not any(r.tensors_wrong for r in results),
    }


def show(found: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            f"{r['accuracy_original']:.4f}",
            f"{r['accuracy_decoded']:.4f}",
            f"{r['retention']:.2%}",
            f"{r['relative_error']:.3f}",
            f"{r['density']:.3f}",
            f"{r['bits']:.3f}",
            f"{r['tensors_equal']}/{r['tensors_equal'] + len(r['tensors_wrong'])}",
        )
        for name, r in found["tasks"].items()
    ]
    head = ("task", "original", "decoded", "retention", "error", "density", "own bits", "tensors right, bit for bit")
    goals = [
        ("mean relative error", f"{found['relative_error']:.4f}", "≤ 0.60"),
        ("mean accuracy, original", f"{found['accuracy_original']:.4f}", ""),
        ("mean accuracy, decoded", f"{found['accuracy_decoded']:.4f}", ""),
        ("retention of the mean", f"{found['retention']:.2%}", "≥ 99.5 %"),
        ("retention, mean of the tasks'", f"{found['retention_mean_of_tasks']:.2%}", ""),
        ("retention, worst task", f"{found['retention_worst']:.2%}", ""),
        ("bits a parameter and task: masks and vector", f"{found['bits_masks_and_vector']:.4f}", ""),
        ("bits a parameter and task: all but the base", f"{found['bits_all_but_base']:.4f}", "≤ 0.85"),
        ("archive, MiB", f"{found['archive_bytes'] / MIB:.1f}", ""),
        (f"separate checkpoints ({len(rows) + 1}), MiB", f"{found['checkpoints_bytes'] / MIB:.1f}", ""),
        ("archive / checkpoints", f"1/{1 / found['share_of_checkpoints']:.2f}", "≤ 1/8"),
        ("weights equal formula and second reader, bit for bit", _yes(found["formula_holds"]), "yes"),
        ("packed twice: identical bytes", _yes(found["packed_twice_identical"]), "yes"),
        ("seconds to pack", f"{found['pack_seconds']:.1f}", ""),
    ]
    options = " ".join(f"{name}={value}" for name, value in found["options"].items() if value is not None)
    parts = ", ".join(f"{name} {size / MIB:.2f}" for name, size in found["bytes"].items())
    lines = [found["machine"], options, "", table(head, rows), "", table(("", "measured", "goal"), goals)]
    return "\n".join([*lines, "", f"MiB by kind: {parts}", *found["warnings"]])


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def parse() -> argparse.Namespace:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="folder with base/ and a folder a task")
    parser.add_argument("data", type=Path, help="folder with <task>/test.tsv")
    parser.add_argument("--out", type=Path, help="keep archive, decoded models and accuracies here (default: nowhere)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_pack_options(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="real_zoo-"))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with sole_user(out):
            found = run(arguments, out)
    finally:
        if arguments.out is None:
            shutil.rmtree(out)
    print(json.dumps(found, indent=1) if arguments.json else show(found))


if __name__ == "__main__":
    main()
