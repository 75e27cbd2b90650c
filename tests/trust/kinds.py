"""All that can be damaged of one kind of archive: a job for a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from support import bytes_of

import tallstore

from .damage import Counts, Trial, content, cut_file, flip_base, flip_file, own_places
from .small_zoos import write


def damage_all(job: tuple[str, bool]) -> tuple[str, Counts]:
    """Of a kind, as a folder and as a file, with the base beside it. `job`: the kind, and whether to flip all bits."""
    kind, bits = job
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, base = write(kind, Path(scratch))
        other, _ = write(kind, Path(scratch), seed=1)
        trial = Trial(bytes_of(folder), base)
        trial.flip_all(range(8) if bits else ())
        trial.cut_all()
        trial.mix(bytes_of(other))
        with tallstore.open(folder, base=base) as zoo:
            wanted = content(zoo)
            data = zoo.write_subset(zoo.tasks, Path(scratch) / "one.tall").read_bytes()
        counts = (
            trial.counts
            + flip_file(data, wanted, Path(scratch), base, own_places(data))
            + cut_file(data, Path(scratch))
        )
        if base is not None:
            counts += flip_base(folder, base, wanted, Path(scratch) / "in0")
        return kind, counts
