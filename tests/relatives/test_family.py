"""What a manifest may say of relatives, and what it costs to read a large family."""

from __future__ import annotations

import time

import pytest

from tallstore.errors import FormatError
from tallstore.format.manifest import Base, Group, Manifest, PartRecord, Task
from tallstore.format.relatives import MergeRecipe, Relatives, check_relatives, with_relatives

RECORD = PartRecord(size=64, sha256="0" * 64, header_size=64, header_sha256="0" * 64)


def made_of(*tasks: str) -> Relatives:
    return Relatives(tasks=tasks, merge=MergeRecipe(method="linear", weights=(1.0,) * len(tasks)))


def family(relatives: dict[str, Relatives | None]) -> Manifest:
    tasks = {
        name: Task(group="0", parts={"mask": (f"tasks/{name}/mask",)}, relatives=found)
        for name, found in relatives.items()
    }
    return Manifest(
        base=Base(storage="reference", tensors={}),
        groups=(Group(id="0", tasks=tuple(tasks)),),
        tasks=tasks,
        parts={f"tasks/{name}/mask": RECORD for name in tasks},
    )


def test_it_comes_back() -> None:
    ties = MergeRecipe(method="ties", weights=(1.0, 0.5), thresholds=(0.25, 0.0), sign=-1, average=True)
    found = family({"a": None, "b": None, "c": Relatives(tasks=("b", "a"), merge=ties, head="a"), "d": made_of("c")})
    again = Manifest.from_bytes(found.to_bytes())
    assert again.tasks == found.tasks
    assert again.version == "1.2"
    assert again.tasks["d"].relatives is not None
    assert again.tasks["d"].relatives.parent == "c"
    assert family({"a": None}).version == "1.0"


@pytest.mark.parametrize(
    ("relatives", "words"),
    [
        ({"a": made_of("z")}, "made of 'z', which is not there"),
        ({"a": made_of("a")}, "made of it"),
        ({"a": made_of("b"), "b": made_of("c"), "c": made_of("a")}, "made of it"),
        ({f"t{n}": made_of(f"t{n + 1}") for n in range(9)}, "chain of more than 8"),
        ({f"t{n}": made_of(*(f"t{n + 1}.{i}" for i in range(4))) for n in range(1)} | {
            f"t1.{i}": made_of(*(f"x{j}" for j in range(64))) for i in range(4)
        } | {f"x{j}": made_of(*(f"y{k}" for k in range(4))) for j in range(64)}, "more than 1024 tasks"),
    ],
)  # fmt: skip
def test_what_leads_nowhere_or_too_far_is_refused(relatives: dict[str, Relatives], words: str) -> None:
    names = {*relatives, *(name for found in relatives.values() for name in found.tasks)} - {"z"}
    with pytest.raises(FormatError, match=words):
        check_relatives(relatives, names, "here")


def test_a_long_circle_is_refused_without_recursion() -> None:
    ring = {f"t{n}": made_of(f"t{(n + 1) % 10_000}") for n in range(10_000)}
    with pytest.raises(FormatError, match="made of it"):
        check_relatives(ring, ring, "here")


def test_all_that_tasks_are_made_of() -> None:
    found = {"a": None, "b": made_of("a"), "c": made_of("b", "a"), "d": None}
    assert sorted(with_relatives(found.__getitem__, ["c"])) == ["a", "b", "c"]
    assert with_relatives(found.__getitem__, ["d"]) == ["d"]


def test_a_thousand_tasks_in_chains_open_in_a_moment() -> None:
    names = [f"task{n}" for n in range(1000)]
    chains = {name: made_of(names[n - 1]) if n % 8 else None for n, name in enumerate(names)}
    data = family(chains).to_bytes()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        found = Manifest.from_bytes(data)
        times.append(time.perf_counter() - began)
        assert len(found.tasks) == 1000
    assert min(times) < 1.0  # 30 ms where nothing else runs
