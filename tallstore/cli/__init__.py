"""The command line: on top of everything; nothing imports it, and nothing else prints."""

from __future__ import annotations

import atexit
import gc
import sys

from tallstore.errors import TallstoreError

__all__ = ["main"]

_AT_FIRST, _OBJECTS = 1_000_000, 50_000
"""Objects that are made until garbage is looked for, the first time and later: importing torch makes most of a million,
which stay, and looking through them took a tenth of a second and more of every command."""


_COUNTED = frozenset({"triton", "jaxlib"})
"""Packages bound with nanobind, which lists all that it made and that is still there at the end as leaks."""


def _leave_garbage() -> None:
    """What is there at the end goes with the process: no one looks through it."""
    if not _COUNTED & sys.modules.keys():
        gc.freeze()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the work failed (one line says why), 2 wrong usage."""
    gc.set_threshold(_AT_FIRST)
    gc.callbacks.append(_begun)
    atexit.register(_leave_garbage)
    from tallstore.cli import output, plain
    from tallstore.cli.app import command
    from tallstore.cli.hub import keep_to_lines

    plain.prepare()
    keep_to_lines()
    try:
        with output.warned():
            words = sys.argv[1:] if arguments is None else arguments
            command(words[0] if words else None)(arguments, prog_name="tallstore", standalone_mode=True)
    except TallstoreError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("tallstore: interrupted; nothing was left half-done", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        _fail("out of memory; fewer tasks at once, or a machine with more of it")


def _begun(*_: object) -> None:
    """Called where garbage is first looked for."""
    gc.callbacks.remove(_begun)
    gc.set_threshold(_OBJECTS)


def _fail(message: str) -> None:
    from tallstore.humanize import harmless

    print(harmless(f"tallstore: error: {' '.join(message.split())}"), file=sys.stderr)
    sys.exit(1)
