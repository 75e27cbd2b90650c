"""What a recipe is: how the encoder chooses the multi-task vector, the masks and the scales.

A decoder never needs to know the recipe: it sees entries, by their kinds. A recipe is pure arithmetic on tensors. It
reads no file and knows no codec. The encoder hands it one tile at a time, a run of parameters of one tensor, for
all tasks that have that tensor, so a recipe that needs a figure over whole task vectors (a trim threshold, one
scale a task) declares `Statistic` objects: each costs one more read of the input, before the first tile.

A new recipe is one file here and one row in the table in `__init__`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from tallstore.kernels.rules import Rule
from tallstore.recipes.dither import seed_of
from tallstore.recipes.histogram import Magnitudes
from tallstore.recipes.quantizers import Quantizer
from tallstore.recipes.sampled_changes import LevelCosts, SampledPrecision

Kind = Literal["binary", "signed"]
"""The two kinds of mask: symbols 0 and 1, or 0, 1 (+) and 2 (−)."""


@dataclass(frozen=True)
class Tile:
    """A run of N parameters of one tensor, for the T' ≤ T tasks that have it.

    All tensors are float32 (float64 where the checkpoint is), contiguous and on one device.
    """

    tasks: tuple[int, ...]
    """Which tasks the rows stand for: indices into the whole zoo's task list, ascending."""
    base: Tensor
    """θ0, shape (N,)."""
    weights: Tensor
    """θt, shape (T', N)."""
    tau: Tensor
    """τt = θt − θ0, shape (T', N)."""
    tensor: str = ""
    """The base's name of the tensor."""
    start: int = 0
    """Where in the tensor the run begins."""
    weight: float = 1.0
    """How many parameters each one stands for, where a statistic is given a sample."""
    narrow: tuple[bool, ...] = ()
    """Of each row whether its type has few bits, so that much of it stays where it was; of none, where it is empty."""


@dataclass(frozen=True, kw_only=True)
class ZooFacts:
    """What a recipe that meets a budget must know beforehand."""

    parameters: int
    """Of all tasks together."""
    fixed_bits: float
    """What is stored beside vector and masks: heads and other tensors stored whole, roughly."""
    first: int = 0
    """How many tasks the archive holds that these are added to."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the base's tensors."""


class Statistic(ABC):
    """A figure over whole task vectors, gathered in one read of the input before the first vector is made.

    The encoder calls `measure` for every tile and `condense` for what it returned of several, in any order and by
    several workers; then `update` for what that gave, in one fixed order, and then `finish` once.
    """

    one_in: int = 1
    """Of large tensors, one parameter in so many is enough: runs of them, evenly spaced."""

    def measure(self, tile: Tile) -> Any:
        """What `update` needs of a tile: the tile itself, unless there is work that threads can share."""
        return tile

    by_magnitude: bool = False
    """Whether there is `measure_counted`: magnitudes are all that is measured."""

    def measure_counted(self, task: int, tensor: str, counted: Magnitudes, weight: float) -> Any:
        """What `measure` returns of a tile of one task in float32.

        Args:
            task: which.
            tensor: the base's name of the tensor.
            counted: the tile's |τ|, each parameter once.
            weight: how many parameters each one stands for.
        """
        raise NotImplementedError

    by_row: bool = False
    """Whether there is `measure_rows`: a few rows of every matrix are looked at too."""

    def measure_rows(self, task: int, tensor: str, gain: Callable[[], float]) -> Any:
        """What `condense` is given of a few rows of one task's tensor.

        Args:
            task: which.
            tensor: the base's name of the tensor.
            gain: measures `coherence.gain` of the rows that `coherence.picked` names, of their leading columns.
        """
        raise NotImplementedError

    def measure_changes(self, task: int, tensor: str, bits: float | None, levels: Sequence[LevelCosts]) -> Any:
        """What `condense` is given of what one task's tensor would take without loss, or if some changes are dropped.

        Args:
            task: which.
            tensor: the base's name of the tensor.
            bits: of the whole tensor, estimated from the rows that `coherence.picked` names; None where that is not
                little.
            levels: its changes, in types of which some may be dropped; and what is left of them where those that rows
                have in common are told first.
        """
        raise NotImplementedError

    by_tensor: bool = False
    """Whether one worker measures all of a tensor, of which `condense` makes little: not where tiles are measures."""

    def condense(self, measured: Iterable[Any]) -> Iterable[Any]:
        """What `update` needs of several tiles, in order: of a whole tensor, where statistics are `by_tensor`."""
        return measured

    @abstractmethod
    def update(self, condensed: Any, /) -> None:
        """Take into account one of those that `condense` returned: a tile, where it and `measure` do nothing."""

    @abstractmethod
    def finish(self) -> None:
        """Called once after the last tile."""


class Recipe(ABC):
    """How v, m and s are chosen. Instances hold options and, after their statistics are gathered, those figures."""

    id: ClassVar[str]
    """The name on the command line and in the manifest."""
    kind: Kind = "binary"
    """The kind of the masks that `masks` returns."""
    vector_codec: str = "q4"
    """The codec of the vector, unless the user chooses another."""
    shared: ClassVar[bool] = True
    """Whether what becomes of a task depends on the others, once statistics are gathered."""

    def prepare(self, zoo: ZooFacts) -> None:
        """Called once, before anything else."""

    def statistics(self, n_tasks: int) -> Sequence[Statistic]:  # noqa: ARG002 - part of the interface
        """The statistics this recipe needs, in order: a later one may use the finished earlier ones."""
        return ()

    @abstractmethod
    def vector(self, tile: Tile) -> Tensor:
        """The multi-task vector for a tile: shape (N,), dtype of `tile.tau`, before it is quantized.

        For masks of kind `signed` every value is ≥ 0: the magnitude that tasks share.
        """

    @abstractmethod
    def masks(self, tile: Tile, vector: Tensor) -> Tensor:
        """The masks for a tile against the vector as it is stored (after quantization).

        Returns shape (T', N), uint8: 0 where the task keeps θ0, 1 where it adds s·v, 2 (`signed` only) where it
        subtracts it.
        """

    def rule(self, tasks: Sequence[int], tensor: str) -> Rule | None:  # noqa: ARG002 - part of the interface
        """What `vector` and `masks` do to a tile of these tasks, in the words of a kernel; None if none can do it."""
        return None

    def scale(self, task: int, sums: Sequence[float]) -> float:  # noqa: ARG002 - part of the interface
        """The scale s of one task on one chunk of one tensor; 1.0 where the recipe has none.

        Args:
            task: index into the zoo's task list.
            sums: over the chunk, for w = m·v as stored: ‖τ − w‖², ‖τ‖², ‖w‖², ⟨τ, w⟩, and the count of m ≠ 0.
        """
        return 1.0

    def seed(self, task: int, tensor: str) -> int:
        """Of what looks random in one task's tensor, should anything: tasks that lie in one archive differ."""
        return seed_of(task, tensor)

    def predicted_divergence(self, task: int) -> float | None:  # noqa: ARG002 - part of the interface
        """How far a task's outputs will be from the fine-tune's, in units of the base's distance, where it is known."""
        return None

    def warning(self, task: int) -> str:  # noqa: ARG002 - part of the interface
        """What must be said of a task before anyone uses it; nothing, mostly."""
        return ""

    def lossless(self) -> Collection[tuple[int, str]]:
        """The tasks' tensors that are to be coded without loss, once statistics are gathered."""
        return ()

    def lossless_tasks(self) -> Collection[int]:
        """Tasks of which every tensor is to be, whatever was seen of it."""
        return ()

    def dropped(self) -> Mapping[tuple[int, str], SampledPrecision]:
        """Those of which a share of the changes is to be dropped and the rest rescaled and rounded."""
        return {}

    def levels(self, task: int, tensor: str) -> Quantizer | None:  # noqa: ARG002 - part of the interface
        """Where a task's tensor gets levels of its own in place of a mask: the bounds of their magnitudes, ascending.

        |τ| up to the first bound is 0; from one bound to the next it is one level. None: the tensor is masked.
        """
        return None
