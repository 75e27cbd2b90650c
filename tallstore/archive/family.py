"""What tasks are made of, in words: for tables, reports and cards. Loads no torch."""

from __future__ import annotations

from tallstore.format.relatives import MergeRecipe, Relatives

__all__ = ["recipe_in_words"]

_MOST = 8
"""Terms that are shown; more of them say nothing to a person."""


def recipe_in_words(relatives: Relatives) -> str:
    """`0.6·trec + 0.4·mr (linear)`; of a task with a parent, `on trec`."""
    if relatives.parent is not None:
        return f"on {relatives.parent}"
    terms = ""
    for task, weight in list(zip(relatives.tasks, relatives.merge.weights, strict=True))[:_MOST]:
        sign = ("−" if weight < 0 else "") if not terms else (" − " if weight < 0 else " + ")
        terms += f"{sign}{abs(weight):.4g}·{task}"
    more = f" + {len(relatives.tasks) - _MOST} more" if len(relatives.tasks) > _MOST else ""
    return f"{terms}{more} ({_how(relatives.merge)})"


def _how(merge: MergeRecipe) -> str:
    return f"consensus of {merge.k}" if merge.method == "consensus" else merge.method
