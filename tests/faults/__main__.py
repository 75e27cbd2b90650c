"""Every job with every fault, at every operation or every n-th; prints how many points there were and how they ended.

PYTHONPATH=.:tests python -m faults                                  # all of it: half an hour
PYTHONPATH=.:tests python -m faults pack-file push --fault kill --fault cut --every 3
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from processes import FORKS, Forks, child_args, child_env

from .jobs import JOBS
from .points import FAULTS, Bench, bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"all of them by default: {', '.join(JOBS)}")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="all of them by default")
    parser.add_argument("--every", type=int, default=1, help="only every n-th operation (1)")
    args = parser.parse_args()
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no such job: {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    failures: list[str] = []
    points = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        (Path(scratch) / "forks").mkdir()
        with subprocess.Popen(child_args(FORKS), env=child_env(), text=True, **pipes) as process:
            print("| job | fault | operations | points | how they ended | wrong | seconds |")
            print("|---|---|---:|---:|---|---:|---:|")
            for name in args.jobs or JOBS:
                with bench(Path(scratch), name, Forks(process, Path(scratch) / "forks")) as made:
                    for fault in args.fault or FAULTS:
                        points += _all_points(made, name, fault, args.every, failures)
            assert process.stdin is not None
            process.stdin.close()
    print(f"\n{points:,} points, {len(failures)} wrong")
    print(*failures, sep="\n\n")
    return 1 if failures else 0


def _all_points(made: Bench, name: str, fault: str, every: int, failures: list[str]) -> int:
    begun, ends, wrong = time.monotonic(), Counter[str](), 0
    count = made.operations(fault)
    for at in range(1, count + 1, every):
        try:
            ends[made.check(fault, at)] += 1
        except AssertionError as error:
            wrong += 1
            failures.append(str(error))
    points = ends.total() + wrong
    if points:
        how = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
        seconds = time.monotonic() - begun
        print(f"| {name} | {fault} | {count} | {points} | {how} | {wrong} | {seconds:.0f} |", flush=True)
    return points


if __name__ == "__main__":
    sys.exit(main())
