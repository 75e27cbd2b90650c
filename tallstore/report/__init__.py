"""Something to look at: an archive as a page, as plots, as a card's picture. Needs `tallstore[report]`.

with tallstore.open("zoo.tall") as zoo:
    zoo.report("report.html", plots="plots/")
    picture = tallstore.report.card_picture(zoo)
"""

from __future__ import annotations

from tallstore.report.card_picture import card_picture
from tallstore.report.write import write_report

__all__ = ["card_picture", "write_report"]
