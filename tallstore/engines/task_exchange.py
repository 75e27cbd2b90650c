"""An exchange of one task for another in an engine's model, all or nothing: prepared, applied, then kept or taken back.

Before, the parameters that the engine holds are compared with what was written at the last exchange, and those that its
own way wrote with a digest of them from then: nobody else changed them. (An engine may keep matrices in a form of its
own, where they are no parameters: these it cannot cover.) After, the hash of every tensor that was applied is compared
with that of the task's earlier turns; all of them together are the digest of what the model is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from tallstore.engines.digests import digest_of, hash_of_all, hashes_of
from tallstore.engines.worker_catalogue import ArchiveSource, Catalogue, Loaded
from tallstore.errors import EngineError, ModelChangedError, TallstoreError

__all__ = ["EngineModel", "Exchange"]


class EngineModel(Protocol):
    """One worker's part of a model, and how its engine writes weights."""

    loaded: Loaded | None
    """What it was loaded from, if that was an archive."""

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are the model's."""

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration."""

    @property
    def refused(self) -> str | None:
        """Why it cannot be exchanged, if so."""

    def weights(
        self, catalogue: Catalogue, task: str, names: list[str], applied: dict[str, str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors of a task for this worker; `applied` is given their hashes."""

    def straight(self, catalogue: Catalogue, task: str, names: list[str], applied: dict[str, str]) -> list[str]:
        """Write what can be written without the engine's own way; the names that are left for that."""

    def held(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The model's own memory of tensors that were written so, by name, as far as it holds them as they are."""

    def reload(self, weights: Iterator[tuple[str, Tensor]] | None) -> None:
        """Write tensors by their checkpoint's names; with None those that the engine was started with."""

    def recover(self) -> None:
        """Make the module whole after a reload that failed."""


@dataclass
class _Turn:
    """An exchange that has begun."""

    ticket: str
    catalogue: Catalogue
    task: str
    names: list[str]
    """To be given."""
    applied: dict[str, str] | None = None
    """The hashes of what was given, once it is."""


class Exchange:
    """What one worker's model is, and its exchange for another."""

    def __init__(self, model: EngineModel) -> None:
        self._model = model
        there = model.loaded
        self._catalogue = None if there is None else there.catalogue
        self._task = None if there is None else there.task
        self._applied: dict[str, str] = {} if there is None else dict(there.applied)
        self._known: dict[tuple[ArchiveSource, str], dict[str, str]] = {}
        if there is not None:
            self._known[there.catalogue.source, there.task] = dict(there.applied)
        self._started = self._catalogue
        self._opened: list[Catalogue] = [] if there is None else [there.catalogue]
        self._turn: _Turn | None = None
        self._digest: str | None = None
        """Of what the model held at the last exchange's end."""
        self._straight: set[str] = set()
        """Tensors that were written past the engine's own way: what is held of these is compared with `_applied`."""
        self._broken: str | None = None

    def serving(self) -> dict[str, Any]:
        """What the model is: `archive`, `task`, `tasks`, `digest`: None each where it came from no archive."""
        there = self._catalogue
        return {
            "ok": True,
            "archive": None if there is None else there.url,
            "task": self._task,
            "tasks": None if there is None else list(there.tasks),
            "digest": hash_of_all(self._applied) if self._applied else None,
        }

    def prepare(self, ticket: str, task: str, source: dict[str, Any] | None) -> dict[str, Any]:
        """Check that a task can be had and fits. `source`: another archive than the one that it has."""
        return self._answer(partial(self._prepare, ticket, task, source))

    def apply(self, ticket: str) -> dict[str, Any]:
        """Write what was prepared; where that fails, what was there before."""
        return self._answer(partial(self._apply, ticket))

    def settle(self, ticket: str, *, keep: bool) -> dict[str, Any]:
        """End an exchange. One that was not applied, or is not there, is ended too."""
        return self._answer(partial(self._settle, ticket, keep))

    def close(self) -> None:
        """Release the files of every archive that was opened."""
        for each in self._opened:
            each.close()

    def _answer(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return {"ok": True, **work()}
        except Exception as error:  # across processes, an error is a value
            kind = type(error).__name__ if isinstance(error, TallstoreError) else EngineError.__name__
            text = str(error) or type(error).__name__
            return {"ok": False, "kind": kind, "error": text, "broken": self._broken is not None}

    def _prepare(self, ticket: str, task: str, source: dict[str, Any] | None) -> dict[str, Any]:
        if self._broken is not None:
            raise EngineError(self._broken)
        if self._turn is not None:
            raise EngineError("another exchange of tasks is under way: wait for it to end")
        if self._model.refused is not None:
            raise EngineError(f"the engine's model cannot be exchanged: {self._model.refused}")
        catalogue = self._find(source)
        catalogue.check(task)
        here = self._catalogue is catalogue
        if here and self._task is not None:
            catalogue.check_exchange(self._task, task)
        else:
            self._check_other(catalogue, task)
        catalogue.announce(task)
        names = catalogue.differing(self._task if here else None, task)
        self._turn = _Turn(ticket, catalogue, task, names)
        return {"tensors": len(names)}

    def _check_other(self, catalogue: Catalogue, task: str) -> None:
        """An archive that the model did not come from is to be of the same model."""
        if self._catalogue is None or self._task is None:
            catalogue.check_config(task, self._model.config, "the engine's")
            return
        catalogue.check_config(task, self._catalogue.config(self._task), "the engine's")
        mine = {name: facts.shape for name, facts in self._catalogue.tensors(self._task).items()}
        theirs = {name: facts.shape for name, facts in catalogue.tensors(task).items()}
        for name in {**mine, **theirs}:
            if mine.get(name) != theirs.get(name):
                raise EngineError(
                    f"{catalogue.url}: its base is not the engine's model: tensor {name!r} is {theirs.get(name)} there "
                    f"and {mine.get(name)} here"
                )

    def _find(self, source: dict[str, Any] | None) -> Catalogue:
        if source is None:
            if self._catalogue is None:
                raise EngineError("the engine was not started from an archive: say which one (source=…)")
            return self._catalogue
        asked = ArchiveSource(**source)
        for each in self._opened:
            if each.source == asked:
                return each
        self._opened.append(Catalogue(asked, resident=True))
        return self._opened[-1]

    def _apply(self, ticket: str) -> dict[str, Any]:
        turn = self._turn_of(ticket)
        started = time.perf_counter()
        if self._digest is not None:
            held = self._model.held(self._straight)
            applied = {**self._applied, **(turn.applied or {})}
            same = all(applied.get(name) == digest for name, digest in hashes_of(held).items())
            if not same or digest_of(self._model.module, held.values()) != self._digest:
                raise ModelChangedError("the model's weights were changed by someone else since its last exchange")
        try:
            turn.applied = self._write(turn.catalogue, turn.task, turn.names)
        except BaseException:
            self._take_back()
            raise
        self._digest = self._digest_of_others()
        return {
            "digest": hash_of_all({**self._applied, **turn.applied}),
            "tensors": len(turn.names),
            "seconds": time.perf_counter() - started,
        }

    def _settle(self, ticket: str, keep: bool) -> dict[str, Any]:
        turn = self._turn
        if turn is None or turn.ticket != ticket:
            return {"task": self._task}
        self._turn = None
        if turn.applied is not None and keep:
            self._catalogue, self._task = turn.catalogue, turn.task
            self._applied |= turn.applied
        elif turn.applied is not None:
            self._take_back()
        self._close_others()
        return {"task": self._task}

    def _close_others(self) -> None:
        """Of archives that the model is not from, only that is kept open which the engine was started from."""
        for each in list(self._opened):
            if each is not self._catalogue and each is not self._started:
                self._opened.remove(each)
                each.close()

    def _write(self, catalogue: Catalogue, task: str, names: Sequence[str]) -> dict[str, str]:
        """Give the model tensors; their hashes."""
        applied: dict[str, str] = {}
        others = self._model.straight(catalogue, task, list(names), applied)
        self._straight = self._straight.union(applied).difference(others)
        if others:
            given = _Counted(self._model.weights(catalogue, task, others, applied))
            self._model.reload(iter(given))
            if given.count != len(others):
                raise EngineError(f"task {task!r}: the engine took {given.count} of {len(others)} tensors")
        known = self._known.setdefault((catalogue.source, task), {})
        for name, digest in applied.items():
            if known.setdefault(name, digest) != digest:
                raise EngineError(f"task {task!r}: {name} is not what it was at its last turn: it was not applied")
        return applied

    def _take_back(self) -> None:
        """Write what was there before, all of it."""
        try:
            self._model.recover()
            if self._catalogue is not None and self._task is not None:
                self._write(self._catalogue, self._task, list(self._catalogue.tensors(self._task)))
            else:
                self._model.reload(None)
                self._straight.clear()
        except Exception as error:
            self._broken = (
                f"an exchange of tasks failed and could not be taken back ({error}): the engine's answers are not to "
                "be relied on; start it again"
            )
            raise EngineError(self._broken) from error
        self._digest = self._digest_of_others()

    def _digest_of_others(self) -> str:
        """Of what is held, without what was written straight."""
        return digest_of(self._model.module, self._model.held(self._straight).values())

    def _turn_of(self, ticket: str) -> _Turn:
        if self._turn is None or self._turn.ticket != ticket:
            raise EngineError("this exchange of tasks was not prepared, or is over")
        return self._turn


class _Counted:
    """Tensors on their way, counted."""

    def __init__(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self._weights, self.count = weights, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for each in self._weights:
            self.count += 1
            yield each
