"""The documentation in a real browser: for all who read it, on a desk and on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import DESK, PHONE, broken, judged, opened, show

PAGES = ("index", "plan", "mistakes", "reference", "examples", "tutorials/pack", "spec/parts", "spec/codecs/adaptive")
BOTH = ("index", "tutorials/pack", "spec/parts")
DESKTOP, HAND = (DESK, "light"), (PHONE, "dark")
SEEN = [
    (page, *how)
    for number, page in enumerate(PAGES)
    for how in ((DESKTOP, HAND) if page in BOTH else (HAND if number % 2 else DESKTOP,))
]
"""Pages of one kind look alike: each is seen in one of the two ways, and one of every kind in both."""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize(("page", "size", "scheme"), SEEN, ids=[f"{page}-{scheme}" for page, _, scheme in SEEN])
def test_nobody_is_left_out(page: str, size: tuple[int, int], scheme: str, chrome: Any, site: Path) -> None:
    show(chrome, site / f"{page}.html", size, scheme)
    assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert chrome.execute_script("return [...document.images].every(e => e.complete && e.naturalWidth > 0)")
    found = judged(chrome)
    assert broken(found) == {}
    assert len(found["passes"]) > 20
