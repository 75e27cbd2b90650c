"""What is built holds what it should and nothing else, and works where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

import pytest
from processes import Shared
from support import ROOT

from tallstore.kernels.native.build import find_compiler, library_path, sum_path

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASSETS = {
    "tallstore/py.typed",
    "tallstore/report/page.css",
    "tallstore/report/page.html.j2",
    "tallstore/report/page.js",
}
NATIVE = "tallstore/kernels/native"
RECORDS = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
IN_SOURCES = re.compile(
    r"(PKG-INFO|(README|CHANGELOG|CONTRIBUTING|RELEASING|SECURITY)\.md|noxfile\.py|scripts/dev|findings/[\w-]+\.(sh|md)|LICENSE|pyproject\.toml|hatch_build\.py|\.gitignore"
    r"|tallstore/[\w/]+\.(py|css|js|html\.j2|c|h)|tallstore/py\.typed"
    r"|spec/[\w/.-]+\.(md|json|py|tall|safetensors)|spec/vectors/(SHA256SUMS|\.gitattributes)"
    r"|spec/vectors/(in)?valid/[\w/.-]+"
    r"|tests/[\w/.-]+\.(py|md|npz|tall|safetensors|json)|tests/golden/(SHA256SUMS|\.gitattributes)|tests/fuzz/found/[\w/.-]+"
    r"|benchmarks/[\w/.-]+\.(py|md|png|svg|csv|json)|docs/[\w/.-]+\.(py|md|yml|ipynb|css|js|svg|png|txt))"
)
PARTS = ("tallstore", "spec", "tests", "benchmarks", "docs", "findings", "scripts")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "_native.*", ".hypothesis", ".cache")
NEVER = re.compile(r"__pycache__|\.pyc$|\.nb[ci]$|(^|/)\.(git|ci|venv|cache|hypothesis)/|\.pkl$|\.pt$|/_native\.")


def run(words: Sequence[str | Path], cwd: Path | None = None, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env,
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(compiler: str, shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both artifacts. A build puts the library into the checkout too: it is made in a copy, so that no test runs a slow one."""

    def make(out: Path) -> None:
        copy = tmp_path_factory.mktemp("checkout")
        for name in (*PARTS, *(path.name for path in ROOT.iterdir() if path.is_file())):
            whole = ROOT / name
            shutil.copytree(whole, copy / name, ignore=LEFT_OUT) if whole.is_dir() else shutil.copy(whole, copy)
        run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=copy, CC=compiler)

    return shared.once("dist", make)


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sources(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tallstore").rglob("*.py")} | ASSETS
    if find_compiler() is not None:
        package |= {f"{NATIVE}/{library_path().name}", f"{NATIVE}/{sum_path(library_path()).name}"}
    else:
        package |= {p.relative_to(ROOT).as_posix() for p in (ROOT / NATIVE / "src").iterdir()}
    info = f"tallstore-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == package | {f"{info}/{name}" for name in RECORDS}
        facts = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert facts["Requires-Python"] == PROJECT["requires-python"]
    needed = [each for each in facts.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert sorted(needed) == sorted(each.replace("_", "-") for each in PROJECT["dependencies"])
    assert all(re.fullmatch(r"[a-z-]+>=[0-9.]+", each) for each in needed), "each has a lower bound"


def test_the_sources_hold_what_is_written_here_and_nothing_else(sources: Path) -> None:
    with tarfile.open(sources) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members), "no links"
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert {name for name in names if not IN_SOURCES.fullmatch(name) or NEVER.search(name)} == set()
    wanted = PARTS[:5]
    there = {p.relative_to(ROOT).as_posix() for top in wanted for p in (ROOT / top).rglob("*") if p.is_file()}
    assert {name for name in there if not NEVER.search(name)} - names == set(), "what is here is in it"


CHECK = """
import sys, tallstore, torch, tempfile, pathlib
assert pathlib.Path(tallstore.__file__).is_relative_to(sys.prefix), tallstore.__file__
with tallstore.open(sys.argv[1]) as zoo:
    zoo.verify()
    state = zoo.state_dict(zoo.tasks[0])
with tempfile.TemporaryDirectory() as folder:
    task = {name: t + 0.01 for name, t in state.items()}
    tallstore.pack(state, {"x": task}, pathlib.Path(folder) / "zoo.tall")
    with tallstore.open(pathlib.Path(folder) / "zoo.tall") as zoo:
        assert list(zoo.state_dict("x")) == list(state)
        zoo.report(pathlib.Path(folder) / "r.html", masks=False)
"""


def test_the_sources_make_the_same_wheel(compiler: str, wheel: Path, sources: Path, tmp_path: Path) -> None:
    flags = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    run([sys.executable, "-m", "pip", "wheel", *flags, "-w", tmp_path, sources], CC=compiler)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        compiled = ("_native.", "RECORD")
        same = [name for name in one.namelist() if not any(each in name for each in compiled)]
        assert [name for name in same if one.read(name) != other.read(name)] == []


def test_it_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, beside the packages of this one: nothing is fetched."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    flags = ["--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *flags, wheel])
    run([python, "-c", CHECK, ROOT / "spec/vectors/valid/minimal/archive.tall"], cwd=tmp_path)
    assert PROJECT["version"] in run([tmp_path / "env" / "bin" / "tallstore", "--version"])
