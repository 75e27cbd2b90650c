"""What is loaded before the first kernel: it leaves the process as it was, and is not torn by Ctrl-C."""

from __future__ import annotations

import pytest
from support import child

from tallstore.kernels import fast

pytestmark = pytest.mark.skipif(fast.kernels() is None, reason="needs numba, and kernels that are not turned off")

PRESSED = """
import importlib.abc, os, signal, sys, threading

class Finder(importlib.abc.MetaPathFinder):
    pressed = False
    def find_spec(self, name, path=None, target=None):
        if name == "numba.core.entrypoints" and not Finder.pressed:
            Finder.pressed = True
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from tallstore.kernels import fast
before = signal.getsignal(signal.SIGINT)
try:
    fast.kernels()
except KeyboardInterrupt:
    print("interrupted", end=" ")
assert Finder.pressed and signal.getsignal(signal.SIGINT) is before
import numpy as np
values = np.ones(2, np.float32)
fast.kernels().widen(values, np.zeros(2, np.uint16), True)
print(values.tolist())
"""


def test_ctrl_c_takes_effect_when_all_is_loaded() -> None:
    done = child(PRESSED)
    assert not done.returncode, done.stderr
    assert done.stdout.split("\n")[0] == "interrupted [0.0, 0.0]"
    assert not done.stderr


def test_ctrl_c_goes_to_the_main_thread_while_another_one_loads() -> None:
    done = child("""
import signal, threading
from tallstore.kernels import fast
before = signal.getsignal(signal.SIGINT)
other = threading.Thread(target=fast.kernels)
other.start()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted", other.is_alive(), end=" ")
other.join()
print(fast.kernels() is not None, signal.getsignal(signal.SIGINT) is before)
""")
    assert not done.returncode, done.stderr
    assert done.stdout.strip() == "interrupted True True True"


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(collecting: bool) -> None:
    done = child(f"""
import gc
from tallstore.kernels import fast
{"gc.enable()" if collecting else "gc.disable()"}
assert fast.kernels() is not None
print(gc.isenabled())
""")
    assert done.stdout.strip() == str(collecting), done.stderr
