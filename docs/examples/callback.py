"""A callback for transformers' Trainer: when training ends, the fine-tune joins the zoo.

    trainer = Trainer(model, ..., callbacks=[JoinZoo("zoo.tall", base="minilm", runs="runs", task="trec")])

Fine-tunes are kept in a folder, and the archive is packed anew from all of them: it is replaced in one step when it is
whole, so that who reads it meanwhile reads the old one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import tallstore


class JoinZoo(TrainerCallback):
    """Saves the model under `runs/task` and packs the base with all that is in `runs`."""

    def __init__(self, archive: str, *, base: str, runs: str, task: str, **options: Any) -> None:
        self.archive, self.base, self.runs, self.task = Path(archive), base, Path(runs), task
        self.options = options
        self.report: tallstore.PackReport | None = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save, and pack."""
        kwargs["model"].save_pretrained(self.runs / self.task)
        tasks = {folder.name: folder for folder in sorted(self.runs.iterdir()) if (folder / "config.json").is_file()}
        self.report = tallstore.pack(self.base, tasks, self.archive, overwrite=True, **self.options)
