"""The pages for contributors say what the code is: the table of layers, and the glossary's symbols.

`python tests/docs/test_architecture.py` rewrites the table's last column.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import ROOT
from test_layers import MAY_IMPORT, modules, nodes

PAGES = ROOT / "docs" / "pages"
PAGE = PAGES / "architecture.md"
HEAD = "| layer | holds | may import |\n|---|---|---|\n"
MOST_TERMS = 60


def rows() -> list[tuple[str, str, str]]:
    table = PAGE.read_text(encoding="utf-8").split(HEAD)[1].split("\n\n")[0]
    return [
        (layer, holds, may)
        for layer, holds, may in re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \|$", table, re.MULTILINE)
    ]


def column(layer: str) -> str:
    """What the layer test lets a layer import, in words."""
    if layer not in MAY_IMPORT:
        return "all above but `cli`" if layer != "cli" else "all"
    return ", ".join(f"`{name}`" for name in sorted(MAY_IMPORT[layer])) or "nothing"


def symbols() -> set[str]:
    """Names that the package's code defines: modules, classes, functions, members `Class.member`, constants, options."""
    names: set[str] = set()
    for _, path in modules():
        names |= {path.stem, path.parent.name}
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                        names.add(f"{node.name}.{member.target.id}")
                    elif isinstance(member, ast.FunctionDef):
                        names.add(f"{node.name}.{member.name}")
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def terms() -> list[tuple[str, list[str]]]:
    page = (PAGES / "glossary.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| ([^|]+?) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    return [(term, re.findall(r"`([\w.]+)`", named)) for term, named in found if term != "term" and "--" not in term]


def test_the_table_of_layers_is_that_of_the_layer_test() -> None:
    listed = {layer: may for layer, _, may in rows()}
    known = {layer for layer, _ in modules()} - {"__init__", "__main__", "_version"}
    assert listed.keys() == known
    assert listed == {layer: column(layer) for layer in listed}


def test_lower_layers_come_first() -> None:
    order = [layer for layer, _, _ in rows()]
    for layer, below in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(layer) for other in below), layer


def test_what_the_glossary_names_is_in_the_code() -> None:
    known = symbols()
    listed = terms()
    assert 20 < len(listed) <= MOST_TERMS
    for term, named in listed:
        assert named, f"{term}: no symbol"
        assert not [name for name in named if name not in known], term
    assert [term.lower() for term, _ in listed] == sorted(term.lower() for term, _ in listed)


def test_files_that_the_pages_name_are_there() -> None:
    for page in (PAGE, ROOT / "CONTRIBUTING.md"):
        for name in re.findall(r"`((?:\w+/)+[\w.-]*)`", page.read_text(encoding="utf-8")):
            new = f"New, `{name}`" in page.read_text(encoding="utf-8") or "trimmed" in name
            assert new or any((root / name).exists() for root in (ROOT, ROOT / "tallstore")), name


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, table = text.split(HEAD)
    lines = "".join(f"| `{layer}` | {holds} | {column(layer)} |\n" for layer, holds, _ in rows())
    PAGE.write_text(before + HEAD + lines + table[table.index("\n\n") + 1 :], encoding="utf-8")
