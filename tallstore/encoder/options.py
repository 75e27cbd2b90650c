"""The encoder's options, checked once; the same names in Python, on the command line and in zoo files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from tallstore import codecs
from tallstore.encoder.engine import check_engine
from tallstore.encoder.lossless_rows import Lossless
from tallstore.errors import DeviceError, OptionError
from tallstore.format.manifest import STORAGES
from tallstore.humanize import parse_size
from tallstore.recipes import RECIPES, make_recipe
from tallstore.recipes.base import Recipe
from tallstore.recipes.quality_levels import DEFAULT, QUALITIES

Evaluator = Callable[[dict[str, torch.Tensor], str], float]
"""Scores a task's state dict; higher is better."""

LOSSLESS = "lossless"
"""The quality that loses nothing: every tensor is coded against the base's and comes back bit for bit."""
BASE_STORAGES = (*STORAGES, "bf16")
"""What `base_storage` may be: a place, or the archive itself with fewer bits."""

_SAID = {
    "lam": "lam (--lambda)",
    "bits": "bits (--bits)",
    "level": "quality (--quality)",
    "kappa": "kappa (--kappa)",
}
"""What a recipe's options are called by users."""
_NOT_RECORDED = {
    "device",
    "overwrite",
    "allow_distant",
    "evaluate",
    "engine",
    "workers",
    "resume",
    "max_shard_size",
    "storage_options",
    "weights",
    "relatives",
}
"""Options that do not change what is stored, or only how it is cut into files; and what is asked of single files."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to pack. The defaults are what `benchmarks/README.md` measured to be good on a real zoo."""

    recipe: str = "solo"
    """How v and the masks are chosen: one of `tallstore.recipes.RECIPES`."""
    lam: float | Mapping[str, float] | None = None
    """λ of the recipes that have one: for all tasks, or by task. Chosen by the evaluator, or data-free, if None."""
    bits: float | None = None
    """Bits a parameter and task, everything but the base in it, that recipe `solo` may spend."""
    quality: str | None = None
    """In place of `bits`: `small`, `balanced` or `high` (the default), each a level of how far outputs may be from the
    fine-tune's: bits are what that takes, more for narrow models and fewer for wide ones; or `lossless`: every task
    comes back bit for bit. At `high` a task in bf16, f16 or f8 does so, too, where that takes no more than three times
    what the level takes."""
    kappa: float | None = None
    """How many times worse it is to be wrong in the same way for equal |τ| than to be wrong at random (recipe `solo`).

    1 makes the least relative error. It is tried before anything dearer where `max_error` is not kept, and taken with
    `exact`. By default it is the quality's; where bits are given it falls with the rate, from 19 to 1: few bits
    diverge less if errors are random.
    """
    vector: str | None = None
    """Codec of the multi-task vector; by default the recipe's own."""
    mask: str = "adaptive"
    """Codec of the masks; `adaptive` stores given the dither what one drew, and prices are of it."""
    base_storage: str = "embed"
    """`embed` keeps the base in the archive as it is; `bf16` with its matrices rounded to bfloat16, which is then the
    base that errors are measured from; `reference` only identifies it."""
    base_codec: str = "planes+zstd"
    """Codec of whole tensors: the base and what tasks store whole."""
    groups: int | str = 1
    """Vectors that tasks share: so many, or `auto`. Who is in which group is measured on samples of the task vectors.

    Recipe `solo` shares none: there groups change nothing.
    """
    evaluate: Evaluator | str | None = None
    """Scores a task's model, higher is better: a callable (state dict, task name) → number, or `module:function`. An
    adapter is scored as the model that it makes of the base."""
    max_error: float | None = None
    """Relative error ‖τ̂−τ‖/‖τ‖ that no task may exceed."""
    min_retention: float | None = None
    """Share of its original's score that every task must keep. Needs `evaluate`."""
    exact: bool | str | Sequence[str] = ()
    """Tasks, or `all` (or True), that can be given back bit for bit: what is lost is stored in a part of its own. A
    tensor of 16 bits or fewer that takes less without loss than in two layers is stored without loss in their place."""
    device: str = "auto"
    """Where the arithmetic runs: `auto` takes CUDA where there is one."""
    allow_distant: bool = False
    """Take a base that looks like an unrelated model."""
    overwrite: bool = False
    """Replace an archive that is there already."""
    engine: str | Executor = "threads"
    """Who does the work: `threads`, `processes`, `dask` (a cluster on this machine), `dask:ADDRESS` of a scheduler; or
    an executor of any kind, whose workers must see inputs and output under the same paths. The bytes are the same."""
    workers: int | None = None
    """How many: by default as many as there are cores, and memory for."""
    relatives: bool = True
    """Look for tasks that are merges of others, and keep those as that; for tasks that others are nearer to than to the
    base; and for tensors that several tasks have alike, to store them once (recipe `solo`, without promises)."""
    resume: bool = False
    """Take up what an earlier run of the same job left behind, and leave what is done behind if this one fails. It is
    kept to the end for that, which takes the disk of two archives in place of one."""
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """For fsspec's file systems, where inputs or the archive lie on one (s3://, …)."""
    weights: str | None = None
    """Which weights of a task, where its file holds several sets of them (`ema`), or its folder several variants
    (`fp16`): the main ones by default. `all` packs every set, the others as tasks of their own, named TASK.SET."""
    max_shard_size: int | str = "5GB"
    """Bytes that a part has at most, unless one tensor alone has more: a number, or one like 5GB or 512MiB."""

    def __post_init__(self) -> None:
        if isinstance(self.exact, bool):
            object.__setattr__(self, "exact", "all" if self.exact else ())
        _one_of("recipe", self.recipe, RECIPES)
        if self.vector is not None:
            _one_of("vector", self.vector, codecs.SHARED)
        if self.quality is not None:
            _one_of("quality", self.quality, (*QUALITIES, LOSSLESS))
            if self.bits is not None:
                raise OptionError("bits and quality are two ways to say one thing: give one of them")
        if self.quality == LOSSLESS and self.recipe != "solo":
            raise OptionError("quality 'lossless' chooses no vector and no masks: leave recipe out")
        if self.recipe == "solo" and self.vector is not None:
            raise OptionError("recipe 'solo' shares no vector: leave vector out, or choose recipe 'fit'")
        if self.max_error is not None and not 0 <= self.max_error < float("inf"):
            raise OptionError(f"max_error {self.max_error} is not a relative error (0 or more)")
        if self.min_retention is not None and not 0 < self.min_retention <= 1:
            raise OptionError(f"min_retention {self.min_retention} is not a share (above 0, at most 1)")
        if self.min_retention is not None and self.evaluate is None:
            raise OptionError("min_retention needs an evaluator: give evaluate (--evaluate module:function)")
        check_engine(self.engine)
        if self.workers is not None and not (isinstance(self.workers, int) and self.workers > 0):
            raise OptionError(f"workers {self.workers!r} is not a number of workers (1 or more)")
        parse_size(self.max_shard_size, "max_shard_size")
        if self.groups != "auto" and (type(self.groups) is not int or self.groups < 1):
            raise OptionError(f"groups {self.groups!r} is neither a number of groups nor 'auto'")
        _one_of("mask", self.mask, codecs.ASKED)
        _one_of("base_codec", self.base_codec, codecs.WHOLE)
        _one_of("base_storage", self.base_storage, BASE_STORAGES)
        if self.exact and self.base_storage == "bf16":
            raise OptionError(
                "exact copies need the base as it is: base_storage 'embed' or 'reference' in place of 'bf16'"
            )

    def of_tasks(self, names: Sequence[str]) -> Options:
        """The same for some of the tasks: options that name others are cut to these."""
        lam = self.lam
        if isinstance(lam, Mapping):
            lam = {name: value for name, value in lam.items() if name in names}
        if self.exact == "all":
            return replace(self, lam=lam)
        return replace(self, lam=lam, exact=tuple(name for name in self._exact_names() if name in names))

    def _exact_names(self) -> list[str]:
        assert not isinstance(self.exact, bool)
        return [self.exact] if isinstance(self.exact, str) else list(self.exact)

    def recorded(self) -> dict[str, Any]:
        """For the manifest: those that change what is stored; the level by its name, for the default may change."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_RECORDED}
        if self.recipe == "solo" and self.quality is None and self.bits is None:
            said["quality"] = DEFAULT
        return said

    def exact_tasks(self, names: Sequence[str]) -> list[str]:
        """The tasks that `exact` names. Raises OptionError for one that there is not."""
        if self.exact == "all":
            return list(names)
        wanted = self._exact_names()
        if odd := [name for name in wanted if name not in names]:
            raise OptionError(f"exact: no task {odd[0]!r}; there are {', '.join(names)}, or 'all'")
        return wanted

    def make_recipe(self, names: Sequence[str]) -> Recipe:
        """The recipe with those options that it has. Raises OptionError for options that it has not."""
        if self.quality == LOSSLESS:
            return Lossless()
        level = QUALITIES[self.quality] if self.quality is not None else None
        lam: Any = self.lam
        if isinstance(lam, Mapping):
            if odd := sorted(set(lam) - set(names)):
                raise OptionError(f"lam: no task {odd[0]!r}; there are {', '.join(names)}")
            lam = {names.index(name): value for name, value in lam.items()}
        # What the masks lose is stored too, and the least error is the least to store.
        kappa = 1.0 if self.exact and self.kappa is None and self.recipe == "solo" else self.kappa
        given = {"lam": lam, "bits": self.bits, "level": level, "kappa": kappa}
        given = {name: value for name, value in given.items() if value is not None}
        takes = inspect.signature(RECIPES[self.recipe]).parameters
        if unknown := [said for name, said in _SAID.items() if name in given and name not in takes]:
            has = ", ".join(said for name, said in _SAID.items() if name in takes) or "no options"
            raise OptionError(f"recipe {self.recipe!r} takes no {unknown[0]}; it takes {has}")
        return make_recipe(self.recipe, **given)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Options:
        """From a zoo file or keyword arguments. Raises OptionError for a name that is no option."""
        known = {f.name for f in fields(cls)}
        if odd := sorted(set(values) - known):
            raise OptionError(f"no such option: {', '.join(odd)}; there are {', '.join(sorted(known))}")
        return cls(**values)

    def torch_device(self) -> torch.device:
        """The device that `device` names."""
        return find_device(self.device)


def find_device(name: str | torch.device) -> torch.device:
    """`auto`, or any device torch knows; DeviceError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise DeviceError(f"device {str(name)!r} cannot be used ({line}); use 'cpu' or 'auto'") from error
    return device


def _one_of(name: str, value: object, table: Any) -> None:
    if value not in table:
        raise OptionError(f"{name} {value!r} is unknown; there are {', '.join(table)}")
