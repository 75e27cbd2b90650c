"""The verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore._version import __version__
from tallstore.cli import add, compact, demo, extract, info, log, merge, pack, pull, push, remove, report, serve, verify

app = typer.Typer(
    name="tallstore",
    help="Pack a zoo of fine-tuned models into one archive; get any task's weights back on demand.",
    epilog="Begin with: tallstore demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from tallstore.kernels.native.library import describe

        print(f"tallstore {__version__}, {describe()}")
        raise typer.Exit


@app.callback()
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
for verb in _VERBS:
    app.command()(verb)
