"""That errors are of the package's own tree: what contracts assert of refused input."""

from __future__ import annotations

from collections.abc import Callable


def refused(kinds: type[Exception] | tuple[type[Exception], ...], work: Callable[[], object]) -> Exception:
    """The error of one of these kinds that `work` raises; fails where it raises none."""
    try:
        given = work()
    except kinds as error:
        return error
    raise AssertionError(f"{given!r} came, expected {kinds}")
