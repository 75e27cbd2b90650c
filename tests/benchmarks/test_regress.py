"""A fifth more work is found whatever the noise of single runs; a run that is disturbed is not."""

from __future__ import annotations

import importlib.util
import random
import sys

from support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
spec = importlib.util.spec_from_file_location("regress", ROOT / "benchmarks" / "regress.py")
assert spec is not None
assert spec.loader is not None
regress = importlib.util.module_from_spec(spec)
spec.loader.exec_module(regress)


class Runs:
    """A side that takes so long for each job, and now and then much longer."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds, self.chance, self.count = seconds, random.Random(seed), 0


def fastest(old: Runs, new: Runs, rounds: int = 15) -> dict[str, tuple[float, float]]:
    def once(side: Runs, job: str) -> float:
        side.count += 1
        return side.seconds * (1 + side.chance.expovariate(12))

    real, regress.once = regress.once, once
    try:
        return dict(regress.measure(old, new, rounds))
    finally:
        regress.once = real


def test_a_fifth_more_work_is_found_and_noise_is_not() -> None:
    for seed in range(50):
        assert regress.slower(fastest(Runs(0.1, seed), Runs(0.1, 1000 + seed)), regress.MOST) == []
        assert regress.slower(fastest(Runs(0.1, seed), Runs(0.12, 1000 + seed)), regress.MOST) == list(regress.JOBS)


def test_both_sides_run_every_job_in_every_round() -> None:
    old, new = Runs(1.0, 1), Runs(1.0, 2)
    assert fastest(old, new, 4).keys() == set(regress.JOBS)
    assert old.count == new.count == 4 * len(regress.JOBS)
