"""The matrix as the documentation shows it: `python -m matrix.table` in tests/ writes the page."""

from __future__ import annotations

from pathlib import Path

from matrix.kinds import ADAPTERS, KINDS, Kind

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pages" / "checkpoints.md"
ALWAYS = ("pack, extract", "folder", "add", "merge", "verify", "lossless")
HEAD = """# Which checkpoints, and what can be done with them

For every row the tests make a small checkpoint of that kind, with the library that writes it, and try every column: it
is packed with a base, extracted and opened by its own library; its folder's other files are given back; it is written
into a model in memory; switched to; loaded as a transformers model; added to an archive; merged; verified against its
original; and packed without loss, where it comes back bit for bit. A dash means that the column does not apply:

- `load_into` and `switcher` write to one `nn.Module`; a pipeline is several, and each is taken by
  `zoo.state_dict(task, component=NAME)`.
- `from_pretrained` is for transformers models; others are extracted and loaded by their own library.
- Quantized checkpoints are packed without loss and come back bit for bit. Sums of their codes mean nothing, so merging
  is refused. The table has the layouts that libraries save; models that torchao and compressed-tensors made go through
  packing, extracting and their stock loaders in tests of their own.
- Merging is for models. An adapter is merged into its base instead: by `extract --merged`, and wherever it is written
  into a model, switched to, or loaded by `from_pretrained`.

"""


def row(kind: Kind) -> list[str]:
    """What can be done with one kind."""
    model = "yes" if kind.module else "–"
    return [
        kind.name,
        kind.library,
        *("yes" for _ in ALWAYS[:2]),
        model,
        model,
        "yes" if kind.auto else "–",
        *("refused" if cell in kind.refused else "yes" for cell in ALWAYS[2:]),
    ]


def page() -> str:
    """The whole page."""
    head = ["kind", "library", *ALWAYS[:2], "load_into", "switcher", "from_pretrained", *ALWAYS[2:]]
    rows = [head, ["---"] * len(head), *(row(kind) for kind in KINDS)]
    rows += [[kind.name, "peft", *("yes" for _ in head[2:7]), "yes", "–", "yes", "yes"] for kind in ADAPTERS]
    return HEAD + "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
