"""What a repository holds for transformers' own loader: a folder of a few small files for each task, `models/TASK`.

    import tallstore
    AutoModelForCausalLM.from_pretrained("user/zoo", subfolder="models/mnist")

Each names the archive that it lies in. Tokenizers are not in it, as they may be large and are the same for many tasks:
`tallstore.load_processor` gives them.
"""

from __future__ import annotations

from tallstore.archive import Archive
from tallstore.archive.thin_folder import thin_files, why_not_thin
from tallstore.format.manifest import Manifest

__all__ = ["FOLDER", "is_thin_model", "thin_models"]

FOLDER = "models"
_BESIDE = "generation_config.json"
"""What the loader reads beside the configuration."""


def thin_models(zoo: Archive) -> dict[str, bytes]:
    """The files of every task that transformers can load: path in the repository → bytes."""
    members: dict[str, bytes] = {}
    for task in zoo.tasks:
        if why_not_thin(zoo, task) is not None:
            continue
        files = thin_files(zoo, task, "../..")
        beside = zoo.small_file(task, _BESIDE)
        if beside is not None:
            files[_BESIDE] = beside
        members |= {f"{FOLDER}/{task}/{name}": data for name, data in files.items()}
    return members


def is_thin_model(path: str, manifest: Manifest) -> bool:
    """Whether a file of a repository is one of those of an archive's tasks."""
    folder, _, rest = path.partition("/")
    return folder == FOLDER and rest.partition("/")[0] in manifest.tasks
