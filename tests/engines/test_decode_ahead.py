"""Work that goes on beside: its result, its errors."""

from __future__ import annotations

import threading

import pytest

from tallstore.engines.decode_ahead import ahead, begun


def test_what_is_begun_goes_on_beside_and_gives_its_result_or_its_error() -> None:
    go = threading.Event()
    made = begun(lambda: (go.wait(10), threading.get_ident()))
    go.set()
    assert made() == (True, made()[1])
    assert made()[1] != threading.get_ident()
    failed = begun(lambda: {}[0])
    for _ in range(2):
        with pytest.raises(KeyError):
            failed()


def test_items_come_in_order_and_an_error_in_its_place() -> None:
    def items():
        yield from range(20)
        raise ValueError("the end")

    found = []
    with pytest.raises(ValueError, match="the end"):
        found.extend(ahead(items()))
    assert list(ahead(iter(range(30)))) == list(range(30))


def test_who_stops_early_leaves_no_thread_behind() -> None:
    taken = ahead(iter(range(1000)))
    assert next(taken) == 0
    taken.close()
    assert not [each for each in threading.enumerate() if each.name == "tallstore-ahead"]
