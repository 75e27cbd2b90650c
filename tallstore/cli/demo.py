"""`tallstore demo`."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    folder: Annotated[str, typer.Option("-o", "--output", help="Where the demo's zoo goes.")] = "tallstore-demo",
) -> None:
    """Make a small real zoo, pack it, get every task back, and show what that cost and kept. Takes a minute.

    Example:

      tallstore demo
    """
    raise NotImplementedError
