"""Checkpoints on the Hugging Face Hub, through the Hub's own cache, at one pinned commit."""

from __future__ import annotations

from pathlib import Path

from tallstore.errors import CheckpointError, MissingExtraError

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
    "*.md",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def download(repo: str, revision: str | None) -> tuple[Path, dict[str, str]]:
    """Fetch a model repository's weights and files: its folder in the cache, and its repo and commit.

    Weights are fetched as safetensors where the repository has them, else as pickles.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise MissingExtraError('Hub ids need huggingface_hub: pip install "tallstore[hub]"') from error
    try:
        folder = _snapshot(hub, repo, revision)
    except Exception as error:  # the client's transport has errors of its own, which differ between its versions
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{repo}: no such folder or file here, and the Hub did not give it ({line})") from error
    return folder, {"repo": repo, "commit": folder.name}


def _snapshot(hub, repo: str, revision: str | None) -> Path:  # type: ignore[no-untyped-def]
    """The repository's folder in the cache. Its name is the commit, which the client resolves once for all files."""
    try:
        info = hub.HfApi().model_info(repo, revision=revision)
    except hub.errors.HfHubHTTPError:
        raise
    except Exception as error:  # no network, in whatever way the transport says so: what is in the cache may do
        try:
            patterns = [*_SKIPPED, *_PICKLES]  # pickles that were fetched are in the folder nevertheless
            return Path(hub.snapshot_download(repo, revision=revision, ignore_patterns=patterns, local_files_only=True))
        except hub.errors.LocalEntryNotFoundError:
            raise error from None
    names = [sibling.rfilename for sibling in info.siblings or ()]
    skipped = [*_SKIPPED]
    if any(name.endswith(".safetensors") for name in names):
        skipped += _PICKLES
    return Path(hub.snapshot_download(repo, revision=revision, ignore_patterns=skipped))
