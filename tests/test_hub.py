"""Hub ids as base and tasks: the real client, against a Hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from loopback import Hub, serving
from processes import Forks
from safetensors.torch import save
from support import State, leftovers, same_bits, tiny_zoo

import tallstore

Zoo = tuple[State, dict[str, State], dict[str, dict[str, bytes]]]

PACK = """
import tallstore
for job in args:
    try:
        tallstore.pack(job["base"], job["tasks"], job["out"], recipe="fit")
        print("packed")
    except tallstore.TallstoreError as error:
        print(f"{type(error).__name__}: {error}")
"""


def repo(state: State, name: str, **more: bytes) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"name": name}).encode(),
        "model.safetensors": save(state),
        "README.md": b"# hi",
        **more,
    }


def pickled(state: State, folder: Path) -> bytes:
    torch.save(state, folder / "x.bin")
    return (folder / "x.bin").read_bytes()


def run(forks: Forks, hub_url: str, cache: Path, *jobs: object, offline: bool = False) -> list[str]:
    """Pack each job in one process; a line for each: `packed`, or the error."""
    code, text = forks.run(
        PACK,
        *jobs,
        env={
            "HF_ENDPOINT": hub_url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "NO_PROXY": "127.0.0.1,localhost",
        },
    )
    first, *lines = text.splitlines()
    assert (code, first) == (0, "started"), text
    return lines


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    base, tasks = tiny_zoo(2)
    repos = {
        "user/base": repo(base, "base", **{"model.onnx": b"onnx" * 500, "pytorch_model.bin": b"rubbish" * 500}),
        "user/task-a": repo(tasks["a"], "a"),
        "user/task-b": {"config.json": b"{}", "pytorch_model.bin": pickled(tasks["b"], tmp_path)},
    }
    (tmp_path / "x.bin").unlink()
    return base, tasks, repos


def fetched(hub: Hub) -> list[str]:
    return [path for method, path in hub.requests if method == "GET" and "/api/" not in path]


def test_hub_ids_pack_and_pin_the_commit(zoo: Zoo, tmp_path: Path, forks: Forks) -> None:
    base, tasks, repos = zoo
    out = tmp_path / "zoo.tall"
    job = {"base": "user/base", "tasks": {"a": "hf://user/task-a@main", "b": "user/task-b"}}
    with serving(repos) as hub:
        assert run(forks, hub.url, tmp_path / "cache", {**job, "out": str(out)}) == ["packed"]
        assert not [path for path in fetched(hub) if path.endswith(".onnx")]
        assert not [path for path in fetched(hub) if "user/base" in path and path.endswith(".bin")], (
            "safetensors are preferred"
        )
        commits = {name: hub.commit(name) for name in repos}
        hub.log.clear()
        pinned = {"base": f"user/base@{commits['user/base']}", "tasks": {"b": f"user/task-b@{commits['user/task-b']}"}}
        assert run(forks, hub.url, tmp_path / "cache", {**pinned, "out": str(tmp_path / "again.tall")}) == ["packed"]
        assert fetched(hub) == [], "what is in the cache is not fetched again"
    offline = {**job, "out": str(tmp_path / "offline.tall")}
    missing = {**job, "base": "user/never-fetched", "out": str(tmp_path / "missing.tall")}
    lines = run(forks, "http://127.0.0.1:9", tmp_path / "cache", offline, missing, offline=True)
    assert lines[0] == "packed", "the cache serves without a network"
    assert lines[1].startswith(
        "CheckpointError: user/never-fetched: no such folder or file here, and the Hub did not give it"
    )
    assert (tmp_path / "offline.tall").read_bytes() == out.read_bytes()
    with tallstore.open(out) as opened:
        opened.verify()
        assert dict(opened.manifest.base.source) == {"repo": "user/base", "commit": commits["user/base"]}
        assert dict(opened.manifest.tasks["b"].source) == {"repo": "user/task-b", "commit": commits["user/task-b"]}
        assert all(same_bits(opened.base(name), tensor) for name, tensor in base.items())
        assert json.loads((opened.export("a", tmp_path / "out") / "config.json").read_bytes()) == {"name": "a"}
        tallstore.pack(base, tasks, tmp_path / "memory.tall", recipe="fit")
        with tallstore.open(tmp_path / "memory.tall") as memory:
            for task in tasks:
                found = opened.state_dict(task)
                assert all(same_bits(found[n], t) for n, t in memory.state_dict(task).items())


REFUSED = {
    "user/nothing": "user/nothing: no such folder or file here, and the Hub did not give it",
    "user/base@v9": "user/base: no such folder or file here, and the Hub did not give it",
    "user/empty": "holds no checkpoint",
    "user/cut": "safetensors",
    "no/such/id": "no/such/id: no such folder or file",
}


def test_what_the_hub_has_not_is_refused(zoo: Zoo, tmp_path: Path, forks: Forks) -> None:
    cut = {"model.safetensors": zoo[2]["user/base"]["model.safetensors"][:-9]}
    out = tmp_path / "work" / "zoo.tall"
    with serving({**zoo[2], "user/empty": {"config.json": b"{}"}, "user/cut": cut}) as hub:
        jobs = [{"base": base, "tasks": {"a": "user/task-a"}, "out": str(out)} for base in REFUSED]
        lines = run(forks, hub.url, tmp_path / "cache", *jobs)
    assert len(lines) == len(REFUSED)
    for line, (base, message) in zip(lines, REFUSED.items(), strict=True):
        assert line.startswith("CheckpointError: "), base
        assert message in line, base
    assert leftovers(tmp_path / "work") == []


def test_a_hub_that_cannot_be_reached_is_one_clear_error(tmp_path: Path, forks: Forks) -> None:
    job = {"base": "user/base", "tasks": {"a": "user/a"}, "out": str(tmp_path / "zoo.tall")}
    (line,) = run(forks, "http://127.0.0.1:9", tmp_path / "cache", job)
    assert line.startswith("CheckpointError: user/base: no such folder or file here, and the Hub did not give it: ")
    assert "refused" in line
    assert not (tmp_path / "zoo.tall").exists()
