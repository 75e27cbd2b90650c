"""What draws reports is an extra; who lacks it is told so before any work is done."""

from __future__ import annotations

from importlib import import_module

from tallstore.errors import MissingExtraError

__all__ = ["require"]


def require() -> None:
    """Raise MissingExtraError unless all of `tallstore[report]` is there."""
    for name in ("jinja2", "matplotlib", "scipy"):
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtraError(f'reports need {name}: pip install "tallstore[report]"') from error
