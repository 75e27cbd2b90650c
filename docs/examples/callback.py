"""A callback for transformers' Trainer: when training ends, the fine-tune joins the zoo.

    trainer = Trainer(model, ..., callbacks=[JoinZoo("zoo.tall", base="minilm", runs="runs", task="trec")])

A task that is new is added: nothing that the archive holds is packed again, and a push sends what is new. One that is
trained once more has the archive packed anew from all fine-tunes, which are kept in a folder. Either way it is replaced
in one step when it is whole, so that who reads it meanwhile reads the old one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import tallstore


class JoinZoo(TrainerCallback):
    """Saves the model under `runs/task` and adds it to the archive; the first one makes it."""

    def __init__(self, archive: str, *, base: str, runs: str, task: str, **options: Any) -> None:
        self.archive, self.base, self.runs, self.task = Path(archive), base, Path(runs), task
        self.options = options
        self.report: tallstore.PackReport | tallstore.GrowReport | None = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save, and add or pack."""
        kwargs["model"].save_pretrained(self.runs / self.task)
        if self.archive.exists() and self.task not in self._tasks():
            self.report = tallstore.add(self.archive, {self.task: self.runs / self.task}, **self.options)
            return
        tasks = {folder.name: folder for folder in sorted(self.runs.iterdir()) if (folder / "config.json").is_file()}
        self.report = tallstore.pack(self.base, tasks, self.archive, overwrite=True, **self.options)

    def _tasks(self) -> tuple[str, ...]:
        with tallstore.open(self.archive) as zoo:
            return zoo.tasks
