"""Which cores a thread of an engine's worker may run on.

An engine that binds its own threads to one core each binds the whole process, and threads that start later inherit it:
decoding would have them all on one core. vLLM besides keeps a core free for the process that it is asked through, which
waits while a task is exchanged.
"""

from __future__ import annotations

import contextlib
import os
from itertools import count
from pathlib import Path

__all__ = ["cores", "unbind"]

_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
_PLACES = ("OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""How vLLM has a worker bound, in its environment."""
_turns = count(1)


def cores() -> set[int]:
    """Those that any of the process's threads may use; where vLLM itself chose, those that it chose from.

    Where a user said which ones (`VLLM_CPU_OMP_THREADS_BIND`), no others are used.
    """
    allowed: set[int] = set()
    if not hasattr(os, "sched_getaffinity"):
        return allowed
    with contextlib.suppress(OSError):
        for each in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that ended meanwhile
                allowed |= os.sched_getaffinity(int(each.name))
        if os.environ.get(_BINDING, "auto") == "auto" and any(name in os.environ for name in _PLACES):
            allowed |= os.sched_getaffinity(os.getppid())  # the process that started this worker
    return allowed


def unbind() -> None:
    """Let the calling thread, and those that it starts, run on all of them. It begins on the next in turn.

    A thread that may move is left for a while where it was started by a system that weighs cores now and then.
    """
    allowed = cores()
    if len(allowed) < 2:
        return
    first = sorted(allowed)[next(_turns) % len(allowed)]
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {first})
        os.sched_setaffinity(0, allowed)
