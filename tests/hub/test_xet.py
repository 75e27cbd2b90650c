"""The client with Xet switched on, which is how it comes, against servers that know nothing of it, or fail at it.

The client reads whether it is off when it is imported: each test is a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from loopback import Hub
from processes import Forks
from support import bytes_of, leftovers

from .conftest import TOKEN

pytest.importorskip("hf_xet")

PUSH = """
import warnings
import tallstore
warnings.simplefilter("ignore", DeprecationWarning)  # the client's own transport has some
try:
    report = tallstore.push(args[0], "user/zoo", endpoint=args[1], create_pr=args[2])
    print(f"pushed {len(report.add)}")
except tallstore.TallstoreError as error:
    print(f"{type(error).__name__}: {error}")
"""
PULL = """
import tallstore
try:
    print(f"pulled {tallstore.pull('user/zoo', args[0], tasks='a', endpoint=args[1], cache_dir=args[2]).files}")
except tallstore.TallstoreError as error:
    print(f"{type(error).__name__}: {error}")
"""


def run(forks: Forks, code: str, *args: object, xet: bool = True) -> str:
    env = {"HF_HUB_DISABLE_XET": "0" if xet else "1", "HF_TOKEN": TOKEN, "HF_HUB_VERBOSITY": "error"}
    code_, text = forks.run(code, *args, env={**env, "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    assert code_ == 0, text
    return text.splitlines()[-1]


@pytest.mark.parametrize("pull_request", [False, True])
def test_a_server_without_xet_is_pushed_to_by_lfs(pull_request: bool, zoo: Path, empty: Hub, forks: Forks) -> None:
    if pull_request:
        assert run(forks, PUSH, str(zoo), empty.url, False, xet=False).startswith("pushed")
        empty.stored.clear()
        empty.repos["user/zoo"].add("main", {".gitattributes": b""}, "emptied")
        empty.log.clear()
    assert run(forks, PUSH, str(zoo), empty.url, pull_request).startswith("pushed")
    asked = [request for request in empty.log if "xet-write-token" in request.path]
    assert [request.status for request in asked] == [404], "it is asked once, not for every file"
    branch = "refs/pr/1" if pull_request else "main"
    found = {p: d for p, d in empty.files("user/zoo", branch).items() if p not in {"README.md", ".gitattributes"}}
    assert found == bytes_of(zoo)
    assert len([path for method, path in empty.requests if method == "POST" and "/commit/" in path]) == 1


def test_a_server_that_refuses_xet_is_one_line(zoo: Path, empty: Hub, forks: Forks) -> None:
    empty.fail("xet-write-token", "status", 403)
    said = run(forks, PUSH, str(zoo), empty.url, False)
    assert said.startswith("AccessError: hf://user/zoo@main: the token may not do this")
    assert "tall.json" not in empty.files("user/zoo")


def test_a_pull_by_xet_that_fails_names_the_remedy(zoo: Path, hub: Hub, forks: Forks, tmp_path: Path) -> None:
    hub.xet = True
    args = (str(tmp_path / "work" / "out"), hub.url, str(tmp_path / "cache"))
    said = run(forks, PULL, *args)
    assert said.startswith("UnreachableError: hf://user/zoo@")
    assert said.endswith(
        "could not be moved by way of Xet (status 404); try again later, or do without: HF_HUB_DISABLE_XET=1"
    )
    assert leftovers(tmp_path / "work") == []
    assert not list((tmp_path / "cache").glob("models--*/snapshots/*/tasks/**/*.safetensors"))
    assert run(forks, PULL, *args, xet=False).startswith("pulled")


def test_a_server_without_xet_is_pulled_from(hub: Hub, forks: Forks, tmp_path: Path) -> None:
    assert run(forks, PULL, str(tmp_path / "out"), hub.url, str(tmp_path / "cache")).startswith("pulled")
