"""What a task costs to pull, in bytes on the wire, and to load as a model, beside the plain checkpoint.

ZOO holds `base/` and a folder a task, as Hugging Face checkpoints. They are put on a Hub on this machine (that of the
tests), packed with the base in the archive and with the base only referenced, and pulled by the real client. Bytes are
those of files' bodies that the server sent. Loading is timed by turns, in a process of its own, with everything cached.

example:
  python benchmarks/hub.py ~/zoo
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common import describe_machine, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from loopback import Hub, Repository, serving

CHILD = "--child"
READ = ", every weight read"
KEPT = ", keep_decoded"
KINDS = {"embed": "in the archive", "reference": "referenced"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def add(hub: Hub, name: str, folder: Path) -> None:
    hub.repos[name] = Repository()
    hub.repos[name].add("main", files_of(folder), name)


def sent(hub: Hub) -> dict[str, int]:
    """Bytes that went out by repository, and the log begun anew."""
    found: dict[str, int] = {}
    for request in hub.log:
        pieces = request.path.split("/")
        if request.method == "GET" and ("resolve" in pieces[3:4] or pieces[1] == "cdn"):
            repo = "/".join(pieces[2:4] if pieces[1] == "cdn" else pieces[1:3])
            found[repo] = found.get(repo, 0) + request.sent
    hub.log.clear()
    return found


def by_turns(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call, which take turns; the first turn counts for nothing."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(zoo: Path, hub: Hub, work: Path, runs: int) -> dict[str, Any]:
    import tallstore

    tasks = sorted(path.name for path in zoo.iterdir() if path.is_dir() and path.name != "base")
    add(hub, "user/base", zoo / "base")
    out: dict[str, Any] = {"tasks": {}, "seconds": {}}
    for kind in KINDS:
        base = "user/base" if kind == "reference" else zoo / "base"
        tallstore.pack(base, {t: zoo / t for t in tasks}, work / kind, base_storage=kind)
        add(hub, f"user/{kind}", work / kind)
    sent(hub)
    for kind in KINDS:
        cache = work / f"cache-{kind}"
        if kind == "reference":
            tallstore.pull("user/reference", tasks=tasks[0], cache_dir=work / "first")
            out["cold"] = sent(hub)
            from tallstore.checkpoints.hub import download
            from tallstore.stores import Access

            download("user/base", hub.commit("user/base"), Access(cache_dir=cache), weights_only=True)
            sent(hub)
        for task in tasks:
            tallstore.pull(f"user/{kind}", tasks=task, cache_dir=cache)
            got = sent(hub)
            plain = sum(len(data) for data in files_of(zoo / task).values())
            facts = out["tasks"].setdefault(task, {"plain": plain})
            facts[kind] = sum(got.values())
            facts[f"{kind}_of_base"] = got.get("user/base", 0)
    add(hub, "user/plain", zoo / tasks[0])
    # In a process of its own: the Hub here works on other cores than who asks it, as elsewhere.
    job = json.dumps({"work": str(work), "task": tasks[0], "runs": runs})
    done = subprocess.run([sys.executable, __file__, CHILD, job], stdout=subprocess.PIPE, check=True)
    out["seconds"] = json.loads(done.stdout)
    return out


def seconds_of(work: Path, task: str, runs: int) -> dict[str, list[float]]:
    """In the child: how long the task takes to load in every way, with everything cached."""
    import transformers

    import tallstore

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    plain = transformers.AutoModelForSequenceClassification
    loads: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain.from_pretrained("user/plain", cache_dir=work / "cache-plain")
    }
    for words, more in (("", {}), (KEPT, {"keep_decoded": True})):
        for kind in KINDS:
            loads[f"{kind}{words}"] = partial(
                tallstore.from_pretrained, f"user/{kind}", task=task, cache_dir=work / f"cache-{kind}", **more
            )
    read = {f"{name}{READ}": lambda load=load: read_all(load()) for name, load in loads.items()}
    return by_turns({**loads, **read}, runs)


def read_all(model: Any) -> float:
    """Every weight, once: transformers maps a plain checkpoint, and reads none before it is used."""
    return sum(float(parameter.detach().sum()) for parameter in model.parameters())


def show(found: dict[str, Any]) -> None:
    head = ["task", "plain checkpoint, MB", *(f"pulled, base {where}, MB" for where in KINDS.values()), "share"]
    rows = []
    for task, facts in found["tasks"].items():
        sizes = [f"{facts[key] / 1e6:.3f}" for key in ("plain", *KINDS)]
        rows.append([task, *sizes, f"{100 * facts['reference'] / facts['plain']:.2f} %"])
    print(table(head, rows))
    print("\nThe share is that with the base at hand. The first task pays for the manifest and the shared files.\n")
    seconds = found["seconds"]
    rows = []
    for name, each in seconds.items():
        shares = sorted(
            own / plain for own, plain in zip(each, seconds["plain" + READ * name.endswith(READ)], strict=True)
        )
        low, middle, high = (shares[len(shares) * quarter // 4] for quarter in (1, 2, 3))
        rows.append([name, f"{1e3 * median(each):.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"])
    print(table(["from_pretrained, all cached", "ms, median", "of plain, by turns", "middle half"], rows))


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        job = json.loads(sys.argv[2])
        print(json.dumps(seconds_of(Path(job["work"]), job["task"], job["runs"])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="folder with base/ and a folder a task")
    parser.add_argument("--runs", type=int, default=15, help="of each loading (default: 15)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving() as hub:
        # The client reads these when it is imported.
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": f"{folder}/home", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        found = measure(arguments.zoo, hub, Path(folder), arguments.runs)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(describe_machine(), end="\n\n")
    show(found)


if __name__ == "__main__":
    main()
