"""Which job the results in the working folder are of, so that a run that was cut off is taken up, and no other is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tallstore._version import WRITER
from tallstore.checkpoints import Checkpoint
from tallstore.stores import Sink
from tallstore.stores.staging import translated

_LAYOUT = 3
"""Of results: raised when what they say, or how work is cut, changes."""
JOB_BYTES = 16


class Journal:
    """The folder of one job's results, named after what it is made of."""

    def __init__(
        self, sink: Sink, base: Checkpoint, tasks: Mapping[str, Checkpoint], choices: Mapping[str, Any]
    ) -> None:
        self.target = sink.target
        marks = {name: task.fingerprint() for name, task in tasks.items()}
        facts = [WRITER, _LAYOUT, base.fingerprint(), marks, choices]
        said = json.dumps(facts, default=_plain)
        self.job = hashlib.sha256(said.encode()).digest()[:JOB_BYTES]
        with translated(sink.target):
            sink.work.mkdir(exist_ok=True)
            left = [path for path in sink.work.iterdir() if path.name != self.job.hex()]
            self.folder = sink.work / self.job.hex()
            self.resumed = self.folder.is_dir()
            """Whether an earlier run left something of this job."""
            self.folder.mkdir(exist_ok=True)
        self.warnings: Sequence[str] = ()
        if left and not self.resumed:
            self.warnings = (
                f"{sink.target}: what an earlier run left is of other inputs or options: not used, all is done anew",
            )


def _plain(value: Any) -> Any:
    """What JSON has no word for: sets in order, mappings whose keys are tuples as lists."""
    if isinstance(value, frozenset | set):
        return sorted(value)
    return repr(value)
