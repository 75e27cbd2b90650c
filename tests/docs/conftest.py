"""The documentation, built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import Shared
from support import ROOT


@pytest.fixture(scope="session")
def site(shared: Shared) -> Path:
    def make(out: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "-d", str(out)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    return shared.once("site", make)
