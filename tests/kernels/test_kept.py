"""Compiled kernels that are kept on disk are those of the sources that there are, all of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import ROOT, child

from tallstore.kernels import fast

pytestmark = pytest.mark.skipif(fast.kernels() is None, reason="needs numba, and kernels that are not turned off")
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tallstore.kernels import compiled_fill, fill
out = np.zeros(4, np.uint16)
planes = fill.of_planes([np.full(4, 2, np.uint8), np.zeros(4, np.uint8)])
assert fill.filled("whole", fill.Part(out.view(np.uint8), out), planes)
print(out.tolist(), compiled_fill.whole.stats.cache_hits.total())
"""


def test_a_kernel_is_compiled_anew_when_one_that_it_calls_has_changed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tallstore", tmp_path / "tallstore", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "tallstore" / "kernels" / "compiled.py"

    def said() -> str:
        done = child(CODE, str(tmp_path), env={"NUMBA_CACHE_DIR": str(tmp_path / "kept")})
        assert not done.returncode, done.stderr
        return done.stdout.strip()

    assert said() == "[1, 1, 1, 1] 0"
    assert said() == "[1, 1, 1, 1] 1"
    text, joined = file.read_text(encoding="utf-8"), "out[i] = np.uint16(word >> np.uint16(1)) |"
    assert text.count(joined) == 1
    file.write_text(text.replace(joined, f"{joined} np.uint16(8) |"), encoding="utf-8")
    os.utime(file)
    assert said() == "[9, 9, 9, 9] 0"
