"""What is claimed of damage and malice, at length: `PYTHONPATH=.:tests python -m trust damage|attacks [--bits]`.

Prints one line a kind of archive and a sum; exits with 1 if anything went wrong. `differential` is run by
`TALLSTORE_EXAMPLES=1000 python -m pytest tests/differential`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from multiprocessing import get_context

from .damage import Counts
from .kinds import damage_all
from .small_zoos import KINDS


def run_damage(bits: bool, processes: int) -> bool:
    """All kinds; whether all was found."""
    total = Counts()
    print(
        f"{'archive':20} {'flipped':>9} {'cut':>8} {'mixed':>6} {'by verify':>10} {'by decode':>10} {'without effect':>14}"
    )
    with get_context("spawn").Pool(processes) as pool:
        for kind, counts in pool.imap(damage_all, [(kind, bits) for kind in KINDS]):
            total += counts
            _line(kind, counts)
    _line("all", total)
    print("\n".join(total.wrong[:20]) or "no wrong weight, no foreign error, nothing unnoticed")
    return not total.wrong


def _line(name: str, c: Counts) -> None:
    numbers = (c.flipped, c.cut, c.mixed, c.found_by_verify, c.found_by_decode, c.irrelevant)
    widths = (9, 8, 6, 10, 10, 14)
    print(f"{name:20}", *(f"{number:>{width},}" for number, width in zip(numbers, widths, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="trust", description=__doc__)
    parser.add_argument("what", choices=["damage", "attacks"])
    parser.add_argument("--bits", action="store_true", help="all eight bits of every byte of a folder's files")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.what == "damage":
        sys.exit(not run_damage(given.bits, given.processes))
    from .attacks import run_attacks

    sys.exit(not run_attacks())


if __name__ == "__main__":
    main()
