"""A small real zoo, made on the spot: one transformer pre-trained on digits, fine-tuned whole on eight tasks.

The base learns to fill in strips that it is not shown and to name the digit, on half of the training images. Every
fine-tune starts from the base with a head of its own, and all its weights move. The same seed gives the same zoo on
the same kind of processor: training runs in one thread, so that the number of cores changes nothing. Matrices this
small gain little from a second thread anyway, and lose much where cores are shared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tallstore.demo.digits import TASKS, DigitsTask, Split, held_out, load_digits
from tallstore.demo.model import STRIPS, Classifier, Reconstructor, Shape, strips
from tallstore.encoder import Progress
from tallstore.errors import NoSuchTaskError, OutputError, OutputExistsError
from tallstore.tensors import one_thread

_BATCH = 64
_RATE = 1e-3
_HIDDEN_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """How large a zoo to make. The default takes about 40 seconds of one core."""

    tasks: tuple[str, ...] = tuple(TASKS)
    width: int = 128
    depth: int = 3
    base_steps: int = 450
    task_steps: int = 140

    @property
    def shape(self) -> Shape:
        """The size of the models' body."""
        return Shape(width=self.width, depth=self.depth)


@dataclass(frozen=True, kw_only=True)
class DemoZoo:
    """Where the checkpoints are: a folder each, with model.safetensors and config.json."""

    folder: Path
    base: Path
    tasks: Mapping[str, Path]


def make_zoo(
    folder: str | os.PathLike[str], seed: int = 0, progress: Progress | None = None, *, plan: DemoPlan | None = None
) -> DemoZoo:
    """Train a base and its fine-tunes, and save them in `folder`, which must be empty or not there."""
    plan = plan or DemoPlan()
    tasks = [demo_task(name) for name in plan.tasks]
    train, _ = load_digits()
    place = Path(folder)
    require_empty(place)
    zoo = DemoZoo(folder=place, base=place / "base", tasks={task.name: place / task.name for task in tasks})
    report = progress or silent
    with one_thread():
        base = _pretrain(plan, train, seed, report)
        _save(base, zoo.base, {"architecture": "reconstructor", **asdict(plan.shape)})
        for n, task in enumerate(tasks, start=1):
            model = _fine_tune(base, task, plan=plan, train=train, seed=seed + n, progress=report)
            config = {"architecture": "classifier", **asdict(plan.shape), "task": task.name, "classes": task.classes}
            _save(model, zoo.tasks[task.name], config)
    return zoo


def evaluate(model: str | os.PathLike[str] | Mapping[str, Tensor], task: str) -> float:
    """The accuracy of a fine-tune, a folder or a state dict, on the held-out images of a task."""
    state = model if isinstance(model, Mapping) else load_state(model)
    question = demo_task(task)
    classifier = Classifier(Shape.of(state), question.classes)
    classifier.load_state_dict(state)
    images, answers = held_out(question)
    with torch.inference_mode(), one_thread():
        right = classifier(images).argmax(-1) == answers
    return float(right.double().mean())


def load_state(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of one of the zoo's folders."""
    state: dict[str, Tensor] = load_file(Path(folder) / "model.safetensors")
    return state


def demo_task(name: str) -> DigitsTask:
    """The task of that name."""
    if name not in TASKS:
        raise NoSuchTaskError(f"the demo has no task {name!r}; it has {', '.join(TASKS)}")
    return TASKS[name]


def silent(text: str, done: int, total: int) -> None:
    """The progress of who asked for none."""


def require_empty(folder: Path) -> None:
    """Raise OutputExistsError unless `folder` is empty or not there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists and is not an empty folder: name another one")


def _save(model: nn.Module, folder: Path, config: dict[str, object]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write the demo's models to {folder}: {error}") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global generator, seeded, and put back afterwards: the only one that `nn` layers start from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _train(model: nn.Module, loss: Callable[[], Tensor], steps: int, text: str, progress: Progress) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        progress(text, step, steps)
        optimizer.zero_grad()
        torch.autograd.backward(loss())
        optimizer.step()
        schedule.step()
    progress(text, steps, steps)


def _pretrain(plan: DemoPlan, train: Split, seed: int, progress: Progress) -> Reconstructor:
    with _seeded(seed):
        model = Reconstructor(plan.shape)
    generator = torch.Generator().manual_seed(seed)
    half = len(train.images) // 2

    def loss() -> Tensor:
        batch = torch.randint(half, (_BATCH,), generator=generator)
        images = train.images[batch]
        hidden = torch.rand(_BATCH, STRIPS, generator=generator) < _HIDDEN_SHARE
        guessed, digits = model(images, hidden)
        missed = functional.mse_loss(guessed[hidden], strips(images)[hidden])
        return missed + functional.cross_entropy(digits, train.digits[batch])

    _train(model, loss, plan.base_steps, "pre-training the base", progress)
    return model


def _fine_tune(
    base: nn.Module, task: DigitsTask, *, plan: DemoPlan, train: Split, seed: int, progress: Progress
) -> Classifier:
    with _seeded(seed):
        model = Classifier(plan.shape, task.classes)
    model.load_state_dict(base.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        batch = torch.randint(len(train.images), (_BATCH,), generator=generator)
        images, answers = task.examples(train.images[batch], train.digits[batch], generator)
        return functional.cross_entropy(model(images), answers)

    _train(model, loss, plan.task_steps, f"fine-tuning: {task.question}", progress)
    return model
