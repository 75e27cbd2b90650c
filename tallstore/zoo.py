"""`tallstore.open` and what it gives: the public face over archives, models, merging, reports and the Hub."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from tallstore.adapters.peft_merge import load_adapter_into
from tallstore.archive.archive import Archive
from tallstore.archive.compare import compare
from tallstore.archive.devices import on_device
from tallstore.archive.export import export_folder
from tallstore.archive.load_into import load_into
from tallstore.archive.memory_guard import room_for
from tallstore.archive.merging.merger import Evaluator, Merged, MergeOptions, Merger, MergeReport
from tallstore.archive.switch import Switcher
from tallstore.archive.thin_folder import export_thin
from tallstore.archive.verify import VerifyReport, verify_archive
from tallstore.checkpoints import Source, open_checkpoint
from tallstore.checkpoints.adapters import is_peft_model
from tallstore.errors import (
    FormatError,
    NoSuchTensorError,
)
from tallstore.format import strict_json
from tallstore.format.dtypes import ITEM_BYTES, size_of
from tallstore.format.layout import WeightsFile, claimed
from tallstore.format.part import CONDITIONAL_KINDS
from tallstore.stores import Access, is_address, open_any
from tallstore.tensors import usual_device

if TYPE_CHECKING:
    from tallstore.hub import PushReport
    from tallstore.serving import MultitaskModel

Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")


class Zoo(Archive):
    """An open archive. Opening reads the manifest alone; each task reads its own parts, when it is asked for.

    Safe to use from several threads. Use it as a context manager, or `close` it.
    """

    def load_into(self, model: nn.Module, task: str) -> None:
        """Write a task's weights into a model's own parameters and buffers, in place and strictly.

        Values are converted to the type and device of the model's tensors. A task that is an adapter is merged into a
        plain model, with the base's weights; a PEFT model's active adapter is given its tensors.

        Raises:
            ModelMismatchError: names or shapes differ. Nothing was written.
            ArchiveError: something is damaged. Nothing was written.
        """
        task = self._task(task)
        self._announce(task, None, exact=False)
        if self._manifest.tasks[task].adapter is not None:
            if is_peft_model(model):
                load_adapter_into(model, self._decode(task, exact=False)(list(self._places(task))), task)
                return
            self._announce_base()
        self._retry_after_refetch(load_into, self._merging, model, self._task(task))

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
        return self._retry_after_refetch(Switcher, self._merging, self._manifest, self.url, model, chosen)

    def multitask(
        self,
        model: nn.Module,
        tasks: Iterable[str] | None = None,
        *,
        write_base: bool = False,
        decoded_bytes: int = 1 << 26,
    ) -> MultitaskModel:
        """A model that computes each row of a batch with a task's own weights: `forward(…, tasks=["mnist", …])`.

        What tasks add to the base is read and checked now, and stays packed in memory: about as many bytes as it has
        in the archive. The model given stays as it is, and its parameters are used.

        Args:
            model: one that holds the base's weights; heads, and what else tasks store whole, may be any.
            tasks: that rows can be; all of them by default.
            write_base: write the base's weights into the model first, where it does not hold them.
            decoded_bytes: memory for what cannot be computed from any packed form (float32 without loss, adapters,
                tensors that the library converts): it is decoded when a layer needs it, and what was used last is kept.

        Raises:
            ModelMismatchError: names or shapes differ, or the model does not hold the base. It is as it was.
            ArchiveError: something is damaged.
        """
        from tallstore.serving import MultitaskModel

        chosen = self.tasks if tasks is None else tuple(self._task(name) for name in tasks)
        for task in chosen:
            self._announce(task, None, exact=False)
        records = self._manifest.tasks
        adapters = {task: records[task].adapter is not None for task in chosen}
        make = partial(MultitaskModel, decoded_bytes=decoded_bytes, write=write_base)
        return self._retry_after_refetch(make, self._merging, self.url, model, adapters)

    @usual_device()
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
            return Merged(on_device(device, merger.state_dict(), "the merged model"), merger.report())

    @usual_device()
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

    def export_thin(
        self,
        task: str,
        out: str | os.PathLike[str],
        *,
        exact: bool = False,
        base: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a folder of the task's small files that names this archive in the place of weights.

        After `import tallstore`, transformers' own `from_pretrained` loads it as any model. Of an adapter it is the
        model that it makes of its base. The archive is named by its address or its absolute path; where the folder
        lies below the folder that the archive is in, by the path from one to the other.

        Args:
            task: its name.
            out: the folder; it appears whole or not at all.
            exact: load bit for bit the original's weights, for tasks that were packed so.
            base: where the base is, if the archive only references it and its own repository is not to be asked.
            overwrite: replace a model folder that is there.

        Raises:
            OptionError: the task is no model of transformers with its weights at its top.
        """
        self._check_exact(task, exact=exact)
        return export_thin(self, self._task(task), out, exact=exact, base=base, overwrite=overwrite)

    def _merger(self, method: str, **options: Any) -> Merger:
        return Merger(self._decoder, self._manifest, MergeOptions.of(method, options))

    @usual_device()
    def verify(self, against: Mapping[str, Source] | None = None, *, progress: Progress | None = None) -> VerifyReport:
        """Check every byte against every hash, and what it says for sense.

        Args:
            against: original checkpoints by task: each is compared with what the archive gives back.
            progress: called with a text, bytes done, bytes in all.

        Raises:
            ArchiveError: the first thing found wrong, by part and tensor.
        """
        originals = {self._task(name): source for name, source in (against or {}).items()}
        report = verify_archive(self._reader, self._decoder.given_base, progress=progress)
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

    @usual_device()
    def mask(self, task: str, name: str) -> Tensor:
        """A task's mask for one of its tensors, in the tensor's shape.

        bool for a binary mask; int8 (−1, 0, 1) for a signed one. All zero where the task keeps the base's tensor.
        Raises NoSuchTensorError for a tensor without a mask: most by default, which is recipe `solo`, are kept as a
        `delta`, `sampled`, `lossless` or, whole, `private`.
        """
        entry = self._places(task)[self._known(task, name)].entry
        if entry.kind in CONDITIONAL_KINDS | {"private", "tied", "delta"} or entry.start is not None:
            what = entry.kind if entry.start is None else "made of other tasks'"
            raise NoSuchTensorError(
                f"{self.url}: task {task!r}: tensor {name!r} has no mask: it is {what}; "
                f"zoo.state_dict({task!r}) has its weights"
            )
        with room_for(entry.numel, f"{self.url}: the mask of {name!r}"):
            symbols = self._decoder.symbols(task, name)
        if entry.kind != "signed":
            return symbols.bool()
        return (symbols == 1).to(torch.int8) - (symbols == 2).to(torch.int8)

    @usual_device()
    def vector(self, name: str, *, group: str | None = None) -> Tensor:
        """The multi-task vector for a base tensor, as the decoder uses it: float32, in the base's shape.

        `name` is the base's name of the tensor, or the tasks' name of it. `group` is needed if there are several.
        """
        base = self._base_name(name)
        with room_for(4 * math.prod(self._manifest.base.tensors[base].shape), f"{self.url}: the vector of {name!r}"):
            return self._decoder.vector_tensor(group or self._manifest.groups[0].id, base)

    @usual_device()
    def delta(self, task: str, name: str) -> Tensor:
        """A task's own quantized task vector, for a tensor of kind `delta`: float32, in the tensor's shape.

        The decoder computes round(f32(θ0) + δ) from it. Raises NoSuchTensorError for a tensor of another kind.
        """
        entry = self._places(task)[self._known(task, name)].entry
        if entry.kind != "delta" or entry.start is not None:
            what = entry.kind if entry.start is None else "made of other tasks'"
            raise NoSuchTensorError(f"{self.url}: task {task!r}: tensor {name!r} has no delta: it is {what}")
        with room_for(4 * entry.numel, f"{self.url}: the delta of {name!r}"):
            return self._decoder.delta(task, name)

    @usual_device()
    def scales(self, task: str, name: str) -> Tensor:
        """The scale s of every element of a task's tensor: float32, in the tensor's shape; 1 where there is none."""
        entry = self._places(task)[self._known(task, name)].entry
        with room_for(4 * entry.numel, f"{self.url}: the scales of {name!r}"):
            out = torch.ones(entry.numel, dtype=torch.float32)
        if entry.scales is not None and entry.coded is not None:
            for index, scale in enumerate(entry.scales):
                out[index * entry.coded.chunk : min((index + 1) * entry.coded.chunk, entry.covered)] = scale
        return out.reshape(entry.shape or ())

    @usual_device()
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

    def _layout_of(self, task: str, names: Iterable[str]) -> tuple[WeightsFile, ...]:
        """A task's weights files, if they are those of a model with these tensors."""
        layout = self._manifest.tasks[task].weights
        try:
            claimed(layout, names, self.url)
        except FormatError:
            return ()
        return layout

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
