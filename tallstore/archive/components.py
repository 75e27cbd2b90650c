"""The components of a task: its weights files, whose tensors have a prefix in the archive and none in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tallstore.archive.export import weights_name
from tallstore.errors import OptionError
from tallstore.format.layout import WeightsFile, claimed
from tallstore.format.manifest import Task

__all__ = ["FolderView", "components_of", "layout_by_names", "part_of"]


@dataclass(frozen=True, kw_only=True)
class FolderView:
    """A task, or one component of it, as a folder of its own."""

    layout: tuple[WeightsFile, ...]
    names: Mapping[str, str]
    """Name of a tensor in it → in the archive."""
    files: Mapping[str, str]
    """Name of a file in its folder → path in the archive."""


def components_of(task: Task) -> tuple[str, ...]:
    """Names of a task's components: folders below the model's, or '' for what lies at its top."""
    return tuple(file.prefix.rstrip("/") for file in task.weights) or ("",)


def layout_by_names(
    names: Iterable[str], config_of: Callable[[str], Mapping[str, Any] | None]
) -> tuple[WeightsFile, ...]:
    """The weights files of a model of which nothing is recorded: one in each folder that its tensors' names begin with.

    `config_of`: gives a small file of the model's as JSON, if there is one: diffusers' say which class they are of.
    """
    folders = sorted({name[: name.rfind("/") + 1] for name in names})
    if folders == [""]:
        return ()
    layout = []
    for folder in folders:
        ours = "_class_name" in (config_of(f"{folder}config.json") or {})
        called = "diffusion_pytorch_model.safetensors" if ours else "model.safetensors"
        layout.append(WeightsFile(path=f"{folder}{called}", prefix=folder))
    return tuple(layout)


def part_of(task: Task, component: str | None, names: Iterable[str], where: str) -> FolderView:
    """The whole task for None, or one of its components.

    Raises:
        OptionError: there is no such component; lists those that there are.
    """
    layout = task.weights or (WeightsFile(path=weights_name(task.files)),)
    if component is None:
        return FolderView(layout=layout, names={name: name for name in names}, files=task.files)
    prefixes = {file.prefix.rstrip("/"): number for number, file in enumerate(layout)}
    if component not in prefixes:
        listed = ", ".join(repr(prefix) for prefix in prefixes)
        there = f"there {'is' if len(prefixes) == 1 else 'are'} {listed}" if any(prefixes) else "the model has none"
        raise OptionError(f"{where}: no component {component!r}; {there}")
    number = prefixes[component]
    file = layout[number]
    if len(layout) == 1:
        return FolderView(layout=layout, names={name: name for name in names}, files=task.files)
    below = [other.folder for other in layout if other.folder != file.folder and other.folder.startswith(file.folder)]
    inside = {
        name.removeprefix(file.folder): path
        for name, path in task.files.items()
        if name.startswith(file.folder) and not name.startswith(tuple(below))
    }
    own = replace(
        file,
        path=file.path.removeprefix(file.folder),
        prefix="",
        saved=None if file.saved is None else file.saved.removeprefix(file.folder),
    )
    return FolderView(layout=(own,), names=claimed(layout, names, where)[number], files=inside)
