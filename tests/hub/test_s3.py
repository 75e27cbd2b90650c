"""An archive in a bucket: s3fs against moto's server, in processes of their own; the ranges are counted where they are sent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from processes import Forks, child_env
from support import bytes_of, import_later, slots, tiny_zoo

import tallstore

import_later("s3fs")
import_later("moto")

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(f"http://127.0.0.1:{port}", flush=True)
sys.stdin.read()
server.stop()
"""

READ = """
import json, pathlib
import s3fs, tallstore
from support import assert_same
endpoint, folder = args
options = {"key": "k", "secret": "s3cret", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
system = s3fs.S3FileSystem(**options)
system.call_s3("create_bucket", Bucket="zoos")
for path in pathlib.Path(folder).rglob("*"):
    if path.is_file():
        system.pipe_file(f"zoos/mine/{path.relative_to(folder).as_posix()}", path.read_bytes())
asked = []

def note(params, **_):
    asked.append((params["url_path"], params["headers"].get("Range")))

system.s3.meta.events.register("before-call.s3.GetObject", note)
with tallstore.open(folder) as local, tallstore.open("s3://zoos/mine", storage_options=options) as zoo:
    assert zoo.tasks == local.tasks
    assert_same(zoo.state_dict("a"), local.state_dict("a"))
    ranges = list(asked)
    assert zoo.verify().unlisted == ()
said = []
for url in ("s3://zoos/nothing", "s3://nobucket/mine"):
    try:
        tallstore.open(url, storage_options=options)
    except tallstore.TallstoreError as error:
        said.append(f"{type(error).__name__}: {error}")
print(json.dumps([ranges, said]))
"""


ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, env=child_env(), **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def test_a_task_is_read_from_a_bucket_by_exact_ranges(server: str, tmp_path: Path, forks: Forks) -> None:
    base, tasks = tiny_zoo(3)
    tallstore.pack(base, tasks, tmp_path / "zoo")
    code, out = forks.run(READ, server, str(tmp_path / "zoo"), env=ENVIRONMENT)
    assert code == 0, out
    asked, said = json.loads(out.splitlines()[-1])
    files = bytes_of(tmp_path / "zoo")
    found: dict[str, list[tuple[int, int]]] = {}
    for place, asked_range in asked:
        first, _, last = asked_range.removeprefix("bytes=").partition("-")
        found.setdefault(place.split("zoos/mine/")[-1].removeprefix("/mine/"), []).append((int(first), int(last) + 1))
    assert not [path for path in found if path.startswith(("tasks/b/", "tasks/c/"))]
    for path, ranges in found.items():
        read = sorted(ranges)
        assert all(a[1] <= b[0] for a, b in pairwise(read)), f"{path}: no byte twice"
        if path.endswith(".safetensors"):
            begin, places = slots(files[path])
            allowed = {at for start, stop in [(0, begin), *places.values()] for at in range(start, stop)}
            assert {at for start, stop in read for at in range(start, stop)} <= allowed
            assert read[0] == (0, begin)
    assert [line.split(":")[0] for line in said] == ["NotAnArchiveError"] * 2
    assert "s3cret" not in out


WRITE = """
import json, pathlib, tempfile
import s3fs, tallstore, torch
from support import assert_same, bytes_of, near, noise, read_all, write_folder
from tallstore.stores import fsspec_sink
endpoint, folder = args
folder = pathlib.Path(folder)
tempfile.tempdir = str(folder)
options = {"key": "k", "secret": "s3cret", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
system = s3fs.S3FileSystem(**options)
system.call_s3("create_bucket", Bucket="out")
fsspec_sink.UPLOAD_BLOCK = 5 << 20
base = {"w": noise(1500, 2048, seed=1), "v": noise(300)}
tasks = {"a": {name: near(tensor, 5) for name, tensor in base.items()}}
system.put(str(write_folder(folder / "base", base)), "out/in/base", recursive=True)
system.put(str(write_folder(folder / "a", tasks["a"])), "out/in/a", recursive=True)
calls = []
for call in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"):
    system.s3.meta.events.register(
        f"before-call.s3.{call}", lambda params, call=call, **_: calls.append((call, params["url_path"]))
    )
how = {"base_codec": "raw", "storage_options": options}
for name in ("zoo", "zoo.tall"):
    tallstore.pack(folder / "base", {"a": folder / "a"}, folder / "local" / name, base_codec="raw")
    calls.clear()
    tallstore.pack("s3://out/in/base", {"a": "s3://out/in/a"}, f"s3://out/{name}", **how)
    if name == "zoo":
        done = list(calls)
    with tallstore.open(f"s3://out/{name}", storage_options=options) as zoo:
        zoo.verify(against={"a": tasks["a"]})
        with tallstore.open(folder / "local" / name) as local:
            assert zoo.manifest_bytes() == local.manifest_bytes()
            assert_same(zoo.state_dict("a"), local.state_dict("a"))
        zoo.export("a", folder / f"out-{name}")

def broken(params, **_):
    raise ValueError("no answer")

system.s3.meta.events.register("before-call.s3.CompleteMultipartUpload", broken)
said = []
for name in ("lost", "lost.tall", "zoo"):
    try:
        tallstore.pack(folder / "base", {"a": folder / "a"}, f"s3://out/{name}", overwrite=name == "zoo", **how)
    except tallstore.TallstoreError as error:
        said.append(f"{type(error).__name__}: {error}")
system.invalidate_cache()
left = [name for name in system.find("out") if "lost" in name or name == "out/zoo/tall.json"]
uploads = system.call_s3("list_multipart_uploads", Bucket="out").get("Uploads", [])
try:
    tallstore.pack(base, tasks, "s3://nobucket/zoo", storage_options=options)
except tallstore.TallstoreError as error:
    said.append(f"{type(error).__name__}: {error}")
print(json.dumps([done, said, left, len(uploads)]))
"""


def test_an_archive_is_put_in_a_bucket(server: str, tmp_path: Path, forks: Forks) -> None:
    code, out = forks.run(WRITE, server, str(tmp_path), env=ENVIRONMENT)
    assert code == 0, out
    calls, said, left, uploads = json.loads(out.splitlines()[-1])
    made = [(call, path.split("zoo/")[-1].partition("?")[0]) for call, path in calls]
    assert [path for call, path in made if call == "CreateMultipartUpload"] == ["base/base.safetensors"]
    assert len([path for call, path in made if call == "UploadPart"]) == 2, "12 MB, put whenever there are 5 or more"
    assert made[-1] == ("PutObject", "tall.json"), "the manifest is the last"
    assert [line.split(": cannot be written")[0] for line in said[:3]] == [
        "OutputError: s3://out/lost", "OutputError: s3://out/lost.tall", "OutputError: s3://out/zoo"
    ]  # fmt: skip
    assert said[3].startswith(("OutputError: s3://nobucket/zoo", "AccessError: s3://nobucket/zoo"))
    assert left == [], "nothing that opens, nor anything else of a new one"
    assert uploads == 0, "pieces that were put are given up too"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or path.name.startswith("tallstore-")]
    assert "s3cret" not in out
