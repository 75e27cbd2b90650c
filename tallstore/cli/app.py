"""The verbs. A command is read by its own alone: to make parsers of all of them takes longer than most commands do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Annotated, Any

import typer

from tallstore._version import __version__
from tallstore.cli import add, compact, demo, extract, info, log, merge, pack, pull, push, remove, report, serve, verify

__all__ = ["app", "command"]


def _version(show: bool) -> None:
    if show:
        from tallstore.kernels.native.library import describe

        print(f"tallstore {__version__}, {describe()}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_VERBS = (
    pack.pack, info.info, log.log, extract.extract, add.add, remove.remove, compact.compact, push.push, pull.pull,
    merge.merge, serve.serve, verify.verify, report.report, demo.demo,
)  # fmt: skip


def _app(verbs: Iterable[Callable[..., None]]) -> typer.Typer:
    made = typer.Typer(
        name="tallstore",
        help="Pack a zoo of fine-tuned models into one archive; get any task's weights back on demand.",
        epilog="Begin with: tallstore demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_root)
    for verb in verbs:
        made.command(help=_unwrapped(verb))(verb)
    return made


def _unwrapped(verb: Callable[..., None]) -> str:
    """A verb's description, each paragraph on one line, so that it is wrapped where the terminal ends."""
    paragraphs = (inspect.getdoc(verb) or "").split("\n\n")
    return "\n\n".join(each if each.startswith(" ") else each.replace("\n", " ") for each in paragraphs)


app = _app(_VERBS)


def command(word: str | None) -> Callable[..., Any]:
    """What parses and runs a command line that begins with a word: its verb alone, or all if it is none."""
    return _command(next((verb for verb in _VERBS if verb.__name__ == word), None))


@cache
def _command(verb: Callable[..., None] | None) -> Callable[..., Any]:
    return typer.main.get_command(app if verb is None else _app([verb]))
