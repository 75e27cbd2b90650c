"""The model card of an archive's repository: what is in it, what it kept, how each task is loaded.

A card of ours carries a marker. Whoever writes a card of their own leaves it out, and it is never overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tallstore.stores.hub_client import client

README = "README.md"
PICTURE = "card.png"
MARKER = "<!-- Written by `tallstore push`, which updates it. To keep your own text, remove this line. -->"
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MOST = 40
"""Tasks that are shown one by one; more of them would bury the rest."""


def is_ours(text: str) -> bool:
    """Whether a card was written here and may be written again."""
    return MARKER in text


def model_card(
    info: Mapping[str, Any],
    repo_id: str,
    *,
    license: str | None = None,
    picture: bool = False,
    folders: Sequence[str] = (),
) -> str:
    """The text of README.md.

    Args:
        info: what `Zoo.info()` says.
        repo_id: where the archive will be.
        license: the Hub's identifier of it, such as `apache-2.0`.
        picture: whether `card.png` is beside it.
        folders: those that transformers' own loader takes.
    """
    hub = client("a model card")
    base = str(info["base"]["source"].get("repo", ""))
    known = base if _REPO.fullmatch(base) else None
    data = hub.ModelCardData(
        library_name="tallstore", tags=["tallstore", "model-zoo"], base_model=known, license=license
    )
    blocks = [
        f"---\n{data.to_yaml()}\n---",
        MARKER,
        f"# {repo_id.rpartition('/')[2]}",
        _summary(info, known),
        f"![what each task kept]({PICTURE})" if picture else "",
        f"## Tasks\n\n{_tasks(info['tasks'])}",
        _family(info.get("family") or []),
        f"## Load a task\n\n{_usage(info, repo_id, folders)}",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _summary(info: Mapping[str, Any], base: str | None) -> str:
    tasks, total, separate = len(info["tasks"]), info["bytes"]["total"], info["checkpoints_bytes"]
    adapters = sum(_adapter(task) is not None for task in info["tasks"].values())
    of = f"[{base}](https://huggingface.co/{base})" if base else "one base model"
    own = sum(_measured(task, "bytes") or 0 for task in info["tasks"].values()) / max(tasks, 1)
    where = {
        "embed": "The base is in it.",
        "reference": "The base is not in it: it is fetched from its own repository when a task is loaded.",
    }
    return (
        f"{_counted(tasks - adapters, adapters)} of {of} in one archive, made with tallstore: {_size(total)} "
        f"in place of {_size(separate)} as {tasks + 1} checkpoints. {where[info['base']['storage']]} "
        f"A further task adds {_size(own)} to a download, on the average."
    )


def _family(lines: Sequence[str]) -> str:
    """Which tasks are made of which, as a tree; nothing where none is made of others."""
    shown = [*lines[:_MOST], *([f"and {len(lines) - _MOST} more lines"] if len(lines) > _MOST else [])]
    return "## Family\n\n```\n" + "\n".join(shown) + "\n```" if lines else ""


def _counted(models: int, adapters: int) -> str:
    counts = [
        f"{count} {what}{'s' * (count != 1)}"
        for count, what in ((models, "fine-tuned model"), (adapters, "adapter"))
        if count or not (models or adapters)
    ]
    return " and ".join(counts[:2] if models or adapters else counts[:1])


def _adapter(task: Mapping[str, Any]) -> str | None:
    """The type of a task that is an adapter."""
    kind = task.get("adapter")
    return kind if isinstance(kind, str) else None


def _tasks(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    scored = any(_measured(task, "scores", "original") is not None for task in tasks.values())
    head = ["task", "error ‖τ̂−τ‖/‖τ‖", *(["score of the original", "score kept", "retention"] * scored), "bytes"]
    rows = [_row(name, task, scored=scored) for name, task in list(tasks.items())[:_MOST]]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    more = f"\n\nand {len(tasks) - _MOST} more." if len(tasks) > _MOST else ""
    note = "\n\nMeasured when the archive was packed; a dash where nothing was measured."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + more + note


def _row(name: str, task: Mapping[str, Any], *, scored: bool) -> list[str]:
    kind = _adapter(task)
    cells = [name, _number(_measured(task, "relative_error"))]
    if kind is not None:
        cells = [f"{name} (adapter: {kind})", "bit for bit"]
    if scored:
        before, after = (_measured(task, "scores", which) for which in ("original", "decoded"))
        kept = f"{100 * after / before:.1f} %" if before and after is not None else "–"
        cells += [_number(before), _number(after), kept]
    return [*cells, _size(_measured(task, "bytes") or 0)]


def _measured(task: Mapping[str, Any], *keys: str) -> float | None:
    """A number that was measured; None where there is none. What stands there is anybody's JSON."""
    value: Any = task
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def _usage(info: Mapping[str, Any], repo_id: str, folders: Sequence[str]) -> str:
    names = list(info["tasks"])
    calls = [f'model = tallstore.from_pretrained("{repo_id}", task="{name}")' for name in names[:_MOST]]
    return "\n".join(
        [
            '```sh\npip install "tallstore[transformers]"\n```\n',
            "```python\nimport tallstore\n",
            *calls,
            f'processor = tallstore.load_processor("{repo_id}", task="{names[0]}")\n```\n',
            *_stock(repo_id, folders),
            "As a folder that stock loaders open (of an adapter its own, for PEFT or diffusers):\n"
            if any(_adapter(task) is not None for task in info["tasks"].values())
            else "As a folder that stock loaders open:\n",
            f"```sh\ntallstore pull {repo_id} --task {names[0]} -o {names[0]}/\n```\n",
            "Only what the task needs is downloaded, and every part is checked against its hash.",
        ]
    )


def _stock(repo_id: str, folders: Sequence[str]) -> list[str]:
    if not folders:
        return []
    return [
        "By transformers' own loader, any class of it and any of its options, after `import tallstore`:\n",
        f'```python\nmodel = AutoModel.from_pretrained("{repo_id}", subfolder="{folders[0]}")\n```\n',
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
