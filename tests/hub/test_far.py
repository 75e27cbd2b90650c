"""Reading by range: which bytes of which file are asked for, counted by the server; tries, timeouts, what is refused."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Hub, serving
from processes import Forks
from support import assert_same, bytes_of, examples, near, noise, slots

import tallstore
from tallstore.errors import AccessError, DamagedError, NotAnArchiveError, OptionError, RemoteError, UnreachableError
from tallstore.stores import Range, blocks, retries
from tallstore.stores.blocks import Block, BlockPlan
from tallstore.stores.ranged_files import FarFolder, Files
from tallstore.stores.retries import TransientError

Span = tuple[int, int]
MASK, BASE = "tasks/a/mask.safetensors", "base/base.safetensors"


@pytest.fixture
def packed(tmp_path: Path, small_chunks: int) -> Path:
    """Tensors of several chunks, one with rows of its own (which needs only some of the base's chunks)."""
    base = {
        "emb": noise(300, 16, seed=1),
        "fc": noise(64, 80, seed=2),
        "small": noise(300, seed=3),
        "big": noise(5000, seed=4),
    }
    tasks = {name: {n: near(t, seed) for n, t in base.items()} for seed, name in enumerate("abc", 1)}
    tasks["a"]["emb"] = near(base["emb"][:100], 7)
    tasks["a"]["head"] = noise(9, 16, seed=8)
    tallstore.pack(base, tasks, tmp_path / "zoo", base_codec="raw", allow_distant=True)
    with tallstore.open(tmp_path / "zoo") as zoo:
        zoo.write_subset(zoo.tasks, tmp_path / "zoo.tall")
    assert small_chunks == 1024
    return tmp_path / "zoo"


@pytest.fixture
def server(packed: Path) -> Iterator[Hub]:
    with serving({"user/zoo": {**bytes_of(packed), "zoo.tall": (packed.parent / "zoo.tall").read_bytes()}}) as running:
        yield running


def address(server: Hub, form: str) -> tuple[str, dict[str, Any]]:
    """The same archive, as each kind of far-away store has it."""
    web = f"{server.cdn}/cdn/user/zoo/{server.commit('user/zoo')}"
    return {
        "hub": ("hf://user/zoo", {"lazy": True, "endpoint": server.url}),
        "web": (web, {}),
        "file": (f"{web}/zoo.tall", {}),
        "fsspec": (web, {"storage_options": {"block_size": 2**22}}),
        "fsspec-file": (f"{web}/zoo.tall", {"storage_options": {"block_size": 2**22}}),
    }[form]


FORMS = ["hub", "web", "file", "fsspec", "fsspec-file"]


def spans(server: Hub) -> dict[str, list[Span]]:
    """Path → the ranges that were sent of it."""
    found: dict[str, list[Span]] = {}
    for request in server.log:
        if (
            request.sent
            and request.status in {200, 206}
            and "/cdn/" in request.path + "/cdn/" * ("/resolve/" in request.path)
        ):
            path = request.path.split("/", 5)[5]
            start = request.start or 0
            found.setdefault(path, []).append((start, start + request.sent))
    return {path: sorted(ranges) for path, ranges in found.items()}


def joined(ranges: list[Span]) -> list[Span]:
    """Ranges that touch, made one. Fails for any two that overlap: a byte that was fetched twice."""
    out: list[Span] = []
    for start, stop in sorted(ranges):
        assert not out or start >= out[-1][1], f"bytes {start} to {out[-1][1]} came twice"
        if out and start == out[-1][1]:
            out[-1] = (out[-1][0], stop)
        elif stop > start:
            out.append((start, stop))
    return out


def wanted(packed: Path, task: str, names: list[str] | None = None) -> dict[str, list[Span]]:
    """What decoding must read, worked out from the parts' own safetensors headers and chunk tables."""
    files = bytes_of(packed)
    always = {f"tasks/{task}/mask.safetensors"}
    out = {"tall.json": [(0, len(files["tall.json"]))]}
    with tallstore.open(packed) as zoo:
        facts = zoo.tensors(task)
        for path in (
            BASE,
            f"tasks/{task}/mask.safetensors",
            f"tasks/{task}/private.safetensors",
            "vector/0.safetensors",
        ):
            if path not in files:
                continue
            begin, places = slots(files[path])
            read = [
                name
                for name in (facts if names is None else names)
                if name in places and (path != BASE or facts[name].base is not None)
            ]
            if not read and path not in always:
                continue  # not even its header
            out[path] = [(0, begin)]
            for name in read:
                start, stop = places[name]
                rows = facts[name].shape[0] if name == "emb" else None
                if path == BASE and rows == 100:
                    stop = start + 2 * 1024 * 4  # raw chunks of 1024 elements: 1600 elements lie in two of them
                out[path].append((start, stop))
    return {path: joined(ranges) for path, ranges in out.items()}


def within(packed: Path, expected: dict[str, list[Span]]) -> list[Span]:
    """The same ranges in the single file, by where each file's bytes are in it."""
    whole = (packed.parent / "zoo.tall").read_bytes()
    files = bytes_of(packed)
    found = []
    for path, ranges in expected.items():
        at = whole.index(files[path])
        found += [(at + start, at + stop) for start, stop in ranges]
    return joined(found)


@pytest.mark.parametrize("names", [None, ["fc"], ["emb", "small"], ["head"]])
@pytest.mark.parametrize("form", FORMS)
def test_exactly_the_bytes_that_are_needed(form: str, names: list[str] | None, packed: Path, server: Hub) -> None:
    url, how = address(server, form)
    with tallstore.open(packed) as local, tallstore.open(url, **how) as zoo:
        assert_same(zoo.state_dict("a", names=names), local.state_dict("a", names=names))
    expected = wanted(packed, "a", names)
    found = {path: joined(ranges) for path, ranges in spans(server).items()}
    if not form.endswith("file"):
        assert found == expected
        return
    whole = (packed.parent / "zoo.tall").read_bytes()
    read, due = found["zoo.tall"], within(packed, expected)
    extra = sum(b - a for a, b in read) - sum(b - a for a, b in due)
    assert all(any(a <= start and stop <= b for a, b in read) for start, stop in due)
    directory = len(whole) - whole.rindex(b"PK\x01\x02", 0, whole.index(b"PK\x01\x02") + 4)
    heads = sum(30 + len(path) for path in wanted(packed, "a"))
    assert extra <= directory + 20 + heads, "the zip's directory, and the headers of the files that are read"


def test_a_base_that_nothing_builds_on_is_not_downloaded(packed: Path, server: Hub, tmp_path: Path) -> None:
    with (
        tallstore.open(packed) as local,
        tallstore.open("hf://user/zoo", lazy=False, endpoint=server.url, cache_dir=tmp_path / "cache") as zoo,
    ):
        assert_same(zoo.state_dict("a", names=["head"]), local.state_dict("a", names=["head"]))
        assert sorted(server.got()) == ["tall.json", MASK, "tasks/a/private.safetensors"]
        assert_same(zoo.state_dict("a", names=["fc"]), local.state_dict("a", names=["fc"]))
        assert BASE in server.got()


class Module(torch.nn.Module):
    """A module with the tensors of task a."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros_like(tensor)))


@pytest.mark.parametrize("form", ["hub", "web"])
def test_a_module_costs_the_same_bytes(form: str, packed: Path, server: Hub) -> None:
    url, how = address(server, form)
    with tallstore.open(packed) as local, tallstore.open(url, **how) as zoo:
        model = Module(local.state_dict("a"))
        zoo.load_into(model, "a")
        assert_same(dict(model.state_dict()), local.state_dict("a"))
    assert {path: joined(ranges) for path, ranges in spans(server).items()} == wanted(packed, "a")


@pytest.mark.parametrize("form", FORMS)
def test_ranges_that_touch_are_joined(form: str, packed: Path, server: Hub) -> None:
    url, how = address(server, form)
    with tallstore.open(url, **how) as zoo:
        server.log.clear()
        zoo.state_dict("b")
    count = sum(len(ranges) for ranges in spans(server).values())
    with tallstore.open(packed) as local:
        assert sum(-(-t.numel() // 1024) for t in local.state_dict("b").values()) > 15, "chunks that are read"
    parts = 4
    assert count <= 3 * parts, "of each part its header and its data, and of a single file where it begins"


def test_a_long_part_is_read_in_blocks_several_at_a_time(
    packed: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 8192)
    monkeypatch.setattr(blocks, "HELD", 20_000)
    url, how = address(server, "web")
    with tallstore.open(packed) as local, tallstore.open(url, **how) as zoo:
        assert_same(zoo.state_dict("a"), local.state_dict("a"))
        assert zoo.store._plan._held <= 40_000  # type: ignore[attr-defined]
    found = spans(server)
    assert len(found[BASE]) > 5
    assert {path: joined(ranges) for path, ranges in found.items()} == wanted(packed, "a")


@pytest.mark.parametrize("form", ["hub", "web", "file", "fsspec"])
def test_export_files_and_verify_read_far_away_too(form: str, packed: Path, server: Hub, tmp_path: Path) -> None:
    url, how = address(server, form)
    with tallstore.open(packed) as local, tallstore.open(url, **how) as zoo:
        zoo.export("c", tmp_path / "far")
        local.export("c", tmp_path / "near")
        assert bytes_of(tmp_path / "far") == bytes_of(tmp_path / "near")
        assert not [path for path in spans(server) if path.startswith(("tasks/a/", "tasks/b/"))]
        assert zoo.verify().files == local.verify().files
        with ThreadPoolExecutor(4) as pool:
            for task, state in zip("abcabc", pool.map(zoo.state_dict, "abcabc"), strict=True):
                assert_same(state, local.state_dict(task))


# What goes wrong on the way.


@pytest.mark.parametrize("form", ["hub", "web", "fsspec"])
@pytest.mark.parametrize(
    ("kind", "at", "times"), [("status", 503, 2), ("status", 429, 1), ("cut", 30, 3), ("flip", 5, 1), ("slow", 700, 1)]
)
def test_what_passes_is_tried_again(kind: str, at: int, times: int, form: str, packed: Path, server: Hub) -> None:
    url, how = address(server, form)
    with tallstore.open(packed) as local, tallstore.open(url, timeout=0.35, **how) as zoo:
        server.fail(f"^GET .*/{MASK}", kind, at, times)
        assert_same(zoo.state_dict("a"), local.state_dict("a"))


@pytest.mark.parametrize("form", ["hub", "web", "file", "fsspec"])
def test_what_does_not_pass_is_named_and_the_zoo_stays_usable(form: str, packed: Path, server: Hub) -> None:
    url, how = address(server, form)
    where = "zoo.tall" if form == "file" else MASK
    with tallstore.open(packed) as local, tallstore.open(url, timeout=5, **how) as zoo:
        for kind, error, words in (("cut", UnreachableError, "5 times"), ("flip", DamagedError, "damaged")):
            fault = server.fail(f"^GET .*/{where}", kind, 7)
            with pytest.raises(error, match=rf"{where if kind == 'cut' or form != 'file' else ''}.*{words}"):
                zoo.state_dict("a")
            fault.times = 0
        assert_same(zoo.state_dict("a"), local.state_dict("a"))


def test_a_byte_that_is_always_wrong_is_named_by_part_and_tensor(packed: Path, server: Hub) -> None:
    begin, _ = slots(bytes_of(packed)[MASK])
    data = bytearray(server.files("user/zoo")[MASK])
    data[begin + 3] ^= 1
    server.files("user/zoo")[MASK] = bytes(data)
    for form in ("hub", "web", "fsspec"):
        url, how = address(server, form)
        with tallstore.open(url, **how) as zoo, pytest.raises(DamagedError, match=f"{MASK}: tensor '.*' is damaged"):
            zoo.state_dict("a")


@pytest.mark.parametrize("change", [lambda d: d + b"more", lambda d: d[:-1], lambda d: d[:9]])
@pytest.mark.parametrize("form", ["hub", "web", "fsspec"])
def test_a_file_of_another_size_is_refused(form: str, change: Any, packed: Path, server: Hub) -> None:
    files = server.files("user/zoo")
    files[MASK] = change(files[MASK])
    url, how = address(server, form)
    with tallstore.open(url, **how) as zoo, pytest.raises(DamagedError, match=f"{MASK}.*(manifest says|cut off)"):
        zoo.verify()


def test_a_server_that_gives_no_ranges_is_refused(packed: Path, server: Hub) -> None:
    url, how = address(server, "web")
    with tallstore.open(url, **how) as zoo:
        server.fail("^GET", "whole")
        with pytest.raises(RemoteError, match="gives no byte ranges; download the archive"):
            zoo.state_dict("a", names=["big"])


@pytest.mark.parametrize("form", ["web", "file", "fsspec", "fsspec-file"])
def test_nothing_there_is_no_archive(form: str, server: Hub) -> None:
    url, how = address(server, form)
    with pytest.raises((NotAnArchiveError, DamagedError), match=r"not an archive|missing"):
        tallstore.open(url.replace(server.commit("user/zoo"), "0" * 40), **how)


def test_a_server_that_refuses_says_so(server: Hub) -> None:
    url, how = address(server, "web")
    server.fail("^(GET|HEAD)", "status", 403)
    with pytest.raises(AccessError, match="refuses"):
        tallstore.open(url, **how)


def test_secrets_of_an_address_are_sent_and_never_shown(packed: Path, server: Hub) -> None:
    url, _ = address(server, "file")
    secret = url.replace("//", "//me:s3cret@", 1) + "?sig=s3cret"
    with tallstore.open(secret) as zoo:
        assert "s3cret" not in zoo.url + repr(zoo)
        assert {request.secret for request in server.log} == {f"{b64encode(b'me:s3cret').decode()}?sig=s3cret"}
        server.fail("^GET", "cut", 5)
        with pytest.raises(UnreachableError) as caught:
            zoo.state_dict("a")
    assert "s3cret" not in str(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__)
    with pytest.raises(UnreachableError) as caught:
        tallstore.open("http://me:s3cret@127.0.0.1:9/zoo.tall?sig=s3cret", timeout=1)
    assert "s3cret" not in str(caught.value)


def test_addresses_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nonsense://x: no file system that fsspec knows"):
        tallstore.open("nonsense://x")
    with pytest.raises(OptionError, match="revision and lazy are for archives on the Hub"):
        tallstore.open(tmp_path, lazy=True)
    with pytest.raises(OptionError, match="user/name"):
        tallstore.open("hf://only-a-name")


def test_any_file_system_of_fsspec(packed: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path, data in bytes_of(packed).items():
        memory.pipe_file(f"/zoos/one/{path}", data)
    memory.pipe_file("/zoos/one.tall", (packed.parent / "zoo.tall").read_bytes())
    with tallstore.open(packed) as local:
        for url in ("memory://zoos/one", "memory://zoos/one.tall", packed.as_uri(), f"{packed.as_uri()}.tall"):
            with tallstore.open(url) as zoo:
                assert_same(zoo.state_dict("b"), local.state_dict("b"))
                assert zoo.verify().unlisted == ()
    memory.rm("/zoos", recursive=True)


# The plan by itself.

RANGES = st.lists(st.tuples(st.sampled_from("xy"), st.integers(0, 400), st.integers(0, 60)), max_size=12)


class Counted(Files):
    """Files in memory that count which bytes are read."""

    url = "counted"

    def __init__(self) -> None:
        self.totals = {}
        self.data = {path: torch.randint(256, (500,), dtype=torch.uint8).numpy().tobytes() for path in "xy"}
        self.read_of: list[tuple[str, int, int]] = []

    def paths(self) -> list[str]:
        return list(self.data)

    def size(self, path: str) -> int:
        return len(self.data[path])

    def read(self, path: str, start: int, stop: int) -> bytes:
        assert start < stop
        self.read_of.append((path, start, stop))
        return self.data[path][start:stop]


@settings(deadline=None, max_examples=examples(60))
@given(planned=RANGES, again=RANGES, block=st.sampled_from([1, 50, 10_000]), held=st.sampled_from([0, 100, 10_000]))
def test_a_plan_gives_the_right_bytes_and_no_others(planned: Any, again: Any, block: int, held: int) -> None:
    before = blocks.BLOCK, blocks.HELD
    blocks.BLOCK, blocks.HELD = block, held
    files = Counted()
    try:
        with FarFolder(files) as store:
            for ranges in (planned, again):
                store.prefetch([Range(*each) for each in ranges])
                for path, start, length in ranges:
                    assert bytes(store.read(path, start, length)) == files.data[path][start : start + length]
    finally:
        blocks.BLOCK, blocks.HELD = before
    asked = {(path, at) for path, start, length in [*planned, *again] for at in range(start, start + length)}
    got = [(path, at) for path, start, stop in files.read_of for at in range(start, stop)]
    assert set(got) <= asked
    if held == 10_000:
        assert len(got) == len(set(got)), "while there is room, no byte is read twice"


def test_blocks_never_overlap_and_hold_no_gap() -> None:
    made: list[Block] = []

    def submit(block: Block) -> Any:
        made.append(block)
        raise AssertionError("nothing is fetched before it is read")

    one = BlockPlan(submit)
    one.add(
        [
            Range("x", 10, 5),
            Range("x", 15, 5),
            Range("x", 30, 5),
            Range("x", 12, 4),
            Range("y", 20, 5),
            Range("x", 3, 0),
        ]
    )
    assert [(b.path, b.start, b.stop) for b in one._order] == [("x", 10, 20), ("x", 30, 35), ("y", 20, 25)]
    one.add([Range("x", 18, 14)])
    assert [(b.path, b.start, b.stop) for b in one._order][3:] == [("x", 20, 30)]
    assert made == []


def test_short_answers_are_tried_again_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Counted):
        def read(self, path: str, start: int, stop: int) -> bytes:
            return super().read(path, start, stop)[:-1]

    with (
        FarFolder(Short()) as store,
        pytest.raises(UnreachableError, match=r"counted: x: bytes 0 to 9: .*8 bytes came"),
    ):
        store.read("x", 0, 9)


def test_tries_wait_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retries, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(retries.time, "sleep", slept.append)

    def work() -> None:
        raise TransientError("no")

    with pytest.raises(UnreachableError, match=r"it: no answer that can be used, 5 times \(no\)"):
        retries.with_retries("it", work)
    assert slept == [1, 2, 4, 8]


def test_without_s3fs_its_command_is_named(forks: Forks) -> None:
    code = 'import sys; sys.modules["s3fs"] = None; import tallstore; tallstore.open("s3://bucket/zoo.tall")'
    status, said = forks.run(code)
    assert status == 1
    assert 'MissingExtraError: s3://bucket/zoo.tall: needs s3fs: pip install "tallstore[s3]"' in said
