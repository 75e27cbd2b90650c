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
out = np.zeros(4, np.float32)
planes = fill.of_planes([np.zeros(4, np.uint8)] * 4)
gaps = np.array([1, 0], np.uint8)
codes = np.zeros(4, np.uint64), gaps, gaps[:0], np.float32(1), np.float32(-1)
assert fill.filled("gaps", fill.Part(out.view(np.uint8), out), planes, *codes)
print(out.tolist(), compiled_fill.gaps.stats.cache_hits.total())
"""


def test_a_kernel_is_compiled_anew_when_one_that_it_calls_has_changed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tallstore", tmp_path / "tallstore", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "tallstore" / "kernels" / "compiled.py"

    def said() -> str:
        done = child(CODE, str(tmp_path), env={"NUMBA_CACHE_DIR": str(tmp_path / "kept")})
        assert not done.returncode, done.stderr
        return done.stdout.strip()

    assert said() == "[0.0, 1.0, 1.0, 0.0] 0"
    assert said() == "[0.0, 1.0, 1.0, 0.0] 1"
    text = file.read_text(encoding="utf-8")
    assert text.count("out[there - first] += minus if negative else plus") == 1
    file.write_text(
        text.replace("+= minus if negative else plus", "+= minus if negative else plus + plus"), encoding="utf-8"
    )
    os.utime(file)
    assert said() == "[0.0, 2.0, 2.0, 0.0] 0"
