"""Why a tensor is stored whole and exact: a closed set. Sentences for people are made of it by `encoder.report`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["Reason", "Why"]


class Reason(Enum):
    """The value is how a result file names it; `word` is how an archive does."""

    UNMATCHED = "unmatched"
    """The base has no such tensor, or one of another shape."""
    ADAPTER = "adapter"
    """It is an adapter's: kept as it is."""
    SMALL = "small"
    """A mask would save nothing."""
    TYPE = "type"
    """No mask fits its type, or the base's."""
    NUMBERS = "numbers"
    """It holds numbers that arithmetic cannot carry."""
    BASE_NUMBERS = "base-numbers"
    """The base's tensor holds such numbers."""
    BASE_NAN = "base-nan"
    """The base's tensor holds NaN, and is of another type: a NaN has no one image in another type."""
    ROWS = "rows"
    """Only rows beyond the base's are stored whole."""

    @property
    def word(self) -> str | None:
        """One of `format.part.WHY`; None where rows beyond the base's are all that is whole."""
        return _WORDS.get(self)


_WORDS = {
    Reason.UNMATCHED: "unmatched",
    Reason.ADAPTER: "unmatched",
    Reason.SMALL: "small",
    Reason.TYPE: "type",
    Reason.NUMBERS: "numbers",
    Reason.BASE_NUMBERS: "numbers",
    Reason.BASE_NAN: "numbers",
}


@dataclass(frozen=True)
class Why:
    """A reason, and what it is about: the type of `TYPE`, the largest of `NUMBERS` if it is finite."""

    reason: Reason
    about: str = ""

    def to_json(self) -> list[str]:
        """As result files have it."""
        return [self.reason.value, self.about]

    @classmethod
    def from_json(cls, facts: Any) -> Why | None:
        """Of what `to_json` gave, or None."""
        return None if facts is None else cls(Reason(facts[0]), facts[1])
