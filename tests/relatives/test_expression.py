"""How a merge is written."""

from __future__ import annotations

import pytest

from tallstore.editing.expression import parse_merge


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.6*trec + 0.4*mr", {"trec": 0.6, "mr": 0.4}),
        ("0.6*trec+0.4*mr", {"trec": 0.6, "mr": 0.4}),
        (" trec ", {"trec": 1.0}),
        ("- trec + mr", {"trec": -1.0, "mr": 1.0}),
        ("a-1 - 0.5 * b_2.c", {"a-1": 1.0, "b_2.c": -0.5}),
        ("1e+3*a + 2E+0*b", {"a": 1000.0, "b": 2.0}),
        ("-0.5*a + 1e-3*b", {"a": -0.5, "b": 0.001}),
        ("e + 3", {"e": 1.0, "3": 1.0}),
        ({"a": 1}, {"a": 1.0}),
    ],
)
def test_terms_and_weights(text: object, wanted: dict[str, float]) -> None:
    assert parse_merge(text) == wanted  # type: ignore[arg-type]
