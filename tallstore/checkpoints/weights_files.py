"""Which files of one folder hold its weights: whole files, shards with or without an index, variants, other forms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tallstore.checkpoints.torch_files import is_torch_file
from tallstore.errors import CheckpointError, FormatError
from tallstore.format.names import check_path

__all__ = ["PICKLES", "SAFE", "Weights", "check_shards_there", "list_weights", "order", "read_index"]

SAFE = ".safetensors"
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
"""Endings that are weights' whatever the bytes say: who damages them is told so."""
_TEXTS = {".json", ".jsonl", ".txt", ".md", ".py", ".yaml", ".yml", ".csv", ".tsv", ".jinja", ".html", ".safetensors"}
_NAME = re.compile(
    r"(?P<stem>model|diffusion_pytorch_model|open_clip_model|pytorch_model|open_clip_pytorch_model)"
    r"(?P<shard>-\d{5}-of-\d{5})?(\.(?P<variant>[A-Za-z0-9_]+))?(?P<late>-\d{5}-of-\d{5})?\.(safetensors|bin)"
)
_SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})(?=[.]|$)")
_INDEX = re.compile(r"(?P<stem>.+)\.(safetensors|bin)\.index(\.(?P<variant>[A-Za-z0-9_]+))?\.json")
_LATE_INDEX = re.compile(r"(?P<stem>.+?)\.(?P<variant>[A-Za-z0-9_]+)\.(safetensors|bin)\.index\.json")
_ORDER = (
    ("model", SAFE),
    ("diffusion_pytorch_model", SAFE),
    ("open_clip_model", SAFE),
    ("pytorch_model", ".bin"),
    ("diffusion_pytorch_model", ".bin"),
    ("open_clip_pytorch_model", ".bin"),
)
"""Which weights are taken where there are several: as the libraries that have these names choose."""
_SAFE_STEMS = {"pytorch_model": "model", "open_clip_pytorch_model": "open_clip_model"}
"""What pickled weights are called as safetensors, where the library that named them finds them."""
_LAST = ("checkpoint_final.pth", "model_final_checkpoint.model")
"""What a trainer calls the end of its run, beside its best and its latest state."""
_RANKS = re.compile(r"(^|.*[-_.])(rank[-_]?\d+|mp_rank_\d+|consolidated\.\d\d)([-_.].*)?", re.IGNORECASE)
"""Files of one process out of many."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights in a folder that are one whole: a file, or shards."""

    name: str
    """As a whole file: `model.fp16.safetensors`."""
    files: tuple[Path, ...]
    index: Path | None = None
    stem: str = ""
    """The library's name for weights, if it is one of those that are known."""
    variant: str = ""

    @property
    def safe(self) -> bool:
        """Whether it is in safetensors files."""
        return self.name.endswith(SAFE)

    @property
    def used(self) -> tuple[Path, ...]:
        """All its files, the index with them."""
        return self.files if self.index is None else (*self.files, self.index)

    @property
    def called(self) -> str:
        """What its one safetensors file is called where it is written again."""
        if self.safe:
            return self.name
        stem = _SAFE_STEMS.get(self.stem, self.stem) or "model"
        return f"{stem}.{self.variant}{SAFE}" if self.variant else f"{stem}{SAFE}"


def list_weights(folder: Path, names: Sequence[str]) -> list[Weights]:
    """Every set of weights among the files of a folder, not of those below it.

    Raises:
        CheckpointError: an index leaves out a shard that belongs to it, or names one that is not there; shards are
            missing; a file is one process's part of a save.
    """
    indexes = [folder / name for name in names if name.endswith(".json") and ".index" in name]
    listed = [weights for index in indexes if (weights := _by_index(index)) is not None]
    indexed = {path.name for weights in listed for path in weights.files}
    loose: dict[str, list[Path]] = {}
    for name in names:
        if name not in indexed and _holds_weights(folder / name):
            loose.setdefault(_SHARD.sub("", name), []).append(folder / name)
    for whole, paths in loose.items():
        _check_shards(paths, whole)
        listed.append(_named(whole, tuple(paths)))
    return sorted(listed, key=order)


def order(weights: Weights) -> tuple[int, bool, bool, str]:
    """What comes first is taken where nothing else is asked for."""
    ending = SAFE if weights.safe else ".bin"
    rank = _ORDER.index((weights.stem, ending)) if weights.stem and not weights.variant else len(_ORDER)
    if weights.variant:
        rank += _ORDER.index((weights.stem, ending))
    elif not weights.stem:
        rank += len(_ORDER) + 2 - weights.safe - (weights.name in _LAST)
    return rank, len(weights.files) > 1, weights.name not in _LAST, weights.name


def read_index(index: Path) -> tuple[Mapping[str, str], list[Path]]:
    """An index's table, tensor → file, and the files."""
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(table.values()))
        if not names or not all(check_path(name) == name for name in names):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FormatError) as error:
        raise CheckpointError(f"{index}: not an index of shards") from error
    return table, [index.parent / name for name in names]


def check_shards_there(shards: Sequence[Path], index: Path) -> None:
    """Raise CheckpointError unless every shard that an index names is a file."""
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{shard}: missing, and {index.name} names it")


def _by_index(index: Path) -> Weights | None:
    match = _INDEX.fullmatch(index.name) or _LATE_INDEX.fullmatch(index.name)
    known = match is not None and _NAME.fullmatch(f"{match['stem']}{SAFE}") is not None
    try:
        shards = read_index(index)[1]
    except CheckpointError:
        if known:
            raise
        return None
    check_shards_there(shards, index)
    _check_shards(shards, index.name, index)
    whole = _SHARD.sub("", shards[0].name)
    return _named(whole, tuple(shards), index)


def _check_shards(paths: Sequence[Path], whole: str, index: Path | None = None) -> None:
    """Raise CheckpointError unless shards whose names say how many there are, are all there."""
    numbers = {int(match["number"]): int(match["count"]) for path in paths if (match := _SHARD.search(path.name))}
    if numbers:
        count = max(numbers.values())
        missing = [number for number in range(1, count + 1) if number not in numbers]
        if 0 in numbers:
            missing = missing[:-1]
        if missing:
            folder, first = paths[0].parent, missing[0]
            lost = _SHARD.sub(f"-{first:05}-of-{count:05}", paths[0].name)
            there = (folder / lost).is_file()
            raise CheckpointError(
                f"{index}: leaves out {lost}, which lies beside it: write the index anew, with save_pretrained"
                if index is not None and there
                else f"{folder / lost}: missing: {len(numbers)} of {count} shards of {whole} are there; fetch it again"
            )
    ranked = [path for path in paths if _RANKS.fullmatch(path.name.removesuffix(path.suffix))]
    if ranked and not (len(paths) == 1 and re.search(r"(mp_rank_00|consolidated\.00)", ranked[0].name)):
        raise CheckpointError(
            f"{ranked[0]}: what one process of several saved, parts of tensors perhaps: merge the parts into whole "
            "weights with the tool that saved them, and give those"
        )


def _named(whole: str, files: tuple[Path, ...], index: Path | None = None) -> Weights:
    match = _NAME.fullmatch(whole)
    if match is None:
        return Weights(name=whole, files=files, index=index)
    variant = match["variant"] or ""
    if not variant and index is not None and (said := _INDEX.fullmatch(index.name)):
        variant = said["variant"] or ""
    ending = SAFE if whole.endswith(SAFE) else ".bin"
    name = f"{match['stem']}.{variant}{ending}" if variant else f"{match['stem']}{ending}"
    known = (match["stem"], ending) in _ORDER
    return Weights(name=name, files=files, index=index, stem=match["stem"] if known else "", variant=variant)


def _holds_weights(path: Path) -> bool:
    if path.suffix == SAFE or path.suffix in PICKLES:
        return (
            path.suffix in {SAFE, ".pt", ".pth", ".ckpt"}
            or _NAME.fullmatch(path.name) is not None
            or is_torch_file(path)
        )
    return path.suffix.lower() not in _TEXTS and is_torch_file(path)
