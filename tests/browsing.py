"""A headless Chromium for tests that look at pages, and the rules of axe-core.

Where there is none with its driver, what imports this is skipped (Debian: `apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    pytest.skip("no Chromium with chromedriver on this machine", allow_module_level=True)

from selenium import webdriver  # noqa: E402

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
DESK, PHONE = (1200, 900), (390, 844)


@contextmanager
def opened(profile: Path) -> Iterator[Any]:
    """The browser, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def show(chrome: Any, page: Path, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
    """A page in a window of a size, for one who likes it light or dark."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for log in ("browser", "performance"):
        chrome.get_log(log)
    chrome.get(page.as_uri())


def judged(chrome: Any) -> dict[str, Any]:
    """What axe-core (WCAG 2, and its good practice) finds of the whole page, all that is folded opened."""
    chrome.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    axe = (resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    chrome.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})  # past the page's own policy
    chrome.set_script_timeout(120)
    found: dict[str, Any] = chrome.execute_async_script(
        "axe.run(document).then(arguments[0], e => arguments[0]({error: String(e)}))"
    )
    assert "error" not in found
    return found


def broken(found: dict[str, Any]) -> dict[str, list[str]]:
    """Rules that a page breaks, and where."""
    return {rule["id"]: [node["html"][:200] for node in rule["nodes"]] for rule in found["violations"]}
