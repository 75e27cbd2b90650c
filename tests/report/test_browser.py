"""The page in a real browser: no error, nothing fetched, every figure drawn, the search works, harm does nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import DESK, PHONE, broken, judged, opened, show
from report_support import EVERY, HARM, deep_zoo, hostile, scored
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import tallstore


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("twenty")
    tallstore.pack(*deep_zoo(20, layers=24), home / "zoo.tall")
    with tallstore.open(home / "zoo.tall") as zoo:
        return zoo.report(home / "report.html")


def photograph(chrome: Any, name: str) -> None:
    """Keep what is seen, where somebody wants to look at it: TALLSTORE_SCREENSHOTS names the folder."""
    if folder := os.environ.get("TALLSTORE_SCREENSHOTS"):
        chrome.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_every_figure_is_drawn_and_nothing_complains(
    size: tuple[int, int], scheme: str, chrome: Any, twenty: Path
) -> None:
    show(chrome, twenty, size, scheme)
    photograph(chrome, f"twenty-{size[0]}-{scheme}")
    assert chrome.get_log("browser") == []
    figures = chrome.find_elements(By.CSS_SELECTOR, "figure[data-figure]")
    assert [figure.get_attribute("data-figure") for figure in figures] == list(EVERY)
    for figure in figures:
        (svg,) = (e for e in figure.find_elements(By.CSS_SELECTOR, "svg") if e.is_displayed())
        assert svg.size["width"] > 300
        assert svg.size["height"] > 150
        paints = chrome.execute_script(
            "return [...arguments[0].querySelectorAll('path,text')].map(e => getComputedStyle(e).fill)", svg
        )
        assert len(set(paints)) >= 3, "colours are not lost on the way"
        assert "rgb(0, 0, 0)" not in paints, "a variable that is not there is black"
    ground = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 20, 26)"}[scheme]
    assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk", "phone"])
def test_those_who_do_not_see_it_are_not_left_out(
    size: tuple[int, int], scheme: str, chrome: Any, tmp_path: Path
) -> None:
    tallstore.pack(*deep_zoo(3, layers=2), tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        show(chrome, zoo.report(tmp_path / "report.html"), size, scheme)
    found = judged(chrome)
    assert broken(found) == {}
    # Text drawn in figures is what axe cannot judge; `test_page` has the contrast of every colour there is.
    assert {rule["id"] for rule in found["incomplete"]} <= {"color-contrast"}
    assert len(found["passes"]) > 30


def test_nothing_is_fetched_and_it_opens_at_once(chrome: Any, twenty: Path) -> None:
    assert twenty.stat().st_size < 3_000_000
    began = time.monotonic()
    show(chrome, twenty)
    assert time.monotonic() - began < 2
    sent = [
        entry["message"] for entry in chrome.get_log("performance") if 'Network.requestWillBeSent"' in entry["message"]
    ]
    assert len(sent) >= 1
    assert all(twenty.as_uri() in message or '"url":"data:' in message for message in sent)


def rows(chrome: Any) -> list[str]:
    found = chrome.find_elements(By.CSS_SELECTOR, "#tasks-table tbody tr")
    return [row.text.split()[0] for row in found if row.is_displayed()]


def test_search_and_sorting(chrome: Any, twenty: Path) -> None:
    show(chrome, twenty)
    assert len(rows(chrome)) == 20
    box = chrome.find_element(By.ID, "tasks-search")
    box.send_keys("TASK-1")
    assert rows(chrome) == [f"task-{n}" for n in range(10, 20)]
    said = chrome.find_element(By.CSS_SELECTOR, "#tasks output")
    assert said.text == "10 of 20"
    box.send_keys("9")
    assert rows(chrome) == ["task-19"]
    box.send_keys(" nothing")
    assert (rows(chrome), said.text) == ([], "0 of 20")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    assert len(rows(chrome)) == 20
    with tallstore.open(twenty.with_name("zoo.tall")) as zoo:
        errors = {name: task["relative_error"] for name, task in zoo.info()["tasks"].items()}
    heads = chrome.find_elements(By.CSS_SELECTOR, "#tasks-table thead th")
    at = next(n for n, head in enumerate(heads) if head.text.startswith("error"))
    heads[at].find_element(By.TAG_NAME, "button").click()
    assert heads[at].get_attribute("aria-sort") == "ascending"
    assert rows(chrome) == sorted(errors, key=errors.__getitem__)
    heads[at].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heads[at].get_attribute("aria-sort") == "descending"
    assert rows(chrome) == sorted(errors, key=errors.__getitem__, reverse=True)
    heads[0].find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert heads[at].get_attribute("aria-sort") is None
    assert rows(chrome) == sorted(errors)


def test_the_keyboard_is_enough(chrome: Any, twenty: Path) -> None:
    show(chrome, twenty)
    chrome.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = chrome.switch_to.active_element
    assert skip.text == "Skip to the report"
    assert skip.is_displayed()
    skip.send_keys(Keys.ENTER)
    assert chrome.switch_to.active_element.get_attribute("id") == "main"
    reached = set()
    for _ in range(80):
        chrome.switch_to.active_element.send_keys(Keys.TAB)
        active = chrome.switch_to.active_element
        if active.tag_name == "body":  # past the last one
            break
        reached.add(active.tag_name)
        outline = active.value_of_css_property("outline-style")
        assert outline != "none", active.get_attribute("outerHTML")[:200]
    assert {"button", "input", "summary", "div"} <= reached


def test_the_theme_can_be_changed(chrome: Any, twenty: Path) -> None:
    show(chrome, twenty)
    button = chrome.find_element(By.ID, "theme")
    seen = []
    for _ in range(2):
        seen.append((button.text, chrome.execute_script("return getComputedStyle(document.body).backgroundColor")))
        button.click()
    assert [text for text, _ in seen] == ["Dark", "Light"]
    assert len({ground for _, ground in seen}) == 2


def test_a_stranger_s_names_do_nothing(chrome: Any, tmp_path: Path) -> None:
    with tallstore.open(hostile(tmp_path / "zoo")) as zoo:
        page = zoo.report(tmp_path / "report.html")
    show(chrome, page)
    assert chrome.get_log("browser") == [], "nothing that the policy had to stop"
    assert chrome.execute_script("return window.harmed") is None
    assert chrome.execute_script("return document.querySelectorAll('script, img, iframe, object').length") == 1
    assert HARM in chrome.find_element(By.ID, "wholes-table").text + chrome.find_element(By.ID, "provenance").text
    assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_were_escaping_to_fail_the_policy_would_stop_it(chrome: Any, tmp_path: Path) -> None:
    with tallstore.open(scored(tmp_path / "zoo")) as zoo:
        page = zoo.report(tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</main>", f"{HARM}<img src=https://example.invalid/x></main>"), encoding="utf-8")
    show(chrome, page)
    assert chrome.execute_script("return window.harmed") is None
    stopped = " ".join(entry["message"] for entry in chrome.get_log("browser"))
    assert "Content Security Policy" in stopped


def test_scores_are_seen(chrome: Any, tmp_path: Path) -> None:
    with tallstore.open(scored(tmp_path / "zoo")) as zoo:
        page = zoo.report(tmp_path / "report.html")
    show(chrome, page)
    photograph(chrome, "scored")
    assert "98.2 %\nat worst 95.0 %: task-01" in chrome.find_element(By.CLASS_NAME, "tiles").text
    figure = chrome.find_element(By.CSS_SELECTOR, "figure[data-figure=tasks] .wide svg")
    assert "task-01 kept least" in figure.get_attribute("aria-label")
    assert "95.0 %" in figure.text
