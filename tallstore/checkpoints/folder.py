"""What a model's folder is: its components in folders below it, the weights of each, and what else is there.

A folder that says of what it consists (`model_index.json`, `modules.json`, …) has the components that it names. Of
any other, a folder below that has weights is a component, unless these are the model's own once more.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from tallstore.checkpoints.companions import why_skipped, why_skipped_folder
from tallstore.checkpoints.weights_files import Weights, list_weights, order
from tallstore.errors import CheckpointError

__all__ = ["Component", "Survey", "is_model_folder", "kind_of", "survey"]

_ADAPTERS = {"adapter_model.safetensors", "adapter_model.bin"}
_WITH_WEIGHTS = {"Dense", "LSTM", "CNN", "LayerNorm", "Transformer", "StaticEmbedding", "SparseAutoEncoder"}
"""Modules of sentence-transformers that are nothing without weights."""
_NO_WEIGHTS = {"a state of the training", "weights in another form", "hidden"}
_MARKERS = ("model_index.json", "modules.json", "router_config.json", "plans.json")


@dataclass(frozen=True, kw_only=True)
class Component:
    """A weights file, or shards of one, of a model."""

    folder: str
    """Where it lies below the model's folder, with a slash behind it; nothing for the folder itself."""
    weights: Weights
    listed: bool
    """Whether the model says that it belongs to it; if not, its tensors tell."""
    asked: bool = False
    """Whether it is the variant that was asked for."""
    extra: bool = False
    """Whether it lies beside other weights of that folder."""

    @property
    def prefix(self) -> str:
        """What is put before its tensors' names."""
        return f"{self.folder}{self.weights.name}/" if self.extra else self.folder


@dataclass
class Survey:
    """What a folder holds."""

    root: Path
    components: list[Component] = field(default_factory=list)
    """The first is the one at the top, if there is one."""
    others: list[str] = field(default_factory=list)
    """Files that are no weights of it, which may travel."""
    left_out: dict[str, str] = field(default_factory=dict)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is a model and not one of several: it has weights at its top, or says of what it consists."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    if any(name in names for name in _MARKERS) or any(name in names for name in _ADAPTERS):
        return True
    try:
        return bool(list_weights(folder, [name for name in names if why_skipped(name) != "a state of the training"]))
    except CheckpointError:
        return True  # one that is not whole; whoever opens it says so


def survey(root: Path, weights: str | None = None) -> Survey:
    """Look into a model's folder. Nothing is read but small files and the first bytes of others.

    Args:
        root: the folder.
        weights: a variant (`fp16`), where a folder holds one and is to be taken in it.

    Raises:
        CheckpointError: no weights, weights that are not whole, components that are missing, or several models.
    """
    out = Survey(root)
    folders = _walk(root, out)
    _refuse_distributed(root, folders, out)
    by_folder, broken = _weights_by_folder(root, folders)
    if not by_folder.get("") and not broken.get("") and (inner := _only_model_below(root, by_folder, folders, out)):
        return inner
    listed = _listed(root, by_folder)
    for folder, names in folders.items():
        named = folder == "" or (listed is not None and any(folder.startswith(f"{name}/") for name in listed))
        if folder in broken and named:
            raise broken[folder]
        used: set[str] = set()
        if folder in broken:
            out.left_out |= dict.fromkeys(
                (f"{folder}{name}" for name in names if why_skipped(name)), str(broken[folder])
            )
        elif by_folder[folder]:
            used = _pick(root, folder, by_folder[folder], weights, out, listed=named)
        out.others += [
            f"{folder}{name}" for name in names if name not in used and f"{folder}{name}" not in out.left_out
        ]
    _check_complete(root, out)
    out.components.sort(key=lambda component: not component.listed)
    return out


def _walk(root: Path, out: Survey) -> dict[str, list[str]]:
    """Files by folder, but for those of folders that cannot belong to the model: these are named.

    What the model itself says that it consists of belongs to it, whatever it is called.
    """
    folders: dict[str, list[str]] = {}
    own = {str(parent) for name in _named_folders(root) for parent in (Path(name), *Path(name).parents)}
    for place, below, names in os.walk(root):
        folder = Path(place).relative_to(root).as_posix()
        prefix = "" if folder == "." else f"{folder}/"
        for name in sorted(below):
            why = "a link to a folder" if (Path(place) / name).is_symlink() else why_skipped_folder(name)
            if why is not None and (why == "a link to a folder" or f"{prefix}{name}" not in own):
                below.remove(name)
                out.left_out |= _below(Path(place) / name, f"{prefix}{name}/", why)
        below.sort()
        folders[prefix] = sorted(name for name in names if (Path(place) / name).is_file())
        odd = [name for name in names if name not in folders[prefix]]
        out.left_out |= dict.fromkeys((f"{prefix}{name}" for name in odd), "no file that can be read")
    return folders


def _below(folder: Path, name: str, why: str) -> dict[str, str]:
    """Each file of a folder that is left out; of a hidden one, or a link, the folder alone."""
    if why in {"hidden", "a link to a folder"}:
        return {name: why}
    return {f"{name}{path.relative_to(folder).as_posix()}": why for path in sorted(folder.rglob("*")) if path.is_file()}


def has_weights(folder: Path) -> bool:
    """Whether a model's weights lie at the top of a folder, be they whole or not; an adapter's are none."""
    by_folder, broken = _weights_by_folder(
        folder, {"": sorted(path.name for path in folder.iterdir() if path.is_file())}
    )
    return bool(by_folder.get("") or broken)


def _weights_by_folder(
    root: Path, folders: Mapping[str, list[str]]
) -> tuple[dict[str, list[Weights]], dict[str, CheckpointError]]:
    by_folder: dict[str, list[Weights]] = {}
    broken: dict[str, CheckpointError] = {}
    for folder, names in folders.items():
        own = [name for name in names if why_skipped(name) not in _NO_WEIGHTS]
        try:
            by_folder[folder] = [each for each in list_weights(root / folder, own) if each.name not in _ADAPTERS]
        except CheckpointError as error:
            broken[folder] = error
    return by_folder, broken


def _pick(
    root: Path, folder: str, candidates: list[Weights], asked: str | None, out: Survey, *, listed: bool
) -> set[str]:
    """Choose a folder's weights and note the others; names of all files that are weights'."""
    known = [each for each in candidates if each.stem]
    if asked is not None and (variants := [each for each in known if each.variant == asked]):
        main = min(variants, key=order)
    elif known:
        main = known[0]
        forms = {each.variant for each in known}
        if main.variant and len(forms) > 1:
            names = sorted(forms)
            raise CheckpointError(
                f"{root / folder}: holds variants alone, {', '.join(names)}: "
                f"say which with weights={names[0]!r} (--weights {names[0]})"
            )
    else:
        main = candidates[0]
        rivals = [each for each in candidates if each.safe == main.safe and order(each)[2:3] == order(main)[2:3]]
        if len(rivals) > 1:
            names = sorted(each.name for each in rivals)
            raise CheckpointError(
                f"{root / folder}: which of {', '.join(names[:5])} is meant? Name the file, or add an index"
            )
    wanted = asked is not None and main.variant == asked
    out.components.append(Component(folder=folder, weights=main, listed=listed, asked=wanted))
    for each in candidates:
        if each is main:
            continue
        if each.variant and each.variant != main.variant:
            why = f"a variant; weights={each.variant!r} (--weights {each.variant}) takes it"
        elif each.stem or (not known and each.safe != main.safe) or (not known and not each.safe):
            why = "the weights once more, in another form"
        else:
            out.components.append(Component(folder=folder, weights=each, listed=False, extra=True))
            continue
        out.left_out |= {f"{folder}{path.name}": why for path in each.used}
    return {path.name for each in candidates for path in each.used}


def _only_model_below(
    root: Path, by_folder: Mapping[str, list[Weights]], folders: Mapping[str, list[str]], out: Survey
) -> Survey | None:
    """The one model in a folder that has no weights itself and says nothing; None where the folder is to be read."""
    if any((root / name).is_file() for name in _MARKERS):
        return None
    earlier = {name.split("/")[0] for name, why in out.left_out.items() if why == "an earlier state of the training"}
    runs = sorted(earlier, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
    holding = [folder for folder in folders if by_folder.get(folder)]
    if not holding and len(runs) == 1 and runs[0].startswith("checkpoint-"):
        return _moved(survey(root / runs[0]), runs[0], out, folders)
    if not holding and runs:
        raise CheckpointError(
            f"{root}: holds states of a training alone, {', '.join(runs)}: name one, {root / runs[-1]} say"
        )
    tops = [folder for folder in holding if not any(folder != other and folder.startswith(other) for other in holding)]
    if len(tops) > 1:
        shown = ", ".join(folder.rstrip("/") for folder in tops[:5])
        raise CheckpointError(
            f"{root}: holds no checkpoint at its top, and no model_index.json or modules.json that makes its folders "
            f"{shown} one model: name one of them, and remember that the base comes first"
        )
    if not tops:
        raise CheckpointError(f"{root}: holds no checkpoint (no .safetensors, .bin, .pt or .pth file)")
    if any(name.endswith("config.json") for name in folders[tops[0]]):
        return _moved(survey(root / tops[0]), tops[0].rstrip("/"), out, folders)
    return None


def _moved(inner: Survey, below: str, out: Survey, folders: Mapping[str, list[str]]) -> Survey:
    """A survey of the one model below, which names the files around it too."""
    around = [f"{folder}{name}" for folder, names in folders.items() for name in names]
    outer = {name: why for name, why in out.left_out.items() if not name.startswith(f"{below}/")}
    for name in around:
        if not name.startswith(f"{below}/"):
            outer[name] = why_skipped(name) or f"outside of {below}, which is the model"
    inner.left_out |= {f"../{name}": why for name, why in outer.items()}
    return inner


def _listed(root: Path, by_folder: Mapping[str, list[Weights]]) -> set[str] | None:
    """Folders that the model says are its components; None where it says nothing."""
    if not any((root / name).is_file() for name in _MARKERS):
        return None
    listed = _named_folders(root)
    if (root / "plans.json").is_file():
        listed |= {folder.rstrip("/") for folder in by_folder if folder.startswith("fold_")}
    return listed


def _named_folders(root: Path) -> set[str]:
    """Folders of components, modules and routes that the files at a model's top name."""
    listed = {name for name, _ in _pipeline(root)} | {path for path, _ in _modules(root)}
    for config in [root / "router_config.json", *(root / path / "router_config.json" for path in sorted(listed))]:
        types = _json(config).get("types", {})
        if isinstance(types, Mapping):
            below = config.parent.relative_to(root).as_posix()
            listed |= {name if below == "." else f"{below}/{name}" for name in types if isinstance(name, str)}
    return {name for name in listed if name}


def kind_of(folder: Path) -> str:
    """What a component's own configuration says that it is; nothing where it has none."""
    config = _json(folder / "config.json")
    names = [config.get(key) for key in ("_class_name", "architectures", "model_type")]
    return json.dumps(names) if any(names) else ""


def _pipeline(root: Path) -> list[tuple[str, str]]:
    """Components of a diffusers pipeline that are there: name, and library and class.

    Of several models in the place of one component, the others lie beside the first, and are numbered.
    """
    out = []
    for name, value in _json(root / "model_index.json").items():
        if (
            not name.startswith("_")
            and isinstance(value, list)
            and len(value) == 2
            and all(isinstance(v, str) for v in value)
        ):
            out.append((name, ".".join(value)))
            if "Multi" in value[1]:
                beside = takewhile(lambda other: (root / other).is_dir(), (f"{name}_{n}" for n in count(1)))
                out += [(other, ".".join(value)) for other in beside]
    return out


def _modules(root: Path) -> list[tuple[str, str]]:
    """Modules of a sentence encoder: folder, and class."""
    content = _json(root / "modules.json")
    listed = [each for each in content.get("", []) if isinstance(each, Mapping) and isinstance(each.get("path"), str)]
    return [(each["path"].strip("/"), str(each.get("type", ""))) for each in listed]


def _json(path: Path) -> Mapping[str, Any]:
    """An object from a small file, a list under ''; nothing where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {"": content}


def _check_complete(root: Path, out: Survey) -> None:
    """Raise CheckpointError where a component that the model names is not there, or has no weights."""
    have = {component.folder for component in out.components}
    for name, kind in _pipeline(root):
        if not (root / name).is_dir():
            raise CheckpointError(
                f"{root}: model_index.json names the component {name!r} ({kind}), and its folder is missing"
            )
        if (root / name / "config.json").is_file() and f"{name}/" not in have:
            raise CheckpointError(
                f"{root / name}: holds no weights, and model_index.json names it ({kind}): fetch it again"
            )
    for path, kind in _modules(root):
        last = kind.rpartition(".")[2]
        needed = last in _WITH_WEIGHTS and path != ""
        if needed and not any(folder.startswith(f"{path}/") for folder in have):
            raise CheckpointError(
                f"{root / path}: holds no weights, and modules.json names it ({kind}): fetch it again"
            )
    if not out.components:
        raise CheckpointError(f"{root}: holds no checkpoint (no .safetensors, .bin, .pt or .pth file)")


def _refuse_distributed(root: Path, folders: Mapping[str, Iterable[str]], out: Survey) -> None:
    """Raise CheckpointError for what the processes of a training saved side by side."""
    for folder, names in folders.items():
        place = root / folder if folder else root
        if any(name.endswith(".distcp") for name in names):
            raise CheckpointError(
                f"{place}: a distributed checkpoint of torch (DCP): make weights of it with "
                f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {place} model.pt"
            )
    zero3 = [name for name in out.left_out if "zero_pp_rank_" in name and name.endswith("_model_states.pt")]
    states = [name for name in out.left_out if name.endswith("_model_states.pt")]
    top = folders.get("", ())
    if (zero3 or states or "zero_to_fp32.py" in top) and not any(
        name.endswith((".safetensors", ".bin")) for name in top
    ):
        raise CheckpointError(
            f"{root}: a checkpoint of DeepSpeed, which holds parts of tensors: make weights of it with "
            f"python {root / 'zero_to_fp32.py'} {root} out/ --safe_serialization"
        )
