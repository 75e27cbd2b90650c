"""Pack a zoo: read base and tasks chunk by chunk, in one pass, and write an archive that is whole or not there."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tallstore._version import WRITER
from tallstore.adapters import TRAINERS
from tallstore.checkpoints import Checkpoint, RoundedBase, Source, opened_checkpoint
from tallstore.encoder.assembly import TensorCost, Writers
from tallstore.encoder.driver import GroupSlot, PackJob, Stream, chunk_elements, in_memory
from tallstore.encoder.engine import open_engine
from tallstore.encoder.lossless_warnings import WithoutLoss
from tallstore.encoder.match import spelled_as
from tallstore.encoder.metrics import Cheaper
from tallstore.encoder.options import LOSSLESS, Options
from tallstore.encoder.part_writer import PartWriter, write_parts
from tallstore.encoder.plan import UNMATCHED, EncodePlan, plan
from tallstore.encoder.report import PackReport, Progress, TaskReport, sentence
from tallstore.encoder.resume import Journal
from tallstore.encoder.sidecars import base_files_of, put_file, write_files
from tallstore.errors import InputError
from tallstore.format import strict_json
from tallstore.format.adapter import WEIGHTS, Adapter
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.layout import WeightsFile
from tallstore.format.manifest import MANIFEST, Base, Group, Manifest, PartRecord, Task
from tallstore.format.names import check_task_names
from tallstore.format.version import VERSION
from tallstore.humanize import parse_size
from tallstore.recipes import TallMasked
from tallstore.stores import Sink, open_sink


@dataclass(frozen=True)
class PackedArchive:
    """A finished archive, and what a caller who must keep a promise needs to know of it."""

    report: PackReport
    costs: Mapping[tuple[int, str], TensorCost]
    """(task index, base tensor) → what it costs and keeps."""


def encode(
    base: Source,
    tasks: Mapping[str, Source],
    path: str | os.PathLike[str],
    chosen: Options,
    *,
    progress: Progress | None = None,
    forms: Mapping[tuple[int, str], str] | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    slot: GroupSlot = GroupSlot(),  # noqa: B008 - frozen
    warnings: Mapping[str, Sequence[str]] | None = None,
) -> PackedArchive:
    """Write one archive, once, with one set of choices. `tallstore.pack` is this and the promises around it.

    Args:
        base: see `tallstore.pack`.
        tasks: see `tallstore.pack`.
        path: see `tallstore.pack`.
        chosen: the options.
        progress: see `tallstore.pack`.
        forms: (task index, base tensor) → a stronger form than the recipe's: a vector codec, or `whole`.
        scores: by task, what an evaluator said of it; recorded.
        slot: where the tasks will stand, if this archive is to become a part of a larger one.
        warnings: by task, what whoever asks for this archive has to say of it; recorded.
    """
    began = time.perf_counter()
    names = check_task_names(list(tasks))
    if not names:
        raise InputError("no task was given: name at least one fine-tuned model")
    with ExitStack() as stack:
        sink = stack.enter_context(
            open_sink(
                path,
                overwrite=chosen.overwrite,
                resume=chosen.resume and slot.work is None,
                storage_options=chosen.storage_options,
            )
        )
        # Before the checkpoints: workers of its own get ready while those are looked at.
        engine = stack.enter_context(open_engine(chosen.engine, chosen.workers, in_memory(len(names))))
        start = stack.enter_context(opened_checkpoint(base, "base (in memory)", chosen.storage_options))
        if chosen.base_storage == "bf16":
            start = RoundedBase(start)
        opened = {
            name: stack.enter_context(
                opened_checkpoint(tasks[name], f"{name} (in memory)", chosen.storage_options, weights=chosen.weights)
            )
            for name in names
        }
        opened = {name: spelled_as(start, task) for name, task in opened.items()}
        lossless = frozenset(range(len(names))) if chosen.quality == LOSSLESS else frozenset()
        planned = plan(start, opened, allow_distant=chosen.allow_distant, lossless=lossless, settled=slot.settled)
        recipe = chosen.make_recipe(names)
        chunk = slot.chunk or chunk_elements(len(names))
        most = parse_size(chosen.max_shard_size, "max_shard_size")
        embed, keep = chosen.base_storage != "reference", chosen.resume
        writers = Writers(sink, names, slot.group, embed=embed, most=most, keep=keep)
        exact = frozenset(names.index(name) for name in chosen.exact_tasks(names))
        choices = {
            "options": chosen.recorded(),
            "forms": sorted((forms or {}).items()),
            "exact": exact,
            "chunk": chunk,
            "slot": [slot.group, slot.first, *sorted(slot.settled)],
        }
        journal = Journal(slot.work or sink, start, opened, choices)
        job = PackJob(
            base=start,
            tasks=list(opened.values()),
            plan=planned,
            recipe=recipe,
            options=chosen,
            journal=journal,
            slot=slot,
            forms=forms or {},
            exact=exact,
            lossless=lossless,
            progress=progress,
        )
        stream = Stream(job)
        stream.run(writers, engine)
        manifest, own_warnings = _finish(sink, start, opened, stream, writers, chosen, scores or {}, slot.group)
        # What an earlier run left is said, and not recorded: an archive's bytes do not depend on how it was made.
        manifest, own_warnings = manifest.warned(warnings or {}), (*journal.warnings, *own_warnings)
        data = manifest.to_bytes()
        sink.put(MANIFEST, [data], len(data))
        sink.commit()
    seconds = time.perf_counter() - began
    divergences = [stream.divergence(index) for index in range(len(names))]
    report = _report(
        sink.target, manifest, len(data), start, opened, planned, own_warnings, seconds, stream.taken_up, divergences
    )
    return PackedArchive(report, stream.by_tensor)


def _finish(
    sink: Sink,
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    stream: Stream,
    writers: Writers,
    options: Options,
    scores: Mapping[str, Mapping[str, float]],
    group: str,
) -> tuple[Manifest, tuple[str, ...]]:
    owners: dict[tuple[str, str], tuple[PartWriter, list[str] | None]] = {}
    """(task, or nothing; kind) → writer and order."""
    if writers.base is not None and writers.base:
        owners["", "base"] = writers.base, list(base.tensors)
    if writers.vector:
        owners["", "vector"] = writers.vector, None
    for index, (name, checkpoint) in enumerate(tasks.items()):
        owners[name, "mask"] = writers.masks[index], list(checkpoint.tensors)
        if writers.privates[index]:
            owners[name, "private"] = writers.privates[index], None
        if index in stream.exact and not stream.bit_for_bit(index):
            owners[name, "exact"] = writers.exacts[index], None
    written = dict(zip(owners, write_parts(sink, list(owners.values())), strict=True))
    base_parts, vector_parts = written.pop(("", "base"), {}), written.pop(("", "vector"), {})
    parts = {**base_parts, **vector_parts}
    task_parts: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in tasks}
    for (name, kind), own in written.items():
        task_parts[name][kind] = tuple(own)
        parts |= own
    files, records = write_files(sink, tasks, base)
    parts |= records
    card = {"format": "tallstore", "version": VERSION, "tasks": list(tasks)}
    parts["config.json"] = put_file(sink, "config.json", strict_json.dumps(card, indent=1) + b"\n")
    manifest = Manifest(
        writer=WRITER,
        base=Base(
            storage="reference" if options.base_storage == "reference" else "embed",
            tensors=stream.identity,
            parts=tuple(base_parts),
            source=base.source,
        ),
        groups=(
            Group(
                id=group,
                tasks=tuple(tasks),
                parts=tuple(vector_parts),
                recipe={"id": stream.recipe.id, "kind": stream.recipe.kind},
            ),
        ),
        tasks={
            name: Task(
                group=group,
                parts=task_parts[name],
                files=files[name],
                source=checkpoint.source,
                **_as_written(checkpoint, files[name]),
                measured=_measured(name, index, checkpoint, task_parts[name], files[name], parts, stream)
                | ({"scores": _scores(scores[name], bit_for_bit=stream.bit_for_bit(index))} if name in scores else {}),
            )
            for index, (name, checkpoint) in enumerate(tasks.items())
        },
        parts=parts,
        options=options.recorded(),
    )
    warned = [
        f"{checkpoint.where}: {warning}"
        for checkpoint, warnings in zip(tasks.values(), stream.plan.warnings, strict=True)
        for warning in warnings
    ]
    left = [f"{c.where}: not taken along: {_listed(c.left_out)}" for c in tasks.values() if c.left_out]
    return manifest, (*warned, *left)


def _listed(left_out: Mapping[str, str]) -> str:
    """Each file that is left out, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in by_reason.items())


def _as_written(checkpoint: Checkpoint, files: Mapping[str, str]) -> dict[str, Any]:
    """What a task's record says of its weights files, and of an adapter."""
    if checkpoint.adapter is None:
        return {"weights": checkpoint.layout}
    kind = checkpoint.adapter.type
    return {
        "adapter": Adapter(type=kind, base_files=base_files_of(checkpoint, files)),
        "weights": checkpoint.layout if kind in TRAINERS else (WeightsFile(path=WEIGHTS),),
    }


def _measured(
    name: str,
    index: int,
    checkpoint: Checkpoint,
    own: Mapping[str, tuple[str, ...]],
    files: Mapping[str, str],
    parts: Mapping[str, PartRecord],
    stream: Stream,
) -> dict[str, Any]:
    pulled = [path for kind, paths in own.items() if kind != "exact" for path in paths]
    paths = pulled + [path for path in files.values() if path.startswith(f"tasks/{name}/")]
    lam = stream.recipe.lam(index) if isinstance(stream.recipe, TallMasked) else None
    return {
        **_lossless(stream.quality[index].measured(), stream, index),
        **({"bit_for_bit": True} if stream.bit_for_bit(index) else {}),
        **({"cheaper_without_loss": asdict(cheaper)} if (cheaper := stream.cheaper[index]).tensors else {}),
        **({} if checkpoint.adapter is None else {"relative_error": 0.0, "cosine": 1.0}),
        **({"divergence": stream.divergence(index)} if stream.says_divergence(index) else {}),
        **({"lambda": lam} if lam is not None else {}),
        **({"exact_bytes": sum(parts[path].size for path in own["exact"])} if "exact" in own else {}),
        **({"left_out": dict(checkpoint.left_out)} if checkpoint.left_out else {}),
        **({"unmatched": share} if (share := stream.plan.unmatched[index]) > UNMATCHED else {}),
        **({"warnings": list(warnings)} if (warnings := stream.plan.warnings[index]) else {}),
        "parameters": sum(info.numel for info in checkpoint.tensors.values()),
        "checkpoint_bytes": tensor_bytes(checkpoint, stream.plan.ties[index]),
        "bytes": sum(parts[path].size for path in paths),
    }


def _scores(scores: Mapping[str, float], *, bit_for_bit: bool) -> dict[str, float]:
    """What is recorded of an evaluator's scores: what comes back bit for bit scores what the original does."""
    return dict.fromkeys(scores, scores["original"]) if bit_for_bit and "original" in scores else dict(scores)


def _lossless(measured: dict[str, Any], stream: Stream, index: int) -> dict[str, Any]:
    """What was measured, and of tensors that no error is measured of, since they are coded without loss."""
    lossless = stream.without_loss[index]
    if lossless is None:
        return measured
    if measured["relative_error"] is None and lossless.coded_bytes:
        measured |= {"relative_error": 0.0, "cosine": 1.0}
    return measured | {"without_loss": asdict(lossless)}


def tensor_bytes(checkpoint: Checkpoint, ties: Collection[str]) -> int:
    """Bytes that a checkpoint's tensors take, tied ones once."""
    return sum(i.numel * ITEM_BYTES[i.dtype] for n, i in checkpoint.tensors.items() if n not in ties)


def _report(
    path: Path | str,
    manifest: Manifest,
    manifest_bytes: int,
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    planned: EncodePlan,
    warnings: tuple[str, ...],
    seconds: float,
    taken_up: int,
    predicted_divergence: Sequence[float | None],
) -> PackReport:
    by_kind = manifest.bytes_by_kind(manifest_bytes)
    return PackReport(
        path=path,
        tasks={
            name: TaskReport(
                bytes=task.measured["bytes"],
                relative_error=task.measured["relative_error"],
                cosine=task.measured["cosine"],
                divergence=predicted_divergence[index],
                density=task.measured["density"],
                parameters=task.measured["parameters"],
                private={tensor: sentence(whole.why) for tensor, whole in planned.private[index].items()},
                missing=planned.missing[index],
                without_loss=WithoutLoss(**told) if (told := task.measured.get("without_loss")) else None,
                cheaper=Cheaper(**told) if (told := task.measured.get("cheaper_without_loss")) else None,
                unmatched=planned.unmatched[index],
                adapter=task.adapter.type if task.adapter is not None else None,
                left_out=tasks[name].left_out,
            )
            for index, (name, task) in enumerate(manifest.tasks.items())
        },
        bytes=by_kind,
        checkpoints_bytes=tensor_bytes(base, planned.base_ties)
        + sum(tensor_bytes(task, ties) for task, ties in zip(tasks.values(), planned.ties, strict=True)),
        bits_per_parameter=manifest.bits_per_parameter(manifest_bytes),
        seconds=seconds,
        warnings=warnings,
        taken_up=taken_up,
    )
