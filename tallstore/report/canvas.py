"""A sheet to draw on, in pixels from the top left, with roles for colours; it comes out as SVG or PNG.

Matplotlib draws. For a page, colours become CSS variables, text stays text in the page's own font, marks can carry a
tooltip, and nothing that is repeated from figure to figure (identifiers) collides.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, Literal

from tallstore.humanize import harmless
from tallstore.report.theme import DARK, LIGHT

__all__ = ["Canvas", "shorten"]

_POINTS = 72
_SHARP = 2.5
"""Dots of a PNG for each pixel of the drawing."""
_LETTER = 0.6
"""A letter's width, of its height: what most fonts stay below on the average."""
_TIP = "tip-"
_FONTS = ["DejaVu Sans"]


class Canvas:
    """One figure being drawn, `width` × `height` pixels."""

    def __init__(self, width: float, height: float, *, about: str, edge: float = 16) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.about = harmless(about)
        """What the figure shows, for those who do not see it."""
        self._figure = Figure(figsize=(width / _POINTS, height / _POINTS), dpi=_POINTS)
        FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.axis("off")
        self._edge = edge
        self._tips: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, role: str, *, tip: str = "") -> None:
        """A filled rectangle."""
        from matplotlib.patches import Rectangle

        self._add(Rectangle((x, y), max(width, 0), max(height, 0), facecolor=LIGHT[role], linewidth=0), tip)

    def shape(self, points: Sequence[tuple[float, float]], role: str, *, alpha: float = 1.0) -> None:
        """A filled polygon."""
        from matplotlib.patches import Polygon

        self._add(Polygon(points, closed=True, facecolor=LIGHT[role], alpha=alpha, linewidth=0), "")

    def dot(self, x: float, y: float, radius: float, role: str, *, tip: str = "") -> None:
        """A disc."""
        from matplotlib.patches import Circle

        self._add(Circle((x, y), radius, facecolor=LIGHT[role], edgecolor=LIGHT[role], linewidth=1.5), tip)

    def line(
        self, points: Sequence[tuple[float, float]], role: str, *, width: float = 1.0, dashed: bool = False
    ) -> None:
        """A line through points."""
        from matplotlib.lines import Line2D

        xs, ys = zip(*points, strict=True)
        drawn = Line2D(xs, ys, color=LIGHT[role], linewidth=width, solid_capstyle="butt")
        if dashed:
            drawn.set_dashes((2, 3))
        self._axes.add_line(drawn).set_clip_on(False)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        role: str = "ink",
        *,
        size: float = 12,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
        turned: float = 0,
    ) -> None:
        """A line of text; (x, y) is the middle of its height."""
        self._axes.text(
            x,
            y,
            harmless(words),
            color=LIGHT[role],
            fontsize=size,
            fontweight="bold" if bold else "normal",
            fontfamily=_FONTS,
            ha=align,
            va="center" if not turned else "bottom",
            rotation=turned,
            rotation_mode="anchor",
            parse_math=False,
            clip_on=False,
        )

    def image(self, steps: Any, x: float, y: float, width: float, height: float) -> None:
        """A heat map of many cells as a picture: an array of steps of the scale, −1 for an empty cell."""
        for theme, colours in (("light", LIGHT), ("dark", DARK)):
            shown = self._axes.imshow(
                _painted(steps, colours), extent=(x, x + width, y + height, y), interpolation="nearest", aspect="auto"
            )
            shown.set_gid(f"only-{theme}")

    def svg(self) -> bytes:
        """As a file of its own, in light colours. Its letters are shapes: it looks the same wherever it is shown."""
        return self._save("svg", "path").replace(
            b"<svg ", b'<svg role="img" aria-label="%s" ' % _attribute(self.about), 1
        )

    def png(self) -> bytes:
        """As a picture, in light colours."""
        return self._save("png", "path")

    def inline(self, name: str) -> str:
        """As SVG to stand in a page, under a name that is its own there."""
        drawn = self._save("svg", "none", name).decode()
        drawn = drawn[drawn.index("<svg ") :]
        drawn = re.sub(r"<metadata>.*?</metadata>\s*", "", drawn, count=1, flags=re.DOTALL)
        drawn = re.sub(rf'<g id="{_TIP}(\d+)">', lambda m: f"<g><title>{escape(self._tips[int(m[1])])}</title>", drawn)
        drawn = re.sub(r'<g id="only-(light|dark)">', r'<g class="only-\1">', drawn)
        # What is left of the identifiers Matplotlib gives to groups would be there once in each figure.
        drawn = re.sub(r'<g id="[a-z0-9]+_\d+">', "<g>", drawn)
        roles = {colour: role for role, colour in LIGHT.items()}
        drawn = re.sub(
            r"(fill|stroke): (#[0-9a-f]{6})",
            lambda m: f"{m[1]}: var(--{roles[m[2]]})" if m[2] in roles else m[0],
            drawn,
        )
        head = f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" role="img" '
        head += f'aria-label="{escape(self.about)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
        return re.sub(r"<svg [^>]*>", lambda _: head, drawn, count=1)

    def _add(self, patch: Any, tip: str) -> None:
        if tip:
            patch.set_gid(f"{_TIP}{len(self._tips)}")
            self._tips.append(harmless(tip))
        self._axes.add_patch(patch).set_clip_on(False)

    def _save(self, kind: str, fonts: str, salt: str = "tallstore") -> bytes:
        out = io.BytesIO()
        alone = fonts == "path"
        edge = self._edge if alone else 0
        self._figure.set_size_inches((self.width + 2 * edge) / _POINTS, (self.height + 2 * edge) / _POINTS)
        self._axes.set(xlim=(-edge, self.width + edge), ylim=(self.height + edge, -edge))
        for shown in self._axes.get_images():
            shown.set_visible(not alone or shown.get_gid() != "only-dark")
        ground = {"facecolor": LIGHT["paper"]} if alone else {"transparent": True}
        with _settings(
            {"svg.fonttype": fonts, "svg.hashsalt": salt, "image.composite_image": False, "font.family": _FONTS}
        ):
            about: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
            dots = _POINTS * _SHARP if kind == "png" else _POINTS
            self._figure.savefig(out, format=kind, metadata=about, dpi=dots, **ground)
        return out.getvalue()


@contextmanager
def _settings(values: Any) -> Iterator[None]:
    import matplotlib as mpl

    with warnings.catch_warnings(), mpl.rc_context(values):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name may be in any script
        warnings.filterwarnings("ignore", "Matplotlib currently does not support")
        yield


def _painted(steps: Any, colours: Mapping[str, str]) -> Any:
    import numpy as np

    names = ["panel", *(f"heat-{n}" for n in range(sum(role.startswith("heat-ink") for role in colours)))]
    table = np.array([[int(colours[name][i : i + 2], 16) for i in (1, 3, 5)] for name in names], np.uint8)
    return table[np.asarray(steps) + 1]


def _attribute(text: str) -> bytes:
    return escape(text).encode("ascii", "xmlcharrefreplace")


def shorten(text: str, room: float, size: float = 12) -> str:
    """As much of a text as fits into so many pixels; the middle goes first, since names differ at both ends."""
    most = max(int(room / (_LETTER * size)), 3)
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
