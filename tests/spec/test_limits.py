"""The page of limits and the code state the same numbers."""

from __future__ import annotations

import json
import re
from typing import Any

from tallstore.format import limits

from .vectors import ROOT


def in_code() -> dict[str, int]:
    return {name: value for name, value in vars(limits).items() if name.isupper()}


def on_page() -> dict[str, int]:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([0-9]+) \|", (ROOT / "limits.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {name: int(value) for name, value in rows}


def test_the_page_says_what_the_code_does() -> None:
    assert on_page() == in_code()


def test_pages_name_no_limit_that_is_not_there() -> None:
    named = {
        name
        for page in (*ROOT.glob("*.md"), *ROOT.glob("codecs/*.md"))
        for name in re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", page.read_text(encoding="utf-8"))
    }
    assert named <= in_code().keys()


def test_the_schema_holds_the_same_numbers() -> None:
    schema: dict[str, Any] = json.loads((ROOT / "manifest.schema.json").read_text(encoding="utf-8"))
    define = schema["$defs"]
    assert schema["properties"]["tasks"]["maxProperties"] == limits.TASKS
    assert schema["properties"]["parts"]["maxProperties"] == limits.PARTS
    assert define["count"]["maximum"] == limits.INTEGER
    assert define["shape"]["maxItems"] == limits.RANK
    assert define["tensorName"]["maxLength"] == limits.NAME_BYTES
    assert define["taskName"]["maxLength"] == limits.TASK_NAME_LENGTH
    assert define["path"]["maxLength"] == limits.PATH_BYTES
    assert define["base"]["properties"]["tensors"]["maxProperties"] == limits.TENSORS
    assert define["file"]["properties"]["header"]["properties"]["size"]["maximum"] == limits.HEADER_BYTES + 8
