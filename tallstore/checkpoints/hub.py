"""Checkpoints on the Hugging Face Hub, through the Hub's own cache, at one pinned commit."""

from __future__ import annotations

from pathlib import Path

from tallstore.errors import CheckpointError, MissingExtraError

_SKIPPED = ("*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot", "*.tflite", "onnx/*", "openvino/*", "*/checkpoint-*", "*.md")


def download(repo: str, revision: str | None) -> tuple[Path, dict[str, str]]:
    """Fetch a model repository's weights and files: its folder in the cache, and its repo and commit.

    Weights are fetched as safetensors where the repository has them, else as pickles.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError as error:
        raise MissingExtraError('Hub ids need huggingface_hub: pip install "tallstore[hub]"') from error
    try:
        folder = _snapshot(hub, repo, revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{repo}: no such folder or file here, and the Hub did not give it ({line})") from error
    return folder, {"repo": repo, "commit": folder.name}


def _snapshot(hub, repo: str, revision: str | None) -> Path:  # type: ignore[no-untyped-def]  # noqa: ANN001 - an optional module
    try:
        info = hub.HfApi().model_info(repo, revision=revision)
    except (hub.errors.OfflineModeIsEnabled, ConnectionError, OSError) as error:
        if isinstance(error, hub.errors.HfHubHTTPError):
            raise
        return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
    names = [sibling.rfilename for sibling in info.siblings or ()]
    skipped = [*_SKIPPED]
    if any(name.endswith(".safetensors") for name in names):
        skipped += ["*.bin", "*.pt", "*.pth", "*.ckpt"]
    return Path(hub.snapshot_download(repo, revision=info.sha, ignore_patterns=skipped))
