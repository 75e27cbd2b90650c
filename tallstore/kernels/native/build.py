"""Build the native library: `python -m tallstore.kernels.native.build` in a checkout; `hatch_build.py` at installation.

Needs a C compiler and nothing of this package or any other: the build hook runs it before anything is installed.
Every source is compiled once per CPU variant, `library.c` once, and all of it is linked into one shared library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["BuildError", "build", "digest", "find_compiler", "library_path", "stamp", "sum_path"]

SOURCES = Path(__file__).parent / "src"
_ONCE = "library.c"
"""Compiled once, not per variant."""
FLAGS = (
    *("-std=c11", "-O2", "-ftree-vectorize", "-fno-asynchronous-unwind-tables"),
    *("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=implicit-function-declaration"),
    *("-ffp-contract=off", "-fno-fast-math", "-fno-math-errno", "-fno-trapping-math"),
)
"""Results do not depend on these: errno and floating-point exceptions, which nothing here looks at, are all that is
given up for vectors, and tables that exceptions of C++ would need for a smaller library; nothing is fused or reordered
but where a source says so (`products.c`, `own_outputs.c`, `low_rank.c`)."""
_VECTORS = "-fvect-cost-model=dynamic"
"""Of gcc, which else makes few vectors at -O2; clang makes them, and refuses the flag."""
_UNROLLED = {
    *("drift_decode", "drift_encode", "lattice_choices", "lattice_decode", "lattice_encode"),
    *("known_dither", "low_rank", "marks", "own_outputs"),
}
"""Sources that -O3 makes quicker. It makes the library a third larger, and the rest no quicker."""
_AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mlzcnt", "-mpopcnt")
_AVX512 = (f"-mavx512{each}" for each in ("f", "bw", "dq", "vl", "vbmi", "vbmi2"))
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"plain": (), "avx2": _AVX2, "avx512": (*_AVX2, *_AVX512, "-mprefer-vector-width=512")},
    "aarch64": {"plain": ("-DTS_SCALAR", "-fno-tree-vectorize"), "neon": ()},
}
"""Flags of every variant, by architecture; others have `plain` alone."""
_ARCHITECTURES = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}


class BuildError(Exception):
    """The library cannot be built here. The message says why in one line."""


def stamp() -> int:
    """64 bits of a hash of all sources: a library that was built from others is not used.

    A wheel has the library and not its sources: there it is what was written down when it was built.
    """
    if not SOURCES.is_dir():
        return int(sum_path(library_path()).read_text(encoding="utf-8").split()[0], 16)
    hasher = hashlib.blake2b(digest_size=8)
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".c", ".h"}:
            content = path.read_bytes()
            hasher.update(f"{path.name} {len(content)}\n".encode() + content)
    return int.from_bytes(hasher.digest(), "little")


def library_path(system: str = sys.platform) -> Path:
    """Where the library of a checkout or an installed package lies, whether it is there or not."""
    return Path(__file__).parent / ("_native.dylib" if system == "darwin" else "_native.so")


def find_compiler() -> list[str] | None:
    """The command of a C compiler: $CC, else cc, gcc or clang, else the one of the package `ziglang`; None if none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path:
            return [path]
    return zig()


def zig() -> list[str] | None:
    """The command of `zig cc` from the package `ziglang`; None where that is not installed."""
    import importlib.util

    return None if importlib.util.find_spec("ziglang") is None else [sys.executable, "-m", "ziglang", "cc"]


def build(
    out: Path | None = None,
    *,
    compiler: Sequence[str] | None = None,
    target: str | None = None,
    extra: Sequence[str] = (),
) -> Path:
    """Build the library; what was at `out` before is replaced in one step, or stays.

    Args:
        out: the file to write; by default where the package looks for it.
        compiler: its command; by default `find_compiler`'s.
        target: what to build for, as `zig cc` names it (`aarch64-linux-gnu.2.17`); by default this machine.
        extra: more flags, of the compiler and the linker alike.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    if not SOURCES.is_dir():
        raise BuildError(
            "a wheel that brings the library has no sources: install tallstore anew (pip --force-reinstall)"
        )
    compiler = list(compiler or (zig() if target else find_compiler()) or ())
    if not compiler:
        raise BuildError("there is no C compiler: neither $CC, cc, gcc, clang nor the package ziglang")
    is_zig = "ziglang" in compiler or "zig" in compiler[0]
    target = target or (_baseline() if is_zig else None)
    out = out or library_path("darwin" if target and "macos" in target else sys.platform)
    machine = (target.split("-")[0] if target else platform.machine()).lower()
    variants = VARIANTS.get(_ARCHITECTURES.get(machine, machine), {"plain": ()})
    of_gcc = [_VECTORS] if _takes(compiler, _VECTORS) else []
    flags = [*FLAGS, *of_gcc, *extra, f"-DTS_STAMP={stamp()}ULL", *(["-target", target] if target else [])]
    jobs = [(source, name, variants[name]) for source in _per_variant() for name in variants]
    jobs.append((SOURCES / _ONCE, "", ()))
    with tempfile.TemporaryDirectory(prefix="tallstore-build-") as folder:

        def compile_one(job: tuple[Path, str, tuple[str, ...]]) -> str:
            source, variant, own = job
            made = str(Path(folder) / f"{source.stem}.{variant or 'once'}.o")
            named = [f"-DTS_VARIANT={variant}"] if variant else []
            level = ["-O3"] if source.stem in _UNROLLED else []
            _run([*compiler, *flags, *level, *own, *named, "-c", str(source), "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, jobs))
        linked = Path(folder) / "linked"
        whither = ["-target", target] if target else []
        _run([*compiler, "-shared", "-fPIC", "-s", *extra, *whither, *objects, "-o", str(linked)])
        _put(linked.read_bytes(), out)
    _put(f"{stamp():016x} {digest(out)}\n".encode(), sum_path(out))
    return out


def sum_path(library: Path) -> Path:
    """The file beside a library that holds the stamp of its sources, and its digest: a damaged one is not loaded."""
    return library.with_name(f"{library.name}.sum")


def digest(path: Path) -> str:
    """Of a library's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _put(data: bytes, path: Path) -> None:
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    staged.write_bytes(data)
    staged.replace(path)


def _per_variant() -> list[Path]:
    return [path for path in sorted(SOURCES.glob("*.c")) if path.name != _ONCE]


def _baseline() -> str | None:
    """This machine as a target of zig, which else compiles for the very processor it runs on."""
    machine = platform.machine().lower()
    machine = _ARCHITECTURES.get(machine, machine)
    if sys.platform == "darwin":
        return f"{machine}-macos"
    libc = platform.libc_ver()[0] == "glibc"
    return f"{machine}-linux-{'gnu' if libc else 'musl'}"


def _takes(compiler: Sequence[str], flag: str) -> bool:
    """Whether a compiler knows a flag. One that does nothing at all is told of where it should compile."""
    try:
        _run([*compiler, flag, "-fsyntax-only", "-x", "c", os.devnull])
    except BuildError:
        return False
    return True


def _run(command: Sequence[str]) -> None:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's compiler
    except OSError as error:
        raise BuildError(f"the C compiler {command[0]} cannot be started: {error.strerror or error}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
        raise BuildError(f"the C compiler {command[0]} failed: {' '.join(said.split())}")


def _main() -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m tallstore.kernels.native.build", description="Build the kernels.")
    parser.add_argument("--out", type=Path, help="the file to write (default: where the package looks for it)")
    parser.add_argument("--target", help="what to build for, as zig names it: aarch64-linux-gnu.2.17, aarch64-macos")
    parser.add_argument("--zig", action="store_true", help="use the compiler of the package ziglang")
    parser.add_argument("extra", nargs="*", help="more flags of the compiler, behind --")
    given = parser.parse_args()
    try:
        made = build(given.out, compiler=zig() if given.zig else None, target=given.target, extra=given.extra)
    except BuildError as error:
        sys.stderr.write(f"tallstore: error: {error}\n")
        return 1
    sys.stdout.write(f"{made}: {made.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
