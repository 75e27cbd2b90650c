"""What is written appears whole or not at all: existing output, full disks, missing rights, other writers."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import Forks
from support import State, assert_same, bytes_of, leftovers, near, noise, slots, tiny_zoo

import tallstore
from tallstore.errors import CheckpointError, DamagedError, NotAnArchiveError, OutputError, OutputExistsError


class Stop(Exception):
    """What a progress callback raises to stop the work."""


def stop(_text: str, done: int, total: int) -> None:
    if done > total / 2:
        raise Stop


@pytest.fixture
def zoo() -> tuple[State, dict[str, State]]:
    return tiny_zoo(2)


@pytest.fixture
def other() -> tuple[State, dict[str, State]]:
    base, tasks = tiny_zoo(3)
    return base, {"new": tasks["c"]}


# Output that is there already.

OCCUPIED: dict[str, Callable[[Path], object]] = {
    "text": lambda p: p.write_text("precious"),
    "empty file": lambda p: p.touch(),
    "folder": lambda p: (p.mkdir(), (p / "thesis.tex").write_text("precious")),
    "empty folder": lambda p: p.mkdir(),
    "foreign zip": lambda p: zip_of(p, "thesis.docx"),
    "dangling link": lambda p: p.symlink_to(p.with_name("gone")),
    "link to a folder": lambda p: (p.with_name("real").mkdir(), p.symlink_to(p.with_name("real"))),
    "repository with an archive in it": lambda p: repository(p),
}


def zip_of(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "precious")


def repository(path: Path) -> None:
    tallstore.pack(*tiny_zoo(1), path.with_name("made"))
    path.with_name("made").rename(path)
    (path / ".git").mkdir()
    (path / ".git" / "HEAD").write_text("precious")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("case", OCCUPIED)
@pytest.mark.parametrize("name", ["zoo", "zoo.tall"])
def test_what_is_no_archive_is_never_overwritten(
    name: str, case: str, overwrite: bool, tmp_path: Path, zoo: tuple[State, dict[str, State]]
) -> None:
    OCCUPIED[case](tmp_path / name)
    before, links = bytes_of(tmp_path), [p for p in tmp_path.iterdir() if p.is_symlink()]
    names = leftovers(tmp_path)
    with pytest.raises(OutputExistsError) as caught:
        tallstore.pack(*zoo, tmp_path / name, overwrite=overwrite)
    assert str(tmp_path / name) in str(caught.value)
    assert "choose another name" in str(caught.value)
    assert bytes_of(tmp_path) == before
    assert leftovers(tmp_path) == names
    assert [p for p in tmp_path.iterdir() if p.is_symlink()] == links


def test_an_archive_is_overwritten_only_when_asked(
    target: Path, zoo: tuple[State, dict[str, State]], other: tuple[State, dict[str, State]]
) -> None:
    tallstore.pack(*zoo, target)
    before = bytes_of(target.parent)
    with pytest.raises(
        OutputExistsError, match=r"is there already; choose another name, or pass overwrite=True \(--overwrite\)"
    ):
        tallstore.pack(*other, target)
    assert bytes_of(target.parent) == before
    tallstore.pack(*other, target, overwrite=True)
    with tallstore.open(target) as opened:
        opened.verify()
        assert opened.tasks == ("new",)
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_an_open_archive_stays_readable_while_it_is_overwritten(
    target: Path, zoo: tuple[State, dict[str, State]], other: tuple[State, dict[str, State]]
) -> None:
    tallstore.pack(*zoo, target)
    with tallstore.open(target) as opened:
        wanted = opened.state_dict("a")
        tallstore.pack(*other, target, overwrite=True)
        assert_same(opened.state_dict("a"), wanted)


def test_parents_are_made(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    tallstore.pack(*zoo, tmp_path / "x" / "y" / "zoo.tall")
    assert leftovers(tmp_path) == ["x", "x/y", "x/y/zoo.tall"]


def test_a_failed_pack_leaves_no_parents(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    with pytest.raises(CheckpointError):
        tallstore.pack(zoo[0], {"a": tmp_path / "nothing"}, tmp_path / "x" / "y" / "zoo.tall")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("existing", [False, True])
def test_whatever_stops_the_work_leaves_what_was_there(
    error: type[BaseException], existing: bool, target: Path, zoo: tuple[State, dict[str, State]],
    other: tuple[State, dict[str, State]],
) -> None:  # fmt: skip
    if existing:
        tallstore.pack(*zoo, target)
    before = bytes_of(target.parent)
    for share in (0, 0.3, 0.6, 1):

        def stopping(_text: str, done: int, total: int, share: float = share) -> None:
            if done >= share * total:
                raise error

        with pytest.raises(error):
            tallstore.pack(*other, target, overwrite=True, progress=stopping)
        assert bytes_of(target.parent) == before
        assert leftovers(target.parent) == sorted(
            {*before, *(n for n in leftovers(target.parent) if n.startswith(target.name))}
        )
    tallstore.pack(*other, target, overwrite=True)


def test_progress_goes_up_to_its_end(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    calls: list[tuple[str, int, int]] = []

    def note(text: str, done: int, total: int) -> None:
        calls.append((text, done, total))

    for recipe in ("fit", "solo"):
        calls.clear()
        tallstore.pack(*zoo, tmp_path / f"{recipe}.tall", recipe=recipe, progress=note)
        assert all(0 <= done <= total for _, done, total in calls)
        assert calls[-1][1] == calls[-1][2]
    with tallstore.open(tmp_path / "fit.tall") as opened:
        for work in (opened.verify, lambda progress: opened.export("a", tmp_path / "out", progress=progress)):
            calls.clear()
            work(progress=note)
            assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
            assert calls[-1][1] == calls[-1][2]


def test_a_target_below_a_file_is_refused(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        tallstore.pack(*zoo, tmp_path / "file" / "zoo.tall")
    assert leftovers(tmp_path) == ["file"]


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    with pytest.raises(OutputError, match="too long"):
        tallstore.pack(*zoo, tmp_path / f"{'x' * 260}.tall")
    assert leftovers(tmp_path) == []


def test_where_you_are_is_not_replaced(
    tmp_path: Path, zoo: tuple[State, dict[str, State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tallstore.pack(*zoo, tmp_path / "zoo")
    monkeypatch.chdir(tmp_path / "zoo")
    before = bytes_of(tmp_path)
    with pytest.raises(OutputError):
        tallstore.pack(*zoo, ".", overwrite=True)
    assert bytes_of(tmp_path) == before


# Other writers.


def test_a_second_writer_of_one_target_is_refused_and_the_first_ends_well(
    target: Path, zoo: tuple[State, dict[str, State]], other: tuple[State, dict[str, State]]
) -> None:
    refused = []

    def meanwhile(_text: str, _done: int, _total: int) -> None:
        if not refused:
            with pytest.raises(OutputError, match="another process is writing it; wait for it to end") as caught:
                tallstore.pack(*other, target)
            refused.append(caught.value)

    tallstore.pack(*zoo, target, progress=meanwhile)
    assert refused
    with tallstore.open(target) as opened:
        opened.verify()
        assert opened.tasks == ("a", "b")
    assert [p.name for p in target.parent.iterdir()] == [target.name]


HELD = """
import pathlib, time
import tallstore, support

held = []

def hold(*_):
    if not held:
        held.append(True)
        pathlib.Path(args[1]).touch()
        while pathlib.Path(args[1]).exists():
            time.sleep(0.01)

tallstore.pack(*support.tiny_zoo(2), args[0], progress=hold)
"""


def test_a_second_process_is_refused_too(target: Path, forks: Forks, other: tuple[State, dict[str, State]]) -> None:
    flag = target.with_name("holding")
    forks.start(HELD, str(target), str(flag))
    while not flag.exists():
        time.sleep(0.01)
    with pytest.raises(OutputError, match="another process is writing it"):
        tallstore.pack(*other, target, overwrite=True)
    assert not target.exists()
    flag.unlink()
    code, text = forks.wait()
    assert code == 0, text
    with tallstore.open(target) as opened:
        opened.verify()
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_a_crowd_of_writers_spoils_nothing(target: Path, zoo: tuple[State, dict[str, State]]) -> None:
    """Each either writes the whole archive or is told to wait, and no lock or litter is left."""
    base, tasks = zoo
    crowd = [{f"by{n}": tasks["a"]} for n in range(4)]

    def write(n: int) -> list[str]:
        told = []
        for _ in range(6):
            try:
                tallstore.pack(base, crowd[n], target, overwrite=True)
                told.append("")
            except OutputError as error:
                told.append(str(error))
        return told

    with ThreadPoolExecutor(len(crowd)) as pool:
        told = [text for texts in pool.map(write, range(len(crowd))) for text in texts]
    assert set(told) <= {"", f"{target}: another process is writing it; wait for it to end"}
    assert "" in told
    with tallstore.open(target) as opened:
        opened.verify()
        assert len(opened.tasks) == 1
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_two_targets_side_by_side_do_not_hinder_each_other(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    done = []

    def meanwhile(_text: str, _done: int, _total: int) -> None:
        if not done:
            done.append(tallstore.pack(*zoo, tmp_path / "two.tall"))

    tallstore.pack(*zoo, tmp_path / "one.tall", progress=meanwhile)
    assert (tmp_path / "one.tall").read_bytes() == (tmp_path / "two.tall").read_bytes()


def test_what_appears_meanwhile_is_not_replaced(target: Path, zoo: tuple[State, dict[str, State]]) -> None:
    def meanwhile(_text: str, _done: int, _total: int) -> None:
        target.write_text("precious")

    with pytest.raises(OutputExistsError, match="appeared while it was being written; nothing was replaced"):
        tallstore.pack(*zoo, target, progress=meanwhile)
    assert target.read_text() == "precious"
    assert [p.name for p in target.parent.iterdir()] == [target.name]


# Export.


@pytest.fixture
def opened(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> Iterator[tallstore.Zoo]:
    tallstore.pack(*zoo, tmp_path / "in" / "zoo")
    with tallstore.open(tmp_path / "in" / "zoo") as found:
        yield found


def test_export_replaces_a_model_only_when_asked(tmp_path: Path, opened: tallstore.Zoo) -> None:
    out = tmp_path / "out"
    opened.export("a", out)
    before = bytes_of(out)
    with pytest.raises(
        OutputExistsError, match=r"out: is there already; choose another name, or pass overwrite=True \(--overwrite\)"
    ):
        opened.export("b", out)
    assert bytes_of(out) == before
    opened.export("b", out, overwrite=True)
    assert bytes_of(out) != before
    assert leftovers(tmp_path) == sorted(
        ["in", "out", "out/model.safetensors", *(f"in/{n}" for n in leftovers(tmp_path / "in"))]
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_export_replaces_nothing_else(
    overwrite: bool, tmp_path: Path, opened: tallstore.Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case, make in OCCUPIED.items():
        if case in {"empty folder", "link to a folder"}:
            continue
        make(tmp_path / "out")
        before = bytes_of(tmp_path)
        with pytest.raises(OutputExistsError):
            opened.export("a", tmp_path / "out", overwrite=overwrite)
        assert bytes_of(tmp_path) == before, case
        (tmp_path / "out").rename(tmp_path / f"used {case}")
    home = tmp_path / "work"
    opened.export("a", home)
    (home / "below").mkdir()
    for place in (home, home / "below"):
        monkeypatch.chdir(place)
        with pytest.raises(OutputExistsError):
            opened.export("b", home, overwrite=overwrite)
    (home / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputExistsError):
        opened.export("b", home, overwrite=overwrite)


def test_links_are_followed_and_stay(
    tmp_path: Path, opened: tallstore.Zoo, other: tuple[State, dict[str, State]]
) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far")
    opened.export("a", tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert leftovers(tmp_path / "far") == ["model.safetensors"]
    for name in ("zoo", "zoo.tall"):
        tallstore.pack(*tiny_zoo(1), tmp_path / "far" / f"real-{name}")
        (tmp_path / name).symlink_to(f"far/real-{name}")
        tallstore.pack(*other, tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_symlink()
        with tallstore.open(tmp_path / "far" / f"real-{name}") as found:
            assert found.tasks == ("new",)
    assert not list(tmp_path.rglob(".*"))


def test_export_into_an_empty_folder(tmp_path: Path, opened: tallstore.Zoo) -> None:
    (tmp_path / "out").mkdir()
    opened.export("a", tmp_path / "out")
    assert leftovers(tmp_path / "out") == ["model.safetensors"]


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path, opened: tallstore.Zoo) -> None:
    opened.export("a", tmp_path / "old")
    before = bytes_of(tmp_path / "old")
    with pytest.raises(Stop):
        opened.export("b", tmp_path / "old", overwrite=True, progress=stop)
    with pytest.raises(Stop):
        opened.export("b", tmp_path / "new", progress=stop)
    part = Path(opened.url) / "tasks" / "b" / "mask.safetensors"
    data = bytearray(part.read_bytes())
    data[slots(bytes(data))[0] + 40] ^= 4
    part.write_bytes(data)
    with tallstore.open(opened.url) as damaged:
        for out in ("old", "new"):
            with pytest.raises(DamagedError, match=r"tasks/b/mask\.safetensors: tensor '.*' is damaged"):
                damaged.export("b", tmp_path / out, overwrite=True)
    assert bytes_of(tmp_path / "old") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "old"]


def test_an_unfinished_folder_is_no_archive(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    """The manifest is written last: a copy that was cut off before it cannot be opened."""
    tallstore.pack(*zoo, tmp_path / "zoo")
    (tmp_path / "zoo" / "tall.json").unlink()
    with pytest.raises(NotAnArchiveError, match=r"without tall\.json: not an archive, or one never finished"):
        tallstore.open(tmp_path / "zoo")


def test_the_manifest_is_written_last(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    tallstore.pack(*zoo, tmp_path / "zoo.tall")
    with zipfile.ZipFile(tmp_path / "zoo.tall") as archive:
        infos = archive.infolist()
        assert archive.testzip() is None
    assert infos[-1].filename == "tall.json"
    assert [i.header_offset for i in infos] == sorted(i.header_offset for i in infos)
    assert {i.compress_type for i in infos} == {zipfile.ZIP_STORED}


def test_a_stock_zip_tool_turns_a_file_into_a_folder(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    base, tasks = zoo
    tallstore.pack(
        base | {"big": noise(500, 100)}, {"a": tasks["a"] | {"big": near(noise(500, 100), 3)}}, tmp_path / "zoo.tall"
    )
    with zipfile.ZipFile(tmp_path / "zoo.tall") as archive:
        archive.extractall(tmp_path / "zoo")
    with tallstore.open(tmp_path / "zoo") as folder, tallstore.open(tmp_path / "zoo.tall") as file:
        assert folder.verify().unlisted == ()
        assert_same(folder.state_dict("a"), file.state_dict("a"))
