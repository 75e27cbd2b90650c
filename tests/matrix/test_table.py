from __future__ import annotations

from matrix.kinds import KINDS
from matrix.table import PAGE, page


def test_the_documentation_shows_the_matrix_as_it_is_tested() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_kinds_have_names_of_their_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 40
