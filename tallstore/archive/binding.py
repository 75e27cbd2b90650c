"""Which of a model's tensors each of a task's tensors is written to, by whatever names the two use.

In order: the same names; the same without wrappers; the library's own conversion between files and memory; one prefix
that all names of one side have more; each folder of a model of several modules by itself. A way counts only if every
tensor of the task finds a place of its own and every tensor of the model is written: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from torch import Tensor, nn

from tallstore.archive.reader import Place
from tallstore.errors import ModelMismatchError
from tallstore.names import (
    Conversion,
    ConvertedGroup,
    bare,
    computed_by,
    conversion_of,
    inner_model,
    short_names,
    unwrapped,
)
from tallstore.tensors import shape_of

__all__ = ["Binding", "Overlap", "Shape", "bind", "shapes_of", "tensors_of", "untold"]

Shape = tuple[int, ...]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's own parameters and buffers, by the names of its state dict; not copies."""
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def shapes_of(places: Mapping[str, Place]) -> dict[str, Shape]:
    """The shapes of a task's tensors, tied ones included."""
    shown = {n: places[str(p.entry.to)] if p.entry.kind == "tied" else p for n, p in places.items()}
    return {name: shape_of(str(place.entry.dtype), place.entry.shape or ()) for name, place in shown.items()}


@dataclass(frozen=True)
class Overlap:
    """Two tensors of a task that are written to the same memory, and which of their elements."""

    first: str
    second: str
    starts: tuple[int, int]
    """The first shared element of either."""
    length: int


@dataclass(frozen=True)
class Binding:
    """Where each of a task's tensors goes."""

    views: Mapping[str, Tensor]
    """By the task's name: memory of the model's that the tensor is written to."""
    owners: Mapping[str, str]
    """The model's tensors that these are, or are parts of."""
    groups: tuple[ConvertedGroup, ...] = ()
    """Tensors that must be converted together."""
    conversion: Conversion | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """The conversion's names of the task's tensors → the task's."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """The conversion's names of the model's tensors → the model's."""
    ignored: Collection[str] = ()
    """The task's tensors that the library leaves out when it loads."""
    unsaved: Collection[str] = ()
    """The model's tensors that the library leaves out when it saves: computed ones, which no file has."""

    @property
    def converted(self) -> list[str]:
        """The task's tensors that are no part of the model's memory."""
        return [self.names[name] for group in self.groups for _, name in group.sources]

    def convert(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors that those become."""
        converted: dict[str, Tensor] = {}
        for group in self.groups:
            assert self.conversion is not None  # there are no groups without one
            made = self.conversion.convert(group, {n: values[self.names[n]] for _, n in group.sources})
            converted |= {self.targets[name]: value for name, value in made.items() if name in self.targets}
        return converted

    def overlaps(self) -> list[Overlap]:
        """Pairs of the task's tensors that share memory of the model's."""
        spans = sorted(
            (view.data_ptr(), view.data_ptr() + view.numel() * view.element_size(), name)
            for name, view in self.views.items()
            if view.numel() and view.is_contiguous()
        )
        overlapping, last = [], None
        for start, stop, name in spans:
            if last is not None and start < last[1]:
                size = self.views[name].element_size()
                length = (min(stop, last[1]) - start) // size
                overlapping.append(Overlap(last[2], name, ((start - last[0]) // size, 0), length))
            if last is None or stop > last[1]:
                last = (start, stop, name)
        return overlapping


def bind(
    model: nn.Module, shapes: Mapping[str, Shape], task: str, free: Collection[str] = (), *, partly: bool = False
) -> Binding:
    """Find a place in a model for every tensor of a task.

    Args:
        model: its tensors must be those of the task, and no others.
        shapes: the task's tensors, tied ones included.
        task: its name, for messages.
        free: tensors whose shapes may differ.
        partly: the model may have others too.

    Raises:
        ModelMismatchError: names or shapes differ in a way that no rule explains, or memory is missing.
    """
    own = tensors_of(model)
    if lost := next((name for name, tensor in own.items() if tensor.is_meta), None):
        raise ModelMismatchError(
            f"task {task!r} cannot be written: the model's {lost!r} has no memory (device meta); "
            "give it some with model.to_empty(device='cpu'); nothing was written"
        )
    reasons: list[tuple[int, str]] = []
    for way in (_same, _unwrapped, _converted, _shifted, _folders):
        binding = way(model, shapes, own)
        if binding is None:
            continue
        count, reason = _misfit(binding, own, shapes, free, partly=partly)
        if not count:
            return binding
        reasons.append((count, reason))
    nearest = min(reasons, key=lambda each: each[0])[1]
    raise ModelMismatchError(f"task {task!r} does not fit the model: {nearest}; nothing was written")


def _renamed(names: Mapping[str, str], own: Mapping[str, Tensor], ignored: Iterable[str] = ()) -> Binding:
    """Where the task's tensors are tensors of the model by other names."""
    present = {name: target for name, target in names.items() if target in own}
    return Binding(
        {name: own[target].detach() for name, target in present.items()}, present, ignored=frozenset(ignored)
    )


def _same(model: nn.Module, shapes: Mapping[str, Shape], own: Mapping[str, Tensor]) -> Binding:
    computed = computed_by(model)
    return _renamed({name: name for name in shapes}, own, (n for n in shapes if n not in own and computed(n)))


def _unwrapped(model: nn.Module, shapes: Mapping[str, Shape], own: Mapping[str, Tensor]) -> Binding:
    """By names without wrappers, on either side."""
    targets = {short: name for name, short in short_names(own, bare).items()}
    computed = computed_by(inner_model(model))
    short_of = short_names(shapes, bare)
    ignored = (name for name, short in short_of.items() if short not in targets and computed(short))
    return _renamed({name: targets.get(short, "") for name, short in short_of.items()}, own, ignored)


def _converted(model: nn.Module, shapes: Mapping[str, Shape], own: Mapping[str, Tensor]) -> Binding | None:
    """By the library's own conversion."""
    conversion = conversion_of(inner_model(model))
    if conversion is None:
        return None
    targets = {short: name for name, short in short_names(own, unwrapped).items()}
    names = {short: name for name, short in short_names(shapes, unwrapped).items()}
    route = conversion.route(
        {short: shapes[name] for short, name in names.items()}, {short: own[name] for short, name in targets.items()}
    )
    return Binding(
        {names[short]: view for short, view in route.views.items()},
        {names[short]: targets[owner] for short, owner in route.owners.items()},
        route.groups,
        conversion,
        names,
        targets,
        frozenset(names[short] for short in route.ignored),
        frozenset(targets[short] for short in conversion.unsaved & targets.keys()),
    )


def _shifted(model: nn.Module, shapes: Mapping[str, Shape], own: Mapping[str, Tensor]) -> Binding | None:
    """By a prefix that all names of one side begin with, taken off or put in the place of the other side's."""
    targets = {short: name for name, short in short_names(own, bare).items()}
    computed = computed_by(inner_model(model))
    names = short_names(shapes, bare)
    for ours in _common_prefixes(targets):
        for theirs in _common_prefixes(names.values()):
            shifted = {name: ours + short.removeprefix(theirs) for name, short in names.items()}
            moved = {name: targets[short] for name, short in shifted.items() if short in targets}
            lost = [name for name in names if name not in moved]
            if moved and all(computed(shifted[name]) for name in lost):
                return _renamed(moved, own, lost)
    return None


def _folders(model: nn.Module, shapes: Mapping[str, Shape], own: Mapping[str, Tensor]) -> Binding | None:
    """Each folder's tensors in the module whose place its name gives, as sentence-transformers names folders.

    `2_Dense/` is the third module, `0_Router/query_0_Dense/` the first one of the route `query` of the first; what
    lies in no folder belongs to the first module.
    """
    inner = inner_model(model)
    parts: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        folder, slash, short = name.rpartition("/")
        parts.setdefault(folder + slash, {})[short] = shape
    if list(parts) == [""]:
        return None
    targets = {short: name for name, short in short_names(own, bare).items()}
    bindings = []
    for folder, within in parts.items():
        at = _module_of(inner, folder)
        if at is None:
            return None
        module = inner.get_submodule(at)
        held = {name: own[targets[full]] for name in tensors_of(module) if (full := f"{at}.{name}") in targets}
        ways = (way(module, within, held) for way in (_same, _unwrapped, _converted, _shifted))
        fits = (each for each in ways if each is not None and not _misfit(each, held, within, ())[0])
        binding = next(fits, None)
        if binding is None:
            return None
        bindings.append(_within(binding, folder, {name: targets[f"{at}.{name}"] for name in held}))
    with_groups = next((each for each in bindings if each.groups), None)
    if sum(bool(each.groups) for each in bindings) > 1:
        return None
    return Binding(
        {name: view for each in bindings for name, view in each.views.items()},
        {name: owner for each in bindings for name, owner in each.owners.items()},
        with_groups.groups if with_groups else (),
        with_groups.conversion if with_groups else None,
        with_groups.names if with_groups else {},
        with_groups.targets if with_groups else {},
        frozenset(name for each in bindings for name in each.ignored),
        frozenset(name for each in bindings for name in each.unsaved),
    )


def _module_of(model: nn.Module, folder: str) -> str | None:
    """The dotted path of the module that a folder's tensors belong to; None where its name tells of none."""
    path: list[str] = []
    for segment in folder.split("/")[:-1]:
        match = re.fullmatch(r"(?:(\w+)_)?(\d+)_\w+", segment)
        if match is None:
            return None
        route, index = match.groups()
        path += [index] if route is None else ["sub_modules", route, index]
    modules = dict(model.named_modules())
    for way in (path or ["0"], ["0", *path]):  # the first module's own folders may lie at the root
        if (at := ".".join(way)) in modules:
            return at
    return None


def _within(binding: Binding, folder: str, names: Mapping[str, str]) -> Binding:
    """A module's binding under the names of the whole model and of all folders."""
    return Binding(
        {folder + name: view for name, view in binding.views.items()},
        {folder + name: names[owner] for name, owner in binding.owners.items()},
        binding.groups,
        binding.conversion,
        {short: folder + name for short, name in binding.names.items()},
        {short: names[name] for short, name in binding.targets.items()},
        frozenset(folder + name for name in binding.ignored),
        frozenset(names[name] for name in binding.unsaved),
    )


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """What all names begin with, in whole segments: nothing at first, then more and more."""
    folders = [name.split(".")[:-1] for name in names]
    first, last = min(folders), max(folders)  # what these two share lies in between too
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    return ["".join(f"{segment}." for segment in shared[:n]) for n in range(len(shared) + 1)]


def untold(binding: Binding, own: Mapping[str, Tensor]) -> list[str]:
    """A model's tensors for which a task has nothing: not what is computed, nor what shares memory with others."""
    written = {
        *binding.unsaved,
        *binding.owners.values(),
        *(binding.targets[n] for group in binding.groups for n in group.targets),
    }
    held = {own[name].data_ptr() for name in written}
    return [n for n, tensor in own.items() if n not in written and tensor.data_ptr() not in held]


def _misfit(
    binding: Binding,
    own: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    free: Collection[str],
    *,
    partly: bool = False,
) -> tuple[int, str]:
    """How many of a task's tensors are not the model's or lack there, and the first; 0 if it fits."""
    converted = binding.converted
    missing = [n for n in shapes if n not in binding.views and n not in converted and n not in binding.ignored]
    extra = [] if partly else untold(binding, own)
    order = {name: at for at, name in enumerate(own)}
    wrong = [n for n, view in binding.views.items() if n not in free and tuple(view.shape) != shapes[n]]
    wrong.sort(key=lambda name: order[binding.owners[name]])
    count = len(missing) + len(extra) + len(wrong)
    for names, text in ((missing, "the model lacks"), (extra, "the task lacks"), (wrong, "of another shape:")):
        if names:
            first = names[0]
            shown = f" (model {list(binding.views[first].shape)}, task {list(shapes[first])})" if names is wrong else ""
            return count, f"{text} {first!r}{shown}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
    return 0, ""
