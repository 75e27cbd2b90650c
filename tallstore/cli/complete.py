"""What the shell offers when Tab is pressed: an archive's tasks. Reads the manifest, and loads nothing heavy."""

from __future__ import annotations

import typer

from tallstore.errors import TallstoreError
from tallstore.format import limits
from tallstore.format.manifest import MANIFEST, Manifest
from tallstore.stores import open_store

__all__ = ["tasks"]


def tasks(context: typer.Context, incomplete: str) -> list[str]:
    """The tasks of the archive that was named before, as far as they begin with what is typed."""
    try:
        with open_store(str(context.params.get("zoo") or "")) as store:
            size = min(store.size(MANIFEST), limits.MANIFEST_BYTES + 1)
            manifest = Manifest.from_bytes(bytes(store.read(MANIFEST, 0, size)))
    except TallstoreError:
        return []  # it is not the moment to complain: the command will
    return [name for name in manifest.tasks if name.startswith(incomplete)]
