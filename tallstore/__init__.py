"""tallstore: pack a zoo of fine-tuned models into one archive, and get any task's weights back on demand.

    report = tallstore.pack(base, {"mnist": folder, …}, "zoo.tall")
    zoo = tallstore.open("zoo.tall")
    zoo.state_dict("mnist")
    tallstore.add("zoo.tall", {"svhn": folder})

Names are loaded when they are first used, so that importing the package costs nothing. transformers, loaded before or
after, then also knows thin folders: `AutoModel.from_pretrained` takes them as any other.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tallstore._version import __version__
from tallstore.engines.on_import import register_with_transformers

if TYPE_CHECKING:
    from tallstore import errors, report
    from tallstore.archive import TensorFacts, VerifyReport
    from tallstore.editing import CompactReport, GrowReport, add, add_merge, add_run, compact, remove
    from tallstore.encoder import Options, PackReport, TaskReport
    from tallstore.errors import TallstoreError
    from tallstore.hub import PullReport, PushReport, from_pretrained, load_processor, pull, push
    from tallstore.packing import pack
    from tallstore.zoo import Zoo
    from tallstore.zoo import open_zoo as open  # noqa: A004 - `tallstore.open` is the name users expect

__all__ = [
    "CompactReport",
    "GrowReport",
    "Options",
    "PackReport",
    "PullReport",
    "PushReport",
    "TallstoreError",
    "TaskReport",
    "TensorFacts",
    "VerifyReport",
    "Zoo",
    "__version__",
    "add",
    "add_merge",
    "add_run",
    "compact",
    "errors",
    "from_pretrained",
    "load_processor",
    "open",
    "pack",
    "pull",
    "push",
    "remove",
    "report",
]

_WHERE = {
    "CompactReport": ("tallstore.editing", "CompactReport"),
    "GrowReport": ("tallstore.editing", "GrowReport"),
    "Options": ("tallstore.encoder", "Options"),
    "PackReport": ("tallstore.encoder", "PackReport"),
    "PullReport": ("tallstore.hub", "PullReport"),
    "PushReport": ("tallstore.hub", "PushReport"),
    "TallstoreError": ("tallstore.errors", "TallstoreError"),
    "TaskReport": ("tallstore.encoder", "TaskReport"),
    "TensorFacts": ("tallstore.archive", "TensorFacts"),
    "VerifyReport": ("tallstore.archive", "VerifyReport"),
    "Zoo": ("tallstore.zoo", "Zoo"),
    "add": ("tallstore.editing", "add"),
    "add_merge": ("tallstore.editing", "add_merge"),
    "add_run": ("tallstore.editing", "add_run"),
    "compact": ("tallstore.editing", "compact"),
    "from_pretrained": ("tallstore.hub", "from_pretrained"),
    "load_processor": ("tallstore.hub", "load_processor"),
    "open": ("tallstore.zoo", "open_zoo"),
    "pack": ("tallstore.packing", "pack"),
    "pull": ("tallstore.hub", "pull"),
    "push": ("tallstore.hub", "push"),
    "remove": ("tallstore.editing", "remove"),
}


register_with_transformers()


def __getattr__(name: str) -> Any:
    if name in {"errors", "report"}:
        return importlib.import_module(f"tallstore.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'tallstore' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
