"""One group of tasks: encode, judge, and encode again until every promise holds; or fail and leave nothing behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from tallstore.archive import open_archive
from tallstore.checkpoints import Source, merged_state, opened_checkpoint
from tallstore.encoder import GroupSlot, Options, PackedArchive, PackReport, Progress, encode
from tallstore.errors import BudgetError, EvaluatorError, OptionError
from tallstore.evaluator import Score, find_evaluator, score
from tallstore.packing.budget import Key, escalate
from tallstore.recipes import GRID, RECIPES, TallMasked

_ROUNDS = 12
"""Archives tried before a promise is given up."""
_TIGHTEN = 0.7
"""By how much the error of a task is lowered when its score is too low."""


def pack_group(
    base: Source,
    tasks: Mapping[str, Source],
    path: str | os.PathLike[str],
    chosen: Options,
    *,
    progress: Progress | None = None,
    slot: GroupSlot = GroupSlot(),  # noqa: B008 - frozen
    warning: str | None = None,
) -> PackReport:
    """Pack tasks that share one vector, and keep what was promised of them; `slot`: see `encoder.encode`.

    `warning`: of the tasks as they are asked for; reported and recorded.
    """
    asked = (warning,) if warning is not None else ()
    if chosen.evaluate is None and chosen.max_error is None:
        packed = encode(base, tasks, path, chosen, progress=progress, slot=slot, warnings=dict.fromkeys(tasks, asked))
        return replace(packed.report, warnings=(*asked, *packed.report.warnings))
    with tempfile.TemporaryDirectory(prefix="tallstore-") as scratch:
        trials = _Trials(base, tasks, chosen, Path(scratch), progress, slot)
        trials.choose_lambda()
        forms, scores = trials.meet_targets()
    packed = encode(
        base,
        tasks,
        path,
        trials.options,
        progress=progress,
        forms=forms,
        scores=scores,
        slot=slot,
        warnings={name: (*asked, *trials.unscored.get(name, ())) for name in tasks},
    )
    unscored = [f"task {name!r} {why}" for name, told in trials.unscored.items() for why in told]
    return replace(packed.report, warnings=(*asked, *unscored, *packed.report.warnings))


@dataclass
class _Trials:
    """Archives in a scratch folder, judged one after the other."""

    base: Source
    tasks: Mapping[str, Source]
    options: Options
    scratch: Path
    progress: Progress | None
    slot: GroupSlot
    originals: dict[str, float] = field(default_factory=dict)
    """Scores of the original checkpoints; an adapter's is that of the model that it makes."""
    unscored: dict[str, list[str]] = field(default_factory=dict)
    """Tasks that no score is of, and why."""
    count: int = 0

    def __post_init__(self) -> None:
        self.names = list(self.tasks)
        self.score: Score | None = find_evaluator(self.options.evaluate) if self.options.evaluate is not None else None
        if self.score is not None:
            for name in self.names:
                try:
                    state = _original(self.base, self.tasks[name], name, self.options)
                except OptionError as error:  # an adapter that makes no model
                    self.unscored[name] = [f"is not scored: {error}"]
                else:
                    self.originals[name] = score(self.score, state, name)
                    if self.options.min_retention is not None and self.originals[name] < 0:
                        raise EvaluatorError(
                            f"the original of task {name!r} scores {self.originals[name]:g}: min_retention is a share "
                            "of a score, which cannot be negative; give accuracies, or exp(-loss); nothing was written"
                        )

    @property
    def _rounded(self) -> bool:
        return self.options.base_storage == "bf16"

    def choose_lambda(self) -> None:
        """λ of every task on the evaluator, over the paper's grid; the smaller of equals. As `options.lam`."""
        if (
            self.score is None
            or self.options.lam is not None
            or not issubclass(RECIPES[self.options.recipe], TallMasked)
        ):
            return
        best: dict[str, tuple[float, float]] = {}
        for lam in GRID:
            _, scores = self._try(replace(self.options, lam=lam), {})
            for name, value in scores.items():
                if name not in best or value > best[name][0]:
                    best[name] = (value, lam)
        self.options = replace(self.options, lam={name: lam for name, (_, lam) in best.items()})

    def meet_targets(self) -> tuple[dict[Key, str], dict[str, dict[str, float]]]:
        """Forms with which every promise holds, and the scores of the archive that they make."""
        forms: dict[Key, str] = {}
        bounds = dict.fromkeys(self.names, self.options.max_error)
        for _ in range(_ROUNDS):
            packed, scores = self._try(self.options, forms)
            broken = self._broken(packed, scores, bounds)
            if not broken:
                return forms, {n: {"original": self.originals[n], "decoded": v} for n, v in scores.items()}
            if (
                self.options.recipe == "solo"
                and self.options.kappa is None
                and not self.options.exact  # which has that scale
                and any(self._far(packed, n) for n in broken)
            ):
                # The least error at the same bytes: cheaper than any stronger form.
                self.options = replace(self.options, kappa=1.0)
                continue
            stronger = dict(forms)
            for name, bound in broken.items():
                index = self.names.index(name)
                norm = _norm(packed, index)
                stronger |= escalate(index, packed.costs, norm, bound, forms)
                bounds[name] = bound
            if stronger == forms:
                break
            forms = stronger
        raise BudgetError(self._why(packed, scores, next(iter(broken))))

    def _try(self, options: Options, forms: Mapping[Key, str]) -> tuple[PackedArchive, dict[str, float]]:
        self.count += 1
        path = self.scratch / f"trial-{self.count}.tall"
        # A rounded base is judged as it will be stored; any other is at hand, and need not be written.
        trial = replace(
            options,
            base_storage="bf16" if self._rounded else "reference",
            overwrite=False,
            evaluate=None,
            min_retention=None,
            resume=False,
        )
        packed = encode(self.base, self.tasks, path, trial, progress=self.progress, forms=forms, slot=self.slot)
        scores = {}
        if self.score is not None:
            with open_archive(path, base=None if self._rounded else self.base) as zoo:
                for name in self.originals:
                    adapter = zoo.manifest.tasks[name].adapter is not None
                    scores[name] = score(self.score, zoo.state_dict(name, merged=adapter), name)
        path.unlink()
        return packed, scores

    def _broken(
        self, packed: PackedArchive, scores: Mapping[str, float], bounds: Mapping[str, float | None]
    ) -> dict[str, float]:
        """Tasks with a broken promise, and the error that each must come down to."""
        broken: dict[str, float] = {}
        for name in self.names:
            error = packed.report.tasks[name].relative_error or 0.0
            bound = bounds[name]
            if bound is not None and error > bound:
                broken[name] = bound
            least = self.options.min_retention
            if least is not None and name in scores and scores[name] < least * self.originals[name]:
                broken[name] = min(broken.get(name, error), error) * _TIGHTEN if error > 0.01 else 0.0
        return broken

    def _far(self, packed: PackedArchive, name: str) -> bool:
        """Whether a task's error is above what was promised."""
        return self.options.max_error is not None and (packed.report.tasks[name].relative_error or 0.0) > (
            self.options.max_error
        )

    def _why(self, packed: PackedArchive, scores: Mapping[str, float], name: str) -> str:
        error = packed.report.tasks[name].relative_error
        if self.options.min_retention is not None and scores.get(name, 0.0) < (
            self.options.min_retention * self.originals.get(name, 0.0)
        ):
            return (
                f"task {name!r} scores {scores[name]:.6g} where {self.options.min_retention:g} of its original's "
                f"{self.originals[name]:.6g} was promised, at a relative error of {error}: "
                "is the evaluator the same every time? Nothing was written"
            )
        hint = "; a rounded base leaves no less: base_storage other than 'bf16'" if self._rounded else ""
        bound = self.options.max_error
        return f"task {name!r} has a relative error of {error}, above {bound}{hint}; nothing was written"


def _norm(packed: PackedArchive, task: int) -> float:
    """‖τ‖² of a task's tensors that are not whole."""
    return sum(cost.norm for (index, _), cost in packed.costs.items() if index == task)


def _original(base: Source, source: Source, name: str, options: Options) -> dict[str, Tensor]:
    """What a task's checkpoint holds; of an adapter the model that it makes of the base."""
    with opened_checkpoint(source, f"{name} (in memory)", options.storage_options, weights=options.weights) as task:
        if task.adapter is not None:
            with opened_checkpoint(base, "base (in memory)", options.storage_options) as start:
                return merged_state(start, task)
        state = {n: task.read(n, 0, i.numel).reshape(i.shape) for n, i in task.tensors.items()}
        return {n: state[task.ties.get(n, n)] for n in state}
