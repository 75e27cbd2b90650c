"""What a task takes under other names than the base's, and with one of its tensors in the file twice.

BASE and TASK are folders of one model each, with one `model.safetensors`. The task is packed as it is, with every name
in a wrapper (`module.`, `_orig_mod.`), below a prefix of its own (`model.`), and with its largest tensor once more
under another name. Bytes are the task's own, over those of the task as it is; the copy is to cost nothing, and other
names at most 2 %.

example:
  python benchmarks/other_names.py ~/zoo/base ~/zoo/trec
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import describe_machine, table
from safetensors.torch import load_file, save_file
from torch import Tensor

import tallstore

State = dict[str, Tensor]


def variants(state: State) -> Iterator[tuple[str, State]]:
    """The same weights as others save them."""
    yield "the base's names", state
    for prefix in ("module.", "_orig_mod.", "model."):
        yield f"`{prefix}` before each", {f"{prefix}{name}": tensor for name, tensor in state.items()}
    largest = max(state, key=lambda name: state[name].numel())
    yield "its largest tensor twice", state | {"again.weight": state[largest].clone()}


def own_bytes(base: Path, state: State, place: Path, quality: str) -> int:
    """Of the task's own parts and files, packed alone."""
    (place / "task").mkdir(exist_ok=True)
    save_file(state, place / "task" / "model.safetensors", {"format": "pt"})
    report = tallstore.pack(base, {"task": place / "task"}, place / "zoo.tall", quality=quality, overwrite=True)
    return report.tasks["task"].bytes


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("task", type=Path)
    parser.add_argument("--quality", nargs="+", default=["balanced", "lossless"])
    arguments = parser.parse_args()
    state = load_file(arguments.task / "model.safetensors")
    with tempfile.TemporaryDirectory() as place:
        rows = []
        for quality in arguments.quality:
            sizes = {name: own_bytes(arguments.base, each, Path(place), quality) for name, each in variants(state)}
            first = next(iter(sizes.values()))
            rows += [(quality, name, f"{size:,}", f"{size / first:.4f}") for name, size in sizes.items()]
    print(f"{describe_machine()}\n")
    print(table(["quality", "the task has", "own bytes", "of the first"], rows))


if __name__ == "__main__":
    main()
