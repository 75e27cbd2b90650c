"""How added tasks are packed: as the archive was, save what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from tallstore.encoder import Options
from tallstore.errors import OptionError
from tallstore.format.manifest import Manifest

_OF_RECIPE = ("lam", "bits", "quality", "kappa", "vector")
"""Options that mean something to one recipe, and nothing or something else to another."""
_SETTLED = ("base_storage", "overwrite")
_OWN = ("groups",)
"""Not taken from the archive: how many groups it had says nothing about the new tasks."""


def recorded_options(manifest: Manifest) -> dict[str, Any]:
    """An archive's options, its quality by name: where none is recorded, the default of then, which was `balanced`."""
    said = dict(manifest.options)
    if said.get("recipe") == "solo" and said.get("quality") is None and said.get("bits") is None:
        said["quality"] = "balanced"
    return said


def inherited(manifest: Manifest, given: Mapping[str, Any], names: Sequence[str]) -> tuple[Options, tuple[str, ...]]:
    """Options for tasks of these names, and warnings.

    Raises OptionError for an option that is none, or that the archive has settled.
    """
    if odd := [key for key in _SETTLED if key in given]:
        raise OptionError(f"{odd[0]} was settled when the archive was packed; leave it out")
    known = {f.name for f in fields(Options)}
    recorded = {key: value for key, value in recorded_options(manifest).items() if key in known and key not in _OWN}
    if given.get("recipe", recorded.get("recipe")) != recorded.get("recipe"):
        recorded = {key: value for key, value in recorded.items() if key not in _OF_RECIPE}
    if given.get("bits") is not None or given.get("quality") is not None:
        recorded = {key: value for key, value in recorded.items() if key not in {"bits", "quality"}}
    warnings: tuple[str, ...] = ()
    if recorded.get("min_retention") is not None and given.get("evaluate") is None:
        share = recorded.pop("min_retention")
        warnings = (
            f"the archive was packed with min_retention {share}, which the new tasks are not held to: that needs an "
            "evaluator: evaluate=… (--evaluate)",
        )
    try:
        options = Options.from_mapping({**recorded, **given})
    except TypeError as error:  # what is recorded there is anybody's JSON
        raise OptionError(f"the archive's recorded options make no sense ({error}); give them anew") from error
    if "exact" not in given:
        options = replace(options, exact=options.of_tasks(names).exact)
    if "lam" not in given and isinstance(options.lam, Mapping):
        options = replace(options, lam={name: value for name, value in options.lam.items() if name in names} or None)
    return options, warnings
