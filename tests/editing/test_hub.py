"""A push after a change sends what is new, and deletes what went."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loopback import Hub, serving
from support import bytes_of

import tallstore

from .conftest import Models

pytest.importorskip("huggingface_hub")
TOKEN = "hf_goodgoodgood"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(tokens={TOKEN: "user"}) as running:
        yield running


def received(hub: Hub) -> int:
    """Bytes of all requests' bodies since the log was cleared."""
    return sum(request.received for request in hub.log)


@pytest.mark.parametrize("form", ["zoo", "zoo.tall"])
def test_a_push_sends_only_what_is_new(form: str, models: Models, hub: Hub) -> None:
    path = models.pack(form, recipe="fit", base_codec="raw")
    how = {"token": TOKEN, "endpoint": hub.url}
    tallstore.push(path, "user/zoo", **how)  # type: ignore[arg-type]
    whole = hub.files("user/zoo")
    hub.log.clear()
    grown = tallstore.add(path, {"d": models.folders["d"]})
    report = tallstore.push(path, "user/zoo", **how)  # type: ignore[arg-type]
    new = {
        "tasks/d/mask.safetensors",
        "tasks/d/private.safetensors",
        "tasks/d/files/config.json",
        "vector/1.safetensors",
    }
    assert set(report.add) == {*new, "tall.json", "config.json", "README.md"}
    assert report.bytes - report.add["README.md"] == grown.bytes_new
    assert report.delete == ()
    # Small files travel in base64, within the commit; and there are questions about each.
    assert received(hub) < 4 / 3 * report.bytes + 4096
    assert received(hub) < sum(map(len, whole.values()))
    now = hub.files("user/zoo")
    assert {name for name in whole if now[name] != whole[name]} == {"tall.json", "config.json", "README.md"}

    gone = tallstore.remove(path, ["a", "d"])
    report = tallstore.push(path, "user/zoo", **how)  # type: ignore[arg-type]
    assert set(report.delete) == {name for name in now if name.startswith(("tasks/a/", "tasks/d/", "vector/1"))}
    assert report.bytes - report.add["README.md"] == gone.bytes_new
    left = hub.files("user/zoo")
    assert not any(b'"a"' in data or b'task="a"' in data for data in left.values())
    if form == "zoo":
        shown = {name: data for name, data in left.items() if name not in {"README.md", ".gitattributes"}}
        assert shown == bytes_of(path)


def test_a_picture_of_a_task_that_went_goes_too(models: Models, hub: Hub) -> None:
    path = models.pack("zoo")
    how = {"token": TOKEN, "endpoint": hub.url}
    tallstore.push(path, "user/zoo", picture=b"\x89PNG of a, b and c", **how)  # type: ignore[arg-type]
    tallstore.remove(path, "a")
    report = tallstore.push(path, "user/zoo", **how)  # type: ignore[arg-type]
    assert "card.png" in report.delete
    assert "card.png" not in hub.files("user/zoo")
