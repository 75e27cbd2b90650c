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
    str | None, typer.Option(help=f"How vector and masks are chosen: {RECIPES}.", rich_help_panel=_ENCODING)
]
Lam = Annotated[
    float | None, typer.Option("--lambda", help="λ, for the recipes that have one.", rich_help_panel=_ENCODING)
]
Quality = Annotated[
    str | None,
    typer.Option(help="small, balanced (the default), high or lossless (bit for bit).", rich_help_panel=_ENCODING),
]
Bits = Annotated[
    float | None, typer.Option(help="Bits a parameter and task, all but the base in it.", rich_help_panel=_ENCODING)
]
Kappa = Annotated[
    float | None,
    typer.Option(
        help="How many times worse bias is than noise: 1 for the least relative error.", rich_help_panel=_ENCODING
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Vectors that tasks share; auto: so many that the error is that of one for 8 tasks. Not of solo.",
        rich_help_panel=_ENCODING,
    ),
]
Vector = Annotated[
    str | None, typer.Option(help=f"Codec of the multi-task vector: {VECTORS}.", rich_help_panel=_ENCODING)
]
Mask = Annotated[str | None, typer.Option(help=f"Codec of the masks: {MASKS}.", rich_help_panel=_ENCODING)]
BaseCodec = Annotated[
    str | None,
    typer.Option(help="Codec of whole tensors, the base's among them: raw, planes+zstd.", rich_help_panel=_ENCODING),
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
    float | None, typer.Option(help="Relative error that no task may exceed.", rich_help_panel=_PROMISES)
]
MinRetention = Annotated[
    float | None,
    typer.Option(help="Share of its original's score that every task must keep.", rich_help_panel=_PROMISES),
]
Exact = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK|all",
        help="Store what is lost, so that extract --exact gives the task back bit for bit; bf16, f16 and f8 "
        "once, without loss, where that is smaller. May be repeated.",
        rich_help_panel=_PROMISES,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|all",
        help="Which weights, where a file holds several sets (ema) or a folder variants (fp16); all: each as a task.",
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
AllowDistant = Annotated[bool, typer.Option("--allow-distant", help="Take a base that looks like an unrelated model.")]
Relatives = Annotated[
    bool,
    typer.Option(
        "--relatives/--no-relatives",
        help="Look for merges of other tasks, for parents, and for tensors that several tasks have alike.",
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
