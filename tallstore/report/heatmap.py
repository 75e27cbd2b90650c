"""A matrix as a heat map, with numbers in its cells where there is room, and a tree beside where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tallstore.humanize import share
from tallstore.report.canvas import Canvas, shorten
from tallstore.report.theme import HEAT, heat, heat_ink

__all__ = ["draw_heat_map"]

Shares = npt.NDArray[np.float64]

_MOST_CELLS = 2500
"""Beyond so many, cells are dots of a picture and have no tooltips."""
_TALL = 24
_BESIDE = 52.0
"""To the right of the cells: the tree, and what slanted headings need."""
_LABEL = 170.0
_LEAF = 5
"""Rows closer than this make a tree that is one grey."""


def draw_heat_map(
    values: Shares,
    rows: Sequence[str],
    columns: Sequence[str],
    width: float,
    *,
    about: str,
    scale: tuple[float, float],
    square: bool,
    joins: Sequence[tuple[list[float], list[float]]] = (),
    shares: bool = True,
) -> Canvas:
    """Draw a matrix; NaN is an empty cell.

    Args:
        values: (rows, columns).
        rows: their names.
        columns: their names.
        width: of the figure; it grows where cells would be too small to see.
        about: the figure in a sentence.
        scale: the values at the ends of the colour scale.
        square: rows and columns are the same things.
        joins: a tree over the rows: the corners of each join as (places, heights).
        shares: write values as per cent.
    """
    label = min(_LABEL, width * 0.3, 24 + 6.6 * max(map(len, rows), default=0))
    many = values.size > _MOST_CELLS
    least = 3.0 if many else 13.0
    cell = min(max((width - label - _BESIDE) / max(len(columns), 1), least), 64.0)
    tall = min(cell, 44.0) if square else (_TALL if not many else max(3.0, min(_TALL, 900 / max(len(rows), 1))))
    head = 22 + min(max(map(len, columns), default=0), 16) * 6.2 if cell >= 12 else 8
    canvas = Canvas(max(label + cell * len(columns) + _BESIDE, width), head + tall * len(rows) + 46, about=about)
    x, y = label, head
    for places, heights in joins if tall >= _LEAF else ():
        start = x + cell * len(columns) + 3
        corners = [(start + h * (_BESIDE - 8), y + (p + 0.5) * tall) for p, h in zip(places, heights, strict=True)]
        canvas.line(corners, "muted")
    if cell >= 12:
        for n, name in enumerate(columns):
            canvas.text(x + (n + 0.5) * cell + 4, head - 4, shorten(name, 100, 11), size=11, turned=52)
    if tall >= 11:
        for n, name in enumerate(rows):
            canvas.text(label - 8, y + (n + 0.5) * tall, shorten(name, label - 8, 11), size=11, align="right")
    low, high = scale
    reach = (high - low) or 1.0
    if many:
        steps = np.where(np.isfinite(values), np.rint((np.nan_to_num(values) - low) / reach * (HEAT - 1)), -1)
        canvas.image(np.clip(steps, -1, HEAT - 1).astype(int), x, y, cell * len(columns), tall * len(rows))
    else:
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                value = float(values[i, j])
                if not np.isfinite(value):
                    canvas.box(x + j * cell, y + i * tall, cell - 1, tall - 1, "panel")
                    continue
                at, words = (value - low) / reach, share(value) if shares else f"{value:.2f}"
                tip = f"{row}, {column}: {words}"
                canvas.box(x + j * cell, y + i * tall, cell - 1, tall - 1, heat(at), tip=tip)
                if cell >= 34:
                    short = f"{100 * value:.0f}" if shares else f"{value:.2f}".removeprefix("0")
                    middle = (x + (j + 0.5) * cell - 0.5, y + (i + 0.5) * tall - 0.5)
                    canvas.text(*middle, short, heat_ink(at), size=10.5, align="center")
    _scale(canvas, x, y + tall * len(rows) + 20, scale, shares=shares)
    return canvas


def _scale(canvas: Canvas, x: float, y: float, scale: tuple[float, float], *, shares: bool) -> None:
    step = min(16.0, (canvas.width - x - 10) / (HEAT + 7))
    low, high = (share(v) if shares else f"{v:.2f}" for v in scale)
    canvas.text(x, y + 5, low, "muted", size=11)
    start = x + 7 * len(low) + 6
    for n in range(HEAT):
        canvas.box(start + n * step, y, step, 10, f"heat-{n}")
    canvas.text(start + HEAT * step + 6, y + 5, high, "muted", size=11)
