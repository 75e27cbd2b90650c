"""The page: facts and figures put into one HTML file that needs nothing else.

Every name comes from an archive, which may come from a stranger. Templates escape all they are given; and were that
ever to fail, the page's own policy lets no script run but the one whose hash it names, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from importlib import resources

from tallstore._version import __version__
from tallstore.humanize import harmless
from tallstore.report.facts import Facts
from tallstore.report.figures import FIGURES
from tallstore.report.sections import Section, lead, sections, tiles
from tallstore.report.theme import DARK, LIGHT, variables

__all__ = ["render"]

_WIDTHS = {"wide": 800.0, "narrow": 350.0}


def render(facts: Facts) -> bytes:
    """The page, in UTF-8. The same facts give the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    style = _asset("page.css").replace("LIGHT", variables(LIGHT)).replace("DARK", variables(DARK))
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=PackageLoader("tallstore.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    page = environment.get_template("page.html.j2").render(
        facts=facts,
        version=__version__,
        policy=(
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        lead=lead(facts),
        tiles=tiles(facts),
        sections=[_drawn(section, facts) for section in sections(facts)],
    )
    return page.encode()


def _drawn(section: Section, facts: Facts) -> Section:
    from markupsafe import Markup

    if not section.figure:
        return section
    draw = FIGURES[section.figure].draw
    # Matplotlib escapes all text that it writes, and the canvas what it adds: names are never markup.
    pictures = {
        room: Markup(draw(facts, width).inline(f"{section.figure}-{room}"))  # noqa: S704 - see above
        for room, width in _WIDTHS.items()
    }
    return replace(section, drawn=pictures)


def _asset(name: str) -> str:
    return resources.files("tallstore.report").joinpath(name).read_text(encoding="utf-8")


def _plain(value: object) -> object:
    """What a template shows: text as it may be shown, and what is markup already as it is."""
    return harmless(value) if type(value) is str else value
