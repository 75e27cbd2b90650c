"""A zoo in which most checkpoints are merges of the others, packed without a word of that.

BASE and TASKS are folders of one model. Merges are made as a merge tool makes them: weighted sums in float32 of two or
three of the tasks, rounded to the checkpoints' type; tensors that they do not share are the first one's. Printed are
the bytes of the archive with the merges over those of the archive without, how many merges were found, whether any task
was found that is none, and the processor time of packing the tasks with the search and without, by turns.

example:
  python benchmarks/relatives.py ~/zoo/base ~/zoo/trec ~/zoo/mr ~/zoo/cr ~/zoo/subj ~/zoo/snips ~/zoo/emotion
  python benchmarks/relatives.py ~/lm/base ~/lm/trec ~/lm/long ~/lm/sparse --quality lossless
  python benchmarks/relatives.py ~/lm/base ~/lm/trec --run ~/runs/trec
  python benchmarks/relatives.py ~/zoo/base ~/zoo/* --unrelated 20

With `--run FOLDER`, a run's checkpoints beside the task are measured in its place, without loss: their bytes over those
of each coded against the base; decoding and what a pull of each takes over the parts of its chain; what `compact` makes
of an archive to which the run was added with every checkpoint against the base; and opening and listing 1,000 tasks in
chains.

With `--unrelated N`, made tasks are put beside the real ones until there are N: the base, and a real task's vector with
random signs, tensor by tensor, so that sizes and sparsity are a tune's and directions are nobody's. Printed is how many
of the N the search takes for relatives, with some loss and without.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from common import table
from safetensors.torch import load_file, save_file
from torch import Tensor

import tallstore
from tallstore.archive.ancestry import ancestry
from tallstore.encoder import Options
from tallstore.format.manifest import Manifest
from tallstore.format.relatives import MergeRecipe, Relatives
from tallstore.packing.pack_with_merges import combinations_among


def weights_of(rng: random.Random, tasks: list[str]) -> dict[str, float]:
    """Two or three tasks, weights of two decimals that sum to 1."""
    chosen = rng.sample(tasks, min(len(tasks), rng.choice([2, 2, 3])))
    parts = [rng.randint(10, 90) for _ in chosen]
    found = [round(part / sum(parts), 2) for part in parts]
    return dict(zip(chosen, [round(1 - sum(found[1:]), 2), *found[1:]], strict=True))


def merge(states: dict[str, dict[str, Tensor]], weights: dict[str, float]) -> dict[str, Tensor]:
    """As merge tools do."""
    first = states[next(iter(weights))]
    out = {}
    for name, tensor in first.items():
        own = [states[task].get(name) for task in weights]
        if tensor.is_floating_point() and all(each is not None and each.shape == tensor.shape for each in own):
            total = torch.zeros(tensor.shape, dtype=torch.float32)
            for each, weight in zip(own, weights.values(), strict=True):
                total += each.float() * weight
            out[name] = total.to(tensor.dtype)
        else:
            out[name] = tensor.clone()
    return out


def load(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def size(path: Path) -> int:
    """Bytes of an archive."""
    return path.stat().st_size


def pack(base: Path, tasks: dict[str, Path], out: Path, **options: object) -> float:
    """Pack; processor seconds."""
    began = time.process_time()
    tallstore.pack(base, tasks, out, overwrite=True, **options)
    return time.process_time() - began


def processor_time(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    began = time.process_time()
    work()
    return time.process_time() - began


def made_task(state: dict[str, Tensor], base: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The base and a task's vector with other signs."""
    draw = torch.Generator().manual_seed(seed)
    out = {}
    for name, tensor in state.items():
        out[name] = tensor
        own = name if name in base else name.partition(".")[2]  # a prefix of the task's own
        if tensor.is_floating_point() and own in base and base[own].shape == tensor.shape:
            sign = 1.0 - 2.0 * torch.randint(2, tensor.shape, generator=draw)
            out[name] = (base[own].float() + sign * (tensor.float() - base[own].float())).to(tensor.dtype)
    return out


def measure_unrelated(base: Path, tasks: dict[str, Path], number: int) -> list[list[str]]:
    """What the search takes for relatives among tasks that are none."""
    start, names = load(base), list(tasks)
    made = {f"made{n}": made_task(load(tasks[names[n % len(names)]]), start, n) for n in range(number - len(names))}
    rows = [["tasks, made ones among them", f"{len(tasks) + len(made)}, {len(made)}"]]
    for quality in ("balanced", "lossless"):
        taken = combinations_among(base, {**tasks, **made}, Options(quality=quality)) or {}
        rows.append([f"taken for relatives, {quality}", str(len(taken))])
    return rows


def measure_run(base: Path, task: Path, run: Path, home: Path) -> list[list[str]]:
    """A run's checkpoints in an archive of one task."""
    sizes: dict[str, dict[str, int]] = {}
    took: dict[str, float] = {}
    for name, options in (("chain", {}), ("apart", {"relatives": False})):
        path = home / f"{name}.tall"
        tallstore.pack(base, {"other": task}, path, quality="lossless", overwrite=True)
        began = time.process_time()
        report = tallstore.add_run(path, run, name="run", **options)
        took[name] = time.process_time() - began
        sizes[name] = {step: each.bytes for step, each in report.added.items()}
    with tallstore.open(home / "chain.tall") as chain, tallstore.open(home / "apart.tall") as apart:
        chain.verify()
        made = {name: facts.relatives for name, facts in chain.manifest.tasks.items() if name != "other"}
        slower: dict[int, list[float]] = {}
        pulled: list[float] = []
        for name in made:
            step = name.rpartition("-")[2]
            original = load(run / f"checkpoint-{step}")
            state = chain.state_dict(name)
            assert all(torch.equal(state[n], tensor) for n, tensor in original.items()), name
            times = [[processor_time(partial(z.state_dict, name)) for z in (chain, apart)] for _ in range(5)]
            parts = [str(row["task"]) for row in ancestry(chain.manifest, name)]
            ratio = min(t[0] for t in times) / min(t[1] for t in times)
            slower.setdefault(len(parts) - 1, []).append(ratio)
            own = sum(int(chain.manifest.tasks[each].measured["bytes"]) for each in parts)
            chain.write_subset([name], home / "part.tall", overwrite=True)
            sent = size(home / "part.tall") - sum(chain.manifest.parts[p].size for p in chain.manifest.base.parts)
            pulled.append(sent / own)
    before = size(home / "apart.tall")
    compacting = processor_time(partial(tallstore.compact, home / "apart.tall"))
    with tallstore.open(home / "apart.tall") as compacted:
        compacted.verify()
        found = sum(facts.relatives is not None for facts in compacted.manifest.tasks.values())
        for name in made:
            original = load(run / f"checkpoint-{name.rpartition('-')[2]}")
            state = compacted.state_dict(name)
            assert all(torch.equal(state[n], tensor) for n, tensor in original.items()), name
        base_bytes = sum(compacted.manifest.parts[p].size for p in compacted.manifest.base.parts)
    compact = (size(home / "apart.tall") - base_bytes) / (before - base_bytes)
    return [
        ["checkpoints of the run", str(len(made))],
        ["coded against another one", str(sum(each is not None for each in made.values()))],
        ["longest chain", str(max(slower))],
        ["adding the run / each against the base", f"{took['chain'] / took['apart']:.2f} of processor time"],
        ["bytes / each against the base", f"{sum(sizes['chain'].values()) / sum(sizes['apart'].values()):.3f}"],
        *(
            [f"decoding one at the end of {links} links / without a parent", _spread(slower[links])]
            for links in sorted(slower)
            if links
        ),
        ["a pull of one, without the base / the parts of its chain, at most", f"{max(pulled):.4f}"],
        ["compact of those without parents: coded against another one", str(found)],
        ["compact: tasks' bytes after / before", f"{compact:.3f}; bit for bit"],
        ["compact / adding each against the base", f"{compacting / took['apart']:.2f} of processor time"],
        ["opening and listing 1,000 tasks in chains", f"{1000 * open_many(home):.0f} ms of processor time"],
    ]


def _spread(ratios: list[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f} of processor time"


def open_many(home: Path) -> float:
    """Processor seconds to open an archive of 1,000 tasks in chains of up to four, and to list them."""
    base = {"w": torch.randn(64, 64)}
    path = home / "many"
    tallstore.pack(base, {"task0": {"w": base["w"] + 0.1}}, path, quality="lossless")
    facts = Manifest.from_bytes((path / "tall.json").read_bytes())
    first, parts = facts.tasks["task0"], dict(facts.parts)
    tasks = {"task0": first}
    for number in range(1, 1000):
        own = {kind: tuple(p.replace("task0/", f"task{number}/") for p in each) for kind, each in first.parts.items()}
        for kind, each in own.items():
            parts |= {new: facts.parts[old] for new, old in zip(each, first.parts[kind], strict=True)}
        other = f"task{number - 1}"
        parent = Relatives(tasks=(other,), merge=MergeRecipe(method="linear", weights=(1.0,)), head=other)
        tasks[f"task{number}"] = replace(first, parts=own, relatives=parent if number % 4 else None)
    (group,) = facts.groups
    many = replace(facts, tasks=tasks, parts=parts, groups=(replace(group, tasks=tuple(tasks)),))

    def listed() -> int:
        with tallstore.open(path) as zoo:
            return len(zoo.tasks)

    times = []
    for turn in range(5):  # each another archive: what was opened before is known
        (path / "tall.json").write_bytes(replace(many, writer=f"turn {turn}").to_bytes())
        times.append(processor_time(listed))
    return min(times)


def main(given: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("tasks", type=Path, nargs="+")
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--merges", type=int, default=51)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--unrelated", type=int)
    said = parser.parse_args(given)
    if said.unrelated is not None:
        rows = measure_unrelated(said.base, {folder.name: folder for folder in said.tasks}, said.unrelated)
        print(table(["", "unrelated tasks"], rows))
        return
    if said.run is not None:
        with tempfile.TemporaryDirectory() as scratch:
            rows = measure_run(said.base, said.tasks[0], said.run, Path(scratch))
        print(table(["", "a run, lossless"], rows))
        return
    tasks = {folder.name: folder for folder in said.tasks}
    rng = random.Random(said.seed)
    with tempfile.TemporaryDirectory() as scratch:
        home, states = Path(scratch), {name: load(folder) for name, folder in tasks.items()}
        recipes: dict[str, dict[str, float]] = {}
        blind = dict(tasks)
        for number in range(said.merges):
            name = f"merge{number}"
            recipes[name] = weights_of(rng, list(tasks))
            (home / name).mkdir()
            save_file(merge(states, recipes[name]), home / name / "model.safetensors", {"format": "pt"})
            blind[name] = home / name
        del states
        shuffled = list(blind)
        rng.shuffle(shuffled)
        searched, plain = [], []
        for _ in range(said.turns):
            searched.append(pack(said.base, tasks, home / "alone.tall", quality=said.quality))
            plain.append(pack(said.base, tasks, home / "off.tall", quality=said.quality, relatives=False))
        took = pack(said.base, {n: blind[n] for n in shuffled}, home / "all.tall", quality=said.quality)
        with tallstore.open(home / "all.tall") as zoo:
            zoo.verify()
            kept = {n: facts["relatives"] for n, facts in zoo.info()["tasks"].items() if "relatives" in facts}
            exact = True
            worst = 0.0
            for name in shuffled[:8]:
                original, state = load(blind[name]), zoo.state_dict(name)
                exact &= all(torch.equal(state[n], tensor) for n, tensor in original.items())
                worst = max(worst, zoo.info()["tasks"][name].get("relative_error") or 0.0)
        right = sum(
            dict(zip(kept[n]["tasks"], kept[n]["merge"]["weights"], strict=True)) == recipes[n]
            for n in recipes
            if n in kept
        )
        alone, every = size(home / "alone.tall"), size(home / "all.tall")
        same = (home / "alone.tall").read_bytes() == (home / "off.tall").read_bytes()
        rows = [
            ["tasks, merges", f"{len(tasks)}, {said.merges}"],
            ["archive with merges / of the tasks alone", f"{every / alone:.3f}"],
            ["kept as relatives", f"{len(kept)} of {said.merges}, {right} with the very weights"],
            ["tasks taken for relatives that are none", str(len(set(kept) & set(tasks)))],
            ["the tasks' archive with the search and without", "the same bytes" if same else "other bytes"],
            ["packing with the search / without", f"{min(searched) / min(plain):.3f} of processor time"],
            ["packing all / the tasks alone", f"{took / min(plain):.2f} of processor time"],
            ["bit for bit, of eight", "yes" if exact else f"no; relative error at most {worst:.3f}"],
        ]
        print(table(["", f"{said.base.parent.name}, {said.quality}"], rows))


if __name__ == "__main__":
    main()
