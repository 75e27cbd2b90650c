"""The documentation is built with every warning an error, and has what it promises."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from support import ROOT

import tallstore


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = unescape((site / "reference.html").read_text(encoding="utf-8"))
    found = {name.rsplit(".", 1)[-1] for name in re.findall(r'<h[2-6] id="(tallstore\.[\w.]+)"', page)}
    modules = {"errors", "report", "__version__"}
    assert set(tallstore.__all__) - modules - {"open"} <= found
    assert "open_zoo" in found, "which is tallstore.open"
    assert set(tallstore.errors.__all__) <= found
    assert set(tallstore.report.__all__) - {"write_report"} <= found
    for method in ("state_dict", "load_into", "export", "merged", "report", "wholes", "verify"):
        assert f'id="tallstore.zoo.Zoo.{method}"' in page


def test_the_format_is_shown_with_it(site: Path) -> None:
    pages = {path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "spec").glob("*.md")}
    pages |= {path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "spec" / "codecs").glob("*.md")}
    for page in pages:
        shown = site / ("spec/index.html" if page.name == "README.html" else page)
        assert shown.is_file(), page
    assert (site / "spec" / "manifest.schema.json").is_file()


def test_examples_are_shown_whole(site: Path) -> None:
    page = unescape(re.sub(r"<[^>]+>", "", (site / "examples.html").read_text(encoding="utf-8")))
    for example in ("service.py", "callback.py"):
        code = (ROOT / "docs" / "examples" / example).read_text(encoding="utf-8")
        assert code.strip().splitlines()[-1].strip() in page


def test_pictures_are_there_and_say_what_they_show(site: Path) -> None:
    shown = 0
    for page in site.rglob("*.html"):
        for image in re.findall(r"<img[^>]*>", page.read_text(encoding="utf-8")):
            source, said = (re.search(rf'{name}="([^"]*)"', image) for name in ("src", "alt"))
            assert source is not None and said is not None, f"{page}: {image}"  # noqa: PT018 - one thing
            assert len(said[1]) > 40, f"{page}: {image}"
            assert (page.parent / source[1]).is_file(), f"{page}: {image}"
            shown += 1
    assert shown


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//[^"]+"', text), page
        assert not re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//', text), page
