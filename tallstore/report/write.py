"""Write a report: the page, and the folder of plots. Each appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tallstore.report.extra import require
from tallstore.stores.staging import Staging, followed, refuse_existing, translated

if TYPE_CHECKING:
    from tallstore.archive import Archive
    from tallstore.report.facts import Facts

__all__ = ["PAGE_MARK", "write_report"]

PAGE_MARK = b'<meta name="generator" content="tallstore'
"""What tells a page of ours from anybody else's, in its first bytes."""
_LOOK = 2048
_WIDTH = 760.0


def write_report(
    zoo: Archive,
    out: str | os.PathLike[str] = "report.html",
    *,
    plots: str | os.PathLike[str] | None = None,
    masks: bool = True,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """What `tallstore.Zoo.report` does."""
    require()
    from tallstore.report.facts import gather
    from tallstore.report.page import render

    page, folder = Path(out), None if plots is None else Path(plots)
    with translated(page):
        refuse_existing(page, overwrite=overwrite, ours=_is_page(page), what="a report")
    if folder is not None:
        with translated(folder):
            if not (folder.is_dir() and not any(folder.iterdir())):
                refuse_existing(folder, overwrite=overwrite, ours=_is_plots(folder), what="a folder of plots")
    facts = gather(zoo, masks=masks, progress=progress)
    text = render(facts)
    if folder is not None:
        _write_plots(facts, folder)
    with Staging(followed(page)) as staging:
        with translated(page):
            staging.path("page").write_bytes(text)
        staging.publish("page", overwrite=overwrite)
    return page


def _write_plots(facts: Facts, folder: Path) -> None:
    from tallstore.report.figures import FIGURES

    with Staging(followed(folder)) as staging:
        made = staging.path("plots")
        with translated(folder):
            made.mkdir()
        for name, figure in FIGURES.items():
            if not figure.masks or facts.masks is not None:
                canvas = figure.draw(facts, _WIDTH)
                with translated(folder):
                    (made / f"{name}.svg").write_bytes(canvas.svg())
                    (made / f"{name}.png").write_bytes(canvas.png())
        staging.publish("plots", overwrite=True)


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return PAGE_MARK in file.read(_LOOK)


def _is_plots(folder: Path) -> bool:
    from tallstore.report.figures import FIGURES

    names = {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= names
