"""Options of every verb that encodes, as the command line spells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tallstore.errors import OptionError

_ENCODING = "How to encode"
_PROMISES = "What to promise"
# Said here and not read from the tables, so that --help needs no torch; a test compares.
RECIPES = "solo, fit, tall, ties, mean, emr"
VECTORS = "f32, bf16, q8, q5, q4"
MASKS = "bits, bits+zstd, adaptive"

Recipe = Annotated[
    str | None,
    typer.Option(
        help=f"How tasks are coded: {RECIPES}. solo, the default, codes each by itself; the others share a vector.",
        rich_help_panel=_ENCODING,
    ),
]
Lam = Annotated[
    float | None,
    typer.Option(
        "--lambda",
        help="λ of the masks, for the recipes tall, ties and mean; chosen for each task if not given.",
        rich_help_panel=_ENCODING,
    ),
]
Quality = Annotated[
    str | None,
    typer.Option(
        help="How close outputs stay to the original's: small, balanced, high (the default) or lossless (bit for bit).",
        rich_help_panel=_ENCODING,
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(
        help="In place of --quality: bits to spend per parameter and task, the base not counted (solo).",
        rich_help_panel=_ENCODING,
    ),
]
Kappa = Annotated[
    float | None,
    typer.Option(
        help="How much more bias counts than random error (solo). 1 gives the least relative error.",
        rich_help_panel=_ENCODING,
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="How many shared vectors to make; auto: enough to keep the error that one vector has for 8 tasks. "
        "Without effect on solo, which shares none.",
        rich_help_panel=_ENCODING,
    ),
]
Vector = Annotated[
    str | None, typer.Option(help=f"Codec of the shared vector, not for solo: {VECTORS}.", rich_help_panel=_ENCODING)
]
Mask = Annotated[str | None, typer.Option(help=f"Codec of the masks: {MASKS}.", rich_help_panel=_ENCODING)]
BaseCodec = Annotated[
    str | None,
    typer.Option(
        help="Codec of the base and of tensors stored whole: planes+zstd (the default) or raw.",
        rich_help_panel=_ENCODING,
    ),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Scores a model: called with (state dict, task), returns a number, higher is better.",
        rich_help_panel=_PROMISES,
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(help="Largest relative error, ‖τ̂−τ‖/‖τ‖, that any task may have.", rich_help_panel=_PROMISES),
]
MinRetention = Annotated[
    float | None,
    typer.Option(
        help="Share of its original's score that every task must keep, such as 0.99. Needs --evaluate.",
        rich_help_panel=_PROMISES,
    ),
]
Exact = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK|all",
        help="Also store what the lossy coding loses, so that extract --exact gives the task back bit for bit. "
        "bf16, f16 and f8 tensors are stored losslessly instead where that is smaller. May be repeated.",
        rich_help_panel=_PROMISES,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|all",
        help="Which weights to take, where a file holds several sets (ema) or a folder several variants (fp16); all: "
        "each as a task of its own.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, …")
]
AllowDistant = Annotated[
    bool, typer.Option("--allow-distant", help="Accept a base that looks like an unrelated model.")
]
Relatives = Annotated[
    bool,
    typer.Option(
        "--relatives/--no-relatives",
        help="Look for merges of other tasks, later versions of one, and tensors that several tasks have alike.",
    ),
]


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given, as `tallstore.Options` takes them."""
    options = {key: value for key, value in given.items() if value is not None and value is not False and value != []}
    if "all" in options.get("exact", ()):
        options["exact"] = "all"
    if options.get("groups", "auto") != "auto":
        if not options["groups"].isdecimal():
            raise OptionError(f"groups {options['groups']!r} is neither a number of groups nor 'auto'")
        options["groups"] = int(options["groups"])
    return options
