"""A task as a transformers model: the class its configuration names, built without weights, filled with its own.

transformers itself does the loading, from the decoded state dict: names that a newer version of it calls otherwise,
ties, types and device maps are what they are for any checkpoint. An archive never chooses code: a model whose class is
not one of transformers' own needs `model_class`.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tallstore.archive import Archive
from tallstore.archive.adapters import merged_files
from tallstore.checkpoints import Source
from tallstore.errors import (
    CheckpointError,
    DeviceError,
    MissingExtraError,
    ModelMismatchError,
    NoSuchTaskError,
    OptionError,
    TallstoreError,
)
from tallstore.format.manifest import names_of
from tallstore.hub.decoded_cache import DecodedCache
from tallstore.hub.resolve import open_named
from tallstore.names import computed_by
from tallstore.stores import Access

_FOR_LOADING = frozenset(
    {
        "attn_implementation", "distributed_config", "dtype", "experts_implementation", "generation_config",
        "key_mapping", "max_memory", "offload_buffers", "offload_folder", "quantization_config", "torch_dtype",
        "tp_plan", "tp_size", "use_kernels",
    }
)  # fmt: skip
"""Words that transformers' `from_pretrained` takes for itself; all others are for the configuration, then the model."""
_REFUSED = {
    "trust_remote_code": "an archive's own code is never run: give the class with model_class=…",
    "ignore_mismatched_sizes": "loading is strict",
    "state_dict": "the weights are the archive's",
    "config": "the configuration is the archive's; single values can be given by name",
    "subfolder": "a task is chosen by task=…",
}


def from_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    task: str | None = None,
    component: str | None = None,
    model_class: type[Any] | None = None,
    device: str | int | torch.device | None = None,
    device_map: Any = None,
    base: Source | None = None,
    exact: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    keep_decoded: bool = False,
    output_loading_info: bool = False,
    **kwargs: Any,
) -> Any:
    """A task of a zoo as a transformers model, in evaluation mode.

    Args:
        name_or_path: `user/zoo` or `user/zoo@revision` on the Hub, a local archive, or an address of one.
        task: its name; may be left out where there is only one.
        component: the folder of one of its components (`text_encoder`), by default what lies at its top.
        model_class: a class of models; by default the one of transformers that the task's configuration names.
        device: where the model goes; the same as a `device_map` with one device.
        device_map: as in transformers. Maps over several devices need accelerate.
        base: the base, where the archive only references it; by default its own repository's at its own commit.
        exact: bit for bit the original's weights, for tasks that were packed so.
        revision: a branch, tag or commit of the repository.
        token: to be let in with; by default the one that the Hub's tools keep.
        endpoint: another Hub's address.
        cache_dir: where downloads are kept; by default where the Hub's tools keep theirs.
        local_files_only: take what is there, and ask no one.
        force_download: fetch again what is there.
        keep_decoded: keep the decoded weights in the Hub's cache, in the repository's folder, and map them next time:
            a task then loads as quickly as its plain checkpoint, and takes that much of the disk. Every byte is
            checked each time. For archives on the Hub; removing the repository from the cache removes them too.
        output_loading_info: give a pair, the model and what transformers says of the loading.
        **kwargs: what transformers' own `from_pretrained` takes: `dtype`, `attn_implementation` and so on; values of
            the configuration by name; and what the model's class takes.

    Raises:
        NoSuchTaskError: lists the tasks.
        ModelMismatchError: the class has other tensors than the task; names the first.
        CheckpointError: the task holds no configuration, or one that names no class of transformers.
        ArchiveError, RemoteError: the archive is damaged, or is not given.
        MissingExtraError: transformers is missing; names the command that installs it.
    """
    transformers = _transformers()
    for word, why in _REFUSED.items():
        if kwargs.get(word) not in (None, False):
            raise OptionError(f"{word} cannot be given here: {why}")
    place, spread = _placed(device, device_map)
    access = Access(
        token=token, endpoint=endpoint, cache_dir=cache_dir, local_files_only=local_files_only,
        force_download=force_download,
    )  # fmt: skip
    with open_named(name_or_path, access, revision=revision, base=base) as zoo:
        task = _only(zoo, task)
        where = f"{zoo.url}: task {task!r}"
        options = {word: kwargs.pop(word) for word in _FOR_LOADING & set(kwargs)}
        with tempfile.TemporaryDirectory(prefix="tallstore-") as folder:
            zoo.write_files(task, folder, _configurations(zoo, task), merged=True)
            place_of = Path(folder) / (component or "")
            config, rest = _config(transformers, place_of, kwargs, where)
            if "generation_config" not in options and (place_of / "generation_config.json").is_file():
                options["generation_config"] = transformers.GenerationConfig.from_pretrained(place_of)
        kind = model_class or _class(transformers, config, where)
        config.name_or_path = str(name_or_path)
        if spread is not None:
            options["device_map"] = spread
        names = zoo.names(task, component or "") if len(zoo.components(task)) > 1 else None

        def filled(state: dict[str, torch.Tensor]) -> tuple[Any, Any]:
            own = state if names is None else {name: state[held] for name, held in names.items()}
            return _filled(kind, config, {**rest, **options}, where, own)

        kept = DecodedCache(zoo, task, exact=exact) if keep_decoded else None
        made = _from_kept(kept, filled) if kept is not None and not force_download else None
        if made is None:
            adapter = zoo.manifest.tasks[task].adapter is not None
            state = zoo.state_dict(task, merged=True) if adapter else zoo.state_dict(task, exact=exact)
            if kept is not None:
                kept.keep(state)
            made = filled(state)
    model, told = made
    model.config.name_or_path = model.name_or_path = str(name_or_path)
    if place is not None:
        model = _moved(model, place, where)
    return (model, told) if output_loading_info else model


def load_processor(
    name_or_path: str | os.PathLike[str],
    *,
    task: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    **kwargs: Any,
) -> Any:
    """A task's processor, tokenizer or image processor: what transformers' `AutoProcessor` makes of its files.

    Reads the task's small files and no weights. Takes what `from_pretrained` takes for finding the zoo; `**kwargs` are
    transformers' own.

    Raises:
        NoSuchTaskError: lists the tasks.
        CheckpointError: the task was packed without such files, or transformers cannot use them.
    """
    transformers = _transformers()
    if kwargs.get("trust_remote_code"):
        raise OptionError(f"trust_remote_code cannot be given here: {_REFUSED['trust_remote_code']}")
    access = Access(
        token=token, endpoint=endpoint, cache_dir=cache_dir, local_files_only=local_files_only,
        force_download=force_download,
    )  # fmt: skip
    with open_named(name_or_path, access, revision=revision) as zoo:
        task = _only(zoo, task)
        # Some tokenizers go back to their files when they are saved: these live as long as what was made of them.
        folder = tempfile.TemporaryDirectory(prefix="tallstore-")
        names = zoo.write_files(task, folder.name, merged=True)
        where = f"{zoo.url}: task {task!r}"
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder.name, **kwargs)
    except Exception as error:  # whatever the files make transformers do
        folder.cleanup()
        listed = ", ".join(sorted(names)[:12]) or "none"
        raise CheckpointError(
            f"{where}: holds no tokenizer or processor that transformers can use (files: {listed})"
        ) from error
    weakref.finalize(processor, folder.cleanup)
    return processor


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError('models need transformers: pip install "tallstore[transformers]"') from error
    return transformers


def _only(zoo: Archive, task: str | None) -> str:
    if task is None and len(zoo.tasks) == 1:
        return zoo.tasks[0]
    if task is None or task not in zoo.tasks:
        asked = f"no task {task!r}" if task is not None else "which task?"
        raise NoSuchTaskError(f"{zoo.url}: {asked}; there are {names_of(zoo.tasks)}")
    return task


def _configurations(zoo: Archive, task: str) -> list[str]:
    """A task's files that a model, and no tokenizer, is made from."""
    return [name for name in merged_files(zoo.manifest.tasks[task]) if "config" in name and name.endswith(".json")]


def _placed(device: Any, device_map: Any) -> tuple[torch.device | None, Any]:
    """The one device of a device map, or the map itself where it is a real one."""
    if device is not None and device_map is not None:
        raise OptionError("device and device_map were both given: leave one of them out")
    place = device if device is not None else device_map
    if isinstance(place, Mapping) and set(place) == {""}:
        place = place[""]
    if place is None or isinstance(place, Mapping) or place in {"auto", "balanced", "balanced_low_0", "sequential"}:
        return None, place
    try:
        return torch.device(place), None
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device {place!r}: torch knows no such device") from error


def _config(transformers: Any, folder: Path, kwargs: Mapping[str, Any], where: str) -> tuple[Any, dict[str, Any]]:
    """The task's configuration, and the words that are not for it."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{where}: holds no config.json: load it into a module of your own (zoo.load_into)")
    try:
        config, rest = transformers.AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **kwargs)
    except Exception as error:  # whatever the file makes transformers do
        line = next(iter(str(error).splitlines()), type(error).__name__).replace(str(folder), where)
        raise CheckpointError(f"{where}: transformers cannot use its config.json ({line})") from error
    return config, dict(rest)


def _class(transformers: Any, config: Any, where: str) -> type[Any]:
    """The class that a configuration names, if it is one of transformers' models and made for it."""
    names = [str(name) for name in config.architectures or ()]
    for name in names:
        model_class: Any = getattr(transformers, name, None)
        if inspect.isclass(model_class) and issubclass(model_class, transformers.PreTrainedModel):
            made_for = getattr(model_class, "config_class", None)
            if inspect.isclass(made_for) and isinstance(config, made_for):
                return model_class
    said = f"names {', '.join(names)}, which transformers has not" if names else "names no class"
    raise CheckpointError(f"{where}: its config.json {said}: give the class with model_class=…")


def _from_kept(
    kept: DecodedCache, filled: Callable[[dict[str, torch.Tensor]], tuple[Any, Any]]
) -> tuple[Any, Any] | None:
    """A model of the weights that were kept, filled while these are checked; None where none are right."""
    state = kept.load()
    if state is None:
        return None
    try:
        made = filled(state)
    except TallstoreError:
        if kept.right():
            raise
    else:
        if kept.right():
            return made
    kept.drop()
    return None


def _filled(
    kind: type[Any], config: Any, options: dict[str, Any], where: str, state: dict[str, torch.Tensor]
) -> tuple[Any, Any]:
    """A model of the class with these weights and no others. Nothing of it is made at random on the way."""
    try:
        model, told = kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise OptionError(f"{where}: {kind.__name__} does not take all of the options ({error})") from error
    except (RuntimeError, ValueError, ImportError) as error:
        if "accelerate" in str(error):
            raise MissingExtraError(f"{where}: this device_map needs accelerate: pip install accelerate") from error
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelMismatchError(f"{where}: does not fit {kind.__name__} ({line.strip()})") from error
    computed = computed_by(model)
    told["unexpected_keys"] = [each for each in told.get("unexpected_keys") or () if not computed(str(each))]
    for key, text in (
        ("missing_keys", "the task lacks"),
        ("unexpected_keys", f"{kind.__name__} lacks"),
        ("mismatched_keys", "of another shape:"),
        ("error_msgs", "transformers says:"),
    ):
        if names := sorted(str(each) for each in told.get(key) or ()):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelMismatchError(f"{where}: does not fit {kind.__name__}: {text} {names[0]!r}{more}")
    return model, told


def _moved(model: Any, device: torch.device, where: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DeviceError(
            f"{where}: device {str(device)!r} cannot hold the model ({line}); use device='cpu'"
        ) from error
