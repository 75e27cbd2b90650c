"""What a report costs: seconds, memory and bytes by the size of the zoo, and how soon a browser shows it.

Archives are synthetic, as in `mask_statistics.py`: what is read, decoded and counted is as much as in real ones. Files
are read plainly and not mapped, so that memory is the process's own; each report is made in a process of its own.

What a header holds grows with tensors and chunks. With `--tensors` the parameters are cut into so many tensors,
and with `--chunk` into small chunks, so that headers are as large as those of a model that no disk here holds: 7 M
parameters in chunks of 1,024 have as many as 7 B in chunks of a million.

example:
  python benchmarks/report.py
  python benchmarks/report.py --zoos 20x88e6 80x22e6
  python benchmarks/report.py --zoos 50x7e6 200x7e6 --tensors 1000 --chunk 1024
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import MIB, describe_machine, memory_of, reset_peak, table
from mask_statistics import CASES, CHUNK, make, shapes

import tallstore

ZOOS = ("20x22e6", "20x88e6", "80x22e6")
TIMES = 5


def report_alone(archive: Path, page: Path) -> None:
    """In a process of its own: say seconds and peak memory above what importing takes."""
    import jinja2  # noqa: F401 - loaded before the clock starts
    import matplotlib.figure  # noqa: F401 - likewise
    import scipy.cluster.hierarchy  # noqa: F401 - likewise

    with tallstore.open(archive, mapped=False) as zoo:
        reset_peak()
        before = memory_of()["VmRSS"]
        began = time.perf_counter()
        zoo.report(page)
        print(time.perf_counter() - began, memory_of()["VmHWM"] - before)


def opens_in(page: Path) -> str:
    """Milliseconds from asking for the page to its load event, the median of a few; a dash without a browser."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        return "–"
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
        try:
            found = []
            for _ in range(TIMES):
                chrome.get(page.as_uri())
                script = "const t = performance.getEntriesByType('navigation')[0]; return t.loadEventStart"
                found.append(float(chrome.execute_script(script)))
        finally:
            chrome.quit()
    return f"{sorted(found)[TIMES // 2]:.0f}"


def cut(parameters: float, tensors: int) -> dict[str, tuple[int, int]]:
    """So many tensors of one shape."""
    side = math.ceil(math.sqrt(parameters / tensors))
    return {f"layers.{n // 10}.part{n % 10}.weight": (side, side) for n in range(tensors)}


def headers_of(archive: Path) -> int:
    """Bytes of the headers of all parts."""
    with tallstore.open(archive) as zoo:
        return sum(record.header_size or 0 for record in zoo.manifest.parts.values())


def measure(zoo: str, folder: Path, chunk: int, cut_into: int | None) -> list[str]:
    tasks, parameters = zoo.split("x")
    tensors = shapes(float(parameters)) if cut_into is None else cut(float(parameters), cut_into)
    archive, page = folder / "zoo.tall", folder / "report.html"
    make(archive, CASES[0], int(tasks), tensors, chunk)
    page.unlink(missing_ok=True)
    said = subprocess.run(
        [sys.executable, __file__, "--alone", archive, page], capture_output=True, text=True, check=True
    ).stdout.split()
    count = sum(a * b for a, b in tensors.values())
    masks = int(tasks) * count / 8 / MIB
    return [
        f"{tasks} × {count / 1e6:.0f} M",
        f"{masks:.0f}",
        f"{headers_of(archive) / MIB:.0f}",
        f"{float(said[0]):.1f}",
        f"{float(said[1]) / MIB:.0f}",
        f"{page.stat().st_size / MIB:.2f}",
        opens_in(page),
    ]


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoos", nargs="+", default=ZOOS, metavar="TASKSxPARAMETERS")
    parser.add_argument(
        "--tensors", type=int, help="cut the parameters into so many (default: layers of a transformer)"
    )
    parser.add_argument("--chunk", type=int, default=CHUNK, help=f"elements of a chunk (default: {CHUNK})")
    parser.add_argument("--alone", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        report_alone(*arguments.alone)
        return
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        rows = [measure(zoo, Path(folder), arguments.chunk, arguments.tensors) for zoo in arguments.zoos]
    print(describe_machine(), end="\n\n")
    print(
        table(
            [
                "zoo",
                "masks at a bit each, MiB",
                "headers, MiB",
                "seconds",
                "peak memory, MiB",
                "page, MiB",
                "opens in, ms",
            ],
            rows,
        )
    )


if __name__ == "__main__":
    main()
