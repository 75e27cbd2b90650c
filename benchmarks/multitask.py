"""Many tasks in one batch beside the same requests by switching one model task after task: throughput and memory.

ZOO holds `base` and a folder for each task, as `transformers` saves them: text classifiers or causal models, which the
configuration tells. They are packed first (or give `--archive`). Requests are rows of random tokens: the answers do not
matter here, but that both ways give the same ones is checked. Both ways take turns; a row's ratio is that of the least
processor time of each. With `--copies` tasks are taken several times over, under other names.

example:
  python benchmarks/multitask.py ZOO --each 1 4 32
  python benchmarks/multitask.py LM --each 1 4 --new 16 --copies 3 --dtype float32
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import MIB, add_pack_options, describe_machine, pack_options, table

import tallstore


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="a folder with `base` and a folder for each task")
    parser.add_argument("--archive", type=Path, help="an archive of them, in place of packing")
    parser.add_argument("--tasks", nargs="*", help="these alone")
    parser.add_argument("--copies", type=int, default=1, help="how often each task is taken (default: 1)")
    parser.add_argument("--each", type=int, nargs="*", default=[1, 4, 32], help="requests a task (default: 1 4 32)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens a row (default: 32)")
    parser.add_argument("--new", type=int, default=16, help="tokens that causal models add (default: 16)")
    parser.add_argument("--dtype", default="float32", help="the model's type (default: float32)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")
    add_pack_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        archive = arguments.archive or packed(arguments, Path(scratch) / "zoo.tall")
        with tallstore.open(archive) as zoo:
            rows, facts = measured(zoo, arguments)
    if arguments.json:
        print(json.dumps({"machine": describe_machine(), **facts, "rows": rows}, indent=1))
        return 0
    print(f"{describe_machine()}; {arguments.threads} threads\n")
    print(", ".join(f"{name} {value}" for name, value in facts.items()), "\n")
    head = ("requests a task", "switched ms", "mixed ms", "mixed / switched throughput", "largest difference")
    print(table(head, [[row[name] for name in row] for row in rows]))
    return 0


def packed(arguments: argparse.Namespace, path: Path) -> Path:
    folders = {each.name: each for each in sorted(arguments.zoo.iterdir()) if (each / "config.json").exists()}
    base = folders.pop("base")
    chosen = arguments.tasks or list(folders)
    tasks = {name if n == 0 else f"{name}-{n}": folders[name] for n in range(arguments.copies) for name in chosen}
    tallstore.pack(base, tasks, path, **pack_options(arguments))
    return path


def measured(zoo: tallstore.Zoo, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    dtype = getattr(torch, arguments.dtype)
    own, shell = (model_of(zoo, dtype) for _ in range(2))
    switcher, multi = zoo.switcher(own), zoo.multitask(shell, write_base=True)
    model = sum(t.numel() * t.element_size() for t in {p.data_ptr(): p for p in shell.parameters()}.values())
    there = zoo.info()["bytes"]
    facts = {
        "tasks": len(zoo.tasks),
        "model MiB": round(model / MIB, 1),
        "tasks' bytes in the archive, MiB": round((there["masks"] + there["private"]) / MIB, 2),
        "mixed batch beside the model, MiB": round(multi.resident_bytes / MIB, 2),
        "ratio": round(multi.resident_bytes / (there["masks"] + there["private"]), 3),
        "switcher beside the model, MiB": round(switcher.resident_bytes / MIB, 2),
    }
    rows = []
    for each in arguments.each:
        ids = torch.randint(5, own.config.vocab_size - 5, (len(zoo.tasks) * each, arguments.tokens))
        rows.append(beside(switcher, own, multi, ids, each, arguments))
    return rows, facts


def beside(
    switcher: Any, own: Any, multi: Any, ids: torch.Tensor, each: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Both ways by turns."""
    names = [task for task in switcher.tasks for _ in range(each)]
    mask, causal = torch.ones_like(ids), hasattr(own.config, "tie_word_embeddings") and own.can_generate()
    options = {"max_new_tokens": arguments.new, "min_new_tokens": arguments.new, "do_sample": False}

    def switched() -> list[torch.Tensor]:
        outputs = []
        for at, task in enumerate(switcher.tasks):
            rows = slice(at * each, (at + 1) * each)
            switcher.switch(task)
            with torch.inference_mode():
                if causal:
                    outputs.append(own.generate(ids[rows], attention_mask=mask[rows], **options))
                else:
                    outputs.append(own(input_ids=ids[rows], attention_mask=mask[rows]).logits)
        return outputs

    def mixed() -> torch.Tensor:
        if causal:
            found: torch.Tensor = multi.generate(ids, attention_mask=mask, tasks=names, **options)
        else:
            found = multi(input_ids=ids, attention_mask=mask, tasks=names).logits
        return found

    together, apart = mixed(), switched()
    off = 0.0
    for at, wanted in enumerate(apart):
        rows = together[at * each : (at + 1) * each, : wanted.shape[1]]
        if causal:
            off += float((rows != wanted).any(1).sum())
        else:
            off = max(off, float((rows - wanted).abs().max() / wanted.abs().max()))
    slow, quick = by_turns(switched, mixed, arguments.rounds)
    said = f"{int(off)} of {len(ids)} texts differ" if causal else f"{off:.1e}"
    return {
        "each": each,
        "switched_ms": round(1e3 * slow, 1),
        "mixed_ms": round(1e3 * quick, 1),
        "throughput": round(slow / quick, 2),
        "difference": said,
    }


def by_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The least processor time of each, in seconds."""
    best = [float("inf")] * 2
    for _ in range(rounds):
        for n, run in enumerate((first, second)):
            start = time.process_time()
            run()
            best[n] = min(best[n], time.process_time() - start)
    return best[0], best[1]


def model_of(zoo: tallstore.Zoo, dtype: torch.dtype) -> Any:
    """A model of the zoo's kind, holding the first task."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        made = zoo.export(zoo.tasks[0], Path(folder) / "model")
        name = json.loads((made / "config.json").read_text())["architectures"][0]
        return getattr(transformers, name).from_pretrained(made, dtype=dtype).eval()


if __name__ == "__main__":
    sys.exit(main())
