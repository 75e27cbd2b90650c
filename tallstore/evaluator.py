"""A user's evaluator: found by name, called with care, its answer checked. The one place that runs a user's code."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tallstore.errors import EvaluatorError

Score = Callable[[dict[str, Tensor], str], float]


def find_evaluator(given: Score | str) -> Score:
    """A callable as it is; `module:function` by import, the current folder included. Raises EvaluatorError."""
    if not isinstance(given, str):
        if not callable(given):
            raise EvaluatorError(f"the evaluator is a {type(given).__name__}: expected a callable or 'module:function'")
        return given
    module_name, colon, name = given.partition(":")
    if not colon or not module_name or not name:
        raise EvaluatorError(f"evaluator {given!r}: expected 'module:function'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        raise EvaluatorError(f"evaluator {given!r}: cannot import {module_name!r} ({_line(error)})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise EvaluatorError(f"evaluator {given!r}: {module_name!r} has no function {name!r}")
    checked: Score = function
    return checked


def score(evaluator: Score, state: dict[str, Tensor], task: str) -> float:
    """One answer. EvaluatorError, naming the task, if it raises or is no finite number."""
    try:
        value = evaluator(state, task)
    except Exception as error:  # a user's code may fail in any way
        raise EvaluatorError(f"the evaluator failed on task {task!r}: {_line(error)}; nothing was written") from error
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise EvaluatorError(f"the evaluator gave a {kind} for task {task!r}; expected a number") from error
    if not math.isfinite(number):
        raise EvaluatorError(f"the evaluator gave {number} for task {task!r}; expected a finite number")
    return number


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
