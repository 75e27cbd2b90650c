"""Exchanging the task that a running engine serves: from Python, and what the route does.

All workers are asked whether they can before requests are held back, and agree before any goes on. Requests that are
in flight are waited for, aborted, or the exchange refuses; those that come meanwhile wait, and are answered by the new
task. What was computed with the old weights (prefix, encoder and multi-modal caches) is cleared.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any
from weakref import WeakSet

from tallstore import errors
from tallstore.engines.vllm.options import WORKER
from tallstore.engines.worker_catalogue import ArchiveSource
from tallstore.errors import EngineError, OptionError

__all__ = ["IN_FLIGHT", "serving", "switch", "switch_async"]

IN_FLIGHT = ("wait", "abort")
"""What becomes of requests that are in flight in an asynchronous engine: they end first, or are aborted."""
_DEAD = "the engine died, a worker with it: nothing serves any more; start it again"
_LOOK = 0.5
"""Seconds between two looks whether the engine is there."""
_busy: WeakSet[Any] = WeakSet()
"""Asynchronous engines in which an exchange is under way."""


def switch(engine: Any, task: str, *, source: str | None = None, **how: Any) -> dict[str, Any]:
    """Make an engine serve another task. On any error it goes on with the one that it has.

    Args:
        engine: vLLM's `LLM` or `LLMEngine`, started with `engine_options`, or with `worker_extension_cls` of its own
            on a folder of the same model. For `AsyncLLM` there is `switch_async`.
        task: its name.
        source: another archive of the same model; by default the one that the engine is from.
        **how: `base`, `exact`, `revision` and so on, for another archive.

    Returns:
        `task`, `tensors` (how many were written), `seconds` (the longest of any worker), `digest` (of what the model
        is now: a hash of the hashes of all tensors).

    Raises:
        NoSuchTaskError, ModelMismatchError: the task is not there, or is another model.
        EngineError: requests are in flight, another exchange is under way, a worker failed or died.
    """
    inner = getattr(engine, "llm_engine", engine)
    if not hasattr(inner, "has_unfinished_requests"):
        raise OptionError("switch is for vLLM's LLM and LLMEngine; await switch_async(engine, task) for AsyncLLM")
    if inner.has_unfinished_requests():
        raise EngineError("requests are in flight: let them end, or abort them, before tasks are exchanged")
    steps = _Steps(task, source, how)
    try:
        steps.agreed(_called(engine, *steps.prepare))
        steps.agreed(_called(engine, *steps.apply))
        if inner.reset_prefix_cache() is False:
            raise EngineError("the engine's cache of prefixes is in use and cannot be cleared")
        inner.reset_encoder_cache()
        inner.reset_mm_cache()
    except BaseException as error:
        _undo(engine, steps, error)
        raise
    steps.agreed(_called(engine, *steps.keep))
    return steps.told


async def switch_async(
    engine: Any, task: str, *, source: str | None = None, in_flight: str = "wait", **how: Any
) -> dict[str, Any]:
    """The same for vLLM's `AsyncLLM`, which goes on taking requests.

    Args:
        engine: an `AsyncLLM`.
        task: its name.
        source: as for `switch`.
        in_flight: `wait` lets requests end first, `abort` ends them.
        **how: as for `switch`.
    """
    if in_flight not in IN_FLIGHT:
        raise OptionError(f"in_flight {in_flight!r} is unknown; there are {', '.join(IN_FLIGHT)}")
    if engine in _busy:
        raise EngineError("another exchange of tasks is under way: wait for it to end")
    _busy.add(engine)
    steps = _Steps(task, source, how)
    try:
        try:
            steps.agreed(await _called_async(engine, *steps.prepare))
            await engine.pause_generation(mode=in_flight, clear_cache=True)
            steps.agreed(await _called_async(engine, *steps.apply))
            if await engine.reset_prefix_cache() is False:
                raise EngineError("the engine's cache of prefixes is in use and cannot be cleared")
            await engine.reset_encoder_cache()
            await engine.reset_mm_cache()
        except BaseException as error:
            await asyncio.shield(_undo_async(engine, steps, error))
            raise
        steps.agreed(await _called_async(engine, *steps.keep))
    finally:
        _busy.discard(engine)
        if not getattr(engine, "errored", False):
            await engine.resume_generation()
    return steps.told


def serving(engine: Any) -> dict[str, Any]:
    """What an `LLM` serves: `archive`, `task`, `tasks`, `digest` (of the first worker's part)."""
    return _Steps.of_all(_called(engine, "tallstore_serving", ()))[0]


class _Steps:
    """The calls of one exchange, and what the workers said."""

    def __init__(self, task: str, source: str | None, how: Mapping[str, Any]) -> None:
        if source is None and how:
            raise OptionError(f"{next(iter(how))} is an option of another archive: source=… says which")
        try:
            asked = None if source is None else ArchiveSource(archive=source, **how).to_json()
        except TypeError as error:
            raise OptionError(f"switch: {error}") from None
        ticket = uuid.uuid4().hex
        self.prepare = ("tallstore_prepare", (ticket, task, asked))
        self.apply = ("tallstore_apply", (ticket,))
        self.keep = ("tallstore_settle", (ticket, True))
        self.back = ("tallstore_settle", (ticket, False))
        self.told: dict[str, Any] = {"task": task}

    def agreed(self, answers: Sequence[dict[str, Any]]) -> None:
        """Raise the first error that a worker answered; note what they say besides."""
        for answer in self.of_all(answers):
            for key in ("tensors", "digest"):
                if key in answer:
                    self.told.setdefault(key, answer[key])
            if "seconds" in answer:
                self.told["seconds"] = max(answer["seconds"], self.told.get("seconds", 0.0))

    @staticmethod
    def of_all(answers: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The answers, none of them an error: one that the workers cannot go on with counts before others."""
        failed = [answer for answer in answers if not answer["ok"]]
        if failed:
            worst = next((each for each in failed if each["broken"]), failed[0])
            kind = getattr(errors, worst["kind"], EngineError)
            rank = answers.index(worst)
            raise kind(worst["error"] if len(answers) == 1 else f"rank {rank}: {worst['error']}")
        return answers


def _called(engine: Any, method: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    """What all workers answer. Where the engine runs in processes of its own, its end is noticed.

    vLLM waits for the answer of a process that was killed as long as for one that works.
    """
    core = getattr(getattr(engine, "llm_engine", engine), "engine_core", None)
    resources = getattr(core, "resources", None)
    ask = partial(engine.collective_rpc, method, args=arguments)
    try:
        if resources is None:
            return list(ask())
        answers: Future[Any] = Future()
        threading.Thread(target=_into, args=(answers, ask), name="tallstore-switch", daemon=True).start()
        while not answers.done() and not resources.engine_dead:
            with contextlib.suppress(TimeoutError):
                answers.result(_LOOK)
        if answers.done():
            return list(answers.result())
    except Exception as error:
        if resources is not None and _own(error):
            until = time.monotonic() + _LOOK
            while not resources.engine_dead and time.monotonic() < until:
                time.sleep(_LOOK / 20)
        raise EngineError(_DEAD) if getattr(resources, "engine_dead", False) else _explained(error) from error
    raise EngineError(_DEAD)


async def _called_async(engine: Any, method: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    """The same."""
    asked = asyncio.ensure_future(engine.collective_rpc(method, args=arguments))
    try:
        while not asked.done() and not getattr(engine, "errored", False):
            await asyncio.wait([asked], timeout=_LOOK)
        if asked.done():
            return list(asked.result())
    except Exception as error:
        if _own(error):
            await asyncio.sleep(_LOOK)
        raise EngineError(_DEAD) if getattr(engine, "errored", False) else _explained(error) from error
    finally:
        asked.cancel()
    raise EngineError(_DEAD)


def _into(answers: Future[Any], ask: Callable[[], Any]) -> None:
    """Ask, and put what comes of it into a future."""
    try:
        answers.set_result(ask())
    except BaseException as error:  # handed over
        answers.set_exception(error)


def _own(error: Exception) -> bool:
    """Whether an error is the engine's own: one that dies calls off what it is at, and says after that that it died."""
    return not ("is not implemented" in str(error) or "has no attribute 'tallstore_" in str(error))


def _explained(error: Exception) -> EngineError:
    if not _own(error):
        return EngineError(
            f"the engine's workers cannot exchange tasks: start it with worker_extension_cls={WORKER!r} "
            "(--worker-extension-cls on the command line), or by `tallstore serve`"
        )
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"EngineDeadError", "EngineGenerateError"}:
        return EngineError(_DEAD)
    return EngineError(f"the engine's workers could not be asked ({type(error).__name__}: {error})")


def _undo(engine: Any, steps: _Steps, error: BaseException) -> None:
    """Have the workers take back what was begun; what fails in that is told with the error that it came of."""
    if str(error) == _DEAD:
        return
    try:
        _Steps.of_all(_called(engine, *steps.back))
    except Exception as second:  # told with the first
        error.add_note(f"and it could not be taken back: {second}")


async def _undo_async(engine: Any, steps: _Steps, error: BaseException) -> None:
    if str(error) == _DEAD:
        return
    try:
        _Steps.of_all(await _called_async(engine, *steps.back))
    except Exception as second:  # told with the first
        error.add_note(f"and it could not be taken back: {second}")
