"""Files of a model beside its weights: which travel with it, and why the others do not.

Whatever a stock loader may need travels: configurations, tokenizer files of every kind, cards, licenses, code, data. A
file that does not is named, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tallstore.errors import FormatError
from tallstore.format import limits
from tallstore.format.data_files import is_data_name, is_harmless
from tallstore.format.names import check_file_names, check_path, folded

__all__ = ["find_companions", "why_skipped", "why_skipped_folder"]

_TRAINING = re.compile(
    r"trainer_state\.json|training_args\.(bin|json)|all_results\.json|latest|"
    r"(optimizer|scheduler|scaler|lr_scheduler)(_\d+)?\.(pt|bin|pth|safetensors)|"
    r"(rng_state|random_states)(_\d+)?\.(pth|pkl)|.*optim_states\.pt|events\.out\.tfevents\..*|"
    r"zero_pp_rank_.*|sampler(_\d+)?\.bin|dl_state_dict(_\d+)?\.bin"
)
_FORMS = re.compile(
    r".*\.(h5|keras|msgpack|onnx|onnx_data|gguf|ggml|ot|tflite|mlmodel|pb|engine|nemo|mar)|openvino_.*\.(bin|xml)|"
    r"(tf_|flax_|rust_)model\..*",
    re.IGNORECASE,
)
_FOREIGN = re.compile(
    r".*\.(png|jpe?g|gif|webp|bmp|mp4|mov|wav|flac|mp3|ogg|zip|tar|gz|tgz|bz2|xz|zst|7z|rar|parquet|arrow|pdf|docx?|pptx?|"
    r"xlsx?|ipynb|log|pyc|so|dll|whl|swp|lock|distcp)",
    re.IGNORECASE,
)
_WEIGHTS = re.compile(
    r".*\.(safetensors(\.index(\.\w+)?\.json)?|pt|pth|ckpt|(safetensors|bin)\.index(\.\w+)?\.json)", re.IGNORECASE
)
_EARLIER = re.compile(r"checkpoint-[^/]+|global_step\d+|epoch[=_-]\d+.*", re.IGNORECASE)
_CACHES = {"__pycache__", "wandb", "mlruns", "lightning_logs", "tb_logs", "node_modules"}
_FORM_FOLDERS = {"onnx", "openvino", "coreml"}


def why_skipped_folder(name: str) -> str | None:
    """Why nothing in a folder of this name belongs to the model that the folder lies in; None if something may."""
    if name.startswith("."):
        return "hidden"
    if _EARLIER.fullmatch(name):
        return "an earlier state of the training"
    if name in _CACHES:
        return "a log or a cache"
    if name in _FORM_FOLDERS:
        return "the weights once more, in another form"
    return None


def why_skipped(name: str) -> str | None:
    """Why a file of this name does not travel, its weights apart; None if it may."""
    last = name.rpartition("/")[2]
    for pattern, why in (
        (_TRAINING, "a state of the training"),
        (_FORMS, "weights in another form"),
        (_WEIGHTS, "weights that are no part of the model"),
        (_FOREIGN, "no part of the model"),
    ):
        if pattern.fullmatch(last):
            return why
    return "hidden" if last.startswith(".") else None


def find_companions(folder: Path, names: Iterable[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Which of a folder's files, given by name, travel: name → where it lies; and of the others, name → why not."""
    taken: dict[str, Path] = {}
    left: dict[str, str] = {}
    seen: set[str] = set()
    for name in sorted(names):
        why = why_skipped(name) or _why_refused(name, folder / name) or _taken_before(name, seen)
        if why is None:
            taken[name] = folder / name
        else:
            left[name] = why
    return taken, left


def _why_refused(name: str, path: Path) -> str | None:
    """What the format has against a file."""
    try:
        check_path(f"tasks/{'x' * limits.TASK_NAME_LENGTH}/files/{name}")
        if not is_data_name(name):
            check_file_names([name])
    except FormatError:
        return "a name that an archive cannot hold"
    if (size := path.stat().st_size) > limits.FILE_BYTES:
        return f"{size >> 20} MiB, over the cap of {limits.FILE_BYTES >> 20}"
    if is_data_name(name) and not is_harmless(path.read_bytes()):
        return "a pickle that may run code"
    return None


def _taken_before(name: str, seen: set[str]) -> str | None:
    """Whether a name is a file or a folder already, on a file system that ignores letter case. Notes it."""
    pieces = folded(name).split("/")
    folders = ["/".join(pieces[:n]) for n in range(1, len(pieces))]
    if "/".join(pieces) in seen or f"{folded(name)}/" in seen or any(folder in seen for folder in folders):
        return "another file's name, but for letter case"
    seen.update(["/".join(pieces), *(f"{folder}/" for folder in folders)])
    return None
