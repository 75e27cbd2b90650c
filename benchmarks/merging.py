"""Merging, and what recipes keep, on a real zoo: open question 1 of the paper (how does the recipe change which weights
tasks share, and which k is best?), and the table of methods and recipes.

ZOO holds `base/` and a folder a task, as Hugging Face checkpoints; DATA holds `<task>/test.tsv` and `val.tsv`, a line
an example: label, tab, text. Everything that is chosen (λ, α, k) is chosen on validation examples, in bfloat16; every
accuracy in the tables is of the whole test set, in float32, by the state dict that `zoo.state_dict` or `zoo.merged`
gives. Results stay in OUT as they come, so that a second run measures only what is new. Writes merging.md, .csv and
.png there.

example:
  python benchmarks/merging.py ~/zoo ~/data --out /tmp/merging
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import describe_machine, table
from merge_plot import draw
from merge_text import Judge
from torch import Tensor

import tallstore
from tallstore.merging import ALPHAS

State = dict[str, Tensor]
SOLO: Mapping[str, dict[str, Any]] = {
    "solo, small": {"quality": "small"},
    "solo (default)": {},
    "solo, high": {"quality": "high"},
}
SHARED = ("fit", "tall", "ties", "mean", "emr")
TUNED = ("tall", "ties", "mean")
"""Recipes with a λ."""
KS = (0, 1, 2, 3, 4)
DEFAULT = "solo (default)"


class Bench:
    """One zoo, its judge, and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.source, self.out = arguments.zoo, arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.judge = Judge(arguments.zoo, arguments.data, self.out / "accuracies.json", arguments.examples)
        self.tasks = self.judge.tasks
        self._body: State = {}
        self._file = self.out / "merging.json"
        self.found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}

    def once(self, key: str, work: Callable[..., Any], *words: Any, **named: Any) -> Any:
        """A result, measured unless it is known."""
        if key not in self.found:
            self.found[key] = json.loads(json.dumps(work(*words, **named)))
            self._file.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
            print(f"{key}: {json.dumps(self.found[key])[:400]}", flush=True)
        return self.found[key]

    def archive(self, name: str, options: Mapping[str, Any]) -> Path:
        """The zoo packed with some options."""
        path: Path = self.out / f"{name.replace(' ', '_').replace(',', '')}.tall"
        if not path.exists():
            sources = {task: self.source / task for task in self.tasks}
            tallstore.pack(self.source / "base", sources, path, **options)
        return path

    def original(self, task: str) -> State:
        """A task's checkpoint."""
        from safetensors.torch import load_file

        found: State = load_file(self.source / task / "model.safetensors")
        return found

    def body(self, zoo: tallstore.Zoo) -> State:
        """The base's tensors under the tasks' names."""
        if not self._body:
            self._body = zoo.merged("arithmetic", alpha=0.0)
        return self._body

    def lams(self, recipe: str) -> dict[str, float]:
        """λ of each task on its validation examples: what `pack(evaluate=…)` does, with the trials kept."""
        best: dict[str, tuple[float, float]] = {}
        for lam in (0.2, 0.3, 0.4, 0.5, 0.6):
            path = self.archive(f"trial {recipe} {lam}", {"recipe": recipe, "lam": lam, "base_storage": "reference"})
            with tallstore.open(path, base=self.source / "base") as zoo:
                for task in self.tasks:
                    score = self.judge.validate(zoo.state_dict(task), task)
                    if task not in best or score > best[task][0]:
                        best[task] = score, lam
            path.unlink()
        return {task: lam for task, (_, lam) in best.items()}


def options_of(bench: Bench, recipe: str, **more: Any) -> dict[str, Any]:
    """Options of a recipe, λ tuned where it has one."""
    if recipe in SOLO:
        return dict(SOLO[recipe])
    options = {"recipe": recipe, **more}
    if recipe in TUNED:
        options["lam"] = bench.once(f"λ of {recipe}", bench.lams, recipe)
    return options


def decoded(bench: Bench, name: str, recipe: str) -> dict[str, Any]:
    """Every task decoded from an archive: accuracy, error, bits."""
    with tallstore.open(bench.archive(name, options_of(bench, recipe))) as zoo:
        info = zoo.info()
        return {
            "accuracy": {task: bench.judge.test(zoo.state_dict(task), task) for task in bench.tasks},
            "error": mean(info["tasks"][task]["relative_error"] for task in bench.tasks),
            "density": mean(info["tasks"][task]["density"] for task in bench.tasks),
            "bits": info["bits_per_parameter"],
        }


class Merge:
    """One method on one archive: δ is made once, and α is climbed on validation examples."""

    def __init__(self, bench: Bench, zoo: tallstore.Zoo, method: str, **options: Any) -> None:
        self._bench, self._zoo, self._method, self._options = bench, zoo, method, options
        self._base = bench.body(zoo)
        self._whole = zoo.merged(method, alpha=1.0, **options)
        self._own = {
            task: {n: t for n, t in zoo.state_dict(task).items() if n not in self._whole} for task in bench.tasks
        }
        self._scores: dict[float, float] = {}

    def score(self, alpha: float) -> float:
        """Mean validation accuracy."""
        if alpha not in self._scores:
            body = {name: torch.lerp(tensor, self._whole[name], alpha) for name, tensor in self._base.items()}
            found = [self._bench.judge.validate({**body, **self._own[t]}, t) for t in self._bench.tasks]
            self._scores[alpha] = mean(found)
        return self._scores[alpha]

    def climb(self, start: float) -> float:
        """The best α of the paper's range, found by steps from a start: scores rise to one peak and fall."""
        at = min(range(len(ALPHAS)), key=lambda n: abs(ALPHAS[n] - start))
        while True:
            around = [n for n in (at - 1, at, at + 1) if 0 <= n < len(ALPHAS)]
            best = max(around, key=lambda n: (self.score(ALPHAS[n]), -n))
            if best == at:
                return ALPHAS[at]
            at = best

    def test(self, alpha: float) -> dict[str, float]:
        """Test accuracy by task, of what `zoo.merged` gives with the task's head."""
        body = self._zoo.merged(self._method, alpha=alpha, **self._options)
        return {task: self._bench.judge.test({**body, **self._own[task]}, task) for task in self._bench.tasks}


def merged(bench: Bench, name: str, options: Mapping[str, Any], method: str, **how: Any) -> dict[str, Any]:
    """A method on an archive: α chosen, tested."""
    with tallstore.open(bench.archive(name, options)) as zoo:
        made = Merge(bench, zoo, method, **how)
        alpha = made.climb(0.4)
        report = zoo.merged(method, **how).report
        return {
            "accuracy": made.test(alpha),
            "alpha": alpha,
            "score": made.score(alpha),
            "alpha_by_length": report.alpha,
            "score_by_length": made.score(report.alpha),
            "approximate": report.approximate,
        }


def question(bench: Bench, recipe: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """One recipe's agreement profile, and what each k is worth at its best α."""
    with tallstore.open(bench.archive(f"question {recipe}", options)) as zoo:
        masks = zoo.mask_statistics()
        choices: dict[str, dict[str, float]] = {}
        start = 0.4
        for k in KS:
            made = Merge(bench, zoo, "consensus", k=k)
            by_length = zoo.merged(k=k).report.alpha
            start = made.climb(start)
            choices[str(k)] = {
                "alpha": start,
                "score": made.score(start),
                "alpha_by_length": by_length,
                "score_by_length": made.score(by_length),
            }
        best = max(choices, key=lambda k: (choices[k]["score"], -int(k)))
        tested = {k: Merge(bench, zoo, "consensus", k=int(k)).test(choices[k]["alpha"]) for k in {"0", best}}
    jaccard = masks.agreement.jaccard
    count = len(bench.tasks)
    return {
        "profile": list(masks.profile.values()),
        "density": masks.density,
        "jaccard": mean(float(jaccard[i, j]) for i in range(count) for j in range(i)),
        "choices": choices,
        "best": best,
        "accuracy": tested,
    }


def originals(bench: Bench) -> dict[str, float]:
    """Accuracy of the checkpoints as they are."""
    return {task: bench.judge.test(bench.original(task), task) for task in bench.tasks}


def zero_shot(bench: Bench) -> dict[str, Any]:
    """The base's body with each task's head."""
    with tallstore.open(bench.archive(DEFAULT, {})) as zoo:
        states = {task: zoo.merged(k=len(bench.tasks) + 1, heads=task) for task in bench.tasks}
    return {
        "accuracy": {task: bench.judge.test(state, task) for task, state in states.items()},
        "score": mean(bench.judge.validate(state, task) for task, state in states.items()),
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Everything, in the order of what matters most."""
    once = bench.once
    found: dict[str, Any] = {"recipes": {}, "merged": {}, "question": {}}
    found["original"] = once("original", originals, bench)
    for recipe in (*SOLO, *SHARED):
        found["recipes"][recipe] = once(f"recipe {recipe}", decoded, bench, recipe, recipe)
    found["zero-shot"] = once("zero-shot", zero_shot, bench)
    exact = {recipe: options_of(bench, recipe, vector="f32") for recipe in SHARED}
    sources = {"the true sum": ("question tall", exact["tall"]), "the default archive": (DEFAULT, {})}
    for source, (archive, options) in sources.items():
        label = f"task arithmetic, from {source}"
        found["merged"][label] = once(label, merged, bench, archive, options, "arithmetic")
        for k in (1, 2, 3):
            label = f"consensus, k = {k}, from {source}"
            found["merged"][label] = once(label, merged, bench, archive, options, "consensus", k=k)
    sources = {"the true task vectors": ("question ties", exact["ties"]), "the default archive": (DEFAULT, {})}
    for source, (archive, options) in sources.items():
        label = f"TIES, from {source}"
        found["merged"][label] = once(label, merged, bench, archive, options, "ties")
    for recipe, options in {"solo": {}, **exact}.items():
        found["question"][recipe] = once(f"question {recipe}", question, bench, recipe, options)
    return found


def stress(bench: Bench) -> list[dict[str, Any]]:
    """Tasks that overlap in meaning."""
    import merge_digits

    found: list[dict[str, Any]] = bench.once("stress", lambda: [asdict(row) for row in merge_digits.run(bench.out)])
    return found


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of methods and recipes."""
    original = found["original"]

    def row(name: str, accuracy: Mapping[str, float], **more: Any) -> dict[str, Any]:
        kept = {task: accuracy[task] / original[task] for task in original}
        worst = min(kept, key=kept.__getitem__)
        made = {"name": name, "accuracy": mean(accuracy.values()), "retention": mean(kept.values())}
        made |= {"worst": kept[worst], "worst_task": worst}
        return made | more | {f"of {task}": value for task, value in accuracy.items()}

    rows = [row("original checkpoints", original, bits=32.0, error=0.0)]
    rows.append(row("zero-shot: the base's body", found["zero-shot"]["accuracy"]))
    rows += [row(f"merged: {name}", each["accuracy"], alpha=each["alpha"]) for name, each in found["merged"].items()]
    rows += [
        row(f"decoded: {name}", each["accuracy"], error=each["error"], bits=each["bits"])
        for name, each in found["recipes"].items()
    ]
    return rows


def show(bench: Bench, found: Mapping[str, Any], overlap: Sequence[Mapping[str, Any]]) -> str:
    """All tables, as Markdown."""
    rows = rows_of(found)
    methods = table(
        ("", "α", "error", "bits", "accuracy", "retention", "worst task"),
        [
            (
                r["name"],
                f"{r['alpha']:.1f}" if "alpha" in r else "",
                f"{r['error']:.3f}" if "error" in r else "",
                f"{r['bits']:.3f}" if "bits" in r else "",
                f"{r['accuracy']:.4f}",
                f"{r['retention']:.2%}",
                f"{r['worst']:.2%} {r['worst_task']}",
            )
            for r in rows
        ],
    )
    profile = table(
        ("recipe", *(f"{n}" for n in range(len(bench.tasks) + 1)), "overlap"),
        [
            (name, *(f"{share:.1%}" for share in each["profile"]), f"{each['jaccard']:.2f}")
            for name, each in found["question"].items()
        ],
    )
    zero = found["zero-shot"]
    worth = table(
        ("recipe", *(f"k = {k}" for k in KS), "best k", "test, k = 0", "test, best k"),
        [
            (
                name,
                *(f"{c['score']:.3f} ({c['alpha']:.1f})" for c in each["choices"].values()),
                each["best"],
                f"{mean(each['accuracy']['0'].values()):.4f}",
                f"{mean(each['accuracy'][each['best']].values()):.4f}",
            )
            for name, each in found["question"].items()
        ],
    )
    lengths = table(
        ("recipe", *(f"k = {k}" for k in KS)),
        [
            (name, *(f"{c['score_by_length']:.3f} ({c['alpha_by_length']:.2f})" for c in each["choices"].values()))
            for name, each in found["question"].items()
        ],
    )
    ks = sorted({k for r in overlap for k in r["merged"]})
    stressed = table(
        ("tasks", "T", "recipe", "cos τ", "used by 0", "by 1", "overlap", "error", "retention", "original", *ks),
        [
            (
                r["tasks"],
                r["count"],
                r["recipe"],
                f"{r['cosine']:.2f}",
                f"{r['unused']:.1%}",
                f"{r['alone']:.1%}",
                f"{r['jaccard']:.2f}",
                f"{r['error']:.3f}",
                f"{r['retention']:.2%}",
                f"{r['original']:.3f}",
                *(f"{r['merged'][k]:.3f} ({r['alphas'][k]:.1f})" if k in r["merged"] else "" for k in ks),
            )
            for r in overlap
        ],
    )
    parts = [
        describe_machine(),
        f"Tasks: {', '.join(bench.tasks)}. The base's body scores {zero['score']:.3f} on the validation examples.",
        "### Methods and recipes", methods,
        "### How many tasks use a parameter", profile,
        "### What each k is worth: mean validation accuracy (best α)", worth,
        "### The same with α by length, without an evaluator (α)", lengths,
        "### Overlap of meaning: mean test accuracy of the merged model (α)", stressed,
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The table of methods and recipes, every task in a column."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, names)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="folder with base/ and a folder a task")
    parser.add_argument("data", type=Path, help="folder with <task>/test.tsv and val.tsv")
    parser.add_argument("--out", type=Path, default=Path("merging"), help="folder for results and archives")
    parser.add_argument("--examples", type=int, default=200, help="validation examples a task, to choose on")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    overlap = stress(bench)
    found = measure(bench)
    text = show(bench, found, overlap)
    (bench.out / "merging.md").write_text(text, encoding="utf-8")
    write_csv(rows_of(found), bench.out / "merging.csv")
    draw(found["question"], found["zero-shot"]["score"], bench.tasks, bench.out / "merging.png")
    print(text)


if __name__ == "__main__":
    main()
