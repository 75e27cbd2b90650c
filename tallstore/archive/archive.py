"""An open archive: its manifest, where each tensor lies, and what decodes it.

What the package's upper parts need of it: a task's tensors, its files and folder, subsets, statistics. `tallstore.zoo`
puts the public face over it. It is long because it is the one door to this package: most of its methods are a few
lines, a docstring and a call to the module that does the work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from tallstore.archive.adapters import MergedDecoder, adapter_files, check_merged, file_as_json, merged_files
from tallstore.archive.ancestry import step_of
from tallstore.archive.components import FolderView, components_of, layout_by_names, part_of
from tallstore.archive.decode import Decoder
from tallstore.archive.devices import on_device
from tallstore.archive.export import FORMS, SHARD, check_folder, export_folder
from tallstore.archive.facts import TensorFacts, facts_of
from tallstore.archive.load_into import decode_into
from tallstore.archive.manifests import read_manifest, summary
from tallstore.archive.memory_guard import room_for
from tallstore.archive.merging.mask_statistics import MaskStatistics, count_masks
from tallstore.archive.prefetch import announce, announce_files, parts_of
from tallstore.archive.reader import Place, Reader
from tallstore.archive.refetch import retry_after_refetch
from tallstore.archive.slices import TaskWeights
from tallstore.archive.subset import write_subset
from tallstore.archive.whole_tensors import WholeTensor, list_wholes
from tallstore.checkpoints import Checkpoint, ReferencedBase, Source, TensorInfo, open_checkpoint, referenced
from tallstore.errors import (
    NoSuchTaskError,
    NoSuchTensorError,
    OptionError,
)
from tallstore.format.data_files import check_data_file
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.layout import WeightsFile
from tallstore.format.manifest import MANIFEST, Manifest, names_of
from tallstore.stores import Access, Range, Store, open_any
from tallstore.stores.staging import translated
from tallstore.tensors import usual_device

Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")


class Archive:
    """An open archive. Opening reads the manifest alone; each task reads its own parts, when it is asked for.

    Safe to use from several threads. Use it as a context manager, or `close` it.
    """

    def __init__(
        self, store: Store, *, base: Source | None = None, threads: int | None = None, access: Access | None = None
    ) -> None:
        self._store = store
        self._manifest = read_manifest(store)
        self._base_checkpoint: Checkpoint | None = None if base is None else open_checkpoint(base, "base (in memory)")
        if self._base_checkpoint is None and access is not None and self._manifest.base.storage == "reference":
            self._base_checkpoint = referenced(self._manifest.base.source, access)
        self._reader = Reader(store, self._manifest)
        self._decoder = Decoder(self._reader, self._base_checkpoint, threads)
        self._merging = MergedDecoder(self._decoder)

    @property
    def url(self) -> str:
        """Where the archive is."""
        return self._store.url

    @property
    def store(self) -> Store:
        """Where the archive's files are read."""
        return self._store

    @property
    def base_checkpoint(self) -> Checkpoint | None:
        """The base that was given, or that a referenced one is fetched as; None where the archive's own is used."""
        return self._base_checkpoint

    @property
    def manifest(self) -> Manifest:
        """The parsed manifest."""
        return self._manifest

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(self._manifest.tasks)

    def info(self) -> dict[str, Any]:
        """What the archive holds and what it costs, as plain JSON values. Bytes are as on disk."""
        return summary(self._store, self._manifest)

    def tensors(self, task: str) -> dict[str, TensorFacts]:
        """How each tensor of a task is stored, in the checkpoint's order."""
        return {name: facts_of(self._places(task), place) for name, place in self._places(task).items()}

    def state_dict(
        self,
        task: str,
        *,
        names: Iterable[str] | re.Pattern[str] | str | None = None,
        device: str | torch.device = "cpu",
        exact: bool = False,
        component: str | None = None,
        merged: bool = False,
    ) -> dict[str, Tensor]:
        """What the fine-tuned checkpoint held: names, shapes and types included; tied tensors share their memory.

        Args:
            task: its name.
            names: decode only these tensors, or those in whose names a regular expression is found; only their bytes
                are read. Parts of tensors: `weights`.
            device: where the tensors go.
            exact: bit for bit the original, for tasks that were packed with `exact`.
            component: one of `components`, under the names that its tensors have in its own file; those of the whole
                model begin with the component's folder.
            merged: of a task that is an adapter, the base's tensors with the adapter merged into them, under the base's
                names, as PEFT merges it.

        Raises:
            NoSuchTaskError, NoSuchTensorError: with the names that there are.
            OptionError: `exact`, and the task was not packed so; no such component; `merged`, and it is no adapter, or
                one that changes no weights.
            MissingExtraError: `merged`, and the adapter is of a kind that PEFT itself must merge.
            ArchiveError: something is damaged; the message names the part and the tensor. Nothing wrong is returned.
        """
        task = self._task(task)
        if merged:
            return on_device(device, self._merged_state(task, names), f"task {task!r}")
        if component is not None:
            part = self._part(task, component)
            wanted = list(part.names) if names is None else self._chosen(task, names, list(part.names))
            held = [part.names.get(name, name) for name in wanted]
            held_state = self.state_dict(task, names=held, device=device, exact=exact)
            return dict(zip(wanted, (held_state[name] for name in held), strict=True))
        chosen = None if names is None else self._chosen(task, names, list(self._places(task)))
        self._announce(task, chosen, exact=exact)
        wanted = list(self._places(task)) if chosen is None else [self._known(task, name) for name in chosen]
        return on_device(device, self._decode(task, exact=exact)(wanted), f"task {task!r}")

    def decode_into(self, task: str, out: Mapping[str, Tensor], *, threads: int | None = None) -> None:
        """Decode tensors of a task into memory that is given, by name.

        Args:
            task: its name.
            out: contiguous CPU tensors of the tensors' shapes and types.
            threads: how many, at most; by default as many as the archive was opened with.

        Raises:
            NoSuchTaskError, NoSuchTensorError: with the names that there are.
            ModelMismatchError: the memory is of another kind; nothing was written.
            ArchiveError: something is damaged; tensors may have been written in part.
        """
        task = self._task(task)
        names = [self._known(task, name) for name in out]
        self._announce(task, names, exact=False)
        self._retry_after_refetch(decode_into, self._decoder, task, out, self.url, threads)

    def weights(self, task: str, *, device: str | torch.device = "cpu", exact: bool = False) -> TaskWeights:
        """A task's weights to be read tensor by tensor and slice by slice, as from `safetensors.safe_open`.

        So that each rank of a tensor- or pipeline-parallel engine reads its own part of the archive:
        `zoo.weights("mnist").get_slice(name)[a:b]` reads the chunks that these rows lie in, and no others.

        Args:
            task: its name.
            device: where the tensors go.
            exact: bit for bit the original, for tasks that were packed with `exact`.
        """
        task = self._task(task)
        self._check_exact(task, exact=exact)
        return TaskWeights(self._decoder.pieces, task, self.url, exact=exact, device=torch.device(device))

    def model_tensors(self, task: str) -> dict[str, TensorFacts]:
        """How each tensor of a task's model is stored: of an adapter's merged one; a tied one as what it is tied to."""
        places = self._retry_after_refetch(self._merging.task, self._task(task))
        shown = {n: places[str(p.entry.to)] if p.entry.kind == "tied" else p for n, p in places.items()}
        return {name: facts_of(places, place) for name, place in shown.items()}

    def _merged_state(self, task: str, names: Iterable[str] | re.Pattern[str] | str | None) -> dict[str, Tensor]:
        """The merged tensors of an adapter; tied ones of the base share their memory."""
        check_merged(self._manifest, self._task(task), self.url)
        places = self._retry_after_refetch(self._merging.task, task)
        wanted = list(places) if names is None else self._chosen(task, names, list(places))
        for name in wanted:
            if name not in places:
                raise NoSuchTensorError(
                    f"{self.url}: task {task!r}, merged, has no tensor {name!r}; it has {names_of(list(places))}"
                )
        self._announce_base()
        needed = sum(places[n].entry.numel * ITEM_BYTES[str(places[n].entry.dtype)] for n in wanted)
        with room_for(needed, f"{self.url}: task {task!r}, merged"):
            return self._retry_after_refetch(self._merging.tensors, task, wanted)

    def export(
        self,
        task: str,
        out: str | os.PathLike[str],
        *,
        exact: bool = False,
        component: str | None = None,
        weights_format: str = FORMS[0],
        overwrite: bool = False,
        max_shard_size: int | str = SHARD,
        merged: bool = False,
        durable: bool = True,
        progress: Progress | None = None,
    ) -> Path:
        """Write a folder with the task's `model.safetensors`, `config.json`, tokenizer files and so on.

        Stock loaders (`from_pretrained`, `safetensors.torch.load_file`) open it. It appears whole or not at all.
        Weights lie where they lay, under their own file names and with their headers' metadata; those that were files
        of torch.save become safetensors under the name that the same library knows.
        Those of more than `max_shard_size` bytes (a number, or one like 5GB) become several files and an index. One
        tensor is in memory at a time. `exact`: bit for bit the original's weights, for tasks packed with `exact`.
        `component`: one of `components` alone, as a folder of its own. `weights_format`: `torch` for files of
        torch.save under the names that those had, where a loader knows no others.

        A task that is an adapter becomes an adapter's folder, which PEFT opens; with `merged` a model's, of the base's
        files and its weights with the adapter merged into them. `durable=False` does not wait for the disk, for
        folders that are soon removed.
        """
        if weights_format not in FORMS:
            raise OptionError(f"weights_format {weights_format!r} is unknown; there are {', '.join(FORMS)}")
        task = self._task(task)
        part = self._part(task, component)
        check_folder(out, overwrite=overwrite, layout=part.layout)
        self._announce(task, None, exact=exact)
        announce_files(self._reader, task)
        record = self._manifest.tasks[task]
        layout: tuple[WeightsFile, ...] = ()
        held: Mapping[str, str]
        if merged:
            check_merged(self._manifest, task, self.url)
            self._announce_base()
            places = self._retry_after_refetch(self._merging.task, task)
            shown = {name: TensorInfo(str(p.entry.dtype), p.entry.shape or ()) for name, p in places.items()}
            files, held = merged_files(record), {name: name for name in shown}
            layout = layout_by_names(shown, partial(file_as_json, self._reader, record, f"{self.url}: task {task!r}"))
            decode: Callable[[list[str]], dict[str, Tensor]] = partial(
                self._retry_after_refetch, partial(self._merging.tensors, task)
            )
        else:
            here = self._places(task)
            facts = {name: facts_of(self._places(task), here[inner]) for name, inner in part.names.items()}
            shown = {name: TensorInfo(f.dtype, f.shape) for name, f in facts.items()}
            own = adapter_files(record)
            files = {name: path for name, path in part.files.items() if record.adapter is None or name in own}
            layout, held, decode = part.layout, part.names, self._decode(task, exact=exact)
        return export_folder(
            out,
            shown,
            lambda name: decode([held[name]])[held[name]],
            {name: partial(self._file, name, path) for name, path in files.items()},
            overwrite=overwrite,
            progress=progress,
            max_shard_size=max_shard_size,
            layout=layout,
            form=weights_format,
            durable=durable,
        )

    def components(self, task: str) -> tuple[str, ...]:
        """The folders that a task's weights lie in: '' for what lies at the model's top, `unet` and the like."""
        return components_of(self._manifest.tasks[self._task(task)])

    def names(self, task: str, component: str) -> Mapping[str, str]:
        """Names of a component's tensors in its own file → in the whole task's state dict."""
        return self._part(task, component).names

    def write_files(
        self,
        task: str,
        out: str | os.PathLike[str],
        names: Collection[str] | None = None,
        *,
        merged: bool = False,
    ) -> tuple[str, ...]:
        """Write a task's configuration, tokenizer files and so on into a folder, no weights; give their names.

        `names`: only these. `merged`: those of the model that an adapter makes of its base. All are fetched where the
        archive is far away: what needs one will soon need the others.
        """
        record = self._manifest.tasks[self._task(task)]
        files = merged_files(record) if merged else adapter_files(record)
        announce_files(self._reader, task)
        wanted = {name: path for name, path in files.items() if names is None or name in names}
        for name, path in wanted.items():
            target = Path(out) / name
            with translated(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._file(name, path))
        return tuple(wanted)

    @usual_device()
    def base_state(self, names: Collection[str]) -> dict[str, Tensor]:
        """Tensors of the base, by its own names, bit for bit; tied ones share their memory."""
        self._announce_base()
        ties = {name: to for name, to in self._decoder.base_ties().items() if to in names}
        state = self._retry_after_refetch(self._decoder.base_tensors, [name for name in names if name not in ties])
        return {name: state[ties.get(name, name)] for name in names}

    def small_file(self, task: str, name: str) -> bytes | None:
        """One of the files beside the weights of a task's model (of an adapter's, merged); None if it has no such."""
        path = merged_files(self._manifest.tasks[self._task(task)]).get(name)
        return None if path is None else self._file(name, path)

    def same_file(self, task: str, other: str, name: str) -> bool:
        """Whether two tasks' models have the same such file, or neither has one."""
        one, two = (merged_files(self._manifest.tasks[self._task(each)]).get(name) for each in (task, other))
        return one == two or self.small_file(task, name) == self.small_file(other, name)

    def write_subset(
        self,
        tasks: Sequence[str],
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Path | str:
        """Write an archive with some of the tasks, their parts as they are; whole or not at all.

        One file if the name ends in `.tall`, else a folder. With all tasks it is the same archive, byte for byte.
        """
        chosen = [self._task(name) for name in tasks]
        write = partial(write_subset, overwrite=overwrite, progress=progress)
        return self._retry_after_refetch(write, self._reader, chosen, out)

    def mask_statistics(
        self, tasks: Sequence[str] | None = None, *, progress: Progress | None = None
    ) -> MaskStatistics:
        """Which parameters the tasks use, alone and together, by tensor and by layer. Streams over the masks.

        Used is what a task adds anything to: where its mask is on and v is not 0, or its own delta is not 0. Tensors
        that are stored whole have no mask and are not counted.
        """
        chosen = self.tasks if tasks is None else tuple(self._task(name) for name in tasks)
        return count_masks(self._decoder, self._manifest, chosen, progress)

    def wholes(self, task: str) -> dict[str, WholeTensor]:
        """What a task stores whole and exact, and why: its head, small tensors, rows beyond the base's."""
        return list_wholes(self._decoder, self._manifest, self._task(task))

    def manifest_bytes(self) -> bytes:
        """`tall.json` as it is stored."""
        return bytes(self._store.read(MANIFEST, 0, self._store.size(MANIFEST)))

    def close(self) -> None:
        """Release files. Tensors that were given out stay valid."""
        self._store.close()
        if self._base_checkpoint is not None:
            self._base_checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tallstore.{type(self).__name__} {self.url!r}: {len(self.tasks)} tasks>"

    def _decode(self, task: str, *, exact: bool) -> Callable[[list[str]], dict[str, Tensor]]:
        self._check_exact(task, exact=exact)
        return partial(self._retry_after_refetch, partial(self._decoder.tensors, task, exact=exact))

    def _check_exact(self, task: str, *, exact: bool) -> None:
        facts = self._manifest.tasks[self._task(task)]
        if exact and "exact" not in facts.parts and not facts.bit_for_bit:
            raise OptionError(
                f"{self.url}: task {task!r} was not packed with exact (--exact): only its lossy weights are stored"
            )

    def _part(self, task: str, component: str | None) -> FolderView:
        where = f"{self.url}: task {self._task(task)!r}"
        return part_of(self._manifest.tasks[task], component, self._places(task), where)

    def _file(self, name: str, path: str) -> bytes:
        return check_data_file(name, self._reader.file(path), self._reader.where(path))

    def _chosen(self, task: str, names: Iterable[str] | re.Pattern[str] | str, there: Sequence[str]) -> list[str]:
        """The names that are meant, by themselves or by an expression."""
        if not isinstance(names, str | re.Pattern):
            return list(names)
        try:
            chosen = [name for name in there if re.search(names, name)]
        except re.error as error:
            raise OptionError(f"names {names!r} is no regular expression ({error})") from error
        if not chosen:
            raise NoSuchTensorError(f"{self.url}: task {task!r} has no tensor with {names!r} in its name")
        return chosen

    def _retry_after_refetch(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Work; once more where a file was fetched again, of the archive or of a referenced base."""
        with usual_device():
            return retry_after_refetch(work, *arguments, refetch_base=self._refetch_base)

    def _refetch_base(self) -> bool:
        return isinstance(self._base_checkpoint, ReferencedBase) and self._base_checkpoint.refetch()

    def announce(self, task: str) -> None:
        """Have what a task takes beside the base fetched, or read ahead of its use, while the caller goes on.

        NoSuchTaskError if it is not there. Damage is not looked for.
        """
        task = self._task(task)
        if self._store.far:
            announce(self._reader, task, None, exact=False, base=False)
            return
        parts = parts_of(self._manifest, task, base=False)
        self._store.prefetch([Range(path, 0, self._manifest.parts[path].size) for path in parts])

    def _announce(self, task: str, names: Iterable[str] | None, *, exact: bool) -> None:
        """Let a store that is far away know what a task, or some tensors of it, will read."""
        if self._store.far:
            parts = self._manifest.tasks[self._task(task)].parts
            embedded = self._base_checkpoint is None and self._manifest.base.storage == "embed"
            announce(self._reader, task, names, exact=exact and "exact" in parts, base=embedded)

    def _announce_base(self) -> None:
        """Let a store that is far away know that all of the base will be read."""
        if self._store.far and self._base_checkpoint is None:
            parts = self._manifest.base.parts
            self._store.prefetch([Range(path, 0, self._manifest.parts[path].size) for path in parts])

    def _task(self, task: str) -> str:
        if task not in self._manifest.tasks and (named := step_of(self._manifest, task)) is not None:
            return named
        if task not in self._manifest.tasks:
            raise NoSuchTaskError(f"{self.url}: no task {task!r}; there are {names_of(self.tasks)}")
        return task

    def _places(self, task: str) -> Mapping[str, Place]:
        return self._decoder.task(self._task(task))

    def _known(self, task: str, name: str) -> str:
        places = self._places(task)
        if name not in places:
            raise NoSuchTensorError(
                f"{self.url}: task {task!r} has no tensor {name!r}; it has {names_of(list(places))}"
            )
        return name


def open_archive(url: str | os.PathLike[str], *, base: Source | None = None) -> Archive:
    """An archive at a path or an address, with every other default. Raises what `tallstore.open` raises."""
    store = open_any(url)
    try:
        return Archive(store, base=base)
    except BaseException:
        store.close()
        raise
