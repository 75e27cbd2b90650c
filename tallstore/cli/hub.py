"""Options that the verbs of the Hub share. They are called as in the Hub's own tools."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer

_PANEL = "The Hub"

TOKEN = Annotated[
    str | None,
    typer.Option(help="An access token; by default the one that `hf auth login` stored.", rich_help_panel=_PANEL),
]
ENDPOINT = Annotated[
    str | None, typer.Option(help="The Hub's address, in place of HF_ENDPOINT.", rich_help_panel=_PANEL)
]
REVISION = Annotated[str | None, typer.Option(help="Branch, tag or commit; main by default.", rich_help_panel=_PANEL)]
CACHE_DIR = Annotated[
    str | None, typer.Option(help="The Hub's cache, in place of HF_HUB_CACHE.", rich_help_panel=_PANEL)
]
LOCAL_FILES_ONLY = Annotated[
    bool,
    typer.Option(
        "--local-files-only",
        help="Use only what is in the cache; fail if something is missing.",
        rich_help_panel=_PANEL,
    ),
]


def keep_to_lines() -> None:
    """Where nobody watches, keep the client's progress bars out of what is said, unless they are asked for.

    The client reads this when it is imported, which most work does without.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def quiet_client() -> None:
    """Let our own progress bar be the only one, and errors be one line."""
    try:
        tools: Any = importlib.import_module("huggingface_hub.utils")
    except ImportError:
        return  # whoever needs the client says so
    tools.disable_progress_bars()
    tools.logging.set_verbosity_error()
