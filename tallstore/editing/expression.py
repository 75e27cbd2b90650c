"""Merges as people write them: `0.6*trec + 0.4*mr`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tallstore.errors import OptionError

__all__ = ["parse_merge"]

_BETWEEN = re.compile(r"\s*\+\s*|\s+-\s+")
_TERM = re.compile(r"(?:(?P<weight>[^*]+?)\s*\*\s*)?(?P<task>[A-Za-z0-9][A-Za-z0-9._-]*)", re.ASCII)
_HOW = "write it as 0.6*trec + 0.4*mr, a minus between spaces"


def parse_merge(text: str | Mapping[str, float]) -> dict[str, float]:
    """The weight of each task. A mapping is taken as it is, once its weights are finite numbers.

    A task without a weight has the weight 1, or −1 behind a minus. Raises OptionError for what is no sum of tasks.
    """
    weights = dict(_terms(text)) if isinstance(text, str) else dict(text)
    if not weights:
        raise OptionError(f"a merge of no tasks: {_HOW}")
    for task, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise OptionError(f"the weight of task {task!r} is {weight!r}, which is no finite number")
    return {task: float(weight) for task, weight in weights.items()}


def _terms(text: str) -> list[tuple[str, float]]:
    sign, at = 1.0, 0
    pairs: list[tuple[str, float]] = []
    text = text.strip()
    if text.startswith("-"):
        sign, text = -1.0, text[1:].lstrip()
    while True:
        between = _BETWEEN.search(text, at)
        # A plus within a number is an exponent's: 1e+3.
        while between is not None and re.search(r"(^|[\s*+-])[0-9.]+[eE]$", text[: between.start()]):
            between = _BETWEEN.search(text, between.end())
        term = text[at : between.start() if between is not None else len(text)]
        task, weight = _term(term, text)
        if task in dict(pairs):
            raise OptionError(f"merge {text!r} names task {task!r} twice")
        pairs.append((task, sign * weight))
        if between is None:
            return pairs
        sign, at = -1.0 if "-" in between[0] else 1.0, between.end()


def _term(term: str, text: str) -> tuple[str, float]:
    match = _TERM.fullmatch(term.strip())
    if match is None:
        raise OptionError(f"merge {text!r}: {term.strip()!r} is no task with a weight: {_HOW}")
    if match["weight"] is None:
        return match["task"], 1.0
    try:
        return match["task"], float(match["weight"])
    except ValueError:
        raise OptionError(f"merge {text!r}: {match['weight']!r} is no number: {_HOW}") from None
