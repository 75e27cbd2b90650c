"""New tasks that are made of others: of tasks that the archive holds, or of new ones that are packed beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from tallstore.archive.checkpoint import ArchiveTask
from tallstore.archive.decode import Decoder
from tallstore.archive.splice import SplicedArchive, joined_archive
from tallstore.checkpoints import Checkpoint, Source, opened_checkpoint
from tallstore.editing.change import Change
from tallstore.encoder import Options, Progress, TaskReport
from tallstore.encoder.options import LOSSLESS
from tallstore.errors import NoSuchTaskError, OptionError
from tallstore.format.manifest import depth_of, names_of
from tallstore.format.relatives import Relatives
from tallstore.packing.choose_parents import CHAIN
from tallstore.packing.find_combinations import LinearFit, find_combinations
from tallstore.packing.relative_packer import RelativePacker, relatives_of

__all__ = ["AddedRelatives"]

_MOST = 64
"""Tasks of an archive that are compared with new ones: more would take longer than they save."""
_MERGED = 2
"""Tasks at the end of so long a chain are not looked at: a merge of them would be too dear to decode."""


class AddedRelatives:
    """Finds and packs those tasks of one change that are made of others."""

    def __init__(
        self, change: Change, stack: ExitStack, base: Checkpoint, options: Options, progress: Progress | None
    ) -> None:
        self.reports: dict[str, TaskReport] = {}
        self._change, self._stack, self._base, self._options = change, stack, base, options
        self._progress = progress
        self._said: set[str] = set()
        self._opened: dict[str, Checkpoint] = {}

    def find(self, tasks: Mapping[str, Source], parents: Mapping[str, str]) -> dict[str, Relatives]:
        """What each is made of, of those that are: as was said, or as samples tell."""
        manifest, options = self._change.manifest, self._options
        for name, parent in parents.items():
            self._check(name, parent, parents, tasks)
        self._said = set(parents)
        said = {name: relatives_of(LinearFit(weights={parent: 1.0}, explained=1.0)) for name, parent in parents.items()}
        promised = options.evaluate is not None or options.max_error is not None or bool(options.exact)
        rest = {name: source for name, source in tasks.items() if name not in parents}
        if not options.relatives or options.recipe != "solo" or promised or not rest:
            return said
        opened = {name: self._open(name, source) for name, source in rest.items()}
        if self._base.far or any(each.far for each in opened.values()):
            return said
        given = None if manifest.base.storage == "embed" else self._base
        decoder = Decoder(self._change.reader, given, 1)
        known = {
            name: ArchiveTask(decoder, name, name)
            for name, task in list(manifest.tasks.items())[-_MOST:]
            if task.adapter is None and depth_of(self._change.manifest, name) < _MERGED
        }
        # With some loss a parent makes a child better, and hardly smaller: that is for users to say.
        parents_of = None
        if options.quality == LOSSLESS:
            parents_of = {name: depth_of(self._change.manifest, name) for name in known} | dict.fromkeys(opened, 0)
        combinations = find_combinations(self._base, opened, known, parents=parents_of)
        return said | {name: relatives_of(each) for name, each in combinations.items()}

    def pack(
        self, tasks: Mapping[str, Source], related: Mapping[str, Relatives], beside: Sequence[SplicedArchive]
    ) -> list[SplicedArchive]:
        """Those that are made of what the archive holds, of new ones that were packed beside it, or of each other.

        What is none after all is left out.
        """
        if not related:
            return []
        archive = joined_archive(self._change.archive, beside)
        packer = RelativePacker(self._stack, self._change.sink, self._base, archive, self._options, self._progress)
        made = packer.pack({name: self._open(name, tasks[name]) for name in related}, related, said=self._said)
        self.reports |= {name: each[0] for name, each in made.items()}
        return [each[1] for each in made.values()]

    def _open(self, name: str, source: Source) -> Checkpoint:
        if name not in self._opened:
            how = {"weights": self._options.weights}
            opened = opened_checkpoint(source, f"{name} (in memory)", self._options.storage_options, **how)
            self._opened[name] = self._stack.enter_context(opened)
        return self._opened[name]

    def _check(self, name: str, parent: str, parents: Mapping[str, str], tasks: Mapping[str, Source]) -> None:
        """Raise for a parent that cannot be one."""
        manifest = self._change.manifest
        if name not in tasks:
            raise OptionError(f"a parent is given for {name!r}, which is not added")
        if parent not in manifest.tasks and parent not in tasks:
            raise NoSuchTaskError(
                f"{self._change.path}: no task {parent!r} to be a parent; there are {names_of(list(manifest.tasks))}"
            )
        for task in (name, parent):
            of = self._open(task, tasks[task]) if task in tasks else manifest.tasks[task]
            if of.adapter is not None:
                raise OptionError(f"{task!r} is an adapter: only models have parents, and only models are parents")
        above = [name]
        while parents.get(above[-1]):
            if (other := parents[above[-1]]) in above:
                raise OptionError(f"parents {names_of([*above, other])} go round in a circle")
            above.append(other)
        known = depth_of(self._change.manifest, above[-1]) if above[-1] in manifest.tasks else 0
        if len(above) - 2 + known >= CHAIN:
            raise OptionError(
                f"parent {parent!r} is itself at the end of a chain of {CHAIN}: name one of those that it is made of"
            )
