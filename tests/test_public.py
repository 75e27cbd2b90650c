"""The public interface: what is promised is there, and nothing else is."""

from __future__ import annotations

import inspect
import re
from importlib import metadata

import pytest
from support import ROOT

import tallstore
from tallstore import errors


def test_the_list_is_sorted_and_true() -> None:
    assert tallstore.__all__ == sorted(tallstore.__all__)
    assert dir(tallstore) == tallstore.__all__
    for name in tallstore.__all__:
        assert getattr(tallstore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tallstore.nonsense


def test_the_page_of_stable_names_lists_them() -> None:
    page = (ROOT / "docs" / "pages" / "stability.md").read_text(encoding="utf-8")
    table = page.split("| stable | is |")[1].split("\n\n")[0]
    listed = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])]
    assert sorted(listed) == tallstore.__all__


def test_what_is_exported_is_documented() -> None:
    for name in tallstore.__all__:
        exported = getattr(tallstore, name)
        if inspect.isclass(exported) or inspect.isfunction(exported):
            assert inspect.getdoc(exported), name
            for member, value in vars(exported).items() if inspect.isclass(exported) else ():
                if inspect.isfunction(value) and not member.startswith("_"):
                    assert inspect.getdoc(value), f"{name}.{member}"


def test_the_design_s_interface_is_there() -> None:
    wanted = {"tasks", "state_dict", "load_into", "export", "verify", "mask", "vector", "base", "info", "close"}
    assert wanted <= set(dir(tallstore.Zoo))
    assert {"errors", "open", "pack", "Options", "PackReport", "TaskReport", "Zoo"} <= set(tallstore.__all__)


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert errors.__all__ == sorted(classes)
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ((?:│   |    )*)(?:├── |└── )?([A-Z]\w+)", line):
            depth = 0 if "──" not in line else len(found[1]) // 4 + 1
            above[depth:] = [found[2]]
            drawn[found[2]] = above[depth - 1] if depth else "Exception"
    assert drawn == {name: value.__base__.__name__ for name, value in classes.items()}


def test_types_are_shipped() -> None:
    assert (ROOT / "tallstore" / "py.typed").is_file()


def test_the_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", tallstore.__version__)
    assert f'version = "{tallstore.__version__}"' in (ROOT / "pyproject.toml").read_text()
    try:
        installed = metadata.version("tallstore")
    except metadata.PackageNotFoundError:
        return
    assert installed == tallstore.__version__


def test_options_are_called_the_same_everywhere() -> None:
    """Design, section 6: the names in Python, on the command line and in zoo files."""
    from dataclasses import fields

    names = {field.name for field in fields(tallstore.Options)}
    assert {"recipe", "lam", "vector", "mask", "base_storage", "base_codec", "device", "overwrite"} <= names
    with pytest.raises(errors.OptionError, match="no such option: nonsense"):
        tallstore.Options.from_mapping({"nonsense": 1})
