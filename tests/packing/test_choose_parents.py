"""Parents chosen by cost: short chains, earlier checkpoints on later ones, nothing for strangers."""

from __future__ import annotations

import numpy as np

from tallstore.packing.choose_parents import LINKS, choose_parents, cost_of, step_cost, within

N = 20000


def run(steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Task vectors in units: each a little further than the one before, rounded."""
    rng = np.random.default_rng(seed)
    pull, moved, rows = rng.normal(0, 0.2, N), np.zeros(N), {}
    for step in range(1, steps + 1):
        moved = moved + pull + rng.normal(0, 0.1, N)
        rows[f"step{step}"] = np.rint(moved)
    return rows


def depth(parents: dict[str, str], task: str) -> int:
    return 1 + depth(parents, parents[task]) if task in parents else 0


def test_chains_are_short_and_cheaper_than_the_base() -> None:
    rows, octaves = run(8), np.zeros(N, np.int64)
    rows["stranger"] = np.rint(np.random.default_rng(9).normal(0, 2, N))
    chosen = choose_parents(rows, octaves, list(rows), dict.fromkeys(rows, 0))
    parents = {name: other for name, (other, _) in chosen.items()}
    assert len(parents) >= 5
    assert "stranger" not in {*parents, *parents.values()}
    assert max(depth(parents, name) for name in rows) <= LINKS
    assert all(0 < saved < 1 for _, saved in chosen.values())
    assert choose_parents(rows, octaves, list(rows), dict.fromkeys(rows, 0)) == chosen


def test_what_is_there_already_counts_towards_a_chain() -> None:
    rows, octaves = run(3), np.zeros(N, np.int64)
    for there, wanted in ((LINKS - 1, {"step3"}), (LINKS, set())):
        chosen = choose_parents(rows, octaves, ["step3"], {"step2": there})
        assert set(chosen) == wanted


def test_a_task_that_stays_where_it_is_makes_no_chain_too_long() -> None:
    """Three links were asked for there: nothing is put on their end, nor on what would be the second link above it."""
    assert within({"d": "c"}, {"c": LINKS, "d": 0}) == {}
    assert within({"d": "c", "c": "b"}, {"a": 0, "b": LINKS - 1, "c": 3, "d": 0}) == {"c": "b"}
    assert within({"d": "c", "c": "b", "e": "a"}, {"a": 0, "b": LINKS, "c": 3, "d": 0, "e": 0}) == {"e": "a"}
    assert within({"b": "a", "c": "b"}, {"a": 0}) == {"b": "a"}, "what stands on it has a link too many"


def test_of_many_checkpoints_the_nearest_are_looked_at() -> None:
    rows, octaves = run(40), np.zeros(N, np.int64)
    parents = {
        name: other for name, (other, _) in choose_parents(rows, octaves, list(rows), dict.fromkeys(rows, 0)).items()
    }
    assert len(parents) >= 30
    assert max(depth(parents, name) for name in rows) <= LINKS
    assert all(abs(int(name[4:]) - int(other[4:])) <= 12 for name, other in parents.items())


def test_an_earlier_checkpoint_takes_less_than_a_later_one() -> None:
    """It lies between the base and where training went on to."""
    rows, octaves = run(8), np.zeros(N, np.int64)
    back, on = (step_cost(rows[a], rows[b], octaves) for a, b in (("step4", "step8"), ("step8", "step4")))
    assert back < 0.7 * on
    assert back < 0.9 * cost_of(rows["step4"], octaves)


def test_units_apart_are_counted_apart() -> None:
    """Elements of small units move by many of them, those of large ones by none."""
    octaves = np.arange(N) % 2
    row = np.where(octaves == 0, 1.0, 0.0) * np.random.default_rng(1).choice([-1, 1], N)
    assert abs(cost_of(row, octaves) - 0.5) < 0.01
    assert cost_of(row, np.zeros(N, np.int64)) > 1.4
