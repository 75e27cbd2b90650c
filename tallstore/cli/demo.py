"""`tallstore demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore.cli import output


def demo(
    folder: Annotated[
        str, typer.Option("-o", "--output", help="A new folder for the demo's models and archive.")
    ] = "tallstore-demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
) -> None:
    """Make a small real zoo, pack it, get every task back, and show what that cost and kept. Takes a minute.

    A small transformer is pre-trained on handwritten digits and fine-tuned on several questions about them. Nothing
    is downloaded.

    Example:

      tallstore demo
    """
    from tallstore.demo import run_demo

    with output.progress("demo", quiet=quiet or as_json) as progress:
        told = progress if quiet or as_json else _Narrated(progress)
        result = run_demo(folder, progress=told)
    if as_json:
        output.print_json(result.to_json())
        return
    console = output.console()
    rows = [
        [
            task.name,
            task.question,
            output.share(task.accuracy_base),
            output.share(task.accuracy_before),
            output.share(task.accuracy_after),
            output.size(task.archive_bytes),
            output.share(task.archive_bytes / task.checkpoint_bytes),
        ]
        for task in result.tasks
    ]
    columns = [
        ("task", False),
        ("question", False),
        ("not tuned", True),
        ("original", True),
        ("from the archive", True),
        ("own bytes", True),
        ("of its checkpoint", True),
    ]
    title = "accuracy on images that no model has seen"
    console.print()
    least = ("question", "of its checkpoint", "own bytes", "not tuned")
    console.print(output.fitted(console, title, columns, rows, least))
    separate, packed = result.checkpoints_bytes, result.archive_bytes["total"]
    output.say(
        console,
        f"\n{len(rows) + 1} checkpoints of {output.size(separate)} became one archive of {output.size(packed)} "
        f"(1/{separate / packed:.1f}); accuracy kept: {output.share(result.retention)}.",
    )
    look = "" if result.report is None else f"\nLook at it: open {result.report} in a browser.\n"
    extra = '  pip install "tallstore[report]"\n' if result.report is None else ""
    output.say(
        console,
        f"{look}\nAll of it is in {folder}. Try next:\n"
        f"  tallstore info {result.archive} --masks\n"
        f"  tallstore verify {result.archive}\n"
        f"  tallstore extract {result.archive} {result.tasks[0].name} -o {folder}/again\n"
        f"  tallstore merge {result.archive} -o {folder}/merged\n"
        f"{extra}  tallstore report {result.archive} -o {folder}/again.html --plots {folder}/plots",
        whole=True,
    )


_STEPS = {
    "pre-training": "1. A small transformer learns to read handwritten digits: the base.",
    "fine-tuning": "2. Copies of it are fine-tuned, all weights of them, each to answer a question of its own.",
    "pack": "3. Base and fine-tunes are packed into one archive, and every task is scored as it comes out.",
    "extracting": "4. Every task is taken out again, as a folder of its own.",
    "evaluating": "5. Originals and copies take the same test, on images that no model has seen.",
}
"""What is said when work of a kind begins. What has no line of its own is packing's, or the report's, business."""


class _Narrated:
    """Says in a line what begins, and passes the progress on."""

    def __init__(self, then: output.Report | None) -> None:
        self._then = then
        self._said: set[str] = set()

    def __call__(self, text: str, done: int, total: int) -> None:
        kind = next((kind for kind in _STEPS if text.startswith(kind)), "pack")
        if kind not in self._said and ("fine-tuning" in self._said or kind != "pack"):
            self._said.add(kind)
            typer.echo(_STEPS[kind])
        if self._then is not None:
            self._then(text, done, total)
