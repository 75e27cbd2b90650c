"""A zoo that is open for reading."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn

from tallstore.adapters.foreign import load_adapter_into
from tallstore.archive.adapters import MergedDecoder, adapter_files, check_merged, file_as_json, merged_files
from tallstore.archive.components import Part, components_of, layout_by_names, part_of
from tallstore.archive.decode import Decoder
from tallstore.archive.export import FORMS, SHARD, check_folder, export_folder
from tallstore.archive.into import load_into
from tallstore.archive.manifests import read_manifest, summary
from tallstore.archive.merge import Evaluator, Merged, Merger, MergeReport
from tallstore.archive.needs import announce, announce_files
from tallstore.archive.reader import Place, Reader, RenewedError, once_more
from tallstore.archive.room import room_for
from tallstore.archive.statistics import MaskStatistics, count_masks
from tallstore.archive.subset import write_subset
from tallstore.archive.switch import Switcher
from tallstore.archive.verify import VerifyReport, compare, verify_archive
from tallstore.archive.weights import TaskWeights
from tallstore.archive.wholes import WholeTensor, list_wholes
from tallstore.checkpoints import Checkpoint, ReferencedBase, Source, TensorInfo, open_checkpoint, referenced
from tallstore.checkpoints.adapters import is_peft_model
from tallstore.errors import (
    DeviceError,
    FormatError,
    NoSuchTaskError,
    NoSuchTensorError,
    OptionError,
    WrongBaseError,
)
from tallstore.format import strict_json
from tallstore.format.data_files import check_data_file
from tallstore.format.dtypes import ITEM_BYTES, size_of
from tallstore.format.layout import WeightsFile, claimed
from tallstore.format.manifest import MANIFEST, Manifest, names_of
from tallstore.stores import Access, Range, Store, is_address, open_any
from tallstore.stores.staging import translated

if TYPE_CHECKING:
    from tallstore.hub import PushReport

Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """How a task's tensor is stored."""

    kind: str
    """base, binary, signed, delta, private or tied."""
    dtype: str
    shape: tuple[int, ...]
    base: str | None
    """The base tensor it comes from."""
    rows: int | None
    """Leading rows that come from the base, where the shapes differ."""
    scales: tuple[float, ...] | None
    """The scale s of each run of `chunk` elements; all 1 where None."""
    chunk: int | None
    codec: str | None
    bytes: int
    """Coded bytes."""


class Zoo:
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
        return {name: self._facts(task, place) for name, place in self._places(task).items()}

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
        if merged:
            return _on(device, self._merged_state(task, names), f"task {task!r}")
        if component is not None:
            part = self._part(task, component)
            wanted = list(part.names) if names is None else self._chosen(task, names, list(part.names))
            held = [part.names.get(name, name) for name in wanted]
            found = self.state_dict(task, names=held, device=device, exact=exact)
            return dict(zip(wanted, (found[name] for name in held), strict=True))
        chosen = None if names is None else self._chosen(task, names, list(self._places(task)))
        self._announce(task, chosen, exact=exact)
        wanted = list(self._places(task)) if chosen is None else [self._known(task, name) for name in chosen]
        return _on(device, self._decode(task, exact=exact)(wanted), f"task {task!r}")

    def _merged_state(self, task: str, names: Iterable[str] | re.Pattern[str] | str | None) -> dict[str, Tensor]:
        """The merged tensors of an adapter; tied ones of the base share their memory."""
        check_merged(self._manifest, self._task(task), self.url)
        places = self._twice(self._merging.task, task)
        wanted = list(places) if names is None else self._chosen(task, names, list(places))
        for name in wanted:
            if name not in places:
                raise NoSuchTensorError(
                    f"{self.url}: task {task!r}, merged, has no tensor {name!r}; it has {names_of(list(places))}"
                )
        self._announce_base()
        needed = sum(places[n].entry.numel * ITEM_BYTES[str(places[n].entry.dtype)] for n in wanted)
        with room_for(needed, f"{self.url}: task {task!r}, merged"):
            return self._twice(self._merging.tensors, task, wanted)

    def weights(self, task: str, *, device: str | torch.device = "cpu", exact: bool = False) -> TaskWeights:
        """A task's weights to be read tensor by tensor and slice by slice, as from `safetensors.safe_open`.

        So that each rank of a tensor- or pipeline-parallel engine reads its own part of the archive:
        `zoo.weights("mnist").get_slice(name)[a:b]` reads the chunks that these rows lie in, and no others.

        Args:
            task: its name.
            device: where the tensors go.
            exact: bit for bit the original, for tasks that were packed with `exact`.
        """
        self._check_exact(task, exact=exact)
        return TaskWeights(self._decoder.pieces, task, self.url, exact=exact, device=torch.device(device))

    def load_into(self, model: nn.Module, task: str) -> None:
        """Write a task's weights into a model's own parameters and buffers, in place and strictly.

        Values are converted to the type and device of the model's tensors. A task that is an adapter is merged into a
        plain model, with the base's weights; a PEFT model's active adapter is given its tensors.

        Raises:
            ModelMismatchError: names or shapes differ. Nothing was written.
            ArchiveError: something is damaged. Nothing was written.
        """
        self._announce(task, None, exact=False)
        if self._manifest.tasks[task].adapter is not None:
            if is_peft_model(model):
                load_adapter_into(model, self._decode(task, exact=False)(list(self._places(task))), task)
                return
            self._announce_base()
        self._twice(load_into, self._merging, model, self._task(task))

    def switcher(self, model: nn.Module, tasks: Iterable[str] | None = None) -> Switcher:
        """What makes a model any of several tasks, in place and at the speed of memory: `switch("mnist")`.

        Base and masks are read and checked now, and stay resident on the model's device: the base once, and one or
        two bits a parameter and task.

        Args:
            model: its tensors must be those of every task; only heads may differ in shape.
            tasks: to switch between; all of them by default.

        Raises:
            ModelMismatchError: names or shapes differ. Nothing was written.
            ArchiveError: something is damaged.
        """
        chosen = self.tasks if tasks is None else tuple(self._task(name) for name in tasks)
        for task in chosen:
            self._announce(task, None, exact=False)
        return self._twice(Switcher, self._merging, self._manifest, self.url, model, chosen)

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
        files and its weights with the adapter merged into them.
        """
        if weights_format not in FORMS:
            raise OptionError(f"weights_format {weights_format!r} is unknown; there are {', '.join(FORMS)}")
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
            places = self._twice(self._merging.task, task)
            shown = {name: TensorInfo(str(p.entry.dtype), p.entry.shape or ()) for name, p in places.items()}
            files, held = merged_files(record), {name: name for name in shown}
            layout = layout_by_names(shown, partial(file_as_json, self._reader, record, f"{self.url}: task {task!r}"))
            decode: Callable[[list[str]], dict[str, Tensor]] = partial(
                self._twice, partial(self._merging.tensors, task)
            )
        else:
            here = self._places(task)
            facts = {name: self._facts(task, here[inner]) for name, inner in part.names.items()}
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
        return self._twice(partial(write_subset, overwrite=overwrite, progress=progress), self._reader, chosen, out)

    def merged(
        self,
        method: str = "consensus",
        *,
        k: int | None = None,
        alpha: float | None = None,
        tasks: Sequence[str] | None = None,
        heads: str | None = None,
        device: str | torch.device = "cpu",
        evaluator: Evaluator | str | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Merged:
        """One model for several tasks: θ0 + α·δ, for all that comes from the base, in the base's types.

        Args:
            method: `arithmetic` (or `task_arithmetic`): δ = Στ. `ties`: trimmed, elected, merged by sign. `consensus`:
                the sum where at least k tasks agree.
            k: of consensus, 2 by default. 0 keeps everything, 1 drops what no task uses, 2 also what one task uses
                alone; above the number of tasks it drops everything and leaves the base.
            alpha: α. Without it, it is chosen by the evaluator from 0.1, 0.2 … 1; without one, so that α·δ is as long
                as the task vectors are, on the average.
            tasks: merge these; all of them by default.
            heads: a task whose head, and whatever else is its own, the model is given: it then has exactly the
                tensors of that task's checkpoint. Without it, heads are left out, and names are those of the tasks'
                checkpoints if all agree, else the base's.
            device: where the tensors go.
            evaluator: a callable (state dict, task name) → score, higher is better; or `module:function`. It is given
                the merged model with the task's own head. The mean over the tasks decides.
            progress: called with a text, how much is done, and of how much.
            **options: the method's own: `topk` and `merge` of ties, `source` of the others.

        Returns:
            A state dict. Its `report` says what is not in it, and whether the method had to work on decoded task
            vectors in place of the true ones.

        Raises:
            OptionError: a method, a k or an option that makes no sense.
            EvaluatorError: the evaluator cannot be found, failed, or gave no number; names the task.
        """
        merger = self._merger(
            method, k=k, alpha=alpha, tasks=tasks, head=heads, evaluator=evaluator, progress=progress, **options
        )
        needed = sum(s.info.numel * ITEM_BYTES[s.info.dtype] for s in merger.outline.slots.values())
        with room_for(needed, f"{self.url}: the merged model"):
            return Merged(_on(device, merger.state_dict(), "the merged model"), merger.report())

    def export_merged(
        self,
        out: str | os.PathLike[str],
        method: str = "consensus",
        *,
        heads: str | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> MergeReport:
        """Write a merged model as a Hugging Face folder; it appears whole or not at all.

        Takes what `merged` takes. Beside `model.safetensors` it holds the files of the head's task; without a head
        those that all tasks share and the first task's `config.json`, which may speak of that task's head. What
        the report says is in `merge.json`.
        """
        merger = self._merger(method, head=heads, progress=progress, **options)
        files = merger.files()
        read = {name: partial(self._file, name, path) for name, path in files.items()}
        export_folder(
            out,
            {name: slot.info for name, slot in merger.outline.slots.items()},
            merger.tensor,
            {**read, "merge.json": lambda: strict_json.dumps(merger.report().to_json(), indent=1) + b"\n"},
            overwrite=overwrite,
            progress=progress,
            layout=self._layout_of(heads or merger.tasks[0], merger.outline.slots),
        )
        return merger.report()

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

    def report(
        self,
        out: str | os.PathLike[str] = "report.html",
        *,
        plots: str | os.PathLike[str] | None = None,
        masks: bool = True,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write what the archive holds, costs and kept as one HTML page that needs nothing else.

        Masks are streamed: the memory it takes does not grow with the models. Needs `tallstore[report]`.

        Args:
            out: the page. It appears whole or not at all.
            plots: a folder for the same figures as SVG and PNG.
            masks: False leaves out what has to read every mask (density by layer, agreement, overlap), and takes a
                moment whatever the archive's size.
            overwrite: replace a report, or a folder of plots, that is there.
            progress: called with a text, how much is done, and of how much.

        Raises:
            MissingExtraError: with the command that installs what draws reports.
            OutputExistsError, OutputError: something is there already, or it cannot be written.
            ArchiveError: something is damaged.
        """
        from tallstore.report import write_report

        return write_report(self, out, plots=plots, masks=masks, overwrite=overwrite, progress=progress)

    def _merger(self, method: str, **options: Any) -> Merger:
        return Merger(self._decoder, self._manifest, method, **options)

    def verify(self, against: Mapping[str, Source] | None = None, *, progress: Progress | None = None) -> VerifyReport:
        """Check every byte against every hash, and what it says for sense.

        Args:
            against: original checkpoints by task: each is compared with what the archive gives back.
            progress: called with a text, bytes done, bytes in all.

        Raises:
            ArchiveError: the first thing found wrong, by part and tensor.
        """
        originals = {self._task(name): source for name, source in (against or {}).items()}
        embedded = self._manifest.base.storage == "embed"
        report = verify_archive(self._reader, self._decoder, embedded=embedded, progress=progress)
        compared = {}
        for name, source in originals.items():
            checkpoint = open_checkpoint(source, f"{name} (in memory)")
            try:
                compared[name] = compare(self._decoder, name, checkpoint)
            finally:
                checkpoint.close()
        return VerifyReport(
            files=report.files,
            bytes=report.bytes,
            tasks=report.tasks,
            unlisted=report.unlisted,
            against=compared,
        )

    def mask(self, task: str, name: str) -> Tensor:
        """A task's mask for one of its tensors, in the tensor's shape.

        bool for a binary mask; int8 (−1, 0, 1) for a signed one. All zero where the task keeps the base's tensor.
        Raises NoSuchTensorError for a tensor without a mask (one that is stored whole).
        """
        entry = self._places(task)[self._known(task, name)].entry
        if entry.kind in {"private", "tied", "delta", "lossless"}:
            raise NoSuchTensorError(f"{self.url}: task {task!r}: tensor {name!r} has no mask: it is {entry.kind}")
        with room_for(entry.numel, f"{self.url}: the mask of {name!r}"):
            symbols = self._decoder.symbols(task, name)
        if entry.kind != "signed":
            return symbols.bool()
        return (symbols == 1).to(torch.int8) - (symbols == 2).to(torch.int8)

    def vector(self, name: str, *, group: str | None = None) -> Tensor:
        """The multi-task vector for a base tensor, as the decoder uses it: float32, in the base's shape.

        `name` is the base's name of the tensor, or the tasks' name of it. `group` is needed if there are several.
        """
        base = self._base_name(name)
        with room_for(4 * math.prod(self._manifest.base.tensors[base].shape), f"{self.url}: the vector of {name!r}"):
            return self._decoder.vector_tensor(group or self._manifest.groups[0].id, base)

    def delta(self, task: str, name: str) -> Tensor:
        """A task's own quantized task vector, for a tensor of kind `delta`: float32, in the tensor's shape.

        The decoder computes round(f32(θ0) + δ) from it. Raises NoSuchTensorError for a tensor of another kind.
        """
        entry = self._places(task)[self._known(task, name)].entry
        if entry.kind != "delta":
            raise NoSuchTensorError(f"{self.url}: task {task!r}: tensor {name!r} has no delta: it is {entry.kind}")
        with room_for(4 * entry.numel, f"{self.url}: the delta of {name!r}"):
            return self._decoder.delta(task, name)

    def scales(self, task: str, name: str) -> Tensor:
        """The scale s of every element of a task's tensor: float32, in the tensor's shape; 1 where there is none."""
        entry = self._places(task)[self._known(task, name)].entry
        with room_for(4 * entry.numel, f"{self.url}: the scales of {name!r}"):
            out = torch.ones(entry.numel, dtype=torch.float32)
        if entry.scales is not None and entry.coded is not None:
            for index, scale in enumerate(entry.scales):
                out[index * entry.coded.chunk : min((index + 1) * entry.coded.chunk, entry.covered)] = scale
        return out.reshape(entry.shape or ())

    def base(self, name: str) -> Tensor:
        """A base tensor, bit for bit. `name` is the base's name of it, or the tasks' name of it."""
        base = self._base_name(name)
        self._decoder.check_base(base)
        facts = self._manifest.base.tensors[base]
        with room_for(size_of(facts.dtype, facts.shape), f"{self.url}: the base's {base!r}"):
            return self._decoder.base_tensor(base)

    def push_to_hub(self, repo_id: str, **options: Any) -> PushReport:
        """Push the archive to the Hub, in one commit. Takes what `tallstore.push` takes.

        Args:
            repo_id: `user/zoo`; made if it is not there.
            **options: commit_message, private, token, branch, create_pr, endpoint, license, picture, dry_run, progress.
        """
        from tallstore.hub import push

        return push(self, repo_id, **options)

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
        return f"<tallstore.Zoo {self.url!r}: {len(self.tasks)} tasks>"

    def _decode(self, task: str, *, exact: bool) -> Callable[[list[str]], dict[str, Tensor]]:
        self._check_exact(task, exact=exact)
        decode = self._decoder.exact_tensors if exact else self._decoder.tensors
        return partial(self._twice, partial(decode, task))

    def _check_exact(self, task: str, *, exact: bool) -> None:
        facts = self._manifest.tasks[self._task(task)]
        if exact and "exact" not in facts.parts and not facts.bit_for_bit:
            raise OptionError(f"{self.url}: task {task!r} was not packed with exact: only its masked weights are here")
        self._task(task)

    def _part(self, task: str, component: str | None) -> Part:
        where = f"{self.url}: task {self._task(task)!r}"
        return part_of(self._manifest.tasks[task], component, self._places(task), where)

    def _layout_of(self, task: str, names: Iterable[str]) -> tuple[WeightsFile, ...]:
        """A task's weights files, if they are those of a model with these tensors."""
        layout = self._manifest.tasks[task].weights
        try:
            claimed(layout, names, self.url)
        except FormatError:
            return ()
        return layout

    def _file(self, name: str, path: str) -> bytes:
        return check_data_file(name, self._reader.file(path), self._reader.where(path))

    def _chosen(self, task: str, names: Iterable[str] | re.Pattern[str] | str, there: Sequence[str]) -> list[str]:
        """The names that are meant, by themselves or by an expression."""
        if not isinstance(names, str | re.Pattern):
            return list(names)
        try:
            found = [name for name in there if re.search(names, name)]
        except re.error as error:
            raise OptionError(f"names {names!r} is no regular expression ({error})") from error
        if not found:
            raise NoSuchTensorError(f"{self.url}: task {task!r} has no tensor with {names!r} in its name")
        return found

    def _twice(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Work; once more if it met a damaged file that could be got anew, of the archive or of a referenced base."""
        try:
            return work(*arguments)
        except RenewedError:
            pass
        except WrongBaseError:
            if not isinstance(self._base_checkpoint, ReferencedBase) or not self._base_checkpoint.renew():
                raise
        return once_more(work, *arguments)

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
            self._store.want([Range(path, 0, self._manifest.parts[path].size) for path in parts])

    def _task(self, task: str) -> str:
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

    def _facts(self, task: str, place: Place) -> TensorFacts:
        entry = place.entry
        shown = (
            self._places(task)[str(entry.to)].entry
            if entry.kind == "tied" and entry.to in self._places(task)
            else entry
        )
        return TensorFacts(
            kind=entry.kind,
            dtype=str(shown.dtype),
            shape=shown.shape or (),
            base=entry.base,
            rows=entry.rows,
            scales=entry.scales,
            chunk=entry.coded.chunk if entry.coded else None,
            codec=entry.coded.codec if entry.coded else None,
            bytes=entry.coded.size if entry.coded else 0,
        )

    def _base_name(self, name: str) -> str:
        if name in self._manifest.base.tensors:
            return name
        for task in self.tasks:
            place = self._places(task).get(name)
            if place is not None and place.entry.base is not None:
                return place.entry.base
        raise NoSuchTensorError(
            f"{self.url}: neither the base nor a task has a tensor {name!r} that comes from the base"
        )


def _on(device: str | torch.device, tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors on a device; those that share memory still do."""
    target = torch.device(device)
    if target.type == "cpu":
        return tensors
    moved: dict[int, Tensor] = {}
    try:
        for tensor in tensors.values():
            moved.setdefault(id(tensor), tensor.to(target))
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise DeviceError(f"device {str(device)!r} cannot hold {what} ({line}); use device='cpu'") from error
    return {name: moved[id(tensor)] for name, tensor in tensors.items()}


def open_zoo(
    url: str | os.PathLike[str],
    *,
    base: Source | None = None,
    mapped: bool = True,
    threads: int | None = None,
    lazy: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    timeout: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Zoo:
    """Open an archive for reading, here or far away. Reads the manifest alone.

    From the Hub (`hf://user/zoo`, `hf://user/zoo@revision`), each file is fetched whole, into the Hub's own cache, when
    a task first needs it, at the commit that the revision is now; what was fetched is checked against the manifest's
    hashes. A base that is only referenced is fetched from its own repository. With `lazy`, and from any other address
    (`hf://user/repo/zoo.tall`, `https://…`, `s3://…`, what else fsspec knows), no files are kept: exactly the byte
    ranges that a task needs are read, held to their checksums, and tried again where that fails.

    Args:
        url: a folder, a `.tall` file, or an address of either.
        base: the base checkpoint, where the archive only references it. Checked, tensor by tensor, by hash.
        mapped: map files into memory. False reads plainly and in order: much quicker on network file systems.
        threads: for decoding; as many as there are cores by default.
        lazy: read from the Hub by byte range, past its cache.
        revision: branch, tag or commit on the Hub, if `url` does not say it.
        token: for the Hub: True for the stored one, False for none; by default the stored one if there is one.
        endpoint: the Hub's address, in place of HF_ENDPOINT.
        cache_dir: the Hub's cache, in place of HF_HUB_CACHE.
        local_files_only: take from the cache, or fail; HF_HUB_OFFLINE does the same.
        timeout: seconds that a range read may be silent before it is tried again.
        storage_options: for fsspec's file systems.

    Raises:
        NotAnArchiveError, VersionError, FormatError, DamagedError: what it is instead of a whole archive.
        RemoteError: the Hub or another server does not give it; its subclasses say why.
        MissingExtraError: a package is missing; names the command that installs it.
    """
    access = Access(
        token=token, endpoint=endpoint, cache_dir=cache_dir, local_files_only=local_files_only, timeout=timeout
    )
    store = open_any(url, mapped=mapped, lazy=lazy, revision=revision, access=access, storage_options=storage_options)
    try:
        return Zoo(store, base=base, threads=threads, access=access if is_address(url) else None)
    except BaseException:
        store.close()
        raise
