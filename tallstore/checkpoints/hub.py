"""Checkpoints on the Hugging Face Hub, through the Hub's own cache, at one pinned commit."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tallstore.errors import CheckpointError
from tallstore.stores.hub_client import Access, client, connect, reason

_SKIPPED = (
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
    "*.ot",
    "*.tflite",
    "onnx/*",
    "openvino/*",
    "*/checkpoint-*",
    "checkpoint-*/*",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


_WEIGHTS = ("*.safetensors", "*.safetensors.index*.json", "model_index.json", "modules.json", "*config.json")
_OLD_WEIGHTS = (*_PICKLES, "*.bin.index.json")


def download(
    repo: str, revision: str | None, access: Access | None = None, *, weights_only: bool = False
) -> tuple[Path, dict[str, str]]:
    """Fetch a model repository's weights and files: its folder in the cache, and its repo and commit.

    Weights are fetched as safetensors where a folder of the repository has them, else as pickles. What is skipped is
    named: `skipped` below.
    """
    access = access or Access()
    hub = client("Hub ids")
    try:
        folder = _snapshot(hub, repo, revision, access, weights_only=weights_only)
    except Exception as error:  # the client's transport has errors of its own, which differ between its versions
        raise CheckpointError(
            f"{repo}: no such folder or file here, and the Hub did not give it: {reason(error)}"
        ) from error
    return folder, {"repo": repo, "commit": folder.name}


def _snapshot(hub: Any, repo: str, revision: str | None, access: Access, *, weights_only: bool) -> Path:
    """The repository's folder in the cache. Its name is the commit, which the client resolves once for all files."""
    api = connect(access, repo)
    how = {"revision": revision, "cache_dir": access.cache_dir}
    try:
        if access.local_files_only:
            raise hub.errors.OfflineModeIsEnabled("only local files are to be used")
        info = api.model_info(repo, revision=revision)
    except hub.errors.HfHubHTTPError:
        raise
    except Exception as error:  # no network, in whatever way the transport says so: what is in the cache may do
        try:
            # Patterns, because a cache that lacks what they leave out is whole nevertheless; pickles that were
            # fetched are in the folder all the same.
            lacking = {"allow_patterns": _WEIGHTS} if weights_only else {"ignore_patterns": [*_SKIPPED, *_PICKLES]}
            return Path(api.snapshot_download(repo, local_files_only=True, **lacking, **how))
        except hub.errors.LocalEntryNotFoundError:
            raise error from None
    names = [sibling.rfilename for sibling in info.siblings or ()]
    safe = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
    if weights_only:
        return Path(api.snapshot_download(repo, allow_patterns=_WEIGHTS if safe else _OLD_WEIGHTS, **how))
    # A pickle is not fetched where the same folder has safetensors; elsewhere it may be all that there is.
    again = [name for name in names if _is_any(name, _PICKLES) and name.rpartition("/")[0] in safe]
    return Path(api.snapshot_download(repo, ignore_patterns=[*_SKIPPED, *map(_literal, again)], **how))


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is of one of these patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _literal(name: str) -> str:
    """A pattern that is this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
