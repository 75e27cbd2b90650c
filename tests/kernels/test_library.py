"""The native library: which variant runs, what happens where it cannot be loaded or built, and what is said then."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import child
from support import ROOT

from tallstore.cli import output
from tallstore.errors import DeviceError, OptionError
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.native import build, library

needs_library = pytest.mark.skipif(library.chosen() is None, reason=f"no native library: {library.why_not()}")
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler here")
FEATURES: dict[str, list[str]] = {
    "x86_64": ["avx2", "avx512_vbmi2"],
    "aarch64": ["asimd"],
}
BITS = {"plain": 0, "avx2": 1, "avx512": 2, "neon": 4}
"""What `ts_compiled_for` says of a variant: the widest vectors that its compiler was allowed."""


def features() -> set[str]:
    """The processor's, as Linux lists them: asked of another source than the library asks."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return set(next(line for line in lines if line.lower().startswith(("flags", "features"))).split(":")[1].split())


@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
def test_the_fast_variant_is_in_use_and_is_what_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    found = library.chosen()
    assert found is not None
    there = features()
    wanted = {"x86_64": "avx512" if "avx512_vbmi2" in there else "avx2" if "avx2" in there else "plain"}
    assert found.variant == wanted.get(platform.machine(), "neon" if platform.machine() == "aarch64" else "plain")
    for variant in found.there:
        own = library.open_library(build.library_path(), variant)
        assert library.bind({"compiled_for": (ctypes.c_int32, ())}, own).compiled_for() == BITS[variant]


@needs_library
def test_every_variant_is_in_the_library_even_where_it_cannot_run() -> None:
    handle = ctypes.CDLL(str(build.library_path()))
    for variant in build.VARIANTS.get(platform.machine(), {"plain": ()}):
        assert getattr(handle, f"ts_apply_{variant}")


@needs_library
@pytest.mark.parametrize("asked", ["native", "plain"])
def test_a_variant_can_be_forced(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, asked)
    found = library.chosen()
    assert found is not None
    assert found.variant == (found.there[-1] if asked == "native" else asked)
    assert library.describe() == f"kernels: native, {found.variant}"
    assert decoding().name == "native"


def test_the_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "reference")
    assert library.chosen() is None
    assert decoding().name == "reference"
    assert library.describe() == "kernels: reference (TALLSTORE_KERNELS=reference)"


@pytest.mark.parametrize("asked", ["AVX2", "1", "sse"])
def test_an_unknown_variant_is_one_clear_error(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, asked)
    with pytest.raises(OptionError, match=rf"TALLSTORE_KERNELS={asked}: expected reference, native, plain, avx2"):
        library.chosen()


@needs_library
def test_a_variant_that_the_processor_lacks_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library.chosen()
    assert found is not None
    lacking = next(name for name in BITS if name not in found.there)
    monkeypatch.setenv(library.VARIABLE, lacking)
    with pytest.raises(DeviceError, match=rf"TALLSTORE_KERNELS={lacking}: this processor has .*plain"):
        library.chosen()


def _whole(path: Path, data: bytes, stamp: int | None = None) -> None:
    """A file whose sum is right: what is found wrong is found by loading it."""
    path.write_bytes(data)
    own = build.stamp() if stamp is None else stamp
    build.sum_path(path).write_text(f"{own:016x} {build.digest(path)}\n")


def _real() -> bytes:
    return build.library_path().read_bytes()


def _of_another_machine(data: bytes) -> bytes:
    return data[:18] + (0xF3).to_bytes(2, "little") + data[20:]  # e_machine: RISC-V


def _damaged(path: Path, data: bytes) -> None:
    _whole(path, _real())
    path.write_bytes(data)


def _renamed(data: bytes) -> bytes:
    return data.replace(b"ts_variants", b"ts_variantz")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "was not built"),
    "empty": (lambda path: _damaged(path, b""), "is damaged"),
    "cut off": (lambda path: _damaged(path, _real()[:3000]), "is damaged"),
    "a bit changed": (lambda path: _damaged(path, _real()[:-1] + bytes([_real()[-1] ^ 1])), "is damaged"),
    "a folder": (lambda path: path.mkdir(), "was not built to the end"),
    "half built": (lambda path: path.write_bytes(_real()), "was not built to the end"),
    "sum damaged": (lambda path: (_whole(path, _real()), build.sum_path(path).write_text("?")), "not built to the end"),
    "no library": (lambda path: _whole(path, b"hello"), "cannot be loaded"),
    "another architecture": (lambda path: _whole(path, _of_another_machine(_real())), "cannot be loaded"),
    "without its functions": (lambda path: _whole(path, _renamed(_real())), "cannot be loaded"),
    "other sources": (lambda path: _whole(path, _real(), 5), "built from other sources"),
    "other sources inside": (
        lambda path: _whole(path, _real().replace(build.stamp().to_bytes(8, "little"), bytes(8))),
        "built from other sources",
    ),
}


@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="damages an ELF file")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_library_that_does_not_load_is_not_used_and_that_is_said(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = DAMAGE[damage]
    path = tmp_path / "_native.so"
    change(path)
    monkeypatch.setattr(build, "library_path", lambda: path)
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library._choose.cache_clear()
    try:
        assert library.chosen() is None
        assert said in library.why_not()
        assert "\n" not in library.describe()
        assert decoding().name == "reference"
        with output.progress("working", quiet=False, long=0.0):
            pass
        assert said in capsys.readouterr().err
        with output.progress("working", quiet=False):
            pass
        assert not capsys.readouterr().err
        monkeypatch.setenv(library.VARIABLE, "native")
        with pytest.raises(DeviceError, match=said):
            library.chosen()
    finally:
        library._choose.cache_clear()


@needs_compiler
def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "_native.so"
    out.write_bytes(b"before")
    with pytest.raises(build.BuildError, match="failed"):
        build.build(out, extra=["-include", str(tmp_path / "missing.h")])
    with pytest.raises(build.BuildError, match="cannot be started"):
        build.build(out, compiler=[str(tmp_path / "no-such-compiler")])
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    with pytest.raises(build.BuildError, match="no C compiler"):
        build.build(out)
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["_native.so"]  # and no sum: it is not loaded


@needs_compiler
def test_without_sources_a_library_is_what_was_written_down_of_it(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a wheel brings it."""
    made, stamp = build.build(tmp_path / "_native.so", compiler=[compiler]), build.stamp()
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    monkeypatch.setattr(build, "library_path", lambda: made)
    assert build.stamp() == stamp
    assert library.open_library(made).variant
    with pytest.raises(build.BuildError, match="install tallstore anew"):
        build.build(tmp_path / "_native.so")
    build.sum_path(made).write_text(f"nonsense {build.digest(made)}\n")
    with pytest.raises(library._UnusableError, match="not built to the end"):
        library.open_library(made)


@needs_compiler
def test_a_build_is_of_its_sources_and_runs(compiler: str, tmp_path: Path) -> None:
    made = build.build(tmp_path / "_native.so", compiler=[compiler])
    found = library.open_library(made)
    functions = library.bind({"sum_gaps": (None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64))}, found)
    totals, gaps = np.zeros(2, np.int64), np.array([3, 255, 1, 0], np.uint8)
    functions.sum_gaps(library.address(totals), library.address(gaps), len(gaps))
    assert totals.tolist() == [259, 3]


@needs_compiler
def test_a_compiler_that_refuses_a_flag_of_another_builds_without_it(compiler: str, tmp_path: Path) -> None:
    """As clang does, and zig's compiler, which is that."""
    choosy, words = tmp_path / "choosy", tmp_path / "words"
    choosy.write_text(
        f"""#!/bin/sh
for word in "$@"; do
  case $word in
    -fvect-cost-model=*) echo "error: unknown option" >&2; exit 1 ;;
  esac
done
echo "$*" >> {words}
exec {compiler} "$@"
"""
    )
    choosy.chmod(0o755)
    made = build.build(tmp_path / "_native.so", compiler=[str(choosy)])
    assert library.open_library(made).variant
    assert words.read_text().count(" -c ") > 10


def test_a_compiler_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    for name in ("gcc", "clang"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.find_compiler() == [str(tmp_path / "gcc")]
    (tmp_path / "gcc").unlink()
    assert build.find_compiler() == [str(tmp_path / "clang")]
    monkeypatch.setenv("CC", "ccache cc")
    assert build.find_compiler() == ["ccache", "cc"]
    monkeypatch.delenv("CC")
    (tmp_path / "clang").unlink()
    zig = build.find_compiler()
    assert zig is None or zig[1:] == ["-m", "ziglang", "cc"]


LISTING = """
import sys
from tallstore.cli import main
words, archives = sys.argv[1].split(), sys.argv[2:]
for archive in archives or [None]:
    try:
        main(words + [archive] * bool(archive))
    except SystemExit as end:
        assert not end.code, end
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("words", [["--version"], ["info"], ["info", "--json"]])
def test_listing_needs_no_torch(words: list[str]) -> None:
    archive = next((ROOT / "tests" / "golden").rglob("*.tall"))
    done = child(LISTING, " ".join(words), *([str(archive)] if words[0] == "info" else []))
    assert not done.returncode, done.stderr
    assert ("kernels: " in done.stdout) == (words == ["--version"])


@pytest.mark.parametrize("kernels", ["", "reference"])
def test_verifying_needs_no_torch(kernels: str) -> None:
    """Of tasks that are made of others, codes are held to what these decode to: that takes torch."""
    golden = (str(path) for path in sorted((ROOT / "tests" / "golden").rglob("*.tall")))
    archives = [path for path in golden if not any(name in path for name in ("family", "1.3/run", "1.4/float32"))]
    assert any("lossless" in path for path in archives)
    done = child(LISTING, "verify", *archives, env={library.VARIABLE: kernels})
    assert not done.returncode, done.stderr
    assert done.stdout.count(": whole: ") == len(archives)


def test_the_address_of_an_array_is_where_it_begins_whoever_may_write_to_it() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    fixed = array.view()
    fixed.flags.writeable = False
    for each in (array, array[1:], fixed, fixed[2], np.zeros((0, 4))):
        assert library.address(each) == each.ctypes.data
    for odd in (array[:, 1:], fixed[::2], array.T):
        with pytest.raises(ValueError, match="contiguous arrays alone"):
            library.address(odd)
